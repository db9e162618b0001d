//! What the middleware lets through, over a socket.

use serde_json::json;
use sparamx_engine::HostOptions;

use crate::options::{Limits, ServerOptions};
use crate::server::{Server, StartError};
use crate::testing::{TestServer, server, server_with};

fn with_keys(keys: &[&str]) -> TestServer {
    let keys = keys.iter().map(|key| (*key).to_owned()).collect();
    let options = ServerOptions {
        keys,
        ..ServerOptions::default()
    };
    server_with(options, HostOptions::default())
}

/// A method and a path, for each there is, and some there are not.
const PATHS: [(&str, &str); 16] = [
    ("GET", "/"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/org/stories"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/messages"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/tokenizer_info"),
    ("GET", "/metrics"),
    ("GET", "/version"),
    ("GET", "/openapi.json"),
    ("GET", "/nothing"),
    ("DELETE", "/v1/models"),
    ("OPTIONS", "/v1/models"),
];

#[test]
fn a_key_opens_every_path_and_nothing_is_open_without() {
    let server = with_keys(&["alpha", "beta"]);
    for (method, path) in PATHS {
        let ask = |headers: &[(&str, &str)]| server.request(method, path, headers, b"");
        let wrong: [&[(&str, &str)]; 6] = [
            &[],
            &[("Authorization", "Bearer gamma")],
            &[("Authorization", "Bearer")],
            &[("Authorization", "Basic alpha")],
            &[("Authorization", "alpha")],
            &[("x-api-key", "alph")],
        ];
        for headers in wrong {
            let answer = ask(headers);
            assert_eq!(answer.status, 401, "{method} {path} {headers:?}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            let error = &answer.json()["error"];
            assert_eq!(error["type"], "authentication_error");
            // Anthropic's form has no code.
            if path != "/v1/messages" {
                assert_eq!(error["code"], "invalid_api_key");
            }
            assert!(!answer.text().contains("gamma"));
        }
        let right: [&[(&str, &str)]; 6] = [
            &[("Authorization", "Bearer none"), ("x-api-key", "alpha")],
            &[("Authorization", "Bearer alpha"), ("x-api-key", "none")],
            &[("Authorization", "Bearer alpha")],
            &[("authorization", "bearer  beta")],
            &[("x-api-key", "alpha")],
            &[("X-Api-Key", "beta")],
        ];
        for headers in right {
            assert_ne!(ask(headers).status, 401, "{method} {path} {headers:?}");
        }
    }
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.get("/health/").status, 401);
}

#[test]
fn the_page_is_open_where_that_is_wanted() {
    let options = ServerOptions {
        keys: vec!["alpha".to_owned()],
        public_page: true,
        ..ServerOptions::default()
    };
    let server = server_with(options, HostOptions::default());
    for file in ["/", "/favicon.svg", "/page/app.js"] {
        assert_eq!(server.get(file).status, 200, "{file}");
    }
    assert_eq!(server.get("/v1/models").status, 401);
    assert_eq!(server.get("/page/../v1/models").status, 401);
    assert_eq!(server.get("/page/nothing").status, 401);
}

#[test]
fn a_key_is_checked_before_the_body_is_read() {
    let server = with_keys(&["alpha"]);
    // The body never comes.
    let answer = server.raw(
        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n",
    );
    assert_eq!(answer.status, 401);
}

#[test]
fn a_name_that_leads_here_by_mistake_is_refused() {
    let options = ServerOptions {
        allowed_hosts: vec!["models.example".to_owned()],
        ..ServerOptions::default()
    };
    let server = server_with(options, HostOptions::default());
    let ask = |host: &str| {
        server
            .raw(format!("GET /version HTTP/1.1\r\n{host}Connection: close\r\n\r\n").as_bytes())
            .status
    };
    for (host, status) in [
        ("Host: localhost:8000\r\n", 200),
        ("Host: 127.0.0.1\r\n", 200),
        ("Host: [::1]:80\r\n", 200),
        ("Host: Models.Example:443\r\n", 200),
        ("Host: evil.example\r\n", 403),
        ("Host: localhost.evil.example\r\n", 403),
        ("Host: \r\n", 403),
        ("", 400),
        ("Host: localhost\r\nHost: evil.example\r\n", 400),
    ] {
        assert_eq!(ask(host), status, "{host}");
    }
    let absolute = server.raw(
        b"GET http://evil.example/version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(absolute.status, 403);
    assert_eq!(server.raw(b"GET /version HTTP/1.0\r\n\r\n").status, 200);
}

#[test]
fn pages_of_other_origins_read_nothing_unless_they_may() {
    let origin = [("Origin", "https://evil.example")];
    let closed = server();
    let answer = closed.request("GET", "/v1/models", &origin, b"");
    assert_eq!(answer.header("access-control-allow-origin"), None);
    let asked = [
        ("Origin", "https://evil.example"),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "content-type"),
    ];
    let answer = closed.request("OPTIONS", "/v1/chat/completions", &asked, b"");
    assert_ne!(answer.status, 200);
    assert_eq!(answer.header("access-control-allow-origin"), None);

    let options = ServerOptions {
        keys: vec!["alpha".to_owned()],
        allowed_origins: vec!["https://good.example".to_owned()],
        ..ServerOptions::default()
    };
    let open = server_with(options, HostOptions::default());
    let answer = open.request("OPTIONS", "/v1/chat/completions", &asked, b"");
    assert_eq!(answer.header("access-control-allow-origin"), None);
    let asked = asked.map(|(name, value)| (name, value.replace("evil", "good")));
    let asked: Vec<(&str, &str)> = asked.iter().map(|(n, v)| (*n, v.as_str())).collect();
    // A browser asks without a key.
    let answer = open.request("OPTIONS", "/v1/chat/completions", &asked, b"");
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("access-control-allow-origin"),
        Some("https://good.example")
    );
    let answer = open.request("GET", "/v1/models", &asked[..1], b"");
    assert_eq!(answer.status, 401);
    assert_eq!(
        answer.header("access-control-allow-origin"),
        Some("https://good.example")
    );
}

#[test]
fn a_form_or_a_plain_text_is_no_request() {
    let server = server();
    let body = json!({"prompt": "a"}).to_string();
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonx",
        "",
    ] {
        let headers = [("Content-Type", kind)];
        let answer = server.request("POST", "/tokenize", &headers, body.as_bytes());
        assert_eq!(answer.status, 415, "{kind}");
        assert_eq!(answer.json()["error"]["code"], "unsupported_content_type");
    }
    for kind in ["application/json", "Application/JSON; charset=utf-8"] {
        let headers = [("Content-Type", kind)];
        let answer = server.request("POST", "/tokenize", &headers, body.as_bytes());
        assert_eq!(answer.status, 200, "{kind}");
    }
}

#[test]
fn every_answer_tells_browsers_what_it_may_do() {
    let server = server();
    for path in ["/health", "/v1/models", "/nothing"] {
        let answer = server.get(path);
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        let policy = answer.header("content-security-policy").unwrap();
        assert!(
            policy.starts_with("default-src 'none'; script-src 'self'"),
            "{policy}"
        );
        assert!(!policy.contains("unsafe"), "{policy}");
    }
}

#[test]
fn others_need_a_key_unless_it_is_said_that_they_do_not() {
    let listen = crate::options::Listen::Tcp {
        host: "0.0.0.0".to_owned(),
        port: 0,
    };
    let open = ServerOptions {
        listen,
        ..ServerOptions::default()
    };
    let error = Server::start(open.clone()).err().expect("an error");
    assert!(matches!(error, StartError::Open(_)), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("--api-key") && text.contains("--no-auth"),
        "{text}"
    );
    for options in [
        ServerOptions {
            no_auth: true,
            ..open.clone()
        },
        ServerOptions {
            keys: vec!["alpha".to_owned()],
            ..open
        },
    ] {
        assert!(Server::start(options).is_ok());
    }
}

#[test]
fn the_length_of_a_body_is_refused_before_it_comes() {
    let options = ServerOptions {
        limits: Limits {
            body_bytes: 1000,
            ..Limits::default()
        },
        ..ServerOptions::default()
    };
    let server = server_with(options, HostOptions::default());
    for length in ["1001", "99999999999", "18446744073709551615"] {
        let head = format!(
            "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        let answer = server.raw(head.as_bytes());
        // hyper keeps the largest numbers for itself.
        assert!([413, 431].contains(&answer.status), "{length}");
        if length.len() < 20 {
            assert_eq!(answer.status, 413);
            assert!(
                answer.json()["error"]["message"]
                    .as_str()
                    .unwrap()
                    .contains("1000 bytes")
            );
        }
    }
}
