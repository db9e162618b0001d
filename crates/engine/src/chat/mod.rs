//! Conversations to prompts, by the template that comes with a model.

mod conversation;
mod filters;
#[cfg(test)]
mod hostile;
mod json;
mod methods;
mod python;
mod sandbox;
#[cfg(test)]
mod snippets;
mod syntax;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::Local;
use chrono::format::StrftimeItems;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, ErrorKind, escape_formatter};
use serde::Serialize;
use sparamx_model::{ModelError, read_small_file};

use crate::EngineError;
use crate::folder::{read_object, read_text, special_tokens, utf8};

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }
}

pub use conversation::Conversation;

const NAME: &str = "chat";
const MAX_DATE_FORMAT_BYTES: usize = 256;

/// The chat template of a model: a Jinja template, run as Transformers runs it.
///
/// So blocks take the line break after them and the blanks before them; there are `raise_exception`, `strftime_now`, `break`
/// and `continue`, `generation` tags, the methods of Python's strings, lists and dictionaries, and a `tojson` that writes as
/// Python's `json.dumps` does. The template sees `messages`, `add_generation_prompt`, the special tokens by role (`bos_token`,
/// `eos_token`, ...), `tools` and `documents`, which are none, and [variables](Self::with_variables).
///
/// A template comes with the weights, from anyone: its work and its memory are bounded.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    env: Arc<Environment<'static>>,
    source: Arc<str>,
    path: PathBuf,
    variables: BTreeMap<String, Value>,
    /// Whether contents are to be lists of parts.
    parts: conversation::Found,
}

impl ChatTemplate {
    /// Reads the template of a model's folder: `chat_template.jinja`, or `chat_template` in `tokenizer_config.json`, which is
    /// a text or a list of named ones (the one called `default` then). None when the model has no template, or an empty one: a
    /// base model.
    ///
    /// # Errors
    /// A file that cannot be read; a field that is neither; a syntax error, with its line.
    pub fn from_dir(dir: &Path) -> Result<Option<Self>, EngineError> {
        let (path, source) = match read_text(dir, "chat_template.jinja")? {
            Some(source) => (dir.join("chat_template.jinja"), source),
            None => {
                let path = dir.join("tokenizer_config.json");
                let config = read_object(dir, "tokenizer_config.json")?;
                match configured(&config["chat_template"], &path)? {
                    Some(source) => (path, source.to_owned()),
                    None => return Ok(None),
                }
            }
        };
        Self::unless_empty(&path, &source, dir)
    }

    /// Reads a template of the user's from a file, for the model in a folder. None if it is empty.
    ///
    /// # Errors
    /// A file that cannot be read; a syntax error, with its line.
    pub fn from_file(file: &Path, dir: &Path) -> Result<Option<Self>, EngineError> {
        let bytes = read_small_file(file)?.ok_or_else(|| ModelError::not_found(file))?;
        Self::unless_empty(file, &utf8(bytes, file)?, dir)
    }

    /// The template with this text for the model in a folder; none if it is empty.
    fn unless_empty(path: &Path, source: &str, dir: &Path) -> Result<Option<Self>, EngineError> {
        if source.trim().is_empty() {
            return Ok(None);
        }
        Self::new(path, source, named_tokens(dir)?).map(Some)
    }

    /// A template from its text; `path` is where it came from, for messages, and `special_tokens` are (role, text).
    ///
    /// # Errors
    /// A syntax error, with its line; a text of more than 256 kB.
    pub fn new<R, T>(
        path: &Path,
        source: &str,
        special_tokens: impl IntoIterator<Item = (R, T)>,
    ) -> Result<Self, EngineError>
    where
        R: ToString,
        T: ToString,
    {
        let failed = |line, error| EngineError::Template {
            path: path.to_owned(),
            line,
            error,
        };
        if source.len() > sandbox::MAX_TEMPLATE_BYTES {
            let (bytes, limit) = (source.len(), sandbox::MAX_TEMPLATE_BYTES);
            let error = format!("the template has {bytes} bytes, at most {limit} are read");
            return Err(failed(None, error));
        }
        let source: Arc<str> = source.into();
        let text = Arc::clone(&source);
        let env = sandbox::run(move || compile(&text))
            .map_err(|failure| failure.into_error(|error| failed(None, error)))?
            .map_err(|e| template_error(path, &e))?;
        let variables = special_tokens
            .into_iter()
            .map(|(role, text)| (role.to_string(), Value::from(text.to_string())));
        Ok(Self {
            env: Arc::new(env),
            source,
            path: path.to_owned(),
            variables: variables.collect(),
            parts: conversation::Found::default(),
        })
    }

    /// The same with variables for the template, such as `enable_thinking`, in place of those of these names, if any:
    /// special tokens, `tools`, `documents`.
    #[must_use]
    pub fn with_variables(mut self, variables: serde_json::Map<String, serde_json::Value>) -> Self {
        let values = variables.into_iter();
        self.variables
            .extend(values.map(|(name, value)| (name, Value::from(Serde(value)))));
        self
    }

    /// The text of the template.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template says `name` anywhere; a variable that it does not say changes nothing.
    pub fn mentions(&self, name: &str) -> bool {
        self.source.contains(name)
    }

    /// The prompt for a conversation. With `add_generation_prompt` it ends where the model's answer begins.
    ///
    /// The text holds the special tokens already: encode it without adding any.
    ///
    /// # Errors
    /// The template refuses the conversation (roles out of turn, say), or fails, with the line; it takes too much work.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, EngineError> {
        let messages: Vec<serde_json::Value> = messages
            .iter()
            .map(|message| serde_json::json!({"role": message.role, "content": message.content}))
            .collect();
        let variables = [
            ("messages".to_owned(), messages.into()),
            (
                "add_generation_prompt".to_owned(),
                add_generation_prompt.into(),
            ),
        ];
        self.render_variables(serde_json::Map::from_iter(variables))
    }

    /// Renders with these variables and those of the template, of which `tools` and `documents` are none where nobody says more.
    fn render_variables(
        &self,
        variables: serde_json::Map<String, serde_json::Value>,
    ) -> Result<String, EngineError> {
        let mut context = self.variables.clone();
        let given = variables.into_iter();
        context.extend(given.map(|(name, value)| (name, Value::from(Serde(value)))));
        for name in ["tools", "documents"] {
            context.entry(name.to_owned()).or_insert(Value::from(()));
        }
        let env = Arc::clone(&self.env);
        sandbox::run(move || env.get_template(NAME)?.render(context))
            .map_err(|failure| {
                failure.into_error(|error| EngineError::Template {
                    path: self.path.clone(),
                    line: None,
                    error,
                })
            })?
            .map_err(|e| template_error(&self.path, &e))
    }
}

/// The environment in which Transformers runs a template, and the template in it.
fn compile(source: &str) -> Result<Environment<'static>, minijinja::Error> {
    let mut env = Environment::new();
    let blocks = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .expect("the delimiters are the default ones");
    let source = syntax::translate(source, &blocks);
    env.set_syntax(blocks);
    env.set_fuel(Some(sandbox::FUEL));
    env.set_unknown_method_callback(methods::call);
    env.set_formatter(|out, state, value| match value.as_str() {
        Some(_) => escape_formatter(out, state, value),
        None => Ok(out.write_str(&python::text(state, value)?)?),
    });
    filters::add_to(&mut env);
    // Jinja has it as an extension only, and it prints all there is, at any length.
    env.remove_global("debug");
    env.add_function("raise_exception", raise_exception);
    env.add_function("strftime_now", strftime_now);
    env.add_template_owned(NAME, source)?;
    Ok(env)
}

/// The special tokens of a model's folder that have a text.
fn named_tokens(dir: &Path) -> Result<impl Iterator<Item = (String, String)>, EngineError> {
    let tokens = special_tokens(dir)?.into_iter();
    Ok(tokens.filter_map(|(role, text)| Some((role, text?))))
}

/// The template that a field of `tokenizer_config.json` holds.
fn configured<'a>(
    field: &'a serde_json::Value,
    path: &Path,
) -> Result<Option<&'a str>, EngineError> {
    match field {
        serde_json::Value::Null => Ok(None),
        serde_json::Value::String(source) => Ok(Some(source)),
        named => default_template(named).map(|source| Some(source.as_str())).ok_or_else(|| EngineError::Json {
            path: path.to_owned(),
            error: "field 'chat_template' is neither a text nor a list with a template named 'default'"
                .to_owned(),
        }),
    }
}

/// The template called `default` in a list of `{"name", "template"}`.
fn default_template(named: &serde_json::Value) -> Option<&String> {
    let is_default = |entry: &&serde_json::Value| entry["name"] == "default";
    match &named.as_array()?.iter().find(is_default)?["template"] {
        serde_json::Value::String(source) => Some(source),
        _ => None,
    }
}

fn template_error(path: &Path, error: &minijinja::Error) -> EngineError {
    let kind = error.kind();
    EngineError::Template {
        path: path.to_owned(),
        line: error.line(),
        error: match error.detail() {
            _ if kind == ErrorKind::OutOfFuel => {
                "it takes more work or memory than a template may".to_owned()
            }
            Some(detail) => format!("{kind}: {detail}"),
            None => kind.to_string(),
        },
    }
}

/// What goes wrong in a filter or a method.
fn invalid(what: impl Into<std::borrow::Cow<'static, str>>) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, what)
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(invalid(message))
}

/// The local date and time by a format of `strftime`.
fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    // A letter of it can become many.
    if format.len() > MAX_DATE_FORMAT_BYTES {
        return Err(invalid(format!(
            "a format for a date has at most {MAX_DATE_FORMAT_BYTES} bytes"
        )));
    }
    let items = StrftimeItems::new(format)
        .parse()
        .map_err(|_| invalid(format!("'{format}' is no format for a date")))?;
    Ok(Local::now().format_with_items(items.iter()).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, EngineError> {
        let messages = [
            Message::new("user", "Hi <b> & é"),
            Message::new("assistant", " Yes "),
        ];
        ChatTemplate::new(
            Path::new("dir/chat_template.jinja"),
            source,
            [("bos_token", "<s>")],
        )?
        .render(&messages, true)
    }

    #[track_caller]
    fn assert_renders(source: &str, want: &str) {
        assert_eq!(render(source).unwrap(), want, "{source}");
    }

    #[test]
    fn blocks_take_their_line_and_text_is_not_escaped() {
        assert_renders(
            "{{ bos_token }}\n{% for m in messages %}\n  {% if m.role == 'user' %}\n<{{ m['content'] }}>\n  {% endif %}\n\
             {% endfor %}\nend\n",
            "<s>\n<Hi <b> & é>\nend",
        );
        assert_renders(
            "{{ eos_token }}|{{ tools is none }}|{{ documents is none }}",
            "|True|True",
        );
        assert_renders("{% if add_generation_prompt %}go{% endif %}", "go");
    }

    #[test]
    fn python_methods_and_loop_controls_work() {
        assert_renders("{{ messages[1].content.strip() }}", "Yes");
        assert_renders(
            "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}x{% endfor %}",
            "x",
        );
        assert_renders("{{ messages[-1]['role'].upper() }}", "ASSISTANT");
        assert_renders("{{ messages[0].get('name', 'none') }}", "none");
        assert_renders(
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "2",
        );
    }

    #[test]
    fn dates_follow_the_format() {
        let year = Local::now().format("%Y").to_string();
        assert_renders("{{ strftime_now('%Y') }}", &year);
        let error = render("{{ strftime_now('%Q') }}").unwrap_err().to_string();
        assert!(error.ends_with("'%Q' is no format for a date"), "{error}");
    }

    #[test]
    fn errors_name_file_and_line() {
        let refused = render("\n{{ raise_exception('roles must alternate') }}").unwrap_err();
        assert_eq!(
            refused.to_string(),
            "dir/chat_template.jinja, line 2 of the template: invalid operation: roles must alternate"
        );
        let syntax = render("\n\n{% for %}").unwrap_err().to_string();
        assert!(
            syntax.starts_with("dir/chat_template.jinja, line 3 of the template: syntax error"),
            "{syntax}"
        );
    }

    #[test]
    fn a_folder_gives_the_file_before_the_field() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let rendered =
            || ChatTemplate::from_dir(dir.path()).map(|t| t.map(|t| t.render(&[], false).unwrap()));
        assert_eq!(rendered().unwrap(), None);
        write(
            "tokenizer_config.json",
            r#"{"bos_token": "<s>", "chat_template": "{{ bos_token }}text"}"#,
        );
        assert_eq!(rendered().unwrap().as_deref(), Some("<s>text"));
        write(
            "tokenizer_config.json",
            r#"{"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}"#,
        );
        assert_eq!(rendered().unwrap().as_deref(), Some("d"));
        for bad in [
            r#"{"chat_template": 7}"#,
            r#"{"chat_template": [{"name": "rag", "template": "r"}]}"#,
        ] {
            write("tokenizer_config.json", bad);
            let error = rendered().unwrap_err().to_string();
            assert!(
                error.contains("tokenizer_config.json: field 'chat_template'"),
                "{error}"
            );
        }
        write("tokenizer_config.json", r#"{"chat_template": ""}"#);
        assert_eq!(rendered().unwrap(), None);
        write("chat_template.jinja", "file");
        assert_eq!(rendered().unwrap().as_deref(), Some("file"));
        write("own.jinja", "{{ bos_token }}own");
        write("tokenizer_config.json", r#"{"bos_token": "<s>"}"#);
        let own = ChatTemplate::from_file(&dir.path().join("own.jinja"), dir.path());
        assert_eq!(own.unwrap().unwrap().render(&[], false).unwrap(), "<s>own");
        let absent = ChatTemplate::from_file(&dir.path().join("absent.jinja"), dir.path());
        assert!(absent.unwrap_err().to_string().contains("absent.jinja"));
    }

    #[test]
    fn variables_come_from_the_caller() {
        let template = ChatTemplate::new(
            Path::new("t"),
            "{{ thinking is false }}{{ tools[0].name }}{{ bos_token }}",
            [("bos_token", "<s>")],
        )
        .unwrap();
        assert!(template.mentions("thinking") && !template.mentions("thinkin_"));
        let variables =
            serde_json::json!({"thinking": false, "tools": [{"name": "t"}], "bos_token": "!"});
        let template = template.with_variables(variables.as_object().unwrap().clone());
        assert_eq!(template.render(&[], true).unwrap(), "Truet!");
    }
}
