//! Bytes of a connection, with an eye on the clock.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::stage::Stage;
use crate::options::Limits;

/// A stream that fails when the other side lets itself be waited for too long.
pub struct Watched<S> {
    inner: S,
    stage: Stage,
    limits: Limits,
    reading: Alarm,
    writing: Alarm,
    /// Until when something of what is written must be taken.
    taken: Option<Instant>,
}

impl<S> Watched<S> {
    /// A stream that keeps to the limits of the stage it is in.
    pub fn new(inner: S, stage: Stage, limits: Limits) -> Self {
        Self {
            inner,
            stage,
            limits,
            reading: Alarm(None),
            writing: Alarm(None),
            taken: None,
        }
    }

    /// The stream itself.
    pub fn into_inner(self) -> S {
        self.inner
    }

    /// Fails if nothing that was written is taken for too long.
    fn taken<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            if self.taken.take().is_some() {
                self.stage.taken();
                // Reads have a deadline again, which one that is pending does not know of.
                cx.waker().wake_by_ref();
            }
            return result;
        }
        let limit = self.limits.write;
        let deadline = *self.taken.get_or_insert_with(|| Instant::now() + limit);
        if self.writing.rings(cx, deadline) {
            return Poll::Ready(Err(late(limit)));
        }
        result
    }
}

/// The clock of one direction, made when it is first needed.
struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Whether the time has come; wakes the task when it does.
    fn rings(&mut self, cx: &mut Context<'_>, deadline: Instant) -> bool {
        let alarm = self
            .0
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if alarm.deadline() != deadline {
            alarm.as_mut().reset(deadline);
        }
        alarm.as_mut().poll(cx).is_ready()
    }
}

fn late(limit: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("nothing for {limit:?}"))
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let result = Pin::new(&mut this.inner).poll_read(cx, buf);
        if buf.filled().len() > before {
            this.stage.received();
        }
        // A client that still takes an answer has nothing to send.
        if result.is_pending()
            && this.taken.is_none()
            && let Some(deadline) = this.stage.deadline(&this.limits)
            && this.reading.rings(cx, deadline)
        {
            this.stage.late();
            return Poll::Ready(Err(late(this.limits.head)));
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(status) = automatic(bytes) {
            self.stage.refuse(status);
            return Poll::Ready(Ok(bytes.len()));
        }
        let result = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.taken(cx, result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_flush(cx);
        self.taken(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.taken(cx, result)
    }
}

/// The status of an answer that hyper makes by itself to what is no request. It has no body, which none of ours with such a
/// status is without; the connection gets one with a body in its place.
fn automatic(bytes: &[u8]) -> Option<StatusCode> {
    let rest = bytes.strip_prefix(b"HTTP/1.")?.get(1..)?;
    let status = rest.strip_prefix(b" ")?.get(..3)?;
    let status = StatusCode::from_bytes(status).ok()?;
    let empty = bytes
        .windows(19)
        .any(|part| part.eq_ignore_ascii_case(b"content-length: 0\r\n"));
    (status.is_client_error() && empty && bytes.ends_with(b"\r\n\r\n")).then_some(status)
}
