//! The events of a chat, made of those of the engine.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::Stream;
use sparamx_engine::{Event, TokenLogprob, Tokenizer};

use super::event::{ChatEvent, Finish};
use crate::error::ApiError;
use crate::generate::head::Head;
use crate::generate::logprobs::TokenWriter;
use crate::generate::usage::Total;
use crate::generate::{Running, ends_unseen};
use crate::wire::openai::chat::ChatLogprob;
use crate::wire::openai::common::{Timings, Usage};

/// Events of the engine that are looked at before the first of what comes of them goes out. Text that came in the meantime
/// goes out as one piece.
const BATCH: usize = 64;

/// A chat that runs. Dropping it cancels it.
pub struct ChatStream {
    head: Head,
    running: Running,
    tokenizer: Arc<Tokenizer>,
    writer: TokenWriter,
    include_stop: bool,
    choices: Vec<Choice>,
    queue: VecDeque<ChatEvent>,
    ended: bool,
    prompt_tokens: usize,
    total: Total,
}

/// One of the texts.
#[derive(Default)]
struct Choice {
    /// Log probabilities of tokens whose text is still to come.
    held: Vec<ChatLogprob>,
}

/// What a stream needs to know of its request.
pub struct Setup {
    /// The fields of the answer.
    pub head: Head,
    /// Makes texts of tokens.
    pub tokenizer: Arc<Tokenizer>,
    /// How it writes them.
    pub writer: TokenWriter,
    /// See [`GenerateParams::include_stop`](sparamx_engine::GenerateParams::include_stop).
    pub include_stop: bool,
    /// Number of texts.
    pub n: usize,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
}

impl ChatStream {
    pub(super) fn new(setup: Setup, running: Running) -> Self {
        let mut choices = Vec::new();
        choices.resize_with(setup.n, Choice::default);
        Self {
            head: setup.head,
            running,
            tokenizer: setup.tokenizer,
            writer: setup.writer,
            include_stop: setup.include_stop,
            choices,
            queue: VecDeque::new(),
            ended: false,
            prompt_tokens: setup.prompt_tokens,
            total: Total::new(setup.prompt_tokens),
        }
    }

    /// The fields that all parts of the answer share.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Number of texts.
    pub fn choices(&self) -> usize {
        self.choices.len()
    }

    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// What it took so far, up to the tokens of the events that have come.
    pub fn usage(&self) -> Usage {
        self.total.usage()
    }

    /// The times so far, of texts that have ended.
    pub fn timings(&self) -> Timings {
        self.total.timings()
    }

    /// The next event; none after the last text has ended or the chat has failed.
    pub async fn next(&mut self) -> Option<ChatEvent> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`ChatStream::next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<ChatEvent>> {
        for _ in 0..BATCH {
            if self.ended {
                break;
            }
            match Pin::new(&mut self.running).poll_next(cx) {
                Poll::Ready(Some((index, event))) => self.take(index, event),
                Poll::Ready(None) => self.ended = true,
                Poll::Pending if self.queue.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        if self.queue.is_empty() && !self.ended {
            // All of it was held back: more may be there.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(self.queue.pop_front())
    }

    fn take(&mut self, index: usize, event: Event) {
        match event {
            Event::Prompt { .. } => {}
            Event::Token { text, logprob, .. } => {
                self.total.add_token();
                self.hold(index, logprob);
                if !text.is_empty() {
                    self.add_text(index, text);
                }
            }
            Event::Finished {
                text,
                result,
                stopped_by,
                ending,
                usage,
            } => {
                self.hold(index, ending);
                self.add_text(index, text);
                let unseen = ends_unseen(stopped_by.as_ref(), self.include_stop);
                self.total.add(&usage, unseen, index == 0);
                match result {
                    Ok(reason) => {
                        let reason = Finish::from(reason);
                        self.queue.push_back(ChatEvent::Finished {
                            index,
                            reason,
                            stopped_by,
                            usage,
                        });
                    }
                    Err(error) => self.fail(error.into()),
                }
            }
        }
    }

    /// Ends the chat.
    fn fail(&mut self, error: ApiError) {
        self.queue.push_back(ChatEvent::Failed(error));
        self.ended = true;
    }

    /// Keeps a log probability until there is text to send it with.
    fn hold(&mut self, index: usize, logprob: Option<TokenLogprob>) {
        if let Some(logprob) = logprob {
            let logprob = self.writer.chat(&self.tokenizer, &logprob);
            self.choices[index].held.push(logprob);
        }
    }

    fn add_text(&mut self, index: usize, text: String) {
        let logprobs = std::mem::take(&mut self.choices[index].held);
        if !text.is_empty() || !logprobs.is_empty() {
            self.add_content(index, text, logprobs);
        }
    }

    /// Adds to the content of a text: to the piece that waits, if nothing of the same text came after it.
    fn add_content(&mut self, index: usize, more: String, mut new: Vec<ChatLogprob>) {
        let waiting = self
            .queue
            .iter_mut()
            .rev()
            .find(|event| event.index() == Some(index));
        if let Some(ChatEvent::Content { text, logprobs, .. }) = waiting {
            text.push_str(&more);
            logprobs.append(&mut new);
        } else {
            self.queue.push_back(ChatEvent::Content {
                index,
                text: more,
                logprobs: new,
            });
        }
    }
}
