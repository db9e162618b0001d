//! Values as Python prints them.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, State};

use super::invalid;

/// Python's `str`.
///
/// # Errors
/// The fuel ends: lists may contain each other so often that no memory holds their text.
pub(super) fn text(state: &State, value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    match value.as_str() {
        Some(text) => out.push_str(text),
        None if value.is_undefined() => {}
        None => repr(state, value, &mut out)?,
    }
    Ok(out)
}

/// Python's `repr`, appended to `out`.
fn repr(state: &State, value: &Value, out: &mut String) -> Result<(), Error> {
    state.consume_fuel(1)?;
    let before = out.len();
    match value.kind() {
        ValueKind::Number if !value.is_integer() => out.push_str(&float(number(value)?)),
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                separate(i, out);
                repr(state, &key, out)?;
                out.push_str(": ");
                repr(state, &value.get_item(&key)?, out)?;
            }
            out.push('}');
            return Ok(());
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let (open, close) = if value.is_tuple() {
                ('(', ')')
            } else {
                ('[', ']')
            };
            out.push(open);
            let mut count = 0;
            for item in value.try_iter()? {
                separate(count, out);
                repr(state, &item, out)?;
                count += 1;
            }
            if value.is_tuple() && count == 1 {
                out.push(',');
            }
            out.push(close);
            return Ok(());
        }
        ValueKind::Undefined => out.push_str("Undefined"),
        _ => out.push_str(&format!("{value:?}")),
    }
    state.consume_fuel((out.len() - before) as u64 / 64)
}

fn separate(index: usize, out: &mut String) {
    if index > 0 {
        out.push_str(", ");
    }
}

/// A float as Python writes it: the shortest text that reads back the same, with an exponent from 1e16 and below 1e-4.
pub(super) fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    // The thresholds of `Debug` are Python's; exponents have no sign and no second digit there.
    let text = format!("{value:?}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let exponent: i32 = exponent.parse().expect("an exponent");
            format!("{digits}e{exponent:+03}")
        }
        None => text,
    }
}

/// A number as a float.
pub(super) fn number(value: &Value) -> Result<f64, Error> {
    f64::try_from(value.clone()).map_err(|_| invalid(format!("{value} is too large for a float")))
}

/// What Python strips and splits at.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}
