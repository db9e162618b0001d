//! What is looked for in an answer, and what it is held to: calls of tools, reasoning, a form.

use std::collections::HashSet;
use std::sync::Arc;

use axum::http::StatusCode;
use sparamx_engine::{Grammar, GrammarSpec, Tokenizer};

use crate::error::{ApiError, cut};
use crate::generate::format;
use crate::state::Served;
use crate::tools::{
    Forcing, OutputParser, ParserConfig, Reasoning, ToolDefinition, ToolFormat, ToolMode,
    after_reasoning, check_kept, check_size, forced_grammar,
};
use crate::wire::openai::ChatRequest;
use crate::wire::openai::common::{Tool, ToolChoice};

const MAX_TOOLS: usize = 1024;
const MAX_NAME_BYTES: usize = 128;

/// What a request says of its answers, beside sampling.
#[derive(Debug, Clone)]
pub struct Output {
    /// Whether tools are called.
    pub mode: ToolMode,
    /// Whether there may be several calls in an answer.
    pub parallel: bool,
    /// Whether reasoning is part of the answer.
    pub shows_reasoning: bool,
    format: Option<ToolFormat>,
    tools: Arc<[ToolDefinition]>,
    reasoning: Reasoning,
    /// The form of the content.
    form: Option<GrammarSpec>,
}

impl Output {
    /// Of a request.
    ///
    /// # Errors
    /// 400: tools or a form that are none, or that exclude each other.
    pub fn new(served: &Served, request: &ChatRequest) -> Result<Self, ApiError> {
        let tools = request.tools.as_deref().unwrap_or_default();
        let tools = definitions(tools)?;
        let mode = mode(request.tool_choice.as_ref(), &tools)?;
        let formats = (&request.response_format, &request.structured_outputs);
        let form = format::grammar(formats.0.as_ref(), formats.1.as_ref())?;
        if mode.forces() && form.is_some() {
            let message = "tool_choice asks for a call of a tool, and response_format or structured_outputs for something else";
            return Err(ApiError::invalid("tool_choice", message));
        }
        if mode == ToolMode::Auto && form.is_none() {
            check_strict(&tools, served.tools)?;
        }
        Ok(Self {
            mode,
            parallel: request.parallel_tool_calls.unwrap_or(true),
            shows_reasoning: request.include_reasoning.unwrap_or(true),
            format: served.tools,
            tools: tools.into(),
            reasoning: Reasoning::Off,
            form,
        })
    }

    /// The prompt is there, and says whether the answer begins with reasoning.
    pub fn reasons(&mut self, reasoning: Reasoning) {
        // An expression or a grammar is for the whole text, which then begins with the answer though the prompt says otherwise.
        let whole = matches!(
            self.form,
            Some(GrammarSpec::Regex(_) | GrammarSpec::Lark(_))
        );
        self.reasoning = match reasoning {
            Reasoning::Opened if whole => Reasoning::Off,
            reasoning => reasoning,
        };
    }

    /// The ids of the marks that are looked for and are special tokens: the text must show them.
    pub fn marks(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let calls = self
            .format
            .filter(|_| self.calls())
            .map_or(&[][..], ToolFormat::marks);
        let thoughts = match self.reasoning {
            Reasoning::Off => &[][..],
            _ => &Reasoning::MARKS,
        };
        calls
            .iter()
            .chain(thoughts)
            .filter_map(|mark| tokenizer.special_id(mark))
            .collect()
    }

    /// What splits an answer; none: all of it is content.
    pub fn parser(&self) -> Option<OutputParser> {
        if !self.calls() && self.reasoning == Reasoning::Off {
            return None;
        }
        let none: Arc<[ToolDefinition]> = Arc::default();
        Some(OutputParser::new(ParserConfig {
            format: self.format,
            tools: if self.calls() {
                Arc::clone(&self.tools)
            } else {
                none
            },
            forced: self.mode.forces(),
            reasoning: self.reasoning,
        }))
    }

    /// What holds an answer to its form, and calls to their schemas. It may take seconds.
    ///
    /// # Errors
    /// 400: a form or a schema that cannot be kept.
    pub async fn grammar(&self, served: &Served) -> Result<Option<Grammar>, ApiError> {
        if let Some(form) = &self.form {
            let tokenizer = &served.host.loaded().tokenizer;
            let spec = after_reasoning(form.clone(), self.reasoning, &|mark| {
                tokenizer.special_id(mark)
            })?;
            return served.grammar(spec).await.map(Some);
        }
        let allowed = self.mode.allowed(&self.tools);
        if !self.mode.forces() && !allowed.iter().any(|tool| tool.strict) {
            return Ok(None);
        }
        let kept = match self.forced(served, false).await {
            Err(error) if error.status == StatusCode::BAD_REQUEST => error,
            grammar => return grammar,
        };
        // A schema has something that cannot be kept. Calls of tools that are not strict are then held to their syntax.
        if allowed.iter().all(|tool| tool.strict) {
            return Err(kept);
        }
        match self.forced(served, true).await {
            Err(error) if error.status == StatusCode::BAD_REQUEST => Err(kept),
            grammar => grammar,
        }
    }

    fn calls(&self) -> bool {
        self.mode != ToolMode::None
    }

    async fn forced(&self, served: &Served, loose: bool) -> Result<Option<Grammar>, ApiError> {
        let (output, tokenizer) = (self.clone(), Arc::clone(&served.host.loaded().tokenizer));
        let work = move || output.forcing(&tokenizer, loose);
        match served.compiling().run(work).await?? {
            Some(spec) => served.grammar(spec).await.map(Some),
            None => Ok(None),
        }
    }

    /// It may take a while.
    fn forcing(&self, tokenizer: &Tokenizer, loose: bool) -> Result<Option<GrammarSpec>, ApiError> {
        let forcing = Forcing {
            format: self.format,
            tools: &self.tools,
            mode: &self.mode,
            parallel: self.parallel,
            reasoning: self.reasoning,
            loose,
            special: &|mark| tokenizer.special_id(mark),
        };
        let checked = check_size(&forcing).and_then(|()| check_kept(&forcing));
        checked.map_err(|message| ApiError::invalid("tools", message))?;
        Ok(forced_grammar(&forcing))
    }
}

/// Refuses to promise that free calls follow their schemas where nothing says where a call begins.
fn check_strict(tools: &[ToolDefinition], format: Option<ToolFormat>) -> Result<(), ApiError> {
    let strict = tools.iter().position(|tool| tool.strict);
    let (Some(index), false) = (strict, format.is_some_and(ToolFormat::is_marked)) else {
        return Ok(());
    };
    let format = match format {
        Some(format) => format!(
            "writes calls as {}, without a mark before them",
            format.name()
        ),
        None => "has no known way to write calls".to_owned(),
    };
    let param = format!("tools[{index}].function.strict");
    let message = format!(
        "{param} is true, and the model {format}: strict needs tool_choice 'required' or a function here"
    );
    Err(ApiError::unsupported(param, message))
}

fn definitions(tools: &[Tool]) -> Result<Vec<ToolDefinition>, ApiError> {
    if tools.len() > MAX_TOOLS {
        let message = format!(
            "tools has {} tools, allowed are at most {MAX_TOOLS}",
            tools.len()
        );
        return Err(ApiError::invalid("tools", message));
    }
    let mut names = HashSet::new();
    let tools = tools.iter().enumerate();
    tools
        .map(|(index, tool)| {
            let tool = definition(tool, &format!("tools[{index}]"))?;
            if names.insert(tool.name.clone()) {
                return Ok(tool);
            }
            let message = format!("tools has two tools called '{}'", tool.name);
            Err(ApiError::invalid(
                format!("tools[{index}].function.name"),
                message,
            ))
        })
        .collect()
}

fn definition(tool: &Tool, path: &str) -> Result<ToolDefinition, ApiError> {
    if tool.kind != "function" {
        let kind = cut(&tool.kind, 40);
        let message =
            format!("{path}.type is '{kind}', and this server knows tools of type function only");
        return Err(ApiError::unsupported(format!("{path}.type"), message));
    }
    let Some(function) = &tool.function else {
        return Err(ApiError::invalid(
            format!("{path}.function"),
            format!("{path}.function is missing"),
        ));
    };
    let name = &function.name;
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
        let message = format!(
            "{path}.function.name has {} bytes, allowed are 1 to {MAX_NAME_BYTES} without controls",
            name.len()
        );
        return Err(ApiError::invalid(format!("{path}.function.name"), message));
    }
    Ok(ToolDefinition {
        name: name.clone(),
        description: function.description.clone(),
        parameters: function.parameters.clone(),
        strict: function.strict.unwrap_or(false),
    })
}

fn mode(choice: Option<&ToolChoice>, tools: &[ToolDefinition]) -> Result<ToolMode, ApiError> {
    let wrong = |message: String| Err(ApiError::invalid("tool_choice", message));
    let mode = match choice {
        None if tools.is_empty() => ToolMode::None,
        None => ToolMode::Auto,
        Some(ToolChoice::Mode(mode)) => match mode.as_str() {
            "none" => ToolMode::None,
            "auto" if tools.is_empty() => ToolMode::None,
            "auto" => ToolMode::Auto,
            "required" => ToolMode::Required,
            mode => {
                let mode = cut(mode, 40);
                return wrong(format!(
                    "tool_choice is '{mode}', allowed are none, auto, required and a function"
                ));
            }
        },
        Some(ToolChoice::Named(named)) => match &named.function {
            Some(function) if named.kind == "function" => ToolMode::Named(function.name.clone()),
            _ => {
                let kind = cut(&named.kind, 40);
                let message =
                    format!("tool_choice names a {kind}, and this server knows functions only");
                return Err(ApiError::unsupported("tool_choice", message));
            }
        },
    };
    if mode.forces() && mode.allowed(tools).is_empty() {
        return wrong("tool_choice asks for a call of a tool that is not among tools".to_owned());
    }
    Ok(mode)
}
