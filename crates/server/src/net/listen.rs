//! Sockets that connections come in at.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use socket2::SockRef;
use tokio::net::TcpListener;
#[cfg(unix)]
use tokio::net::UnixListener;

use super::socket::Socket;
use crate::options::Listen;

/// Connections that may wait to be taken.
const BACKLOG: i32 = 4096;

/// A socket that takes connections.
pub enum Listener {
    /// At an address.
    Tcp(std::net::TcpListener),
    /// In the file system, which it leaves when it is dropped.
    #[cfg(unix)]
    Unix(std::os::unix::net::UnixListener, Place),
}

/// A socket's name in the file system.
#[derive(Debug)]
pub struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Takes an address, or a place in the file system.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn bind(listen: &Listen) -> io::Result<Self> {
        match listen {
            Listen::Tcp { host, port } => {
                let listener = std::net::TcpListener::bind((host.as_str(), *port))?;
                // The standard library lets 128 wait: clients that come together beyond that would lose a second.
                SockRef::from(&listener).listen(BACKLOG)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Tcp(listener))
            }
            Listen::Unix(path) => Self::at(path),
        }
    }

    #[cfg(unix)]
    fn at(path: &Path) -> io::Result<Self> {
        use std::os::unix::net::{UnixListener, UnixStream};
        let listener = match UnixListener::bind(path) {
            // A server that was killed leaves its socket behind, which nobody answers at.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let dead = UnixStream::connect(path)
                    .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
                if !dead {
                    return Err(error);
                }
                std::fs::remove_file(path)?;
                UnixListener::bind(path)?
            }
            result => result?,
        };
        listener.set_nonblocking(true)?;
        Ok(Self::Unix(listener, Place(path.to_owned())))
    }

    #[cfg(not(unix))]
    fn at(_: &Path) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The address; none for a place in the file system.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            #[cfg(unix)]
            Self::Unix(..) => None,
        }
    }

    /// Only programs of this machine reach it.
    pub fn is_local(&self) -> bool {
        self.address().is_none_or(|address| {
            // ::ffff:127.0.0.1 is one too.
            address.ip().to_canonical().is_loopback()
        })
    }

    /// The same within a runtime.
    ///
    /// # Errors
    /// The system refuses.
    pub fn start(self) -> io::Result<Accepting> {
        Ok(match self {
            Self::Tcp(listener) => Accepting::Tcp(TcpListener::from_std(listener)?),
            #[cfg(unix)]
            Self::Unix(listener, place) => {
                Accepting::Unix(UnixListener::from_std(listener)?, place)
            }
        })
    }
}

/// A socket that connections are taken from.
pub enum Accepting {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(
        UnixListener,
        #[expect(dead_code, reason = "its drop removes the file")] Place,
    ),
}

impl Accepting {
    /// The next connection.
    ///
    /// # Errors
    /// There are too many files open, or it is gone already.
    pub async fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(listener) => Ok(Socket::tcp(listener.accept().await?.0)),
            #[cfg(unix)]
            Self::Unix(listener, _) => Ok(Socket::unix(listener.accept().await?.0)),
        }
    }
}
