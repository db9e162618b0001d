//! Every name, type and label that dashboards and balancers read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use sparamx_engine::PoolUsage;

use super::*;
use crate::meta::{Defaults, KvMeta};
use crate::testing::server;

/// The names as they are written, their types, and the labels besides `model_name` and `engine`.
const EXPECTED: [(&str, &str, &str); 37] = [
    ("vllm:num_requests_running", "gauge", ""),
    ("vllm:num_requests_waiting", "gauge", ""),
    ("vllm:num_requests_waiting_by_reason", "gauge", "reason"),
    ("vllm:kv_cache_usage_perc", "gauge", ""),
    (
        "vllm:cache_config_info",
        "gauge",
        "block_size cache_dtype enable_prefix_caching num_gpu_blocks",
    ),
    ("vllm:prompt_tokens_total", "counter", ""),
    ("vllm:generation_tokens_total", "counter", ""),
    ("vllm:prompt_tokens_cached_total", "counter", ""),
    ("vllm:prefix_cache_queries_total", "counter", ""),
    ("vllm:prefix_cache_hits_total", "counter", ""),
    ("vllm:num_preemptions_total", "counter", ""),
    ("vllm:request_success_total", "counter", "finished_reason"),
    ("vllm:admission_rejections_total", "counter", "reason"),
    ("vllm:spec_decode_num_draft_tokens_total", "counter", ""),
    ("vllm:spec_decode_num_accepted_tokens_total", "counter", ""),
    ("vllm:spec_decode_num_drafts_total", "counter", ""),
    ("vllm:time_to_first_token_seconds", "histogram", ""),
    ("vllm:inter_token_latency_seconds", "histogram", ""),
    (
        "vllm:request_time_per_output_token_seconds",
        "histogram",
        "",
    ),
    ("vllm:e2e_request_latency_seconds", "histogram", ""),
    ("vllm:request_queue_time_seconds", "histogram", ""),
    ("vllm:request_inference_time_seconds", "histogram", ""),
    ("vllm:request_prefill_time_seconds", "histogram", ""),
    ("vllm:request_decode_time_seconds", "histogram", ""),
    ("vllm:request_prompt_tokens", "histogram", ""),
    ("vllm:request_generation_tokens", "histogram", ""),
    ("vllm:iteration_tokens_total", "histogram", ""),
    ("vllm:request_params_n", "histogram", ""),
    ("vllm:request_params_max_tokens", "histogram", ""),
    ("vllm:request_num_preemptions", "histogram", ""),
    ("sparamx:steps_total", "counter", ""),
    ("sparamx:forward_seconds_total", "counter", ""),
    ("sparamx:sampling_seconds_total", "counter", ""),
    ("sparamx:kv_bytes", "gauge", "state"),
    ("sparamx:connections", "gauge", ""),
    ("sparamx:weights_info", "gauge", "format isa sparsity"),
    ("sparamx:http_responses_total", "counter", "status"),
];

/// A sample: its name, its labels, its value.
type Sample = (String, BTreeMap<String, String>, f64);

/// Types and samples of a text, by a reader that knows no more than the format.
fn read(text: &str) -> (BTreeMap<String, String>, Vec<Sample>) {
    let mut types = BTreeMap::new();
    let mut samples = Vec::new();
    for line in text.lines() {
        if let Some(about) = line.strip_prefix("# TYPE ") {
            let (name, kind) = about.split_once(' ').unwrap();
            assert!(
                types.insert(name.to_owned(), kind.to_owned()).is_none(),
                "{name} twice"
            );
        } else if !line.starts_with('#') {
            samples.push(sample(line));
        }
    }
    (types, samples)
}

fn sample(line: &str) -> Sample {
    let (name, rest) = line
        .split_once('{')
        .unwrap_or_else(|| panic!("no labels: {line}"));
    let (labels, value) = rest.rsplit_once("} ").unwrap();
    let mut found = BTreeMap::new();
    for label in labels.split("\",") {
        let (key, value) = label.split_once("=\"").unwrap();
        found.insert(key.to_owned(), value.trim_end_matches('"').to_owned());
    }
    (name.to_owned(), found, value.parse().unwrap())
}

fn meta() -> ModelMeta {
    ModelMeta {
        parameters: 5_000_000,
        bytes: 6_000_000,
        sparsity: 0.5,
        weights: "sparse int8".to_owned(),
        kernel: "a kernel",
        isa: "AVX2".to_owned(),
        threads: 2,
        kv_cache: KvMeta {
            format: "bf16".to_owned(),
            tokens: 6400,
            bytes: 1 << 20,
            block_tokens: 64,
        },
        chat_template: false,
        reasoning: false,
        defaults: Defaults {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
        },
    }
}

fn stats() -> Stats {
    Stats {
        running: 2,
        waiting: 5,
        deferred: 1,
        prompt_tokens: 100,
        cached_tokens: 40,
        tokens: 70,
        drafts: 6,
        drafted: 20,
        accepted: 15,
        preemptions: 3,
        steps: 80,
        forward_time: Duration::from_millis(1500),
        sampling_time: Duration::from_millis(250),
        pool: PoolUsage {
            budget_bytes: 1000,
            in_use_bytes: 250,
            cached_bytes: 100,
            free_bytes: 50,
        },
        ..Stats::default()
    }
}

fn usage() -> Usage {
    Usage {
        prompt_tokens: 10,
        tokens: 5,
        preemptions: 1,
        queue_time: Duration::from_secs(1),
        prefill_time: Duration::from_secs(2),
        decode_time: Duration::from_secs(4),
        ..Usage::default()
    }
}

fn recorded() -> Metrics {
    let metrics = Metrics::new("org/model", 1000, &meta());
    metrics.arrived(2, 100);
    metrics.rejected(QUEUE_FULL);
    metrics.first_token(Duration::from_millis(30));
    metrics.next_token(Duration::from_millis(20));
    metrics.next_token(Duration::from_secs(100));
    metrics.finished(FinishedReason::Stop, &usage(), Duration::from_secs(7));
    metrics.finished(
        FinishedReason::Abort,
        &Usage::default(),
        Duration::from_secs(1),
    );
    metrics.answered(200);
    metrics.observer()(&StepReport {
        rows: 33,
        requests: 2,
        time: Duration::from_millis(5),
    });
    metrics
}

#[test]
fn all_names_types_and_labels_are_there() {
    let text = recorded().render(&stats(), 4);
    let (types, samples) = read(&text);
    let names: BTreeSet<&str> = EXPECTED.iter().map(|(name, ..)| *name).collect();
    let there: BTreeSet<&str> = types.keys().map(String::as_str).collect();
    assert_eq!(there, names);
    for (name, kind, labels) in EXPECTED {
        assert_eq!(types[name], kind, "{name}");
        let of_histogram = |sample: &str| {
            ["_bucket", "_sum", "_count"]
                .iter()
                .any(|end| sample == format!("{name}{end}"))
        };
        let found: Vec<&Sample> = samples
            .iter()
            .filter(|(sample, ..)| {
                if kind == "histogram" {
                    of_histogram(sample)
                } else {
                    sample == name
                }
            })
            .collect();
        assert!(!found.is_empty(), "{name} has no value");
        let mut wanted: BTreeSet<&str> = labels
            .split_whitespace()
            .chain(["model_name", "engine"])
            .collect();
        for (sample, labels, _) in found {
            if sample.ends_with("_bucket") {
                wanted.insert("le");
            } else {
                wanted.remove("le");
            }
            let there: BTreeSet<&str> = labels.keys().map(String::as_str).collect();
            assert_eq!(there, wanted, "{sample}");
            assert_eq!(
                (labels["model_name"].as_str(), labels["engine"].as_str()),
                ("org/model", "0")
            );
        }
    }
}

#[test]
fn values_are_those_of_the_engine_and_of_the_calls() {
    let text = recorded().render(&stats(), 4);
    let (_, samples) = read(&text);
    let value = |name: &str, label: &str, value: &str| {
        let is = |labels: &BTreeMap<String, String>| {
            label.is_empty() || labels.get(label).is_some_and(|v| v == value)
        };
        let found = samples
            .iter()
            .find(|(sample, labels, _)| sample == name && is(labels));
        found.unwrap_or_else(|| panic!("{name} {label} {value}")).2
    };
    for (name, label, of, expected) in [
        ("vllm:num_requests_running", "", "", 2.0),
        ("vllm:num_requests_waiting", "", "", 5.0),
        (
            "vllm:num_requests_waiting_by_reason",
            "reason",
            "capacity",
            4.0,
        ),
        (
            "vllm:num_requests_waiting_by_reason",
            "reason",
            "deferred",
            1.0,
        ),
        ("vllm:kv_cache_usage_perc", "", "", 0.25),
        ("vllm:cache_config_info", "num_gpu_blocks", "100", 1.0),
        ("vllm:cache_config_info", "block_size", "64", 1.0),
        ("vllm:prompt_tokens_total", "", "", 100.0),
        ("vllm:prompt_tokens_cached_total", "", "", 40.0),
        ("vllm:prefix_cache_queries_total", "", "", 100.0),
        ("vllm:prefix_cache_hits_total", "", "", 40.0),
        ("vllm:generation_tokens_total", "", "", 70.0),
        ("vllm:num_preemptions_total", "", "", 3.0),
        ("vllm:spec_decode_num_drafts_total", "", "", 6.0),
        ("vllm:spec_decode_num_draft_tokens_total", "", "", 20.0),
        ("vllm:spec_decode_num_accepted_tokens_total", "", "", 15.0),
        ("vllm:request_success_total", "finished_reason", "stop", 1.0),
        (
            "vllm:request_success_total",
            "finished_reason",
            "length",
            0.0,
        ),
        (
            "vllm:request_success_total",
            "finished_reason",
            "abort",
            1.0,
        ),
        (
            "vllm:request_success_total",
            "finished_reason",
            "error",
            0.0,
        ),
        ("vllm:admission_rejections_total", "reason", QUEUE_FULL, 1.0),
        ("vllm:time_to_first_token_seconds_bucket", "le", "0.02", 0.0),
        ("vllm:time_to_first_token_seconds_bucket", "le", "0.04", 1.0),
        ("vllm:inter_token_latency_seconds_bucket", "le", "80", 1.0),
        ("vllm:inter_token_latency_seconds_bucket", "le", "+Inf", 2.0),
        (
            "vllm:request_time_per_output_token_seconds_sum",
            "",
            "",
            1.0,
        ),
        (
            "vllm:request_time_per_output_token_seconds_count",
            "",
            "",
            1.0,
        ),
        ("vllm:e2e_request_latency_seconds_sum", "", "", 8.0),
        ("vllm:request_queue_time_seconds_sum", "", "", 1.0),
        ("vllm:request_prefill_time_seconds_sum", "", "", 2.0),
        ("vllm:request_decode_time_seconds_sum", "", "", 4.0),
        ("vllm:request_inference_time_seconds_sum", "", "", 6.0),
        ("vllm:request_prompt_tokens_sum", "", "", 10.0),
        ("vllm:request_generation_tokens_count", "", "", 2.0),
        ("vllm:iteration_tokens_total_sum", "", "", 33.0),
        ("vllm:request_params_n_sum", "", "", 2.0),
        ("vllm:request_params_max_tokens_sum", "", "", 100.0),
        ("vllm:request_num_preemptions_sum", "", "", 1.0),
        ("sparamx:steps_total", "", "", 80.0),
        ("sparamx:forward_seconds_total", "", "", 1.5),
        ("sparamx:sampling_seconds_total", "", "", 0.25),
        ("sparamx:kv_bytes", "state", "budget", 1000.0),
        ("sparamx:kv_bytes", "state", "in_use", 250.0),
        ("sparamx:kv_bytes", "state", "cached", 100.0),
        ("sparamx:kv_bytes", "state", "free", 50.0),
        ("sparamx:connections", "", "", 4.0),
        ("sparamx:weights_info", "format", "sparse int8", 1.0),
        ("sparamx:weights_info", "sparsity", "0.500", 1.0),
        ("sparamx:http_responses_total", "status", "200", 1.0),
    ] {
        assert_eq!(value(name, label, of), expected, "{name} {label} {of}");
    }
}

#[test]
fn names_with_quotes_are_escaped() {
    let metrics = Metrics::new("a\"b\\c\nd", 10, &meta());
    let text = metrics.render(&Stats::default(), 0);
    assert!(text.contains(r#"model_name="a\"b\\c\nd""#), "{text}");
    assert!(text.lines().all(|line| line.starts_with("vllm:")
        || line.starts_with("sparamx:")
        || line.starts_with("# ")));
}

#[test]
fn the_route_answers_with_prometheus_type() {
    let server = server();
    let answer = server.get("/metrics");
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let (_, samples) = read(&answer.text());
    let connections = samples
        .iter()
        .find(|(name, ..)| name == "sparamx:connections");
    assert!(connections.unwrap().2 >= 1.0);
    let loading = crate::testing::loading(Default::default()).get("/metrics");
    assert_eq!(loading.status, 503);
}

/// The words of a query that are names of metrics.
fn metrics_in(query: &str) -> impl Iterator<Item = &str> {
    let words = query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    words.filter(|word| word.starts_with("vllm:") || word.starts_with("sparamx:"))
}

fn queries<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if name == "expr" || name == "definition" => {
                        found.push(text)
                    }
                    _ => queries(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| queries(value, found)),
        _ => {}
    }
}

#[test]
fn the_dashboard_asks_for_what_there_is() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/grafana/sparamx.json");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let text = recorded().render(&stats(), 0);
    let (_, samples) = read(&text);
    let names: BTreeSet<&str> = samples.iter().map(|(name, ..)| name.as_str()).collect();
    let mut found = Vec::new();
    queries(&dashboard, &mut found);
    assert!(found.len() > 15, "{found:?}");
    let mut asked = BTreeSet::new();
    for query in found {
        let metrics: Vec<&str> = metrics_in(query).collect();
        assert!(!metrics.is_empty(), "{query}");
        for metric in metrics {
            assert!(names.contains(metric), "{metric} in {query}");
            asked.insert(metric);
        }
    }
    // What the dashboard is for.
    for metric in [
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:inter_token_latency_seconds_bucket",
        "vllm:generation_tokens_total",
        "vllm:kv_cache_usage_perc",
        "vllm:prefix_cache_hits_total",
        "vllm:spec_decode_num_accepted_tokens_total",
        "vllm:num_preemptions_total",
        "vllm:request_success_total",
        "vllm:admission_rejections_total",
        "sparamx:http_responses_total",
    ] {
        assert!(asked.contains(metric), "{metric}");
    }
}
