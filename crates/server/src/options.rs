//! What a server can be told.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::tools::ToolFormat;

/// Takes a line for the log.
pub type Log = Arc<dyn Fn(&str) + Send + Sync>;

/// How a server listens, whom it answers, and what it keeps to.
#[derive(Clone)]
pub struct ServerOptions {
    /// Where it listens.
    pub listen: Listen,
    /// The certificate; none: plain HTTP.
    pub tls: Option<Tls>,
    /// Keys, any of which opens all paths; none: no key is needed. Each is a tenant of its own.
    pub keys: Vec<String>,
    /// Lets everybody in without a key, also from other machines.
    pub no_auth: bool,
    /// Serves the page at `/` without a key.
    pub public_page: bool,
    /// Names, beside those of the loopback, that a request may give as `Host`. They are looked at on the loopback, and on other
    /// addresses if there are any.
    pub allowed_hosts: Vec<String>,
    /// Origins of pages that may read answers; `*` for all.
    pub allowed_origins: Vec<String>,
    /// Sizes and times.
    pub limits: Limits,
    /// How the model is offered.
    pub model: ModelOptions,
    /// Where lines of the access log, and faults, go; none: nowhere.
    pub log: Option<Log>,
    /// Paths that are left out of the access log.
    pub unlogged: Vec<String>,
    /// Puts the body of each request into the log.
    pub log_requests: bool,
}

impl Default for ServerOptions {
    /// On 127.0.0.1 and port 8000, without a key and without a log.
    fn default() -> Self {
        Self {
            listen: Listen::default(),
            tls: None,
            keys: Vec::new(),
            no_auth: false,
            public_page: false,
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            limits: Limits::default(),
            model: ModelOptions::default(),
            log: None,
            unlogged: Vec::new(),
            log_requests: false,
        }
    }
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// At an address.
    Tcp {
        /// The name or address of this machine.
        host: String,
        /// The port; 0: any that is free.
        port: u16,
    },
    /// At a socket in the file system.
    Unix(PathBuf),
}

impl Default for Listen {
    fn default() -> Self {
        Self::Tcp {
            host: "127.0.0.1".to_owned(),
            port: 8000,
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Files of a certificate, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The certificate, and those that lead to it.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Sizes and times that a request and its connection keep to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time.
    pub connections: usize,
    /// Bytes of a body.
    pub body_bytes: usize,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Header fields of a request.
    pub fields: usize,
    /// From a request's first byte to the end of its head.
    pub head: Duration,
    /// Without a byte of a body that is to come.
    pub body: Duration,
    /// Without a byte that the client takes.
    pub write: Duration,
    /// Without a request on an open connection.
    pub idle: Duration,
    /// Without a step of the engine that has work, before the server says that it is unwell.
    pub stalled: Duration,
    /// For running requests, once the server shuts down.
    pub shutdown: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            body_bytes: 32 << 20,
            head_bytes: 32 << 10,
            fields: 100,
            head: Duration::from_secs(10),
            body: Duration::from_secs(30),
            write: Duration::from_secs(60),
            idle: Duration::from_secs(60),
            stalled: Duration::from_secs(60),
            shutdown: Duration::from_secs(30),
        }
    }
}

/// How the model is offered.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ModelOptions {
    /// Ignores the sampling that the model's `generation_config.json` wants, as vLLM's `--generation-config vllm`.
    pub neutral_sampling: bool,
    /// Variables for the chat template where a request does not set them.
    pub template_variables: Map<String, Value>,
    /// How the model writes calls of tools; none: as its template says.
    pub tool_parser: Option<ToolFormat>,
    /// How the model marks its reasoning, by vLLM's name of the parser: any means by tags, `none` that it does not. None: as its
    /// template says.
    pub reasoning_parser: Option<String>,
}

impl ModelOptions {
    /// Whether the model thinks between tags; none: as its template says.
    pub(crate) fn reasons(&self) -> Option<bool> {
        let name = self.reasoning_parser.as_deref();
        name.map(|name| name != "none")
    }
}
