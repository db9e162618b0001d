//! POST /v1/completions.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::Stream;

use crate::completion::{CompletionEvent, CompletionStream, start_completion};
use crate::error::ApiError;
use crate::extract::{Caller, Json};
use crate::sse::{SseEvent, sse};
use crate::state::App;
use crate::wire::openai::CompletionRequest;
use crate::wire::openai::completions::{Completion, CompletionChoice, CompletionLogprobs};

/// Goes on with texts.
pub async fn post(
    State(app): State<App>,
    caller: Caller,
    Json(request): Json<CompletionRequest>,
) -> Result<Response, ApiError> {
    let options = request.stream_options.unwrap_or_default();
    let shape = Shape {
        timings: request.timings.unwrap_or(false),
        usage: options.include_usage.unwrap_or(false),
        usage_in_all: options.continuous_usage_stats.unwrap_or(false),
    };
    if request.stream.unwrap_or(false) {
        let completion = start_completion(&app, &caller, request).await?;
        return Ok(sse(Chunks {
            completion,
            shape,
            phase: Phase::Texts,
        }));
    }
    if request.stream_options.is_some() {
        let message = "stream_options is given and stream is not true: it must be";
        return Err(ApiError::invalid("stream_options", message));
    }
    let mut completion = start_completion(&app, &caller, request).await?;
    let choices = whole(&mut completion).await?;
    let timings = shape.timings.then(|| completion.timings());
    let usage = Some(completion.usage());
    Ok(Json(Completion {
        usage,
        timings,
        ..part(&completion, choices)
    })
    .into_response())
}

/// What an answer has beside text.
#[derive(Debug, Clone, Copy)]
struct Shape {
    timings: bool,
    usage: bool,
    usage_in_all: bool,
}

/// Waits for all texts.
async fn whole(completion: &mut CompletionStream) -> Result<Vec<CompletionChoice>, ApiError> {
    let mut choices: Vec<CompletionChoice> = Vec::new();
    for index in 0..completion.choices() {
        choices.push(CompletionChoice {
            index,
            ..CompletionChoice::default()
        });
    }
    while let Some(event) = completion.next().await {
        match event {
            CompletionEvent::News(news) => add(&mut choices[news.index], news),
            CompletionEvent::Failed(error) => return Err(error),
        }
    }
    Ok(choices)
}

fn add(choice: &mut CompletionChoice, news: CompletionChoice) {
    choice.text.push_str(&news.text);
    if let Some(more) = news.logprobs {
        let CompletionLogprobs {
            text_offset,
            token_logprobs,
            tokens,
            top_logprobs,
        } = more;
        let all = choice.logprobs.get_or_insert_default();
        all.text_offset.extend(text_offset);
        all.token_logprobs.extend(token_logprobs);
        all.tokens.extend(tokens);
        all.top_logprobs.extend(top_logprobs);
    }
    choice.finish_reason = news.finish_reason;
    choice.stop_reason = news.stop_reason;
}

/// An answer, or a part of it.
fn part(completion: &CompletionStream, choices: Vec<CompletionChoice>) -> Completion<'_> {
    let head = completion.head();
    Completion {
        id: &head.id,
        object: "text_completion",
        created: head.created,
        model: &head.model,
        system_fingerprint: &head.fingerprint,
        choices,
        usage: None,
        timings: None,
    }
}

/// The chunks of a streamed answer.
struct Chunks {
    completion: CompletionStream,
    shape: Shape,
    phase: Phase,
}

/// What comes next.
enum Phase {
    Texts,
    Done,
    Nothing,
}

impl Chunks {
    fn news(&self, choice: CompletionChoice) -> SseEvent {
        let usage = self.shape.usage_in_all.then(|| self.completion.usage());
        write(&Completion {
            usage,
            ..part(&self.completion, vec![choice])
        })
    }

    /// The chunk with the usage, if it is asked for.
    fn last(&self) -> Option<SseEvent> {
        let usage = self.shape.usage.then(|| self.completion.usage());
        let timings = self.shape.timings.then(|| self.completion.timings());
        let wanted = self.shape.usage || self.shape.timings;
        wanted.then(|| {
            write(&Completion {
                usage,
                timings,
                ..part(&self.completion, Vec::new())
            })
        })
    }
}

fn write(chunk: &Completion<'_>) -> SseEvent {
    SseEvent::data(serde_json::to_string(chunk).unwrap_or_else(|_| ApiError::fault().body()))
}

impl Stream for Chunks {
    type Item = SseEvent;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<SseEvent>> {
        let this = self.get_mut();
        match this.phase {
            Phase::Nothing => Poll::Ready(None),
            Phase::Done => {
                this.phase = Phase::Nothing;
                Poll::Ready(Some(SseEvent::done()))
            }
            Phase::Texts => match this.completion.poll_next(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Some(CompletionEvent::News(choice))) => {
                    Poll::Ready(Some(this.news(choice)))
                }
                Poll::Ready(Some(CompletionEvent::Failed(error))) => {
                    this.phase = Phase::Done;
                    Poll::Ready(Some(SseEvent::data(error.body())))
                }
                Poll::Ready(None) => {
                    let last = this.last();
                    this.phase = if last.is_some() {
                        Phase::Done
                    } else {
                        Phase::Nothing
                    };
                    Poll::Ready(Some(last.unwrap_or_else(SseEvent::done)))
                }
            },
        }
    }
}

#[cfg(test)]
#[path = "completions_tests.rs"]
mod tests;
