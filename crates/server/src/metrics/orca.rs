//! Load in a header of the answer, for balancers that ask for it with `endpoint-load-metrics-format`: Open Request Cost
//! Aggregation, as vLLM does it.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use serde_json::json;
use sparamx_engine::Stats;

use crate::state::App;

/// The header of the answer. A request may ask under this name, too.
const LOAD: HeaderName = HeaderName::from_static("endpoint-load-metrics");
/// The header of the request.
const FORMAT: HeaderName = HeaderName::from_static("endpoint-load-metrics-format");

/// Adds the header to an answer whose request asks for it.
pub async fn layer(State(app): State<App>, request: Request, next: Next) -> Response {
    let format = format(request.headers());
    let mut response = next.run(request).await;
    if let (Some(format), Some(served)) = (format, app.model())
        && let Some(value) = value(format, &served.host.stats())
    {
        response.headers_mut().insert(LOAD, value);
    }
    response
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    Json,
}

fn format(headers: &HeaderMap) -> Option<Format> {
    let asked = headers.get(FORMAT).or_else(|| headers.get(LOAD))?;
    let is = |name: &str| asked.as_bytes().eq_ignore_ascii_case(name.as_bytes());
    match () {
        () if is("text") => Some(Format::Text),
        () if is("json") => Some(Format::Json),
        () => None,
    }
}

fn value(format: Format, stats: &Stats) -> Option<HeaderValue> {
    let usage = stats.pool.in_use_bytes as f64 / stats.pool.budget_bytes.max(1) as f64;
    let waiting = stats.waiting as f64;
    let text = match format {
        Format::Text => {
            format!(
                "TEXT named_metrics.kv_cache_usage_perc={usage:?}, named_metrics.num_requests_waiting={waiting:?}"
            )
        }
        Format::Json => format!(
            "JSON {}",
            json!({"named_metrics": {"kv_cache_usage_perc": usage, "num_requests_waiting": waiting}})
        ),
    };
    HeaderValue::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::server;

    #[test]
    fn load_is_told_to_those_who_ask() {
        let mut stats = Stats {
            waiting: 3,
            ..Stats::default()
        };
        stats.pool.in_use_bytes = 1;
        stats.pool.budget_bytes = 4;
        let text =
            "TEXT named_metrics.kv_cache_usage_perc=0.25, named_metrics.num_requests_waiting=3.0";
        assert_eq!(value(Format::Text, &stats).unwrap(), text);
        let json =
            "JSON {\"named_metrics\":{\"kv_cache_usage_perc\":0.25,\"num_requests_waiting\":3.0}}";
        assert_eq!(value(Format::Json, &stats).unwrap(), json);
    }

    #[test]
    fn the_header_is_there_if_it_is_asked_for() {
        let server = server();
        let ask = |headers: &[(&str, &str)]| {
            let answer = server.request("GET", "/v1/models", headers, b"");
            answer.header("endpoint-load-metrics").map(str::to_owned)
        };
        assert_eq!(ask(&[]), None);
        assert_eq!(ask(&[("endpoint-load-metrics-format", "BIN")]), None);
        for name in ["endpoint-load-metrics-format", "endpoint-load-metrics"] {
            assert!(
                ask(&[(name, "TEXT")])
                    .unwrap()
                    .starts_with("TEXT named_metrics.")
            );
            assert!(ask(&[(name, "json")]).unwrap().starts_with("JSON {"));
        }
    }
}
