//! What is recorded as requests come and go.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use sparamx_engine::Usage;

use super::{FinishedReason, OVERLOAD, QUEUE_FULL, buckets};

/// A counter for each value of one label.
type ByLabel<V> = Family<[(&'static str, V); 1], Counter>;

/// The histograms and counters.
pub struct Recorded {
    pub first_token: Histogram,
    pub next_token: Histogram,
    pub step_tokens: Histogram,
    pub choices: Histogram,
    pub max_tokens: Histogram,
    end_to_end: Histogram,
    queue_time: Histogram,
    inference_time: Histogram,
    prefill_time: Histogram,
    decode_time: Histogram,
    time_per_token: Histogram,
    prompt_tokens: Histogram,
    generation_tokens: Histogram,
    preemptions: Histogram,
    success: ByLabel<&'static str>,
    rejections: ByLabel<&'static str>,
    responses: ByLabel<u16>,
}

impl Recorded {
    /// Nothing yet. Histograms of tokens go up to `context`.
    pub fn new(context: usize) -> Self {
        let of_request = || Histogram::new(buckets::REQUEST);
        let of_tokens = || Histogram::new(buckets::tokens(context));
        let recorded = Self {
            first_token: Histogram::new(buckets::FIRST_TOKEN),
            next_token: Histogram::new(buckets::BETWEEN_TOKENS),
            step_tokens: Histogram::new(buckets::STEP_TOKENS),
            choices: Histogram::new(buckets::CHOICES),
            max_tokens: of_tokens(),
            end_to_end: of_request(),
            queue_time: of_request(),
            inference_time: of_request(),
            prefill_time: of_request(),
            decode_time: of_request(),
            time_per_token: Histogram::new(buckets::BETWEEN_TOKENS),
            prompt_tokens: of_tokens(),
            generation_tokens: of_tokens(),
            preemptions: Histogram::new(buckets::PREEMPTIONS),
            success: Family::default(),
            rejections: Family::default(),
            responses: Family::default(),
        };
        // A rate needs the zero that comes before the first one.
        for reason in FinishedReason::ALL {
            recorded.success.get_or_create_owned(&finished(reason));
        }
        for reason in [QUEUE_FULL, OVERLOAD] {
            recorded
                .rejections
                .get_or_create_owned(&[("reason", reason)]);
        }
        recorded
    }

    /// A request was not taken.
    pub fn rejected(&self, reason: &'static str) {
        self.rejections.get_or_create(&[("reason", reason)]).inc();
    }

    /// A request was answered.
    pub fn answered(&self, status: u16) {
        self.responses.get_or_create(&[("status", status)]).inc();
    }

    /// A text ended.
    pub fn finished(&self, reason: FinishedReason, usage: &Usage, end_to_end: Duration) {
        self.success.get_or_create(&finished(reason)).inc();
        let inference = usage.prefill_time + usage.decode_time;
        for (histogram, time) in [
            (&self.end_to_end, end_to_end),
            (&self.queue_time, usage.queue_time),
            (&self.inference_time, inference),
            (&self.prefill_time, usage.prefill_time),
            (&self.decode_time, usage.decode_time),
        ] {
            histogram.observe(time.as_secs_f64());
        }
        if usage.tokens > 1 {
            let times = (usage.tokens - 1) as f64;
            self.time_per_token
                .observe(usage.decode_time.as_secs_f64() / times);
        }
        self.prompt_tokens.observe(usage.prompt_tokens as f64);
        self.generation_tokens.observe(usage.tokens as f64);
        self.preemptions.observe(usage.preemptions as f64);
    }

    /// Puts all of them under their names.
    pub fn register(&self, registry: &mut Registry) {
        self.register_times(registry);
        self.register_counts(registry);
        let (success, rejections) = (self.success.clone(), self.rejections.clone());
        registry.register("vllm:request_success", "Texts that ended, by how", success);
        let help = "Requests that were not taken, by why";
        registry.register("vllm:admission_rejections", help, rejections);
        let responses = self.responses.clone();
        registry.register("sparamx:http_responses", "Answers by status", responses);
    }

    fn register_times(&self, registry: &mut Registry) {
        let mut add = |name: &str, help: &str, histogram: &Histogram| {
            registry.register(format!("vllm:{name}_seconds"), help, histogram.clone());
        };
        let help = "Time from a request to its first token";
        add("time_to_first_token", help, &self.first_token);
        let help = "Time between two tokens of a text";
        add("inter_token_latency", help, &self.next_token);
        let help = "Mean time between the tokens of a text";
        add("request_time_per_output_token", help, &self.time_per_token);
        let help = "Time from a request to the end of its text";
        add("e2e_request_latency", help, &self.end_to_end);
        let help = "Time from a request to its admission";
        add("request_queue_time", help, &self.queue_time);
        let help = "Time of prefill and decode of a text";
        add("request_inference_time", help, &self.inference_time);
        let help = "Time of the steps up to the first token";
        add("request_prefill_time", help, &self.prefill_time);
        let help = "Time of the steps after the first token";
        add("request_decode_time", help, &self.decode_time);
    }

    fn register_counts(&self, registry: &mut Registry) {
        let mut add = |name: &str, help: &str, histogram: &Histogram| {
            registry.register(format!("vllm:{name}"), help, histogram.clone());
        };
        let help = "Tokens of a prompt";
        add("request_prompt_tokens", help, &self.prompt_tokens);
        let help = "New tokens of a text";
        add("request_generation_tokens", help, &self.generation_tokens);
        let help = "Tokens that go through the model in a step";
        add("iteration_tokens_total", help, &self.step_tokens);
        let help = "Parameter n of a request";
        add("request_params_n", help, &self.choices);
        let help = "Most new tokens of a request";
        add("request_params_max_tokens", help, &self.max_tokens);
        let help = "Times that a text was preempted";
        add("request_num_preemptions", help, &self.preemptions);
    }
}

fn finished(reason: FinishedReason) -> [(&'static str, &'static str); 1] {
    [("finished_reason", reason.name())]
}
