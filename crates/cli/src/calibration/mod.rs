//! Text to compress by: read, turned into ids and cut into windows.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use flate2::read::MultiGzDecoder;
use serde_json::Value;
use sparamx_cpu::topology;
use sparamx_engine::Tokenizer;
use sparamx_model::Config;

use crate::cli::{self, Common, UsageError};
use crate::{output, texts, units};

/// The text if nobody names one: from "Alice's Adventures in Wonderland" (Lewis Carroll, 1865), "Pride and Prejudice" (Jane
/// Austen, 1813), "Frankenstein" (Mary Shelley, 1831) and "Moby-Dick" (Herman Melville, 1851), about 48 KB of each, with line
/// breaks between paragraphs only. All four are in the public domain.
const SAMPLE: &str = include_str!("sample.txt");
const SAMPLE_NAME: &str = "built-in sample";

/// As many windows as the papers take.
const DEFAULT_WINDOWS: usize = 128;
/// The length of a window that the papers take, where the model's context is not shorter.
const DEFAULT_TOKENS: usize = 2048;
/// Bytes of text that make up one token, at most, on the average of any sensible tokenizer and text.
const BYTES_PER_TOKEN: usize = 16;

/// Options of calibration.
#[derive(Debug, Args)]
pub struct CalibrationArgs {
    /// Text to calibrate with: a file in UTF-8, or .jsonl with a field "text" in each line as datasets have it, either also
    /// as .gz [default: a built-in sample of English novels]
    #[arg(long = "calibration", value_name = "FILE")]
    file: Option<PathBuf>,
    /// Windows of that text, spread over it [default: 128, or what there is text and memory for]
    #[arg(long = "calibration-windows", value_name = "N", value_parser = cli::whole::<usize>)]
    windows: Option<usize>,
    /// Tokens in a window [default: the model's context, at most 2048]
    #[arg(long = "calibration-tokens", value_name = "N", value_parser = cli::whole::<usize>)]
    tokens: Option<usize>,
}

/// Windows of ids.
pub struct Sample {
    /// Each of the same length.
    pub windows: Vec<Vec<u32>>,
    /// Where the text is from.
    pub source: String,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (windows, tokens) = (self.windows.len(), self.windows.first().map_or(0, Vec::len));
        write!(f, "{}, {windows} windows of {tokens} tokens", self.source)
    }
}

impl CalibrationArgs {
    /// Whether any of these options was given.
    pub fn given(&self) -> bool {
        self.file.is_some() || self.windows.is_some() || self.tokens.is_some()
    }

    /// Refuses what needs no model to be wrong.
    ///
    /// # Errors
    /// A number of 0.
    pub fn check(&self) -> Result<()> {
        for (option, value) in [("windows", self.windows), ("tokens", self.tokens)] {
            if value == Some(0) {
                bail!(UsageError(format!(
                    "--calibration-{option} must be at least 1"
                )));
            }
        }
        Ok(())
    }

    /// Reads the text and cuts it into windows for a model. `streams` hidden states are kept for each token.
    ///
    /// # Errors
    /// The file cannot be read, is not text, or is shorter than a window; a window longer than the model's context; more windows
    /// asked for than fit in memory.
    pub fn sample(
        &self,
        tokenizer: &Tokenizer,
        config: &Config,
        streams: u64,
        common: Common,
    ) -> Result<Sample> {
        let context = config.context_length();
        let tokens = self.tokens.unwrap_or(context.min(DEFAULT_TOKENS));
        if tokens > context {
            bail!(UsageError(format!(
                "--calibration-tokens {tokens} is more than the context of the model, {context}"
            )));
        }
        let wanted = self.windows.unwrap_or(DEFAULT_WINDOWS);
        let wanted = wanted.min(self.windows_in_memory(tokens, config, streams)?);
        let (text, source) = match &self.file {
            None => (Text::Plain(SAMPLE.to_owned()), SAMPLE_NAME.to_owned()),
            Some(path) => (read(path)?, name(path)),
        };
        let documents = text.documents(wanted * tokens * BYTES_PER_TOKEN);
        let mut ids = Vec::new();
        for document in documents {
            ids.extend(tokenizer.encode(document, true)?);
        }
        let found = ids.len() / tokens;
        if found == 0 {
            bail!(
                "{}: {} tokens of text, and a window needs {}; give a longer text, or lower --calibration-tokens",
                self.file
                    .as_deref()
                    .map_or(SAMPLE_NAME.into(), Path::to_string_lossy),
                units::count(ids.len() as u64),
                units::count(tokens as u64),
            );
        }
        if self.windows.is_some_and(|windows| windows > found) && !common.quiet {
            output::complain(&format!(
                "warning: {source} has text for {found} windows of {tokens} tokens only"
            ));
        }
        let count = wanted.min(found);
        // Spread over the text: its parts may differ.
        let window = |i: usize| ids[i * found / count * tokens..][..tokens].to_vec();
        Ok(Sample {
            windows: (0..count).map(window).collect(),
            source,
        })
    }

    /// The windows whose hidden states take half the memory there is; the rest is for layers and their moments.
    fn windows_in_memory(&self, tokens: usize, config: &Config, streams: u64) -> Result<usize> {
        let bytes = (tokens * config.hidden_size) as u64 * size_of::<f32>() as u64 * streams;
        let Some(available) = topology::available_memory_bytes() else {
            return Ok(usize::MAX);
        };
        let fit = (available / 2 / bytes) as usize;
        match self.windows {
            Some(windows) if windows > fit => bail!(
                "{windows} calibration windows need {} for hidden states, and {} of memory are available, half of it for \
                 them; lower --calibration-windows",
                units::bytes(bytes * windows as u64),
                units::bytes(available)
            ),
            _ => Ok(fit.max(1)),
        }
    }
}

/// What a file holds.
enum Text {
    Plain(String),
    Documents(Vec<String>),
}

impl Text {
    /// Parts of the text, all or, if it has more bytes than that, as many as have about so many, spread over it.
    fn documents(&self, bytes: usize) -> Vec<&str> {
        let all: Vec<&str> = match self {
            Text::Plain(text) if text.len() <= bytes => vec![text],
            Text::Plain(text) => pieces(text, (bytes / DEFAULT_WINDOWS).max(1)),
            Text::Documents(documents) => documents.iter().map(String::as_str).collect(),
        };
        let length: usize = all.iter().map(|document| document.len()).sum();
        let step = (length / bytes.max(1)).max(1);
        all.into_iter().step_by(step).collect()
    }
}

/// The text in pieces of about so many bytes.
fn pieces(mut text: &str, bytes: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    while !text.is_empty() {
        let (piece, rest) = text.split_at(text.ceil_char_boundary(bytes));
        pieces.push(piece);
        text = rest;
    }
    pieces
}

/// Reads a file as text, or as one JSON object a line.
fn read(path: &Path) -> Result<Text> {
    let mut bytes = texts::read(path)?;
    let mut plain = path.to_owned();
    if path.extension().is_some_and(|e| e == "gz") {
        bytes = texts::whole(MultiGzDecoder::new(&bytes[..]), path)
            .with_context(|| format!("{}: cannot be unpacked", path.display()))?;
        plain.set_extension("");
    }
    let text = match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => text,
        _ => bail!(
            "{}: not text in UTF-8; unpack or convert it first",
            path.display()
        ),
    };
    let is_lines = path
        .extension()
        .is_some_and(|e| e == "jsonl" || e == "json");
    if !is_lines {
        return Ok(Text::Plain(text));
    }
    let lines = text.lines().enumerate();
    let document = |(number, line): (usize, &str)| {
        let value: Option<Value> = serde_json::from_str(line).ok();
        let document = value.and_then(|mut value| match value.get_mut("text")?.take() {
            Value::String(text) => Some(text),
            _ => None,
        });
        document.with_context(|| {
            format!(
                "{}: line {}: not an object with a field \"text\", which every line of a .jsonl file must be",
                path.display(),
                number + 1
            )
        })
    };
    let documents = lines
        .filter(|(_, line)| !line.trim().is_empty())
        .map(document);
    Ok(Text::Documents(documents.collect::<Result<_>>()?))
}

/// The name of a file without its folder: what `config.json` of the output says.
fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_thinned_out_evenly() {
        let documents: Vec<String> = (0..100).map(|i| format!("{i:010}")).collect();
        let text = Text::Documents(documents);
        assert_eq!(text.documents(1000).len(), 100);
        let tenth = text.documents(100);
        assert_eq!(tenth.len(), 10);
        assert_eq!((tenth[0], tenth[9]), ("0000000000", "0000000090"));
        let long = "äöü".repeat(100_000);
        let text = Text::Plain(long.clone());
        assert_eq!(text.documents(600_000), [long.as_str()]);
        let some = text.documents(60_000);
        let bytes: usize = some.iter().map(|piece| piece.len()).sum();
        assert!((50_000..70_000).contains(&bytes), "{bytes}");
        assert!(some.len() > 100);
    }

    #[test]
    fn pieces_are_the_text() {
        for text in ["", "abc", "äöüäöü", "a€b€c"] {
            for bytes in 1..5 {
                assert_eq!(pieces(text, bytes).concat(), text);
            }
        }
    }

    #[test]
    fn the_sample_is_text() {
        assert!(SAMPLE.len() > 150_000);
        assert!(SAMPLE.starts_with("CHAPTER IX") && SAMPLE.ends_with('\n'));
        assert!(!SAMPLE.contains("Gutenberg"));
    }
}
