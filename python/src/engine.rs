//! A model that writes: the same host of the engine as the command line and the server have.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use sparamx_cpu::topology;
use sparamx_engine::{
    Conversation, EngineError, EngineOptions, Event, FinishReason, GenerateParams, Host,
    HostOptions, KvOptions, KvPrecision, KvRule, Opening, Request, SamplingParams, Sink,
    Speculation, StoppedBy, TokenLogprob, Usage,
};
use sparamx_kernels::Runtime;

use crate::IntoPython;
use crate::kv::by_name;
use crate::runtime::{cpu, forced};

/// How often signals are looked at while there is nothing else to do.
const SIGNALS: Duration = Duration::from_millis(50);

/// A model on a thread of its own.
#[pyclass(frozen, module = "sparamx._native")]
pub(crate) struct Engine {
    host: Arc<Host>,
    /// What was odd about the files.
    #[pyo3(get)]
    warnings: Vec<String>,
    /// The process whose threads run it.
    process: u32,
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // A child process has no such thread to wait for.
            std::mem::forget(Arc::clone(&self.host));
        }
    }
}

/// A text, or its ids.
#[derive(FromPyObject)]
enum Prompt {
    Ids(Vec<u32>),
    Text(String),
}

/// `sparamx.SamplingParams`, by its attributes.
#[derive(FromPyObject)]
struct Params {
    max_tokens: usize,
    min_tokens: usize,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: f32,
    frequency_penalty: f32,
    logit_bias: Vec<(u32, f32)>,
    seed: u64,
    n: usize,
    stop: Vec<String>,
    stop_token_ids: Vec<u32>,
    include_stop_str_in_output: bool,
    ignore_eos: bool,
    skip_special_tokens: bool,
    logprobs: Option<usize>,
}

/// Log probabilities of a token and of the most probable ones.
type Logprob = (u32, f64, Vec<(u32, f64)>);

/// What came of a request: index, text, ids, reason, what ended it, log probabilities, tokens that were cached.
type Outcome = (
    usize,
    String,
    Vec<u32>,
    &'static str,
    Option<StopReason>,
    Option<Vec<Logprob>>,
    usize,
);

#[derive(IntoPyObject)]
enum StopReason {
    Token(u32),
    Text(String),
}

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (
        path, *, threads, memory, max_model_len, max_num_seqs, speculation, kv_memory, kv_dtype, key_sparsity, value_sparsity,
        window, sinks, rule, chat_template
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments")]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        threads: Option<usize>,
        memory: Option<u64>,
        max_model_len: Option<usize>,
        max_num_seqs: usize,
        speculation: bool,
        kv_memory: Option<u64>,
        kv_dtype: &str,
        key_sparsity: f32,
        value_sparsity: f32,
        window: usize,
        sinks: usize,
        rule: &str,
        chat_template: Option<PathBuf>,
    ) -> PyResult<Self> {
        let kv = KvOptions {
            budget_bytes: kv_memory,
            precision: by_name(&KvPrecision::ALL, kv_dtype)?,
            key_sparsity,
            value_sparsity,
            window,
            sinks,
            rule: by_name(&KvRule::ALL, rule)?,
        };
        let options = HostOptions {
            memory_bytes: memory,
            engine: EngineOptions {
                context: max_model_len,
                max_running: max_num_seqs,
                speculation: match speculation {
                    true => Speculation::Auto,
                    false => Speculation::Off,
                },
                kv,
                ..EngineOptions::default()
            },
            max_requests: usize::MAX,
            // Python's own threads, and PyTorch's, share the processors.
            pin: false,
            chat_template,
            ..HostOptions::default()
        };
        Self::open(py, &path, threads, options)
    }

    /// Tokens that a request may have, prompt and text together.
    #[getter]
    fn max_model_len(&self) -> usize {
        self.host.context()
    }

    /// Ids of a text, with the special tokens that the tokenizer puts around it if they are wanted.
    fn encode(&self, py: Python<'_>, text: &str, add_special_tokens: bool) -> PyResult<Vec<u32>> {
        let tokenizer = &self.host.loaded().tokenizer;
        py.detach(|| tokenizer.encode(text, add_special_tokens))
            .map_err(IntoPython::into_python)
    }

    /// Text of ids.
    fn decode(&self, ids: Vec<u32>, skip_special_tokens: bool) -> PyResult<String> {
        let tokenizer = &self.host.loaded().tokenizer;
        let text = match skip_special_tokens {
            true => tokenizer.decode(&ids),
            false => tokenizer.decode_all(&ids),
        };
        text.map_err(IntoPython::into_python)
    }

    /// Ids of a conversation: a list of messages, a list of tools or null, and an object of variables, in JSON.
    fn apply_chat_template(
        &self,
        py: Python<'_>,
        messages: &str,
        tools: &str,
        variables: &str,
        add_generation_prompt: bool,
        continue_final_message: bool,
    ) -> PyResult<Vec<u32>> {
        let loaded = self.host.loaded();
        let Some(template) = &loaded.template else {
            return Err(PyValueError::new_err(
                "the model has no chat template: give one by chat_template, or use generate",
            ));
        };
        let conversation = Conversation {
            messages: json(messages)?,
            tools: json(tools)?,
            variables: json(variables)?,
            add_generation_prompt,
            continue_final_message,
        };
        py.detach(|| {
            let text = template.render_conversation(&conversation)?;
            loaded.tokenizer.check_room(&text, self.host.context())?;
            loaded.tokenizer.encode(&text, false)
        })
        .map_err(IntoPython::into_python)
    }

    /// Generates: the ids of each prompt, and what came of each of the `n` texts for it, the first prompt's first. `progress` is
    /// called with the number of texts that have ended since its last call.
    fn generate(
        &self,
        py: Python<'_>,
        prompts: Vec<Prompt>,
        params: Vec<Params>,
        progress: Option<Bound<'_, PyAny>>,
    ) -> PyResult<(Vec<Vec<u32>>, Vec<Outcome>)> {
        self.check_process()?;
        let (sender, mut events) = mpsc::channel();
        let (mut ids, mut requests) = (Vec::new(), Vec::new());
        for (prompt, params) in prompts.into_iter().zip(params) {
            let prompt = py
                .detach(|| self.ids(prompt))
                .map_err(IntoPython::into_python)?;
            for copy in 0..params.n {
                let index = requests.len();
                let sender = sender.clone();
                let sink: Sink = Box::new(move |event| {
                    let _ = sender.send((index, event));
                });
                requests.push((self.request(&prompt, &params, copy as u64), sink));
            }
            ids.push(prompt);
        }
        let mut texts = Texts::new(requests.iter().map(|(r, _)| r.logprobs.is_some()));
        let submitted = py.detach(|| self.host.submit_to(requests));
        // Whatever ends this call, a signal too, ends the requests.
        let _cancel = submitted.map_err(IntoPython::into_python)?;
        drop(sender);
        while texts.left > 0 {
            let ended = py
                .detach(|| texts.wait(&mut events))
                .map_err(IntoPython::into_python)?;
            py.check_signals()?;
            if let Some(progress) = progress.as_ref().filter(|_| ended > 0) {
                progress.call1((ended,))?;
            }
        }
        Ok((ids, texts.outcomes))
    }
}

impl Engine {
    fn open(
        py: Python<'_>,
        path: &Path,
        threads: Option<usize>,
        options: HostOptions,
    ) -> PyResult<Self> {
        let cpu = cpu()?;
        py.detach(|| {
            let threads = threads.unwrap_or_else(topology::default_threads);
            let runtime = Runtime::new(cpu, threads).and_then(forced);
            let runtime = runtime.map_err(IntoPython::into_python)?;
            // The texts of a call do not depend on each other.
            let runtime = runtime.batch_invariant(true);
            let mut warnings = Vec::new();
            let host = Host::open(path, Arc::new(runtime), options, &mut |report| {
                if let Opening::Warning(text) | Opening::Note(text) = report {
                    warnings.push(text);
                }
            })
            .map_err(IntoPython::into_python)?;
            Ok(Self {
                host: Arc::new(host),
                warnings,
                process: std::process::id(),
            })
        })
    }

    /// # Errors
    /// This is a child of the process that made it.
    fn check_process(&self) -> PyResult<()> {
        if self.process == std::process::id() {
            return Ok(());
        }
        Err(PyRuntimeError::new_err(
            "an LLM does not survive a fork: make it in the process that uses it",
        ))
    }

    fn ids(&self, prompt: Prompt) -> Result<Vec<u32>, EngineError> {
        match prompt {
            Prompt::Ids(ids) => Ok(ids),
            Prompt::Text(text) => {
                let tokenizer = &self.host.loaded().tokenizer;
                tokenizer.check_room(&text, self.host.context())?;
                tokenizer.encode_prompt(&text)
            }
        }
    }

    /// The request for one of the texts for a prompt.
    fn request(&self, prompt: &[u32], params: &Params, copy: u64) -> Request {
        let model = self.host.loaded().defaults.params();
        Request {
            prompt: prompt.to_vec(),
            params: GenerateParams {
                max_tokens: params.max_tokens,
                min_tokens: params.min_tokens,
                sampling: SamplingParams {
                    temperature: params.temperature.unwrap_or(model.temperature),
                    top_k: params.top_k.unwrap_or(model.top_k),
                    top_p: params.top_p.unwrap_or(model.top_p),
                    min_p: params.min_p.unwrap_or(model.min_p),
                    repetition_penalty: params
                        .repetition_penalty
                        .unwrap_or(model.repetition_penalty),
                    presence_penalty: params.presence_penalty,
                    frequency_penalty: params.frequency_penalty,
                    logit_bias: params.logit_bias.clone().into(),
                    seed: params.seed.wrapping_add(copy),
                },
                stop: params.stop.clone(),
                include_stop: params.include_stop_str_in_output,
                stop_token_ids: params.stop_token_ids.clone(),
                ignore_eos: params.ignore_eos,
                show_special: !params.skip_special_tokens,
                shown_ids: Vec::new(),
            },
            logprobs: params.logprobs,
            ..Request::default()
        }
    }
}

/// Texts on their way.
struct Texts {
    outcomes: Vec<Outcome>,
    left: usize,
}

impl Texts {
    /// By index, whether log probabilities are wanted.
    fn new(logprobs: impl Iterator<Item = bool>) -> Self {
        let outcome = |(index, wanted): (usize, bool)| {
            let logprobs = wanted.then(Vec::new);
            (index, String::new(), Vec::new(), "", None, logprobs, 0)
        };
        let outcomes: Vec<Outcome> = logprobs.enumerate().map(outcome).collect();
        Self {
            left: outcomes.len(),
            outcomes,
        }
    }

    /// Takes in what has happened, or happens soon; says how many texts have ended.
    ///
    /// # Errors
    /// One of them failed.
    fn wait(&mut self, events: &mut Receiver<(usize, Event)>) -> Result<usize, EngineError> {
        let mut ready = VecDeque::new();
        match events.recv_timeout(SIGNALS) {
            Ok(event) => ready.push_back(event),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(0),
        }
        ready.extend(events.try_iter());
        let before = self.left;
        for (index, event) in ready {
            self.take(index, event)?;
        }
        Ok(before - self.left)
    }

    fn take(&mut self, index: usize, event: Event) -> Result<(), EngineError> {
        let (_, text, ids, reason, stop_reason, logprobs, cached) = &mut self.outcomes[index];
        match event {
            Event::Prompt { .. } => {}
            Event::Token {
                id,
                text: more,
                logprob,
            } => {
                ids.push(id);
                *text += &more;
                if let (Some(logprobs), Some(logprob)) = (logprobs, logprob) {
                    let TokenLogprob { id, logprob, top } = logprob;
                    logprobs.push((id, logprob, top));
                }
            }
            Event::Finished {
                text: rest,
                result,
                stopped_by,
                usage: Usage { cached_tokens, .. },
                ..
            } => {
                *text += &rest;
                *reason = match result? {
                    FinishReason::Stop => "stop",
                    FinishReason::Length | FinishReason::Context => "length",
                    FinishReason::Cancelled => "abort",
                };
                *stop_reason = match stopped_by {
                    Some(StoppedBy::Token(id)) => Some(StopReason::Token(id)),
                    Some(StoppedBy::Text(text)) => Some(StopReason::Text(text)),
                    Some(StoppedBy::Eos(_)) | None => None,
                };
                *cached = cached_tokens;
                self.left -= 1;
            }
        }
        Ok(())
    }
}

fn json<T: serde::de::DeserializeOwned>(text: &str) -> PyResult<T> {
    serde_json::from_str(text).map_err(|error| PyValueError::new_err(error.to_string()))
}
