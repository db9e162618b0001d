//! The body of a request, which keeps to its limits as it comes.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

/// A body that breaks a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BodyFault {
    /// It is larger.
    TooLarge {
        /// Bytes that a body may have.
        limit: usize,
    },
    /// Nothing more of it comes.
    Stalled {
        /// How long that was waited for.
        time: Duration,
    },
}

impl BodyFault {
    /// The fault among the causes of an error.
    pub fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(fault) = error.downcast_ref::<Self>() {
                return Some(fault.clone());
            }
            cause = error.source();
        }
        None
    }
}

impl fmt::Display for BodyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { limit } => write!(f, "a body of more than {limit} bytes"),
            Self::Stalled { time } => write!(f, "no byte of the body for {time:?}"),
        }
    }
}

impl Error for BodyFault {}

/// A body with limits.
pub struct Limited {
    inner: Incoming,
    limit: usize,
    left: usize,
    time: Duration,
    alarm: Pin<Box<Sleep>>,
}

impl Limited {
    /// Of `limit` bytes at most, none of which lets itself be waited for longer than `time`.
    pub fn new(inner: Incoming, limit: usize, time: Duration) -> Self {
        Self {
            inner,
            limit,
            left: limit,
            time,
            alarm: Box::pin(sleep(time)),
        }
    }
}

impl Body for Limited {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) else {
            ready!(this.alarm.as_mut().poll(cx));
            let time = this.time;
            return Poll::Ready(Some(Err(BodyFault::Stalled { time }.into())));
        };
        this.alarm.as_mut().reset(Instant::now() + this.time);
        let Some(frame) = frame.transpose()? else {
            return Poll::Ready(None);
        };
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        match this.left.checked_sub(bytes) {
            Some(left) => {
                this.left = left;
                Poll::Ready(Some(Ok(frame)))
            }
            None => {
                let limit = this.limit;
                Poll::Ready(Some(Err(BodyFault::TooLarge { limit }.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
