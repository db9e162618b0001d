//! What is read when Prometheus asks: the engine's own counts, and facts that do not change.

use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeMetric,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use sparamx_engine::Stats;

use crate::meta::ModelMeta;

/// The state at one moment.
#[derive(Debug)]
pub struct Snapshot {
    pub stats: Stats,
    pub connections: usize,
    pub meta: ModelMeta,
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), Error> {
        let mut out = Out(encoder);
        self.queue(&mut out)?;
        self.tokens(&mut out)?;
        self.speculation(&mut out)?;
        self.cache(&mut out)?;
        self.own(&mut out)
    }
}

impl Snapshot {
    fn queue(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let Stats {
            running,
            waiting,
            deferred,
            ..
        } = self.stats;
        out.gauge(
            "vllm:num_requests_running",
            "Requests that are admitted",
            running,
        )?;
        out.gauge(
            "vllm:num_requests_waiting",
            "Requests that wait for admission",
            waiting,
        )?;
        out.gauges(
            (
                "vllm:num_requests_waiting_by_reason",
                "Requests that wait, by what for: room, or another one's prompt",
            ),
            "reason",
            [
                ("capacity", waiting.saturating_sub(deferred) as f64),
                ("deferred", deferred as f64),
            ],
        )
    }

    fn tokens(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let stats = &self.stats;
        out.counter(
            "vllm:prompt_tokens",
            "Tokens of the prompts of admitted requests",
            stats.prompt_tokens,
        )?;
        out.counter(
            "vllm:prompt_tokens_cached",
            "Those of them that the prefix cache had",
            stats.cached_tokens,
        )?;
        out.counter("vllm:generation_tokens", "New tokens", stats.tokens)?;
        out.counter(
            "vllm:prefix_cache_queries",
            "Tokens that the prefix cache was asked for",
            stats.prompt_tokens,
        )?;
        out.counter(
            "vllm:prefix_cache_hits",
            "Tokens that the prefix cache had",
            stats.cached_tokens,
        )?;
        out.counter(
            "vllm:num_preemptions",
            "Times that a request gave its memory back",
            stats.preemptions,
        )
    }

    fn speculation(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let stats = &self.stats;
        out.counter(
            "vllm:spec_decode_num_drafts",
            "Times that draft tokens were tried",
            stats.drafts,
        )?;
        out.counter(
            "vllm:spec_decode_num_draft_tokens",
            "Draft tokens that were tried",
            stats.drafted,
        )?;
        out.counter(
            "vllm:spec_decode_num_accepted_tokens",
            "Draft tokens that were kept",
            stats.accepted,
        )
    }

    fn cache(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let pool = &self.stats.pool;
        let usage = pool.in_use_bytes as f64 / pool.budget_bytes.max(1) as f64;
        out.gauge(
            "vllm:kv_cache_usage_perc",
            "Share of the KV cache that requests hold, 0 to 1",
            usage,
        )?;
        let cache = &self.meta.kv_cache;
        out.info(
            "vllm:cache_config_info",
            "The KV cache",
            &[
                ("block_size", cache.block_tokens.to_string()),
                (
                    "num_gpu_blocks",
                    (cache.tokens / cache.block_tokens as u64).to_string(),
                ),
                ("cache_dtype", cache.format.clone()),
                ("enable_prefix_caching", "True".to_owned()),
            ],
        )
    }

    /// What vLLM has no name for.
    fn own(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let stats = &self.stats;
        out.counter("sparamx:steps", "Steps that ran the model", stats.steps)?;
        out.counter(
            "sparamx:forward_seconds",
            "Time in the model",
            stats.forward_time.as_secs_f64(),
        )?;
        out.counter(
            "sparamx:sampling_seconds",
            "Time to choose tokens",
            stats.sampling_time.as_secs_f64(),
        )?;
        out.gauge(
            "sparamx:connections",
            "Connections that are open",
            self.connections,
        )?;
        let pool = &stats.pool;
        out.gauges(
            (
                "sparamx:kv_bytes",
                "Memory of the KV cache, by what it is for",
            ),
            "state",
            [
                ("budget", pool.budget_bytes as f64),
                ("in_use", pool.in_use_bytes as f64),
                ("cached", pool.cached_bytes as f64),
                ("free", pool.free_bytes as f64),
            ],
        )?;
        out.info(
            "sparamx:weights_info",
            "The weights, and what multiplies them",
            &[
                ("format", self.meta.weights.clone()),
                ("sparsity", format!("{:.3}", self.meta.sparsity)),
                ("isa", self.meta.isa.clone()),
            ],
        )
    }
}

/// Writes one metric after the other.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn counter<N: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        value: N,
    ) -> Result<(), Error> {
        let metric = ConstCounter::new(value);
        self.metric(name, help, &metric)
    }

    fn gauge<N: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        value: N,
    ) -> Result<(), Error> {
        let metric = ConstGauge::new(value);
        self.metric(name, help, &metric)
    }

    fn metric(&mut self, name: &str, help: &str, metric: &impl EncodeMetric) -> Result<(), Error> {
        let help = sentence(help);
        let encoder = self
            .0
            .encode_descriptor(name, &help, None, metric.metric_type())?;
        metric.encode(encoder)
    }

    /// A gauge for each value of a label.
    fn gauges<const N: usize>(
        &mut self,
        (name, help): (&str, &str),
        label: &str,
        values: [(&str, f64); N],
    ) -> Result<(), Error> {
        let help = sentence(help);
        let mut encoder = self
            .0
            .encode_descriptor(name, &help, None, MetricType::Gauge)?;
        for (value, number) in values {
            let labels = [(label, value)];
            ConstGauge::new(number).encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// Facts as labels of a gauge that is 1.
    fn info(&mut self, name: &str, help: &str, facts: &[(&str, String)]) -> Result<(), Error> {
        let help = sentence(help);
        let mut encoder = self
            .0
            .encode_descriptor(name, &help, None, MetricType::Gauge)?;
        ConstGauge::new(1_i64).encode(encoder.encode_family(&facts)?)
    }
}

/// As a registry ends what it is given.
fn sentence(help: &str) -> String {
    format!("{help}.")
}
