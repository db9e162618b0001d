//! A server for tests, and a client that writes bytes as they are.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use serde_json::Value;
use sparamx_engine::{Host, HostOptions, Loaded};
use sparamx_kernels::Runtime;

use crate::app;
use crate::options::{Listen, ServerOptions};
use crate::server::Server;
use crate::state::{App, Served};

/// What the model of tests is called.
pub const MODEL: &str = "org/stories";

/// A guard against tests that hang.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A thread of its own, which computes as `serve` lets it: tests compare texts.
pub fn runtime() -> Arc<Runtime> {
    let runtime = Runtime::new(sparamx_testkit::cpu(), 1).unwrap();
    Arc::new(runtime.batch_invariant(true))
}

/// The model that ships, opened once.
pub fn loaded() -> Loaded {
    static LOADED: OnceLock<Loaded> = OnceLock::new();
    let open = || {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/stories-5m-50");
        Loaded::open(&path, runtime(), None, &mut |_| ()).unwrap()
    };
    LOADED.get_or_init(open).clone()
}

/// An engine of its own over the model that ships.
pub fn host(options: HostOptions) -> Arc<Host> {
    let options = HostOptions {
        pin: false,
        ..options
    };
    // Each has its own threads: hosts of other tests run at the same time.
    let loaded = Loaded {
        runtime: runtime(),
        ..loaded()
    };
    Arc::new(Host::start(loaded, options).unwrap())
}

/// A server on a port of its own, which ends with the value.
pub struct TestServer {
    pub server: Server,
    pub address: SocketAddr,
}

/// A server with the model that ships.
pub fn server() -> TestServer {
    server_with(ServerOptions::default(), HostOptions::default())
}

/// The same with options; it takes any port that is free.
pub fn server_with(options: ServerOptions, engine: HostOptions) -> TestServer {
    let server = loading(options);
    server.load(engine);
    server
}

/// A server whose model is not there yet.
pub fn loading(options: ServerOptions) -> TestServer {
    paths(options, app::router)
}

/// A server of the given paths, without a model.
pub fn paths(options: ServerOptions, paths: impl FnOnce(&App) -> Router) -> TestServer {
    let server = Server::with_paths(local(options), paths).unwrap();
    let address = server.address().unwrap();
    TestServer { server, address }
}

/// The same options, at any port that is free.
fn local(options: ServerOptions) -> ServerOptions {
    let listen = Listen::Tcp {
        host: "127.0.0.1".to_owned(),
        port: 0,
    };
    ServerOptions { listen, ..options }
}

/// What a server answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// A header field by its name in small letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(field, _)| field == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The `data` of each event, without comments.
    pub fn events(&self) -> Vec<String> {
        let text = self.text();
        let lines = text.lines().filter_map(|line| line.strip_prefix("data: "));
        lines.map(str::to_owned).collect()
    }
}

impl TestServer {
    /// Gives it the model.
    pub fn load(&self, engine: HostOptions) {
        let options = self.server.app().options();
        let names = vec![MODEL.to_owned(), "alias".to_owned()];
        let served = Served::new(host(engine), names, "models/stories".to_owned(), options);
        self.server.ready(served);
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        let headers = [("Content-Type", "application/json")];
        self.request("POST", path, &headers, body.to_string().as_bytes())
    }

    /// A request on a connection of its own.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let mut text = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n",
            self.address
        );
        if !body.is_empty() {
            text += &format!("Content-Length: {}\r\n", body.len());
        }
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += "\r\n";
        self.raw(&[text.as_bytes(), body].concat())
    }

    /// Writes bytes to a connection of its own and reads one answer.
    pub fn raw(&self, bytes: &[u8]) -> Answer {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        read_answer(&mut stream)
    }
}

/// Reads one answer: head and body, chunked or not.
pub fn read_answer(stream: &mut impl Read) -> Answer {
    try_answer(stream).expect("an answer")
}

/// The same; none if the connection ends before the head does.
pub fn try_answer(stream: &mut impl Read) -> Option<Answer> {
    let head = read_until(stream, b"\r\n\r\n")?;
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.trim_end().split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap();
    let field = |line: &str| {
        let (name, value) = line.split_once(':').unwrap();
        (name.to_ascii_lowercase(), value.trim().to_owned())
    };
    let mut answer = Answer {
        status: status.parse().unwrap(),
        headers: lines.map(field).collect(),
        body: Vec::new(),
    };
    if answer.header("transfer-encoding") == Some("chunked") {
        loop {
            let size = read_until(stream, b"\r\n")?;
            let size = String::from_utf8(size).unwrap();
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            stream.read_exact(&mut chunk).ok()?;
            answer.body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = answer.header("content-length") {
        answer.body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut answer.body).ok()?;
    }
    Some(answer)
}

fn read_until(stream: &mut impl Read, end: &[u8]) -> Option<Vec<u8>> {
    let (mut bytes, mut byte) = (Vec::new(), [0]);
    while !bytes.ends_with(end) {
        match stream.read(&mut byte) {
            Ok(1) => bytes.push(byte[0]),
            _ => return None,
        }
    }
    Some(bytes)
}

/// Damage to a text: bytes that are changed, left out, doubled or put in, and a cut.
pub fn damage(text: &[u8], random: &mut impl FnMut(usize) -> usize) -> Vec<u8> {
    let mut bytes = text.to_vec();
    for _ in 0..=random(4) {
        let at = random(bytes.len().max(1)).min(bytes.len().saturating_sub(1));
        let byte = match random(3) {
            0 => b"\"{}[]:,\\ \r\n\0-+.e0123456789"[random(26)],
            1 => random(256) as u8,
            _ => bytes
                .get(random(bytes.len().max(1)))
                .copied()
                .unwrap_or(b'x'),
        };
        match random(8) {
            0 if !bytes.is_empty() => drop(bytes.remove(at)),
            1 | 2 => bytes.insert(at, byte),
            3 => bytes.truncate(at),
            4 => {
                let end = (at + random(20)).min(bytes.len());
                let part = bytes[at.min(end)..end].to_vec();
                bytes.splice(at.min(end)..at.min(end), part);
            }
            _ if !bytes.is_empty() => bytes[at] = byte,
            _ => {}
        }
    }
    bytes
}

/// Numbers below a bound, the same every time for a seed.
pub fn numbers(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move |bound| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % bound.max(1) as u64) as usize
    }
}
