//! What calls in all formats share.

use super::definition::ToolDefinition;

/// What a character does to a call.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It goes on.
    More,
    /// It ends with this character.
    Done,
    /// It ended before; this is text after it.
    Left(String),
    /// It is none.
    Bad,
}

/// What is known of the calls of a text.
#[derive(Debug)]
pub(super) struct Known<'a> {
    pub tools: &'a [ToolDefinition],
    /// Whether a mark says that it is a call, whatever its name.
    pub marked: bool,
}

impl Known<'_> {
    /// Whether a call may have this name.
    pub fn takes(&self, name: &str) -> bool {
        self.marked || self.tools.iter().any(|tool| tool.name == name)
    }
}

/// Blanks, in bytes, that may come before a mark that is looked for.
pub(super) const MAX_BLANKS: usize = 64;

/// One more character of a text whose blanks at its beginning nobody needs.
pub(super) fn push_bare(text: &mut String, c: char) {
    if !(text.is_empty() && c.is_whitespace()) {
        text.push(c);
    }
}

/// Whether the text after a call is its end mark, may become it, or is something else.
pub(super) fn after_tag(tail: &str, tag: &str) -> Step {
    let bare = tail.trim_start();
    if bare == tag {
        Step::Done
    } else if tag.starts_with(bare) {
        Step::More
    } else {
        Step::Left(tail.to_owned())
    }
}
