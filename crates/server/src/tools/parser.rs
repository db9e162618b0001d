//! The text of a model, split as it comes.

use std::sync::Arc;

use super::call::Call;
use super::definition::ToolDefinition;
use super::format::ToolFormat;
use super::piece::{Piece, Pieces};
use super::reasoning::{CLOSE, OPEN, Reasoning};
use super::step::{Known, MAX_BLANKS, Step};

/// What to look for in a text.
#[derive(Debug, Clone, Default)]
pub struct ParserConfig {
    /// How calls are written; none: only a forced call is looked for, an object with `name` and `arguments`.
    pub format: Option<ToolFormat>,
    /// The tools that may be called. Without any there are no calls.
    pub tools: Arc<[ToolDefinition]>,
    /// Whether the text must be a call.
    pub forced: bool,
    /// Whether the text begins with reasoning.
    pub reasoning: Reasoning,
}

/// What is read.
#[derive(Debug)]
enum State {
    /// Blanks at the beginning, where reasoning may open.
    Beginning,
    Reasoning,
    /// The first character of the content: a call without a mark begins here.
    Content,
    /// Content goes on.
    More,
    Call(Box<Call>, Mark),
}

/// What said that a call begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Said(&'static str),
    Unsaid,
}

/// Splits the text of a model into content, reasoning and calls, as it comes.
///
/// What may become a mark is held back until it is certain. The pieces joined are the same however the text is cut. Blanks around
/// reasoning and around calls are no part of either, nor of the content. A call that breaks off before its name is known is
/// content; one that breaks off later keeps what is there of its arguments, and for formats without JSON those are closed.
pub struct OutputParser {
    config: ParserConfig,
    state: State,
    /// Text that is not certain yet.
    pending: String,
    /// Blanks that go out if more of the same follows them.
    blanks: String,
    /// The text of a call that has not gone out.
    raw: String,
    /// Whether something of what follows the last mark has gone out.
    begun: bool,
    /// Whether reasoning or a call came just before: blanks are then no content.
    fresh: bool,
    /// Whether a call has gone out.
    called: bool,
    out: Pieces,
}

impl OutputParser {
    /// A parser at the beginning of a text.
    pub fn new(config: ParserConfig) -> Self {
        Self {
            state: match config.reasoning {
                Reasoning::Off => State::Content,
                Reasoning::Possible => State::Beginning,
                Reasoning::Opened => State::Reasoning,
            },
            out: Pieces::new(config.format),
            pending: String::new(),
            blanks: String::new(),
            raw: String::new(),
            begun: false,
            fresh: config.reasoning != Reasoning::Off,
            called: false,
            config,
        }
    }

    /// Takes more of the text; gives what is certain.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.pending.push_str(text);
        while self.step(false) {}
        self.out.take()
    }

    /// Ends the text; gives what was held back.
    pub fn finish(&mut self) -> Vec<Piece> {
        loop {
            while self.step(true) {}
            if !self.end() {
                return self.out.take();
            }
        }
    }

    /// Whether there are calls in the text so far.
    pub fn has_calls(&self) -> bool {
        self.called
    }

    /// Uses some of the pending text. Says whether there may be more to do.
    fn step(&mut self, last: bool) -> bool {
        match &mut self.state {
            State::Beginning => self.begin(last),
            State::Reasoning => self.think(last),
            State::Content => self.first(),
            State::More => self.go_on(last),
            State::Call(..) => self.call(),
        }
    }

    /// Reasoning opens, or it does not.
    fn begin(&mut self, last: bool) -> bool {
        let bare = self.pending.trim_start();
        let far = self.pending.len() - bare.len() > MAX_BLANKS;
        if let (false, Some(rest)) = (far, bare.strip_prefix(OPEN)) {
            self.pending = rest.to_owned();
            self.state = State::Reasoning;
        } else if last || far || !OPEN.starts_with(bare) {
            self.fresh = false;
            self.state = State::Content;
        } else {
            return false;
        }
        true
    }

    fn think(&mut self, last: bool) -> bool {
        match find(&self.pending, &[CLOSE], last) {
            Found::Mark { at, mark } => {
                let text = self.take(at);
                self.reasoning(&text);
                self.take(mark.len());
                self.blanks.clear();
                self.fresh = true;
                self.state = State::Content;
                true
            }
            Found::Text(bytes) => {
                let text = self.take(bytes);
                self.reasoning(&text);
                false
            }
        }
    }

    /// Reasoning without the blanks around it.
    fn reasoning(&mut self, text: &str) {
        let certain = self.without_blanks(text);
        self.out.reasoning(&certain);
    }

    /// Content without the blanks around calls.
    fn content(&mut self, text: &str) {
        let certain = self.without_blanks(text);
        self.out.content(&certain);
    }

    /// The text so far up to its last blanks, which are kept for later; without those at its beginning if it is fresh.
    fn without_blanks(&mut self, text: &str) -> String {
        let bare = text.trim_end().len();
        if bare == 0 {
            self.blanks.push_str(text);
            return String::new();
        }
        let mut certain = std::mem::replace(&mut self.blanks, text[bare..].to_owned());
        certain.push_str(&text[..bare]);
        if !std::mem::take(&mut self.fresh) {
            return certain;
        }
        certain.trim_start().to_owned()
    }

    /// A call without a mark begins with a bracket, at the beginning of the content only.
    fn first(&mut self) -> bool {
        let bare = self.pending.trim_start();
        let blanks = self.pending.len() - bare.len();
        if blanks > MAX_BLANKS {
            self.state = State::More;
            return true;
        }
        let Some(first) = bare.chars().next() else {
            return false;
        };
        let opens = match self.config.format {
            Some(ToolFormat::Llama3Json) => first == '{',
            Some(ToolFormat::Pythonic) => first == '[',
            Some(_) => false,
            None => self.config.forced && (first == '{' || first == '['),
        };
        if opens && !self.config.tools.is_empty() {
            self.raw = self.take(blanks);
            self.open(Mark::Unsaid);
        } else {
            self.state = State::More;
        }
        true
    }

    /// Content up to a mark.
    fn go_on(&mut self, last: bool) -> bool {
        let starts = match self.config.format {
            Some(format) if !self.config.tools.is_empty() => format.starts(),
            _ => &[],
        };
        match find(&self.pending, starts, last) {
            Found::Mark { at, mark } => {
                let text = self.take(at);
                self.content(&text);
                self.take(mark.len());
                self.raw = mark.to_owned();
                self.open(Mark::Said(mark));
                true
            }
            Found::Text(bytes) => {
                let text = self.take(bytes);
                self.content(&text);
                false
            }
        }
    }

    fn open(&mut self, mark: Mark) {
        let start = match mark {
            Mark::Said(start) => start,
            Mark::Unsaid => "",
        };
        self.begun = false;
        self.state = State::Call(Box::new(Call::new(self.config.format, start)), mark);
    }

    /// A call goes on, a character at a time.
    fn call(&mut self) -> bool {
        let State::Call(call, mark) = &mut self.state else {
            return false;
        };
        let known = known(&self.config, *mark);
        let mut used = 0;
        let mut step = Step::More;
        for c in self.pending.chars() {
            used += c.len_utf8();
            step = call.push(c, &known, &mut self.out);
            if call.started() {
                self.called = true;
                self.begun = true;
            } else if !self.begun {
                self.raw.push(c);
            }
            if step != Step::More {
                break;
            }
        }
        let started = self.begun || step == Step::Done;
        if step == Step::Bad && started {
            call.end(&known, &mut self.out);
        }
        let used = self.take(used);
        let text = match step {
            Step::More => return false,
            Step::Done => String::new(),
            Step::Left(text) => text,
            Step::Bad if started => used
                .chars()
                .next_back()
                .map(String::from)
                .unwrap_or_default(),
            Step::Bad => std::mem::take(&mut self.raw),
        };
        self.leave(started, &text);
        true
    }

    /// A call has ended, or was none: `text` is read again as content.
    fn leave(&mut self, started: bool, text: &str) {
        if started {
            self.called = true;
            self.fresh = true;
            self.blanks.clear();
        }
        self.raw.clear();
        self.state = State::More;
        if started {
            self.pending.insert_str(0, text);
        } else {
            // It is not read as a call again.
            self.content(text);
        }
    }

    /// The text ends. Says whether there is more to read.
    fn end(&mut self) -> bool {
        if let State::Call(call, mark) = &mut self.state {
            let known = known(&self.config, *mark);
            let started = self.begun;
            if started {
                call.end(&known, &mut self.out);
            }
            let text = if started {
                String::new()
            } else {
                std::mem::take(&mut self.raw)
            };
            self.leave(started, &text);
            return true;
        }
        if matches!(self.state, State::Content) {
            self.state = State::More;
            return true;
        }
        let blanks = std::mem::take(&mut self.blanks);
        if !self.called && matches!(self.state, State::More) {
            self.out.content(&blanks);
        }
        false
    }

    /// Takes bytes from the front of what is pending.
    fn take(&mut self, bytes: usize) -> String {
        self.pending.drain(..bytes).collect()
    }
}

fn known(config: &ParserConfig, mark: Mark) -> Known<'_> {
    Known {
        tools: &config.tools,
        marked: mark != Mark::Unsaid || config.forced,
    }
}

/// What is at the front of a text.
enum Found {
    /// A mark, after so many bytes.
    Mark { at: usize, mark: &'static str },
    /// No mark begins in so many bytes.
    Text(usize),
}

/// Looks for the first of `marks`. Unless the text is at its end, the beginning of one at its end is not certain.
fn find(text: &str, marks: &[&'static str], last: bool) -> Found {
    let places = marks
        .iter()
        .filter_map(|&mark| Some((text.find(mark)?, mark)));
    if let Some((at, mark)) = places.min_by_key(|&(at, _)| at) {
        return Found::Mark { at, mark };
    }
    let held = |mark: &&str| (1..mark.len()).rev().find(|&n| text.ends_with(&mark[..n]));
    let held = marks.iter().filter_map(held).max().unwrap_or(0);
    Found::Text(text.len() - if last { 0 } else { held })
}
