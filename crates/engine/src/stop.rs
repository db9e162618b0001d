//! Strings that end a generation.

use crate::EngineError;

/// Looks for stop strings in text that comes in pieces, and holds back what may still become one.
///
/// The generation ends at the first byte where some stop string is complete; its text ends where that string starts (the
/// earliest start, should several be complete there). So the result does not depend on how the text was cut into pieces.
///
/// Special tokens are no part of the text, and yet a stop string may be one, or contain one: they are looked at where they
/// stand, and not given out.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// The longest end of the text so far, special tokens included, that some stop string begins with.
    held: String,
    /// For each byte of it, whether it belongs to the text.
    visible: Vec<bool>,
    /// A stop string that ends in so many first bytes of it came too early to count.
    early_bytes: usize,
    /// Whether that holds for what comes next.
    ignores: bool,
    /// The stop string is part of the text.
    includes: bool,
}

/// What [`StopMatcher::push`] has to say about a piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    /// Text that is certain to be no part of a stop string. May be empty.
    pub text: String,
    /// Which stop string is complete, if one is. Nothing comes after `text` then.
    pub stopped: Option<usize>,
}

impl StopMatcher {
    /// A matcher for any of `stops`; without any, all text passes at once.
    ///
    /// # Errors
    /// An empty string, which would stop before the first token.
    pub fn new(stops: &[String]) -> Result<Self, EngineError> {
        if stops.iter().any(String::is_empty) {
            return Err(EngineError::parameter(
                "stop",
                "an empty string",
                "a string of at least one character",
            ));
        }
        Ok(Self {
            stops: stops.to_vec(),
            held: String::new(),
            visible: Vec::new(),
            early_bytes: 0,
            ignores: false,
            includes: false,
        })
    }

    /// The same with the stop string that ends the text as a part of it.
    #[must_use]
    pub fn including(mut self, includes: bool) -> Self {
        self.includes = includes;
        self
    }

    /// Adds a piece of text.
    pub fn push(&mut self, piece: &str) -> Passed {
        self.add(piece, true)
    }

    /// A stop string that is complete in the next pieces does not count, until `early` is false. One that is complete later
    /// may begin in them.
    pub fn ignore(&mut self, early: bool) {
        self.ignores = early;
    }

    /// Adds a special token by its name.
    pub fn push_special(&mut self, name: &str) -> Passed {
        self.add(name, false)
    }

    /// Ends the text: returns what was held back.
    pub fn finish(mut self) -> String {
        self.take(self.held.len())
    }

    fn add(&mut self, piece: &str, visible: bool) -> Passed {
        self.held.push_str(piece);
        self.visible.resize(self.held.len(), visible);
        if self.ignores {
            self.early_bytes = self.held.len();
        }
        let Some((start, index)) = self.first_match() else {
            let certain = self.held.len() - self.possible_start_bytes();
            return Passed {
                text: self.take(certain),
                stopped: None,
            };
        };
        let mut text = self.take(start);
        if self.includes {
            text += &self.stops[index];
        }
        self.held.clear();
        self.visible.clear();
        Passed {
            text,
            stopped: Some(index),
        }
    }

    /// Takes the first `bytes` of what is held: those that belong to the text.
    fn take(&mut self, bytes: usize) -> String {
        let rest = self.held.split_off(bytes);
        let taken = std::mem::replace(&mut self.held, rest);
        let visible: Vec<bool> = self.visible.drain(..bytes).collect();
        self.early_bytes = self.early_bytes.saturating_sub(bytes);
        let shown = taken.char_indices().filter(|&(at, _)| visible[at]);
        shown.map(|(_, char)| char).collect()
    }

    /// Start and index of the stop string that is complete first.
    fn first_match(&self) -> Option<(usize, usize)> {
        let found = |(index, stop): (usize, &String)| {
            let least = (self.early_bytes + 1).saturating_sub(stop.len());
            let from = (least..=self.held.len()).find(|&at| self.held.is_char_boundary(at))?;
            let start = from + self.held[from..].find(stop.as_str())?;
            // The earliest start among those that end in the same place.
            Some((start + stop.len(), start, index))
        };
        let first = self.stops.iter().enumerate().filter_map(found).min();
        first.map(|(_end, start, index)| (start, index))
    }

    /// Length of the longest end of the held text that a stop string begins with.
    fn possible_start_bytes(&self) -> usize {
        let starts = |stop: &String| {
            stop.char_indices()
                .map(|(end, _)| end)
                .rev()
                .find(|&end| self.held.ends_with(&stop[..end]))
                .unwrap_or(0)
        };
        self.stops.iter().map(starts).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, on the full text.
    fn naive(text: &str, stops: &[String]) -> (String, bool) {
        for end in 0..=text.len() {
            let starts = stops
                .iter()
                .filter(|s| text.as_bytes()[..end].ends_with(s.as_bytes()));
            if let Some(longest) = starts.map(String::len).max() {
                return (text[..end - longest].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    /// Text seen, whether it stopped, and the longest that was held back.
    fn run(pieces: &[String], stops: &[String]) -> (String, bool, usize) {
        let mut matcher = StopMatcher::new(stops).unwrap();
        let (mut text, mut held) = (String::new(), 0);
        for piece in pieces {
            let passed = matcher.push(piece);
            text += &passed.text;
            if passed.stopped.is_some() {
                return (text, true, held);
            }
            held = held.max(matcher.held.len());
        }
        text += &matcher.finish();
        (text, false, held)
    }

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| s.to_string()).collect()
    }

    #[test]
    fn crosses_pieces_and_releases_false_starts() {
        let run = |pieces: &[&str], stops: &[&str]| run(&strings(pieces), &strings(stops));
        assert_eq!(
            run(&["one\nUs", "er: two"], &["\nUser:"]),
            ("one".into(), true, 3)
        );
        assert_eq!(
            run(&["one\nUs", "ed"], &["\nUser:"]),
            ("one\nUsed".into(), false, 3)
        );
        assert_eq!(run(&["aa", "ab"], &["ab"]), ("aa".into(), true, 1));
        assert_eq!(run(&["a🦀", "é"], &["🦀é"]), ("a".into(), true, 4));
        assert_eq!(run(&["abc"], &["abc", "b"]), ("a".into(), true, 0));
        assert_eq!(run(&["text"], &[]), ("text".into(), false, 0));
        assert_eq!(
            run(&["end\nUs"], &["\nUser:"]),
            ("end\nUs".into(), false, 3)
        );
    }

    #[test]
    fn special_tokens_stop_and_are_not_seen() {
        let run = |pieces: &[&str], stop: &str| {
            let mut matcher = StopMatcher::new(&strings(&[stop])).unwrap();
            let mut text = String::new();
            for piece in pieces {
                let passed = if piece.starts_with("<|") {
                    matcher.push_special(piece)
                } else {
                    matcher.push(piece)
                };
                text += &passed.text;
                if passed.stopped.is_some() {
                    return (text + &matcher.finish(), true);
                }
            }
            (text + &matcher.finish(), false)
        };
        let end = "<|end|>";
        assert_eq!(run(&["Hi", end, "you"], end), ("Hi".into(), true));
        assert_eq!(run(&["Hi", "<|ask|>", "you"], end), ("Hiyou".into(), false));
        // The same name letter by letter is text.
        assert_eq!(run(&["Hi<", "|end", "|>x"], end), ("Hi".into(), true));
        // A stop string may begin or end with one, or go on after it.
        assert_eq!(run(&["a\n", "\n", end], "\n<|end|>"), ("a\n".into(), true));
        assert_eq!(run(&["a", end, "b", "c"], "<|end|>bc"), ("a".into(), true));
        assert_eq!(
            run(&["a", end, "b", "d"], "<|end|>bc"),
            ("abd".into(), false)
        );
        assert_eq!(run(&["é", end], "é<|end|>"), (String::new(), true));
        // Where the stop string has none, none may stand.
        assert_eq!(run(&["a", end, "b"], "ab"), ("ab".into(), false));
    }

    /// Pushes pieces, those of the first `early` without effect; the text, and the stop string that ended it.
    fn run_with(
        pieces: &[&str],
        stops: &[&str],
        early: usize,
        includes: bool,
    ) -> (String, Option<usize>) {
        let mut matcher = StopMatcher::new(&strings(stops))
            .unwrap()
            .including(includes);
        let mut text = String::new();
        for (index, piece) in pieces.iter().enumerate() {
            matcher.ignore(index < early);
            let passed = matcher.push(piece);
            text += &passed.text;
            if passed.stopped.is_some() {
                return (text + &matcher.finish(), passed.stopped);
            }
        }
        (text + &matcher.finish(), None)
    }

    #[test]
    fn the_stop_string_is_named_and_may_be_part_of_the_text() {
        let run = |pieces, stops, includes| run_with(pieces, stops, 0, includes);
        assert_eq!(
            run(&["on", "e;x"], &[",", "e;"], true),
            ("one;".into(), Some(1))
        );
        assert_eq!(
            run(&["on", "e;x"], &[",", "e;"], false),
            ("on".into(), Some(1))
        );
        // The one that is complete first; of those complete together the longest.
        assert_eq!(
            run(&["abc"], &["c", "b", "ab"], true),
            ("ab".into(), Some(2))
        );
        assert_eq!(run(&["abc"], &["x"], true), ("abc".into(), None));
        let mut matcher = StopMatcher::new(&strings(&["<|end|>"]))
            .unwrap()
            .including(true);
        assert_eq!(matcher.push("Hi").text, "Hi");
        assert_eq!(matcher.push_special("<|end|>").text, "<|end|>");
    }

    #[test]
    fn a_stop_string_that_comes_early_does_not_count() {
        let run = |pieces, stops, early| run_with(pieces, stops, early, false);
        assert_eq!(
            run(&["a.", "b", "c.d"], &["."], 2),
            ("a.bc".into(), Some(0))
        );
        assert_eq!(run(&["a.", "b."], &["."], 2), ("a.b.".into(), None));
        // It counts if it is complete later, wherever it begins.
        assert_eq!(run(&["a", "é🦀", "é"], &["é🦀é"], 2), ("a".into(), Some(0)));
        assert_eq!(run(&["a", "aa", "a"], &["aaa"], 2), ("a".into(), Some(0)));
        assert_eq!(run(&["xyz", "z"], &["yz", "yzz"], 1), ("x".into(), Some(1)));
        // One that is held back as the beginning of another.
        assert_eq!(run(&["ab", "c"], &["b", "abd"], 1), ("abc".into(), None));
    }

    #[test]
    fn an_empty_stop_string_is_refused() {
        let error = StopMatcher::new(&strings(&["a", ""])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "stop is an empty string, allowed is a string of at least one character"
        );
    }

    proptest! {
        #[test]
        fn early_ones_agree_with_the_definition(
            pieces in prop::collection::vec("[abé🦀]{0,4}", 0..8),
            stops in prop::collection::vec("[abé🦀]{1,4}", 0..4),
            early in 0usize..8, includes: bool,
        ) {
            let text = pieces.concat();
            let least = pieces.iter().take(early).map(String::len).sum::<usize>();
            // The first end after the early pieces, and there the longest.
            let ends = (least + 1..=text.len()).find_map(|end| {
                let at = |stop: &&String| text.as_bytes()[..end].ends_with(stop.as_bytes());
                let longest = stops.iter().filter(at).map(String::len).max()?;
                Some(if includes { end } else { end - longest })
            });
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let names: Vec<&str> = stops.iter().map(String::as_str).collect();
            let (got, stopped) = run_with(&pieces, &names, early, includes);
            prop_assert_eq!(stopped.is_some(), ends.is_some());
            prop_assert_eq!(got, text[..ends.unwrap_or(text.len())].to_owned());
        }

        #[test]
        fn agrees_with_the_definition(
            pieces in prop::collection::vec("[abé🦀]{0,4}", 0..8),
            stops in prop::collection::vec("[abé🦀]{1,4}", 0..4),
        ) {
            let (text, stopped, held) = run(&pieces, &stops);
            prop_assert_eq!((text, stopped), naive(&pieces.concat(), &stops));
            prop_assert!(held < stops.iter().map(String::len).max().unwrap_or(1));
        }
    }
}
