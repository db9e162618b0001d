//! `run`: text from a model, streamed; with a terminal and no prompt, a chat.

mod chat;
mod form;
mod talk;

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Map, Value};
use sparamx_engine::{
    ChatTemplate, EngineOptions, GenerateParams, Host, HostOptions, Loaded, Speculation,
};

use crate::args::{self, Common, Memory, Threads, UsageError};
use crate::hub::HubId;
use crate::kv::KvArgs;
use crate::sampling::SamplingArgs;
use crate::{interrupt, loading, output, runtime, source, texts};

use self::form::FormArgs;
use self::talk::Talk;

/// Options of `run`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sparamx run \"Once upon a time\"                  the model that ships, one text
  sparamx run                                     the model that ships, chat
  sparamx run llama-8b-50 \"Why is the sky blue?\"
  sparamx run meta-llama/Llama-3.2-1B-Instruct    chat
  sparamx run llama-8b-50 --system \"Answer in French.\" \"Name three fruits\"
  sparamx run qwen3-50 --chat-template-kwargs '{\"enable_thinking\": false}'
  echo \"Once upon a time\" | sparamx run -
  sparamx run llama-8b-50 \"Name three fruits\" --temperature 0 --json

A single argument is a PROMPT if it is two words or more, and a MODEL otherwise. A model with a chat template answers; one without continues
the text. In a chat, /help lists the commands; Ctrl-C ends the answer, not the chat.")]
pub struct RunArgs {
    /// Directory, GGUF file or hub id [default: the model that ships with the repository]
    #[arg(value_name = "MODEL", allow_hyphen_values = true, value_parser = word_or_text)]
    first: Option<String>,
    /// Text to answer or continue; - reads it from standard input [default: chat]
    #[arg(value_name = "PROMPT", allow_hyphen_values = true, value_parser = word_or_text)]
    second: Option<String>,
    /// The prompt, whatever it looks like
    #[arg(
        short,
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        conflicts_with = "second"
    )]
    prompt: Option<String>,
    /// The system prompt: what the model reads before the conversation
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        conflicts_with = "no_chat_template"
    )]
    system: Option<String>,
    /// Tokens to generate at most
    #[arg(short = 'n', long, value_name = "N", default_value_t = GenerateParams::DEFAULT_TOKENS, value_parser = at_least_one)]
    max_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// End the text where this string comes; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    #[command(flatten)]
    form: FormArgs,
    /// Continue the prompt as it is, though the model has a chat template
    #[arg(long)]
    no_chat_template: bool,
    /// Use this Jinja template instead of the model's
    #[arg(long, value_name = "FILE", conflicts_with = "no_chat_template")]
    chat_template: Option<PathBuf>,
    /// Variables for the chat template, such as '{"enable_thinking": false}'
    #[arg(long, value_name = "JSON", value_parser = args::variables, conflicts_with = "no_chat_template")]
    chat_template_kwargs: Option<Map<String, Value>>,
    /// Generate without draft tokens: the same text, and slower where it repeats itself
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

/// A single word that begins with `-` is a mistyped option.
fn word_or_text(text: &str) -> Result<String, String> {
    if text.starts_with('-') && text != "-" && !text.contains(char::is_whitespace) {
        return Err(
            "there is no such option; a prompt that is a word with - before it goes after --prompt"
                .to_owned(),
        );
    }
    Ok(text.to_owned())
}

/// Generates.
///
/// # Errors
/// The model or the prompt cannot be used, there is nothing to chat on, or standard output cannot be written.
pub fn run(args: &RunArgs, common: Common) -> Result<()> {
    args.kv.warn_of_useless(common);
    let (model, prompt) = args.model_and_prompt()?;
    let prompt = prompt.read(common)?;
    let directory: PathBuf = match model {
        Some(model) => source::resolve(model, common)?,
        None => source::shipped()?,
    };
    let about = match model {
        Some(model) => format!("model: {}", source::name(model, &directory)),
        None => format!("model: {}, which ships with sparamx", directory.display()),
    };
    let options = HostOptions {
        memory_bytes: args.memory.memory_bytes,
        engine: EngineOptions {
            max_running: 1,
            speculation: if args.no_speculation {
                Speculation::Off
            } else {
                Speculation::Auto
            },
            kv: args.kv.options(),
            ..EngineOptions::default()
        },
        chat_template: args.chat_template.clone(),
        no_chat_template: args.no_chat_template,
        ..HostOptions::default()
    };
    let runtime = Arc::new(runtime::start(args.threads.count(), common)?);
    let host = Host::open(&directory, runtime, options, &mut loading::report(common))?;
    let loaded = host.loaded();
    loading::details(&directory, loaded, common);
    let sampling = args.sampling.params(&loaded.defaults, &directory)?;
    if common.verbose {
        output::complain(&format!("{sampling:?}"));
    }
    let params = GenerateParams {
        max_tokens: args.max_tokens,
        sampling,
        stop: args.stop.clone(),
        ..GenerateParams::default()
    };
    let mut talk = Talk {
        template: args.template(loaded, common)?,
        grammar: args.form.grammar(&loaded.tokenizer)?,
        host,
        system: args.system.clone(),
        params,
        common,
        about: (!common.quiet).then_some(about),
    };
    talk.check_system()?;
    match prompt {
        Prompt::Text(text) => {
            talk.once(&text)?;
            Ok(interrupt::check()?)
        }
        Prompt::Chat => chat::run(talk),
    }
}

impl RunArgs {
    /// Which of the arguments is which.
    fn model_and_prompt(&self) -> Result<(Option<&str>, Given<'_>)> {
        let text = |text| match text {
            "-" => Given::StandardInput,
            text => Given::Text(text),
        };
        Ok(match (&self.first, &self.second, &self.prompt) {
            (model, _, Some(prompt)) => (model.as_deref(), Given::Text(prompt)),
            (Some(model), Some(prompt), None) => (Some(model), text(prompt)),
            (None, _, None) => (None, Given::Nothing),
            (Some(only), None, None) if names_model(only) => (Some(only), Given::Nothing),
            (Some(only), None, None)
                if only == "-" || only.trim().contains(char::is_whitespace) =>
            {
                (None, text(only))
            }
            (Some(only), None, None) => bail!(UsageError(format!(
                "'{only}' is no directory, no GGUF file and no hub id (org/name); if it is a prompt: --prompt '{only}'"
            ))),
        })
    }

    /// The template of the user or of the model with the user's variables, or none.
    fn template(&self, loaded: &Loaded, common: Common) -> Result<Option<ChatTemplate>> {
        let template = &loaded.template;
        let Some(variables) = &self.chat_template_kwargs else {
            return Ok(template.clone());
        };
        let Some(template) = template else {
            bail!(UsageError("--chat-template-kwargs: the model has no chat template; give one by --chat-template".to_owned()));
        };
        for name in variables
            .keys()
            .filter(|name| !template.mentions(name) && !common.quiet)
        {
            output::complain(&format!(
                "warning: the chat template does not mention '{name}'"
            ));
        }
        Ok(Some(template.clone().with_variables(variables.clone())))
    }
}

/// Whether a single argument is a model rather than a prompt.
fn names_model(text: &str) -> bool {
    let one_word = !text.contains(char::is_whitespace);
    (one_word && text.contains('/') && (text.starts_with(['.', '/', '~']) || text.ends_with('/')))
        || (one_word && source::is_address(text))
        || text.ends_with(".gguf")
        || HubId::parse(text).is_some()
        || Path::new(text).is_dir()
}

/// The longest prompt that is read from standard input, in bytes: many times what the longest context holds.
const MAX_PROMPT_BYTES: u64 = 128 << 20;

/// What the command line says about the prompt.
enum Given<'a> {
    Text(&'a str),
    StandardInput,
    Nothing,
}

enum Prompt {
    Text(String),
    Chat,
}

impl Given<'_> {
    fn read(self, common: Common) -> Result<Prompt> {
        match self {
            Given::StandardInput => {
                const CANNOT: &str = "cannot read the prompt from standard input";
                let bytes = texts::limited(io::stdin().lock(), MAX_PROMPT_BYTES).context(CANNOT)?;
                let text = String::from_utf8(bytes).context(CANNOT)?;
                // The line feed that echo adds is no part of the prompt.
                Ok(Prompt::Text(text.strip_suffix('\n').unwrap_or(&text).to_owned()))
            }
            Given::Text(text) => Ok(Prompt::Text(text.to_owned())),
            Given::Nothing if common.json => {
                bail!(UsageError("--json needs a prompt (see: sparamx run --help)".to_owned()))
            }
            Given::Nothing if !io::stdin().is_terminal() => bail!(UsageError(
                "there is no terminal to chat on; give a prompt, or - to read it from standard input \
                 (see: sparamx run --help)"
                    .to_owned()
            )),
            Given::Nothing => Ok(Prompt::Chat),
        }
    }
}
