//! Objects that keep to the properties that they name.

use serde_json::{Map, Value};

/// Keywords under which schemas hold for one value together: properties of one are additional to another.
const TOGETHER: [&str; 6] = [
    "allOf",
    "if",
    "not",
    "dependentSchemas",
    "unevaluatedProperties",
    "$dynamicRef",
];
/// Keywords that say what other properties there may be.
const OTHERS: [&str; 2] = ["additionalProperties", "patternProperties"];

/// Closes the objects of a schema that name properties and leave open whether there are more. What follows the closed schema
/// follows the open one as well, and a model does not go on with properties that nobody asked for. (vLLM does the same.)
///
/// A schema that combines others stays as it is.
pub(super) fn close(schema: &mut Value) {
    let mut combined = false;
    walk(schema, &mut |object| {
        let any = |keys: &[&str]| keys.iter().any(|&key| object.contains_key(key));
        combined |= any(&TOGETHER) || any(&["properties"]) && any(&["anyOf", "oneOf", "$ref"]);
    });
    if combined {
        return;
    }
    walk(schema, &mut |object| {
        let says = OTHERS.iter().any(|&key| object.contains_key(key));
        if object.contains_key("properties") && !says {
            object.insert("additionalProperties".to_owned(), Value::Bool(false));
        }
    });
}

/// Visits a schema and those in it; names of properties and values are none.
fn walk(schema: &mut Value, visit: &mut dyn FnMut(&mut Map<String, Value>)) {
    let Value::Object(object) = schema else {
        return;
    };
    visit(object);
    for (key, value) in object {
        match (key.as_str(), value) {
            (
                "properties" | "patternProperties" | "$defs" | "definitions",
                Value::Object(named),
            ) => named.values_mut().for_each(|schema| walk(schema, visit)),
            ("items" | "prefixItems" | "anyOf" | "oneOf", Value::Array(list)) => {
                list.iter_mut().for_each(|schema| walk(schema, visit));
            }
            ("items" | "additionalProperties", schema) => walk(schema, visit),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn assert_closed(mut schema: Value, closed: &Value) {
        close(&mut schema);
        assert_eq!(schema, *closed);
    }

    #[test]
    fn objects_that_name_properties_have_no_others() {
        let inner = json!({"type": "object", "properties": {"allOf": {"type": "string"}}});
        let closed = json!({
            "type": "object", "properties": {"allOf": {"type": "string"}}, "additionalProperties": false,
        });
        assert_closed(inner.clone(), &closed);
        assert_closed(
            json!({"type": "array", "items": {"anyOf": [inner, {"type": "null"}]}}),
            &json!({"type": "array", "items": {"anyOf": [closed, {"type": "null"}]}}),
        );
        assert_closed(
            json!({"$ref": "#/$defs/a", "$defs": {"a": inner}}),
            &json!({"$ref": "#/$defs/a", "$defs": {"a": closed}}),
        );
    }

    #[test]
    fn what_is_said_and_what_is_combined_stays() {
        let inner = json!({"properties": {"a": {}}});
        for schema in [
            json!({"type": "object"}),
            json!({"properties": {"a": {}}, "additionalProperties": {"type": "integer"}}),
            json!({"properties": {"a": {}}, "patternProperties": {"^x": {}}}),
            json!({"allOf": [inner, {"properties": {"b": {}}}]}),
            json!({"properties": {"a": {}}, "anyOf": [inner]}),
            json!({"const": {"properties": 1}}),
        ] {
            assert_closed(schema.clone(), &schema);
        }
    }
}
