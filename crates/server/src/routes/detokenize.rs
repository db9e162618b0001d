//! POST /detokenize: the text of ids, in the forms of vLLM and of llama-server.

use std::sync::Arc;

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::extract::Json;
use crate::state::App;

/// Ids at most, in contexts.
const MAX_CONTEXTS: usize = 16;

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
    let (ids, most) = (request.tokens.len(), served.host.context() * MAX_CONTEXTS);
    if ids > most {
        let message = format!("tokens has {ids} ids, allowed are at most {most}");
        return Err(ApiError::invalid("tokens", message));
    }
    let vocab_size = loaded.model.config().vocab_size;
    if let Some((index, id)) =
        (request.tokens.iter().enumerate()).find(|(_, id)| **id as usize >= vocab_size)
    {
        let field = format!("tokens[{index}]");
        let message = format!("{field} is {id}, and the model has ids below {vocab_size}");
        return Err(ApiError::invalid(field, message));
    }
    let tokenizer = Arc::clone(&loaded.tokenizer);
    let work = move || tokenizer.decode_all(&request.tokens);
    let prompt = app.work().run(work).await??;
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

    #[test]
    fn there_are_so_many_ids_at_most() {
        let server = server();
        let ids = |count: usize| json!({"tokens": vec![1; count]});
        assert_eq!(server.post("/detokenize", &ids(16 * 512)).status, 200);
        let answer = server.post("/detokenize", &ids(16 * 512 + 1));
        assert_eq!(answer.status, 400);
        let error = &answer.json()["error"];
        assert_eq!(error["param"], "tokens");
        assert!(error["message"].as_str().unwrap().contains("at most 8192"));
    }
}
