"""What Prometheus scrapes, read with its own package."""

from prometheus_client.parser import text_string_to_metric_families

# Names that gateways, autoscalers and dashboards for vLLM read.
EXPECTED = {
    "gauge": ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "cache_config_info"],
    "counter": [
        "prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits", "num_preemptions", "request_success",
        "spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens",
    ],
    "histogram": [
        "time_to_first_token_seconds", "inter_token_latency_seconds", "request_time_per_output_token_seconds",
        "e2e_request_latency_seconds", "request_queue_time_seconds", "request_inference_time_seconds", "request_prefill_time_seconds",
        "request_decode_time_seconds", "request_prompt_tokens", "request_generation_tokens", "iteration_tokens_total",
        "request_params_n", "request_params_max_tokens",
    ],
}


def families(server):
    return {family.name: family for family in text_string_to_metric_families(server.get("/metrics"))}


def test_names_types_and_labels_are_those_of_vllm(tiny):
    found = families(tiny)
    for kind, names in EXPECTED.items():
        for name in names:
            family = found.get(f"vllm:{name}") or found.get(f"vllm:{name}_total")
            assert family is not None, name
            assert family.type == kind, name
            for sample in family.samples:
                assert sample.labels["model_name"] == "org/stories" and sample.labels["engine"] == "0", sample
    (cache,) = found["vllm:cache_config_info"].samples
    assert int(cache.labels["block_size"]) == 64 and int(cache.labels["num_gpu_blocks"]) > 0


def test_counters_count(tiny):
    import json
    import urllib.request

    def counts():
        # Whatever was asked before has ended.
        tiny.rest()
        return [tiny.metric(f"vllm:{name}_total") for name in ("prompt_tokens", "generation_tokens", "request_success")]

    before = counts()
    body = {"model": "stories", "prompt": [1, 2, 3, 4, 5], "max_tokens": 7, "ignore_eos": True}
    request = urllib.request.Request(
        tiny.url + "/v1/completions", json.dumps(body).encode(), {**tiny.headers, "Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["usage"] == {
            "prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12, "prompt_tokens_details": {"cached_tokens": 0}
        }
    after = counts()
    assert [new - old for new, old in zip(after, before)] == [5, 7, 1]


def test_histograms_add_up(tiny):
    for family in families(tiny).values():
        if family.type != "histogram":
            continue
        counts = {}
        for sample in family.samples:
            labels = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "le"))
            counts.setdefault(labels, {})[sample.name.rsplit("_", 1)[1], sample.labels.get("le")] = sample.value
        for values in counts.values():
            buckets = [value for (kind, _), value in values.items() if kind == "bucket"]
            assert buckets == sorted(buckets) and buckets[-1] == values["count", None], family.name
