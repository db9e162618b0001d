//! Texts that go on: what `/v1/completions` does.

mod choice;
mod prompts;
mod stream;

use std::sync::Arc;

use sparamx_engine::GenerateParams;
use tokio::task::spawn_blocking;

use self::prompts::{Start, Wanted};
use crate::error::ApiError;
use crate::extract::Caller;
use crate::generate::head::Head;
use crate::generate::logprobs::TokenWriter;
use crate::generate::{Job, params};
use crate::state::App;
use crate::wire::openai::CompletionRequest;

pub use stream::{CompletionEvent, CompletionStream};

/// New tokens where a request does not say, as at OpenAI.
const DEFAULT_TOKENS: usize = 16;

/// Starts the texts. All that can be known before the first token is an error here.
///
/// # Errors
/// 400 for a request that cannot be served, 404 for another model, 429 and 503 for one that cannot be served now.
pub async fn start_completion(
    app: &App,
    caller: &Caller,
    mut request: CompletionRequest,
) -> Result<CompletionStream, ApiError> {
    let served = app.served()?;
    served.check_model(request.model.as_deref())?;
    if let Some(field) = request.refused() {
        return Err(params::unsupported(field));
    }
    let sampling = request.sampling();
    let params = params::params(served, &sampling)?;
    let n = params::choices(&sampling)?;
    let most = sparamx_engine::MAX_ALTERNATIVES as i64;
    let logprobs = params::integer("logprobs", request.logprobs, 0, most)?.map(|top| top as usize);
    let Some(prompt) = request.prompt.take() else {
        return Err(ApiError::invalid("prompt", "prompt is missing"));
    };
    prompts::check_count(&prompt, n)?;
    let context = served.host.context();
    let wanted = Wanted {
        n,
        echo: request.echo.unwrap_or(false),
        add_special: request.add_special_tokens.unwrap_or(true),
        context,
    };
    let tokenizer = Arc::clone(&served.host.loaded().tokenizer);
    let work = {
        let tokenizer = Arc::clone(&tokenizer);
        spawn_blocking(move || prompts::starts(prompt, &tokenizer, wanted))
    };
    let starts = work.await.map_err(|_| ApiError::fault())??;
    let plan = Plan {
        request: &request,
        params,
        n,
        logprobs,
        echo: wanted.echo,
    };
    let jobs = starts
        .iter()
        .map(|start| plan.job(start, context))
        .collect::<Result<Vec<_>, _>>()?;
    let running = app.start(caller, jobs)?;
    let names = TokenWriter {
        as_ids: request.return_tokens_as_token_ids.unwrap_or(false),
    };
    let setup = stream::Setup {
        head: Head::new(served, "cmpl-"),
        tokenizer,
        names,
        show_special: plan.params.show_special,
        include_stop: plan.params.include_stop,
        logprobs: logprobs.is_some(),
        echo: wanted.echo,
        n,
    };
    Ok(CompletionStream::new(setup, starts, running))
}

/// What is the same for all prompts.
struct Plan<'a> {
    request: &'a CompletionRequest,
    params: GenerateParams,
    n: usize,
    logprobs: Option<usize>,
    echo: bool,
}

impl Plan<'_> {
    fn job(&self, start: &Start, context: usize) -> Result<Job, ApiError> {
        // A prompt alone may be asked for, if it is part of the answer.
        let least = if self.echo { 0 } else { 1 };
        let given = ("max_tokens", self.request.max_tokens);
        let params = GenerateParams {
            max_tokens: params::max_tokens(given, DEFAULT_TOKENS, least, start.ids.len(), context)?,
            ..self.params.clone()
        };
        params::check_min_tokens(&params)?;
        let prompt_logprobs = match (self.echo, self.logprobs) {
            (true, Some(top)) => Some(top),
            // The engine takes a request for no new tokens only if the prompt is to be scored.
            (true, None) if params.max_tokens == 0 => Some(0),
            _ => None,
        };
        Ok(Job {
            prompt: start.ids.clone(),
            params,
            logprobs: self.logprobs,
            prompt_logprobs,
            n: self.n,
            cache_salt: self.request.cache_salt.clone(),
        })
    }
}
