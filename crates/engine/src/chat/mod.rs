//! Conversations to prompts, by the template that comes with a model.

mod json;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use chrono::Local;
use chrono::format::StrftimeItems;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, ErrorKind, context};
use minijinja_contrib::pycompat;
use serde::Serialize;

use crate::EngineError;
use crate::folder::{read_object, read_text, special_tokens};

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

const NAME: &str = "chat";

/// The chat template of a model: a Jinja template, run as Transformers runs it.
///
/// So blocks take the line break after them and the blanks before them; there are `raise_exception`, `strftime_now`, `break`
/// and `continue`, the methods of Python's strings, lists and dictionaries, and a `tojson` that writes as Python's
/// `json.dumps` does. The template sees `messages`, `add_generation_prompt`, the special tokens by role (`bos_token`,
/// `eos_token`, ...), and `tools` and `documents`, which are none.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    path: PathBuf,
    special_tokens: Value,
}

impl ChatTemplate {
    /// Reads the template of a model's folder: `chat_template.jinja`, or `chat_template` in `tokenizer_config.json`, which is
    /// a text or a list of named ones (the one called `default` then). None when the model has no template: a base model.
    ///
    /// # Errors
    /// A file that cannot be read; a field that is neither; a syntax error, with its line.
    pub fn from_dir(dir: &Path) -> Result<Option<Self>, EngineError> {
        let tokens = special_tokens(dir)?;
        let tokens = || {
            tokens
                .iter()
                .filter_map(|(role, text)| Some((role, text.as_ref()?)))
        };
        let path = dir.join("chat_template.jinja");
        if let Some(source) = read_text(dir, "chat_template.jinja")? {
            return Self::new(&path, &source, tokens()).map(Some);
        }
        let path = dir.join("tokenizer_config.json");
        let config = read_object(dir, "tokenizer_config.json")?;
        let source = match &config["chat_template"] {
            serde_json::Value::Null => return Ok(None),
            serde_json::Value::String(source) => source,
            named => default_template(named).ok_or_else(|| EngineError::Json {
                path: path.clone(),
                error: "field 'chat_template' is neither a text nor a list with a template named 'default'"
                    .to_owned(),
            })?,
        };
        Self::new(&path, source, tokens()).map(Some)
    }

    /// A template from its text; `path` is where it came from, for messages, and `special_tokens` are (role, text).
    ///
    /// # Errors
    /// A syntax error, with its line.
    pub fn new<R, T>(
        path: &Path,
        source: &str,
        special_tokens: impl IntoIterator<Item = (R, T)>,
    ) -> Result<Self, EngineError>
    where
        R: ToString,
        T: ToString,
    {
        let mut env = Environment::new();
        let blocks = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .expect("the delimiters are the default ones");
        env.set_syntax(blocks);
        env.set_unknown_method_callback(pycompat::unknown_method_callback);
        env.add_filter("tojson", json::tojson);
        env.add_function("raise_exception", raise_exception);
        env.add_function("strftime_now", strftime_now);
        env.add_template_owned(NAME, source.to_owned())
            .map_err(|e| template_error(path, &e))?;
        let special_tokens: BTreeMap<String, Value> = special_tokens
            .into_iter()
            .map(|(role, text)| (role.to_string(), Value::from(text.to_string())))
            .collect();
        Ok(Self {
            env,
            path: path.to_owned(),
            special_tokens: special_tokens.into(),
        })
    }

    /// The prompt for a conversation. With `add_generation_prompt` it ends where the model's answer begins.
    ///
    /// The text holds the special tokens already: encode it without adding any.
    ///
    /// # Errors
    /// The template refuses the conversation (roles out of turn, say), or fails; with the line.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, EngineError> {
        let context = context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt,
            tools => (),
            documents => (),
            ..self.special_tokens.clone()
        };
        self.env
            .get_template(NAME)
            .and_then(|template| template.render(context))
            .map_err(|e| template_error(&self.path, &e))
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
            Some(detail) => format!("{kind}: {detail}"),
            None => kind.to_string(),
        },
    }
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// The local date and time by a format of `strftime`.
fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    let items = StrftimeItems::new(format).parse().map_err(|_| {
        let message = format!("'{format}' is no format for a date");
        minijinja::Error::new(ErrorKind::InvalidOperation, message)
    })?;
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
            "{{ bos_token }}\n{% for m in messages %}\n  {% if m.role == 'user' %}\n<{{ m['content'] }}>\n  {% endif %}\n{% endfor %}\nend\n",
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
        write("chat_template.jinja", "file");
        assert_eq!(rendered().unwrap().as_deref(), Some("file"));
    }
}
