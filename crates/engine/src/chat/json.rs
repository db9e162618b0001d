//! JSON as Python's `json.dumps` writes it: chat templates are made with that, and models are trained on what it writes.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, State};
use serde_json::Value as Json;

use super::{invalid, python};

/// How a value is laid out.
struct Style {
    /// What a level is indented by; all on one line without.
    indent: Option<String>,
    /// Between items.
    comma: String,
    /// Between a key and its value.
    colon: String,
    /// Writes characters outside ASCII as `\uXXXX`.
    ascii: bool,
    /// Orders the keys of objects.
    sorted: bool,
}

/// The `tojson` filter, with the arguments that Transformers gives it: `ensure_ascii`, `indent`, `separators`, `sort_keys`.
/// Unlike Jinja's own it does not escape for HTML.
pub(super) fn tojson(
    state: &State,
    value: &Value,
    ascii: Option<Value>,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    let option = |given: Option<Value>, name| match given {
        Some(value) => Ok(Some(value)),
        None => options.get::<Option<Value>>(name),
    };
    let ascii = option(ascii, "ensure_ascii")?;
    let indent = option(indent, "indent")?.filter(|indent| !indent.is_none());
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sorted: Option<Value> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let [comma, colon] = separators
        .unwrap_or_else(|| {
            let comma = if indent.is_some() { "," } else { ", " };
            vec![comma.to_owned(), ": ".to_owned()]
        })
        .try_into()
        .map_err(|list: Vec<_>| {
            invalid(format!("tojson wants 2 separators, not {}", list.len()))
        })?;
    let style = Style {
        indent: indent
            .map(|indent| indentation(state, &indent))
            .transpose()?,
        comma,
        colon,
        ascii: ascii.is_some_and(|ascii| ascii.is_true()),
        sorted: sorted.is_some_and(|sorted| sorted.is_true()),
    };
    let mut writer = Writer {
        state,
        style,
        out: String::new(),
    };
    writer.write(value, 0)?;
    Ok(writer.out)
}

/// The blanks of a level: a text, or how many.
pub(super) fn indentation(state: &State, indent: &Value) -> Result<String, Error> {
    if let Some(text) = indent.as_str() {
        return Ok(text.to_owned());
    }
    let blanks = i64::try_from(indent.clone())?.max(0) as u64;
    state.consume_fuel(blanks / 64)?;
    Ok(" ".repeat(blanks as usize))
}

struct Writer<'a, 't, 'e> {
    state: &'a State<'t, 'e>,
    style: Style,
    out: String,
}

impl Writer<'_, '_, '_> {
    fn write(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.state.consume_fuel(1)?;
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(bool_text(value)),
            ValueKind::Number => self.out.push_str(&number(value)?),
            ValueKind::String => self.write_str(value.as_str().unwrap_or_default())?,
            ValueKind::Seq | ValueKind::Iterable => {
                self.out.push('[');
                let mut count = 0;
                for item in value.try_iter()? {
                    self.next_item(count, depth + 1)?;
                    self.write(&item, depth + 1)?;
                    count += 1;
                }
                self.end(count, depth, ']')?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.style.sorted {
                    keys.sort();
                }
                self.out.push('{');
                for (i, key) in keys.iter().enumerate() {
                    self.next_item(i, depth + 1)?;
                    self.write_str(&key_text(key)?)?;
                    self.out.push_str(&self.style.colon);
                    self.write(&value.get_item(key)?, depth + 1)?;
                }
                self.end(keys.len(), depth, '}')?;
            }
            kind => return Err(invalid(format!("tojson: {kind} has no JSON form"))),
        }
        Ok(())
    }

    fn next_item(&mut self, index: usize, depth: usize) -> Result<(), Error> {
        if index > 0 {
            self.out.push_str(&self.style.comma);
        }
        self.new_line(depth)
    }

    fn end(&mut self, items: usize, depth: usize, bracket: char) -> Result<(), Error> {
        if items > 0 {
            self.new_line(depth)?;
        }
        self.out.push(bracket);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) -> Result<(), Error> {
        if let Some(indent) = &self.style.indent {
            self.state
                .consume_fuel((indent.len() * depth) as u64 / 64)?;
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
        Ok(())
    }

    fn write_str(&mut self, text: &str) -> Result<(), Error> {
        self.state.consume_fuel(text.len() as u64 / 64)?;
        let quoted = Json::from(text).to_string();
        if !self.style.ascii {
            self.out.push_str(&quoted);
            return Ok(());
        }
        for c in quoted.chars() {
            if c.is_ascii() {
                self.out.push(c);
            } else {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    self.out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
        Ok(())
    }
}

fn bool_text(value: &Value) -> &'static str {
    if value.is_true() { "true" } else { "false" }
}

fn number(value: &Value) -> Result<String, Error> {
    if value.is_integer() {
        return Ok(value.to_string());
    }
    let float = python::number(value)?;
    Ok(match float {
        f if f.is_nan() => "NaN".to_owned(),
        f if f.is_infinite() && f > 0.0 => "Infinity".to_owned(),
        f if f.is_infinite() => "-Infinity".to_owned(),
        f => python::float(f),
    })
}

/// Keys that are no texts become what they are as values.
fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.to_string()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(bool_text(key).to_owned()),
        ValueKind::Number => number(key),
        kind => Err(invalid(format!("tojson: {kind} cannot be a key"))),
    }
}
