//! The response that a request begins.

use sparamx_engine::SamplingParams;

use crate::wire::responses::{
    ResponseObject, ResponseStatus, ResponseToolChoice, ResponsesRequest, TextFormat,
};

/// A response without output, with what its request says and else the defaults.
pub fn response(
    request: &ResponsesRequest,
    id: String,
    created_at: u64,
    model: &str,
    defaults: &SamplingParams,
) -> ResponseObject {
    let mut text = request.text.clone().unwrap_or_default();
    text.format.get_or_insert_with(plain);
    // 0.8 as f32 is not 0.8 as f64.
    let default = |value: f32| (f64::from(value) * 1e6).round() / 1e6;
    ResponseObject {
        id,
        object: "response",
        created_at,
        completed_at: None,
        status: ResponseStatus::InProgress,
        error: None,
        incomplete_details: None,
        output: Vec::new(),
        usage: None,
        model: model.to_owned(),
        instructions: request.instructions.clone(),
        max_output_tokens: request.max_output_tokens,
        temperature: request
            .temperature
            .unwrap_or_else(|| default(defaults.temperature)),
        top_p: request.top_p.unwrap_or_else(|| default(defaults.top_p)),
        presence_penalty: request.presence_penalty.unwrap_or(0.0),
        frequency_penalty: request.frequency_penalty.unwrap_or(0.0),
        top_logprobs: request.top_logprobs.unwrap_or(0),
        parallel_tool_calls: request.parallel_tool_calls.unwrap_or(true),
        tool_choice: request.tool_choice.clone().unwrap_or_else(auto),
        tools: request.tools.clone().unwrap_or_default(),
        text,
        reasoning: request.reasoning.clone().unwrap_or_default(),
        metadata: request.metadata.clone().unwrap_or_default(),
        user: request.user.clone(),
        truncation: "disabled",
        store: false,
        background: false,
        previous_response_id: None,
        service_tier: "default",
    }
}

fn auto() -> ResponseToolChoice {
    ResponseToolChoice::Mode("auto".to_owned())
}

fn plain() -> TextFormat {
    TextFormat {
        kind: "text".to_owned(),
        name: None,
        description: None,
        schema: None,
        strict: None,
    }
}
