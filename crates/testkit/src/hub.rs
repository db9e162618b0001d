//! A hub on this machine that does what a test says.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use ring::digest::{SHA256, digest};

/// The commit that every revision stands for.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The one model.
pub const MODEL: &str = "acme/tiny";

/// What a client asks.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET` or `HEAD`.
    pub method: String,
    /// With what follows `?`.
    pub path: String,
    /// By names in lower case.
    pub headers: HashMap<String, String>,
}

impl Request {
    /// A header, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Whether it is of this method, for a path with this end.
    pub fn is(&self, method: &str, path_end: &str) -> bool {
        self.method == method && self.path.ends_with(path_end)
    }

    /// The first byte that is wanted.
    pub fn first(&self) -> usize {
        let range = self.header("range").strip_prefix("bytes=");
        range
            .and_then(|range| range.split('-').next()?.parse().ok())
            .unwrap_or(0)
    }
}

/// How the bytes of a body come.
#[derive(Clone, Copy, Debug)]
pub enum Flow {
    /// At once.
    Whole,
    /// The connection breaks after so many bytes.
    Cut(usize),
    /// Nothing comes after so many bytes.
    Stall(usize),
    /// A byte at a time with this pause, after so many bytes.
    Drip(usize, Duration),
}

/// What it gets.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Of HTTP.
    pub status: u16,
    /// Beside the length.
    pub headers: Vec<(String, String)>,
    /// Nothing of it follows a `HEAD`.
    pub body: Vec<u8>,
    /// How it comes.
    pub flow: Flow,
}

impl Reply {
    /// One without a body.
    pub fn new(status: u16) -> Reply {
        Reply {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            flow: Flow::Whole,
        }
    }

    /// With this body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Reply {
        self.body = body.into();
        self
    }

    /// With this header, in place of another of its name.
    pub fn with(mut self, name: &str, value: &str) -> Reply {
        self.headers.retain(|(other, _)| other != name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Without a header.
    pub fn without(mut self, name: &str) -> Reply {
        self.headers.retain(|(other, _)| other != name);
        self
    }

    /// With a body that comes in this way.
    pub fn flow(mut self, flow: Flow) -> Reply {
        self.flow = flow;
        self
    }

    /// Says nothing about the length, if the body does not say it itself.
    fn write(&self, out: &mut impl Write, head_only: bool) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {} Status\r\nconnection: close\r\n", self.status);
        let named = |name: &str| self.headers.iter().any(|(other, _)| other == name);
        if !named("transfer-encoding") && !named("x-no-length") {
            head += &format!("content-length: {}\r\n", self.body.len());
        }
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        out.write_all((head + "\r\n").as_bytes())?;
        if head_only {
            return Ok(());
        }
        let at = |bytes: usize| bytes.min(self.body.len());
        match self.flow {
            Flow::Whole => out.write_all(&self.body),
            Flow::Cut(bytes) => out.write_all(&self.body[..at(bytes)]),
            Flow::Stall(bytes) => {
                out.write_all(&self.body[..at(bytes)])?;
                out.flush()?;
                thread::sleep(Duration::from_secs(60));
                Ok(())
            }
            Flow::Drip(bytes, pause) => {
                out.write_all(&self.body[..at(bytes)])?;
                for byte in &self.body[at(bytes)..] {
                    out.write_all(&[*byte])?;
                    out.flush()?;
                    thread::sleep(pause);
                }
                Ok(())
            }
        }
    }
}

/// A server that answers until the test ends.
pub struct Server {
    /// `http://127.0.0.1:port`.
    pub endpoint: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Answers each request as `answer` says.
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (Arc::clone(&requests), Arc::new(answer));
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                thread::spawn(move || serve(&mut stream, &seen, &*answer));
            }
        });
        Server { endpoint, requests }
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests
            .lock()
            .expect("no panic in the server")
            .clone()
    }

    /// How many requests there were of this method, for a path with this end.
    pub fn count(&self, method: &str, path_end: &str) -> usize {
        self.requests()
            .iter()
            .filter(|request| request.is(method, path_end))
            .count()
    }
}

/// One request on one connection. Errors of the connection are the client's to notice.
pub fn serve(
    stream: &mut (impl Read + Write),
    seen: &Mutex<Vec<Request>>,
    answer: &dyn Fn(&Request) -> Reply,
) {
    if let Some(request) = read(stream) {
        seen.lock()
            .expect("no panic in the server")
            .push(request.clone());
        let _ = answer(&request).write(stream, request.method == "HEAD");
        let _ = stream.flush();
    }
}

fn read(stream: &mut impl Read) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = HashMap::new();
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    Some(Request {
        method,
        path,
        headers,
    })
}

/// The files of a model, as a hub that does everything right answers for them.
#[derive(Clone)]
pub struct Files(pub Vec<(String, Vec<u8>)>);

impl Files {
    /// As small as a model can be, with weights of so many bytes.
    pub fn new(weights: usize) -> Files {
        let bytes: Vec<u8> = (0..weights).map(|i| (i * 31 % 251) as u8).collect();
        let file = |name: &str, bytes: &[u8]| (name.to_owned(), bytes.to_vec());
        Files(vec![
            file("config.json", b"{\"model_type\": \"llama\"}"),
            file("tokenizer.json", &b"{\"model\": {}} ".repeat(200)),
            file("README.md", b"not of interest"),
            file("model.safetensors", &bytes),
        ])
    }

    /// The content of a file.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        let file = self.0.iter().find(|(other, _)| other == name);
        file.map(|(_, bytes)| bytes.as_slice())
    }

    /// The entity tag of a file: the SHA-256 of a large one.
    pub fn etag(&self, name: &str) -> String {
        let hash = digest(&SHA256, self.bytes(name).expect("a file"));
        let hex: String = hash
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let len = if is_large(name) { 64 } else { 40 };
        hex[..len].to_owned()
    }

    /// What the API says of the model.
    pub fn info(&self) -> serde_json::Value {
        let name = |(name, _): &(String, Vec<u8>)| serde_json::json!({ "rfilename": name });
        let siblings: Vec<_> = self.0.iter().map(name).collect();
        serde_json::json!({ "sha": COMMIT, "siblings": siblings })
    }

    /// The answer to any request of a download.
    pub fn reply(&self, request: &Request) -> Reply {
        let path = request.path.split('?').next().unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        if path.contains("/api/models/acme/tiny/revision/") {
            return Reply::new(200).body(self.info().to_string());
        }
        let Some(bytes) = self.bytes(name) else {
            return Reply::new(404);
        };
        let etag = format!("\"{}\"", self.etag(name));
        if path.contains("/resolve/") && is_large(name) {
            return Reply::new(302)
                .with(
                    "location",
                    &format!("/cdn/{}?signed=1", name.replace('#', "%23")),
                )
                .with("x-linked-etag", &etag)
                .with("x-linked-size", &bytes.len().to_string())
                .with("x-repo-commit", COMMIT);
        }
        let first = request.first();
        let reply = if request.header("range").is_empty() {
            Reply::new(200).body(bytes)
        } else if first < bytes.len() {
            let range = format!("bytes {first}-{}/{}", bytes.len() - 1, bytes.len());
            Reply::new(206)
                .body(&bytes[first..])
                .with("content-range", &range)
        } else {
            Reply::new(416)
        };
        reply.with("etag", &etag).with("x-repo-commit", COMMIT)
    }
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors")
}
