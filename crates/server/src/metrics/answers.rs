//! Counts answers by status, whatever gave them.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;

use crate::state::App;

/// Counts the answer to a request, once there is a model to count for.
pub async fn layer(State(app): State<App>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    if let Some(served) = app.model() {
        served.metrics.answered(response.status().as_u16());
    }
    response
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use sparamx_engine::Stats;

    use crate::app::guarded;
    use crate::options::ServerOptions;
    use crate::testing::{paths, server_with};

    async fn panics() -> &'static str {
        panic!("on purpose")
    }

    #[test]
    fn a_panic_is_counted() {
        let server = paths(ServerOptions::default(), |app| {
            let paths = Router::new().route("/panic", get(panics));
            guarded(paths, app).with_state(app.clone())
        });
        server.load(Default::default());
        assert_eq!(server.get("/panic").status, 500);
        let metrics = &server.server.app().model().unwrap().metrics;
        let text = metrics.render(&Stats::default(), 0);
        assert!(text.contains("status=\"500\"} 1"), "{text}");
    }

    #[test]
    fn refusals_are_counted_too() {
        let options = ServerOptions {
            keys: vec!["key".to_owned()],
            ..ServerOptions::default()
        };
        let server = server_with(options, Default::default());
        let key = [("Authorization", "Bearer key")];
        assert_eq!(server.get("/v1/models").status, 401);
        assert_eq!(server.get("/metrics").status, 401);
        assert_eq!(server.request("GET", "/v1/models", &key, b"").status, 200);
        assert_eq!(server.request("GET", "/nothing", &key, b"").status, 404);
        let text = server.request("GET", "/metrics", &key, b"").text();
        for (status, count) in [("401", 2), ("200", 1), ("404", 1)] {
            let line = format!("status=\"{status}\"}} {count}");
            let found = text
                .lines()
                .any(|l| l.starts_with("sparamx:http_responses_total{") && l.ends_with(&line));
            assert!(found, "{line} in {text}");
        }
    }
}
