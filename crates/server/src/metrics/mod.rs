//! What a server tells Prometheus: vLLM's metrics under vLLM's names, and a few of its own under `sparamx:`.
//!
//! What happens to requests is recorded when it happens; what the engine counts is read when it is asked for.

pub mod answers;
mod buckets;
pub mod orca;
mod recorded;
mod snapshot;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::prometheus_text;
use prometheus_client::registry::Registry;
use sparamx_engine::{Stats, StepReport, Usage};

use self::recorded::Recorded;
use self::snapshot::Snapshot;
use crate::meta::ModelMeta;

/// The `Content-Type` of [`Metrics::render`].
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// The metrics of one model. A clone records into the same.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    recorded: Recorded,
    labels: Labels,
    meta: ModelMeta,
}

/// The labels of all metrics.
type Labels = [(Cow<'static, str>, Cow<'static, str>); 2];

/// How a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishedReason {
    /// The model ended it, or a stop string, or calls of tools.
    Stop,
    /// As many tokens as asked for, or the context is full.
    Length,
    /// The client went away.
    Abort,
    /// A fault of the server.
    Error,
}

impl FinishedReason {
    const ALL: [Self; 4] = [Self::Stop, Self::Length, Self::Abort, Self::Error];

    /// Its label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for FinishedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a request was not taken: the queue has as many as it may.
pub const QUEUE_FULL: &str = "max_num_queued_reqs";

/// Why a request was not taken: what is done before it runs takes too long, or there is too much of it.
pub const OVERLOAD: &str = "overload";

impl Metrics {
    /// Metrics of the model `name`, with nothing recorded. No request has more than `context` tokens.
    pub fn new(name: &str, context: usize, meta: &ModelMeta) -> Self {
        let labels: Labels = [
            ("model_name".into(), name.to_owned().into()),
            ("engine".into(), "0".into()),
        ];
        let mut registry = Registry::with_labels(labels.iter().cloned());
        let recorded = Recorded::new(context);
        recorded.register(&mut registry);
        Self(Arc::new(Inner {
            registry,
            recorded,
            labels,
            meta: meta.clone(),
        }))
    }

    /// A request was taken: the texts that it asks for of each prompt, and the tokens of each at most.
    pub fn arrived(&self, n: usize, max_tokens: usize) {
        self.0.recorded.choices.observe(n as f64);
        self.0.recorded.max_tokens.observe(max_tokens as f64);
    }

    /// A request was not taken, for a reason such as [`QUEUE_FULL`].
    pub fn rejected(&self, reason: &'static str) {
        self.0.recorded.rejected(reason);
    }

    /// The first token of a text came so long after its request.
    pub fn first_token(&self, after: Duration) {
        self.0.recorded.first_token.observe(after.as_secs_f64());
    }

    /// A token came so long after the one before.
    pub fn next_token(&self, after: Duration) {
        self.0.recorded.next_token.observe(after.as_secs_f64());
    }

    /// A text ended, so long after its request.
    pub fn finished(&self, reason: FinishedReason, usage: &Usage, end_to_end: Duration) {
        self.0.recorded.finished(reason, usage, end_to_end);
    }

    /// A request was answered with a status.
    pub fn answered(&self, status: u16) {
        self.0.recorded.answered(status);
    }

    /// For the engine to call after each step.
    pub fn observer(&self) -> Box<dyn FnMut(&StepReport) + Send> {
        let step_tokens = self.0.recorded.step_tokens.clone();
        Box::new(move |report| step_tokens.observe(report.rows as f64))
    }

    /// All metrics as text, with what the engine counted and the connections that are open.
    pub fn render(&self, stats: &Stats, connections: usize) -> String {
        let mut text = String::new();
        let mut now = Registry::with_labels(self.0.labels.iter().cloned());
        now.register_collector(Box::new(Snapshot {
            stats: *stats,
            connections,
            meta: self.0.meta.clone(),
        }));
        for registry in [&now, &self.0.registry] {
            prometheus_text::encode(&mut text, registry).expect("a text takes all");
        }
        text
    }
}

#[cfg(test)]
mod tests;
