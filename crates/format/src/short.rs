//! Texts from outside, such as files and parsers, as parts of messages: on one line, and cut where they are longer than anybody
//! reads.

use std::fmt;

/// A text whose end may be left out.
#[derive(Clone, Copy, Debug)]
pub struct Short<'a>(pub &'a str);

/// A text whose middle may be left out. Its end stays, because parsers name the place there.
#[derive(Clone, Copy, Debug)]
pub struct BothEnds<'a>(pub &'a str);

impl fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        cut(f, self.0, (200, 0), "...")
    }
}

impl fmt::Display for BothEnds<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        cut(f, self.0, (400, 100), " ... ")
    }
}

/// So many characters of a text from its start and from its end, with `gap` for what is between.
fn cut(
    f: &mut fmt::Formatter<'_>,
    text: &str,
    (first, last): (usize, usize),
    gap: &str,
) -> fmt::Result {
    let left_out = first..text.chars().count().saturating_sub(last);
    for (index, char) in text.chars().enumerate() {
        match char {
            _ if left_out.contains(&index) => {
                if index == first {
                    f.write_str(gap)?;
                }
            }
            char if char.is_control() => write!(f, "{}", char.escape_debug())?,
            char => write!(f, "{char}")?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_take_one_line_and_keep_what_names_them() {
        for text in ["é 🦀", ""] {
            assert_eq!(BothEnds(text).to_string(), text);
            assert_eq!(Short(text).to_string(), text);
        }
        assert_eq!(BothEnds("a\nb\t\u{1b}").to_string(), "a\\nb\\t\\u{1b}");
        assert_eq!(Short("a\nb\t\u{1b}").to_string(), "a\\nb\\t\\u{1b}");
        let long = format!("{}{}", "x".repeat(30_000), " at line 1 column 5");
        let line = BothEnds(&long).to_string();
        assert_eq!(line.chars().count(), 400 + 5 + 100);
        assert!(line.starts_with("xxx") && line.ends_with("x at line 1 column 5"));
        assert_eq!(Short(&long).to_string(), format!("{}...", "x".repeat(200)));
        let fits = "é".repeat(500);
        assert_eq!(BothEnds(&fits).to_string(), fits);
        assert_eq!(Short(&fits[..400]).to_string(), &fits[..400]);
    }
}
