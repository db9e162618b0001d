//! An engine that could not be simpler: one request at a time, nothing shared, no draft tokens.

use std::collections::VecDeque;

use sparamx_engine::{
    Engine, EngineError, Event, FinishReason, KvOptions, Loaded, LogitsProcessor, PagePool,
    PagedCache, Request, RequestId, Sampler, Stats, StopMatcher, StoppedBy, TokenLogprob, Usage,
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
        processor: Option<Box<dyn LogitsProcessor>>,
        report: &mut dyn FnMut(Event),
    ) -> Result<End, EngineError> {
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
        let tokenizer = &self.loaded.tokenizer;
        let mut sampler = Sampler::new(&params.sampling, prompt)?.with_processor(processor);
        let mut stream = match params.show_special {
            true => tokenizer.stream_all(prompt)?,
            false => tokenizer.stream(prompt)?,
        };
        let mut stops = StopMatcher::new(&params.stop)?.including(params.include_stop);
        let room = self.loaded.model.config().context_length() - prompt.len();
        let eos: &[u32] = match params.ignore_eos {
            true => &[],
            false => tokenizer.eos(),
        };
        let ends = [eos, &params.stop_token_ids].concat();
        let mut made = 0;
        let mut end = End::default();
        end.reason = loop {
            if made == params.max_tokens {
                break FinishReason::Length;
            }
            if made == room {
                break FinishReason::Context;
            }
            let row = rows.last().expect("a row");
            let early = made < params.min_tokens;
            let id = sampler.sample_except(row, if early { &ends } else { &[] })?;
            let scored = logprobs.map(|top| logprob(row, id, top));
            if ends.contains(&id) {
                end.ending = scored;
                end.by = Some(match eos.contains(&id) {
                    true => StoppedBy::Eos(id),
                    false => StoppedBy::Token(id),
                });
                if params.include_stop {
                    end.text = stream.push(id)?.unwrap_or_default();
                }
                break FinishReason::Stop;
            }
            made += 1;
            stops.ignore(made <= params.min_tokens);
            let passed = match tokenizer.special(id) {
                Some(name) if !params.show_special => stops.push_special(name),
                _ => stops.push(&stream.push(id)?.unwrap_or_default()),
            };
            report(Event::Token {
                id,
                text: passed.text,
                logprob: scored,
            });
            if let Some(index) = passed.stopped {
                end.by = Some(StoppedBy::Text(params.stop[index].clone()));
                end.reason = FinishReason::Stop;
                return Ok(end);
            }
            if made < params.max_tokens.min(room) {
                rows = self.forward(&mut cache, &[id])?;
            }
        };
        let passed = stops.push(&(end.text + &stream.finish()?.unwrap_or_default()));
        end.text = passed.text;
        if passed.stopped.is_none() {
            end.text += &stops.finish();
        }
        Ok(end)
    }
}

/// How a request ended.
struct End {
    text: String,
    reason: FinishReason,
    by: Option<StoppedBy>,
    ending: Option<TokenLogprob>,
}

impl Default for End {
    fn default() -> Self {
        Self {
            text: String::new(),
            reason: FinishReason::Cancelled,
            by: None,
            ending: None,
        }
    }
}

/// By the definition, in f64.
fn logprob(row: &[f32], id: u32, top: usize) -> TokenLogprob {
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = row.iter().map(|&x| (f64::from(x) - max).exp()).sum();
    let of = |id: u32| f64::from(row[id as usize]) - max - sum.ln();
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
        if let Some((id, mut request)) = self.line.pop_front() {
            let processor = request.processor.take();
            let done = self.run(&request, processor, &mut |event| on_event(id, event));
            let usage = Usage {
                prompt_tokens: request.prompt.len(),
                ..Usage::default()
            };
            let (end, result) = match done {
                Ok(end) => {
                    let reason = end.reason;
                    (end, Ok(reason))
                }
                Err(error) => (End::default(), Err(error)),
            };
            on_event(
                id,
                Event::Finished {
                    text: end.text,
                    result,
                    stopped_by: end.by,
                    ending: end.ending,
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
