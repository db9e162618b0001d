//! The bytes that a token stands for.

use serde_json::Value;

/// How the names of tokens say what bytes they stand for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Spelling {
    /// A letter stands for each byte.
    Letters,
    /// The text itself with a character in place of spaces; `<0xE2>` is a byte where the flag is set.
    Text { space: Option<String>, bytes: bool },
}

impl Spelling {
    /// By the decoder of a tokenizer.
    pub fn of(inner: &tokenizers::Tokenizer) -> Self {
        let decoder = inner.get_decoder().map(serde_json::to_value);
        let decoder = decoder.and_then(Result::ok).unwrap_or_default();
        let steps = match &decoder["decoders"] {
            Value::Array(steps) => steps.as_slice(),
            _ => std::slice::from_ref(&decoder),
        };
        let has = |kind: &str| steps.iter().any(|step| step["type"] == kind);
        if has("ByteLevel") {
            return Self::Letters;
        }
        let space = steps.iter().find_map(|step| match step["type"].as_str() {
            Some("Replace") if step["content"] == " " => step["pattern"]["String"].as_str(),
            Some("Metaspace") => step["replacement"].as_str(),
            _ => None,
        });
        Self::Text {
            space: space.map(str::to_owned),
            bytes: has("ByteFallback"),
        }
    }

    /// The bytes of a token of the vocabulary with this name.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        match self {
            Self::Letters => {
                let bytes: Option<Vec<u8>> = name.chars().map(byte_of).collect();
                // A token that was added is its own text.
                bytes.unwrap_or_else(|| name.into())
            }
            Self::Text { space, bytes } => {
                if *bytes && let Some(byte) = fallback_byte(name) {
                    return vec![byte];
                }
                match space {
                    Some(space) => name.replace(space.as_str(), " ").into_bytes(),
                    None => name.into(),
                }
            }
        }
    }
}

/// The byte that `name` is a fallback for, as in `<0xE2>`.
fn fallback_byte(name: &str) -> Option<u8> {
    let digits = name.strip_prefix("<0x")?.strip_suffix('>')?;
    let two = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    two.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// The byte that a letter stands for in byte-level vocabularies: itself where it can be seen, else one of those from 256 on.
fn byte_of(letter: char) -> Option<u8> {
    let seen = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..);
    let code = u32::from(letter);
    match u8::try_from(code) {
        Ok(byte) => seen(byte).then_some(byte),
        Err(_) => (0..=u8::MAX)
            .filter(|&b| !seen(b))
            .nth(usize::try_from(code - 256).ok()?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_stand_for_all_bytes() {
        let mut found: Vec<u8> = ('!'..'ń').filter_map(byte_of).collect();
        found.sort_unstable();
        assert_eq!(found, (0..=255).collect::<Vec<u8>>());
        assert_eq!((byte_of('Ġ'), byte_of('Ċ')), (Some(b' '), Some(b'\n')));
        assert_eq!((byte_of(' '), byte_of('€')), (None, None));
    }

    #[test]
    fn names_of_bytes_are_exact() {
        assert_eq!(fallback_byte("<0xE2>"), Some(0xE2));
        for other in ["<0xE>", "<0x+1>", "<0xE2", "0xE2>", "<0xE2E>"] {
            assert_eq!(fallback_byte(other), None, "{other}");
        }
    }
}
