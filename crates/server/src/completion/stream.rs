//! The events of a completion, made of those of the engine.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::Stream;
use serde_json::Value;
use sparamx_engine::{Event, Tokenizer};

use super::choice::{Choice, Writer};
use super::prompts::Start;
use crate::chat::Finish;
use crate::error::ApiError;
use crate::generate::head::Head;
use crate::generate::logprobs::TokenWriter;
use crate::generate::usage::Total;
use crate::generate::{Running, ends_unseen, stop_reason};
use crate::wire::openai::common::{Timings, Usage};
use crate::wire::openai::completions::CompletionChoice;

/// Events of the engine that are looked at before the first of what comes of them goes out.
const BATCH: usize = 64;

/// What happens to the texts of a completion.
#[derive(Debug)]
pub enum CompletionEvent {
    /// What is new in a text.
    News(CompletionChoice),
    /// The completion ends, and not well.
    Failed(ApiError),
}

/// What a stream needs to know of its request.
pub struct Setup {
    /// The fields of the answer.
    pub head: Head,
    /// Makes texts of tokens.
    pub tokenizer: Arc<Tokenizer>,
    /// How it writes them.
    pub names: TokenWriter,
    /// See [`GenerateParams::show_special`](sparamx_engine::GenerateParams::show_special).
    pub show_special: bool,
    /// See [`GenerateParams::include_stop`](sparamx_engine::GenerateParams::include_stop).
    pub include_stop: bool,
    /// Log probabilities are part of the answer.
    pub logprobs: bool,
    /// The prompts are.
    pub echo: bool,
    /// Texts for each prompt.
    pub n: usize,
}

/// A completion that runs. Dropping it cancels it.
pub struct CompletionStream {
    setup: Setup,
    running: Running,
    choices: Vec<Choice>,
    /// Texts with something new, in the order in which it came.
    news: Vec<usize>,
    /// How those ended that did.
    ends: Vec<Option<(Finish, Option<Value>)>>,
    failure: Option<ApiError>,
    ended: bool,
    total: Total,
}

impl CompletionStream {
    pub(super) fn new(setup: Setup, starts: Vec<Start>, running: Running) -> Self {
        let total = Total::new(starts.iter().map(|start| start.ids.len()).sum());
        let mut choices = Vec::with_capacity(starts.len() * setup.n);
        for start in starts {
            for _ in 0..setup.n {
                let echo = setup.echo.then(|| start.clone());
                choices.push(Choice::new(echo, setup.logprobs));
            }
        }
        Self {
            ends: choices.iter().map(|_| None).collect(),
            setup,
            running,
            choices,
            news: Vec::new(),
            failure: None,
            ended: false,
            total,
        }
    }

    /// The fields that all parts of the answer share.
    pub fn head(&self) -> &Head {
        &self.setup.head
    }

    /// Number of texts.
    pub fn choices(&self) -> usize {
        self.choices.len()
    }

    /// What it took so far, up to the tokens of the events that have come.
    pub fn usage(&self) -> Usage {
        self.total.usage()
    }

    /// The times so far, of texts that have ended.
    pub fn timings(&self) -> Timings {
        self.total.timings()
    }

    /// The next event; none after the last text has ended or the completion has failed.
    pub async fn next(&mut self) -> Option<CompletionEvent> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`CompletionStream::next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<CompletionEvent>> {
        for _ in 0..BATCH {
            if self.ended {
                break;
            }
            match Pin::new(&mut self.running).poll_next(cx) {
                Poll::Ready(Some((index, event))) => self.take(index, event),
                Poll::Ready(None) => self.ended = true,
                Poll::Pending if self.news.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        if self.news.is_empty() && !self.ended {
            // All of it was held back: more may be there.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(self.pop())
    }

    fn pop(&mut self) -> Option<CompletionEvent> {
        if self.news.is_empty() {
            return self.failure.take().map(CompletionEvent::Failed);
        }
        let index = self.news.remove(0);
        let (text, logprobs) = self.choices[index].take();
        let (finish_reason, stop_reason) = match self.ends[index].take() {
            Some((reason, stop)) => (Some(reason.as_str()), stop),
            None => (None, None),
        };
        Some(CompletionEvent::News(CompletionChoice {
            index,
            text,
            logprobs,
            finish_reason,
            stop_reason,
        }))
    }

    fn take(&mut self, index: usize, event: Event) {
        let Setup {
            tokenizer,
            names,
            show_special,
            ..
        } = &self.setup;
        let writer = Writer {
            tokenizer,
            names: *names,
            show_special: *show_special,
        };
        let choice = &mut self.choices[index];
        match event {
            Event::Prompt { logprobs, .. } => choice.add_prompt(logprobs),
            Event::Token { text, logprob, .. } => {
                self.total.add_token();
                choice.add(writer, logprob, &text);
            }
            Event::Finished {
                text,
                result,
                stopped_by,
                ending,
                usage,
            } => {
                choice.end(writer, ending, &text);
                let unseen = ends_unseen(stopped_by.as_ref(), self.setup.include_stop);
                self.total
                    .add(&usage, unseen, index.is_multiple_of(self.setup.n));
                match result.map_err(ApiError::from).and_then(Finish::try_from) {
                    Ok(reason) => self.ends[index] = Some((reason, stop_reason(stopped_by))),
                    Err(error) => {
                        self.failure = Some(error);
                        self.ended = true;
                    }
                }
            }
        }
        let is_new = self.choices[index].has_news() || self.ends[index].is_some();
        if is_new && !self.news.contains(&index) {
            self.news.push(index);
        }
    }
}
