//! Texts that go on: what `/v1/completions` does.

mod choice;
mod prompts;
mod stream;

use std::sync::Arc;

use sparamx_engine::{GenerateParams, Grammar};

use self::prompts::{Start, Wanted};
use self::stream::Setup;
use crate::error::ApiError;
use crate::extract::Caller;
use crate::generate::head::Head;
use crate::generate::logprobs::TokenWriter;
use crate::generate::{Job, format, params};
use crate::state::{App, Served};
use crate::wire::openai::CompletionRequest;
use crate::wire::openai::completions::Prompt;

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
    let prompt = request.prompt.take();
    let mut plan = Plan::new(served, request)?;
    let starts = starts(app, served, prompt, &plan).await?;
    let formats = (
        &plan.request.response_format,
        &plan.request.structured_outputs,
    );
    if let Some(spec) = format::grammar(formats.0.as_ref(), formats.1.as_ref())? {
        plan.grammar = Some(served.grammar(spec).await?);
    }
    let context = served.host.context();
    let jobs = starts.iter().map(|start| plan.job(start, context));
    let jobs = jobs.collect::<Result<Vec<_>, _>>()?;
    let running = app.start(caller, jobs)?;
    Ok(CompletionStream::new(plan.setup(served), starts, running))
}

/// The prompts. Tokenizers take their time, which is not that of the other connections.
async fn starts(
    app: &App,
    served: &Served,
    prompt: Option<Prompt>,
    plan: &Plan,
) -> Result<Vec<Start>, ApiError> {
    let Some(prompt) = prompt else {
        return Err(ApiError::invalid("prompt", "prompt is missing"));
    };
    prompts::check_count(&prompt, plan.n)?;
    let wanted = Wanted {
        echo: plan.echo,
        add_special: plan.request.add_special_tokens.unwrap_or(true),
        context: served.host.context(),
    };
    let tokenizer = Arc::clone(&served.host.loaded().tokenizer);
    let work = move || prompts::starts(prompt, &tokenizer, wanted);
    app.work().run(work).await?
}

/// What is the same for all prompts.
struct Plan {
    request: CompletionRequest,
    params: GenerateParams,
    n: usize,
    logprobs: Option<usize>,
    grammar: Option<Grammar>,
    echo: bool,
}

impl Plan {
    fn new(served: &Served, request: CompletionRequest) -> Result<Self, ApiError> {
        let sampling = request.sampling();
        let params = params::params(served, &sampling)?;
        let n = params::choices(&sampling)?;
        let most = sparamx_engine::MAX_ALTERNATIVES as i64;
        let logprobs = params::integer("logprobs", request.logprobs, 0, most)?;
        Ok(Self {
            params,
            n,
            logprobs: logprobs.map(|top| top as usize),
            grammar: None,
            echo: request.echo.unwrap_or(false),
            request,
        })
    }

    fn setup(&self, served: &Served) -> Setup {
        Setup {
            head: Head::new(served, "cmpl-"),
            tokenizer: Arc::clone(&served.host.loaded().tokenizer),
            names: TokenWriter {
                as_ids: self.request.return_tokens_as_token_ids.unwrap_or(false),
            },
            show_special: self.params.show_special,
            include_stop: self.params.include_stop,
            logprobs: self.logprobs.is_some(),
            echo: self.echo,
            n: self.n,
        }
    }

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
            grammar: self.grammar.clone(),
            cache_salt: self.request.cache_salt.clone(),
        })
    }
}
