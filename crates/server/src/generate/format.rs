//! The form that an answer must have: from the fields of a request to a grammar.

use serde_json::Value;
use sparamx_engine::GrammarSpec;

use crate::error::{ApiError, cut};
use crate::wire::openai::common::{ResponseFormat, StructuredOutputs};

const FORMATS: &str = "text, json_object and json_schema";
const KINDS: &str = "json, regex, choice, grammar and json_object";

/// The grammar of an answer; none: any text.
///
/// # Errors
/// 400: a form that is none or not supported, or more than one.
pub fn grammar(
    format: Option<&ResponseFormat>,
    structured: Option<&StructuredOutputs>,
) -> Result<Option<GrammarSpec>, ApiError> {
    let by_format = match format {
        Some(format) => of_format(format)?,
        None => None,
    };
    let by_structured = match structured {
        Some(structured) => Some(of_structured(structured)?),
        None => None,
    };
    if by_format.is_some() && by_structured.is_some() {
        let message =
            "structured_outputs and response_format are both given: one of them at most may be";
        return Err(ApiError::invalid("structured_outputs", message));
    }
    Ok(by_format.or(by_structured))
}

fn of_format(format: &ResponseFormat) -> Result<Option<GrammarSpec>, ApiError> {
    let named = format
        .json_schema
        .as_ref()
        .and_then(|named| named.schema.as_ref());
    let schema = named.or(format.schema.as_ref()).cloned();
    match format.kind.as_str() {
        "text" => Ok(None),
        "json_object" => Ok(Some(
            schema.map_or(GrammarSpec::JsonObject, GrammarSpec::JsonSchema),
        )),
        "json_schema" => match schema {
            Some(schema) => Ok(Some(GrammarSpec::JsonSchema(schema))),
            None if format.json_schema.is_some() => Ok(Some(GrammarSpec::JsonObject)),
            None => {
                let message = "response_format.json_schema is missing, and its type is json_schema";
                Err(ApiError::invalid("response_format.json_schema", message))
            }
        },
        "structural_tag" => {
            let message =
                format!("response_format.type structural_tag is not supported, {FORMATS} are");
            Err(ApiError::unsupported("response_format.type", message))
        }
        kind => {
            let kind = cut(kind, 40);
            let message = format!("response_format.type is '{kind}', allowed are {FORMATS}");
            Err(ApiError::invalid("response_format.type", message))
        }
    }
}

fn of_structured(structured: &StructuredOutputs) -> Result<GrammarSpec, ApiError> {
    let refused = [
        (
            "structured_outputs.structural_tag",
            structured.structural_tag,
        ),
        (
            "structured_outputs.whitespace_pattern",
            structured.whitespace_pattern,
        ),
    ];
    if let Some((name, _)) = refused.into_iter().find(|(_, field)| field.used) {
        return Err(ApiError::unsupported(
            name,
            format!("{name} is not supported, {KINDS} are"),
        ));
    }
    let StructuredOutputs {
        json,
        regex,
        choice,
        grammar,
        json_object,
        ..
    } = structured;
    let json = json.as_ref().map(schema).transpose()?;
    let all = [
        json.map(GrammarSpec::JsonSchema),
        regex.clone().map(GrammarSpec::Regex),
        choice.clone().map(GrammarSpec::Choice),
        grammar.clone().map(GrammarSpec::Lark),
        json_object
            .unwrap_or(false)
            .then_some(GrammarSpec::JsonObject),
    ];
    let mut given = all.into_iter().flatten();
    match (given.next(), given.next()) {
        (Some(one), None) => Ok(one),
        _ => {
            let message = format!("structured_outputs needs exactly one of {KINDS}");
            Err(ApiError::invalid("structured_outputs", message))
        }
    }
}

/// A schema, or one in a text.
fn schema(json: &Value) -> Result<Value, ApiError> {
    match json {
        Value::String(text) => serde_json::from_str(text).map_err(|error| {
            let message = format!("structured_outputs.json is no JSON: {error}");
            ApiError::invalid("structured_outputs.json", message)
        }),
        schema => Ok(schema.clone()),
    }
}
