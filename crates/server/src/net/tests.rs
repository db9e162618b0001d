//! Every limit, over a socket.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::stream;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::app::guarded;
use crate::extract::Json;
use crate::options::{Limits, Listen, ServerOptions, Tls};
use crate::server::{Server, StartError};
use crate::state::App;
use crate::testing::{TestServer, damage, numbers, paths, read_answer, try_answer};

const SHORT: Duration = Duration::from_millis(300);
/// Longer than anything takes that does not hang.
const LONG: Duration = Duration::from_secs(60);

/// Bytes of a large answer: more than the buffers of the system hold.
const WHOLE: usize = 32 << 20;

/// Requests that are being answered, by the paths below.
#[derive(Clone, Default)]
struct Running(Arc<AtomicUsize>);

struct One(Running);

impl Running {
    fn one(&self) -> One {
        self.0.fetch_add(1, Ordering::SeqCst);
        One(self.clone())
    }

    /// Waits until there are so many.
    fn wait_for(&self, count: usize) {
        let start = Instant::now();
        while self.0.load(Ordering::SeqCst) != count {
            assert!(start.elapsed() < LONG, "not {count} after {LONG:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn panics() -> &'static str {
    panic!("on purpose")
}

/// Paths that show what becomes of a request.
fn odd_paths(app: &App, running: &Running) -> Router {
    let (never, slow, endless) = (running.clone(), running.clone(), running.clone());
    let paths = Router::new()
        .route("/quick", get(|| async { "quick" }))
        .route(
            "/echo",
            post(|Json(body): Json<serde_json::Value>| async move { Json(body) }),
        )
        .route("/panic", get(panics))
        .route(
            "/never",
            post(move || async move {
                let _one = never.one();
                std::future::pending::<()>().await;
            }),
        )
        .route("/whole", get(|| async { Bytes::from(vec![b'x'; WHOLE]) }))
        .route(
            "/slow",
            get(move || async move {
                let _one = slow.one();
                tokio::time::sleep(2 * SHORT).await;
                "slow"
            }),
        )
        .route(
            "/endless",
            get(move || async move {
                let one = endless.one();
                Body::from_stream(stream::repeat_with(move || {
                    let _still = &one;
                    Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 65536]))
                }))
            }),
        );
    guarded(paths, app).with_state(app.clone())
}

fn start(limits: Limits) -> (TestServer, Running) {
    let running = Running::default();
    let options = ServerOptions {
        limits,
        ..ServerOptions::default()
    };
    let server = paths(options, |app| odd_paths(app, &running));
    (server, running)
}

/// Sends bytes and leaves the connection open.
fn send(server: &TestServer, bytes: &str) -> TcpStream {
    let mut stream = server.connect();
    stream.write_all(bytes.as_bytes()).unwrap();
    stream
}

/// Asserts that nothing more comes and the connection is closed.
fn assert_closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    // A reset closes it too.
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
}

const GET: &str = "GET /quick HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[test]
fn what_is_no_request_is_told_so_in_json() {
    let (server, _) = start(Limits::default());
    let fields = |count: usize| {
        let fields: String = (0..count).map(|i| format!("X-{i}: 1\r\n")).collect();
        format!("GET /quick HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n")
    };
    let long = "x".repeat(40_000);
    let body = "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    for (bytes, status) in [
        ("nonsense\r\n\r\n".to_owned(), 400),
        ("GET /quick\r\n\r\n".to_owned(), 400),
        ("G\0T / HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET /quick HTTP/9.9\r\n\r\n".to_owned(), 400),
        (
            "GET /quick HTTP/1.1\r\nHost localhost\r\n\r\n".to_owned(),
            400,
        ),
        (
            "GET /quick HTTP/1.1\r\nHost: localhost\r\nA b: c\r\n\r\n".to_owned(),
            400,
        ),
        (
            format!("{body}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}"),
            400,
        ),
        (format!("{body}Content-Length: -1\r\n\r\n{{}}"), 400),
        (format!("{body}Content-Length: 2x\r\n\r\n{{}}"), 400),
        (format!("{body}Transfer-Encoding: gzip\r\n\r\n{{}}"), 400),
        (
            format!("{body}Transfer-Encoding: chunked\r\n\r\nzz\r\n{{}}\r\n"),
            400,
        ),
        (fields(90), 200),
        (fields(101), 431),
        (
            format!("GET /quick HTTP/1.1\r\nHost: localhost\r\nX: {long}\r\n\r\n"),
            431,
        ),
        (
            format!("GET /{long} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            431,
        ),
    ] {
        let start = &bytes[..bytes.len().min(100)];
        let mut stream = send(&server, &bytes);
        let answer = try_answer(&mut stream).unwrap_or_else(|| panic!("no answer: {start}"));
        assert_eq!(answer.status, status, "{start}");
        if status != 200 {
            assert_eq!(
                answer.header("content-type"),
                Some("application/json"),
                "{start}"
            );
            let error = answer.json()["error"].clone();
            assert_eq!(error["type"], "invalid_request_error", "{start}");
            assert!(answer.body.len() < 600, "{start}");
            assert_closed(&mut stream);
        }
    }
    // A length beside chunks is passed over.
    let answer = server.raw(
        format!("{body}Content-Length: 9\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n")
            .as_bytes(),
    );
    assert_eq!((answer.status, answer.text().as_str()), (200, "{}"));
}

#[test]
fn a_head_that_does_not_end_is_waited_for_no_longer() {
    let (server, _) = start(Limits {
        head: SHORT,
        ..Limits::default()
    });
    let mut stream = send(&server, "GET /quick HTTP/1.1\r\nHo");
    let answer = read_answer(&mut stream);
    assert_eq!(answer.status, 408);
    assert!(
        answer.json()["error"]["message"]
            .as_str()
            .unwrap()
            .contains("0.3 seconds")
    );
    assert_closed(&mut stream);
    // Bytes that drip do not help.
    let mut stream = send(&server, "GET /quick HTTP/1.1\r\nX: ");
    let mut reader = stream.try_clone().unwrap();
    let dripping = std::thread::spawn(move || {
        while stream.write_all(b"x").is_ok() {
            std::thread::sleep(SHORT / 10);
        }
    });
    let answer = try_answer(&mut reader);
    assert!(answer.is_none_or(|answer| answer.status == 408));
    drop(reader);
    dripping.join().unwrap();
}

#[test]
fn a_connection_without_a_request_ends() {
    let (server, _) = start(Limits {
        idle: SHORT,
        ..Limits::default()
    });
    let mut fresh = server.connect();
    assert_closed(&mut fresh);
    let mut used = send(&server, GET);
    assert_eq!(read_answer(&mut used).text(), "quick");
    used.write_all(GET.as_bytes()).unwrap();
    assert_eq!(read_answer(&mut used).text(), "quick");
    assert_closed(&mut used);
    let start = Instant::now();
    while server.server.app().connections() > 0 {
        assert!(start.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_body_that_stops_coming_is_waited_for_no_longer() {
    let (server, _) = start(Limits {
        body: SHORT,
        ..Limits::default()
    });
    let head = "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    for rest in [
        "Content-Length: 10\r\n\r\n[1,",
        "Transfer-Encoding: chunked\r\n\r\n3\r\n[1,\r\n",
    ] {
        let mut stream = send(&server, &format!("{head}{rest}"));
        let answer = read_answer(&mut stream);
        assert_eq!(answer.status, 408, "{rest}");
        assert!(
            answer.json()["error"]["message"]
                .as_str()
                .unwrap()
                .contains("0.3 seconds")
        );
        assert_closed(&mut stream);
    }
    // One that comes slowly is waited for.
    let mut stream = send(&server, &format!("{head}Content-Length: 8\r\n\r\n"));
    for byte in *b"[1,2,34]" {
        std::thread::sleep(SHORT / 4);
        stream.write_all(&[byte]).unwrap();
    }
    assert_eq!(read_answer(&mut stream).text(), "[1,2,34]");
}

#[test]
fn a_body_beyond_the_limit_is_refused_as_it_comes() {
    let (server, _) = start(Limits {
        body_bytes: 1000,
        ..Limits::default()
    });
    let head = "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let body = format!("\"{}\"", "x".repeat(998));
    let whole = format!("{head}Transfer-Encoding: chunked\r\n\r\n3e8\r\n{body}\r\n0\r\n\r\n");
    let mut stream = send(&server, &whole);
    assert_eq!(read_answer(&mut stream).text(), body);
    // The body never ends.
    let part = format!("{head}Transfer-Encoding: chunked\r\n\r\n3e8\r\n{body}\r\n1\r\nx\r\n");
    let mut stream = send(&server, &part);
    let answer = read_answer(&mut stream);
    assert_eq!(answer.status, 413);
    assert!(
        answer.json()["error"]["message"]
            .as_str()
            .unwrap()
            .contains("1000 bytes")
    );
    // A client that goes on to send gets its answer.
    let mut stream = send(&server, &format!("{head}Content-Length: 3000000\r\n\r\n"));
    let mut writer = stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || writer.write_all(&[b'x'; 3_000_000]));
    assert_eq!(read_answer(&mut stream).status, 413);
    drop(stream);
    // It may have been cut off.
    let _ = writing.join().unwrap();
}

#[test]
fn a_reader_that_takes_nothing_is_dropped_and_a_slow_one_is_not() {
    let (server, running) = start(Limits {
        write: 2 * SHORT,
        ..Limits::default()
    });
    let request = "GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let stuck = send(&server, request);
    running.wait_for(1);
    running.wait_for(0);
    drop(stuck);
    let mut slow = send(&server, request);
    let mut some = vec![0; 1 << 20];
    for _ in 0..10 {
        std::thread::sleep(SHORT / 2);
        slow.read_exact(&mut some).unwrap();
    }
    running.wait_for(1);
    drop(slow);
    running.wait_for(0);
}

#[test]
fn a_slow_reader_of_a_whole_answer_is_not_taken_for_an_idle_one() {
    let (server, _) = start(Limits {
        idle: SHORT,
        ..Limits::default()
    });
    let mut stream = send(&server, "GET /whole HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let mut head = vec![0; 1024];
    let mut read = stream.read(&mut head).unwrap();
    let end = head
        .windows(4)
        .position(|bytes| bytes == b"\r\n\r\n")
        .unwrap();
    read -= end + 4;
    let mut some = vec![0; WHOLE / 8];
    while read < WHOLE {
        std::thread::sleep(SHORT / 2);
        let most = some.len().min(WHOLE - read);
        stream.read_exact(&mut some[..most]).unwrap();
        read += most;
    }
    // Then it is idle.
    assert_closed(&mut stream);
}

#[test]
fn a_client_that_is_gone_ends_its_request() {
    let (server, running) = start(Limits::default());
    let request = "POST /never HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let closed = send(&server, request);
    running.wait_for(1);
    drop(closed);
    running.wait_for(0);
    // One that will send no more is gone too.
    let half = send(&server, request);
    running.wait_for(1);
    half.shutdown(Shutdown::Write).unwrap();
    running.wait_for(0);
    // So is one that left bytes of another request behind.
    let more = send(&server, &format!("{request}{GET}"));
    running.wait_for(1);
    drop(more);
    running.wait_for(0);
}

#[test]
fn beyond_the_limit_a_connection_is_told_to_come_back() {
    let (server, _) = start(Limits {
        connections: 2,
        ..Limits::default()
    });
    let mut open: Vec<TcpStream> = (0..2).map(|_| send(&server, GET)).collect();
    for stream in &mut open {
        assert_eq!(read_answer(stream).status, 200);
    }
    let mut third = send(&server, GET);
    let answer = read_answer(&mut third);
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(answer.json()["error"]["type"], "unavailable_error");
    open.pop();
    let start = Instant::now();
    while server.server.app().connections() > 1 {
        assert!(start.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(read_answer(&mut send(&server, GET)).status, 200);
}

#[test]
fn a_handler_that_panics_answers_500_and_others_go_on() {
    let lines = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = {
        let lines = Arc::clone(&lines);
        Arc::new(move |line: &str| lines.lock().unwrap().push(line.to_owned()))
    };
    let options = ServerOptions {
        log: Some(log),
        unlogged: vec!["/quick".to_owned()],
        ..ServerOptions::default()
    };
    let server = paths(options, |app| odd_paths(app, &Running::default()));
    let answer = server.get("/panic");
    assert_eq!(answer.status, 500);
    assert_eq!(answer.json()["error"]["type"], "server_error");
    assert!(!answer.text().contains("on purpose"));
    assert_eq!(server.get("/quick").status, 200);
    let headers = [
        ("X-Request-Id", "mine-1"),
        ("Content-Type", "application/json"),
    ];
    let answer = server.request("POST", "/echo?secret=1", &headers, b"\"words\"");
    assert_eq!(answer.header("x-request-id"), Some("mine-1"));
    let lines = || lines.lock().unwrap().clone();
    let start = Instant::now();
    while lines().len() < 3 {
        assert!(start.elapsed() < LONG, "{:?}", lines());
        std::thread::sleep(Duration::from_millis(5));
    }
    let lines = lines();
    assert!(lines[0].contains("on purpose"), "{lines:?}");
    assert!(lines[1].starts_with("GET /panic 500 "), "{lines:?}");
    assert!(
        lines[2].starts_with("POST /echo 200 ") && lines[2].ends_with(" mine-1"),
        "{lines:?}"
    );
    assert!(!lines.concat().contains("words") && !lines.concat().contains("secret"));
    assert_eq!(lines.len(), 3);
}

#[test]
fn requests_that_run_end_and_new_ones_are_refused() {
    let (server, running) = start(Limits::default());
    let mut idle = send(&server, GET);
    assert_eq!(read_answer(&mut idle).status, 200);
    let mut fresh = server.connect();
    let mut slow = send(&server, "GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n");
    running.wait_for(1);
    server.server.shutdown();
    assert_closed(&mut idle);
    assert_closed(&mut fresh);
    // Connections are still taken, so that a new request gets a status.
    let answer = read_answer(&mut send(&server, GET));
    assert_eq!(answer.header("connection"), Some("close"));
    let answer = read_answer(&mut slow);
    assert_eq!((answer.status, answer.text().as_str()), (200, "slow"));
    let address = server.address;
    assert_eq!(server.server.wait(), 0);
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn a_request_that_came_before_the_end_is_answered() {
    let (server, running) = start(Limits::default());
    let mut slow = send(&server, "GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n");
    running.wait_for(1);
    let mut fresh: Vec<TcpStream> = (0..16).map(|_| server.connect()).collect();
    let start = Instant::now();
    while server.server.app().connections() < 17 {
        assert!(start.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(5));
    }
    for stream in &mut fresh {
        stream.write_all(GET.as_bytes()).unwrap();
    }
    server.server.shutdown();
    for stream in &mut fresh {
        assert_eq!(read_answer(stream).text(), "quick");
    }
    assert_eq!(read_answer(&mut slow).text(), "slow");
}

#[test]
fn the_end_does_not_wait_for_clients_that_have_their_answers() {
    let (server, running) = start(Limits::default());
    let mut slow = send(&server, "GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n");
    running.wait_for(1);
    server.server.shutdown();
    assert_eq!(read_answer(&mut slow).text(), "slow");
    let (app, start) = (server.server.app(), Instant::now());
    while app.unanswered() > 0 {
        assert!(start.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(1));
    }
    // It is still read from, as the client has not closed it.
    assert_eq!(app.connections(), 1);
    assert_eq!(server.server.wait(), 0);
}

#[test]
fn requests_that_do_not_end_are_cut_off() {
    let (server, running) = start(Limits {
        shutdown: SHORT,
        ..Limits::default()
    });
    let mut never = send(&server, "POST /never HTTP/1.1\r\nHost: localhost\r\n\r\n");
    running.wait_for(1);
    server.server.shutdown();
    assert_eq!(server.server.wait(), 1);
    running.wait_for(0);
    assert_closed(&mut never);
}

#[test]
fn damaged_bytes_never_hang_or_break_a_connection_for_others() {
    let (server, _) = start(Limits {
        head: SHORT / 3,
        body: SHORT / 3,
        idle: SHORT / 3,
        ..Limits::default()
    });
    let requests = [
        "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n[1,2,3]",
        "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n\
         3\r\n[1,\r\n2\r\n2]\r\n0\r\n\r\n",
        "GET /quick HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer x\r\nConnection: keep-alive\r\n\r\n",
    ];
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let server = &server;
            scope.spawn(move || {
                for seed in (thread..300).step_by(4) {
                    let request = requests[seed as usize % requests.len()];
                    let bytes = damage(request.as_bytes(), &mut numbers(seed));
                    let mut stream = server.connect();
                    // It may be refused before all is sent.
                    let _ = stream.write_all(&bytes);
                    let Some(answer) = try_answer(&mut stream) else {
                        continue;
                    };
                    let expected = [200, 400, 403, 404, 405, 408, 413, 415, 431];
                    assert!(expected.contains(&answer.status), "seed {seed}: {answer:?}");
                    if answer.status >= 400 && !answer.body.is_empty() {
                        assert!(answer.json()["error"]["message"].is_string(), "seed {seed}");
                    }
                }
            });
        }
    });
    assert_eq!(server.get("/quick").text(), "quick");
    let start = Instant::now();
    while server.server.app().connections() > 0 {
        assert!(start.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A certificate for localhost that nobody else trusts, and its key.
fn certificate() -> Tls {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/net/fixtures");
    Tls {
        certificate: dir.join("certificate.pem"),
        key: dir.join("key.pem"),
    }
}

#[test]
fn a_certificate_makes_it_tls() {
    let tls = certificate();
    let options = ServerOptions {
        tls: Some(tls.clone()),
        limits: Limits {
            head: SHORT,
            ..Limits::default()
        },
        ..ServerOptions::default()
    };
    let server = paths(options, |app| odd_paths(app, &Running::default()));
    let mut roots = RootCertStore::empty();
    let file = CertificateDer::from_pem_file(&tls.certificate).unwrap();
    roots.add(file).unwrap();
    let config =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    let name = "localhost".try_into().unwrap();
    let client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(client, server.connect());
    for _ in 0..2 {
        stream.write_all(GET.as_bytes()).unwrap();
        assert_eq!(read_answer(&mut stream).text(), "quick");
    }
    // What is no handshake ends, and so does one that never comes.
    assert!(try_answer(&mut send(&server, GET)).is_none());
    let mut silent = server.connect();
    assert_closed(&mut silent);
    let absent = Tls {
        key: tls.certificate.clone(),
        ..tls
    };
    let options = ServerOptions {
        tls: Some(absent),
        ..ServerOptions::default()
    };
    let error = Server::start(options).err().expect("an error").to_string();
    assert!(error.contains("certificate.pem"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_socket_in_the_file_system_is_taken_and_left() {
    use std::os::unix::net::{UnixListener, UnixStream};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let options = ServerOptions {
        listen: Listen::Unix(path.clone()),
        ..ServerOptions::default()
    };
    // One that a server left behind when it was killed.
    drop(UnixListener::bind(&path).unwrap());
    let paths = |app: &App| odd_paths(app, &Running::default());
    let server = Server::with_paths(options.clone(), paths).unwrap();
    let mut stream = UnixStream::connect(&path).unwrap();
    // No page reaches it, whatever name it has.
    let request = "GET /quick HTTP/1.1\r\nHost: anything\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    assert_eq!(read_answer(&mut stream).text(), "quick");
    let error = Server::with_paths(options, paths)
        .err()
        .expect("it is taken");
    assert!(matches!(error, StartError::Address { .. }), "{error}");
    server.shutdown();
    server.wait();
    assert!(!path.exists());
}
