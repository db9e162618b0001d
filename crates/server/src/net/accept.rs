//! Taking connections in.

use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tower::ServiceExt;

use super::body::Limited;
use crate::state::App;

/// A socket that takes connections.
pub struct Listener(pub std::net::TcpListener);

/// Takes connections in until `stop` says so, and waits for those that are open.
pub async fn serve(app: App, router: Router, listener: Listener, mut stop: watch::Receiver<bool>) {
    let Ok(listener) = TcpListener::from_std(listener.0) else {
        return;
    };
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => continue,
            },
            _ = stop.changed() => return,
        };
        let (app, router) = (app.clone(), router.clone());
        tokio::spawn(async move {
            let _connected = app.connected();
            let limits = app.options().limits.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let request = request
                    .map(|body| Body::new(Limited::new(body, limits.body_bytes, limits.body)));
                router.clone().oneshot(request)
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service);
            // The client's fault, or its wish.
            let _ = connection.await;
        });
    }
}
