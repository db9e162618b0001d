//! What every route sees: the options, the model once it is there, and how far the server is.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use sparamx_engine::{Grammar, GrammarCompiler, GrammarSpec, Host, SamplingParams};

use crate::error::ApiError;
use crate::options::ServerOptions;

/// The state that all routes share. A clone is the same.
#[derive(Clone)]
pub struct App(Arc<Shared>);

struct Shared {
    options: ServerOptions,
    served: OnceLock<Served>,
    phase: AtomicU8,
    connections: AtomicUsize,
}

/// How far a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// The model is on its way.
    Loading,
    /// Requests are answered.
    Ready,
    /// Those that run are answered, new ones are not.
    Draining,
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
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
    /// What answers say of the server: with another one the same request may give another text.
    pub fingerprint: String,
    /// Makes grammars for its tokens; none if its tokenizer does not allow that.
    grammars: Option<GrammarCompiler>,
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
        Self {
            fingerprint: fingerprint(&host),
            grammars: GrammarCompiler::new(&host.loaded().tokenizer).ok(),
            host,
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
        let work = tokio::task::spawn_blocking(move || compiler.compile(&spec));
        let grammar = work.await.map_err(|_| ApiError::fault())??;
        Ok(grammar)
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

/// The version, the weights and the level of the processor: the same ones give the same bits.
fn fingerprint(host: &Host) -> String {
    let loaded = host.loaded();
    let isa = loaded.runtime.cpu().isa();
    format!(
        "sparamx-{}-{isa}-{:x}",
        env!("CARGO_PKG_VERSION"),
        loaded.model.weight_bytes()
    )
}

/// Seconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| time.as_secs())
}

impl App {
    /// A server that is loading.
    pub fn new(options: ServerOptions) -> Self {
        Self(Arc::new(Shared {
            options,
            served: OnceLock::new(),
            phase: AtomicU8::new(Phase::Loading as u8),
            connections: AtomicUsize::new(0),
        }))
    }

    /// What the server was told.
    pub fn options(&self) -> &ServerOptions {
        &self.0.options
    }

    /// How far the server is.
    pub fn phase(&self) -> Phase {
        match self.0.phase.load(Ordering::Acquire) {
            0 => Phase::Loading,
            1 => Phase::Ready,
            _ => Phase::Draining,
        }
    }

    /// The model, for requests that need it.
    ///
    /// # Errors
    /// 503 while the model is loaded, and once the server shuts down.
    pub fn served(&self) -> Result<&Served, ApiError> {
        match (self.phase(), self.model()) {
            (Phase::Draining, _) => Err(ApiError::unavailable("the server is shutting down")),
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
            let (loading, ready) = (Phase::Loading as u8, Phase::Ready as u8);
            let phase = &self.0.phase;
            // It may be on its way out already.
            let _ = phase.compare_exchange(loading, ready, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// No new requests from now on.
    pub fn drain(&self) {
        self.0.phase.store(Phase::Draining as u8, Ordering::Release);
    }

    /// Connections that are open.
    pub fn connections(&self) -> usize {
        self.0.connections.load(Ordering::Relaxed)
    }

    /// Counts a connection for as long as the value lives.
    pub fn connected(&self) -> Connected {
        self.0.connections.fetch_add(1, Ordering::Relaxed);
        Connected(self.clone())
    }

    /// Writes a line to the log.
    pub fn log(&self, line: &str) {
        if let Some(log) = &self.0.options.log {
            log(line);
        }
    }
}

/// An open connection.
pub struct Connected(App);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
