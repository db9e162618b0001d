//! GET /health: whether a request would be answered now. It never waits for the engine.

use axum::extract::State;

use crate::error::ApiError;
use crate::state::App;

/// 200 without a body, or 503.
pub async fn get(State(app): State<App>) -> Result<(), ApiError> {
    let host = &app.served()?.host;
    if host.failure().is_some() {
        return Err(ApiError::unavailable("the engine has ended"));
    }
    let limit = app.options().limits.stalled;
    match host.busy_for() {
        Some(time) if time > limit => Err(ApiError::unavailable(format!(
            "the engine has work and has ended no step for {} seconds",
            time.as_secs()
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use serde_json::json;
    use sparamx_engine::{Event, GenerateParams, HostOptions, LogitsProcessor, Request};

    use crate::options::{Limits, ServerOptions};
    use crate::testing::{PATIENCE, loading, read_answer, server, server_with};

    #[test]
    fn it_is_well_from_loading_to_shutdown() {
        let server = loading(ServerOptions::default());
        for path in ["/health", "/ping", "/v1/models", "/tokenizer_info"] {
            let answer = server.get(path);
            assert_eq!(answer.status, 503, "{path}");
            assert_eq!(answer.header("retry-after"), Some("1"));
            assert_eq!(answer.json()["error"]["type"], "unavailable_error");
        }
        assert_eq!(server.get("/version").status, 200);
        server.load(HostOptions::default());
        for path in ["/health", "/ping", "/v1/models"] {
            assert_eq!(server.get(path).status, 200, "{path}");
        }
        assert!(server.get("/health").body.is_empty());
        // A request that has begun keeps the server from ending.
        let mut begun = server.connect();
        begun
            .write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
            .unwrap();
        std::thread::sleep(Duration::from_millis(300));
        server.server.shutdown();
        for path in ["/health", "/v1/models"] {
            let answer = server.get(path);
            assert_eq!(answer.status, 503, "{path}");
            assert_eq!(answer.header("retry-after"), Some("1"));
        }
        begun.write_all(b"\r\n").unwrap();
        assert_eq!(read_answer(&mut begun).status, 503);
        assert_eq!(server.server.wait(), 0);
    }

    #[derive(Debug)]
    struct Faulty;

    impl LogitsProcessor for Faulty {
        fn process(&mut self, _: &mut [f32]) {
            panic!("on purpose");
        }

        fn accept(&mut self, _: u32) {}
    }

    #[test]
    fn it_says_when_a_fault_has_ended_the_engine() {
        let server = server();
        let host = &server.server.app().model().unwrap().host;
        let mut handle = host
            .submit(Request {
                prompt: vec![1, 2, 3],
                processor: Some(Box::new(Faulty)),
                ..Request::default()
            })
            .unwrap();
        let last = handle.by_ref().last();
        assert!(
            matches!(last, Some(Event::Finished { result: Err(_), .. })),
            "{last:?}"
        );
        assert_eq!(server.get("/health").status, 503);
        let fault = server.server.app().fault().unwrap();
        assert!(fault.contains("on purpose"), "{fault}");
        let body = json!({"prompt": "a", "max_tokens": 1});
        let answer = server.post("/v1/completions", &body);
        assert_eq!(answer.status, 503);
        assert!(!answer.text().contains("on purpose"));
    }

    /// Holds a step up until its sender is gone.
    #[derive(Debug)]
    struct Waiting(mpsc::Receiver<()>);

    impl LogitsProcessor for Waiting {
        fn process(&mut self, _: &mut [f32]) {
            let _ = self.0.recv();
        }

        fn accept(&mut self, _: u32) {}
    }

    #[test]
    fn it_says_when_a_step_does_not_end() {
        let limits = Limits {
            stalled: Duration::from_millis(50),
            ..Limits::default()
        };
        let options = ServerOptions {
            limits,
            ..ServerOptions::default()
        };
        let server = server_with(options, HostOptions::default());
        let host = &server.server.app().model().unwrap().host;
        let (go_on, waiting) = mpsc::channel();
        let handle = host
            .submit(Request {
                prompt: vec![1, 2, 3],
                params: GenerateParams {
                    max_tokens: 1,
                    ..GenerateParams::default()
                },
                processor: Some(Box::new(Waiting(waiting))),
                ..Request::default()
            })
            .unwrap();
        let end = Instant::now() + PATIENCE;
        let answer = loop {
            let answer = server.get("/health");
            if answer.status != 200 {
                break answer;
            }
            assert!(Instant::now() < end, "it is well without an end");
        };
        assert_eq!(answer.status, 503);
        assert!(answer.text().contains("no step"), "{}", answer.text());
        drop(go_on);
        assert!(matches!(
            handle.last(),
            Some(Event::Finished { result: Ok(_), .. })
        ));
        assert_eq!(server.get("/health").status, 200);
    }

    #[test]
    fn it_does_not_wait_for_the_engine() {
        let server = server();
        let host = &server.server.app().model().unwrap().host;
        let params = GenerateParams {
            max_tokens: 200,
            ..GenerateParams::default()
        };
        let handles: Vec<_> = (0..8)
            .map(|first| {
                let prompt = (0..300).map(|id| 5 + (id + first) % 1000).collect();
                let params = params.clone();
                host.submit(Request {
                    prompt,
                    params,
                    ..Request::default()
                })
                .unwrap()
            })
            .collect();
        let mut asked = 0;
        while host.busy_for().is_some() && asked < 20 {
            assert_eq!(server.get("/health").status, 200);
            asked += 1;
        }
        assert!(asked > 0);
        drop(handles);
    }
}
