//! `sparamx run`: generate text and stream it to standard output, once or as a chat.

use std::io::{self, IsTerminal, Read, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use sparamx_engine::{
    ChatTemplate, EngineOptions, Event, FinishReason, GenerateParams, Message, Outcome, Session,
    Speculation,
};
use sparamx_kernels::catalog;

use crate::cli::{Common, Memory, Threads, UsageError};
use crate::hub::HubId;
use crate::kv::KvArgs;
use crate::loading::{self, Loaded};
use crate::sampling::SamplingArgs;
use crate::{interrupt, output, source};

const DEFAULT_TOKENS: usize = 256;

/// Options of `run`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sparamx run \"Once upon a time\"                  the model that ships, one text
  sparamx run                                     the model that ships, chat
  sparamx run llama-8b-50 \"Why is the sky blue?\"
  sparamx run meta-llama/Llama-3.2-1B-Instruct    chat
  echo \"Once upon a time\" | sparamx run -
  sparamx run llama-8b-50 \"Name three fruits\" --temperature 0 --json

A single argument is a MODEL if it is a directory, ends in .gguf or looks like a path or a hub id (org/name), and a PROMPT otherwise. A
model with a chat template answers; one without continues the text. Ctrl-C ends the text, not the chat.")]
pub struct RunArgs {
    /// Directory, GGUF file or hub id [default: the model that ships with the repository]
    #[arg(value_name = "MODEL")]
    first: Option<String>,
    /// Text to answer or continue; - reads it from standard input [default: chat]
    #[arg(value_name = "PROMPT")]
    second: Option<String>,
    /// Tokens to generate at most
    #[arg(short = 'n', long, value_name = "N", default_value_t = DEFAULT_TOKENS, value_parser = at_least_one)]
    max_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// End the text where this string comes; may be given several times
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    /// Continue the prompt as it is, though the model has a chat template
    #[arg(long)]
    no_chat_template: bool,
    /// Choose every token before running the next; the text is the same, only slower where it repeats itself
    #[arg(long)]
    no_speculation: bool,
    #[command(flatten)]
    kv: KvArgs,
    #[command(flatten)]
    threads: Threads,
    #[command(flatten)]
    memory: Memory,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if count >= 1 => Ok(count),
        _ => Err("a whole number of at least 1 is needed".to_owned()),
    }
}

/// Generates.
///
/// # Errors
/// The model or the prompt cannot be used, there is nothing to chat on, or standard output cannot be written.
pub fn run(args: &RunArgs, common: Common) -> Result<()> {
    let (model, prompt) = args.model_and_prompt();
    let prompt = Prompt::read(prompt, common)?;
    let directory: PathBuf = match model {
        Some(model) => source::resolve(model, common)?,
        None => source::shipped()?,
    };
    let sampling = args.sampling.params(&directory)?;
    if common.verbose {
        output::complain(&format!("{sampling:?}"));
    }
    let template = match args.no_chat_template {
        true => None,
        false => ChatTemplate::from_dir(&directory)?,
    };
    let loaded = loading::load(&directory, args.threads, args.memory, common)?;
    interrupt::install()?;
    let params = GenerateParams {
        max_tokens: args.max_tokens,
        sampling,
        stop: args.stop.clone(),
    };
    let options = EngineOptions {
        max_running: 1,
        speculation: match args.no_speculation {
            true => Speculation::Off,
            false => Speculation::Auto,
        },
        kv: args.kv.options(),
        ..EngineOptions::default()
    };
    let session = Session::new(&loaded.runtime, &loaded.model, &loaded.tokenizer, options)?;
    let mut talk = Talk {
        loaded: &loaded,
        session,
        template,
        params,
        common,
    };
    match prompt {
        Prompt::Text(text) => talk.once(&text),
        Prompt::Chat => talk.chat(),
    }
}

impl RunArgs {
    fn model_and_prompt(&self) -> (Option<&str>, Option<&str>) {
        match (self.first.as_deref(), self.second.as_deref()) {
            (Some(only), None) if !names_model(only) => (None, Some(only)),
            (model, prompt) => (model, prompt),
        }
    }
}

/// Whether a single argument is a model rather than a prompt.
fn names_model(text: &str) -> bool {
    let path_like = !text.contains(char::is_whitespace)
        && (text.starts_with(['.', '/', '~']) || text.ends_with('/'))
        && text.contains('/');
    path_like
        || text.ends_with(".gguf")
        || HubId::parse(text).is_some()
        || std::path::Path::new(text).is_dir()
}

enum Prompt {
    Text(String),
    Chat,
}

impl Prompt {
    fn read(given: Option<&str>, common: Common) -> Result<Prompt> {
        match given {
            Some("-") => {
                let mut text = String::new();
                io::stdin().lock().read_to_string(&mut text).context("cannot read the prompt from standard input")?;
                // The line feed that echo adds is no part of the prompt.
                Ok(Prompt::Text(text.strip_suffix('\n').unwrap_or(&text).to_owned()))
            }
            Some(text) => Ok(Prompt::Text(text.to_owned())),
            None if common.json => bail!(UsageError("--json needs a prompt (see: sparamx run --help)".to_owned())),
            None if !io::stdin().is_terminal() => bail!(UsageError(
                "there is no terminal to chat on; give a prompt, or - to read it from standard input \
                 (see: sparamx run --help)"
                    .to_owned()
            )),
            None => Ok(Prompt::Chat),
        }
    }
}

/// A model that writes, for one prompt or many.
struct Talk<'a> {
    loaded: &'a Loaded,
    session: Session<'a>,
    template: Option<ChatTemplate>,
    params: GenerateParams,
    common: Common,
}

impl Talk<'_> {
    /// Answers or continues one prompt.
    fn once(&mut self, prompt: &str) -> Result<()> {
        let tokenizer = &self.loaded.tokenizer;
        let ids = match &self.template {
            Some(template) => {
                let text = template.render(&[Message::new("user", prompt)], true)?;
                tokenizer.check_room(&text, self.session.context())?;
                tokenizer.encode(&text, false)?
            }
            None => {
                tokenizer.check_room(prompt, self.session.context())?;
                tokenizer.encode_prompt(prompt)?
            }
        };
        if self.common.json {
            let outcome = self.session.generate(&ids, &self.params, &mut |_| flow())?;
            self.summarize(&outcome);
            return output::json(&outcome);
        }
        // A text and its continuation read as one.
        let before = if self.template.is_none() { prompt } else { "" };
        let outcome = self.stream(&ids, before)?;
        self.summarize(&outcome);
        Ok(())
    }

    /// Takes turns with the user until the input ends. What goes wrong in one turn does not end the chat.
    fn chat(&mut self) -> Result<()> {
        let mut editor = DefaultEditor::new().context("cannot read from the terminal")?;
        if !self.common.quiet {
            output::complain("Ctrl-C ends the text, Ctrl-D the chat.");
        }
        let mut messages = Vec::new();
        loop {
            let line = match editor.readline("> ") {
                Ok(line) if line.trim().is_empty() => continue,
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => continue,
                Err(ReadlineError::Eof) => return Ok(()),
                Err(error) => return Err(error).context("cannot read from the terminal"),
            };
            // Without a history the chat goes on.
            let _ = editor.add_history_entry(&line);
            interrupt::clear();
            // The same line twice shall not get the same answer.
            self.params.sampling.seed = self.params.sampling.seed.wrapping_add(1);
            if let Err(error) = self.turn(&line, &mut messages) {
                if output::is_broken_pipe(&error) {
                    return Err(error);
                }
                output::complain(&format!("error: {}", output::describe(&error)));
            }
        }
    }

    /// One turn; a conversation that does not fit any more starts anew.
    fn turn(&mut self, line: &str, messages: &mut Vec<Message>) -> Result<()> {
        let Some(template) = &self.template else {
            return self.once(line);
        };
        messages.push(Message::new("user", line));
        let text = template.render(messages, true)?;
        let mut ids = self.loaded.tokenizer.encode(&text, false)?;
        if ids.len() >= self.session.context() && messages.len() > 1 {
            output::complain(
                "note: the conversation no longer fits in the context and starts anew",
            );
            messages.drain(..messages.len() - 1);
            ids = self
                .loaded
                .tokenizer
                .encode(&template.render(messages, true)?, false)?;
        }
        let outcome = self.stream(&ids, "");
        match outcome {
            Ok(outcome) => {
                self.summarize(&outcome);
                messages.push(Message::new("assistant", outcome.text));
                Ok(())
            }
            Err(error) => {
                messages.pop();
                Err(error)
            }
        }
    }

    /// Generates, and writes the text to standard output as it comes, after `before`.
    fn stream(&mut self, ids: &[u32], before: &str) -> Result<Outcome> {
        let mut out = io::stdout().lock();
        let mut before = Some(before);
        let mut written = Ok(());
        let outcome = self.session.generate(ids, &self.params, &mut |event| {
            // Only now is it certain that the prompt can be run.
            let text = before.take().unwrap_or_default();
            let more = match event {
                Event::Token { text, .. } | Event::Finished { text, .. } => text,
                Event::Prompt { .. } => "",
            };
            written = write!(out, "{text}{more}").and_then(|()| out.flush());
            if written.is_err() {
                ControlFlow::Break(())
            } else {
                flow()
            }
        })?;
        written
            .and_then(|()| writeln!(out))
            .context(output::CANNOT_WRITE)?;
        Ok(outcome)
    }

    /// The last line on standard error: how much, how fast, with what.
    fn summarize(&self, outcome: &Outcome) {
        if self.common.quiet {
            return;
        }
        let runtime = &self.loaded.runtime;
        let format = self.loaded.model.weight_format();
        let forced = runtime.forced_kernel().filter(|spec| spec.weight == format);
        let kernel = forced.unwrap_or_else(|| catalog::select(runtime.cpu().features(), format, 1));
        let cached = match outcome.cached_tokens {
            0 => String::new(),
            tokens => format!(" ({tokens} cached)"),
        };
        let guesses = match outcome.drafted_tokens {
            0 => String::new(),
            drafted => format!(", {} of {drafted} guesses right", outcome.accepted_tokens),
        };
        output::complain(&format!(
            "{} prompt tokens{cached} at {:.1} tokens/s, {} tokens at {:.1} tokens/s ({}{guesses}); {} threads, {}, {}",
            outcome.prompt_ids.len(),
            outcome.prefill_tokens_per_s,
            outcome.ids.len(),
            outcome.decode_tokens_per_s,
            why(outcome.finish_reason),
            runtime.threads(),
            runtime.cpu().isa(),
            kernel.name
        ));
    }
}

/// Goes on unless Ctrl-C was pressed.
fn flow() -> ControlFlow<()> {
    if interrupt::asked() {
        ControlFlow::Break(())
    } else {
        ControlFlow::Continue(())
    }
}

fn why(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "end of text",
        FinishReason::Length => "--max-tokens reached",
        FinishReason::Context => "context full",
        FinishReason::Cancelled => "interrupted",
    }
}
