//! A server from its start to its end.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};

use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::app;
use crate::net::{self, Listener};
use crate::options::{Listen, ServerOptions};
use crate::state::{App, Served};

/// Threads for the network; the engine has its own.
const THREADS: usize = 2;

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
            Self::Threads(error) => write!(f, "cannot start the server's threads: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

/// A running server. Dropping it ends it at once.
pub struct Server {
    app: App,
    address: Option<SocketAddr>,
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
    runtime: Runtime,
}

impl Server {
    /// Takes the address and answers from now on, with 503 until there is a model.
    ///
    /// # Errors
    /// The address cannot be had; the system gives no threads.
    pub fn start(options: ServerOptions) -> Result<Self, StartError> {
        let listen = options.listen.clone();
        let refused = |error| StartError::Address {
            listen: listen.clone(),
            error,
        };
        let Listen::Tcp { host, port } = &listen else {
            return Err(refused(io::ErrorKind::Unsupported.into()));
        };
        let listener = TcpListener::bind((host.as_str(), *port)).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let address = listener.local_addr().ok();
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("sparamx-server")
            .enable_all()
            .build()
            .map_err(StartError::Threads)?;
        let app = App::new(options);
        let (stop, stopped) = watch::channel(false);
        let router = app::router(&app);
        let accepting = runtime.spawn(net::serve(app.clone(), router, Listener(listener), stopped));
        Ok(Self {
            app,
            address,
            stop,
            accepting,
            runtime,
        })
    }

    /// The address it listens at; none for one in the file system.
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

    /// Takes no new requests. Those that run go on.
    pub fn shutdown(&self) {
        self.app.drain();
        let _ = self.stop.send(true);
    }

    /// Waits for its end.
    pub fn wait(self) {
        let _ = self.runtime.block_on(self.accepting);
        self.runtime.shutdown_background();
    }
}
