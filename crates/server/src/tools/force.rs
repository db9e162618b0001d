//! Grammars in which the tools of a request are called.

use std::collections::HashSet;
use std::fmt::Write;

use serde_json::{Map, Value, json};
use sparamx_engine::{EngineError, GrammarSpec};

use super::definition::{ToolDefinition, ToolMode};
use super::format::ToolFormat;
use super::reasoning::{CLOSE, OPEN, Reasoning};
use super::typed::{self, Kind};

/// What a grammar for calls is made of.
pub struct Forcing<'a> {
    /// How the model writes calls; none: as an object with `name` and `arguments`.
    pub format: Option<ToolFormat>,
    /// The tools of the request.
    pub tools: &'a [ToolDefinition],
    /// Which of them may or must be called.
    pub mode: &'a ToolMode,
    /// Whether there may be several calls.
    pub parallel: bool,
    /// Whether the text begins with reasoning.
    pub reasoning: Reasoning,
    /// Takes any object for the arguments of tools that are not strict: for schemas that the compiler refuses.
    pub loose: bool,
    /// The id of a special token, by its text.
    pub special: &'a dyn Fn(&str) -> Option<u32>,
}

impl Forcing<'_> {
    fn is_loose(&self, tool: &ToolDefinition) -> bool {
        self.loose && !tool.strict
    }
}

/// Keywords of a text that Qwen3-Coder's calls, which have no quotes around it, do not keep.
const NOT_KEPT: [&str; 4] = ["pattern", "format", "$ref", "allOf"];

/// Refuses to promise what calls in the model's format do not keep.
///
/// # Errors
/// Says which keyword of which argument of a strict tool that is.
pub fn check_kept(forcing: &Forcing) -> Result<(), String> {
    if forcing.format != Some(ToolFormat::Qwen3Coder) {
        return Ok(());
    }
    let allowed = forcing.mode.allowed(forcing.tools);
    for tool in allowed.into_iter().filter(|tool| tool.strict) {
        for (name, schema, _) in properties(tool) {
            let text = typed::kind(Some(&schema)).0 == Kind::Text;
            let keyword = NOT_KEPT.iter().find(|&&key| schema.get(key).is_some());
            if let (true, Some(keyword)) = (text, keyword) {
                return Err(format!(
                    "the tool '{}' is strict, and calls of qwen3_coder do not keep {keyword} of its text '{name}'",
                    tool.name
                ));
            }
        }
    }
    Ok(())
}

/// Where schemas have definitions.
const DEFINITIONS: [&str; 2] = ["$defs", "definitions"];
/// Longest schema of the arguments of a tool, in bytes.
const MAX_SCHEMA_BYTES: usize = 1 << 16;
/// All of them together, in bytes. Where each argument has a schema of its own, each has the definitions.
const MAX_ALL_BYTES: usize = 1 << 20;

/// Refuses tools whose schemas make too large a grammar.
///
/// # Errors
/// What is too large, and the limit.
pub fn check_size(forcing: &Forcing) -> Result<(), String> {
    let apart = matches!(
        forcing.format,
        Some(ToolFormat::Qwen3Coder | ToolFormat::Pythonic)
    );
    let bytes = |value: &Value| value.to_string().len();
    let mut all = 0usize;
    for tool in forcing.mode.allowed(forcing.tools) {
        let Some(schema) = tool.parameters.as_ref().filter(|_| !forcing.is_loose(tool)) else {
            continue;
        };
        let whole = bytes(schema);
        if whole > MAX_SCHEMA_BYTES {
            return Err(format!(
                "the schema of the tool '{}' has {whole} bytes, allowed are at most {MAX_SCHEMA_BYTES}",
                tool.name
            ));
        }
        let definitions = DEFINITIONS.iter().filter_map(|key| schema.get(key));
        let definitions: usize = definitions.map(bytes).sum();
        let arguments = schema["properties"].as_object().map_or(0, Map::len);
        all += whole + if apart { arguments * definitions } else { 0 };
        if all > MAX_ALL_BYTES {
            return Err(format!(
                "the schemas of the tools take more than {MAX_ALL_BYTES} bytes together, with their definitions for each argument \
                 where a call has no JSON"
            ));
        }
    }
    Ok(())
}

/// The grammar of a text that calls tools: where the mode forces a call, of one; for `Auto`, of any text in which calls, if there
/// are any, follow their schemas. None for `Auto` where a format has no mark that says where a call begins, and where there is
/// nothing to call.
pub fn forced_grammar(forcing: &Forcing) -> Option<GrammarSpec> {
    let tools = forcing.mode.allowed(forcing.tools);
    if tools.is_empty() {
        return None;
    }
    let mut grammar = Grammar::new(forcing);
    let body = match (forcing.mode, forcing.format) {
        (ToolMode::Auto, Some(format)) if format.is_marked() => grammar.free(format, &tools),
        (ToolMode::Auto, _) => return None,
        (_, format) => {
            let mark = format.map_or("", |format| format.starts()[0]);
            let begins = match format {
                Some(ToolFormat::Llama3Json | ToolFormat::Pythonic) | None => String::new(),
                Some(_) => grammar.mark(mark),
            };
            let rest = grammar.calls(format, &tools, &begins);
            format!("{begins} {rest}")
        }
    };
    grammar.reason(&body);
    Some(GrammarSpec::Composed {
        lark: grammar.rules,
        schemas: grammar.schemas,
    })
}

/// The grammar of a text that follows `spec` after what the model thinks.
///
/// # Errors
/// As [`GrammarSpec::choice_rule`].
pub fn after_reasoning(
    spec: GrammarSpec,
    reasoning: Reasoning,
    special: &dyn Fn(&str) -> Option<u32>,
) -> Result<GrammarSpec, EngineError> {
    if reasoning == Reasoning::Off {
        return Ok(spec);
    }
    let mode = ToolMode::None;
    let forcing = Forcing {
        format: None,
        tools: &[],
        mode: &mode,
        parallel: false,
        reasoning,
        loose: false,
        special,
    };
    let mut grammar = Grammar::new(&forcing);
    let body = match spec {
        GrammarSpec::JsonObject => grammar.schema("answer", json!({"type": "object"})),
        GrammarSpec::JsonSchema(schema) => grammar.schema("answer", schema),
        GrammarSpec::Choice(choices) => {
            let (body, terminal) = GrammarSpec::choice_rule(&choices)?;
            grammar.rule("CHOICE", &terminal);
            body.to_owned()
        }
        // Expressions and grammars of a client are whole texts; nothing is put before them.
        other => return Ok(other),
    };
    grammar.reason(&body);
    Ok(GrammarSpec::Composed {
        lark: grammar.rules,
        schemas: grammar.schemas,
    })
}

/// A grammar that grows.
struct Grammar<'a> {
    forcing: &'a Forcing<'a>,
    rules: String,
    schemas: Vec<(String, Value)>,
}

impl<'a> Grammar<'a> {
    fn new(forcing: &'a Forcing<'a>) -> Self {
        Self {
            forcing,
            rules: String::new(),
            schemas: Vec::new(),
        }
    }

    fn rule(&mut self, name: &str, body: &str) {
        // A text takes any number of them.
        let _ = writeln!(self.rules, "{name}: {body}");
    }

    /// A schema, as it is called in a rule.
    fn schema(&mut self, name: &str, schema: Value) -> String {
        self.schemas.push((name.to_owned(), schema));
        format!("@{name}")
    }

    /// A mark: a special token of the model, or its text.
    fn mark(&self, text: &str) -> String {
        match (self.forcing.special)(text) {
            Some(id) => format!("<[{id}]>"),
            None => quoted(text),
        }
    }

    /// The beginning of the grammar: `body`, after the reasoning there may be.
    fn reason(&mut self, body: &str) {
        let thought = self.until("thought", CLOSE);
        let start = match self.forcing.reasoning {
            Reasoning::Off => body.to_owned(),
            Reasoning::Opened => format!("{thought} BREAKS? {body}"),
            Reasoning::Possible => format!("({} {thought} BREAKS?)? {body}", self.mark(OPEN)),
        };
        if self.forcing.reasoning != Reasoning::Off {
            self.rule("BREAKS", r"/\n{1,2}/");
        }
        self.rule("start", &start);
    }

    /// A text up to a mark and with it, as it is called in a rule. Makes the rules that are needed.
    fn until(&mut self, name: &str, mark: &str) -> String {
        if (name, self.forcing.reasoning) == ("thought", Reasoning::Off) {
            return String::new();
        }
        match (self.forcing.special)(mark) {
            Some(id) => {
                self.rule(name, &format!(r"/(.|\n)*/ <[{id}]>"));
            }
            None => {
                self.rule(
                    &format!("{name}[lazy]"),
                    &format!(r"/(.|\n)*{}/", escaped(mark)),
                );
            }
        }
        name.to_owned()
    }

    /// Any text with calls in it.
    fn free(&mut self, format: ToolFormat, tools: &[&ToolDefinition]) -> String {
        let start = format.starts()[0];
        let begins = self.until("begins", start);
        let call = self.call(Some(format), tools);
        let parallel = self.forcing.parallel;
        let calls = match format {
            ToolFormat::Mistral if !self.is_named() => match parallel {
                true => format!("\"[\" {call} (\", \" {call})* \"]\""),
                false => format!("\"[\" {call} \"]\""),
            },
            _ => call.to_owned(),
        };
        self.rule("TEXT", r"/(.|\n)*/");
        match parallel {
            true => format!("({begins} {calls})* TEXT"),
            false => format!("(TEXT | {begins} {calls})"),
        }
    }

    /// One call or more, the first after its mark; the next ones begin with `begins`.
    fn calls(
        &mut self,
        format: Option<ToolFormat>,
        tools: &[&ToolDefinition],
        begins: &str,
    ) -> String {
        let several = self.forcing.parallel && *self.forcing.mode == ToolMode::Required;
        let one = self.call(format, tools);
        let next = match format {
            Some(ToolFormat::Hermes | ToolFormat::Qwen3Coder) => format!("\"\\n\" {begins} {one}"),
            Some(ToolFormat::Llama3Json) => format!("\"; \" {one}"),
            Some(ToolFormat::Mistral) if self.is_named() => format!("{begins} {one}"),
            Some(ToolFormat::Mistral | ToolFormat::Pythonic) | None => format!("\", \" {one}"),
        };
        let all = match several {
            true => format!("{one} ({next})*"),
            false => one.to_owned(),
        };
        match format {
            Some(ToolFormat::Mistral) if self.is_named() => all,
            Some(ToolFormat::Mistral | ToolFormat::Pythonic) => format!("\"[\" {all} \"]\""),
            None if several => format!("\"[\" {all} \"]\""),
            _ => all,
        }
    }

    /// Whether calls are a name and an object, as the newer models of Mistral write them.
    fn is_named(&self) -> bool {
        (self.forcing.special)("[ARGS]").is_some()
    }

    /// One call of one of the tools.
    fn call(&mut self, format: Option<ToolFormat>, tools: &[&ToolDefinition]) -> &'static str {
        let calls = tools.iter().enumerate().map(|(index, tool)| {
            let body = self.one(format, index, tool);
            let name = format!("call_{index}");
            self.rule(&name, &body);
            name
        });
        let calls: Vec<String> = calls.collect();
        self.rule("call", &calls.join(" | "));
        "call"
    }

    /// A call of one tool, after the mark.
    fn one(&mut self, format: Option<ToolFormat>, index: usize, tool: &ToolDefinition) -> String {
        match format {
            Some(ToolFormat::Qwen3Coder) => return self.xml(index, tool),
            Some(ToolFormat::Pythonic) => return self.python(index, tool),
            _ => {}
        }
        let arguments = match self.forcing.is_loose(tool) {
            true => json!({"type": "object"}),
            false => tool.schema(),
        };
        let arguments = self.schema(&format!("arguments_{index}"), arguments);
        let key = match format {
            Some(ToolFormat::Llama3Json) => "parameters",
            _ => "arguments",
        };
        let name = json!(tool.name);
        let object = quoted(&format!("{{\"name\": {name}, \"{key}\": "));
        match format {
            Some(ToolFormat::Hermes) => {
                let end = self.mark("</tool_call>");
                let object = quoted(&format!("\n{{\"name\": {name}, \"{key}\": "));
                format!("{object} {arguments} \"}}\\n\" {end}")
            }
            Some(ToolFormat::Mistral) if self.is_named() => {
                let begins = self.mark("[ARGS]");
                format!("{} {begins} {arguments}", quoted(&tool.name))
            }
            _ => format!("{object} {arguments} \"}}\""),
        }
    }

    /// A call of Qwen3-Coder: the arguments in the order of the schema.
    fn xml(&mut self, index: usize, tool: &ToolDefinition) -> String {
        let mut body = quoted(&format!("\n<function={}>\n", tool.name));
        for (place, (name, schema, required)) in properties(tool).into_iter().enumerate() {
            let begins = quoted(&format!("<parameter={name}>\n"));
            let rule = format!("value_{index}_{place}");
            let value = match typed::kind(Some(&schema)).0 {
                Kind::Text if self.forcing.is_loose(tool) => self.text(&rule, &json!({})),
                Kind::Text => self.text(&rule, &schema),
                _ => {
                    let schema = self.part(tool, schema);
                    format!("{} \"\\n</parameter>\\n\"", self.schema(&rule, schema))
                }
            };
            let optional = if required { "" } else { "?" };
            let _ = write!(body, " ({begins} {value}){optional}");
        }
        let end = self.mark("</tool_call>");
        format!("{body} \"</function>\\n\" {end}")
    }

    /// A text without quotes, with the mark that ends it.
    fn text(&mut self, rule: &str, schema: &Value) -> String {
        const END: &str = "\n</parameter>\n";
        // Among texts there may be null.
        let texts = typed::values(schema).iter();
        let texts: Vec<&str> = texts
            .map(|value| value.as_str().unwrap_or("null"))
            .collect();
        let least = schema["minLength"].as_u64().unwrap_or(0);
        if let (true, Some(most)) = (texts.is_empty(), schema["maxLength"].as_u64()) {
            return format!(r"/(.|\n){{{least},{most}}}/ {}", quoted(END));
        }
        if texts.is_empty() {
            self.rule(
                &format!("{rule}[lazy]"),
                &format!(r"/(.|\n){{{least},}}{}/", escaped(END)),
            );
            return rule.to_owned();
        }
        let texts: Vec<String> = texts.into_iter().map(quoted).collect();
        format!("({}) {}", texts.join(" | "), quoted(END))
    }

    /// A call in Python: arguments that must be there first, each by its key.
    fn python(&mut self, index: usize, tool: &ToolDefinition) -> String {
        let mut all = properties(tool);
        all.sort_by_key(|(_, _, required)| !required);
        let mut arguments: Vec<(String, bool)> = Vec::new();
        for (place, (name, schema, required)) in all.into_iter().enumerate() {
            let value = match typed::kind(Some(&schema)) {
                (Kind::Boolean, false) => "(\"True\" | \"False\")".to_owned(),
                _ => {
                    let schema = self.part(tool, schema);
                    self.schema(&format!("value_{index}_{place}"), schema)
                }
            };
            arguments.push((format!("{} {value}", quoted(&format!("{name}="))), required));
        }
        // Each rule is the arguments from one on; what comes before it decides on the comma.
        let mut rest = String::new();
        for (place, (argument, required)) in arguments.iter().enumerate().rev() {
            let rule = format!("arguments_{index}_{place}");
            let more = match rest.as_str() {
                "" => String::new(),
                rest if arguments[place + 1].1 => format!(" \", \" {rest}"),
                rest => format!(" (\", \" {rest})?"),
            };
            let skip = match (required, rest.as_str()) {
                (true, _) | (_, "") => String::new(),
                (false, rest) => format!(" | {rest}"),
            };
            self.rule(&rule, &format!("{argument}{more}{skip}"));
            rest = rule;
        }
        if arguments.first().is_some_and(|(_, required)| !required) {
            rest.push('?');
        }
        format!("{} {rest} \")\"", quoted(&format!("{}(", tool.name)))
    }

    /// The schema of one argument by itself, with the definitions that it may refer to.
    fn part(&self, tool: &ToolDefinition, schema: Value) -> Value {
        if self.forcing.is_loose(tool) {
            let kind = schema["type"].clone();
            return match kind {
                Value::Null => json!({}),
                kind => json!({"type": kind}),
            };
        }
        let Value::Object(mut part) = schema else {
            return schema;
        };
        for key in DEFINITIONS {
            if let Some(definitions) = tool.parameters.as_ref().and_then(|all| all.get(key)) {
                part.insert(key.to_owned(), definitions.clone());
            }
        }
        Value::Object(part)
    }
}

/// Name, schema, and whether it must be there, of each argument.
fn properties(tool: &ToolDefinition) -> Vec<(String, Value, bool)> {
    let schema = tool.schema();
    let required = schema["required"].as_array().into_iter().flatten();
    let required: HashSet<&str> = required.filter_map(Value::as_str).collect();
    let none = Map::new();
    let all = schema["properties"].as_object().unwrap_or(&none);
    all.iter()
        .map(|(name, schema)| {
            (
                name.clone(),
                schema.clone(),
                required.contains(name.as_str()),
            )
        })
        .collect()
}

/// A text as a rule has it.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// A text within an expression between slashes.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '\n' => escaped.push_str("\\n"),
            c if c.is_ascii_punctuation() && c != '<' && c != '>' && c != '_' => {
                escaped.push('\\');
                escaped.push(c);
            }
            c => escaped.push(c),
        }
    }
    escaped
}
