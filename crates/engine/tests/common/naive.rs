//! An engine that could not be simpler: one request at a time, nothing shared, no draft tokens.

use std::collections::VecDeque;

use sparamx_engine::{
    Engine, EngineError, Event, FinishReason, KvOptions, Loaded, PagePool, PagedCache, Request,
    RequestId, Sampler, Stats, StopMatcher, TokenLogprob, Usage,
};
use sparamx_model::{Input, Want, Workspace};

/// Every step runs a request from its beginning to its end.
pub struct NaiveEngine {
    pub loaded: Loaded,
    pub kv: KvOptions,
    pub taken: u64,
    pub line: VecDeque<(RequestId, Request)>,
}

impl NaiveEngine {
    pub fn new(loaded: Loaded, kv: KvOptions) -> Self {
        Self {
            loaded,
            kv,
            taken: 0,
            line: VecDeque::new(),
        }
    }

    /// A pass over `tokens`: the logits after each.
    fn forward(
        &self,
        cache: &mut PagedCache,
        tokens: &[u32],
    ) -> Result<Vec<Vec<f32>>, EngineError> {
        cache.reserve(tokens.len())?;
        let mut workspace = Workspace::new();
        let input = Input {
            tokens,
            cache,
            logits: Want::All,
        };
        let logits =
            self.loaded
                .model
                .forward(&self.loaded.runtime, &mut [input], &mut workspace)?;
        let rows = logits.chunks(self.loaded.model.config().vocab_size);
        Ok(rows.map(<[f32]>::to_vec).collect())
    }

    fn run(
        &self,
        request: &Request,
        report: &mut dyn FnMut(Event),
    ) -> Result<(String, FinishReason), EngineError> {
        let Request {
            prompt,
            params,
            logprobs,
            prompt_logprobs,
            ..
        } = request;
        let pool = PagePool::new(self.loaded.model.config(), &self.kv)?;
        let mut cache = pool.sequence();
        let mut rows = self.forward(&mut cache, prompt)?;
        let scored = match prompt_logprobs {
            Some(top) => (1..prompt.len())
                .map(|i| logprob(&rows[i - 1], prompt[i], *top))
                .collect(),
            None => Vec::new(),
        };
        report(Event::Prompt {
            done: prompt.len(),
            total: prompt.len(),
            logprobs: scored,
        });
        let mut sampler = Sampler::new(&params.sampling, prompt)?;
        let mut stream = self.loaded.tokenizer.stream(prompt)?;
        let mut stops = StopMatcher::new(&params.stop)?;
        let room = self.loaded.model.config().context_length() - prompt.len();
        let mut made = 0;
        let reason = loop {
            if made == params.max_tokens {
                break FinishReason::Length;
            }
            if made == room {
                break FinishReason::Context;
            }
            let row = rows.last().expect("a row");
            let id = sampler.sample(row)?;
            if self.loaded.tokenizer.eos().contains(&id) {
                break FinishReason::Stop;
            }
            made += 1;
            let passed = match self.loaded.tokenizer.special(id) {
                Some(name) => stops.push_special(name),
                None => stops.push(&stream.push(id)?.unwrap_or_default()),
            };
            report(Event::Token {
                id,
                text: passed.text,
                logprob: logprobs.map(|top| logprob(row, id, top)),
            });
            if passed.stopped {
                return Ok((String::new(), FinishReason::Stop));
            }
            if made < params.max_tokens.min(room) {
                rows = self.forward(&mut cache, &[id])?;
            }
        };
        let passed = stops.push(&stream.finish()?.unwrap_or_default());
        let held = match passed.stopped {
            true => String::new(),
            false => stops.finish(),
        };
        Ok((passed.text + &held, reason))
    }
}

/// By the definition, in f64.
fn logprob(row: &[f32], id: u32, top: usize) -> TokenLogprob {
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = row.iter().map(|&x| (f64::from(x) - max).exp()).sum();
    let of = |id: u32| (f64::from(row[id as usize]) - max - sum.ln()) as f32;
    let mut ids: Vec<u32> = (0..row.len() as u32).collect();
    ids.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
    TokenLogprob {
        id,
        logprob: of(id),
        top: ids[..top].iter().map(|&id| (id, of(id))).collect(),
    }
}

impl Engine for NaiveEngine {
    fn submit(&mut self, request: Request) -> Result<RequestId, EngineError> {
        self.taken += 1;
        let id = RequestId::new(self.taken);
        self.line.push_back((id, request));
        Ok(id)
    }

    fn cancel(&mut self, id: RequestId) {
        self.line.retain(|(other, _)| *other != id);
    }

    fn step(&mut self, on_event: &mut dyn FnMut(RequestId, Event)) -> bool {
        if let Some((id, request)) = self.line.pop_front() {
            let done = self.run(&request, &mut |event| on_event(id, event));
            let (text, result) = match done {
                Ok((text, reason)) => (text, Ok(reason)),
                Err(error) => (String::new(), Err(error)),
            };
            let usage = Usage {
                prompt_tokens: request.prompt.len(),
                ..Usage::default()
            };
            on_event(
                id,
                Event::Finished {
                    text,
                    result,
                    usage,
                },
            );
        }
        !self.line.is_empty()
    }

    fn stats(&self) -> Stats {
        Stats {
            waiting: self.line.len(),
            ..Stats::default()
        }
    }
}
