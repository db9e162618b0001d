//! What is done for every request whatever becomes of it: its id, its line in the log, and an answer even if its handler panics.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::FutureExt;
use hyper::body::{Body as _, Frame, SizeHint};
use sparamx_engine::panic_message;

use crate::error::{ApiError, ECHO, cut};
use crate::extract::{Caller, Tally};
use crate::ids;
use crate::security;
use crate::state::App;

const ID: &str = "x-request-id";

/// Goes around everything else.
pub async fn observe(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let start = Instant::now();
    let caller = Caller {
        request_id: request_id(request.headers()),
        ..Caller::default()
    };
    let path = request.uri().path();
    let mut entry = Entry {
        logged: !app.options().unlogged.iter().any(|other| other == path),
        method: request.method().clone(),
        path: cut(path, ECHO),
        status: 0,
        start,
        answered: start,
        id: caller.request_id.clone(),
        tally: Arc::clone(&caller.tally),
        ended: false,
        app: app.clone(),
    };
    let held = caller.held.clone();
    request.extensions_mut().insert(caller);
    let handled = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    drop(held);
    let mut response = handled.unwrap_or_else(|panic| {
        // Nobody within has seen this answer.
        if let Some(served) = app.model() {
            served.metrics.answered(500);
        }
        ApiError::fault_of(panic_message(&*panic)).into_response()
    });
    let error = response.extensions().get::<ApiError>();
    if let Some(cause) = error.and_then(|error| error.cause.as_deref()) {
        app.log(&format!(
            "a fault in {} {}: {cause}",
            entry.method, entry.path
        ));
    }
    entry.status = response.status().as_u16();
    entry.ended = response.body().is_end_stream();
    entry.answered = Instant::now();
    security::protect(response.headers_mut());
    if let Ok(id) = HeaderValue::from_str(&entry.id) {
        response.headers_mut().insert(ID, id);
    }
    response.map(|inner| Body::new(Observed { inner, entry }))
}

/// The client's name for the request if it has one, or a new one.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(ID).and_then(|id| id.to_str().ok());
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    match given {
        Some(id) if (1..=128).contains(&id.len()) && id.chars().all(plain) => id.to_owned(),
        _ => ids::unique(""),
    }
}

/// A request for the log. It is written when the answer ends, or when nobody is there to take it.
struct Entry {
    logged: bool,
    method: Method,
    path: String,
    status: u16,
    start: Instant,
    answered: Instant,
    id: String,
    tally: Arc<Tally>,
    ended: bool,
    app: App,
}

impl Drop for Entry {
    fn drop(&mut self) {
        if !self.logged {
            return;
        }
        let (prompt, generated) = self.tally.tokens();
        let tokens = if (prompt, generated) == (0, 0) {
            String::new()
        } else {
            format!(" {prompt}+{generated} tokens")
        };
        let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
        let status = match self.status {
            // Its handler was dropped.
            0 => "gone".to_owned(),
            status => status.to_string(),
        };
        let cut = if self.status != 0 && !self.ended {
            " cut"
        } else {
            ""
        };
        self.app.log(&format!(
            "{} {} {status}{cut}{tokens} {:.1} ms, first byte {:.1} ms, {}",
            self.method,
            self.path,
            ms(self.start.elapsed()),
            ms(self.answered - self.start),
            self.id
        ));
    }
}

/// The body of an answer, with the line that is logged at its end.
struct Observed {
    inner: Body,
    entry: Entry,
}

impl hyper::body::Body for Observed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(None) = frame {
            self.entry.ended = true;
        }
        if let Poll::Ready(Some(Ok(_))) = frame
            && self.inner.is_end_stream()
        {
            self.entry.ended = true;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
