//! GET /health: whether a request would be answered now. It never waits for the engine.

use axum::extract::State;

use crate::error::ApiError;
use crate::state::App;

/// 200 without a body, or 503.
pub async fn get(State(app): State<App>) -> Result<(), ApiError> {
    let host = &app.served()?.host;
    if let Some(error) = host.failure() {
        app.log(&error.to_string());
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
    use std::time::Duration;

    use sparamx_engine::HostOptions;

    use crate::options::ServerOptions;
    use crate::testing::{loading, read_answer};

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
}
