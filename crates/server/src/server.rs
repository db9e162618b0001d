//! A server from its start to its end.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::app;
use crate::net::{self, Listener};
use crate::options::{Listen, ServerOptions};
use crate::state::{App, Served};

/// Threads for the network; the engine has its own.
const THREADS: usize = 2;
/// For tasks to end by themselves once there are no connections.
const REST: Duration = Duration::from_millis(100);

/// Why a server does not start.
#[derive(Debug)]
pub enum StartError {
    /// Its address cannot be had.
    Address {
        /// The address.
        listen: Listen,
        /// What the system says.
        error: io::Error,
    },
    /// Others than this machine would reach it without a key.
    Open(Listen),
    /// The certificate or its key cannot be used.
    Certificate(String),
    /// The system gives no threads.
    Threads(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { listen, error } => write!(
                f,
                "cannot listen at {listen}: {error}; another --port may be free"
            ),
            Self::Open(listen) => write!(
                f,
                "others than this machine reach {listen}: give them a key by --api-key or --api-key-file, or let everybody in \
                 by --no-auth"
            ),
            Self::Certificate(error) => write!(f, "TLS: {error}"),
            Self::Threads(error) => write!(f, "cannot start the server's threads: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

/// A running server. Dropping it ends it at once.
pub struct Server {
    app: App,
    address: Option<SocketAddr>,
    end: JoinHandle<usize>,
    runtime: Runtime,
}

impl Server {
    /// Takes the address and answers from now on, with 503 until there is a model.
    ///
    /// # Errors
    /// The address cannot be had, or is open to others without a key; the certificate cannot be used; the system gives no
    /// threads.
    pub fn start(options: ServerOptions) -> Result<Self, StartError> {
        Self::with_paths(options, app::router)
    }

    /// The same with other paths.
    pub(crate) fn with_paths(
        options: ServerOptions,
        paths: impl FnOnce(&App) -> Router,
    ) -> Result<Self, StartError> {
        let listen = options.listen.clone();
        let tls = options.tls.as_ref().map(net::acceptor).transpose();
        let tls = tls.map_err(StartError::Certificate)?;
        let listener = Listener::bind(&listen).map_err(|error| StartError::Address {
            listen: listen.clone(),
            error,
        })?;
        if !listener.is_local() && options.keys.is_empty() && !options.no_auth {
            return Err(StartError::Open(listen));
        }
        let address = listener.address();
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("sparamx-server")
            .enable_all()
            .build()
            .map_err(StartError::Threads)?;
        let app = App::new(options, address);
        let router = paths(&app);
        let listener = {
            let _runtime = runtime.enter();
            listener.start().map_err(StartError::Threads)?
        };
        runtime.spawn(net::serve(app.clone(), router, listener, tls));
        let end = runtime.spawn(end(app.clone()));
        Ok(Self {
            app,
            address,
            end,
            runtime,
        })
    }

    /// The address it listens at; none for a place in the file system.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// What the routes see.
    pub fn app(&self) -> &App {
        &self.app
    }

    /// Gives it the model: requests are answered from now on.
    pub fn ready(&self, served: Served) {
        self.app.ready(served);
    }

    /// Takes no new requests. Those that run go on, for [`Limits::shutdown`](crate::Limits) at most; then the server ends.
    pub fn shutdown(&self) {
        self.app.drain();
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.end.is_finished()
    }

    /// Waits for its end, which [`Server::shutdown`] brings about. Gives the connections whose requests were cut off.
    pub fn wait(self) -> usize {
        let Self { end, runtime, .. } = self;
        let cut = runtime.block_on(end).unwrap_or_default();
        runtime.shutdown_timeout(REST);
        cut
    }
}

/// Waits until the server is to shut down and its requests have ended, or their time is over.
async fn end(app: App) -> usize {
    app.draining().await;
    let limit = app.options().limits.shutdown;
    let in_time = timeout(limit, app.finished()).await.is_ok();
    let cut = if in_time { 0 } else { app.unanswered() };
    app.close();
    cut
}
