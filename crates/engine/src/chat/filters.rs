//! Filters and tests that minijinja has otherwise than Jinja, or not at all.

use minijinja::value::{Kwargs, Rest, Value, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State, filters};

use super::{invalid, json, methods, python, syntax};

/// Adds them all.
pub(super) fn add_to(env: &mut Environment<'_>) {
    minijinja_contrib::add_to_environment(env);
    env.add_filter(syntax::MODULO, modulo);
    env.add_filter(syntax::KEPT, kept);
    env.add_filter("tojson", json::tojson);
    env.add_filter("int", int);
    env.add_filter("float", float);
    env.add_filter("string", |state: &State, value: &Value| {
        python::text(state, value)
    });
    for name in ["default", "d"] {
        env.add_filter(name, default);
    }
    for name in ["e", "escape", "forceescape"] {
        env.add_filter(name, escape);
    }
    env.add_filter("indent", indent);
    env.add_filter("center", |state: &State, text: &str, width: Option<i64>| {
        methods::pad(state, text, "center", &[Value::from(width.unwrap_or(80))])
    });
    env.add_filter(
        "sort",
        |state: &State, value: Value, args: Rest<ValueOrKwargs>| {
            let options = by_name(args, &["reverse", "case_sensitive", "attribute"])?;
            filters::sort(state, value, options)
        },
    );
    env.add_filter("dictsort", |value: &Value, args: Rest<ValueOrKwargs>| {
        filters::dictsort(value, by_name(args, &["case_sensitive", "by", "reverse"])?)
    });
    env.add_filter(
        "truncate",
        |state: &mut State, value: &Value, args: Rest<ValueOrKwargs>| {
            let options = by_name(args, &["length", "killwords", "end", "leeway"])?;
            minijinja_contrib::filters::truncate(state, value, options)
        },
    );
    env.add_test("iterable", is_iterable);
    env.add_test("sequence", is_sequence);
    env.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
}

/// Arguments that were given by place or by name, all by name.
fn by_name(args: Rest<ValueOrKwargs>, names: &[&str]) -> Result<Kwargs, Error> {
    let args = args.into_values();
    let (places, named): (&[Value], Kwargs) = from_args(&args)?;
    if places.len() > names.len() {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let given = names.iter().copied().zip(places.iter().cloned());
    let named = named
        .args()
        .map(|name| Ok((name, named.get::<Value>(name)?)));
    let all: Vec<(&str, Value)> = given.map(Ok).chain(named).collect::<Result<_, Error>>()?;
    // Attributes may be places in a list.
    Ok(all
        .into_iter()
        .map(|(name, value)| match name {
            "attribute" => (name, Value::from(value.to_string())),
            _ => (name, value),
        })
        .collect())
}

/// What a namespace is to keep. Nothing that holds a namespace: it could be that one, and whatever goes through a value that holds itself
/// does not come back.
fn kept(value: Value) -> Result<Value, Error> {
    refuse_namespaces(&value, &mut 0)?;
    Ok(value)
}

/// A hundred times the parts of a long conversation; lists that hold each other many times have more.
const MOST_PARTS: usize = 1_000_000;

fn refuse_namespaces(value: &Value, parts: &mut usize) -> Result<(), Error> {
    *parts += 1;
    if *parts > MOST_PARTS {
        return Err(invalid("a value with too many parts"));
    }
    if value
        .as_object()
        .is_some_and(|object| object.type_name().ends_with("::Namespace"))
    {
        return Err(invalid("a namespace cannot be kept in a namespace"));
    }
    match value.kind() {
        ValueKind::Map => value.try_iter()?.try_for_each(|key| {
            refuse_namespaces(&key, parts)?;
            refuse_namespaces(&value.get_item(&key)?, parts)
        }),
        ValueKind::Seq | ValueKind::Iterable => value
            .try_iter()?
            .try_for_each(|item| refuse_namespaces(&item, parts)),
        _ => Ok(()),
    }
}

/// Python's `%`: formats if the left side is a text.
fn modulo(state: &mut State, left: Value, right: Value) -> Result<Value, Error> {
    if left.as_str().is_some() {
        let mut args = vec![left];
        if right.is_tuple() {
            args.extend(right.try_iter()?)
        } else {
            args.push(right)
        }
        return state.apply_filter("format", &args);
    }
    let numeric = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    if !numeric(&left) || !numeric(&right) {
        let (left, right) = (left.kind(), right.kind());
        return Err(invalid(format!("{left} % {right} has no value")));
    }
    if !right.is_true() {
        return Err(invalid(format!("{left} % {right} divides by zero")));
    }
    // The result has the sign of the divisor.
    match (i128::try_from(left.clone()), i128::try_from(right.clone())) {
        (Ok(a), Ok(b)) if !is_float(&left) && !is_float(&right) => {
            let rest = a.wrapping_rem(b);
            let rest = if rest != 0 && (rest < 0) != (b < 0) {
                rest + b
            } else {
                rest
            };
            Ok(Value::from(rest))
        }
        _ => {
            let (a, b) = (python::number(&left)?, python::number(&right)?);
            let rest = a % b;
            let rest = if rest != 0.0 && (rest < 0.0) != (b < 0.0) {
                rest + b
            } else {
                rest
            };
            Ok(Value::from(if rest == 0.0 {
                0f64.copysign(b)
            } else {
                rest
            }))
        }
    }
}

fn is_float(value: &Value) -> bool {
    value.kind() == ValueKind::Number && !value.is_integer()
}

/// `int`, which gives `default` for what is no number.
fn int(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    defined(value)?;
    let options = by_name(args, &["default", "base"])?;
    let base = options.get::<Option<u32>>("base")?.unwrap_or(10);
    let whole = |float: f64| float.is_finite().then(|| Value::from(float as i128));
    let number = match value.kind() {
        ValueKind::Bool => Some(Value::from(i64::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => Some(value.clone()),
        ValueKind::Number => whole(python::number(value)?),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            let parsed = parse_int(text, base).map(Value::from);
            parsed.or_else(|| parse_float(text).and_then(whole))
        }
        _ => None,
    };
    number.map_or_else(|| default_of(&options, Value::from(0)), Ok)
}

/// `float`, likewise.
fn float(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    defined(value)?;
    let options = by_name(args, &["default"])?;
    let number = match value.kind() {
        ValueKind::Bool => Some(f64::from(value.is_true())),
        ValueKind::Number => Some(python::number(value)?),
        ValueKind::String => parse_float(value.as_str().unwrap_or_default()),
        _ => None,
    };
    number.map_or_else(
        || default_of(&options, Value::from(0.0)),
        |number| Ok(Value::from(number)),
    )
}

fn defined(value: &Value) -> Result<(), Error> {
    if value.is_undefined() {
        Err(Error::from(ErrorKind::UndefinedError))
    } else {
        Ok(())
    }
}

/// The option `default`, which may be none.
fn default_of(options: &Kwargs, other: Value) -> Result<Value, Error> {
    if options.has("default") {
        options.get("default")
    } else {
        Ok(other)
    }
}

/// `default`, whose arguments have names in Jinja.
fn default(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let options = by_name(args, &["default_value", "boolean"])?;
    let boolean = flag(&options, "boolean")?;
    Ok(if !value.is_undefined() && (!boolean || value.is_true()) {
        value.clone()
    } else if options.has("default_value") {
        options.get("default_value")?
    } else {
        Value::from("")
    })
}

/// An option that is off unless it is given.
fn flag(options: &Kwargs, name: &str) -> Result<bool, Error> {
    Ok(options.has(name) && options.get::<Value>(name)?.is_true())
}

/// The characters that Jinja escapes, as it escapes them.
fn escape(state: &State, value: &Value) -> Result<Value, Error> {
    let mut text = python::text(state, value)?;
    for (c, escaped) in [
        ('&', "&amp;"),
        ('<', "&lt;"),
        ('>', "&gt;"),
        ('"', "&#34;"),
        ('\'', "&#39;"),
    ] {
        text = text.replace(c, escaped);
    }
    Ok(Value::from(text))
}

/// `indent`, which takes a text for a width and keeps the line break at the end.
fn indent(state: &State, text: &str, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let options = by_name(args, &["width", "first", "blank"])?;
    let (first, blank) = (flag(&options, "first")?, flag(&options, "blank")?);
    let width = if options.has("width") {
        options.get("width")?
    } else {
        Value::from(4)
    };
    let blanks = json::indentation(state, &width)?;
    let text = format!("{text}\n");
    let mut out = String::new();
    for (i, line) in methods::lines(&text, false).into_iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if (i == 0 && first) || (i > 0 && (blank || !line.is_empty())) {
            methods::pay(state, blanks.len())?;
            out.push_str(&blanks);
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

/// A number as Python's `int` reads it: blanks around it, a sign, a prefix that fits the base, single underscores.
fn parse_int(text: &str, base: u32) -> Option<i128> {
    let text = text.trim_matches(python::is_space);
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let prefix = match base {
        2 => ["0b", "0B"],
        8 => ["0o", "0O"],
        16 => ["0x", "0X"],
        3..=36 => ["", ""],
        _ => return None,
    };
    let digits = prefix
        .iter()
        .find_map(|p| digits.strip_prefix(p))
        .unwrap_or(digits);
    let digits = without_underscores(digits)?;
    if digits.starts_with(['+', '-']) {
        None
    } else {
        Some(sign * i128::from_str_radix(&digits, base).ok()?)
    }
}

fn parse_float(text: &str) -> Option<f64> {
    without_underscores(text.trim_matches(python::is_space))?
        .parse()
        .ok()
}

/// The digits without the underscores between them; none where one is at an end or beside another.
fn without_underscores(digits: &str) -> Option<String> {
    let odd = digits.starts_with('_') || digits.ends_with('_') || digits.contains("__");
    (!odd).then(|| digits.replace('_', ""))
}

/// None can be looped over in minijinja and not in Jinja: templates ask this to know whether there are tools.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// What has a length and can be subscripted, in Python.
fn is_sequence(value: &Value) -> bool {
    let kind = value.kind();
    matches!(
        kind,
        ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Undefined
    )
}
