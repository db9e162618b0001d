//! The engine: requests, schedule, model and pages together.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use sparamx_kernels::Runtime;
use sparamx_model::{Input, Model, RopeScaling, Workspace};

use super::active::Active;
use super::api::{Engine, Event, Request, RequestId, Stats, StepReport};
use super::intake::Intake;
use super::pace::Pace;
use super::schedule::{Schedule, Turn};
use super::speculate::{MAX_DRAFT, Offer, StepCost, choose};
use super::view::View;
use crate::{EngineError, KvOptions, Loaded, PagePool};

/// Logits that are computed for one request in a step, at most: 64 MiB of them. The vocabulary decides how many rows that is.
const MOST_LOGITS: usize = 1 << 24;
/// From so many logits on, threads share the work of choosing tokens: some 10 us for one of them.
const SHARED_LOGITS: usize = 1 << 14;

/// Whether draft tokens are taken from the text so far and verified together. The text is the same either way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Speculation {
    /// As far as it pays, by the share of drafts that are accepted and by the time that steps take.
    #[default]
    Auto,
    /// As many draft tokens as there can be.
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
    /// Prompts take fewer tokens of a step where those that decode would wait long: a step becomes about twice as long as
    /// without prompts. How a prompt is cut depends on times then; what comes out does not.
    pub paced: bool,
    /// Draft tokens.
    pub speculation: Speculation,
    /// Keys and values.
    pub kv: KvOptions,
}

impl Default for EngineOptions {
    /// 64 requests at a time, 512 tokens a step: enough rows for the kernels to be at full speed, few enough that buffers stay
    /// small. Paced.
    fn default() -> Self {
        Self {
            context: None,
            max_running: 64,
            step_tokens: 512,
            paced: true,
            speculation: Speculation::default(),
            kv: KvOptions::default(),
        }
    }
}

/// Runs requests as one batch: all that decode in every step, and prompts piece by piece beside them.
pub struct BatchEngine {
    runtime: Arc<Runtime>,
    model: Arc<Model>,
    intake: Intake,
    options: EngineOptions,
    schedule: Schedule,
    requests: BTreeMap<RequestId, Active>,
    submitted: u64,
    /// Events that the next step reports.
    events: Vec<(RequestId, Event)>,
    workspace: Workspace,
    cost: StepCost,
    pace: Pace,
    stats: Stats,
    last_step: Option<StepReport>,
}

impl BatchEngine {
    /// An engine without requests. Memory for keys and values is taken as they come.
    ///
    /// # Errors
    /// Options outside their range; a context that is less than 2 tokens or more than the model was made for.
    pub fn new(loaded: &Loaded, mut options: EngineOptions) -> Result<Self, EngineError> {
        let config = loaded.model.config();
        let longest = config.context_length();
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
        if let RopeScaling::Dynamic { .. } = config.rope_scaling {
            // How a token is rotated depends on the pass it is in, and with draft tokens that would be another one.
            options.speculation = Speculation::Off;
        }
        let intake = Intake::new(
            Arc::clone(&loaded.tokenizer),
            PagePool::new(config, &options.kv)?,
            config,
            (context, options.step_tokens),
            options.speculation != Speculation::Off,
        );
        Ok(Self {
            runtime: Arc::clone(&loaded.runtime),
            model: Arc::clone(&loaded.model),
            intake,
            schedule: Schedule::new(options.max_running, options.step_tokens),
            options,
            requests: BTreeMap::new(),
            submitted: 0,
            events: Vec::new(),
            workspace: Workspace::new(),
            cost: StepCost::default(),
            pace: Pace::default(),
            stats: Stats::default(),
            last_step: None,
        })
    }

    /// Tokens that a request may have, prompt and text together: what was asked for, or less if the pool does not hold it.
    pub fn context(&self) -> usize {
        self.intake.room()
    }

    /// The memory of keys and values.
    pub fn pool(&self) -> &PagePool {
        &self.intake.pool
    }

    /// What checks requests, for a thread of its own.
    pub(crate) fn intake(&self) -> &Intake {
        &self.intake
    }

    /// Takes in a request that [`Intake::take`] has made ready.
    pub(crate) fn enqueue(&mut self, request: Active) -> RequestId {
        self.submitted += 1;
        let id = RequestId::new(self.submitted);
        self.requests.insert(id, request);
        self.schedule.push(id);
        id
    }

    /// Whether one more request would be looked at now: fewer run than may, and none waits.
    pub(crate) fn has_room(&self) -> bool {
        self.schedule.has_room()
    }

    /// Admits as many of those that wait as can run, without a step.
    pub(crate) fn admit(&mut self) {
        self.with_view(|schedule, view| schedule.admit(view));
    }

    /// What the last step ran; none if that was nothing.
    pub fn last_step(&self) -> Option<StepReport> {
        self.last_step
    }

    /// Lets the schedule work on the requests. Returns why memory was refused, too, if it was.
    fn with_view<T>(
        &mut self,
        work: impl FnOnce(&mut Schedule, &mut View<'_>) -> T,
    ) -> (T, Option<EngineError>) {
        let mut view = View {
            running: self.schedule.running().to_vec(),
            requests: &mut self.requests,
            pool: &self.intake.pool,
            step_tokens: self.options.step_tokens,
            most_logits: (MOST_LOGITS / self.model.config().vocab_size).max(1),
            beside: if self.options.paced {
                self.pace.tokens()
            } else {
                usize::MAX
            },
            preemptions: 0,
            prompt_tokens: 0,
            cached_tokens: 0,
            refusal: None,
        };
        let result = work(&mut self.schedule, &mut view);
        self.stats.preemptions += view.preemptions;
        self.stats.prompt_tokens += view.prompt_tokens;
        self.stats.cached_tokens += view.cached_tokens;
        (result, view.refusal)
    }

    /// Decides what this step runs, oldest request first, and makes it ready. One that nobody can give memory fails.
    fn plan(&mut self) -> Vec<Turn> {
        let (turns, refusal) = self.with_view(|schedule, view| schedule.step(view));
        if turns.is_empty()
            && let [id] = *self.schedule.running()
            && let (Some(request), Some(error)) = (self.requests.get_mut(&id), refusal)
        {
            request.fail(error);
        }
        let decodes = turns.iter().all(|turn| turn.tokens == 1);
        let drafts = if decodes {
            self.drafts(&turns)
        } else {
            // Where prompts are run, time goes with the rows.
            vec![0; turns.len()]
        };
        for (turn, drafts) in turns.iter().zip(drafts) {
            if let Some(request) = self.requests.get_mut(&turn.id) {
                request.prepare(turn.tokens, drafts);
            }
        }
        turns
    }

    /// How many draft tokens each of those that decode takes.
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
        let mut parts: Vec<&mut Active> = Vec::with_capacity(turns.len());
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
            .forward(&self.runtime, &mut inputs, &mut self.workspace)?;
        drop(inputs);
        let forward = begin.elapsed();
        advance(&self.runtime, parts, &rows, logits);
        self.stats.forward_time += forward;
        self.stats.sampling_time += begin.elapsed() - forward;
        Ok(())
    }

    /// Learns from the time of a step.
    fn observe(&mut self, turns: &[Turn], rows: usize, seconds: f64) {
        let decoding = turns.iter().filter(|turn| turn.tokens == 1).count();
        if decoding == 0 {
            return;
        }
        if decoding == turns.len() {
            self.cost.observe(rows, seconds);
            self.pace.decoded(seconds);
        } else {
            let plain = self.cost.curve().estimate(decoding);
            self.pace.mixed(rows - decoding, seconds, plain);
        }
    }

    /// Collects the events of the running requests, and lets go of those that have ended.
    fn collect(&mut self) {
        for id in self.schedule.running().to_vec() {
            if let Some(request) = self.requests.get_mut(&id) {
                self.events
                    .extend(request.events().map(|event| (id, event)));
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
            self.stats.finished.count(request.result());
            self.events.push((id, request.finish()));
        }
    }
}

impl Engine for BatchEngine {
    fn submit(&mut self, request: Request) -> Result<RequestId, EngineError> {
        let request = self.intake.take(request)?;
        Ok(self.enqueue(request))
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
                self.stats.drafts += u64::from(request.took_drafts());
                self.stats.prefill_tokens += request.end_step(time) as u64;
            }
        }
        self.observe(&turns, rows, time.as_secs_f64());
        self.stats.rows += rows as u64;
        self.collect();
        // Requests cancelled between steps come in the order of ids too.
        self.events.sort_by_key(|&(id, _)| id);
        let time = begin.elapsed();
        self.stats.step_time += time;
        self.last_step = (!turns.is_empty()).then_some(StepReport {
            rows,
            requests: turns.len(),
            time,
        });
        for (id, event) in self.events.drain(..) {
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
            pool: self.intake.pool.usage(),
            ..stats
        }
    }
}

/// Gives each request its logits, and lets it choose its tokens. Threads share the requests, which are independent.
fn advance(rt: &Runtime, parts: Vec<&mut Active>, rows: &[usize], logits: &[f32]) {
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
