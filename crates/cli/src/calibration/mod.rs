//! Text to compress by: read, turned into ids and cut into windows.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use sparamx_cpu::topology;
use sparamx_engine::Tokenizer;
use sparamx_model::Config;

use crate::args::{self, Common, UsageError};
use crate::texts::Text;
use crate::{output, units};

/// The text by default: from "Alice's Adventures in Wonderland" (Lewis Carroll, 1865), "Pride and Prejudice" (Jane
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
    /// Text to calibrate with: plain, or .jsonl or .json of documents with a field "text", as data sets have them, either also
    /// as .gz [default: a built-in sample of English novels]
    #[arg(long = "calibration", value_name = "FILE")]
    file: Option<PathBuf>,
    /// Windows of that text, spread over it [default: 128, or what there is text and memory for]
    #[arg(long = "calibration-windows", value_name = "N", value_parser = args::whole::<usize>)]
    windows: Option<usize>,
    /// Tokens in a window [default: the model's context, at most 2048]
    #[arg(long = "calibration-tokens", value_name = "N", value_parser = args::whole::<usize>)]
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
            Some(path) => (Text::read(path, common)?, name(path)),
        };
        let documents = thinned(&text, wanted * tokens * BYTES_PER_TOKEN);
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

/// Parts of a text, all or, if it has more bytes than that, as many as have about so many, spread over it.
fn thinned(text: &Text, bytes: usize) -> Vec<&str> {
    let all: Vec<&str> = match text {
        Text::Plain(text) if text.len() <= bytes => vec![text],
        Text::Plain(text) => pieces(text, (bytes / DEFAULT_WINDOWS).max(1)),
        Text::Documents(documents) => {
            // Some data sets have an empty one for every empty line.
            let filled = documents
                .iter()
                .filter(|document| !document.trim().is_empty());
            filled.map(String::as_str).collect()
        }
    };
    let length: usize = all.iter().map(|document| document.len()).sum();
    let step = (length / bytes.max(1)).max(1);
    all.into_iter().step_by(step).collect()
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
        assert_eq!(thinned(&text, 1000).len(), 100);
        let tenth = thinned(&text, 100);
        assert_eq!(tenth.len(), 10);
        assert_eq!((tenth[0], tenth[9]), ("0000000000", "0000000090"));
        let long = "äöü".repeat(100_000);
        let text = Text::Plain(long.clone());
        assert_eq!(thinned(&text, 600_000), [long.as_str()]);
        let some = thinned(&text, 60_000);
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
