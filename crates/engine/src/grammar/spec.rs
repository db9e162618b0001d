//! What a text must look like, and how it is said to the grammar engine.

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::regex_to_lark;
use serde_json::{Value, json};

use super::closed::close;
use crate::EngineError;

/// Longest schema, expression or grammar, in bytes, each by itself.
pub(super) const MAX_BYTES: usize = 1 << 16;
/// All schemas of a grammar together, in bytes.
const MAX_ALL_BYTES: usize = 1 << 20;
/// Deepest schema, in objects and lists within each other.
const MAX_DEPTH: usize = 64;

/// What a text must look like.
#[derive(Debug, Clone, PartialEq)]
pub enum GrammarSpec {
    /// A JSON object, any.
    JsonObject,
    /// JSON that a schema describes. Properties come in the order of the schema.
    JsonSchema(Value),
    /// All of the text matches a regular expression, without lookaround and backreferences.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A context-free grammar in llguidance's form of Lark.
    Lark(String),
    /// A grammar in Lark with schemas, which it calls `@name`.
    Composed {
        /// The grammar.
        lark: String,
        /// The schemas by name.
        schemas: Vec<(String, Value)>,
    },
}

impl GrammarSpec {
    /// One of some texts, for a larger grammar: the body of a rule, and the terminal `CHOICE` that is in it.
    ///
    /// # Errors
    /// [`EngineError::Grammar`]: there is no text, or they are too long together.
    pub fn choice_rule(choices: &[String]) -> Result<(&'static str, String), EngineError> {
        choice(choices).map_err(|error| EngineError::Grammar { error })
    }

    /// Two of the same key are the same grammar.
    pub(super) fn key(&self) -> String {
        // The debug form quotes texts, and names the variant.
        format!("{self:?}")
    }

    /// The grammar for the engine.
    ///
    /// # Errors
    /// What is too long, too deep, or empty, by the name of the limit.
    pub(super) fn grammar(&self) -> Result<TopLevelGrammar, String> {
        match self {
            Self::JsonObject => {
                let schema = configured(&json!({"type": "object"}))?;
                Ok(TopLevelGrammar::from_json_schema(schema))
            }
            Self::JsonSchema(schema) => Ok(TopLevelGrammar::from_json_schema(configured(schema)?)),
            Self::Regex(regex) => lark(&format!("start: /{}/", regex_to_lark(whole(regex)?, ""))),
            Self::Choice(choices) => {
                let (body, terminal) = choice(choices)?;
                lark(&format!("start: {body}\nCHOICE: {terminal}"))
            }
            Self::Lark(text) => lark(text),
            Self::Composed {
                lark: text,
                schemas,
            } => composed(text, schemas),
        }
    }
}

fn lark(text: &str) -> Result<TopLevelGrammar, String> {
    within("the grammar", text.len(), MAX_BYTES)?;
    Ok(TopLevelGrammar::from_lark(text.to_owned()))
}

fn composed(text: &str, schemas: &[(String, Value)]) -> Result<TopLevelGrammar, String> {
    let mut grammar = lark(text)?;
    let mut bytes = 0;
    for (name, schema) in schemas {
        let json_schema = configured(schema).map_err(|error| format!("{name}: {error}"))?;
        bytes += json_schema.to_string().len();
        within("the schemas together", bytes, MAX_ALL_BYTES)?;
        grammar.grammars.push(GrammarWithLexer {
            name: Some(name.clone()),
            json_schema: Some(json_schema),
            ..GrammarWithLexer::default()
        });
    }
    Ok(grammar)
}

/// The expression without the anchors at its ends, which are implied.
fn whole(regex: &str) -> Result<&str, String> {
    within("the regular expression", regex.len(), MAX_BYTES)?;
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    let bare = match regex.strip_suffix('$') {
        Some(rest) if rest.bytes().rev().take_while(|&b| b == b'\\').count() % 2 == 0 => rest,
        _ => regex,
    };
    match bare {
        "" => Err("the regular expression is empty".to_owned()),
        bare => Ok(bare),
    }
}

/// As [`GrammarSpec::choice_rule`].
fn choice(choices: &[String]) -> Result<(&'static str, String), String> {
    let bytes = choices.iter().map(String::len).sum();
    within("the choices together", bytes, MAX_BYTES / 2)?;
    let texts = choices.iter().filter(|text| !text.is_empty());
    let quoted: Vec<String> = texts.map(|text| json!(text).to_string()).collect();
    if quoted.is_empty() {
        return Err("there is no text among the choices".to_owned());
    }
    let body = if quoted.len() < choices.len() {
        "CHOICE?"
    } else {
        "CHOICE"
    };
    Ok((body, quoted.join(" | ")))
}

/// The schema, [closed](close), with our way to write JSON in place of the client's, which could drop keywords: one line, at most a
/// blank after a comma or a colon. Small models ramble in blanks where they may.
fn configured(schema: &Value) -> Result<Value, String> {
    within("the schema", schema.to_string().len(), MAX_BYTES)?;
    within_depth(schema, MAX_DEPTH)?;
    let mut schema = match schema {
        Value::Object(_) => schema.clone(),
        Value::Bool(true) => json!({}),
        Value::Bool(false) => return Err("the schema 'false' allows nothing".to_owned()),
        _ => return Err("the schema is not a JSON object".to_owned()),
    };
    close(&mut schema);
    schema["x-guidance"] =
        json!({"whitespace_flexible": false, "item_separator": ", ?", "key_separator": ": ?"});
    Ok(schema)
}

fn within(what: &str, bytes: usize, most: usize) -> Result<(), String> {
    if bytes <= most {
        return Ok(());
    }
    Err(format!(
        "{what}: {bytes} bytes, and at most {most} are taken"
    ))
}

fn within_depth(value: &Value, left: usize) -> Result<(), String> {
    let Some(left) = left.checked_sub(1) else {
        return match value {
            Value::Array(_) | Value::Object(_) => Err(format!(
                "the schema is deeper than {MAX_DEPTH} objects and lists"
            )),
            _ => Ok(()),
        };
    };
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| within_depth(item, left)),
        Value::Object(fields) => fields
            .values()
            .try_for_each(|item| within_depth(item, left)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_at_the_ends_are_implied() {
        for (regex, bare) in [
            ("^a|b$", "a|b"),
            (r"a\$", r"a\$"),
            (r"a\\$", r"a\\"),
            ("a", "a"),
        ] {
            assert_eq!(whole(regex), Ok(bare));
        }
        for empty in ["", "^", "^$", "$"] {
            assert!(whole(empty).unwrap_err().contains("empty"), "{empty}");
        }
    }

    #[test]
    fn limits_are_named_with_their_numbers() {
        let deep = (0..64).fold(json!({}), |inner, _| json!({"items": inner}));
        let error = configured(&deep).unwrap_err();
        assert_eq!(error, "the schema is deeper than 64 objects and lists");
        let shallow = (0..63).fold(json!({}), |inner, _| json!({"items": inner}));
        assert!(configured(&shallow).is_ok());
        let long = json!({"description": "x".repeat(MAX_BYTES)});
        let error = configured(&long).unwrap_err();
        assert!(error.ends_with("and at most 65536 are taken"), "{error}");
        assert!(configured(&json!(false)).is_err());
        assert!(choice(&[String::new()]).is_err());
    }
}
