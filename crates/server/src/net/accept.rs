//! Taking connections in.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::connection;
use super::listen::Accepting;
use super::refuse;
use super::socket::Socket;
use crate::state::App;

/// How long nothing is taken in after the system refused a connection, for lack of files as a rule.
const PAUSE: Duration = Duration::from_millis(100);
/// Connections beyond the limit that are told so at a time; more are closed without a word.
const TURNED_AWAY: usize = 64;
/// How long each of them is read from: else the system may withdraw the answer.
const LINGER: Duration = Duration::from_secs(1);

/// Takes connections in until the server ends.
pub async fn serve(app: App, router: Router, listener: Accepting, tls: Option<TlsAcceptor>) {
    let most = app.options().limits.connections;
    let turned_away = Arc::new(Semaphore::new(TURNED_AWAY));
    let mut refused = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = app.closed() => return,
        };
        match accepted {
            Ok(socket) if app.connections() < most => {
                refused = false;
                let connected = app.connected();
                let (app, router, tls) = (app.clone(), router.clone(), tls.clone());
                tokio::spawn(connection::run(app, router, socket, tls, connected));
            }
            // It would have to shake hands before it can be told.
            Ok(_) if tls.is_some() => {}
            Ok(socket) => {
                let answer = refuse::answer(&refuse::full(&app.options().limits));
                if let Ok(permit) = Arc::clone(&turned_away).try_acquire_owned() {
                    tokio::spawn(async move {
                        let _permit = permit;
                        turn_away(socket, &answer).await;
                    });
                }
            }
            // It was gone before it was taken.
            Err(error) if of_one_connection(&error) => {}
            Err(error) => {
                if !refused {
                    app.log(&format!("cannot take connections in: {error}"));
                }
                refused = true;
                sleep(PAUSE).await;
            }
        }
    }
}

fn of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}

async fn turn_away(mut socket: Socket, answer: &[u8]) {
    let end = async {
        socket.write_all(answer).await?;
        socket.shutdown().await?;
        let mut rest = [0; 1024];
        while socket.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = timeout(LINGER, end).await;
}
