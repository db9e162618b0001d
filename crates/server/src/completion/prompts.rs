//! The prompts of a completion request: texts to ids, and back for those that are echoed.

use sparamx_engine::{EngineError, Tokenizer};

use crate::error::ApiError;
use crate::generate::params::MAX_CHOICES;
use crate::wire::openai::completions::Prompt;

/// A prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Its ids.
    pub ids: Vec<u32>,
    /// Its text; none if nobody wants it.
    pub text: Option<String>,
}

/// What to make of the prompts.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Their texts are part of the answer.
    pub echo: bool,
    /// The tokenizer's own special tokens come around each text.
    pub add_special: bool,
    /// Tokens that fit in the context.
    pub context: usize,
}

/// Refuses more prompts than can be.
///
/// # Errors
/// 400.
pub fn check_count(prompt: &Prompt, n: usize) -> Result<(), ApiError> {
    let count = match prompt {
        Prompt::Text(_) | Prompt::Ids(_) => 1,
        Prompt::Texts(texts) => texts.len(),
        Prompt::ManyIds(lists) => lists.len(),
    };
    if count == 0 {
        return Err(ApiError::invalid(
            "prompt",
            "prompt is empty, at least one is needed",
        ));
    }
    if count.saturating_mul(n) > MAX_CHOICES {
        let message = format!(
            "prompt has {count} prompts and n is {n}: allowed are {MAX_CHOICES} texts together"
        );
        return Err(ApiError::invalid("prompt", message));
    }
    Ok(())
}

/// Ids of all prompts. It may take a while.
///
/// # Errors
/// 400: a prompt that is too long, is empty or has ids that the model does not.
pub fn starts(
    prompt: Prompt,
    tokenizer: &Tokenizer,
    wanted: Wanted,
) -> Result<Vec<Start>, ApiError> {
    match prompt {
        Prompt::Text(text) => Ok(vec![of_text(text, tokenizer, wanted)?]),
        Prompt::Texts(texts) => texts
            .into_iter()
            .map(|text| of_text(text, tokenizer, wanted))
            .collect(),
        Prompt::Ids(ids) => Ok(vec![of_ids(ids, tokenizer, wanted, "prompt")?]),
        Prompt::ManyIds(lists) => {
            let lists = lists.into_iter().enumerate();
            lists
                .map(|(index, ids)| of_ids(ids, tokenizer, wanted, &format!("prompt[{index}]")))
                .collect()
        }
    }
}

fn of_text(text: String, tokenizer: &Tokenizer, wanted: Wanted) -> Result<Start, ApiError> {
    tokenizer.check_room(&text, wanted.context)?;
    let ids = match wanted.add_special {
        true => tokenizer.encode_prompt(&text)?,
        false => tokenizer.encode(&text, false)?,
    };
    if ids.is_empty() {
        return Err(EngineError::EmptyPrompt.into());
    }
    let text = wanted.echo.then_some(text);
    Ok(Start { ids, text })
}

fn of_ids(
    ids: Vec<u32>,
    tokenizer: &Tokenizer,
    wanted: Wanted,
    path: &str,
) -> Result<Start, ApiError> {
    let vocab_size = tokenizer.vocab_size();
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
        let message = format!(
            "{path} has the token id {id}, allowed are 0 to {}",
            vocab_size - 1
        );
        return Err(ApiError::invalid(path, message));
    }
    if ids.is_empty() {
        return Err(ApiError::invalid(
            path,
            format!("{path} has no token id, at least one is needed"),
        ));
    }
    if ids.len() > wanted.context {
        return Err(ApiError::context_length(wanted.context, ids.len(), 1));
    }
    let text = match wanted.echo {
        true => Some(tokenizer.decode(&ids)?),
        false => None,
    };
    Ok(Start { ids, text })
}
