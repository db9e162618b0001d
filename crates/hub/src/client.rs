//! Requests to the hub and to where it redirects.
//!
//! Redirections are followed here and not by the HTTP library, so that the token is seen by the hub alone and the headers of each answer
//! by us. A request runs on a thread of its own: its caller can be interrupted, whatever the network does.

use std::env;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use ureq::http::{HeaderMap, Response, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use crate::Progress;
use crate::address::{self, Origin};
use crate::error::Fault;
use crate::settings::Settings;

/// How often a wait looks for an interruption.
pub const GLANCE: Duration = Duration::from_millis(50);
const MAX_REDIRECTS: usize = 10;
/// Longer than the advice of any hub that works; what asks for more gets no second try.
const MAX_WAIT_SECONDS: u64 = 3600;

/// A connection to one hub.
pub struct Client<'a> {
    settings: &'a Settings,
    agent: Agent,
    hub: Origin,
}

/// What is asked.
#[derive(Clone, Copy)]
pub enum Ask {
    /// What the hub says about a model.
    Info,
    /// The headers of a file, those of the hub if it redirects to elsewhere.
    Head,
    /// The bytes, from this one on.
    Get(u64),
}

/// An answer that is no redirection to follow.
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Body,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub fn number(&self, name: &str) -> Option<u64> {
        self.header(name)?.trim().parse().ok()
    }

    /// The answer if it is a success.
    pub fn success(self) -> Result<Answer, Fault> {
        match self.status {
            200..=299 => Ok(self),
            _ => Err(self.refusal()),
        }
    }

    /// The failure that the status stands for, and how long the hub asks to wait: `Retry-After`, or `RateLimit` as in
    /// `"api";r=0;t=55`.
    pub fn refusal(&self) -> Fault {
        let limits = self.header("ratelimit").unwrap_or_default().split(';');
        let reset = limits
            .filter_map(|item| item.trim().strip_prefix("t=")?.parse().ok())
            .next();
        let wait = self
            .number("retry-after")
            .or(reset.filter(|_| self.status == 429));
        Fault::Status(
            self.status,
            wait.map(|seconds| Duration::from_secs(seconds.min(MAX_WAIT_SECONDS))),
        )
    }
}

impl<'a> Client<'a> {
    pub fn new(settings: &'a Settings) -> Result<Client<'a>, (&'a str, Fault)> {
        let endpoint = address::parse(&settings.endpoint).and_then(|address| Origin::of(&address));
        let wrong = "it must begin with https:// or http://, such as https://huggingface.co";
        let hub = endpoint.ok_or(("HF_ENDPOINT", Fault::Setting(wrong.to_owned())))?;
        if let Some(token) = &settings.token
            && !token.bytes().all(|b| b.is_ascii_graphic())
        {
            let wrong = "the token has a line break, a space or another character that no token has; set HF_TOKEN to it anew";
            return Err((&settings.token_source, Fault::Setting(wrong.to_owned())));
        }
        let roots = roots(&settings.certificates)
            .map_err(|(variable, why)| (variable, Fault::Setting(why)))?;
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .user_agent(settings.user_agent.as_str())
            .tls_config(TlsConfig::builder().root_certs(roots).build());
        Ok(Client {
            settings,
            agent: config.build().into(),
            hub,
        })
    }

    /// The address of what the hub has under these parts of a path.
    pub fn address(&self, parts: &str) -> Result<Uri, Fault> {
        let text = format!("{}/{parts}", self.settings.endpoint);
        address::parse(&text).ok_or_else(|| Fault::Answer(format!("{text} is no address")))
    }

    /// Asks, and follows redirections. A question for headers ends where the hub has named the file and sends us to another host.
    pub fn ask(
        &self,
        ask: Ask,
        mut address: Uri,
        progress: &dyn Progress,
    ) -> Result<Answer, Fault> {
        let mut trusted = true;
        for _ in 0..=MAX_REDIRECTS {
            let origin = Origin::of(&address)
                .ok_or_else(|| Fault::Answer(format!("{address} is no address")))?;
            trusted &= self.hub.trusts(&origin);
            let (parts, body) = self
                .once(ask, &address, &origin, trusted, progress)?
                .into_parts();
            let answer = Answer {
                status: parts.status.as_u16(),
                headers: parts.headers,
                body,
            };
            let location = match answer.status {
                301 | 302 | 303 | 307 | 308 => answer.headers.get("location"),
                _ => None,
            };
            let Some(location) = location else {
                return Ok(answer);
            };
            let location = String::from_utf8_lossy(location.as_bytes());
            let next = address::join(&address, &location)?;
            let named = answer.header("x-linked-etag").is_some()
                || (answer.header("etag").is_some()
                    && Origin::of(&next).is_some_and(|next| next != origin));
            if matches!(ask, Ask::Head) && named {
                return Ok(answer);
            }
            address = next;
        }
        Err(Fault::Answer("it redirects again and again".to_owned()))
    }

    /// One request and the head of its answer.
    fn once(
        &self,
        ask: Ask,
        address: &Uri,
        origin: &Origin,
        trusted: bool,
        progress: &dyn Progress,
    ) -> Result<Response<Body>, Fault> {
        let limit = match ask {
            Ask::Info | Ask::Head => self.settings.answer_limit,
            Ask::Get(_) => self.settings.transfer_limit,
        };
        let request = match ask {
            Ask::Head => self.agent.head(address),
            Ask::Info | Ask::Get(_) => self.agent.get(address),
        };
        let proxy = match self
            .settings
            .proxies
            .find(origin.https, &origin.host, origin.port)
        {
            Some(proxy) => Some(ureq::Proxy::new(&proxy.address).map_err(|_| {
                Fault::Unreachable(
                    format!("{} holds no address of a proxy", proxy.variable),
                    false,
                )
            })?),
            None => None,
        };
        let mut request = request
            .config()
            .proxy(proxy)
            .timeout_resolve(Some(limit))
            .timeout_connect(Some(limit))
            .timeout_recv_response(Some(limit))
            .timeout_per_read(Some(limit))
            .timeout_per_write(Some(limit))
            .build()
            .header("accept-encoding", "identity");
        if let Ask::Get(first @ 1..) = ask {
            request = request.header("range", format!("bytes={first}-"));
        }
        if trusted && let Some(token) = &self.settings.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let answer = watched(move || request.call(), progress)?;
        answer.map_err(|error| unreachable(&error, limit))
    }
}

/// What `work` gives; it is left behind if the user wants to end.
fn watched<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
    progress: &dyn Progress,
) -> Result<T, Fault> {
    let (done, result) = mpsc::channel();
    thread::spawn(move || {
        let _ = done.send(work());
    });
    loop {
        match result.recv_timeout(GLANCE) {
            Ok(value) => return Ok(value),
            Err(RecvTimeoutError::Timeout) if progress.interrupted() => {
                return Err(Fault::Interrupted);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Fault::Unreachable("the request failed".to_owned(), false));
            }
        }
    }
}

/// Why there is no answer, for people, and whether another try may help.
fn unreachable(error: &ureq::Error, limit: Duration) -> Fault {
    use std::io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, Interrupted, TimedOut, UnexpectedEof,
        WouldBlock,
    };
    let passing = [
        BrokenPipe,
        ConnectionAborted,
        ConnectionReset,
        Interrupted,
        TimedOut,
        UnexpectedEof,
        WouldBlock,
    ];
    let text = error.to_string();
    match error {
        ureq::Error::Timeout(_) => {
            Fault::Unreachable(format!("no answer within {} s", limit.as_secs()), true)
        }
        ureq::Error::Io(_) if text.contains("certificate") => Fault::Unreachable(
            format!("{text}; for a certificate of your company or proxy, set SSL_CERT_FILE"),
            false,
        ),
        ureq::Error::Io(error) => {
            Fault::Unreachable(error.to_string(), passing.contains(&error.kind()))
        }
        _ => Fault::Unreachable(text, false),
    }
}

/// The roots of trust: those of the system or of `SSL_CERT_FILE` and `SSL_CERT_DIR`, and the files and directories given. If the system has
/// none at all, as a small container, those of Mozilla. An error comes with the variable that is wrong.
fn roots(paths: &[PathBuf]) -> Result<RootCerts, (&'static str, String)> {
    let mut found = rustls_native_certs::load_native_certs().certs;
    for variable in ["SSL_CERT_FILE", "SSL_CERT_DIR"] {
        if let (true, Some(path)) = (found.is_empty(), env::var_os(variable)) {
            return Err((variable, format!("no certificates in {}", path.display())));
        }
    }
    for path in paths {
        let (file, directory) = if path.is_dir() {
            (None, Some(path.as_path()))
        } else {
            (Some(path.as_path()), None)
        };
        let more = rustls_native_certs::load_certs_from_paths(file, directory).certs;
        if more.is_empty() {
            let why = format!("no certificates in {}", path.display());
            return Err(("REQUESTS_CA_BUNDLE", why));
        }
        found.extend(more);
    }
    let certificates = found
        .iter()
        .map(|found| Certificate::from_der(found).to_owned());
    Ok(if found.is_empty() {
        RootCerts::WebPki
    } else {
        RootCerts::from(certificates)
    })
}
