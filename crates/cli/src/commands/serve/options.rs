//! The options of `serve`: vLLM's names where they mean the same.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value};
use sparamx_engine::{EngineOptions, HostOptions, Speculation};
use sparamx_server::{Limits, Listen, Log, ModelOptions, ServerOptions, Tls, ToolFormat};

use super::keys;
use crate::args::{self, Memory, Threads, UsageError};
use crate::kv::KvArgs;
use crate::units;

/// Options of `serve`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sparamx serve                                   the model that ships, at http://127.0.0.1:8000
  sparamx serve llama-8b-50 --port 8080
  sparamx serve llama-8b-50 --host 0.0.0.0 --api-key-file keys.txt
  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Why is the sky blue?\"}]}'

Clients of OpenAI's API take http://127.0.0.1:8000/v1 as their base URL. Environment: SPARAMX_API_KEY, a key or several with commas between.
Ctrl-C or SIGTERM lets running requests end; a second one ends them.")]
pub struct ServeArgs {
    /// Directory, GGUF file or hub id [default: the model that ships with the repository]
    #[arg(value_name = "MODEL")]
    pub model: Option<String>,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    offer: OfferArgs,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    pub kv: KvArgs,
    #[command(flatten)]
    pub threads: Threads,
    #[command(flatten)]
    memory: Memory,
}

/// Where it listens, and for how long.
#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
struct NetworkArgs {
    /// Address to listen at; one that other machines reach needs a key, or --no-auth
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1",
        conflicts_with = "uds"
    )]
    host: String,
    /// Port to listen at; 0 takes one that is free
    #[arg(long, value_name = "N", default_value_t = 8000, conflicts_with = "uds")]
    port: u16,
    /// Listen at a Unix socket in the file system instead
    #[arg(long, value_name = "PATH")]
    uds: Option<PathBuf>,
    /// Speak TLS with this certificate, PEM
    #[arg(long, value_name = "FILE", requires = "ssl_keyfile")]
    ssl_certfile: Option<PathBuf>,
    /// The certificate's key, PEM
    #[arg(long, value_name = "FILE", requires = "ssl_certfile")]
    ssl_keyfile: Option<PathBuf>,
    /// Bytes of a request at most
    #[arg(long, value_name = "SIZE", default_value = "32M", value_parser = units::parse_bytes)]
    max_body: u64,
    /// Connections at a time
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = at_least_one)]
    max_connections: usize,
    /// Seconds that running requests have to end after Ctrl-C or SIGTERM
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    shutdown_timeout: Duration,
}

/// Who may ask, and what is written down about it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Access")]
struct AccessArgs {
    /// A key that requests need; may be given several times. Others see it in the list of processes: a file keeps it to itself
    #[arg(long, value_name = "KEY")]
    api_key: Vec<String>,
    /// A file of keys, one a line; lines that begin with # are comments
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Let everybody in who reaches the address
    #[arg(long, conflicts_with_all = ["api_key", "api_key_file"])]
    no_auth: bool,
    /// Serve the page at / without a key; it asks for one
    #[arg(long)]
    public_page: bool,
    /// A name by which requests may call this server, beside localhost; may be given several times
    #[arg(long, value_name = "NAME")]
    allowed_host: Vec<String>,
    /// Origins whose pages may use this server.
    #[arg(
        long,
        value_name = "ORIGIN",
        help = "An origin whose pages may use this server, such as https://chat.example.com, or * for all; may be given several times"
    )]
    allowed_origin: Vec<String>,
    /// Put what is asked into the log
    #[arg(long)]
    log_requests: bool,
    /// Paths that are left out of the log, with commas between
    #[arg(long, value_name = "PATHS", value_delimiter = ',')]
    disable_access_log_for_endpoints: Vec<String>,
}

/// How the model is offered.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
struct OfferArgs {
    /// What requests call the model; the first is in answers [default: the name of the model]
    #[arg(long, value_name = "NAME", num_args = 1.., value_parser = clap::builder::NonEmptyStringValueParser::new())]
    served_model_name: Vec<String>,
    /// Use this Jinja template instead of the model's
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// Variables for the chat template where a request sets none, such as '{"enable_thinking": false}'
    #[arg(long, value_name = "JSON", alias = "default-chat-template-kwargs", value_parser = args::variables)]
    chat_template_kwargs: Option<Map<String, Value>>,
    /// How the model writes calls of tools: hermes, llama3_json, mistral, qwen3_coder or pythonic [default: as its template says]
    #[arg(long, value_name = "NAME", value_parser = tool_format)]
    tool_call_parser: Option<ToolFormat>,
    /// Changes nothing, as models may always choose to call tools; for command lines that vLLM takes
    #[arg(long)]
    enable_auto_tool_choice: bool,
    /// Any name: reasoning is split off, whatever the template says; none: it is not [default: as the template says]
    #[arg(long, value_name = "NAME")]
    reasoning_parser: Option<String>,
    /// Sampling where a request says nothing: auto (the model's generation_config.json) or vllm (OpenAI's defaults)
    #[arg(long, value_name = "SOURCE", default_value = "auto")]
    generation_config: GenerationConfig,
}

/// Where defaults of sampling come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum GenerationConfig {
    /// The model's `generation_config.json`.
    Auto,
    /// Temperature 1 and nothing else.
    Vllm,
}

/// How much runs at a time.
#[derive(Debug, Args)]
#[command(next_help_heading = "Load")]
struct LoadArgs {
    /// Requests that run at a time
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_one)]
    max_num_seqs: usize,
    /// Tokens that go through the model in a step, about
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_one)]
    max_num_batched_tokens: usize,
    /// Tokens of a request, prompt and answer together [default: the model's]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    max_model_len: Option<usize>,
    /// Requests that run or wait; more are told to come back (status 429)
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = at_least_one)]
    max_requests: usize,
    /// The same of those that have one key, or none [default: three quarters of --max-requests if there are several keys, else all of them]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    max_requests_per_key: Option<usize>,
    /// Generate without draft tokens: the same text, and slower where it repeats itself
    #[arg(long)]
    no_speculation: bool,
    /// Let what runs beside a request change the last bits of its numbers, and so its text now and then: on CPUs with AMX bf16
    /// models answer fewer than 5 requests at a time up to 1.5 times as fast; elsewhere it changes nothing
    #[arg(long)]
    no_batch_invariance: bool,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if count >= 1 => Ok(count),
        _ => Err("a whole number of at least 1 is needed".to_owned()),
    }
}

fn tool_format(name: &str) -> Result<ToolFormat, String> {
    ToolFormat::parse_name(name).ok_or_else(|| {
        let names = ToolFormat::ALL.map(ToolFormat::name).join(", ");
        format!("there is no such parser, there are {names}")
    })
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok();
    let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.ok_or_else(|| "a number of seconds is needed, 0 or more".to_owned())
}

/// Requests of one key at a time: with several keys, some places are left for the others.
fn share(requests: usize, keys: usize) -> usize {
    match keys {
        0 | 1 => usize::MAX,
        _ => (requests - requests / 4).max(1),
    }
}

impl ServeArgs {
    /// What requests call the model, if that is said.
    pub fn names(&self) -> &[String] {
        &self.offer.served_model_name
    }

    /// Whether a text is the same whatever runs beside it.
    pub fn batch_invariant(&self) -> bool {
        !self.load.no_batch_invariance
    }

    /// How the engine works for so many keys.
    pub fn host_options(&self, keys: usize) -> HostOptions {
        let load = &self.load;
        HostOptions {
            memory_bytes: self.memory.memory_bytes,
            engine: EngineOptions {
                context: load.max_model_len,
                max_running: load.max_num_seqs,
                step_tokens: load.max_num_batched_tokens,
                speculation: if load.no_speculation {
                    Speculation::Off
                } else {
                    Speculation::Auto
                },
                kv: self.kv.options(),
                ..EngineOptions::default()
            },
            max_requests: load.max_requests,
            max_tenant_requests: load
                .max_requests_per_key
                .unwrap_or_else(|| share(load.max_requests, keys)),
            chat_template: self.offer.chat_template.clone(),
            ..HostOptions::default()
        }
    }

    /// How the server works. Lines of its log go to `log`.
    ///
    /// # Errors
    /// Keys that cannot be read, or are none; an origin or name that is none.
    pub fn server_options(&self, log: Option<Log>) -> Result<ServerOptions> {
        let (network, access, offer) = (&self.network, &self.access, &self.offer);
        self.check()?;
        let tls = network
            .ssl_certfile
            .clone()
            .zip(network.ssl_keyfile.clone());
        Ok(ServerOptions {
            listen: match &network.uds {
                Some(path) => Listen::Unix(path.clone()),
                None => Listen::Tcp {
                    host: network.host.clone(),
                    port: network.port,
                },
            },
            tls: tls.map(|(certificate, key)| Tls { certificate, key }),
            keys: if access.no_auth {
                Vec::new()
            } else {
                keys::read(&access.api_key, access.api_key_file.as_deref())?
            },
            no_auth: access.no_auth,
            public_page: access.public_page,
            allowed_hosts: access.allowed_host.clone(),
            allowed_origins: access.allowed_origin.clone(),
            limits: Limits {
                connections: network.max_connections,
                body_bytes: usize::try_from(network.max_body).unwrap_or(usize::MAX),
                shutdown: network.shutdown_timeout,
                ..Limits::default()
            },
            model: ModelOptions {
                neutral_sampling: offer.generation_config == GenerationConfig::Vllm,
                template_variables: offer.chat_template_kwargs.clone().unwrap_or_default(),
                tool_parser: offer.tool_call_parser,
                reasoning_parser: offer.reasoning_parser.clone(),
            },
            log,
            unlogged: access.disable_access_log_for_endpoints.clone(),
            log_requests: access.log_requests,
        })
    }

    /// Refuses what would never match anything.
    fn check(&self) -> Result<()> {
        for origin in &self.access.allowed_origin {
            let path = origin.split_once("://").map(|(_, host)| host);
            let whole = path.is_some_and(|host| !host.is_empty() && !host.contains('/'));
            if origin != "*" && !(whole && origin.is_ascii()) {
                bail!(UsageError(format!(
                    "--allowed-origin {origin}: an origin is a scheme, a name and perhaps a port, such as https://chat.example.com"
                )));
            }
        }
        for host in &self.access.allowed_host {
            if host.is_empty()
                || host.contains(['/', ' '])
                || host.parse::<std::net::SocketAddr>().is_ok()
            {
                bail!(UsageError(format!(
                    "--allowed-host {host}: the name alone is needed, without a scheme, port or path"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        serve: ServeArgs,
    }

    fn serve(line: &str) -> ServeArgs {
        Command::parse_from(line.split(' ')).serve
    }

    #[test]
    fn a_parser_that_is_not_known_is_refused_with_those_that_are() {
        let parser = |name: &str| {
            let line = ["serve", "--tool-call-parser", name];
            Command::try_parse_from(line).map(|command| command.serve.offer.tool_call_parser)
        };
        for (name, format) in [
            ("hermes", ToolFormat::Hermes),
            ("qwen3_xml", ToolFormat::Qwen3Coder),
        ] {
            assert_eq!(parser(name).unwrap(), Some(format));
        }
        let error = parser("klingon").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let error = error.to_string();
        assert!(
            error.contains("klingon") && error.contains("hermes, llama3_json"),
            "{error}"
        );
    }

    #[test]
    fn a_key_among_several_does_not_take_the_whole_queue() {
        for (line, keys, most) in [
            ("serve", 0, usize::MAX),
            ("serve", 1, usize::MAX),
            ("serve", 2, 768),
            ("serve --max-requests 1", 2, 1),
            ("serve --max-requests 10 --max-requests-per-key 9", 2, 9),
        ] {
            let options = serve(line).host_options(keys);
            assert_eq!(options.max_tenant_requests, most, "{line} with {keys} keys");
        }
    }
}
