//! A request of the Responses API as one of chat.

use serde_json::Value;

use super::items::messages;
use crate::error::ApiError;
use crate::wire::openai::ChatRequest;
use crate::wire::openai::common::{
    FunctionDefinition, NamedFunction, NamedSchema, NamedTool, ResponseFormat, Strings, Tool,
    ToolChoice,
};
use crate::wire::responses::{
    ResponseTool, ResponseToolChoice, ResponsesRequest, TextFormat, ToolChoiceObject,
};

/// What `include` has to list for log probabilities.
const LOGPROBS: &str = "message.output_text.logprobs";

/// Pairs of metadata, and characters of each.
const MAX_METADATA: usize = 16;
const MAX_KEY: usize = 64;
const MAX_VALUE: usize = 512;

/// Fields of chat, and what they are called in the Responses API.
pub const FIELDS: [(&str, &str); 5] = [
    ("max_completion_tokens", "max_output_tokens"),
    ("messages", "input"),
    ("response_format", "text.format"),
    ("reasoning_effort", "reasoning.effort"),
    ("logprobs", "include"),
];

/// The request as one of chat. What is left in it of tools, of their choice and of the form of the text is what will be used.
///
/// # Errors
/// 400: what needs state that the server does not have, and what is not as the API has it.
pub fn chat_request(request: &mut ResponsesRequest) -> Result<ChatRequest, ApiError> {
    refuse_state(request)?;
    check_metadata(request)?;
    let choice = tool_choice(request)?;
    let tools = functions(request)?;
    if tools.is_empty() && choice.as_ref().is_some_and(is_forced) {
        let message = "tool_choice asks for a call, and tools has no function: this server runs no tools of its own";
        return Err(ApiError::invalid("tool_choice", message));
    }
    let logprobs = logprobs(request)?;
    Ok(ChatRequest {
        messages: messages(request.instructions.as_deref(), &request.input)?,
        model: request.model.clone(),
        max_completion_tokens: request.max_output_tokens,
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: request.top_k,
        min_p: request.min_p,
        presence_penalty: request.presence_penalty,
        frequency_penalty: request.frequency_penalty,
        repetition_penalty: request.repetition_penalty,
        seed: request.seed,
        stop: request.stop.clone().map(Strings::Many),
        ignore_eos: request.ignore_eos,
        cache_salt: request.cache_salt.clone(),
        chat_template_kwargs: request.chat_template_kwargs.clone(),
        reasoning_effort: request
            .reasoning
            .as_ref()
            .and_then(|reasoning| reasoning.effort.clone()),
        logprobs: logprobs.map(|_| true),
        top_logprobs: logprobs,
        tool_choice: choice.filter(|_| !tools.is_empty()),
        tools: (!tools.is_empty()).then_some(tools),
        parallel_tool_calls: request.parallel_tool_calls,
        response_format: format(request)?,
        ..ChatRequest::default()
    })
}

/// Refuses what only a server that keeps conversations can do, and what would drop a part of one.
fn refuse_state(request: &ResponsesRequest) -> Result<(), ApiError> {
    let kept =
        "this server keeps no state between requests: send the whole conversation in 'input'";
    let refused = [
        (
            "previous_response_id",
            request.previous_response_id.is_some(),
            kept,
        ),
        ("conversation", request.conversation.is_some(), kept),
        ("prompt", request.prompt.is_some(), kept),
        (
            "background",
            request.background == Some(true),
            "this server keeps no state between requests: wait for the answer, or use 'stream'",
        ),
        (
            "truncation",
            request
                .truncation
                .as_deref()
                .is_some_and(|kind| kind != "disabled"),
            "only 'disabled' is supported: what does not fit is refused, never cut",
        ),
        (
            "context_management",
            request
                .context_management
                .as_ref()
                .is_some_and(|list| !list.is_empty()),
            "not supported: what does not fit is refused, never cut",
        ),
    ];
    match refused.into_iter().find(|(_, used, _)| *used) {
        Some((field, _, why)) => Err(ApiError::unsupported(field, format!("{field}: {why}"))),
        None => Ok(()),
    }
}

/// Metadata is given back with each event that holds the response: it has OpenAI's limits.
fn check_metadata(request: &ResponsesRequest) -> Result<(), ApiError> {
    let metadata = request.metadata.iter().flatten();
    let is_long = |(key, value): (&String, &String)| {
        key.chars().count() > MAX_KEY || value.chars().count() > MAX_VALUE
    };
    if metadata.clone().count() <= MAX_METADATA && !metadata.clone().any(is_long) {
        return Ok(());
    }
    let message = format!(
        "metadata: at most {MAX_METADATA} pairs, of keys of {MAX_KEY} characters and values of {MAX_VALUE}"
    );
    Err(ApiError::invalid("metadata", message))
}

/// Alternatives for each token, if log probabilities are asked for.
fn logprobs(request: &ResponsesRequest) -> Result<Option<i64>, ApiError> {
    let include = request.include.as_deref().unwrap_or_default();
    if include.iter().any(|entry| entry == LOGPROBS) {
        return Ok(Some(request.top_logprobs.unwrap_or(0)));
    }
    match request.top_logprobs {
        None | Some(0) => Ok(None),
        Some(_) => Err(ApiError::invalid(
            "top_logprobs",
            format!("top_logprobs: log probabilities come with include: [\"{LOGPROBS}\"] only"),
        )),
    }
}

/// The functions among the tools. The others are taken out of the request: programs offer the tools of OpenAI's servers to any.
fn functions(request: &mut ResponsesRequest) -> Result<Vec<Tool>, ApiError> {
    let Some(tools) = &mut request.tools else {
        return Ok(Vec::new());
    };
    for (index, tool) in tools.iter().enumerate() {
        if tool.kind == "function" && tool.name.is_none() {
            let path = format!("tools[{index}].name");
            return Err(ApiError::invalid(
                path.clone(),
                format!("{path}: a function needs a name"),
            ));
        }
    }
    tools.retain(|tool| tool.kind == "function");
    Ok(tools.iter().map(function).collect())
}

fn function(tool: &ResponseTool) -> Tool {
    Tool {
        kind: "function".to_owned(),
        function: Some(FunctionDefinition {
            name: tool.name.clone().unwrap_or_default(),
            description: tool.description.clone(),
            parameters: tool.parameters.clone(),
            strict: tool.strict,
        }),
    }
}

/// Whether the model has to call a function. A choice among some of the tools takes the others out of the request.
fn tool_choice(request: &mut ResponsesRequest) -> Result<Option<ToolChoice>, ApiError> {
    let choice = match &request.tool_choice {
        None => return Ok(None),
        Some(ResponseToolChoice::Mode(mode)) => return Ok(Some(ToolChoice::Mode(mode.clone()))),
        Some(ResponseToolChoice::Object(choice)) => choice,
    };
    match choice.kind.as_str() {
        "function" => {
            let name = choice.name.clone().ok_or_else(|| {
                ApiError::invalid(
                    "tool_choice.name",
                    "tool_choice.name: a choice of a function needs its name",
                )
            })?;
            let kind = "function".to_owned();
            let function = Some(NamedFunction { name });
            Ok(Some(ToolChoice::Named(NamedTool { kind, function })))
        }
        "allowed_tools" => {
            let mode = choice.mode.clone().unwrap_or_else(|| "auto".to_owned());
            let allowed = allowed(choice);
            let tools = request.tools.iter_mut();
            tools.for_each(|tools| {
                tools.retain(|tool| {
                    tool.name
                        .as_ref()
                        .is_some_and(|name| allowed.contains(name))
                })
            });
            Ok(Some(ToolChoice::Mode(mode)))
        }
        _ => Err(ApiError::unsupported(
            "tool_choice.type",
            "tool_choice.type: 'function' and 'allowed_tools' are supported",
        )),
    }
}

fn is_forced(choice: &ToolChoice) -> bool {
    match choice {
        ToolChoice::Mode(mode) => mode == "required",
        ToolChoice::Named(_) => true,
    }
}

/// Names of the functions that may be called.
fn allowed(choice: &ToolChoiceObject) -> Vec<String> {
    let tools = choice.tools.as_deref().unwrap_or_default();
    let name = |tool: &Value| Some(tool.get("name")?.as_str()?.to_owned());
    tools.iter().filter_map(name).collect()
}

fn format(request: &ResponsesRequest) -> Result<Option<ResponseFormat>, ApiError> {
    let Some(format) = request.text.as_ref().and_then(|text| text.format.as_ref()) else {
        return Ok(None);
    };
    if format.kind == "json_schema" && format.schema.is_none() {
        return Err(ApiError::invalid(
            "text.format.schema",
            "text.format.schema: a format of type 'json_schema' needs a schema",
        ));
    }
    Ok(Some(ResponseFormat {
        kind: format.kind.clone(),
        json_schema: (format.kind == "json_schema").then(|| named_schema(format)),
        schema: None,
    }))
}

fn named_schema(format: &TextFormat) -> NamedSchema {
    NamedSchema {
        name: format.name.clone(),
        description: format.description.clone(),
        schema: format.schema.clone(),
        strict: format.strict,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::extract::parse;

    fn read(body: Value) -> ResponsesRequest {
        parse(body.to_string().as_bytes()).unwrap()
    }

    fn chat(body: Value) -> ChatRequest {
        chat_request(&mut read(body)).unwrap()
    }

    fn refused(body: Value) -> (String, ApiError) {
        let error = chat_request(&mut read(body)).unwrap_err();
        assert_eq!(error.status, 400);
        (error.param.clone().unwrap(), error)
    }

    #[test]
    fn a_text_is_what_the_user_says() {
        let chat = chat(
            json!({"model": "m", "input": "Hi", "max_output_tokens": 7, "temperature": 0.5, "top_p": 0.9}),
        );
        assert_eq!(chat.messages.len(), 1);
        assert_eq!(chat.messages[0].role, "user");
        assert_eq!(
            (chat.model.as_deref(), chat.max_completion_tokens),
            (Some("m"), Some(7))
        );
        assert_eq!((chat.temperature, chat.top_p), (Some(0.5), Some(0.9)));
        assert!(chat.tools.is_none() && chat.logprobs.is_none() && chat.response_format.is_none());
    }

    #[test]
    fn nulls_are_fields_that_are_not_given() {
        let chat = chat(json!({
            "input": "Hi", "tools": null, "text": null, "reasoning": null, "previous_response_id": null, "conversation": null,
            "include": null, "truncation": null, "prompt": null, "metadata": null, "background": false,
        }));
        assert_eq!(chat.messages.len(), 1);
    }

    #[test]
    fn state_is_refused_by_name() {
        for (field, value) in [
            ("previous_response_id", json!("resp_1")),
            ("conversation", json!({"id": "conv_1"})),
            ("prompt", json!({"id": "p"})),
            ("background", json!(true)),
            ("truncation", json!("auto")),
            ("context_management", json!([{"type": "compaction"}])),
        ] {
            let (param, error) = refused(json!({"input": "Hi", field: value}));
            assert_eq!(param, field);
            assert_eq!(error.code, Some("unsupported_parameter"));
        }
    }

    #[test]
    fn metadata_has_limits() {
        let with = |metadata: Value| json!({"input": "Hi", "metadata": metadata});
        let many = |count: usize| -> Value {
            let pairs = (0..count).map(|key| (key.to_string(), json!("v")));
            pairs.collect::<serde_json::Map<_, _>>().into()
        };
        chat(with(many(16)));
        chat(with(json!({"k".repeat(64): "v".repeat(512)})));
        for metadata in [
            many(17),
            json!({"k".repeat(65): "v"}),
            json!({"k": "v".repeat(513)}),
        ] {
            assert_eq!(refused(with(metadata)).0, "metadata");
        }
    }

    #[test]
    fn functions_are_kept_and_tools_of_servers_left_out() {
        let body = json!({"input": "Hi", "tool_choice": "required", "tools": [
            {"type": "web_search", "search_context_size": "low"},
            {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": true},
            {"type": "custom", "name": "apply_patch", "format": {"type": "text"}},
        ]});
        let mut request = read(body);
        let chat = chat_request(&mut request).unwrap();
        let tools = chat.tools.unwrap();
        assert_eq!(tools.len(), 1);
        assert_eq!(tools[0].function.as_ref().unwrap().name, "f");
        assert_eq!(
            chat.tool_choice,
            Some(ToolChoice::Mode("required".to_owned()))
        );
        assert_eq!(request.tools.unwrap().len(), 1);
    }

    #[test]
    fn a_choice_goes_with_tools_only() {
        let chat =
            chat(json!({"input": "Hi", "tool_choice": "auto", "tools": [{"type": "web_search"}]}));
        assert!(chat.tools.is_none() && chat.tool_choice.is_none());
        for choice in [
            json!("required"),
            json!({"type": "function", "name": "f"}),
            json!({"type": "allowed_tools", "mode": "required", "tools": []}),
        ] {
            let search = json!([{"type": "web_search"}]);
            for tools in [search, json!([]), Value::Null] {
                let body = json!({"input": "Hi", "tool_choice": choice, "tools": tools});
                assert_eq!(refused(body).0, "tool_choice", "{choice}");
            }
        }
    }

    #[test]
    fn a_choice_names_a_function_or_allows_some() {
        let tools = json!([{"type": "function", "name": "f"}, {"type": "function", "name": "g"}]);
        let named = chat(
            json!({"input": "Hi", "tools": tools, "tool_choice": {"type": "function", "name": "g"}}),
        );
        let Some(ToolChoice::Named(choice)) = named.tool_choice else {
            panic!("{:?}", named.tool_choice)
        };
        assert_eq!(choice.function.unwrap().name, "g");
        let allowed = chat(json!({"input": "Hi", "tools": tools, "tool_choice":
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}}));
        assert_eq!(
            allowed.tool_choice,
            Some(ToolChoice::Mode("required".to_owned()))
        );
        assert_eq!(allowed.tools.unwrap().len(), 1);
        let (param, _) =
            refused(json!({"input": "Hi", "tools": tools, "tool_choice": {"type": "web_search"}}));
        assert_eq!(param, "tool_choice.type");
    }

    #[test]
    fn log_probabilities_come_with_include() {
        let include = json!([
            "reasoning.encrypted_content",
            "message.output_text.logprobs"
        ]);
        let asked = chat(json!({"input": "Hi", "include": include, "top_logprobs": 3}));
        assert_eq!((asked.logprobs, asked.top_logprobs), (Some(true), Some(3)));
        let asked = chat(json!({"input": "Hi", "include": include}));
        assert_eq!((asked.logprobs, asked.top_logprobs), (Some(true), Some(0)));
        assert_eq!(
            refused(json!({"input": "Hi", "top_logprobs": 3})).0,
            "top_logprobs"
        );
        assert!(
            chat(json!({"input": "Hi", "top_logprobs": 0}))
                .logprobs
                .is_none()
        );
    }

    #[test]
    fn a_schema_is_the_form_of_the_text() {
        let schema = json!({"type": "object"});
        let chat = chat(json!({"input": "Hi", "text": {"format":
            {"type": "json_schema", "name": "n", "strict": true, "schema": schema}}}));
        let format = chat.response_format.unwrap();
        assert_eq!(format.kind, "json_schema");
        assert_eq!(format.json_schema.unwrap().schema, Some(schema));
        let (param, _) = refused(
            json!({"input": "Hi", "text": {"format": {"type": "json_schema", "name": "n"}}}),
        );
        assert_eq!(param, "text.format.schema");
    }

    #[test]
    fn a_wrong_type_is_named_by_its_path() {
        let body =
            json!({"input": [{"role": "user", "content": [{"type": "input_text", "text": 1}]}]});
        let error = parse::<ResponsesRequest>(body.to_string().as_bytes()).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("input[0].content[0].text"));
    }
}
