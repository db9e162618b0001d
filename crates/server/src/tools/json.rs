//! Calls in JSON, a character at a time.

use super::piece::Pieces;
use super::step::{Known, Step};

/// Finds the end of a JSON value. What is no JSON is passed on like it: brackets and strings are all that is looked at.
#[derive(Debug, Default)]
pub(super) struct ValueEnd {
    depth: usize,
    in_string: bool,
    escaped: bool,
    begun: bool,
}

/// Where a character of a value stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    /// Within the value, or a blank before it.
    Inside,
    /// It is the last one.
    Last,
    /// The value ended before it.
    Behind,
}

impl ValueEnd {
    pub fn push(&mut self, c: char) -> At {
        if self.in_string {
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => self.in_string = false,
                _ => {}
            }
            return self.last_if(!self.in_string && self.depth == 0);
        }
        let scalar = self.begun && self.depth == 0;
        match c {
            '{' | '[' if !scalar => self.depth += 1,
            '"' if !scalar => self.in_string = true,
            '}' | ']' if self.depth > 0 => {
                self.depth -= 1;
                return self.last_if(self.depth == 0);
            }
            ',' | '}' | ']' if self.depth == 0 => return At::Behind,
            c if c.is_whitespace() && self.depth == 0 => {
                return if scalar { At::Behind } else { At::Inside };
            }
            _ => {}
        }
        self.begun = true;
        At::Inside
    }

    fn last_if(&self, last: bool) -> At {
        if last { At::Last } else { At::Inside }
    }
}

/// What of an object comes next.
#[derive(Debug)]
enum Next {
    Open,
    /// A key, or the end of the object.
    Key,
    InKey,
    Colon,
    Value(ValueEnd),
    /// A comma, or the end of the object.
    Comma,
}

/// An object with the name of a tool and its arguments.
#[derive(Debug)]
pub(super) struct JsonCall {
    next: Next,
    /// The key that is read, then that of the value that is read.
    key: String,
    /// The value, unless it goes out as it comes.
    value: String,
    name: Option<String>,
    /// Arguments that came before the name.
    early: Option<String>,
    started: bool,
    /// Arguments have gone out.
    argued: bool,
}

impl Default for JsonCall {
    fn default() -> Self {
        Self {
            next: Next::Open,
            key: String::new(),
            value: String::new(),
            name: None,
            early: None,
            started: false,
            argued: false,
        }
    }
}

impl JsonCall {
    /// Whether the call has gone out.
    pub fn started(&self) -> bool {
        self.started
    }

    pub fn push(&mut self, c: char, known: &Known, out: &mut Pieces) -> Step {
        match (&mut self.next, c) {
            (Next::Value(end), c) => {
                let at = end.push(c);
                return self.value(at, c, known, out);
            }
            (Next::InKey, '"') if !self.key.ends_with('\\') => self.next = Next::Colon,
            (Next::InKey, c) => self.key.push(c),
            (_, c) if c.is_whitespace() => {}
            (Next::Open, '{') => self.next = Next::Key,
            (Next::Key, '"') => {
                self.key.clear();
                self.next = Next::InKey;
            }
            (Next::Colon, ':') => {
                self.value.clear();
                self.next = Next::Value(ValueEnd::default());
            }
            (Next::Comma, ',') => self.next = Next::Key,
            (Next::Key | Next::Comma, '}') => return self.close(known, out),
            _ => return Step::Bad,
        }
        Step::More
    }

    /// A character of a value, or the one behind it.
    fn value(&mut self, at: At, c: char, known: &Known, out: &mut Pieces) -> Step {
        if at == At::Behind {
            self.next = Next::Comma;
            return match self.end_value(known, out) {
                Step::More => self.push(c, known, out),
                other => other,
            };
        }
        if self.value.is_empty() && c.is_whitespace() {
            return Step::More;
        }
        self.value.push(c);
        let arguments = self.is_arguments();
        // An object goes out as it comes; a string in its place is looked at as a whole.
        if arguments && self.value.starts_with('{') {
            if self.value.len() == 1 {
                self.start(out);
            }
            if self.started {
                out.arguments(c.encode_utf8(&mut [0; 4]));
                self.argued = true;
            }
        }
        if at == At::Last {
            self.next = Next::Comma;
            return self.end_value(known, out);
        }
        Step::More
    }

    fn is_arguments(&self) -> bool {
        matches!(self.key.as_str(), "arguments" | "parameters")
    }

    /// Takes in a value that is whole.
    fn end_value(&mut self, known: &Known, out: &mut Pieces) -> Step {
        let value = std::mem::take(&mut self.value);
        if self.key == "name" && self.name.is_none() {
            match serde_json::from_str::<String>(&value) {
                Ok(name) if known.takes(&name) => self.name = Some(name),
                _ => return Step::Bad,
            }
        } else if self.is_arguments() && !self.argued {
            self.early = Some(match serde_json::from_str::<String>(&value) {
                Ok(text) if text.trim_start().starts_with('{') => text,
                _ if value == "null" => "{}".to_owned(),
                _ => value,
            });
        }
        if self.name.is_some() && self.early.is_some() {
            self.start(out);
            self.flush(out);
        }
        Step::More
    }

    /// The call goes out if its name is there.
    fn start(&mut self, out: &mut Pieces) {
        if let Some(name) = &self.name
            && !self.started
        {
            out.call(name);
            self.started = true;
        }
    }

    fn flush(&mut self, out: &mut Pieces) {
        if let Some(early) = self.early.take()
            && !self.argued
        {
            out.arguments(&early);
            self.argued = true;
        }
    }

    /// The object ends. Without a mark that says so, it takes arguments to be a call.
    fn close(&mut self, known: &Known, out: &mut Pieces) -> Step {
        if self.name.is_none() || !(self.argued || self.early.is_some() || known.marked) {
            return Step::Bad;
        }
        self.start(out);
        self.flush(out);
        if !self.argued {
            out.arguments("{}");
        }
        Step::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(text: &str) -> Option<(usize, At)> {
        let mut value = ValueEnd::default();
        let mut places = text.chars().enumerate();
        places.find_map(|(index, c)| match value.push(c) {
            At::Inside => None,
            at => Some((index, at)),
        })
    }

    #[test]
    fn values_end_where_json_says() {
        for (text, index, at) in [
            (r#" "a\"b}",1"#, 7, At::Last),
            (r#"{"a": "}", "b": [1, {}]}}"#, 23, At::Last),
            ("12,", 2, At::Behind),
            ("true }", 4, At::Behind),
            ("null}", 4, At::Behind),
            ("[]", 1, At::Last),
        ] {
            assert_eq!(end(text), Some((index, at)), "{text}");
        }
        for open in ["{", "\"a\\\"", "12", "[1, 2"] {
            assert_eq!(end(open), None, "{open}");
        }
    }
}
