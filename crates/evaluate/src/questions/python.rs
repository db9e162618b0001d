//! What Python's string methods do, where prompts depend on it.

/// `str.isspace` of one character: Unicode's white space, and four separators that Unicode does not count.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `str.strip()`.
pub(super) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `str.capitalize()`: the first letter large, all others small.
pub(super) fn capitalize(text: &str) -> String {
    let mut letters = text.chars();
    let Some(first) = letters.next() else {
        return String::new();
    };
    // A letter that becomes two, as ß does, is large only in the first of them.
    let mut large = first.to_uppercase();
    let mut capitalized: String = large.next().into_iter().collect();
    capitalized.extend(large.flat_map(char::to_lowercase));
    capitalized + &letters.as_str().to_lowercase()
}

/// `re.sub(r"\[.*?\]", "", text)`: from every `[` to the next `]`, if that is on the same line.
pub(super) fn remove_brackets(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('[') {
        let end = rest[open..].find([']', '\n']).map(|at| open + at);
        match end {
            Some(end) if rest[end..].starts_with(']') => {
                out.push_str(&rest[..open]);
                rest = &rest[end + 1..];
            }
            _ => {
                out.push_str(&rest[..=open]);
                rest = &rest[open + 1..];
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The right-hand sides were printed by Python 3.11.
    #[test]
    fn strings_are_treated_as_in_python() {
        for (text, want) in [
            (" \u{1f}a b\u{a0}\n", "a b"),
            ("\u{200b}a", "\u{200b}a"),
            ("\u{1c}", ""),
        ] {
            assert_eq!(strip(text), want, "{text:?}");
        }
        for (text, want) in [
            ("", ""),
            ("the NBA plays", "The nba plays"),
            ("ßAB", "Ssab"),
            ("éÉ", "Éé"),
            ("1A", "1a"),
        ] {
            assert_eq!(capitalize(text), want, "{text:?}");
        }
        for (text, want) in [
            ("a [step] b [x]", "a  b "),
            ("[a[b]c]", "c]"),
            ("[a\n] [b]", "[a\n] "),
            ("[[\n]x]", "[[\n]x]"),
            ("no [end", "no [end"),
            ("]é[é]", "]é"),
        ] {
            assert_eq!(remove_brackets(text), want, "{text:?}");
        }
    }
}
