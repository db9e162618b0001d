//! Arguments that a model writes without quotes, by the types of their schemas.

use serde_json::Value;

use super::python;

/// What an argument is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A text, as it stands.
    Text,
    Integer,
    Number,
    Boolean,
    /// An object, a list, or something whose type nobody knows.
    Other,
}

/// The values that an argument may have, where its schema lists them.
pub(super) fn values(schema: &Value) -> &[Value] {
    match (&schema["enum"], schema.get("const")) {
        (Value::Array(values), _) => values,
        (_, Some(value)) => std::slice::from_ref(value),
        _ => &[],
    }
}

/// The kind of an argument, and whether it may be null. Without a type it is a text, as in vLLM, unless its values say more.
pub(super) fn kind(schema: Option<&Value>) -> (Kind, bool) {
    let Some(schema) = schema else {
        return (Kind::Text, false);
    };
    let names: Vec<&str> = match &schema["type"] {
        Value::String(name) => vec![name],
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        _ => {
            let alternatives = ["anyOf", "oneOf"].map(|key| schema[key].as_array());
            let alternatives = alternatives.into_iter().flatten().flatten();
            alternatives
                .filter_map(|one| one["type"].as_str())
                .collect()
        }
    };
    let values = values(schema);
    let is_text = |value: &Value| value.is_string() || value.is_null();
    let kind = match names.iter().find(|&&name| name != "null") {
        Some(&"integer") => Kind::Integer,
        Some(&"number") => Kind::Number,
        Some(&"boolean") => Kind::Boolean,
        Some(&"string") | None if values.iter().all(is_text) => Kind::Text,
        Some(_) | None => Kind::Other,
    };
    (
        kind,
        names.contains(&"null") || values.iter().any(Value::is_null),
    )
}

/// The JSON text of an argument. What is not of its type stays a text.
pub(super) fn json(text: &str, schema: Option<&Value>) -> String {
    value(text, schema)
        .unwrap_or_else(|| Value::from(text))
        .to_string()
}

fn value(text: &str, schema: Option<&Value>) -> Option<Value> {
    let (kind, nullable) = kind(schema);
    let is_null = ["null", "none"]
        .iter()
        .any(|null| text.eq_ignore_ascii_case(null));
    if is_null && (nullable || kind != Kind::Text) {
        return Some(Value::Null);
    }
    let bare = text.trim();
    match kind {
        Kind::Text => None,
        Kind::Integer | Kind::Number => {
            let number: Value = serde_json::from_str(bare).ok()?;
            number.is_number().then_some(number)
        }
        Kind::Boolean => Some(Value::Bool(bare.eq_ignore_ascii_case("true"))),
        Kind::Other => serde_json::from_str(bare)
            .ok()
            .or_else(|| python::literal(bare)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn arguments_take_the_type_of_their_schema() {
        for (text, schema, want) in [
            ("5", json!({"type": "integer"}), json!(5)),
            ("5", json!({"type": "string"}), json!("5")),
            ("5", json!({}), json!("5")),
            ("five", json!({"type": "integer"}), json!("five")),
            ("1.5", json!({"type": "number"}), json!(1.5)),
            ("True", json!({"type": "boolean"}), json!(true)),
            ("perhaps", json!({"type": "boolean"}), json!(false)),
            ("None", json!({"type": "integer"}), json!(null)),
            ("null", json!({"type": "string"}), json!("null")),
            ("None", json!({"type": ["string", "null"]}), json!(null)),
            (
                "null",
                json!({"anyOf": [{"type": "string"}, {"type": "null"}]}),
                json!(null),
            ),
            ("[1, 2]", json!({"type": "array"}), json!([1, 2])),
            ("{'a': None}", json!({"type": "object"}), json!({"a": null})),
            ("{oh", json!({"type": "object"}), json!("{oh")),
            ("2", json!({"enum": [1, 2]}), json!(2)),
            ("2", json!({"enum": ["1", "2"]}), json!("2")),
            ("\"a\"", json!({"enum": ["a", 1]}), json!("a")),
            ("a", json!({"enum": ["a", 1]}), json!("a")),
            (
                "1",
                json!({"type": ["string", "integer"], "enum": ["a", 1]}),
                json!(1),
            ),
            ("null", json!({"enum": ["a", null]}), json!(null)),
            ("true", json!({"const": true}), json!(true)),
        ] {
            let got: Value = serde_json::from_str(&super::json(text, Some(&schema))).unwrap();
            assert_eq!(got, want, "{text} {schema}");
        }
    }
}
