//! From the fields of a request to the parameters of a generation, with every limit checked.

use std::sync::Arc;

use ring::rand::{SecureRandom, SystemRandom};
use sparamx_engine::{GenerateParams, SamplingParams};

use crate::error::ApiError;
use crate::generate::Job;
use crate::state::Served;
use crate::wire::openai::common::{LogitBias, Sampling};

/// Texts for a prompt at most.
pub const MAX_N: usize = 128;
/// Texts of a request at most, over all its prompts.
pub const MAX_CHOICES: usize = 1024;
/// Log probabilities of a request at most. Each takes some sixty bytes until it is sent.
const MAX_LOGPROBS: usize = 4 << 20;
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 4096;
const MAX_STOP_IDS: usize = 1024;
const MAX_SALT_BYTES: usize = 256;

/// The parameters of a request, without `max_tokens`: that depends on the prompt.
///
/// # Errors
/// 400 that names the field and its limit.
pub fn params(served: &Served, fields: &Sampling<'_>) -> Result<GenerateParams, ApiError> {
    let vocab_size = served.host.loaded().tokenizer.vocab_size();
    check_stops(fields, vocab_size)?;
    if let Some(salt) = fields.cache_salt
        && (salt.is_empty() || salt.len() > MAX_SALT_BYTES)
    {
        let message = format!(
            "cache_salt has {} bytes, allowed are 1 to {MAX_SALT_BYTES}",
            salt.len()
        );
        return Err(ApiError::invalid("cache_salt", message));
    }
    Ok(GenerateParams {
        max_tokens: 0,
        min_tokens: integer("min_tokens", fields.min_tokens, 0, i64::MAX)?.unwrap_or(0) as usize,
        sampling: sampling(&served.sampling, fields, vocab_size)?,
        stop: fields.stop.to_vec(),
        include_stop: fields.include_stop,
        stop_token_ids: fields.stop_token_ids.to_vec(),
        ignore_eos: fields.ignore_eos,
        show_special: !fields.skip_special_tokens,
        shown_ids: Vec::new(),
    })
}

/// Texts for each prompt.
///
/// # Errors
/// 400: `n` or `best_of` out of their range.
pub fn choices(fields: &Sampling<'_>) -> Result<usize, ApiError> {
    let n = integer("n", fields.n, 1, MAX_N as i64)?.unwrap_or(1);
    if let Some(best_of) = fields.best_of
        && best_of != n
    {
        let message = format!(
            "best_of is {best_of} and n is {n}: they must be equal, as all texts are returned"
        );
        return Err(ApiError::unsupported("best_of", message));
    }
    Ok(n as usize)
}

/// Refuses more log probabilities than there is memory for, over all texts of a request.
///
/// # Errors
/// 400.
pub fn check_logprobs(jobs: &[Job]) -> Result<(), ApiError> {
    let count = |tokens: usize, top: Option<usize>| top.map_or(0, |top| tokens * (top + 1));
    let of_job = |job: &Job| {
        let new = count(job.params.max_tokens, job.logprobs);
        job.n * (new + count(job.prompt.len(), job.prompt_logprobs))
    };
    let all: usize = jobs.iter().map(of_job).sum();
    if all > MAX_LOGPROBS {
        let message = format!(
            "logprobs asks for up to {all} log probabilities over all texts and their tokens, allowed are {MAX_LOGPROBS}: ask for \
             fewer of each token, or make n, max_tokens, or the prompts that are echoed, smaller"
        );
        return Err(ApiError::invalid("logprobs", message));
    }
    Ok(())
}

/// New tokens for a prompt of `prompt` tokens: what the field asks for; else what fits, up to `default`.
///
/// # Errors
/// 400: more than the context holds, or fewer than `min_tokens`.
pub fn max_tokens(
    (field, given): (&'static str, Option<i64>),
    default: usize,
    least: i64,
    prompt: usize,
    context: usize,
) -> Result<usize, ApiError> {
    let Some(given) = integer(field, given, least, i64::MAX)? else {
        return match context.checked_sub(prompt) {
            None | Some(0) => Err(ApiError::context_length(context, prompt, 1)),
            Some(rest) => Ok(default.min(rest)),
        };
    };
    let given = usize::try_from(given).unwrap_or(usize::MAX);
    if prompt.saturating_add(given) > context {
        return Err(ApiError::context_length(context, prompt, given));
    }
    Ok(given)
}

/// Refuses a text that has to have more tokens than it may.
///
/// # Errors
/// 400.
pub fn check_min_tokens(params: &GenerateParams) -> Result<(), ApiError> {
    let (least, most) = (params.min_tokens, params.max_tokens);
    if least > most {
        let message =
            format!("min_tokens is {least}, allowed are at most the {most} of max_tokens");
        return Err(ApiError::invalid("min_tokens", message));
    }
    Ok(())
}

/// An integer in its range, if it is given.
///
/// # Errors
/// 400 that names both.
pub fn integer(
    field: &'static str,
    value: Option<i64>,
    least: i64,
    most: i64,
) -> Result<Option<i64>, ApiError> {
    match value {
        Some(value) if value < least || value > most => {
            let allowed = match most {
                i64::MAX => format!("{least} or more"),
                most => format!("{least} to {most}"),
            };
            let message = format!("{field} is {value}, allowed is {allowed}");
            Err(ApiError::invalid(field, message))
        }
        value => Ok(value),
    }
}

fn number(
    field: &'static str,
    value: Option<f64>,
    default: f32,
    fits: impl Fn(f32) -> bool,
    allowed: &str,
) -> Result<f32, ApiError> {
    let Some(value) = value else {
        return Ok(default);
    };
    if fits(value as f32) {
        Ok(value as f32)
    } else {
        let message = format!("{field} is {value}, allowed is {allowed}");
        Err(ApiError::invalid(field, message))
    }
}

fn sampling(
    defaults: &SamplingParams,
    fields: &Sampling<'_>,
    vocab_size: usize,
) -> Result<SamplingParams, ApiError> {
    let unit = |value: f32| (0.0..=1.0).contains(&value);
    let signed = |value: f32| (-2.0..=2.0).contains(&value);
    let top_k = integer("top_k", fields.top_k, -1, i64::MAX)?;
    Ok(SamplingParams {
        temperature: number(
            "temperature",
            fields.temperature,
            defaults.temperature,
            |value| value >= 0.0 && value.is_finite(),
            "0 or more",
        )?,
        top_k: top_k.map_or(defaults.top_k, |top_k| top_k.max(0) as usize),
        top_p: number("top_p", fields.top_p, defaults.top_p, unit, "0 to 1")?,
        min_p: number("min_p", fields.min_p, defaults.min_p, unit, "0 to 1")?,
        repetition_penalty: number(
            "repetition_penalty",
            fields.repetition_penalty,
            defaults.repetition_penalty,
            |value| value > 0.0 && value.is_finite(),
            "more than 0, and 1 for none",
        )?,
        presence_penalty: number(
            "presence_penalty",
            fields.presence_penalty,
            0.0,
            signed,
            "-2 to 2",
        )?,
        frequency_penalty: number(
            "frequency_penalty",
            fields.frequency_penalty,
            0.0,
            signed,
            "-2 to 2",
        )?,
        logit_bias: match fields.logit_bias {
            Some(bias) => biases(bias, vocab_size)?.into(),
            None => Arc::default(),
        },
        seed: match fields.seed {
            Some(seed) => seed as u64,
            None => random(),
        },
    })
}

fn biases(bias: &LogitBias, vocab_size: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let wrong = |message: String| Err(ApiError::invalid("logit_bias", message));
    if bias.len() > vocab_size {
        return wrong(format!(
            "logit_bias has {} entries, allowed are at most {vocab_size}",
            bias.len()
        ));
    }
    let mut list = Vec::with_capacity(bias.len());
    for (key, &value) in bias {
        // "05" and "+5" would be 5 once more.
        let plain = |id: &u32| (*id as usize) < vocab_size && id.to_string() == *key;
        let Some(id) = key.parse().ok().filter(plain) else {
            let key = crate::error::cut(key, 20);
            return wrong(format!(
                "logit_bias has the token id '{key}', allowed are 0 to {}",
                vocab_size - 1
            ));
        };
        if !(-100.0..=100.0).contains(&value) {
            return wrong(format!(
                "logit_bias of token {id} is {value}, allowed is -100 to 100"
            ));
        }
        list.push((id, value as f32));
    }
    Ok(list)
}

fn check_stops(fields: &Sampling<'_>, vocab_size: usize) -> Result<(), ApiError> {
    let stops = fields.stop;
    if stops.len() > MAX_STOPS {
        let message = format!(
            "stop has {} strings, allowed are at most {MAX_STOPS}",
            stops.len()
        );
        return Err(ApiError::invalid("stop", message));
    }
    for stop in stops {
        if stop.is_empty() || stop.len() > MAX_STOP_BYTES {
            let message = format!(
                "stop has a string of {} bytes, allowed are 1 to {MAX_STOP_BYTES}",
                stop.len()
            );
            return Err(ApiError::invalid("stop", message));
        }
    }
    let ids = fields.stop_token_ids;
    if ids.len() > MAX_STOP_IDS {
        let message = format!(
            "stop_token_ids has {} ids, allowed are at most {MAX_STOP_IDS}",
            ids.len()
        );
        return Err(ApiError::invalid("stop_token_ids", message));
    }
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
        let message = format!(
            "stop_token_ids has {id}, allowed are 0 to {}",
            vocab_size - 1
        );
        return Err(ApiError::invalid("stop_token_ids", message));
    }
    Ok(())
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    // The system always has some; without it the seed is 0, and nothing else depends on it.
    let _ = SystemRandom::new().fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// A field that has a meaning, which this server does not offer.
pub fn unsupported(field: &'static str) -> ApiError {
    let instead = match field {
        "functions" | "function_call" => "; tools and tool_choice have its place",
        "json_schema" => "; response_format has its place",
        "grammar" | "guided_choice" | "guided_grammar" | "guided_json" | "guided_regex" => {
            "; structured_outputs has its place"
        }
        _ => "",
    };
    ApiError::unsupported(field, format!("{field} is not supported{instead}"))
}
