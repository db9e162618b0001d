//! A chat, in no API's form: what the routes for chats share.

mod event;
mod output;
mod prompt;
mod stream;

use std::sync::Arc;

use self::output::Output;
use self::prompt::{Prompt, Talk};
use self::stream::Setup;
use crate::error::ApiError;
use crate::extract::Caller;
use crate::generate::head::Head;
use crate::generate::logprobs::TokenWriter;
use crate::generate::{Job, params};
use crate::state::{App, Served};
use crate::wire::openai::ChatRequest;

pub use event::{ChatEvent, Finish};
pub use stream::ChatStream;

/// Starts a chat. All that can be known before the first token is an error here.
///
/// # Errors
/// 400 for a request that cannot be served, 404 for another model, 429 and 503 for one that cannot be served now.
pub async fn start_chat(
    app: &App,
    caller: &Caller,
    request: ChatRequest,
) -> Result<ChatStream, ApiError> {
    let served = app.served()?;
    served.check_model(request.model.as_deref())?;
    check_supported(&request)?;
    let sampling = request.sampling();
    let mut params = params::params(served, &sampling)?;
    let n = params::choices(&sampling)?;
    let logprobs = top_logprobs(&request)?;
    let mut output = Output::new(served, &request)?;
    let options = &app.options().model;
    let talk = Talk::new(&request, &options.template_variables)?;

    let room = served.host.context();
    let prompt = prompt(app, served, talk, options.reasons(), room).await?;
    params.max_tokens = max_tokens(&request, prompt.ids.len(), served.host.context())?;
    params::check_min_tokens(&params)?;
    output.reasons(prompt.reasoning);
    let tokenizer = &served.host.loaded().tokenizer;
    params.shown_ids = output.marks(tokenizer);
    let grammar = output.grammar(served).await?;
    let setup = Setup {
        head: Head::new(served, "chatcmpl-"),
        tokenizer: Arc::clone(tokenizer),
        writer: TokenWriter {
            as_ids: request.return_tokens_as_token_ids.unwrap_or(false),
        },
        include_stop: params.include_stop,
        n,
        prompt_tokens: prompt.ids.len(),
        output,
    };
    let job = Job {
        prompt: prompt.ids,
        params,
        logprobs,
        prompt_logprobs: None,
        n,
        grammar,
        cache_salt: request.cache_salt,
    };
    let running = app.start(caller, vec![job])?;
    Ok(ChatStream::new(setup, running))
}

/// The prompt. Templates and tokenizers take their time, which is not that of the other connections.
async fn prompt(
    app: &App,
    served: &Served,
    talk: Talk,
    reasons: Option<bool>,
    room: usize,
) -> Result<Prompt, ApiError> {
    let loaded = served.host.loaded();
    let (template, tokenizer) = (loaded.template.clone(), Arc::clone(&loaded.tokenizer));
    let work = move || talk.prompt(template.as_ref(), &tokenizer, room, reasons);
    let prompt = app.work().run(work).await?;
    prompt.map_err(|error| served.counted(error))
}

/// Contexts that a prompt which is only counted may fill: its client wants to know how much it is too long.
const COUNTED_CONTEXTS: usize = 16;

/// Ids of the prompt that a request makes.
///
/// # Errors
/// As [`start_chat`], of what the prompt depends on.
pub async fn prompt_ids(app: &App, request: &ChatRequest) -> Result<Vec<u32>, ApiError> {
    let served = app.served()?;
    served.check_model(request.model.as_deref())?;
    check_supported(request)?;
    let talk = Talk::new(request, &app.options().model.template_variables)?;
    let room = served.host.context().saturating_mul(COUNTED_CONTEXTS);
    Ok(prompt(app, served, talk, None, room).await?.ids)
}

fn check_supported(request: &ChatRequest) -> Result<(), ApiError> {
    if let Some(field) = request.refused() {
        return Err(params::unsupported(field));
    }
    let modalities = request.modalities.as_deref().unwrap_or_default();
    if modalities.iter().any(|modality| modality != "text") {
        let message =
            "modalities has something other than text, which is all that this server makes";
        return Err(ApiError::unsupported("modalities", message));
    }
    Ok(())
}

/// How many alternatives come with each token; none: no log probabilities.
fn top_logprobs(request: &ChatRequest) -> Result<Option<usize>, ApiError> {
    let most = sparamx_engine::MAX_ALTERNATIVES as i64;
    let top = params::integer("top_logprobs", request.top_logprobs, 0, most)?;
    match (request.logprobs.unwrap_or(false), top) {
        (true, top) => Ok(Some(top.unwrap_or(0) as usize)),
        (false, None) => Ok(None),
        (false, Some(_)) => {
            let message = "top_logprobs is given and logprobs is not true: it must be";
            Err(ApiError::invalid("top_logprobs", message))
        }
    }
}

fn max_tokens(request: &ChatRequest, prompt: usize, context: usize) -> Result<usize, ApiError> {
    let given = match request.max_completion_tokens {
        Some(tokens) => ("max_completion_tokens", Some(tokens)),
        None => ("max_tokens", request.max_tokens),
    };
    let rest = context.saturating_sub(prompt).max(1);
    let given = match given {
        (name, Some(tokens)) if request.cut_to_context => (name, Some(tokens.min(rest as i64))),
        given => given,
    };
    params::max_tokens(given, usize::MAX, 1, prompt, context)
}
