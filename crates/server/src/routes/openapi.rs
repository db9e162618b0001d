//! GET /openapi.json: all paths of this server, what they take and what they give, as OpenAPI 3.1.

use std::sync::LazyLock;

use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use utoipa::openapi::path::{HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ComponentsBuilder, ObjectBuilder, Schema, Type};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{
    ContentBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, PathItem, PathsBuilder,
    Ref, RefOr, Required, ResponseBuilder,
};
use utoipa::{PartialSchema, ToSchema};

use crate::error::ErrorBody;
use crate::routes::detokenize::{DetokenizeRequest, DetokenizeResponse};
use crate::routes::models::{ModelCard, ModelList};
use crate::routes::tokenize::{TokenizeRequest, TokenizeResponse};
use crate::routes::version::Version;
use crate::wire::anthropic::{
    AnthropicError, MessageAnswer, MessageEvent, MessagesRequest, TokenCount,
};
use crate::wire::openai::chat::{ChatChunk, ChatCompletion};
use crate::wire::openai::completions::Completion;
use crate::wire::openai::{ChatRequest, CompletionRequest};
use crate::wire::responses::{ResponseEvent, ResponseObject, ResponsesRequest};

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";

/// The document.
pub async fn get() -> impl IntoResponse {
    static TEXT: LazyLock<String> =
        LazyLock::new(|| document().to_json().expect("a document is JSON"));
    ([(CONTENT_TYPE, JSON)], TEXT.as_str())
}

/// Every path and method that a client may use, but the files of the page.
fn operations() -> Vec<Operation> {
    vec![
        post("/v1/chat/completions", "Goes on with a conversation")
            .takes::<ChatRequest>()
            .gives::<ChatCompletion>()
            .streams::<ChatChunk<'_>>(),
        post("/v1/completions", "Goes on with texts")
            .takes::<CompletionRequest>()
            .gives::<Completion<'_>>()
            .streams::<Completion<'_>>(),
        post(
            "/v1/responses",
            "Goes on with a conversation, in the form of the Responses API",
        )
        .takes::<ResponsesRequest>()
        .gives::<ResponseObject>()
        .streams::<ResponseEvent>(),
        post(
            "/v1/messages",
            "Goes on with a conversation, in the form of Anthropic's API",
        )
        .takes::<MessagesRequest>()
        .gives::<MessageAnswer>()
        .streams::<MessageEvent>()
        .fails_as("AnthropicError"),
        post(
            "/v1/messages/count_tokens",
            "The length of the prompt that a request makes",
        )
        .takes::<MessagesRequest>()
        .gives::<TokenCount>()
        .fails_as("AnthropicError"),
        get_("/v1/models", "The model, under each of its names").gives::<ModelList>(),
        get_("/v1/models/{name}", "The model under one of its names")
            .with_name()
            .gives::<ModelCard>(),
        post("/tokenize", "The ids of a text")
            .takes::<TokenizeRequest>()
            .gives::<TokenizeResponse>(),
        post("/detokenize", "The text of ids")
            .takes::<DetokenizeRequest>()
            .gives::<DetokenizeResponse>(),
        get_("/tokenizer_info", "Special tokens and the chat template").gives::<Anything>(),
        get_("/ping", "As /health, with a key"),
        post("/ping", "The same"),
        get_("/health", "Whether a request would be answered now").open(),
        get_("/version", "The version of this program").gives::<Version>(),
        get_("/metrics", "What Prometheus reads").gives_text("text/plain"),
        get_("/openapi.json", "This document").gives::<Anything>(),
    ]
}

/// Any JSON object.
#[derive(ToSchema)]
#[schema(value_type = Object)]
struct Anything(#[allow(dead_code, reason = "only its schema is used")] serde_json::Value);

/// A schema and those that it needs, by their names.
type Schemas = Vec<(String, RefOr<Schema>)>;

/// What is done at a path.
struct Operation {
    method: HttpMethod,
    path: &'static str,
    summary: &'static str,
    named: bool,
    open: bool,
    error: &'static str,
    body: Option<String>,
    answers: Vec<(&'static str, String, RefOr<Schema>)>,
    schemas: Schemas,
}

fn get_(path: &'static str, summary: &'static str) -> Operation {
    Operation::new(HttpMethod::Get, path, summary)
}

fn post(path: &'static str, summary: &'static str) -> Operation {
    Operation::new(HttpMethod::Post, path, summary)
}

impl Operation {
    fn new(method: HttpMethod, path: &'static str, summary: &'static str) -> Self {
        Self {
            method,
            path,
            summary,
            named: false,
            open: false,
            error: "Error",
            body: None,
            answers: Vec::new(),
            schemas: Vec::new(),
        }
    }

    fn method_name(&self) -> &'static str {
        match self.method {
            HttpMethod::Post => "post",
            _ => "get",
        }
    }

    /// It needs no key.
    fn open(self) -> Self {
        Self { open: true, ..self }
    }

    /// Its errors have a form of their own.
    fn fails_as(self, error: &'static str) -> Self {
        Self { error, ..self }
    }

    /// The path ends in a name.
    fn with_name(self) -> Self {
        Self {
            named: true,
            ..self
        }
    }

    fn known<T: ToSchema>(&mut self) -> String {
        let name = T::name().into_owned();
        T::schemas(&mut self.schemas);
        self.schemas.push((name.clone(), T::schema()));
        name
    }

    fn takes<T: ToSchema>(mut self) -> Self {
        self.body = Some(self.known::<T>());
        self
    }

    fn gives<T: ToSchema>(mut self) -> Self {
        let name = self.known::<T>();
        self.answers.push((
            JSON,
            "The answer".to_owned(),
            Ref::from_schema_name(name).into(),
        ));
        self
    }

    /// With `stream`, events whose data are such objects.
    fn streams<T: ToSchema>(mut self) -> Self {
        let name = self.known::<T>();
        let text = format!("With `stream`: events, the data of each a {name}");
        self.answers.push((EVENTS, text.clone(), string(&text)));
        self
    }

    fn gives_text(mut self, content_type: &'static str) -> Self {
        self.answers
            .push((content_type, "The text".to_owned(), string("The text")));
        self
    }

    fn item(&self) -> PathItem {
        let id = format!(
            "{}{}",
            self.method_name(),
            self.path.replace(['/', '{', '}', '.'], "_")
        );
        let mut operation = OperationBuilder::new()
            .operation_id(Some(id))
            .summary(Some(self.summary));
        if self.named {
            let name = ParameterBuilder::new()
                .name("name")
                .parameter_in(ParameterIn::Path)
                .required(Required::True)
                .schema(Some(string("A name of the model")));
            operation = operation.parameter(name);
        }
        if let Some(name) = &self.body {
            let content = ContentBuilder::new()
                .schema(Some(Ref::from_schema_name(name)))
                .build();
            operation = operation.request_body(Some(
                RequestBodyBuilder::new()
                    .content(JSON, content)
                    .required(Some(Required::True))
                    .build(),
            ));
        }
        // Without a body where there is nothing to say.
        let text: Vec<&str> = self
            .answers
            .iter()
            .map(|(_, text, _)| text.as_str())
            .collect();
        let mut answer = ResponseBuilder::new().description(if text.is_empty() {
            "Yes".to_owned()
        } else {
            text.join(". ")
        });
        for (content_type, _, schema) in &self.answers {
            answer = answer.content(
                *content_type,
                ContentBuilder::new().schema(Some(schema.clone())).build(),
            );
        }
        operation = operation.response("200", answer);
        for (status, _) in self.statuses() {
            operation = operation.response(
                status,
                RefOr::Ref(Ref::from_response_name(format!("{}{status}", self.error))),
            );
        }
        if self.open {
            operation = operation.security(SecurityRequirement::default());
        }
        PathItem::new(self.method.clone(), operation)
    }

    /// The errors that it may answer with.
    fn statuses(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let (takes, named) = (self.body.is_some(), self.named);
        let fits = move |on: Errors| match on {
            Errors::All => true,
            Errors::Named => takes || named,
            Errors::Bodies => takes,
        };
        ERRORS
            .into_iter()
            .filter(move |(_, _, on)| fits(*on))
            .map(|(status, text, _)| (status, text))
    }
}

/// Which operations an error is of.
#[derive(Clone, Copy)]
enum Errors {
    All,
    Named,
    Bodies,
}

const ERRORS: [(&str, &str, Errors); 12] = [
    (
        "400",
        "The request is not one; `param` names the field",
        Errors::All,
    ),
    ("401", "The key is missing or wrong", Errors::All),
    ("403", "`Host` is no name of this server", Errors::All),
    ("404", "There is no such model", Errors::Named),
    ("405", "The method is not allowed here", Errors::All),
    ("408", "The body did not come in time", Errors::Bodies),
    ("413", "The body is too large", Errors::Bodies),
    ("415", "The body is no application/json", Errors::Bodies),
    (
        "429",
        "The queue is full; `Retry-After` says when to try again",
        Errors::Bodies,
    ),
    ("431", "The head of the request is too large", Errors::All),
    ("500", "A fault of the server", Errors::All),
    (
        "503",
        "The model is being loaded, or the server shuts down; `Retry-After` says when to try again",
        Errors::All,
    ),
];

fn string(description: &str) -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some(description))
        .into()
}

fn document() -> OpenApi {
    let operations = operations();
    let mut components = ComponentsBuilder::new()
        .schema_from::<ErrorBody>()
        .security_scheme(
            "bearer",
            SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build()),
        )
        .security_scheme(
            "x-api-key",
            SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("x-api-key"))),
        );
    let mut schemas = Schemas::new();
    ErrorBody::schemas(&mut schemas);
    let mut paths = PathsBuilder::new();
    for operation in &operations {
        paths = paths.path(operation.path, operation.item());
        schemas.extend(operation.schemas.iter().cloned());
    }
    AnthropicError::schemas(&mut schemas);
    schemas.push((
        AnthropicError::name().into_owned(),
        AnthropicError::schema(),
    ));
    for error in [ErrorBody::name(), AnthropicError::name()] {
        for (status, text, _) in ERRORS {
            let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(error.as_ref())));
            let response = ResponseBuilder::new()
                .description(text)
                .content(JSON, content.build());
            components = components.response(format!("{error}{status}"), response.build());
        }
    }
    let info = InfoBuilder::new()
        .title("sparamx")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "An OpenAI-compatible server for pruned language models on CPUs.",
        ))
        .license(Some(
            LicenseBuilder::new()
                .name("MIT OR Apache-2.0")
                .identifier(Some("MIT OR Apache-2.0"))
                .build(),
        ));
    OpenApiBuilder::new()
        .info(info.build())
        .paths(paths)
        .components(Some(components.schemas_from_iter(schemas).build()))
        .security(Some([
            SecurityRequirement::new::<_, [&str; 0], &str>("bearer", []),
            SecurityRequirement::new::<_, [&str; 0], &str>("x-api-key", []),
        ]))
        .build()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::testing::server;

    #[test]
    fn all_routes_are_described_and_none_else() {
        // What the router is made of, as it is written.
        let source = include_str!("../app.rs");
        let mut routes = BTreeSet::new();
        for route in source.split(".route(").skip(1) {
            let path = route
                .split('"')
                .nth(1)
                .unwrap()
                .replace("{*name}", "{name}");
            let methods = route.split(".layer(").next().unwrap();
            for (call, name) in [("get(", "get"), ("post(", "post")] {
                if methods.contains(call) {
                    routes.insert((name, path.clone()));
                }
            }
        }
        let described: BTreeSet<(&str, String)> = operations()
            .iter()
            .map(|operation| (operation.method_name(), operation.path.to_owned()))
            .collect();
        assert_eq!(described, routes);
    }

    #[test]
    fn the_document_is_whole() {
        let server = server();
        let answer = server.get("/openapi.json");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let document = answer.json();
        assert_eq!(document["openapi"], "3.1.0");
        let mut references = Vec::new();
        collect(&document, &mut references);
        assert!(references.len() > 50);
        for reference in references {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(
                document.pointer(pointer).is_some(),
                "{reference} points nowhere"
            );
        }
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let answers = operation["responses"].as_object().unwrap();
                for status in ["200", "401", "403", "500", "503"] {
                    assert!(answers.contains_key(status), "{method} {path} {status}");
                }
            }
        }
        for method in ["get", "post"] {
            assert!(document["paths"]["/ping"][method].is_object(), "{method}");
        }
        assert_eq!(document["security"][0]["bearer"], Value::Array(Vec::new()));
        assert_eq!(
            document["paths"]["/health"]["get"]["security"][0],
            serde_json::json!({})
        );
    }

    fn collect<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(name, value)| match value {
                Value::String(text) if name == "$ref" => found.push(text),
                _ => collect(value, found),
            }),
            Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
            _ => {}
        }
    }
}
