//! One request from the moment it is taken in to its last event.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sparamx_kernels::attention::PAGE_TOKENS;
use sparamx_model::{Input, KvCache, Want};

use super::api::{Event, FinishReason, GenerateParams, Request, StoppedBy, TokenLogprob, Usage};
use super::lookup::Lookup;
use super::schedule::Pending;
use super::speculate::{Acceptance, MAX_DRAFT, Offer};
use crate::logprobs::log_probabilities;
use crate::writer::TextWriter;
use crate::{EngineError, PagedCache, Sampler, Tokenizer};

/// A request that has not ended.
pub(crate) struct Active {
    /// Prompt and new tokens.
    ids: Vec<u32>,
    prompt_tokens: usize,
    /// New tokens at most, and why there are no more.
    most: (usize, FinishReason),
    /// Nothing ends the text before so many new tokens.
    least: usize,
    ends: Ends,
    logprobs: Option<usize>,
    prompt_logprobs: Option<usize>,
    sampler: Sampler,
    writer: TextWriter,
    tenant: u64,
    cache_salt: Option<String>,
    submitted: Instant,
    /// Keys and values, while it is admitted.
    cache: Option<PagedCache>,
    /// Tokens of the prompt that events have reported. Preemption does not take them back.
    reported: usize,
    /// Tokens of the prompt, from its beginning, whose logits have been used.
    scored: usize,
    drafts: Option<Drafts>,
    /// The tokens that go through the model in this step, draft tokens included.
    feed: Vec<u32>,
    /// How many of them are draft tokens.
    drafted: usize,
    /// Whether the first token was still to come when this step began.
    prefills: bool,
    usage: Usage,
    /// What happened in this step.
    events: Vec<Event>,
    result: Option<Result<FinishReason, EngineError>>,
    stopped_by: Option<StoppedBy>,
    /// The log probability of the token that ended the text.
    ending: Option<TokenLogprob>,
}

/// What ends the text of a request.
struct Ends {
    /// The model's own ids; none if they are ignored.
    eos: Vec<u32>,
    /// Those of the request, and its stop strings.
    tokens: Vec<u32>,
    strings: Vec<String>,
    /// The last token is part of the text.
    included: bool,
}

impl Ends {
    fn new(params: &mut GenerateParams, tokenizer: &Tokenizer) -> Self {
        Self {
            eos: if params.ignore_eos {
                Vec::new()
            } else {
                tokenizer.eos().to_vec()
            },
            tokens: std::mem::take(&mut params.stop_token_ids),
            strings: std::mem::take(&mut params.stop),
            included: params.include_stop,
        }
    }

    /// What `id` ends, if it does.
    fn by(&self, id: u32) -> Option<StoppedBy> {
        if self.eos.contains(&id) {
            Some(StoppedBy::Eos(id))
        } else if self.tokens.contains(&id) {
            Some(StoppedBy::Token(id))
        } else {
            None
        }
    }

    /// All ids that end the text.
    fn ids(&self) -> Vec<u32> {
        [&self.eos[..], &self.tokens].concat()
    }
}

/// What speculation knows of a request.
#[derive(Default)]
struct Drafts {
    lookup: Lookup,
    acceptance: Acceptance,
}

impl Active {
    /// Takes in a request whose prompt and new tokens may be up to `room` together; the prompt is no more.
    ///
    /// # Errors
    /// Sampling parameters or stop strings that cannot be.
    pub fn new(
        request: Request,
        room: usize,
        speculates: bool,
        tokenizer: &Arc<Tokenizer>,
    ) -> Result<Self, EngineError> {
        let Request {
            prompt,
            mut params,
            logprobs,
            prompt_logprobs,
            processor,
            tenant,
            cache_salt,
        } = request;
        let room = room - prompt.len();
        let writer = TextWriter::new(tokenizer, &prompt, &params)?;
        Ok(Self {
            prompt_tokens: prompt.len(),
            most: if params.max_tokens <= room {
                (params.max_tokens, FinishReason::Length)
            } else {
                (room, FinishReason::Context)
            },
            least: params.min_tokens,
            ends: Ends::new(&mut params, tokenizer),
            logprobs,
            prompt_logprobs,
            sampler: Sampler::new(&params.sampling, &prompt)?.with_processor(processor),
            writer,
            tenant,
            cache_salt,
            submitted: Instant::now(),
            cache: None,
            reported: 0,
            scored: 0,
            drafts: speculates.then(Drafts::default),
            feed: Vec::new(),
            drafted: 0,
            prefills: true,
            usage: Usage {
                prompt_tokens: prompt.len(),
                ..Usage::default()
            },
            events: Vec::new(),
            result: None,
            stopped_by: None,
            ending: None,
            ids: prompt,
        })
    }

    /// Number of tokens so far, of the prompt and new.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// The tokens whose keys and values may come from the cache, all but the last of them: the text so far, unless logits of
    /// the prompt are wanted that are not there yet.
    pub fn reusable(&self) -> &[u32] {
        if self.wants_prompt_logits() {
            &self.ids[..=self.scored]
        } else {
            &self.ids
        }
    }

    /// Whose it is.
    pub fn tenant(&self) -> u64 {
        self.tenant
    }

    /// With whom it shares pages of the prefix cache.
    pub fn cache_salt(&self) -> Option<&str> {
        self.cache_salt.as_deref()
    }

    /// Whether its pages can be of use to a request with the same prompt: one is full before the last token.
    pub fn fills_a_page(&self) -> bool {
        self.prompt_tokens > PAGE_TOKENS
    }

    /// Bytes of its pages; none while it waits.
    pub fn cache_bytes(&self) -> u64 {
        self.cache.as_ref().map_or(0, PagedCache::bytes)
    }

    /// It runs from now on. Says whether it is the first time.
    pub fn admit(&mut self, cache: PagedCache) -> bool {
        let first = self.usage.preemptions == 0;
        if first {
            self.usage.cached_tokens = cache.len();
            self.usage.queue_time = self.submitted.elapsed();
        }
        self.cache = Some(cache);
        first
    }

    /// It gives its memory back.
    pub fn preempt(&mut self) {
        self.cache = None;
        self.usage.preemptions += 1;
    }

    /// What has to run before the next token can be chosen; at most `most_logits` rows of logits may come of it.
    pub fn pending(&self, most_logits: usize) -> Pending {
        let done = self.done();
        Pending {
            done,
            tokens: self.ids.len() - done,
            most: if self.wants_prompt_logits() {
                most_logits
            } else {
                usize::MAX
            },
        }
    }

    /// Gets memory for so many tokens more.
    ///
    /// # Errors
    /// As [`PagedCache::reserve`].
    pub fn reserve(&mut self, tokens: usize) -> Result<(), EngineError> {
        match &mut self.cache {
            Some(cache) => cache.reserve(tokens),
            None => Ok(()),
        }
    }

    /// Draft tokens that it could take in a step in which it decodes.
    pub fn offer(&mut self) -> Option<Offer> {
        let done = self.done();
        let left = self.most.0.saturating_sub(self.usage.tokens + 1);
        let drafts = self.drafts.as_mut()?;
        drafts.lookup.extend(&self.ids);
        let draft = drafts.lookup.draft()?;
        // No draft token fills a page, so that a page that is full holds text. The last token needs not go through the model.
        let in_page = (PAGE_TOKENS - 2).saturating_sub(done % PAGE_TOKENS);
        Some(Offer {
            share: drafts.acceptance.share(draft.order),
            most: MAX_DRAFT.min(in_page).min(left),
        })
    }

    /// Makes the next `tokens` tokens ready to go through the model, and up to `count` draft tokens after them.
    pub fn prepare(&mut self, tokens: usize, count: usize) {
        let done = self.done();
        self.feed.clear();
        self.feed.extend_from_slice(&self.ids[done..done + tokens]);
        let draft = self.drafts.as_ref().and_then(|d| d.lookup.draft());
        self.drafted = 0;
        self.prefills = self.usage.tokens == 0;
        if let Some(draft) = draft
            && count > 0
            && self.reserve(tokens + count).is_ok()
        {
            let ids = &self.ids;
            self.feed
                .extend((0..count).map(|index| draft.token(ids, index)));
            self.drafted = count;
        }
    }

    /// What goes through the model in this step; nothing if it is not admitted.
    pub fn input(&mut self) -> Option<Input<'_>> {
        let logits = self.want();
        let cache = self.cache.as_mut()?;
        Some(Input {
            tokens: &self.feed,
            cache,
            logits,
        })
    }

    /// Rows of this step.
    pub fn rows(&self) -> usize {
        self.feed.len()
    }

    /// Rows of logits that come of this step. Only before it ran.
    pub fn logits_rows(&self) -> usize {
        match self.want() {
            Want::All => self.feed.len(),
            Want::Last => 1,
            Want::None => 0,
        }
    }

    /// Takes the logits of the step, which has run: `[logits_rows, vocab_size]`. Chooses tokens and records what happened.
    pub fn advance(&mut self, logits: &[f32], vocab_size: usize) {
        let rows: Vec<&[f32]> = logits.chunks_exact(vocab_size).collect();
        if let Err(error) = self.take(&rows) {
            self.fail(error);
        }
    }

    /// Something went wrong.
    pub fn fail(&mut self, error: EngineError) {
        self.result = Some(Err(error));
    }

    /// What happened since the last call.
    pub fn events(&mut self) -> impl Iterator<Item = Event> {
        self.events.drain(..)
    }

    /// Whether it has come to its end.
    pub fn has_ended(&self) -> bool {
        self.result.is_some()
    }

    /// Records the time of a step in which it took part. Returns how many tokens went through the model that were there before.
    pub fn end_step(&mut self, time: Duration) -> usize {
        let known = self.feed.len() - self.drafted;
        if self.prefills {
            self.usage.prefill_time += time;
            known
        } else {
            self.usage.decode_time += time;
            known - 1
        }
    }

    /// Whether it took draft tokens in this step.
    pub fn took_drafts(&self) -> bool {
        self.drafted > 0
    }

    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// How it ended: what has not come to its end was cancelled.
    pub fn result(&self) -> &Result<FinishReason, EngineError> {
        self.result.as_ref().unwrap_or(&Ok(FinishReason::Cancelled))
    }

    /// The last event. What has not come to its end was cancelled.
    pub fn finish(mut self) -> Event {
        if self.cache.is_none() && self.usage.preemptions == 0 {
            self.usage.queue_time = self.submitted.elapsed();
        }
        let last = match self.stopped_by {
            Some(StoppedBy::Eos(id) | StoppedBy::Token(id)) if self.ends.included => Some(id),
            _ => None,
        };
        let result = self.result.unwrap_or(Ok(FinishReason::Cancelled));
        let (text, result) = match (self.writer.finish(last), result) {
            (Ok(text), result) => (text, result),
            (Err(error), Ok(_)) => (String::new(), Err(error)),
            (Err(_), result) => (String::new(), result),
        };
        Event::Finished {
            text,
            result,
            stopped_by: self.stopped_by,
            ending: self.ending,
            usage: self.usage,
        }
    }

    fn done(&self) -> usize {
        self.cache.as_ref().map_or(0, |cache| cache.len())
    }

    fn wants_prompt_logits(&self) -> bool {
        self.prompt_logprobs.is_some() && self.scored + 1 < self.prompt_tokens
    }

    fn want(&self) -> Want {
        let end = self.done() + self.feed.len();
        if self.drafted > 0 || self.wants_prompt_logits() {
            Want::All
        } else if end == self.ids.len() && self.most.0 > 0 {
            Want::Last
        } else {
            Want::None
        }
    }

    fn take(&mut self, rows: &[&[f32]]) -> Result<(), EngineError> {
        let start = self.done() - self.feed.len();
        let known = self.done() - self.drafted;
        self.report_prompt(start, known, rows)?;
        let mut accepted = 0;
        if known == self.ids.len() {
            accepted = self.choose(&rows[rows.len() - rows.len().min(self.drafted + 1)..])?;
        }
        self.usage.drafted += self.drafted;
        self.usage.accepted += accepted;
        if let Some(cache) = &mut self.cache {
            cache.truncate(known + accepted);
            let named = cache.tokens().len();
            cache.commit(&self.ids[named..known + accepted]);
        }
        Ok(())
    }

    /// Reports how far the prompt is, and its log probabilities if they are wanted: `rows` are then those after positions
    /// `start ..`.
    fn report_prompt(
        &mut self,
        start: usize,
        known: usize,
        rows: &[&[f32]],
    ) -> Result<(), EngineError> {
        let done = known.min(self.prompt_tokens);
        if done <= self.reported {
            return Ok(());
        }
        let mut logprobs: Vec<TokenLogprob> = Vec::new();
        if let Some(top) = self.prompt_logprobs
            && self.wants_prompt_logits()
        {
            let end = done.min(self.prompt_tokens - 1);
            for position in self.scored..end {
                let row = rows[position - start];
                logprobs.push(log_probabilities(row, self.ids[position + 1], top)?);
            }
            self.scored = end;
        }
        self.reported = done;
        self.events.push(Event::Prompt {
            done,
            total: self.prompt_tokens,
            logprobs,
        });
        Ok(())
    }

    /// Chooses a token from each row of logits in turn, as long as the token chosen is the draft token that the next row
    /// follows. Returns how many draft tokens were accepted.
    fn choose(&mut self, rows: &[&[f32]]) -> Result<usize, EngineError> {
        if self.most.0 == 0 {
            self.result = Some(Ok(self.most.1));
            return Ok(0);
        }
        let drafts = self.feed.len() - self.drafted..self.feed.len();
        for (index, row) in rows.iter().enumerate() {
            let banned = if self.usage.tokens < self.least {
                self.ends.ids()
            } else {
                Vec::new()
            };
            let id = self.sampler.sample_except(row, &banned)?;
            let draft = self.feed[drafts.clone()].get(index).copied();
            self.observe(index, draft, id);
            if let Some(end) = self.ends.by(id) {
                self.ending = self.logprob(row, id)?;
                self.stop(end);
                return Ok(index);
            }
            self.push(id, row)?;
            if self.has_ended() || draft != Some(id) {
                return Ok(index);
            }
        }
        Ok(self.drafted)
    }

    /// The text ends here.
    fn stop(&mut self, by: StoppedBy) {
        self.stopped_by = Some(by);
        self.result = Some(Ok(FinishReason::Stop));
    }

    /// The log probability of a new token, if they are asked for.
    fn logprob(&self, row: &[f32], id: u32) -> Result<Option<TokenLogprob>, EngineError> {
        self.logprobs
            .map(|top| log_probabilities(row, id, top))
            .transpose()
    }

    /// Adds a token to the text.
    fn push(&mut self, id: u32, row: &[f32]) -> Result<(), EngineError> {
        self.ids.push(id);
        self.usage.tokens += 1;
        let logprob = self.logprob(row, id)?;
        let passed = self.writer.push(id, self.usage.tokens <= self.least)?;
        if let Some(index) = passed.stopped {
            self.stop(StoppedBy::Text(self.ends.strings[index].clone()));
        } else if self.usage.tokens == self.most.0 {
            self.result = Some(Ok(self.most.1));
        }
        self.events.push(Event::Token {
            id,
            text: passed.text,
            logprob,
        });
        Ok(())
    }

    /// Compares the token that was chosen with the draft token in its place, or with the one there would have been.
    fn observe(&mut self, index: usize, draft: Option<u32>, id: u32) {
        let Some(drafts) = &mut self.drafts else {
            return;
        };
        if index == 0 {
            drafts.lookup.extend(&self.ids);
        } else if draft.is_none() {
            return;
        }
        // The look-up has not moved on since the draft was made.
        if let Some(found) = drafts.lookup.draft() {
            let expected = draft.unwrap_or_else(|| found.token(&self.ids, 0));
            drafts.acceptance.observe(found.order, expected == id);
        }
    }
}
