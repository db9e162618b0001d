//! GET /tokenizer_info: what a client needs that counts tokens as the model does.

use axum::extract::State;
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::extract::Json;
use crate::state::App;

/// The special tokens by their roles, and the chat template.
pub async fn get(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let served = app.served()?;
    let loaded = served.host.loaded();
    let template = loaded.template.as_ref().map(|template| template.source());
    let mut info = Map::new();
    for role in ["bos_token", "eos_token", "pad_token", "unk_token"] {
        info.insert(role.to_owned(), Value::Null);
    }
    for (role, text) in loaded.tokenizer.special_tokens() {
        info.insert(role.clone(), json!(text));
    }
    info.insert("chat_template".to_owned(), json!(template));
    info.insert("model_max_length".to_owned(), json!(served.host.context()));
    Ok(Json(Value::Object(info)))
}

#[cfg(test)]
mod tests {
    use crate::testing::server;

    #[test]
    fn roles_have_their_tokens() {
        let info = server().get("/tokenizer_info").json();
        for role in ["bos_token", "eos_token"] {
            assert!(info[role].is_string(), "{role}: {info}");
        }
        assert!(info["chat_template"].is_null());
        assert_eq!(info["model_max_length"], 512);
    }
}
