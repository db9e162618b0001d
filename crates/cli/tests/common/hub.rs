//! A small hub on this machine: as much of the Hugging Face API as a download uses.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// The commit that the hub's one revision stands for.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the hub has, and how it misbehaves.
#[derive(Clone, Default)]
pub struct Contents {
    /// `org/name` of the one model.
    pub model: String,
    /// The branch that exists.
    pub revision: String,
    /// Name and bytes of its files.
    pub files: Vec<(String, Vec<u8>)>,
    /// The token that must come with every request.
    pub token: Option<String>,
    /// Answer everything with this status.
    pub status: Option<u16>,
    /// Break the connection after that many bytes of a file, that many times.
    pub cut: Option<(usize, usize)>,
}

/// A hub that answers until the test ends.
pub struct Hub {
    /// `http://127.0.0.1:port`.
    pub endpoint: String,
    /// Method, path and range of the requests so far.
    pub requests: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    /// Starts to answer, on a free port.
    pub fn start(contents: Contents) -> Hub {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let state = Arc::new(State {
            contents,
            cuts: Mutex::new(0),
            requests: Arc::clone(&requests),
        });
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&state);
                thread::spawn(move || state.serve(stream));
            }
        });
        Hub { endpoint, requests }
    }

    /// How many requests asked for a path that ends so.
    pub fn count(&self, path_end: &str) -> usize {
        let requests = self.requests.lock().expect("no panic in the hub");
        let path = |line: &&String| {
            line.split(' ')
                .nth(1)
                .is_some_and(|path| path.ends_with(path_end))
        };
        requests.iter().filter(path).count()
    }
}

struct State {
    contents: Contents,
    cuts: Mutex<usize>,
    requests: Arc<Mutex<Vec<String>>>,
}

struct Request {
    path: String,
    headers: HashMap<String, String>,
}

impl State {
    /// One request on one connection. Errors of the connection are the client's to notice.
    fn serve(&self, stream: TcpStream) {
        let Some(request) = self.read(&stream) else {
            return;
        };
        let bearer = self
            .contents
            .token
            .as_ref()
            .map(|token| format!("Bearer {token}"));
        if let Some(status) = self.contents.status {
            return answer(stream, status, &[], b"");
        }
        if bearer.is_some() && request.headers.get("authorization") != bearer.as_ref() {
            return answer(stream, 401, &[], b"{\"error\": \"gated\"}");
        }
        let Contents {
            model, revision, ..
        } = &self.contents;
        let info = [
            format!("/api/models/{model}/revision/{revision}"),
            format!("/api/models/{model}/revision/{COMMIT}"),
        ];
        let resolve = [
            format!("/{model}/resolve/{revision}/"),
            format!("/{model}/resolve/{COMMIT}/"),
        ];
        if info.contains(&request.path) {
            let siblings: Vec<_> = (self.contents.files.iter())
                .map(|(name, _)| serde_json::json!({ "rfilename": name }))
                .collect();
            let body = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string();
            return answer(
                stream,
                200,
                &[("content-type", "application/json")],
                body.as_bytes(),
            );
        }
        let file = resolve
            .iter()
            .find_map(|start| request.path.strip_prefix(start.as_str()));
        let stored = request.path.strip_prefix("/cdn/");
        match (file, stored) {
            (Some(name), _) if self.bytes(name).is_some() && name.ends_with(".safetensors") => {
                // Large files are elsewhere, as on the real hub.
                let location = format!("/cdn/{name}");
                let host = request.headers.get("host").cloned().unwrap_or_default();
                let location = format!("http://{host}{location}");
                let headers = [
                    ("location", location.as_str()),
                    ("x-repo-commit", COMMIT),
                    ("x-linked-etag", &etag(name)),
                ];
                answer(stream, 302, &headers, b"");
            }
            (Some(name), _) | (_, Some(name)) => self.file(stream, &request, name),
            _ => answer(stream, 404, &[], b"{\"error\": \"not found\"}"),
        }
    }

    fn read(&self, stream: &TcpStream) -> Option<Request> {
        let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
        let first = lines.next()?.ok()?;
        let path = first.split(' ').nth(1)?.to_owned();
        let mut headers = HashMap::new();
        for line in lines {
            let line = line.ok()?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            headers.insert(name.to_lowercase(), value.trim().to_owned());
        }
        let range = headers.get("range").cloned().unwrap_or_default();
        let method = first.split(' ').next().unwrap_or_default();
        let line = format!("{method} {path} {range}");
        self.requests
            .lock()
            .expect("no panic in the hub")
            .push(line);
        Some(Request { path, headers })
    }

    fn bytes(&self, name: &str) -> Option<&[u8]> {
        let file = self.contents.files.iter().find(|(file, _)| file == name);
        file.map(|(_, bytes)| bytes.as_slice())
    }

    /// A file or the part of it that the client asks for.
    fn file(&self, mut stream: TcpStream, request: &Request, name: &str) {
        let Some(bytes) = self.bytes(name) else {
            return answer(stream, 404, &[], b"{\"error\": \"no such file\"}");
        };
        let range = request
            .headers
            .get("range")
            .and_then(|range| range.strip_prefix("bytes="));
        let (first, last) = range
            .and_then(|range| range.split_once('-'))
            .unwrap_or(("0", ""));
        let first = first.parse().unwrap_or(0usize);
        let last = last.parse().unwrap_or(bytes.len() - 1);
        if first >= bytes.len() {
            return answer(stream, 416, &[], b"");
        }
        let part = &bytes[first..=last];
        let range = format!("bytes {first}-{last}/{}", bytes.len());
        let headers = [
            ("content-range", range.as_str()),
            ("x-repo-commit", COMMIT),
            ("etag", &etag(name)),
        ];
        let mut send = part;
        if let Some((after, times)) = self.contents.cut
            && name.ends_with(".safetensors")
            && part.len() > after
        {
            let mut cuts = self.cuts.lock().expect("no panic in the hub");
            if *cuts < times {
                *cuts += 1;
                send = &part[..after];
            }
        }
        let _ = stream.write_all(head(206, part.len(), &headers).as_bytes());
        let _ = stream.write_all(send);
    }
}

fn etag(name: &str) -> String {
    format!("\"etag-of-{name}\"")
}

fn head(status: u16, length: usize, headers: &[(&str, &str)]) -> String {
    let mut text =
        format!("HTTP/1.1 {status} Status\r\ncontent-length: {length}\r\nconnection: close\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text + "\r\n"
}

fn answer(mut stream: TcpStream, status: u16, headers: &[(&str, &str)], body: &[u8]) {
    let _ = stream.write_all(head(status, body.len(), headers).as_bytes());
    let _ = stream.write_all(body);
}
