//! Calls as Qwen3-Coder writes them: `<function=name>`, `<parameter=key>` and a value, without quotes.

use serde_json::Value;

use super::piece::Pieces;
use super::step::{Known, MAX_BLANKS, Step, after_tag, push_bare};
use super::typed::{self, Kind};

const FUNCTION: &str = "<function=";
const PARAMETER: &str = "<parameter=";
const END_VALUE: &str = "</parameter>";
const END_FUNCTION: &str = "</function>";
const END_CALL: &str = "</tool_call>";

/// What comes next.
#[derive(Debug)]
enum Next {
    /// The function's mark.
    Function,
    Name,
    /// A parameter's mark, or the end of the function.
    Parameter,
    Key,
    Value,
    /// The end of the call.
    EndCall,
}

/// A call.
#[derive(Debug)]
pub(super) struct XmlCall {
    next: Next,
    /// What is read and not used yet.
    word: String,
    name: String,
    key: String,
    arguments: usize,
    /// Bytes of a value in which its end is not.
    passed: usize,
    /// Whether the value is a text, a part of which has gone out.
    flowing: bool,
    started: bool,
    closed: bool,
}

impl XmlCall {
    /// What comes after the mark `start`, that of a call or of a function.
    pub fn new(start: &str) -> Self {
        Self {
            next: if start == FUNCTION {
                Next::Name
            } else {
                Next::Function
            },
            word: String::new(),
            name: String::new(),
            key: String::new(),
            arguments: 0,
            passed: 0,
            flowing: false,
            started: false,
            closed: false,
        }
    }

    /// Whether it has gone out.
    pub fn started(&self) -> bool {
        self.started
    }

    pub fn push(&mut self, c: char, known: &Known, out: &mut Pieces) -> Step {
        match self.next {
            Next::Function | Next::Parameter | Next::EndCall => push_bare(&mut self.word, c),
            Next::Name | Next::Key | Next::Value => self.word.push(c),
        }
        match self.next {
            Next::Function => match after_tag(&self.word, FUNCTION) {
                Step::Done => self.go(Next::Name),
                Step::More => {}
                _ => return Step::Bad,
            },
            Next::Name if c == '>' => {
                self.name = self.without_end();
                if self.name.is_empty() {
                    return Step::Bad;
                }
                out.call(&self.name);
                self.started = true;
                self.go(Next::Parameter);
            }
            Next::Key if c == '>' => {
                self.key = self.without_end();
                self.go(Next::Value);
            }
            Next::Name | Next::Key => {}
            Next::Parameter => return self.parameter(out),
            Next::Value => return self.value(known, out),
            Next::EndCall => return after_tag(&self.word, END_CALL),
        }
        Step::More
    }

    fn go(&mut self, next: Next) {
        self.next = next;
        self.word.clear();
        self.passed = 0;
    }

    fn without_end(&self) -> String {
        self.word[..self.word.len() - 1].trim().to_owned()
    }

    fn parameter(&mut self, out: &mut Pieces) -> Step {
        match (
            after_tag(&self.word, PARAMETER),
            after_tag(&self.word, END_FUNCTION),
        ) {
            (Step::Done, _) => self.go(Next::Key),
            (_, Step::Done) => {
                self.close(out);
                self.go(Next::EndCall);
            }
            (Step::More, _) | (_, Step::More) => {}
            // Something else between parameters is passed over.
            _ => self.word.clear(),
        }
        Step::More
    }

    /// A value goes on. It ends at a mark that another mark follows: what it holds may look like one.
    fn value(&mut self, known: &Known, out: &mut Pieces) -> Step {
        while let Some(at) = self.word[self.passed..].find(END_VALUE) {
            let at = self.passed + at;
            let behind = at + END_VALUE.len();
            let after = &self.word[behind..];
            if after.len() - after.trim_start().len() > MAX_BLANKS {
                self.flow(behind, known, out);
                continue;
            }
            let marks = [PARAMETER, END_FUNCTION].map(|mark| after_tag(after, mark));
            let ends = match marks {
                [Step::Done, _] => Next::Key,
                [_, Step::Done] => Next::EndCall,
                [Step::More, _] | [_, Step::More] => return Step::More,
                // It is a part of the value.
                _ => {
                    self.flow(behind, known, out);
                    continue;
                }
            };
            self.word.truncate(at);
            self.end_value(known, out);
            if matches!(ends, Next::EndCall) {
                self.close(out);
            }
            self.go(ends);
            return Step::More;
        }
        // A line break before the mark is no part of the value.
        let certain = self.word.len() - held_back(&self.word);
        self.flow(certain, known, out);
        Step::More
    }

    /// The first `bytes` bytes of the word are a part of the value. A text goes out as it comes.
    fn flow(&mut self, bytes: usize, known: &Known, out: &mut Pieces) {
        let schema = self.schema(known);
        if typed::kind(schema) != (Kind::Text, false) {
            self.passed = bytes;
            return;
        }
        self.passed = 0;
        if bytes == 0 {
            return;
        }
        let text: String = self.word.drain(..bytes).collect();
        let mut text = text.as_str();
        if !self.flowing {
            // Nor is one after it.
            text = text.strip_prefix('\n').unwrap_or(text);
            self.begin(out);
            out.arguments("\"");
            self.flowing = true;
        }
        let quoted = Value::from(text).to_string();
        out.arguments(&quoted[1..quoted.len() - 1]);
    }

    /// The word is the rest of the value.
    fn end_value(&mut self, known: &Known, out: &mut Pieces) {
        let text = std::mem::take(&mut self.word);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        if std::mem::take(&mut self.flowing) {
            let quoted = Value::from(text).to_string();
            out.arguments(&quoted[1..]);
        } else {
            let text = text.strip_prefix('\n').unwrap_or(text);
            let json = typed::json(text, self.schema(known));
            self.begin(out);
            out.arguments(&json);
        }
        self.arguments += 1;
    }

    /// An argument begins.
    fn begin(&self, out: &mut Pieces) {
        let before = if self.arguments == 0 { "{" } else { ", " };
        let key = Value::from(self.key.as_str());
        out.arguments(&format!("{before}{key}: "));
    }

    fn schema<'a>(&self, known: &'a Known) -> Option<&'a Value> {
        let tool = known.tools.iter().find(|tool| tool.name == self.name)?;
        tool.property(&self.key)
    }

    fn close(&mut self, out: &mut Pieces) {
        if self.started && !std::mem::replace(&mut self.closed, true) {
            out.arguments(if self.arguments == 0 { "{}" } else { "}" });
        }
    }

    /// The text ends within it: as in vLLM the value that was written is the value.
    pub fn end(&mut self, known: &Known, out: &mut Pieces) {
        if matches!(self.next, Next::Value) {
            if let Some(at) = self.word[self.passed..].find(END_VALUE) {
                self.word.truncate(self.passed + at);
            }
            self.end_value(known, out);
        }
        self.close(out);
    }
}

/// Bytes at the end of a value that may belong to the mark at its end, and the line break before it.
fn held_back(word: &str) -> usize {
    let most = word.len().min(END_VALUE.len() - 1);
    let mark = (1..=most)
        .rev()
        .find(|&bytes| word.ends_with(&END_VALUE[..bytes]));
    let mark = mark.unwrap_or(0);
    mark + usize::from(word[..word.len() - mark].ends_with('\n'))
}
