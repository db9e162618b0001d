//! POST /detokenize: the text of ids, in the forms of vLLM and of llama-server.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::extract::Json;
use crate::state::App;

/// Ids.
#[derive(Debug, Deserialize, ToSchema)]
pub struct DetokenizeRequest {
    model: Option<String>,
    tokens: Vec<u32>,
}

/// Their text, under the name of each program.
#[derive(Debug, Serialize, ToSchema)]
pub struct DetokenizeResponse {
    prompt: String,
    content: String,
}

/// The text of ids, special tokens among it.
pub async fn post(
    State(app): State<App>,
    Json(request): Json<DetokenizeRequest>,
) -> Result<Json<DetokenizeResponse>, ApiError> {
    let served = app.served()?;
    served.check_model(request.model.as_deref())?;
    let loaded = served.host.loaded();
    let vocab_size = loaded.model.config().vocab_size;
    if let Some((index, id)) =
        (request.tokens.iter().enumerate()).find(|(_, id)| **id as usize >= vocab_size)
    {
        let field = format!("tokens[{index}]");
        let message = format!("{field} is {id}, and the model has ids below {vocab_size}");
        return Err(ApiError::invalid(field, message));
    }
    let prompt = loaded.tokenizer.decode_all(&request.tokens)?;
    let content = prompt.clone();
    Ok(Json(DetokenizeResponse { prompt, content }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::testing::server;

    #[test]
    fn ids_become_the_text_they_came_from() {
        let server = server();
        let text = "Once upon a time, there was a café.";
        let tokens = server.post(
            "/tokenize",
            &json!({"prompt": text, "add_special_tokens": false}),
        );
        let tokens = &tokens.json()["tokens"];
        let answer = server
            .post("/detokenize", &json!({"tokens": tokens}))
            .json();
        assert_eq!(answer, json!({"prompt": text, "content": text}));
    }

    #[test]
    fn an_id_beyond_the_vocabulary_is_named() {
        let answer = server().post("/detokenize", &json!({"tokens": [1, 4096]}));
        assert_eq!(answer.status, 400);
        assert_eq!(answer.json()["error"]["param"], "tokens[1]");
    }
}
