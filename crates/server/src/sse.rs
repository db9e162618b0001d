//! Server-sent events: the body of a streamed answer.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::Stream;
use hyper::body::Frame;
use tokio::time::{Instant, Sleep, sleep};

/// Silence after which a comment says that the stream is alive. Proxies close streams that are silent for longer.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const COMMENT: &str = ": keep-alive\n\n";
/// Bytes of events that go out as one piece.
const PIECE_BYTES: usize = 16 << 10;

/// An event: `data` is one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SseEvent {
    /// Its `event` field, if it has one.
    pub event: Option<&'static str>,
    /// Its `data` field.
    pub data: String,
}

impl SseEvent {
    /// An event without a name.
    pub fn data(data: impl Into<String>) -> Self {
        let data = data.into();
        Self { event: None, data }
    }

    /// What OpenAI's streams end with.
    pub fn done() -> Self {
        Self::data("[DONE]")
    }

    fn write(&self, out: &mut String) {
        if let Some(event) = self.event {
            out.push_str("event: ");
            out.push_str(event);
            out.push('\n');
        }
        out.push_str("data: ");
        out.push_str(&self.data);
        out.push_str("\n\n");
    }
}

/// An answer of events as they come, with comments in between when none do. Its end ends the stream.
pub fn sse<S>(events: S) -> Response
where
    S: Stream<Item = SseEvent> + Send + 'static,
{
    sse_with(events, COMMENT)
}

/// The same, with something else in between.
pub fn sse_with<S>(events: S, alive: &'static str) -> Response
where
    S: Stream<Item = SseEvent> + Send + 'static,
{
    let body = SseBody::new(events, KEEP_ALIVE, alive);
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (
            header::HeaderName::from_static("x-accel-buffering"),
            HeaderValue::from_static("no"),
        ),
    ];
    (headers, Body::new(body)).into_response()
}

struct SseBody<S> {
    events: Pin<Box<S>>,
    silence: Duration,
    /// Sent in silence.
    alive: &'static str,
    last: Instant,
    /// Rings at `last + silence` or before: it is set anew only when it rings.
    timer: Pin<Box<Sleep>>,
    ended: bool,
}

impl<S: Stream<Item = SseEvent>> SseBody<S> {
    fn new(events: S, silence: Duration, alive: &'static str) -> Self {
        Self {
            events: Box::pin(events),
            silence,
            alive,
            last: Instant::now(),
            timer: Box::pin(sleep(silence)),
            ended: false,
        }
    }

    /// All events that are there, up to about [`PIECE_BYTES`].
    fn gather(&mut self, cx: &mut Context<'_>) -> String {
        let mut piece = String::new();
        while piece.len() < PIECE_BYTES && !self.ended {
            match self.events.as_mut().poll_next(cx) {
                Poll::Ready(Some(event)) => event.write(&mut piece),
                Poll::Ready(None) => self.ended = true,
                Poll::Pending => break,
            }
        }
        piece
    }

    fn poll_comment(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let silent = now >= self.last + self.silence;
            if silent {
                self.last = now;
            }
            self.timer.as_mut().reset(self.last + self.silence);
            if silent {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }
}

impl<S: Stream<Item = SseEvent>> hyper::body::Body for SseBody<S> {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let piece = this.gather(cx);
        if !piece.is_empty() {
            this.last = Instant::now();
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from(piece)))));
        }
        if this.ended {
            return Poll::Ready(None);
        }
        this.poll_comment(cx)
            .map(|()| Some(Ok(Frame::data(Bytes::from_static(this.alive.as_bytes())))))
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::io::{Read, Write};

    use axum::Router;
    use axum::routing::get;
    use futures_util::stream::{self, StreamExt};
    use http_body_util::BodyExt;

    use super::*;
    use crate::options::ServerOptions;
    use crate::testing::paths;

    fn run<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        runtime.unwrap().block_on(future)
    }

    #[test]
    fn events_that_are_there_go_out_together() {
        let events = [
            SseEvent::data("{}"),
            SseEvent {
                event: Some("named"),
                data: "1".to_owned(),
            },
            SseEvent::done(),
        ];
        run(async {
            let mut body = SseBody::new(stream::iter(events), KEEP_ALIVE, COMMENT);
            let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(
                piece,
                "data: {}\n\nevent: named\ndata: 1\n\ndata: [DONE]\n\n"
            );
            assert!(body.frame().await.is_none());
        });
    }

    #[test]
    fn silence_is_filled_with_comments_and_ends_with_an_event() {
        run(async {
            let period = Duration::from_millis(20);
            let late = stream::once(sleep(period * 5)).map(|()| SseEvent::data("late"));
            let begin = Instant::now();
            let mut body = SseBody::new(late.chain(stream::once(pending())), period, COMMENT);
            let mut comments = 0;
            loop {
                let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
                if piece != COMMENT {
                    assert_eq!(piece, "data: late\n\n");
                    break;
                }
                comments += 1;
                assert!(begin.elapsed() >= period * comments);
            }
            assert!(comments >= 1);
            // The event began a new silence.
            assert_eq!(
                body.frame().await.unwrap().unwrap().into_data().unwrap(),
                COMMENT
            );
        });
    }

    #[test]
    fn a_socket_gets_comments_in_silence() {
        let quiet = || async { sse(stream::pending::<SseEvent>()) };
        let server = paths(ServerOptions::default(), |_| {
            Router::new().route("/quiet", get(quiet))
        });
        let mut socket = server.connect();
        socket
            .write_all(b"GET /quiet HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        let begin = Instant::now();
        let (mut read, mut byte) = (Vec::new(), [0]);
        while !read.ends_with(COMMENT.as_bytes()) {
            assert_ne!(
                socket.read(&mut byte).unwrap(),
                0,
                "the server hangs up: {}",
                String::from_utf8_lossy(&read)
            );
            read.push(byte[0]);
        }
        assert!(begin.elapsed() >= KEEP_ALIVE);
        let text = String::from_utf8(read).unwrap();
        assert!(text.contains("text/event-stream"), "{text}");
        assert!(text.contains("x-accel-buffering: no"), "{text}");
    }

    #[test]
    fn a_piece_has_a_size_of_its_own() {
        run(async {
            let many = stream::iter(vec![SseEvent::data("x".repeat(1000)); 100]);
            let mut body = SseBody::new(many, KEEP_ALIVE, COMMENT);
            let (mut pieces, mut bytes) = (0, 0);
            while let Some(frame) = body.frame().await {
                let piece = frame.unwrap().into_data().unwrap();
                assert!(piece.len() < PIECE_BYTES + 2000);
                (pieces, bytes) = (pieces + 1, bytes + piece.len());
            }
            assert_eq!((pieces > 1, bytes), (true, 100 * 1008));
        });
    }
}
