//! The engine: requests, schedule, model and pages together.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use sparamx_kernels::Runtime;
use sparamx_model::{Input, Model, ModelError, RopeScaling, Workspace};

use super::active::Active;
use super::api::{Engine, Event, MAX_ALTERNATIVES, Request, RequestId, Stats};
use super::schedule::{Pending, Requests, Schedule, Turn};
use super::speculate::{MAX_DRAFT, Offer, StepCost, choose};
use crate::{EngineError, KvOptions, PagePool, Tokenizer};

/// Logits that are computed for one request in a step, at most: 64 MiB of them. The vocabulary decides how many rows that is.
const MOST_LOGITS: usize = 1 << 24;
/// From so many logits on, threads share the work of choosing tokens: some 10 us for one of them.
const SHARED_LOGITS: usize = 1 << 14;

/// Whether tokens are guessed from the text so far and verified together. The text is the same either way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Speculation {
    /// As far as it pays, by the guesses that were right and by the time that steps take.
    #[default]
    Auto,
    /// As many guesses as there can be.
    Always,
    /// Never.
    Off,
}

/// How an engine works.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineOptions {
    /// Tokens of a request at most, prompt and text together; none: as many as the model was made for.
    pub context: Option<usize>,
    /// Requests that run at a time, at most.
    pub max_running: usize,
    /// Tokens that go through the model in a step, about: all that decode, and prompts with what is left.
    pub step_tokens: usize,
    /// Guesses.
    pub speculation: Speculation,
    /// Keys and values.
    pub kv: KvOptions,
}

impl Default for EngineOptions {
    /// 64 requests at a time, 512 tokens a step: enough rows for the kernels to be at full speed, few enough that buffers stay
    /// small and those that decode do not wait long.
    fn default() -> Self {
        Self {
            context: None,
            max_running: 64,
            step_tokens: 512,
            speculation: Speculation::default(),
            kv: KvOptions::default(),
        }
    }
}

/// Runs requests as one batch: all that decode in every step, and prompts piece by piece beside them.
pub struct BatchEngine<'a> {
    rt: &'a Runtime,
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    pool: PagePool,
    options: EngineOptions,
    /// Tokens that a request may have: what the model allows and the pool holds.
    room: usize,
    schedule: Schedule,
    requests: BTreeMap<RequestId, Active<'a>>,
    taken: u64,
    /// What happened between steps.
    told: Vec<(RequestId, Event)>,
    workspace: Workspace,
    cost: StepCost,
    stats: Stats,
}

impl<'a> BatchEngine<'a> {
    /// An engine without requests. Memory for keys and values is taken as they come.
    ///
    /// # Errors
    /// Options outside their range; a context that is less than 2 tokens or more than the model was made for.
    pub fn new(
        rt: &'a Runtime,
        model: &'a Model,
        tokenizer: &'a Tokenizer,
        options: EngineOptions,
    ) -> Result<Self, EngineError> {
        let longest = model.config().context_length();
        let context = options.context.unwrap_or(longest);
        if !(2..=longest).contains(&context) {
            let allowed = format!("2 to {longest}, what the model was made for");
            return Err(EngineError::parameter("context", context, allowed));
        }
        for (name, value) in [
            ("max_running", options.max_running),
            ("step_tokens", options.step_tokens),
        ] {
            if value == 0 {
                return Err(EngineError::parameter(name, 0, "1 or more"));
            }
        }
        let speculation = match model.config().rope_scaling {
            // How a token is rotated depends on the pass it is in, and with guesses that would be another one.
            RopeScaling::Dynamic { .. } => Speculation::Off,
            _ => options.speculation,
        };
        let pool = PagePool::new(model.config(), &options.kv)?;
        Ok(Self {
            room: most_tokens(&pool, context, options.step_tokens),
            schedule: Schedule::new(options.max_running, options.step_tokens),
            rt,
            model,
            tokenizer,
            pool,
            options: EngineOptions {
                context: Some(context),
                speculation,
                ..options
            },
            requests: BTreeMap::new(),
            taken: 0,
            told: Vec::new(),
            workspace: Workspace::new(),
            cost: StepCost::default(),
            stats: Stats::default(),
        })
    }

    /// Tokens that a request may have, prompt and text together: what was asked for, or less if the pool does not hold it.
    pub fn context(&self) -> usize {
        self.room
    }

    /// The memory of keys and values.
    pub fn pool(&self) -> &PagePool {
        &self.pool
    }

    fn check(&self, request: &Request) -> Result<(), EngineError> {
        let Request {
            prompt,
            params,
            logprobs,
            prompt_logprobs,
        } = request;
        let vocab_size = self.model.config().vocab_size;
        if params.max_tokens == 0 && prompt_logprobs.is_none() {
            let allowed = "1 or more, and 0 if prompt_logprobs are asked for";
            return Err(EngineError::parameter("max_tokens", 0, allowed));
        }
        for (name, count) in [("logprobs", logprobs), ("prompt_logprobs", prompt_logprobs)] {
            if let Some(count) = *count
                && count > MAX_ALTERNATIVES
            {
                let allowed = format!("0 to {MAX_ALTERNATIVES}");
                return Err(EngineError::parameter(name, count, allowed));
            }
        }
        if prompt.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        if let Some(&token) = prompt.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(ModelError::TokenOutOfRange { token, vocab_size }.into());
        }
        let tokens = prompt.len() + usize::from(params.max_tokens > 0);
        let context = self.options.context.unwrap_or(self.room);
        if tokens > context {
            return Err(EngineError::PromptTooLong {
                prompt: prompt.len(),
                context,
            });
        }
        if tokens > self.room {
            let usage = self.pool.usage();
            return Err(EngineError::PoolFull {
                needed_bytes: self.pool.sequence_bytes(tokens, self.options.step_tokens),
                free_bytes: usage.budget_bytes - usage.in_use_bytes,
                budget_bytes: usage.budget_bytes,
            });
        }
        Ok(())
    }

    /// Decides what this step runs, oldest request first, and makes it ready. One that nobody can give memory fails.
    fn plan(&mut self) -> Vec<Turn> {
        let mut desk = Desk {
            requests: &mut self.requests,
            running: self.schedule.running().to_vec(),
            pool: &self.pool,
            step_tokens: self.options.step_tokens,
            most_logits: (MOST_LOGITS / self.model.config().vocab_size).max(1),
            preemptions: 0,
            refusal: None,
        };
        let turns = self.schedule.step(&mut desk);
        let refusal = desk.refusal;
        self.stats.preemptions += desk.preemptions;
        if turns.is_empty()
            && let [id] = *self.schedule.running()
            && let (Some(request), Some(error)) = (self.requests.get_mut(&id), refusal)
        {
            request.fail(error);
        }
        let decodes = turns.iter().all(|turn| turn.tokens == 1);
        let drafts = match decodes {
            true => self.drafts(&turns),
            // Where prompts are run, time goes with the rows.
            false => vec![0; turns.len()],
        };
        for (turn, drafts) in turns.iter().zip(drafts) {
            if let Some(request) = self.requests.get_mut(&turn.id) {
                request.prepare(turn.tokens, drafts);
            }
        }
        turns
    }

    /// How many guesses each of those that decode takes.
    fn drafts(&mut self, turns: &[Turn]) -> Vec<usize> {
        if self.options.speculation == Speculation::Off {
            return vec![0; turns.len()];
        }
        let offer = |turn: &Turn| {
            let request = self.requests.get_mut(&turn.id);
            request.and_then(Active::offer).unwrap_or(Offer {
                share: 0.0,
                most: 0,
            })
        };
        let offers: Vec<Offer> = turns.iter().map(offer).collect();
        match self.options.speculation {
            Speculation::Always => offers
                .iter()
                .map(|offer| offer.most.min(MAX_DRAFT))
                .collect(),
            _ => choose(turns.len(), &offers, &self.cost),
        }
    }

    /// Runs those that take part. If that fails, one by one, so that only those fail that have to.
    fn run(&mut self, turns: &[Turn]) {
        if self.run_together(turns).is_ok() {
            return;
        }
        for turn in turns {
            if let Err(error) = self.run_together(std::slice::from_ref(turn))
                && let Some(request) = self.requests.get_mut(&turn.id)
            {
                request.fail(error);
            }
        }
    }

    fn run_together(&mut self, turns: &[Turn]) -> Result<(), EngineError> {
        // Both are in the order of ids.
        let mut wanted = turns.iter().map(|turn| turn.id).peekable();
        let mut parts: Vec<&mut Active<'a>> = Vec::with_capacity(turns.len());
        let Some(first) = turns.first() else {
            return Ok(());
        };
        for (&id, request) in self.requests.range_mut(first.id..) {
            if wanted.next_if_eq(&id).is_some() {
                parts.push(request);
            }
        }
        let rows: Vec<usize> = parts.iter().map(|part| part.logits_rows()).collect();
        let begin = Instant::now();
        let mut inputs: Vec<Input<'_>> = parts.iter_mut().filter_map(|part| part.input()).collect();
        let logits = self
            .model
            .forward(self.rt, &mut inputs, &mut self.workspace)?;
        drop(inputs);
        let forward = begin.elapsed();
        advance(self.rt, parts, &rows, logits);
        self.stats.forward_time += forward;
        self.stats.sampling_time += begin.elapsed() - forward;
        Ok(())
    }

    /// Takes down what requests tell, and lets go of those that have ended.
    fn listen(&mut self) {
        for id in self.schedule.running().to_vec() {
            if let Some(request) = self.requests.get_mut(&id) {
                self.told.extend(request.events().map(|event| (id, event)));
                if request.has_ended() {
                    self.end(id);
                }
            }
        }
    }

    /// Lets go of a request.
    fn end(&mut self, id: RequestId) {
        self.schedule.remove(id);
        if let Some(request) = self.requests.remove(&id) {
            let usage = request.usage();
            self.stats.tokens += usage.tokens as u64;
            self.stats.drafted += usage.drafted as u64;
            self.stats.accepted += usage.accepted as u64;
            self.told.push((id, request.finish()));
        }
    }
}

impl Engine for BatchEngine<'_> {
    fn submit(&mut self, request: Request) -> Result<RequestId, EngineError> {
        self.check(&request)?;
        let speculates = self.options.speculation != Speculation::Off;
        let active = Active::new(request, self.room, speculates, self.tokenizer)?;
        self.taken += 1;
        let id = RequestId::new(self.taken);
        self.requests.insert(id, active);
        self.schedule.push(id);
        Ok(id)
    }

    fn cancel(&mut self, id: RequestId) {
        self.end(id);
    }

    fn step(&mut self, on_event: &mut dyn FnMut(RequestId, Event)) -> bool {
        let begin = Instant::now();
        let turns = self.plan();
        if !turns.is_empty() {
            self.run(&turns);
            self.stats.steps += 1;
        }
        let time = begin.elapsed();
        let mut rows = 0;
        for turn in &turns {
            if let Some(request) = self.requests.get_mut(&turn.id) {
                rows += request.rows();
                self.stats.prefill_tokens += request.end_step(time) as u64;
            }
        }
        if turns.iter().all(|turn| turn.tokens == 1) && rows > 0 {
            self.cost.observe(rows, time.as_secs_f64());
        }
        self.listen();
        // What was cancelled between steps comes where it belongs.
        self.told.sort_by_key(|&(id, _)| id);
        self.stats.step_time += begin.elapsed();
        for (id, event) in self.told.drain(..) {
            on_event(id, event);
        }
        !self.requests.is_empty()
    }

    fn stats(&self) -> Stats {
        let running = self.requests.values().map(Active::usage);
        let mut stats = self.stats;
        for usage in running {
            stats.tokens += usage.tokens as u64;
            stats.drafted += usage.drafted as u64;
            stats.accepted += usage.accepted as u64;
        }
        Stats {
            waiting: self.schedule.waiting(),
            running: self.schedule.running().len(),
            pool: self.pool.usage(),
            ..stats
        }
    }
}

/// Gives each request its logits, and lets it choose its tokens. Threads share the requests: none has to do with another.
fn advance(rt: &Runtime, parts: Vec<&mut Active<'_>>, rows: &[usize], logits: &[f32]) {
    let total: usize = rows.iter().sum();
    let vocab_size = logits.len().checked_div(total).unwrap_or(1);
    let mut rest = logits;
    let mut jobs = Vec::with_capacity(parts.len());
    for (part, &rows) in parts.into_iter().zip(rows) {
        let (own, others) = rest.split_at(rows * vocab_size);
        rest = others;
        jobs.push((part, own));
    }
    if jobs.len() < 2 || logits.len() < SHARED_LOGITS || rt.threads() < 2 {
        for (part, own) in jobs {
            part.advance(own, vocab_size);
        }
        return;
    }
    let jobs: Vec<_> = jobs.into_iter().map(Mutex::new).collect();
    rt.pool().run(&|thread| {
        for job in jobs.iter().skip(thread).step_by(rt.threads()) {
            let mut job = job.lock().unwrap_or_else(PoisonError::into_inner);
            let (part, own) = &mut *job;
            part.advance(own, vocab_size);
        }
    });
}

/// The most tokens, up to `context`, of a sequence that the pool holds.
fn most_tokens(pool: &PagePool, context: usize, step_tokens: usize) -> usize {
    let budget = pool.usage().budget_bytes;
    let fits = |tokens: usize| pool.sequence_bytes(tokens, step_tokens) <= budget;
    let (mut low, mut high) = (0, context + 1);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        match fits(middle) {
            true => low = middle,
            false => high = middle,
        }
    }
    low
}

/// What the schedule asks, answered.
struct Desk<'e, 'a> {
    requests: &'e mut BTreeMap<RequestId, Active<'a>>,
    /// Those that were admitted, this step's included.
    running: Vec<RequestId>,
    pool: &'e PagePool,
    step_tokens: usize,
    most_logits: usize,
    preemptions: u64,
    /// What the last refused reservation said.
    refusal: Option<EngineError>,
}

impl Desk<'_, '_> {
    /// Bytes that a request will want beyond those it has, to get to its next token.
    fn wants(&self, request: &Active<'_>, has_bytes: u64) -> u64 {
        self.pool
            .sequence_bytes(request.len() + 1, self.step_tokens)
            .saturating_sub(has_bytes)
    }
}

impl Requests for Desk<'_, '_> {
    fn admit(&mut self, id: RequestId, alone: bool) -> bool {
        let Some(request) = self.requests.get(&id) else {
            return false;
        };
        let cache = self.pool.resume(request.reusable());
        // What those that run are still to take is not free, though nobody has it yet.
        let promised: u64 = self
            .running
            .iter()
            .filter_map(|id| self.requests.get(id))
            .map(|other| self.wants(other, other.cache_bytes()))
            .sum();
        let usage = self.pool.usage();
        let free = usage.budget_bytes.saturating_sub(usage.in_use_bytes);
        if !alone && self.wants(request, cache.bytes()) + promised > free {
            return false;
        }
        if let Some(request) = self.requests.get_mut(&id) {
            request.admit(cache);
        }
        self.running.push(id);
        true
    }

    fn pending(&self, id: RequestId) -> Pending {
        match self.requests.get(&id) {
            Some(request) => request.pending(self.most_logits),
            None => unreachable!("request {id} runs and is gone"),
        }
    }

    fn reserve(&mut self, id: RequestId, tokens: usize) -> bool {
        match self.requests.get_mut(&id).map(|r| r.reserve(tokens)) {
            Some(Err(error)) => {
                self.refusal = Some(error);
                false
            }
            _ => true,
        }
    }

    fn preempt(&mut self, id: RequestId) {
        if let Some(request) = self.requests.get_mut(&id) {
            request.preempt();
        }
        self.running.retain(|&other| other != id);
        self.preemptions += 1;
    }
}
