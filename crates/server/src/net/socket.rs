//! The sockets there are, as one type. A clone is the same socket: the watcher of a connection looks at it while others read and
//! write.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::FutureExt;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;

/// A connected socket.
#[derive(Clone)]
pub struct Socket(Arc<Inner>);

enum Inner {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

/// Calls the same method of whichever socket it is.
macro_rules! inner {
    ($socket:expr, $stream:ident => $call:expr) => {
        match &*$socket.0 {
            Inner::Tcp($stream) => $call,
            #[cfg(unix)]
            Inner::Unix($stream) => $call,
        }
    };
}

impl Socket {
    /// A connection over TCP. Small writes go out at once.
    pub fn tcp(stream: TcpStream) -> Self {
        // Without it answers are only later.
        let _ = stream.set_nodelay(true);
        Self(Arc::new(Inner::Tcp(stream)))
    }

    /// A connection on this machine.
    #[cfg(unix)]
    pub fn unix(stream: UnixStream) -> Self {
        Self(Arc::new(Inner::Unix(stream)))
    }

    /// Whether the other side has closed it, or its half, even if bytes it sent before wait to be read.
    pub fn gone(&self) -> bool {
        let ready = inner!(self, stream => stream.ready(Interest::READABLE).now_or_never());
        matches!(ready, Some(Ok(ready)) if ready.is_read_closed())
    }

    /// Waits until there are bytes to read, or the other side has closed it.
    pub async fn readable(&self) {
        // An error is one for whoever reads.
        let _ = inner!(self, stream => stream.readable().await);
    }

    /// Whether bytes wait to be read, also if nobody has been told yet.
    pub fn has_bytes(&self) -> bool {
        let mut byte = [std::mem::MaybeUninit::uninit()];
        let peeked = inner!(self, stream => SockRef::from(stream).peek(&mut byte));
        matches!(peeked, Ok(1..))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(inner!(self, stream => stream.poll_read_ready(cx)))?;
            match inner!(self, stream => stream.try_read(buf.initialize_unfilled())) {
                Ok(bytes) => {
                    buf.advance(bytes);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(inner!(self, stream => stream.poll_write_ready(cx)))?;
            match inner!(self, stream => stream.try_write(bytes)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(
            inner!(self, stream => SockRef::from(stream).shutdown(std::net::Shutdown::Write)),
        )
    }
}
