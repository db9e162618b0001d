//! JSON as Python's `json.dumps` writes it: chat templates are made with that, and models are trained on what it writes.

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde_json::Value as Json;

/// How a value is laid out.
struct Style {
    /// Spaces per level; all on one line without.
    indent: Option<usize>,
    /// Between items.
    comma: String,
    /// Between a key and its value.
    colon: String,
    /// Writes characters outside ASCII as `\uXXXX`.
    ascii: bool,
}

/// The `tojson` filter, with the arguments that Transformers gives it: `ensure_ascii`, `indent`, `separators`, `sort_keys`.
/// Unlike Jinja's own it does not escape for HTML.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sorted: Option<bool> = options.get("sort_keys")?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let invalid = |what: String| Error::new(ErrorKind::InvalidOperation, what);
    let [comma, colon] = separators
        .unwrap_or_else(|| {
            let comma = if indent.is_some() { "," } else { ", " };
            vec![comma.to_owned(), ": ".to_owned()]
        })
        .try_into()
        .map_err(|list: Vec<_>| {
            invalid(format!("tojson wants 2 separators, not {}", list.len()))
        })?;
    let mut json = serde_json::to_value(value).map_err(|e| invalid(format!("tojson: {e}")))?;
    if sorted == Some(true) {
        json.sort_all_objects();
    }
    let style = Style {
        indent,
        comma,
        colon,
        ascii: ascii == Some(true),
    };
    let mut out = String::new();
    style.write(&json, 0, &mut out);
    Ok(out)
}

impl Style {
    fn write(&self, value: &Json, depth: usize, out: &mut String) {
        match value {
            Json::Array(items) if !items.is_empty() => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    self.next_item(i, depth + 1, out);
                    self.write(item, depth + 1, out);
                }
                self.new_line(depth, out);
                out.push(']');
            }
            Json::Object(fields) if !fields.is_empty() => {
                out.push('{');
                for (i, (key, item)) in fields.iter().enumerate() {
                    self.next_item(i, depth + 1, out);
                    self.write_str(key, out);
                    out.push_str(&self.colon);
                    self.write(item, depth + 1, out);
                }
                self.new_line(depth, out);
                out.push('}');
            }
            Json::String(text) => self.write_str(text, out),
            scalar_or_empty => out.push_str(&scalar_or_empty.to_string()),
        }
    }

    fn next_item(&self, index: usize, depth: usize, out: &mut String) {
        if index > 0 {
            out.push_str(&self.comma);
        }
        self.new_line(depth, out);
    }

    fn new_line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn write_str(&self, text: &str, out: &mut String) {
        let quoted = Json::from(text).to_string();
        if !self.ascii {
            return out.push_str(&quoted);
        }
        for c in quoted.chars() {
            if c.is_ascii() {
                out.push(c);
            } else {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use minijinja::{Environment, context};

    fn render(expression: &str) -> String {
        let mut env = Environment::new();
        env.add_filter("tojson", super::tojson);
        let source = format!("{{{{ {expression} }}}}");
        env.render_str(&source, context! {}).unwrap()
    }

    /// The right sides are what Python's `json.dumps` writes.
    #[test]
    fn writes_as_python_does() {
        let value = r#"{"b": [1, 2.5, none, true], "a": {"é<'": "x\n\"🦀"}, "e": [], "o": {}}"#;
        let tojson = |options: &str| render(&format!("{value}|tojson({options})"));
        assert_eq!(
            tojson(""),
            r#"{"b": [1, 2.5, null, true], "a": {"é<'": "x\n\"🦀"}, "e": [], "o": {}}"#
        );
        assert_eq!(
            tojson("sort_keys=true, separators=[',', ':'], ensure_ascii=true"),
            r#"{"a":{"\u00e9<'":"x\n\"\ud83e\udd80"},"b":[1,2.5,null,true],"e":[],"o":{}}"#
        );
        assert_eq!(
            render(r#"{"a": [1, {}], "b": []}|tojson(indent=2)"#),
            "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": []\n}"
        );
    }
}
