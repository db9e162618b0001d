//! Strings that end a generation.

use crate::EngineError;

/// Looks for stop strings in text that comes in pieces, and holds back what may still become one.
///
/// The generation ends at the first byte where some stop string is complete; its text ends where that string starts (the
/// earliest start, should several be complete there). So the result does not depend on how the text was cut into pieces.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// The longest end of the text so far that some stop string begins with.
    held: String,
}

/// What [`StopMatcher::push`] has to say about a piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    /// Text that is certain to be no part of a stop string. May be empty.
    pub text: String,
    /// Whether a stop string is complete. Nothing comes after `text` then.
    pub stopped: bool,
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
        })
    }

    /// Adds a piece of text.
    pub fn push(&mut self, piece: &str) -> Passed {
        self.held.push_str(piece);
        if let Some(start) = self.first_match() {
            self.held.truncate(start);
            return Passed {
                text: std::mem::take(&mut self.held),
                stopped: true,
            };
        }
        let keep = self.held.len() - self.possible_start_bytes();
        let rest = self.held.split_off(keep);
        Passed {
            text: std::mem::replace(&mut self.held, rest),
            stopped: false,
        }
    }

    /// Ends the text: returns what was held back.
    pub fn finish(self) -> String {
        self.held
    }

    /// Start of the stop string that is complete first.
    fn first_match(&self) -> Option<usize> {
        self.stops
            .iter()
            .filter_map(|stop| {
                self.held
                    .find(stop)
                    .map(|start| (start + stop.len(), start))
            })
            .min()
            .map(|(_end, start)| start)
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
            if passed.stopped {
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
    fn an_empty_stop_string_is_refused() {
        let error = StopMatcher::new(&strings(&["a", ""])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "stop is an empty string, allowed is a string of at least one character"
        );
    }

    proptest! {
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
