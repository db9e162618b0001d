//! GET /v1/models and /v1/models/{id}.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::extract::Json;
use crate::meta::ModelMeta;
use crate::state::{App, Served};

/// The model, under each of its names.
pub async fn list(State(app): State<App>) -> Result<Response, ApiError> {
    let served = app.served()?;
    let cards = served.names.iter().map(|name| card(served, name));
    let list = ModelList {
        object: "list",
        data: cards.collect(),
    };
    Ok(Json(list).into_response())
}

/// The model under one of its names, which may have a slash.
pub async fn get(
    State(app): State<App>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let Path(name) = name.map_err(|_| ApiError::malformed("the name of the model is no UTF-8"))?;
    let served = app.served()?;
    served.check_model(Some(&name))?;
    Ok(Json(card(served, &name)).into_response())
}

/// All names of the model.
#[derive(Serialize, ToSchema)]
pub struct ModelList<'a> {
    /// `list`.
    object: &'static str,
    /// A card for each name.
    data: Vec<ModelCard<'a>>,
}

/// The model under one of its names.
#[derive(Serialize, ToSchema)]
pub struct ModelCard<'a> {
    /// The name.
    id: &'a str,
    /// `model`.
    object: &'static str,
    /// When it was loaded, in seconds since 1970.
    created: u64,
    /// `sparamx`.
    owned_by: &'static str,
    /// Where it came from.
    root: &'a str,
    /// Always `null`.
    parent: Option<&'a str>,
    /// Tokens that a prompt and its answer may have together.
    max_model_len: usize,
    /// Always empty.
    #[schema(value_type = Vec<String>)]
    permission: [(); 0],
    /// What it is made of.
    meta: &'a ModelMeta,
}

fn card<'a>(served: &'a Served, name: &'a str) -> ModelCard<'a> {
    ModelCard {
        id: name,
        object: "model",
        created: served.created,
        owned_by: "sparamx",
        root: &served.root,
        parent: None,
        max_model_len: served.host.context(),
        permission: [],
        meta: &served.meta,
    }
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
        // Weights that are faster so are expanded.
        let weights = meta["weights"].as_str().unwrap();
        assert!(["sparse bf16", "dense bf16"].contains(&weights), "{meta}");
        assert!(meta["sparsity"].as_f64().unwrap() > 0.3, "{meta}");
        for path in ["org/stories", "org%2Fstories", "alias"] {
            let answer = server.get(&format!("/v1/models/{path}"));
            assert_eq!(answer.status, 200, "{path}");
        }
        let answer = server.get("/v1/models/%ff");
        assert_eq!(answer.status, 400);
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
        let answer = server.get("/v1/models/other");
        assert_eq!(answer.status, 404);
        assert_eq!(answer.json()["error"]["code"], "model_not_found");
    }
}
