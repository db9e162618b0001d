//! POST /tokenize: the ids of a text or of a chat, in the forms of vLLM and of llama-server.

use std::sync::Arc;

use axum::extract::State;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::chat::prompt_ids;
use crate::error::ApiError;
use crate::extract::{Json, Unread, read};
use crate::state::App;

/// A text: vLLM's `prompt` or llama-server's `content`. With `messages` it is a chat, with the fields of one.
#[derive(Debug, Deserialize, ToSchema)]
pub struct TokenizeRequest {
    model: Option<String>,
    prompt: Option<String>,
    content: Option<String>,
    /// As a prompt has them; without, if the text is `content`.
    add_special_tokens: Option<bool>,
    add_special: Option<bool>,
    return_token_strs: Option<bool>,
    with_pieces: Option<bool>,
    parse_special: Option<bool>,
    #[schema(value_type = Option<Vec<Object>>)]
    messages: Option<IgnoredAny>,
}

/// Its ids.
#[derive(Debug, Serialize, ToSchema)]
pub struct TokenizeResponse {
    count: usize,
    max_model_len: usize,
    /// Ids, or ids with their pieces if those are asked for.
    tokens: Value,
    token_strs: Option<Vec<String>>,
}

/// The ids of a text or a chat.
pub async fn post(
    State(app): State<App>,
    Unread(body): Unread,
) -> Result<Json<TokenizeResponse>, ApiError> {
    let request: TokenizeRequest = read(&app, body.clone()).await?;
    let (strs, pieces) = (request.return_token_strs, request.with_pieces);
    let ids = match request.messages {
        Some(_) => prompt_ids(&app, &read(&app, body).await?).await?,
        None => text_ids(&app, request).await?,
    };
    let host = &app.served()?.host;
    let (tokenizer, max_model_len) = (Arc::clone(&host.loaded().tokenizer), host.context());
    let response = move || {
        let strings = || ids.iter().map(|&id| tokenizer.token_text(id));
        TokenizeResponse {
            count: ids.len(),
            max_model_len,
            token_strs: (strs == Some(true)).then(|| strings().collect()),
            tokens: if pieces == Some(true) {
                let piece = |(&id, piece): (&u32, String)| json!({"id": id, "piece": piece});
                ids.iter().zip(strings()).map(piece).collect()
            } else {
                json!(ids)
            },
        }
    };
    Ok(Json(app.work().run(response).await?))
}

async fn text_ids(app: &App, request: TokenizeRequest) -> Result<Vec<u32>, ApiError> {
    let served = app.served()?;
    served.check_model(request.model.as_deref())?;
    if request.parse_special == Some(false) {
        let message = "special tokens in a text are always read as such";
        return Err(ApiError::unsupported("parse_special", message));
    }
    let (text, special) = match (request.prompt, request.content) {
        (Some(text), None) => (text, request.add_special_tokens.unwrap_or(true)),
        (None, Some(text)) => (text, request.add_special.unwrap_or(false)),
        _ => {
            let message = "one of prompt, content and messages is needed";
            return Err(ApiError::invalid("prompt", message));
        }
    };
    let tokenizer = Arc::clone(&served.host.loaded().tokenizer);
    tokenizer.check_length(&text, served.host.context())?;
    let work = move || tokenizer.encode(&text, special);
    Ok(app.work().run(work).await??)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::testing::{MODEL, loaded, server};

    #[test]
    fn both_forms_give_the_ids_of_the_tokenizer() {
        let server = server();
        let text = "Once upon a time";
        let ids = |special| loaded().tokenizer.encode(text, special).unwrap();
        let answer = server.post("/tokenize", &json!({"model": MODEL, "prompt": text}));
        assert_eq!(
            answer.json(),
            json!({"count": ids(true).len(), "max_model_len": 512, "tokens": ids(true), "token_strs": null})
        );
        let answer = server.post("/tokenize", &json!({"content": text, "with_pieces": true}));
        let tokens = answer.json()["tokens"].clone();
        let pieces: Vec<&str> = (tokens.as_array().unwrap().iter())
            .map(|token| token["piece"].as_str().unwrap())
            .collect();
        assert_eq!(tokens[0]["id"], ids(false)[0]);
        assert_eq!(pieces.concat().trim_start(), text);
        let body = json!({"prompt": text, "add_special_tokens": false, "return_token_strs": true});
        let answer = server.post("/tokenize", &body).json();
        assert_eq!(answer["tokens"], json!(ids(false)));
        assert_eq!(answer["token_strs"], json!(pieces));
    }

    #[test]
    fn a_chat_has_the_ids_that_it_would_start_from() {
        let server = server();
        let messages = json!([{"role": "user", "content": "Once upon"}, {"role": "assistant", "content": "a time"}]);
        let ids = loaded()
            .tokenizer
            .encode_prompt("Once upon\n\na time")
            .unwrap();
        let answer = server
            .post("/tokenize", &json!({"messages": messages}))
            .json();
        assert_eq!(answer["tokens"], json!(ids));
        let answer = server.post("/tokenize", &json!({"messages": [{"role": "nobody"}]}));
        assert_eq!(answer.status, 400);
    }

    #[test]
    fn a_long_body_is_read_as_a_short_one() {
        let server = server();
        let text = "a time ".repeat(20_000);
        let body = json!({"prompt": text, "add_special_tokens": false});
        let answer = server.post("/tokenize", &body);
        let ids = loaded().tokenizer.encode(&text, false).unwrap();
        assert_eq!(answer.json()["count"], ids.len());
        let answer = server.post("/tokenize", &json!({"prompt": [text]}));
        assert_eq!(answer.status, 400);
        assert_eq!(answer.json()["error"]["param"], "prompt");
        let answer = server.post("/tokenize", &json!({"messages": 5, "prompt": text}));
        assert_eq!(answer.json()["error"]["param"], "messages");
    }

    #[test]
    fn a_text_has_a_length() {
        let server = server();
        let answer = server.post("/tokenize", &json!({"content": "a ".repeat(1 << 20)}));
        assert_eq!(answer.status, 400);
        assert_eq!(answer.json()["error"]["code"], "context_length_exceeded");
    }

    #[test]
    fn a_wrong_field_is_named() {
        let server = server();
        for (body, status, param) in [
            (json!({}), 400, "prompt"),
            (json!({"prompt": "a", "content": "b"}), 400, "prompt"),
            (json!({"prompt": 5}), 400, "prompt"),
            (json!({"prompt": "a", "model": "other"}), 404, "model"),
            (
                json!({"content": "a", "parse_special": false}),
                400,
                "parse_special",
            ),
        ] {
            let answer = server.post("/tokenize", &body);
            assert_eq!(answer.status, status, "{body}");
            assert_eq!(answer.json()["error"]["param"], param, "{body}");
        }
    }
}
