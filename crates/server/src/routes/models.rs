//! GET /v1/models and /v1/models/{id}.

use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::extract::Json;
use crate::state::{App, Served};

/// The model, under each of its names.
pub async fn list(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let served = app.served()?;
    let data: Vec<Value> = served.names.iter().map(|name| card(served, name)).collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

/// The model under one of its names, which may have a slash.
pub async fn get(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let served = app.served()?;
    served.check_model(Some(&name))?;
    Ok(Json(card(served, &name)))
}

fn card(served: &Served, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "sparamx",
        "root": served.root,
        "parent": null,
        "max_model_len": served.host.context(),
        "permission": [],
        "meta": served.about,
    })
}

#[cfg(test)]
mod tests {
    use crate::testing::{MODEL, server};

    #[test]
    fn each_name_is_a_model() {
        let server = server();
        let list = server.get("/v1/models").json();
        assert_eq!(list["data"][0]["id"], MODEL);
        assert_eq!(list["data"][1]["id"], "alias");
        assert_eq!(list["data"][0]["max_model_len"], 512);
        let meta = &list["data"][0]["meta"];
        assert_eq!(meta["weights"], "sparse bf16", "{meta}");
        assert!(meta["sparsity"].as_f64().unwrap() > 0.3, "{meta}");
        for path in ["org/stories", "org%2Fstories", "alias"] {
            let answer = server.get(&format!("/v1/models/{path}"));
            assert_eq!(answer.status, 200, "{path}");
        }
        let answer = server.get("/v1/models/other");
        assert_eq!(answer.status, 404);
        assert_eq!(answer.json()["error"]["code"], "model_not_found");
    }
}
