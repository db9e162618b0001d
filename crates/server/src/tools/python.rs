//! Calls as Python writes them: `[name(key=value, …), …]`.

use std::iter::Peekable;
use std::str::Chars;

use serde_json::{Map, Value};

use super::piece::Pieces;
use super::step::{Known, Step, after_tag};

/// What some models write after a list.
const END: &str = "<|python_end|>";
/// Deepest literal, in lists and dictionaries within each other.
const MAX_DEPTH: usize = 64;

/// What comes next.
#[derive(Debug, Default)]
enum Next {
    /// The bracket of the list.
    #[default]
    Open,
    Name,
    /// A key, or the end of the call.
    Key,
    Literal(LiteralEnd),
    /// A comma, or the end of the list.
    Comma,
    /// The mark at the end of a list, which may be left out.
    End,
}

/// A list of calls.
#[derive(Debug, Default)]
pub(super) struct PythonCalls {
    next: Next,
    /// The name, key or literal that is read.
    word: String,
    key: String,
    /// Arguments of the call that have gone out.
    arguments: usize,
    started: bool,
    /// Whether a call has begun that has not ended.
    open: bool,
}

impl PythonCalls {
    /// Whether a call has gone out.
    pub fn started(&self) -> bool {
        self.started
    }

    pub fn push(&mut self, c: char, known: &Known, out: &mut Pieces) -> Step {
        match (&mut self.next, c) {
            (Next::End, c) => {
                self.word.push(c);
                return after_tag(&self.word, END);
            }
            (Next::Literal(end), c) => {
                if end.push(c) {
                    self.end_argument(out);
                    return self.push(c, known, out);
                }
                self.word.push(c);
            }
            (Next::Name, '(') => return self.start(known, out),
            (Next::Name, c) if is_word(c) || c == '.' || c == '-' => self.word.push(c),
            (Next::Name, c) if c.is_whitespace() && self.word.is_empty() => {}
            (Next::Key, '=') if !self.word.is_empty() => {
                self.key = std::mem::take(&mut self.word);
                self.next = Next::Literal(LiteralEnd::default());
            }
            (Next::Key, ')') if self.word.is_empty() => {
                self.end(out);
                self.next = Next::Comma;
            }
            (Next::Key, ',') if self.word.is_empty() => {}
            (Next::Key, c) if is_word(c) => self.word.push(c),
            (_, c) if c.is_whitespace() => {}
            (Next::Open, '[') => self.next = Next::Name,
            (Next::Comma, ',') => self.next = Next::Name,
            (Next::Comma, ']') => self.next = Next::End,
            _ => return Step::Bad,
        }
        Step::More
    }

    /// A call begins.
    fn start(&mut self, known: &Known, out: &mut Pieces) -> Step {
        let name = std::mem::take(&mut self.word);
        if name.is_empty() || !(self.started || known.takes(&name)) {
            return Step::Bad;
        }
        out.call(&name);
        self.started = true;
        self.open = true;
        self.arguments = 0;
        self.next = Next::Key;
        Step::More
    }

    fn end_argument(&mut self, out: &mut Pieces) {
        let word = std::mem::take(&mut self.word);
        let value = literal(word.trim()).unwrap_or_else(|| Value::from(word.trim()));
        let before = if self.arguments == 0 { "{" } else { ", " };
        let key = Value::from(self.key.as_str());
        out.arguments(&format!("{before}{key}: {value}"));
        self.arguments += 1;
        self.next = Next::Key;
    }

    /// The text ends, or a call does.
    pub fn end(&mut self, out: &mut Pieces) {
        if std::mem::take(&mut self.open) {
            out.arguments(if self.arguments == 0 { "{}" } else { "}" });
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Finds the end of a literal: the comma or the bracket behind it.
#[derive(Debug, Default)]
struct LiteralEnd {
    depth: usize,
    quote: Option<char>,
    escaped: bool,
}

impl LiteralEnd {
    /// Whether the literal ended before `c`.
    fn push(&mut self, c: char) -> bool {
        match (self.quote, c) {
            (Some(_), _) if self.escaped => self.escaped = false,
            (Some(_), '\\') => self.escaped = true,
            (Some(quote), c) if c == quote => self.quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => self.quote = Some(c),
            (None, '[' | '{' | '(') => self.depth += 1,
            (None, ')' | ',') if self.depth == 0 => return true,
            (None, ']' | '}' | ')') => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        false
    }
}

/// The value of a literal of Python, or of JSON.
pub(super) fn literal(text: &str) -> Option<Value> {
    let mut reader = Reader {
        chars: text.chars().peekable(),
    };
    let value = reader.value(MAX_DEPTH)?;
    reader.blanks();
    reader.chars.next().is_none().then_some(value)
}

struct Reader<'a> {
    chars: Peekable<Chars<'a>>,
}

impl Reader<'_> {
    fn blanks(&mut self) {
        while self.chars.next_if(|c| c.is_whitespace()).is_some() {}
    }

    fn takes(&mut self, c: char) -> bool {
        self.blanks();
        self.chars.next_if_eq(&c).is_some()
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        let inner = depth.checked_sub(1)?;
        self.blanks();
        match self.chars.peek()? {
            '[' => self.items('[', ']', inner).map(Value::Array),
            '(' => self.items('(', ')', inner).map(Value::Array),
            '{' => self.dictionary(inner),
            '"' | '\'' => self.string().map(Value::String),
            _ => self.word(),
        }
    }

    fn items(&mut self, open: char, close: char, depth: usize) -> Option<Vec<Value>> {
        let mut items = Vec::new();
        self.takes(open);
        while !self.takes(close) {
            if !items.is_empty() && !self.takes(',') {
                return None;
            }
            if self.takes(close) {
                break;
            }
            items.push(self.value(depth)?);
        }
        Some(items)
    }

    fn dictionary(&mut self, depth: usize) -> Option<Value> {
        let mut fields = Map::new();
        self.takes('{');
        while !self.takes('}') {
            if !fields.is_empty() && !self.takes(',') {
                return None;
            }
            if self.takes('}') {
                break;
            }
            let key = match self.value(depth)? {
                Value::String(key) => key,
                key => key.to_string(),
            };
            if !self.takes(':') {
                return None;
            }
            fields.insert(key, self.value(depth)?);
        }
        Some(Value::Object(fields))
    }

    /// A string between quotes, with the escapes of Python and the pairs of JSON.
    fn string(&mut self) -> Option<String> {
        let quote = self.chars.next()?;
        let mut units: Vec<u16> = Vec::new();
        loop {
            let c = match self.chars.next()? {
                c if c == quote => return Some(String::from_utf16_lossy(&units)),
                '\\' => match self.chars.next()? {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    'b' => '\u{8}',
                    'f' => '\u{c}',
                    '\n' => continue,
                    c @ ('\\' | '\'' | '"' | '/') => c,
                    'U' => char::from_u32(self.code(8)?)?,
                    // Half of a pair is no character.
                    c @ ('x' | 'u') => {
                        let code = self.code(if c == 'x' { 2 } else { 4 })?;
                        units.push(u16::try_from(code).ok()?);
                        continue;
                    }
                    c => {
                        units.push(u16::from(b'\\'));
                        c
                    }
                },
                c => c,
            };
            units.extend_from_slice(c.encode_utf16(&mut [0; 2]));
        }
    }

    fn code(&mut self, digits: usize) -> Option<u32> {
        let digits: String = (0..digits).map_while(|_| self.chars.next()).collect();
        u32::from_str_radix(&digits, 16).ok()
    }

    fn word(&mut self) -> Option<Value> {
        let ends = |c: &char| c.is_whitespace() || ",)]}:".contains(*c);
        let mut word = String::new();
        while let Some(c) = self.chars.next_if(|c| !ends(c)) {
            word.push(c);
        }
        match word.as_str() {
            "True" | "true" => Some(Value::Bool(true)),
            "False" | "false" => Some(Value::Bool(false)),
            "None" | "null" => Some(Value::Null),
            number => {
                let number: Value = serde_json::from_str(number.trim_start_matches('+')).ok()?;
                number.is_number().then_some(number)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn literals_are_those_of_python_and_json() {
        for (text, want) in [
            ("1", json!(1)),
            ("-2.5e3", json!(-2500.0)),
            ("'a\\'b'", json!("a'b")),
            ("\"é\\n\\u00e9\\x41\\ud83d\\ude00\\d\"", json!("é\néA😀\\d")),
            ("True", json!(true)),
            ("false", json!(false)),
            ("None", json!(null)),
            ("[1, 'x', (2, 3),]", json!([1, "x", [2, 3]])),
            (
                "{'a': {}, \"b\": [None], 1: ')'}",
                json!({"a": {}, "b": [null], "1": ")"}),
            ),
        ] {
            assert_eq!(literal(text), Some(want), "{text}");
        }
        for bad in [
            "",
            "a",
            "[1",
            "'a",
            "{1}",
            "1 2",
            "[1 2]",
            "\"\\u12\"",
            "f(1)",
        ] {
            assert_eq!(literal(bad), None, "{bad}");
        }
        assert_eq!(literal(&"[".repeat(100_000)), None);
    }
}
