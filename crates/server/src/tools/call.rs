//! A call, or a list of them, in one of the formats, a character at a time.

use super::format::ToolFormat;
use super::json::{At, JsonCall, ValueEnd};
use super::piece::Pieces;
use super::python::PythonCalls;
use super::step::{Known, Step, after_tag, push_bare};
use super::xml::XmlCall;

/// Longest name of a call, with the marks behind it, in bytes.
const MAX_NAME_BYTES: usize = 256;

/// Calls after the mark of their format.
#[derive(Debug)]
pub(super) enum Call {
    /// An object, then a mark.
    Tagged {
        call: JsonCall,
        tail: Option<String>,
    },
    /// Objects with semicolons between them.
    Objects {
        call: JsonCall,
        between: bool,
    },
    /// A list of objects, or a name and an object.
    Mistral(Mistral),
    Xml(XmlCall),
    Python(PythonCalls),
}

impl Call {
    /// What comes after the mark `start`, or without one.
    pub fn new(format: Option<ToolFormat>, start: &str) -> Self {
        match format {
            Some(ToolFormat::Hermes) => Self::Tagged {
                call: JsonCall::default(),
                tail: None,
            },
            Some(ToolFormat::Llama3Json) => Self::Objects {
                call: JsonCall::default(),
                between: false,
            },
            Some(ToolFormat::Mistral) => Self::Mistral(Mistral::Head),
            Some(ToolFormat::Qwen3Coder) => Self::Xml(XmlCall::new(start)),
            Some(ToolFormat::Pythonic) => Self::Python(PythonCalls::default()),
            None => Self::Mistral(Mistral::Head),
        }
    }

    /// Whether something of it has gone out.
    pub fn started(&self) -> bool {
        match self {
            Self::Tagged { call, tail } => call.started() || tail.is_some(),
            Self::Objects { call, between } => call.started() || *between,
            Self::Mistral(call) => call.started(),
            Self::Xml(call) => call.started(),
            Self::Python(calls) => calls.started(),
        }
    }

    pub fn push(&mut self, c: char, known: &Known, out: &mut Pieces) -> Step {
        match self {
            Self::Tagged { call, tail: None } => match call.push(c, known, out) {
                Step::Done => {
                    *self = Self::Tagged {
                        call: JsonCall::default(),
                        tail: Some(String::new()),
                    };
                    Step::More
                }
                step => step,
            },
            Self::Tagged {
                tail: Some(tail), ..
            } => {
                push_bare(tail, c);
                after_tag(tail, "</tool_call>")
            }
            Self::Objects { call, between } => objects(call, between, c, known, out),
            Self::Mistral(call) => call.push(c, known, out),
            Self::Xml(call) => call.push(c, known, out),
            Self::Python(calls) => calls.push(c, known, out),
        }
    }

    /// The text ends within it.
    pub fn end(&mut self, known: &Known, out: &mut Pieces) {
        match self {
            Self::Xml(call) => call.end(known, out),
            Self::Python(calls) => calls.end(out),
            // What came of the arguments has gone out.
            _ => {}
        }
    }
}

fn objects(
    call: &mut JsonCall,
    between: &mut bool,
    c: char,
    known: &Known,
    out: &mut Pieces,
) -> Step {
    match c {
        _ if !*between => match call.push(c, known, out) {
            Step::Done => {
                *between = true;
                Step::More
            }
            step => step,
        },
        c if c.is_whitespace() || c == ';' => Step::More,
        '{' => {
            *between = false;
            *call = JsonCall::default();
            call.push(c, known, out)
        }
        c => Step::Left(c.to_string()),
    }
}

/// What comes after `[TOOL_CALLS]`.
#[derive(Debug)]
pub(super) enum Mistral {
    Head,
    List(JsonCall),
    /// Between two objects of a list.
    Between,
    /// One object.
    Single(JsonCall),
    /// A name, and what comes before its arguments.
    Name(String),
    Arguments(ValueEnd),
}

impl Mistral {
    fn started(&self) -> bool {
        match self {
            Self::List(call) | Self::Single(call) => call.started(),
            Self::Between | Self::Arguments(_) => true,
            Self::Head | Self::Name(_) => false,
        }
    }

    fn push(&mut self, c: char, known: &Known, out: &mut Pieces) -> Step {
        match (&mut *self, c) {
            (Self::List(call), c) => {
                let step = call.push(c, known, out);
                if step != Step::Done {
                    return step;
                }
                *self = Self::Between;
            }
            (Self::Single(call), c) => return call.push(c, known, out),
            (Self::Name(_), '{') => return self.name_ends(c, known, out),
            (Self::Name(name), c) if name.len() < MAX_NAME_BYTES => name.push(c),
            (Self::Arguments(end), c) => {
                let at = end.push(c);
                out.arguments(c.encode_utf8(&mut [0; 4]));
                if at == At::Last {
                    return Step::Done;
                }
            }
            (Self::Head | Self::Between, c) if c.is_whitespace() => {}
            (Self::Head, '[') => *self = Self::List(JsonCall::default()),
            (Self::Head, '{') => {
                let mut call = JsonCall::default();
                let step = call.push(c, known, out);
                *self = Self::Single(call);
                return step;
            }
            (Self::Head, c) if known.marked => *self = Self::Name(c.to_string()),
            (Self::Between, ',') => *self = Self::List(JsonCall::default()),
            (Self::Between, ']') => return Step::Done,
            _ => return Step::Bad,
        }
        Step::More
    }

    fn name_ends(&mut self, c: char, known: &Known, out: &mut Pieces) -> Step {
        let Self::Name(name) = self else {
            return Step::Bad;
        };
        let marks = ["[CALL_ID]", "[ARGS]"];
        let end = marks.iter().filter_map(|mark| name.find(mark)).min();
        let name = name[..end.unwrap_or(name.len())].trim();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Step::Bad;
        }
        out.call(name);
        *self = Self::Arguments(ValueEnd::default());
        self.push(c, known, out)
    }
}
