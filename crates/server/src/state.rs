//! What every route sees: the options, the model once it is there, and how far the server is.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use ring::digest::{SHA256, digest};
use sparamx_engine::{Grammar, GrammarCompiler, GrammarSpec, Host, Loaded, SamplingParams};
use tokio::sync::watch;

use crate::bodies::{Bodies, Held};
use crate::error::ApiError;
use crate::keys::Keys;
use crate::meta::ModelMeta;
use crate::metrics::{Metrics, OVERLOAD};
use crate::options::ServerOptions;
use crate::tools::{Reasoning, ToolFormat};
use crate::work::Work;

/// Templates, tokenizers and large bodies that are at work at a time.
const WORKING: usize = 3;
/// Bytes of bodies together, in those of the longest one.
const BODIES: usize = 4;
/// Grammars, apart from them: one may take seconds.
const COMPILING: usize = 3;

/// The state that all routes share. A clone is the same.
#[derive(Clone)]
pub struct App(Arc<Shared>);

struct Shared {
    options: ServerOptions,
    keys: Keys,
    address: Option<SocketAddr>,
    served: OnceLock<Served>,
    work: Work,
    bodies: Bodies,
    phase: watch::Sender<Phase>,
    /// Those that the server's end waits for: they began before it and have not had their last answer. And all others.
    connections: watch::Sender<(usize, usize)>,
}

/// How far a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub enum Phase {
    /// The model is on its way.
    Loading,
    /// Requests are answered.
    Ready,
    /// Those that run are answered, new ones are not.
    Draining,
    /// No connection is taken any more.
    Closed,
}

/// The model, and what it goes by.
pub struct Served {
    /// The engine.
    pub host: Arc<Host>,
    /// What requests may call it; the first is in answers.
    pub names: Vec<String>,
    /// Where it came from: a path or the id on a hub.
    pub root: String,
    /// How tokens are chosen where a request does not say.
    pub sampling: SamplingParams,
    /// Facts about it.
    pub meta: ModelMeta,
    /// What happens to its requests.
    pub metrics: Metrics,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
    /// What answers say of the server: with another one the same request may give another text.
    pub fingerprint: String,
    /// Makes grammars for its tokens; none if its tokenizer does not allow that.
    grammars: Option<GrammarCompiler>,
    /// Where they are made.
    compiling: Work,
    /// How the model writes calls of tools; none: nobody knows.
    pub tools: Option<ToolFormat>,
}

impl Served {
    /// A model under its names, at least one, with what the options say about it.
    pub fn new(host: Arc<Host>, names: Vec<String>, root: String, options: &ServerOptions) -> Self {
        let defaults = &host.loaded().defaults;
        // OpenAI's, which are not those of a terminal.
        let neutral = SamplingParams {
            temperature: 1.0,
            top_p: 1.0,
            ..SamplingParams::default()
        };
        let of = |value: Option<f32>, neutral: f32| value.unwrap_or(neutral);
        let sampling = if options.model.neutral_sampling {
            neutral
        } else {
            SamplingParams {
                temperature: of(defaults.temperature, neutral.temperature),
                top_k: defaults.top_k.unwrap_or(neutral.top_k),
                top_p: of(defaults.top_p, neutral.top_p),
                min_p: of(defaults.min_p, neutral.min_p),
                repetition_penalty: of(defaults.repetition_penalty, neutral.repetition_penalty),
                ..neutral
            }
        };
        let reasons = options.model.reasons().unwrap_or_else(|| {
            let template = host.loaded().template.as_ref();
            template.is_some_and(|template| Reasoning::is_marked(template.source()))
        });
        let meta = ModelMeta::new(&host, &sampling, reasons);
        let name = names.first().map_or("", String::as_str);
        let metrics = Metrics::new(name, host.context(), &meta);
        host.observe(metrics.observer());
        Self {
            fingerprint: fingerprint(&host),
            tools: tool_format(&host, options),
            grammars: GrammarCompiler::new(&host.loaded().tokenizer).ok(),
            compiling: Work::new(COMPILING),
            host,
            meta,
            metrics,
            names,
            root,
            sampling,
            created: now(),
        }
    }

    /// The name that answers carry.
    pub fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    /// Compiles a grammar, which may take seconds.
    ///
    /// # Errors
    /// 400: it cannot be kept.
    pub async fn grammar(&self, spec: GrammarSpec) -> Result<Grammar, ApiError> {
        let Some(compiler) = self.grammars.clone() else {
            let message = "the tokenizer of this model does not allow to constrain an answer";
            return Err(ApiError::unsupported("response_format", message));
        };
        let work = self.compiling.run(move || compiler.compile(&spec));
        work.await?.map_err(|error| self.counted(error.into()))
    }

    /// Where grammars are made, and what leads to them.
    pub fn compiling(&self) -> &Work {
        &self.compiling
    }

    /// Counts a request that is refused for what comes before the engine, if it is for overload.
    pub fn counted(&self, error: ApiError) -> ApiError {
        if error.status == StatusCode::SERVICE_UNAVAILABLE {
            self.metrics.rejected(OVERLOAD);
        }
        error
    }

    /// Checks the `model` of a request; none: the one there is.
    ///
    /// # Errors
    /// 404 for another model.
    pub fn check_model(&self, model: Option<&str>) -> Result<(), ApiError> {
        match model {
            Some(model) if !self.names.iter().any(|name| name == model) => {
                Err(ApiError::no_model(model, self.name()))
            }
            _ => Ok(()),
        }
    }
}

/// How the model writes calls of tools: as the options say, or else its template.
fn tool_format(host: &Host, options: &ServerOptions) -> Option<ToolFormat> {
    let by_template = || ToolFormat::detect(host.loaded().template.as_ref()?.source());
    options.model.tool_parser.or_else(by_template)
}

/// Rows of activations that kernels are chosen for: one text, few, and many tokens.
const ROWS: [usize; 4] = [1, 4, 16, 64];

/// The version, the level of the processor, and a hash of what else the bits of a text depend on: the shape of the model, the
/// form and the number of its weights, the kernels, and the KV cache.
fn fingerprint(host: &Host) -> String {
    let Loaded { model, runtime, .. } = host.loaded();
    let format = model.weight_format();
    let kernels = ROWS.map(|rows| runtime.kernel(format, rows).name);
    let all = format!(
        "{:?} {format} {} {:?} {kernels:?} {:?}",
        model.config(),
        model.weight_bytes(),
        model.elements(),
        host.kv_options()
    );
    let hash = digest(&SHA256, all.as_bytes());
    let hash: String = hash.as_ref()[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!(
        "sparamx-{}-{}-{hash}",
        env!("CARGO_PKG_VERSION"),
        runtime.cpu().isa()
    )
}

/// Seconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| time.as_secs())
}

impl App {
    /// A server that is loading.
    pub fn new(options: ServerOptions, address: Option<SocketAddr>) -> Self {
        Self(Arc::new(Shared {
            keys: Keys::new(&options.keys),
            bodies: Bodies::new(options.limits.body_bytes.saturating_mul(BODIES)),
            options,
            address,
            served: OnceLock::new(),
            work: Work::new(WORKING),
            phase: watch::Sender::new(Phase::Loading),
            connections: watch::Sender::new((0, 0)),
        }))
    }

    /// What the server was told.
    pub fn options(&self) -> &ServerOptions {
        &self.0.options
    }

    /// Where work is done that takes its time, but for grammars.
    pub fn work(&self) -> &Work {
        &self.0.work
    }

    /// The memory that bodies may take.
    pub fn bodies(&self) -> &Bodies {
        &self.0.bodies
    }

    /// The body of a request has come to `bytes`.
    ///
    /// # Errors
    /// 503: the bodies of others take too much memory.
    pub fn hold(&self, held: &Held, bytes: usize) -> Result<(), ApiError> {
        let grown = self.bodies().grow(held, bytes);
        grown.map_err(|error| match self.model() {
            Some(served) => served.counted(error),
            None => error,
        })
    }

    /// The keys of the options.
    pub fn keys(&self) -> &Keys {
        &self.0.keys
    }

    /// The address that the server listens at; none for a place in the file system.
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.address
    }

    /// How far the server is.
    pub fn phase(&self) -> Phase {
        *self.0.phase.borrow()
    }

    /// The model, for requests that need it.
    ///
    /// # Errors
    /// 503 while the model is loaded, and once the server shuts down.
    pub fn served(&self) -> Result<&Served, ApiError> {
        match (self.phase(), self.model()) {
            (Phase::Draining | Phase::Closed, _) => {
                Err(ApiError::unavailable("the server is shutting down"))
            }
            (_, None) => Err(ApiError::unavailable("the model is being loaded")),
            (_, Some(served)) => Ok(served),
        }
    }

    /// The model, once it is there and also while the server shuts down.
    pub fn model(&self) -> Option<&Served> {
        self.0.served.get()
    }

    /// The model is there.
    pub fn ready(&self, served: Served) {
        if self.0.served.set(served).is_ok() {
            // It may be on its way out already.
            self.advance(Phase::Ready);
        }
    }

    /// No new requests from now on.
    pub fn drain(&self) {
        self.advance(Phase::Draining);
    }

    /// No new connections from now on.
    pub fn close(&self) {
        self.advance(Phase::Closed);
    }

    fn advance(&self, phase: Phase) {
        self.0.phase.send_if_modified(|now| {
            let later = phase > *now;
            if later {
                *now = phase;
            }
            later
        });
    }

    /// Whether no new requests are taken.
    pub fn is_draining(&self) -> bool {
        self.phase() >= Phase::Draining
    }

    /// What the engine said when a fault of ours ended it; none as long as it runs.
    pub fn fault(&self) -> Option<String> {
        let failure = self.model()?.host.failure()?;
        Some(failure.to_string())
    }

    /// Waits until there are no new requests.
    pub async fn draining(&self) {
        self.reached(Phase::Draining).await;
    }

    /// Waits until there are no new connections.
    pub async fn closed(&self) {
        self.reached(Phase::Closed).await;
    }

    async fn reached(&self, phase: Phase) {
        let mut phases = self.0.phase.subscribe();
        // It lives as long as this does.
        let _ = phases.wait_for(|now| *now >= phase).await;
    }

    /// Connections that are open.
    pub fn connections(&self) -> usize {
        let (early, late) = *self.0.connections.borrow();
        early + late
    }

    /// Those of them that the server's end waits for.
    pub fn unanswered(&self) -> usize {
        self.0.connections.borrow().0
    }

    /// Counts a connection for as long as the value lives.
    pub fn connected(&self) -> Connected {
        let late = self.is_draining();
        let connected = Connected {
            app: self.clone(),
            late,
        };
        connected.count(|open| *open += 1);
        connected
    }

    /// Waits until the connections have had their last answers that began before the server began to shut down.
    pub async fn finished(&self) {
        let mut connections = self.0.connections.subscribe();
        let _ = connections.wait_for(|(early, _)| *early == 0).await;
    }

    /// Writes a line to the log.
    pub fn log(&self, line: &str) {
        if let Some(log) = &self.0.options.log {
            log(line);
        }
    }
}

/// An open connection.
pub struct Connected {
    app: App,
    late: bool,
}

impl Connected {
    /// Whether the server was shutting down when it began.
    pub fn late(&self) -> bool {
        self.late
    }

    /// It has its last answer: the server's end no longer waits for it.
    pub fn answered(&mut self) {
        if !std::mem::replace(&mut self.late, true) {
            self.app.0.connections.send_modify(|(early, late)| {
                *early -= 1;
                *late += 1;
            });
        }
    }

    fn count(&self, change: impl FnOnce(&mut usize)) {
        self.app.0.connections.send_modify(|(early, late)| {
            change(if self.late { late } else { early });
        });
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.count(|open| *open -= 1);
    }
}

#[cfg(test)]
mod tests {
    use sparamx_engine::{EngineOptions, HostOptions, KvOptions, KvPrecision};

    use super::*;
    use crate::testing::host;

    #[test]
    fn a_fingerprint_is_that_of_what_gives_the_bits() {
        let of = |precision, max_requests| {
            let kv = KvOptions {
                precision,
                ..KvOptions::default()
            };
            let engine = EngineOptions {
                kv,
                ..EngineOptions::default()
            };
            fingerprint(&host(HostOptions {
                engine,
                max_requests,
                ..HostOptions::default()
            }))
        };
        let plain = of(KvPrecision::Bf16, 1024);
        assert!(plain.starts_with(concat!("sparamx-", env!("CARGO_PKG_VERSION"))));
        assert_eq!(of(KvPrecision::Bf16, 8), plain);
        assert_ne!(of(KvPrecision::Int8, 1024), plain);
    }
}
