//! A request of the Messages API as one of chat.

use serde_json::{Map, Value, json};

use super::content::messages;
use crate::error::ApiError;
use crate::wire::anthropic::{
    MessageTool, MessageToolChoice, MessagesRequest, OutputConfig, Thinking,
};
use crate::wire::openai::ChatRequest;
use crate::wire::openai::common::{
    FunctionDefinition, NamedFunction, NamedSchema, NamedTool, ResponseFormat, Strings, Tool,
    ToolChoice,
};

/// Fields of chat, and what they are called in the Messages API.
pub const FIELDS: [(&str, &str); 4] = [
    ("max_completion_tokens", "max_tokens"),
    ("stop", "stop_sequences"),
    ("response_format", "output_config.format"),
    ("reasoning_effort", "output_config.effort"),
];

/// The request as one of chat.
///
/// # Errors
/// 400: what is not as the API has it, and images and documents.
pub fn chat_request(request: MessagesRequest) -> Result<ChatRequest, ApiError> {
    let tools = tools(request.tools.unwrap_or_default())?;
    let choice = request.tool_choice.as_ref();
    if tools.is_empty() && choice.is_some_and(|choice| ["any", "tool"].contains(&&*choice.kind)) {
        let message = "tool_choice: it asks for a call, and tools has none of the client's: this server runs no tools of its own";
        return Err(ApiError::invalid("tool_choice", message));
    }
    let choice = choice.filter(|_| !tools.is_empty());
    let format = request
        .output_config
        .as_ref()
        .map(format)
        .transpose()?
        .flatten();
    Ok(ChatRequest {
        messages: messages(request.system.as_ref(), &request.messages)?,
        model: request.model,
        max_completion_tokens: request.max_tokens,
        cut_to_context: true,
        stop: request.stop_sequences.map(Strings::Many),
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: request.top_k,
        chat_template_kwargs: request.thinking.as_ref().map(thinking).transpose()?,
        parallel_tool_calls: choice.and_then(|choice| Some(!choice.disable_parallel_tool_use?)),
        tool_choice: choice.map(tool_choice).transpose()?,
        tools: (!tools.is_empty()).then_some(tools),
        response_format: format,
        reasoning_effort: request.output_config.and_then(|config| config.effort),
        ..ChatRequest::default()
    })
}

/// The client's own functions. The others are left out: Anthropic's servers would run them.
fn tools(tools: Vec<MessageTool>) -> Result<Vec<Tool>, ApiError> {
    let own = |tool: &MessageTool| tool.kind.as_deref().is_none_or(|kind| kind == "custom");
    let mut functions = Vec::with_capacity(tools.len());
    for (index, tool) in tools.into_iter().enumerate().filter(|(_, tool)| own(tool)) {
        let path = || format!("tools[{index}].input_schema");
        let schema = tool.input_schema.ok_or_else(|| {
            ApiError::invalid(path(), format!("{}: a tool needs a schema", path()))
        })?;
        functions.push(Tool {
            kind: "function".to_owned(),
            function: Some(FunctionDefinition {
                name: tool.name,
                description: tool.description,
                parameters: Some(schema),
                strict: tool.strict,
            }),
        });
    }
    Ok(functions)
}

fn tool_choice(choice: &MessageToolChoice) -> Result<ToolChoice, ApiError> {
    let mode = |mode: &str| Ok(ToolChoice::Mode(mode.to_owned()));
    match (choice.kind.as_str(), &choice.name) {
        ("auto", _) => mode("auto"),
        ("any", _) => mode("required"),
        ("none", _) => mode("none"),
        ("tool", Some(name)) => Ok(ToolChoice::Named(NamedTool {
            kind: "function".to_owned(),
            function: Some(NamedFunction { name: name.clone() }),
        })),
        ("tool", None) => Err(ApiError::invalid(
            "tool_choice.name",
            "tool_choice.name: a choice of a tool needs its name",
        )),
        _ => Err(ApiError::invalid(
            "tool_choice.type",
            "tool_choice.type: one of 'auto', 'any', 'tool' and 'none'",
        )),
    }
}

/// What a chat template has to know.
fn thinking(thinking: &Thinking) -> Result<Map<String, Value>, ApiError> {
    let on = match thinking.kind.as_str() {
        "enabled" | "adaptive" | "between_tools" => true,
        "disabled" => false,
        _ => {
            return Err(ApiError::invalid(
                "thinking.type",
                "thinking.type: one of 'enabled', 'adaptive' and 'disabled'",
            ));
        }
    };
    Ok(Map::from_iter([("enable_thinking".to_owned(), json!(on))]))
}

fn format(config: &OutputConfig) -> Result<Option<ResponseFormat>, ApiError> {
    let Some(format) = &config.format else {
        return Ok(None);
    };
    let path = "output_config.format";
    if format.kind != "json_schema" {
        return Err(ApiError::invalid(
            format!("{path}.type"),
            format!("{path}.type: only 'json_schema' is supported"),
        ));
    }
    let schema = format.schema.clone();
    let schema = schema.ok_or_else(|| {
        ApiError::invalid(
            format!("{path}.schema"),
            format!("{path}.schema: it is missing"),
        )
    })?;
    Ok(Some(ResponseFormat {
        kind: "json_schema".to_owned(),
        json_schema: Some(NamedSchema {
            name: None,
            description: None,
            schema: Some(schema),
            strict: None,
        }),
        schema: None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extract::parse;

    fn chat(body: Value) -> Result<ChatRequest, ApiError> {
        chat_request(parse(body.to_string().as_bytes()).unwrap())
    }

    fn refused(body: Value) -> String {
        let error = chat(body).unwrap_err();
        assert_eq!(error.status, 400);
        error.param.unwrap()
    }

    #[test]
    fn fields_keep_their_meaning() {
        let chat = chat(json!({
            "model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}], "stop_sequences": ["END"],
            "temperature": 0.2, "top_p": 0.8, "top_k": 3, "metadata": {"user_id": "u"}, "thinking": {"type": "disabled"},
        }))
        .unwrap();
        assert_eq!(
            (chat.model.as_deref(), chat.max_completion_tokens),
            (Some("m"), Some(9))
        );
        assert_eq!(chat.stop, Some(Strings::Many(vec!["END".to_owned()])));
        assert_eq!(
            (chat.temperature, chat.top_p, chat.top_k),
            (Some(0.2), Some(0.8), Some(3))
        );
        assert_eq!(
            chat.chat_template_kwargs.unwrap()["enable_thinking"],
            json!(false)
        );
        assert!(
            chat.tools.is_none()
                && chat.tool_choice.is_none()
                && chat.parallel_tool_calls.is_none()
        );
    }

    fn with_tools(choice: Value) -> Value {
        json!({"messages": [{"role": "user", "content": "Hi"}], "tool_choice": choice, "tools": [
            {"name": "f", "description": "d", "input_schema": {"type": "object"}},
            {"type": "web_search_20250305", "name": "web_search"},
        ]})
    }

    #[test]
    fn each_choice_has_its_counterpart() {
        for (choice, mode) in [("auto", "auto"), ("any", "required"), ("none", "none")] {
            let chat = chat(with_tools(json!({"type": choice}))).unwrap();
            assert_eq!(chat.tool_choice, Some(ToolChoice::Mode(mode.to_owned())));
            assert_eq!(chat.tools.unwrap().len(), 1);
            assert_eq!(chat.parallel_tool_calls, None);
        }
        let named = chat(with_tools(
            json!({"type": "tool", "name": "f", "disable_parallel_tool_use": true}),
        ))
        .unwrap();
        assert!(
            matches!(named.tool_choice, Some(ToolChoice::Named(tool)) if tool.function.as_ref().unwrap().name == "f")
        );
        assert_eq!(named.parallel_tool_calls, Some(false));
        assert_eq!(
            refused(with_tools(json!({"type": "tool"}))),
            "tool_choice.name"
        );
        assert_eq!(
            refused(with_tools(json!({"type": "some"}))),
            "tool_choice.type"
        );
    }

    #[test]
    fn a_call_that_no_tool_is_left_for_is_refused() {
        for (choice, is_refused) in [
            (json!({"type": "any"}), true),
            (json!({"type": "tool", "name": "web_search"}), true),
            (json!({"type": "auto"}), false),
            (json!({"type": "none"}), false),
        ] {
            let mut body = with_tools(choice.clone());
            body["tools"].as_array_mut().unwrap().remove(0);
            if is_refused {
                assert_eq!(refused(body), "tool_choice", "{choice}");
            } else {
                assert!(chat(body).unwrap().tool_choice.is_none(), "{choice}");
            }
        }
    }

    #[test]
    fn a_schema_is_the_form_of_the_text() {
        let with = |format: Value| json!({"messages": [], "output_config": {"format": format, "effort": "low"}});
        let chat = chat(with(
            json!({"type": "json_schema", "schema": {"type": "object"}}),
        ))
        .unwrap();
        assert_eq!(
            chat.response_format.unwrap().json_schema.unwrap().schema,
            Some(json!({"type": "object"}))
        );
        assert_eq!(chat.reasoning_effort.as_deref(), Some("low"));
        assert_eq!(
            refused(with(json!({"type": "xml"}))),
            "output_config.format.type"
        );
        assert_eq!(
            refused(with(json!({"type": "json_schema"}))),
            "output_config.format.schema"
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let tools = json!({"messages": [], "tools": [{"name": "f"}]});
        assert_eq!(refused(tools), "tools[0].input_schema");
        assert_eq!(
            refused(json!({"messages": [], "thinking": {"type": "always"}})),
            "thinking.type"
        );
        let error = parse::<MessagesRequest>(b"{}").unwrap_err();
        assert_eq!(error.param.as_deref(), Some("messages"));
    }
}
