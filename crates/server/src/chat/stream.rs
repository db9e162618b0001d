//! The events of a chat, made of those of the engine.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::Stream;
use sparamx_engine::{Event, TokenLogprob, Tokenizer};

use super::event::{ChatEvent, Finish};
use super::output::Output;
use crate::error::ApiError;
use crate::generate::head::Head;
use crate::generate::logprobs::TokenWriter;
use crate::generate::usage::Total;
use crate::generate::{Running, ends_unseen};
use crate::tools::{OutputParser, Piece, ToolMode};
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
    output: Output,
    choices: Vec<Choice>,
    queue: VecDeque<ChatEvent>,
    ended: bool,
    prompt_tokens: usize,
    total: Total,
}

/// One of the texts.
struct Choice {
    /// Log probabilities of tokens whose text is still to come.
    held: Vec<ChatLogprob>,
    /// Splits the text; none: all of it is content.
    parser: Option<OutputParser>,
    /// Calls of tools so far.
    calls: usize,
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
    /// What is looked for in the texts.
    pub output: Output,
}

impl ChatStream {
    pub(super) fn new(setup: Setup, running: Running) -> Self {
        let mut choices = Vec::new();
        choices.resize_with(setup.n, || Choice {
            held: Vec::new(),
            parser: setup.output.parser(),
            calls: 0,
        });
        Self {
            head: setup.head,
            running,
            tokenizer: setup.tokenizer,
            writer: setup.writer,
            include_stop: setup.include_stop,
            output: setup.output,
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
                self.end_text(index, text);
                let unseen = ends_unseen(stopped_by.as_ref(), self.include_stop);
                self.total.add(&usage, unseen, index == 0);
                match result.map_err(ApiError::from).and_then(Finish::try_from) {
                    Ok(reason) => {
                        let reason = self.reason(index, reason);
                        self.queue.push_back(ChatEvent::Finished {
                            index,
                            reason,
                            stopped_by,
                        });
                    }
                    Err(error) => self.fail(error),
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
        match &mut self.choices[index].parser {
            None => self.add_content(index, text),
            Some(parser) => {
                let pieces = parser.push(&text);
                self.add_pieces(index, pieces);
            }
        }
    }

    /// Adds the last of a text.
    fn end_text(&mut self, index: usize, text: String) {
        if !text.is_empty() {
            self.add_text(index, text);
        }
        if let Some(parser) = &mut self.choices[index].parser {
            let pieces = parser.finish();
            self.add_pieces(index, pieces);
        }
        self.add_content(index, String::new());
    }

    fn add_pieces(&mut self, index: usize, pieces: Vec<Piece>) {
        let is_content = |piece: &Piece| matches!(piece, Piece::Content(_));
        if !pieces.is_empty() && !pieces.iter().any(is_content) {
            // The log probabilities of calls and thoughts have no text of their own.
            self.add_content(index, String::new());
        }
        for piece in pieces {
            let choice = &mut self.choices[index];
            let last = choice.calls.checked_sub(1);
            let shown = choice.calls <= 1 || self.output.parallel;
            match piece {
                Piece::Content(text) => self.add_content(index, text),
                Piece::Reasoning(text) if self.output.shows_reasoning => {
                    self.add(ChatEvent::Reasoning { index, text });
                }
                Piece::Reasoning(_) => {}
                Piece::CallStart { name, id } => {
                    choice.calls += 1;
                    let call = choice.calls - 1;
                    if call == 0 || self.output.parallel {
                        self.add(ChatEvent::ToolCall {
                            index,
                            call,
                            id,
                            name,
                        });
                    }
                }
                Piece::CallArguments(text) => {
                    if let Some(call) = last.filter(|_| shown) {
                        self.add(ChatEvent::ToolArguments { index, call, text });
                    }
                }
            }
        }
    }

    /// Adds to the content of a text, with the log probabilities that wait for it.
    fn add_content(&mut self, index: usize, text: String) {
        let logprobs = std::mem::take(&mut self.choices[index].held);
        if !text.is_empty() || !logprobs.is_empty() {
            self.add(ChatEvent::Content {
                index,
                text,
                logprobs,
            });
        }
    }

    /// Adds an event: to the one that waits, if it goes on with that and nothing of the same text came in between.
    fn add(&mut self, event: ChatEvent) {
        let index = event.index();
        let mut waiting = self.queue.iter_mut().rev();
        let waiting = waiting.find(|waiting| waiting.index() == index);
        let rest = match waiting {
            Some(waiting) => waiting.join(event),
            None => Some(event),
        };
        self.queue.extend(rest);
    }

    /// Why a text ended. A call that was not forced, or forced without a name, waits for an answer.
    fn reason(&self, index: usize, reason: Finish) -> Finish {
        let named = matches!(self.output.mode, ToolMode::Named(_));
        let parser = self.choices[index].parser.as_ref();
        let called = parser.is_some_and(OutputParser::has_calls);
        match reason {
            Finish::Stop if called && !named => Finish::ToolCalls,
            reason => reason,
        }
    }
}
