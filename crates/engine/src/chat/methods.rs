//! Methods of Python's texts, lists and dictionaries, which templates call.
//!
//! Those that change a list or a dictionary are absent: Transformers runs templates where they are refused.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Kwargs, Tuple, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};

use super::{invalid, python};

/// Calls `value.name(args)`.
///
/// # Errors
/// There is no such method; arguments that it does not take; what Python raises.
pub(super) fn call(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            let found = cases(text, name, args)
                .or_else(|| questions(text, name, args))
                .or_else(|| searches(text, name, args))
                .or_else(|| pieces(text, name, args))
                .or_else(|| larger(state, text, name, args));
            found.unwrap_or_else(|| Err(unknown()))
        }
        ValueKind::Map => of_map(value, name, args),
        ValueKind::Seq | ValueKind::Iterable => of_list(state, value, name, args),
        _ => Err(unknown()),
    }
}

fn unknown() -> Error {
    Error::from(ErrorKind::UnknownMethod)
}

/// The result of a method; none where this is not the place for it.
type Found = Option<Result<Value, Error>>;

/// What a method without arguments gives.
fn plain(args: &[Value], result: impl Into<Value>) -> Result<Value, Error> {
    let () = from_args(args)?;
    Ok(result.into())
}

/// Texts with other letters.
fn cases(text: &str, name: &str, args: &[Value]) -> Found {
    let result = match name {
        "upper" => text.to_uppercase(),
        "lower" => text.to_lowercase(),
        "casefold" => text.to_lowercase().replace('ß', "ss"),
        "capitalize" => {
            let mut chars = text.chars();
            let first = chars.next().map(|c| c.to_uppercase().to_string());
            first.unwrap_or_default() + &chars.as_str().to_lowercase()
        }
        "swapcase" => text.chars().map(swap_case).collect(),
        "title" => title(text),
        _ => return None,
    };
    Some(plain(args, result))
}

fn swap_case(c: char) -> String {
    if c.is_uppercase() {
        c.to_lowercase().to_string()
    } else {
        c.to_uppercase().to_string()
    }
}

/// Whether a letter has cases.
fn is_cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase()
}

/// A capital after everything that is no letter, as in "It'S".
fn title(text: &str) -> String {
    let (mut out, mut inside) = (String::with_capacity(text.len()), false);
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        inside = is_cased(c);
    }
    out
}

/// What a text consists of. Digits of other scripts than ours are numeric only.
fn questions(text: &str, name: &str, args: &[Value]) -> Found {
    let all = |fits: fn(char) -> bool| !text.is_empty() && text.chars().all(fits);
    let result = match name {
        "isspace" => all(python::is_space),
        "isalpha" => all(char::is_alphabetic),
        "isalnum" => all(char::is_alphanumeric),
        "isnumeric" => all(char::is_numeric),
        "isdigit" => all(|c| c.is_ascii_digit() || "²³¹⁰⁴⁵⁶⁷⁸⁹₀₁₂₃₄₅₆₇₈₉".contains(c)),
        "isdecimal" => all(|c| c.is_ascii_digit()),
        "isascii" => text.is_ascii(),
        "isprintable" => !text.chars().any(char::is_control),
        "isidentifier" => {
            all(|c| c.is_alphanumeric() || c == '_') && !text.starts_with(char::is_numeric)
        }
        "islower" => text.chars().any(is_cased) && !text.chars().any(char::is_uppercase),
        "isupper" => text.chars().any(is_cased) && !text.chars().any(char::is_lowercase),
        "istitle" => text.chars().any(is_cased) && title(text) == text,
        _ => return None,
    };
    Some(plain(args, result))
}

/// Where something is in a text.
fn searches(text: &str, name: &str, args: &[Value]) -> Found {
    if !matches!(
        name,
        "find" | "index" | "rfind" | "rindex" | "count" | "startswith" | "endswith"
    ) {
        return None;
    }
    Some(search(text, name, args))
}

fn search(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (what, start, end): (Value, Option<i64>, Option<i64>) = from_args(args)?;
    let (from, part) = within(text, start, end);
    match name {
        "startswith" => any_of(&what, name, |what| {
            part.is_some_and(|part| part.starts_with(what))
        }),
        "endswith" => any_of(&what, name, |what| {
            part.is_some_and(|part| part.ends_with(what))
        }),
        "count" => {
            let what = text_of(&what, name)?;
            Ok(part.map_or(0, |part| part.matches(what).count()).into())
        }
        _ => {
            let what = text_of(&what, name)?;
            let before = part.and_then(|part| {
                let at = if name.starts_with('r') {
                    part.rfind(what)
                } else {
                    part.find(what)
                };
                at.map(|at| &part[..at])
            });
            match before {
                Some(before) => Ok(Value::from(from + before.chars().count())),
                None if name.ends_with("index") => Err(invalid("substring not found")),
                None => Ok(Value::from(-1)),
            }
        }
    }
}

/// The part of a text from `start` to `end`, counted in characters, and where it begins; no part if that is behind its end.
fn within(text: &str, start: Option<i64>, end: Option<i64>) -> (usize, Option<&str>) {
    if start.is_none() && end.is_none() {
        return (0, Some(text));
    }
    let count = text.chars().count() as i64;
    let place = |index: i64| {
        if index < 0 {
            (index + count).max(0)
        } else {
            index
        }
    };
    let start = place(start.unwrap_or(0));
    let end = place(end.unwrap_or(count)).min(count);
    let byte = |place: i64| {
        let mut places = text.char_indices().skip(place as usize);
        places.next().map_or(text.len(), |(at, _)| at)
    };
    let part = (start <= end).then(|| &text[byte(start)..byte(end)]);
    (start as usize, part)
}

fn text_of<'v>(value: &'v Value, method: &str) -> Result<&'v str, Error> {
    let wanted = || invalid(format!("{method} wants a text, not {}", value.kind()));
    value.as_str().ok_or_else(wanted)
}

/// Whether it holds for the text, or for one of a tuple's.
fn any_of(what: &Value, method: &str, holds: impl Fn(&str) -> bool) -> Result<Value, Error> {
    if let Some(text) = what.as_str() {
        return Ok(Value::from(holds(text)));
    }
    for item in what.try_iter()? {
        if holds(text_of(&item, method)?) {
            return Ok(Value::from(true));
        }
    }
    Ok(Value::from(false))
}

/// Parts of a text.
fn pieces(text: &str, name: &str, args: &[Value]) -> Found {
    Some(match name {
        "strip" | "lstrip" | "rstrip" => strip(text, name, args),
        "removeprefix" => from_args(args)
            .map(|(prefix,): (&str,)| text.strip_prefix(prefix).unwrap_or(text).into()),
        "removesuffix" => from_args(args)
            .map(|(suffix,): (&str,)| text.strip_suffix(suffix).unwrap_or(text).into()),
        "split" | "rsplit" => split(text, name == "rsplit", args),
        "partition" => from_args(args).map(|(sep,): (&str,)| match text.split_once(sep) {
            Some((before, after)) => tuple([before, sep, after]),
            None => tuple([text, "", ""]),
        }),
        "rpartition" => from_args(args).map(|(sep,): (&str,)| match text.rsplit_once(sep) {
            Some((before, after)) => tuple([before, sep, after]),
            None => tuple(["", "", text]),
        }),
        "splitlines" => split_lines(text, args),
        _ => return None,
    })
}

fn tuple<const N: usize>(parts: [&str; N]) -> Value {
    Value::from(Tuple::from(parts.map(Value::from)))
}

fn strip(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (chars,): (Option<&str>,) = from_args(args)?;
    let goes = |c: char| chars.map_or_else(|| python::is_space(c), |chars| chars.contains(c));
    Ok(Value::from(match name {
        "lstrip" => text.trim_start_matches(goes),
        "rstrip" => text.trim_end_matches(goes),
        _ => text.trim_matches(goes),
    }))
}

fn split(text: &str, from_end: bool, args: &[Value]) -> Result<Value, Error> {
    let (sep, limit, options): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
    let sep = match sep {
        Some(sep) => Some(sep),
        None => options.get("sep")?,
    };
    let limit = match limit {
        Some(limit) => limit,
        None => options.get::<Option<i64>>("maxsplit")?.unwrap_or(-1),
    };
    options.assert_all_used()?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX - 1);
    let sep = sep.filter(|sep| !sep.is_none());
    let mut parts: Vec<&str> = match sep.as_ref().map(|sep| text_of(sep, "split")).transpose()? {
        Some("") => return Err(invalid("empty separator")),
        Some(sep) if from_end => text.rsplitn(limit + 1, sep).collect(),
        Some(sep) => text.splitn(limit + 1, sep).collect(),
        None => words(text, limit, from_end),
    };
    if from_end {
        parts.reverse();
    }
    Ok(Value::from_iter(parts))
}

/// Words between blanks; what is left after `limit` of them is the last part, as it is.
fn words(text: &str, limit: usize, from_end: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let trim = |rest: &'_ str| -> usize { rest.trim_end_matches(python::is_space).len() };
    let mut rest = text;
    loop {
        rest = if from_end {
            &rest[..trim(rest)]
        } else {
            rest.trim_start_matches(python::is_space)
        };
        if rest.is_empty() {
            return parts;
        }
        let cut = if from_end {
            rest.rfind(python::is_space)
        } else {
            rest.find(python::is_space)
        };
        match cut.filter(|_| parts.len() < limit) {
            Some(at) if from_end => {
                let space = rest[at..].chars().next().map_or(0, char::len_utf8);
                parts.push(&rest[at + space..]);
                rest = &rest[..at];
            }
            Some(at) => {
                parts.push(&rest[..at]);
                rest = &rest[at..];
            }
            None => {
                parts.push(rest);
                return parts;
            }
        }
    }
}

fn split_lines(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (keep, options): (Option<Value>, Kwargs) = from_args(args)?;
    let keep = match keep {
        Some(keep) => keep.is_true(),
        None => options.get::<Option<bool>>("keepends")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    Ok(Value::from_iter(lines(text, keep)))
}

/// Lines as `splitlines` finds them, with or without their ends.
pub(super) fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    const BREAKS: [char; 10] = [
        '\n', '\r', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\u{85}', '\u{2028}', '\u{2029}',
    ];
    let (mut lines, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find(BREAKS) {
        let end = match &rest[at..] {
            tail if tail.starts_with("\r\n") => at + 2,
            tail => at + tail.chars().next().map_or(0, char::len_utf8),
        };
        lines.push(&rest[..if keep_ends { end } else { at }]);
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// Texts that may be longer: they are paid for before they are made.
fn larger(state: &State, text: &str, name: &str, args: &[Value]) -> Found {
    Some(match name {
        "replace" => replace(state, text, args),
        "join" => from_args(args).and_then(|(items,): (&Value,)| join(state, text, items)),
        "format" => format_text(state, text, args),
        "center" | "ljust" | "rjust" | "zfill" => pad(state, text, name, args),
        "expandtabs" => expand_tabs(state, text, args),
        _ => return None,
    })
}

/// Fuel for so many bytes.
pub(super) fn pay(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel(bytes as u64 / 64)
}

fn replace(state: &State, text: &str, args: &[Value]) -> Result<Value, Error> {
    let (old, new, count, options): (&str, &str, Option<i64>, Kwargs) = from_args(args)?;
    let count = match count {
        Some(count) => count,
        None => options.get::<Option<i64>>("count")?.unwrap_or(-1),
    };
    options.assert_all_used()?;
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if new.len() > old.len() {
        let found = text.matches(old).take(count).count();
        pay(state, found.saturating_mul(new.len()))?;
    }
    Ok(Value::from(text.replacen(old, new, count)))
}

fn join(state: &State, between: &str, items: &Value) -> Result<Value, Error> {
    let mut out = String::new();
    for (i, item) in items.try_iter()?.enumerate() {
        let text = text_of(&item, "join")?;
        state.consume_fuel(1)?;
        pay(state, between.len() + text.len())?;
        if i > 0 {
            out.push_str(between);
        }
        out.push_str(text);
    }
    Ok(Value::from(out))
}

fn format_text(state: &State, text: &str, args: &[Value]) -> Result<Value, Error> {
    // A width may be any number that stands in the text.
    for number in text.split(|c: char| !c.is_ascii_digit()) {
        pay(
            state,
            number.parse().unwrap_or(usize::from(!number.is_empty())),
        )?;
    }
    format(FormatStyle::StrFormat, text, args).map(Value::from)
}

pub(super) fn pad(state: &State, text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (i64, Option<&str>) = from_args(args)?;
    let fill = match (name, fill) {
        ("zfill", None) => "0",
        (_, None) => " ",
        ("zfill", Some(_)) => return Err(Error::from(ErrorKind::TooManyArguments)),
        (_, Some(fill)) if fill.chars().count() == 1 => fill,
        _ => return Err(invalid(format!("{name} fills with one character"))),
    };
    let width = usize::try_from(width).unwrap_or(0);
    let missing = width.saturating_sub(text.chars().count());
    pay(state, missing.saturating_mul(fill.len()))?;
    Ok(Value::from(match name {
        "ljust" => format!("{text}{}", fill.repeat(missing)),
        "rjust" => format!("{}{text}", fill.repeat(missing)),
        "zfill" => {
            let signed = text.starts_with(['+', '-']);
            let (sign, digits) = text.split_at(usize::from(signed));
            format!("{sign}{}{digits}", fill.repeat(missing))
        }
        _ => {
            // Python puts the odd one before the text if the width is odd.
            let left = missing / 2 + (missing & width & 1);
            format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left))
        }
    }))
}

fn expand_tabs(state: &State, text: &str, args: &[Value]) -> Result<Value, Error> {
    let (size, options): (Option<i64>, Kwargs) = from_args(args)?;
    let size = match size {
        Some(size) => size,
        None => options.get::<Option<i64>>("tabsize")?.unwrap_or(8),
    };
    options.assert_all_used()?;
    let size = usize::try_from(size).unwrap_or(0);
    let (mut out, mut column) = (String::new(), 0);
    for c in text.chars() {
        match c {
            '\t' if size == 0 => {}
            '\t' => {
                let blanks = size - column % size;
                pay(state, blanks)?;
                out.push_str(&" ".repeat(blanks));
                column += blanks;
            }
            _ => {
                out.push(c);
                column = if matches!(c, '\n' | '\r') {
                    0
                } else {
                    column + 1
                };
            }
        }
    }
    Ok(Value::from(out))
}

fn of_map(map: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match name {
        "get" => {
            let (key, default): (&Value, Option<Value>) = from_args(args)?;
            let found = map.get_item(key)?;
            Ok(if found.is_undefined() {
                default.unwrap_or_else(|| Value::from(()))
            } else {
                found
            })
        }
        "keys" => plain(args, map.try_iter()?.collect::<Value>()),
        "values" => plain(
            args,
            entries(map)?.map(|(_, value)| value).collect::<Value>(),
        ),
        "items" => {
            let pair = |(key, value)| Value::from(Tuple::from([key, value]));
            plain(args, entries(map)?.map(pair).collect::<Value>())
        }
        "copy" => plain(args, map.clone()),
        _ => Err(unknown()),
    }
}

fn entries(map: &Value) -> Result<impl Iterator<Item = (Value, Value)>, Error> {
    let map = map.clone();
    Ok(map.try_iter()?.map(move |key| {
        let value = map.get_item(&key).unwrap_or_default();
        (key, value)
    }))
}

fn of_list(state: &State, list: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match name {
        "copy" => plain(args, list.clone()),
        "count" => {
            let (what,): (&Value,) = from_args(args)?;
            let mut count = 0;
            for item in list.try_iter()? {
                state.consume_fuel(1)?;
                count += usize::from(item == *what);
            }
            Ok(Value::from(count))
        }
        "index" => {
            let (what,): (&Value,) = from_args(args)?;
            for (i, item) in list.try_iter()?.enumerate() {
                state.consume_fuel(1)?;
                if item == *what {
                    return Ok(Value::from(i));
                }
            }
            Err(invalid(format!("{what} is not in the list")))
        }
        _ => Err(unknown()),
    }
}
