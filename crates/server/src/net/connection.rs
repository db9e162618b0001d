//! One connection, from its first byte to its last.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use hyper::Request;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{interval, timeout};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use super::body::Limited;
use super::refuse;
use super::socket::Socket;
use super::stage::{Answering, Stage};
use super::watched::Watched;
use crate::options::Limits;
use crate::state::{App, Connected};

/// How often it is looked whether the client of a running request is still there, where nothing is read from it.
const LOOK: Duration = Duration::from_secs(1);
/// How long a connection is read from after its last answer. To close it with bytes unread would make the system withdraw the
/// answer.
const LINGER: Duration = Duration::from_secs(2);
/// hyper takes no smaller buffer.
const LEAST_BUFFER: usize = 8192;

/// Runs a connection. Once the server shuts down, it ends after the request it is at.
pub async fn run(
    app: App,
    router: Router,
    socket: Socket,
    tls: Option<TlsAcceptor>,
    connected: Connected,
) {
    let talk = Talk {
        limits: app.options().limits.clone(),
        stage: Stage::new(),
        connected,
        socket: socket.clone(),
        app,
        router,
    };
    let Some(acceptor) = tls else {
        return talk.over(socket).await;
    };
    // What is no handshake has no right to an answer.
    if let Ok(Ok(stream)) = timeout(talk.limits.head, acceptor.accept(socket)).await {
        talk.over(stream).await;
    }
}

struct Talk {
    app: App,
    router: Router,
    socket: Socket,
    stage: Stage,
    limits: Limits,
    connected: Connected,
}

impl Talk {
    async fn over<S: AsyncRead + AsyncWrite + Unpin>(mut self, stream: S) {
        let late = self.connected.late();
        let (stage, limits) = (&self.stage, &self.limits);
        let service = service_fn(|request| {
            Box::pin(answer(
                self.router.clone(),
                request,
                stage.request(),
                limits,
            ))
        });
        let io = TokioIo::new(Watched::new(stream, stage.clone(), limits.clone()));
        let mut connection = http1::Builder::new()
            // `Watched` has the clock.
            .header_read_timeout(None)
            .max_headers(limits.fields)
            .max_header_size(limits.head_bytes)
            .max_buf_size(limits.head_bytes.max(LEAST_BUFFER))
            // What is written in one piece can be told apart.
            .writev(false)
            .keep_alive(!late)
            .serve_connection(io, service);
        let mut look = interval(LOOK);
        let mut last = late;
        let mut looked = false;
        let result = loop {
            tokio::select! {
                // A request that is there is read before the connection ends for lack of one.
                biased;
                result = poll_fn(|cx| connection.poll_without_shutdown(cx)) => break result,
                () = self.app.draining(), if !last => {
                    if !looked && !stage.answers() && self.socket.has_bytes() {
                        looked = true;
                        self.socket.readable().await;
                        continue;
                    }
                    if stage.unused() {
                        return;
                    }
                    last = true;
                    Pin::new(&mut connection).graceful_shutdown();
                }
                _ = look.tick() => if stage.answers() && self.socket.gone() {
                    return;
                },
            }
        };
        self.connected.answered();
        let refusal = stage.refusal();
        if result.is_err() && refusal.is_none() {
            return;
        }
        let stream = connection.into_parts().io.into_inner().into_inner();
        // The other side has its answer, or does not want it.
        let _ = timeout(LINGER, close(stream, refusal, limits)).await;
    }
}

/// Ends a connection, after the answer to what is no request if that is why it ends.
async fn close<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    refusal: Option<StatusCode>,
    limits: &Limits,
) -> io::Result<()> {
    if let Some(status) = refusal {
        let error = refuse::head(status, limits);
        stream.write_all(&refuse::answer(&error)).await?;
    }
    stream.shutdown().await?;
    let mut rest = [0; 4096];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

async fn answer(
    router: Router,
    request: Request<Incoming>,
    answering: Answering,
    limits: &Limits,
) -> Result<Response<Answered>, Infallible> {
    let request = request.map(|body| Body::new(Limited::new(body, limits.body_bytes, limits.body)));
    let response = router.oneshot(request).await?;
    Ok(response.map(|inner| Answered {
        inner,
        _answering: answering,
    }))
}

/// The body of an answer; the request ends with it.
struct Answered {
    inner: Body,
    _answering: Answering,
}

impl hyper::body::Body for Answered {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
