//! Texts that commands read: plain, or documents in JSON; either also packed by gzip.

use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use flate2::read::MultiGzDecoder;
use serde_json::{Deserializer, Value};
use sparamx_cpu::topology;
use sparamx_format::{FormatError, lfs};

use crate::args::Common;
use crate::{output, units};

const GZIP: &[u8] = b"\x1f\x8b";
/// Files that hold text in a form that is not read here: how they begin, what they are, and the way out.
const REFUSED: [(&[u8], &str, &str); 8] = [
    (
        b"\x28\xb5\x2f\xfd",
        "packed by zstd",
        "unpack it with zstd -d",
    ),
    (b"BZh", "packed by bzip2", "unpack it with bunzip2"),
    (b"\xfd7zXZ", "packed by xz", "unpack it with xz -d"),
    (b"PK\x03\x04", "a zip archive", "unpack it"),
    (
        b"PAR1",
        "a Parquet file",
        "write its column of text to a .jsonl file",
    ),
    (
        b"ARROW1",
        "an Arrow file",
        "write its column of text to a .jsonl file",
    ),
    (b"\xff\xfe", "text in UTF-16", "convert it to UTF-8"),
    (b"\xfe\xff", "text in UTF-16", "convert it to UTF-8"),
];
/// The fields of a document that hold its text, the first that is there counts; then those that hold a conversation.
const FIELDS: [&str; 2] = ["text", "content"];
const CONVERSATIONS: [&str; 2] = ["messages", "conversations"];
/// And those that hold the text of a message.
const MESSAGES: [&str; 2] = ["content", "value"];

/// What a file holds.
#[derive(Debug, PartialEq)]
pub enum Text {
    /// The file as it is.
    Plain(String),
    /// Texts of their own.
    Documents(Vec<String>),
}

impl Text {
    /// Reads a file. The end of its name, before `.gz`, says whether it holds JSON (`.json`, `.jsonl`, `.ndjson`): values one after
    /// the other, or a list of them, each a text, an object with a field for it, or a conversation.
    ///
    /// # Errors
    /// There is no such file, it is too large, or it holds no text.
    pub fn read(path: &Path, common: Common) -> Result<Text> {
        let text = unpacked(path)?;
        if !is_json(path) {
            if looks_like_json(&text) && !common.quiet {
                output::complain(&format!(
                    "warning: {} looks like JSON and is taken as it is; name it .jsonl for the text inside",
                    path.display()
                ));
            }
            return Ok(Text::Plain(text));
        }
        let (documents, fields) = documents(&text).with_context(|| path.display().to_string())?;
        if !common.quiet {
            let fields: Vec<&str> = fields.into_iter().collect();
            output::complain(&format!(
                "note: {}: {} document{}, {}",
                path.display(),
                units::count(documents.len() as u64),
                if documents.len() == 1 { "" } else { "s" },
                fields.join(" and ")
            ));
        }
        Ok(Text::Documents(documents))
    }

    /// All of it as one text, with an empty line between documents.
    pub fn joined(self) -> String {
        match self {
            Text::Plain(text) => text,
            Text::Documents(documents) => documents.join("\n\n"),
        }
    }
}

/// Refuses what holds no text: a directory, or a device, which may never end. A pipe such as `<(zcat FILE)` of a shell will do.
///
/// # Errors
/// It is one of these, or there is nothing.
pub fn check_file(path: &Path) -> Result<()> {
    let found = path
        .metadata()
        .with_context(|| format!("cannot read {}", path.display()))?;
    if found.is_dir() {
        bail!("{}: a directory; give a file", path.display());
    }
    if !found.is_file() && !is_pipe(&found) {
        bail!(
            "{}: a device; give a file of text or a pipe",
            path.display()
        );
    }
    Ok(())
}

#[cfg(unix)]
fn is_pipe(found: &Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    found.file_type().is_fifo()
}

#[cfg(not(unix))]
fn is_pipe(_: &Metadata) -> bool {
    false
}

/// The bytes of a file or pipe.
///
/// # Errors
/// As [`check_file`]; it cannot be read, or is too large.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    check_file(path)?;
    let cannot = || format!("cannot read {}", path.display());
    limited(File::open(path).with_context(cannot)?, u64::MAX).with_context(cannot)
}

/// The text of a file, without the mark that some editors begin it with.
fn unpacked(path: &Path) -> Result<String> {
    let name = path.display();
    let mut bytes = read(path)?;
    if lfs::is_pointer(&bytes) {
        bail!("{name}: {}", FormatError::LfsPointer);
    }
    if bytes.starts_with(GZIP) || path.extension().is_some_and(|end| end == "gz") {
        bytes = limited(MultiGzDecoder::new(&bytes[..]), u64::MAX)
            .with_context(|| format!("{name}: cannot be unpacked"))?;
    }
    if let Some((_, what, way_out)) = REFUSED.iter().find(|(start, ..)| bytes.starts_with(start)) {
        bail!("{name}: {what}; {way_out} first");
    }
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(match text.strip_prefix('\u{feff}') {
            Some(rest) => rest.to_owned(),
            None => text,
        }),
        _ => bail!("{name}: not text in UTF-8; convert it first"),
    }
}

/// Everything there is to read, up to `most` bytes and a quarter of the memory: the text becomes tokens, which take as much again.
///
/// # Errors
/// There is more; it cannot be read.
pub fn limited(from: impl Read, most: u64) -> Result<Vec<u8>> {
    let limit = most.min(topology::available_memory_bytes().unwrap_or(u64::MAX) / 4);
    let mut bytes = Vec::new();
    from.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        bail!(
            "more than {} of text, and no more is read here; give a part of it",
            units::bytes(limit)
        );
    }
    Ok(bytes)
}

/// Whether a file holds JSON by its name.
fn is_json(path: &Path) -> bool {
    let mut name = path.to_owned();
    if name.extension().is_some_and(|end| end == "gz") {
        name.set_extension("");
    }
    let end = name.extension().and_then(|end| end.to_str());
    matches!(end, Some("json" | "jsonl" | "ndjson"))
}

/// Whether a text begins with what a document in JSON could be.
fn looks_like_json(text: &str) -> bool {
    if !text.trim_start().starts_with(['{', '[']) {
        return false;
    }
    match Deserializer::from_str(text).into_iter::<Value>().next() {
        Some(Ok(Value::Object(_))) => true,
        Some(Ok(Value::Array(values))) => values
            .first()
            .is_some_and(|first| first.is_object() || first.is_string()),
        _ => false,
    }
}

/// The documents of a text in JSON, and where in it they were found.
fn documents(text: &str) -> Result<(Vec<String>, BTreeSet<&'static str>)> {
    let (mut documents, mut fields) = (Vec::new(), BTreeSet::new());
    let mut values = Deserializer::from_str(text).into_iter::<Value>();
    loop {
        let start = values.byte_offset();
        let Some(value) = values.next() else {
            return Ok((documents, fields));
        };
        let rest = text[start..].trim_start();
        let line = || text[..text.len() - rest.len()].matches('\n').count() + 1;
        let value = value.with_context(|| format!("not JSON from line {} on", line()))?;
        let list = match value {
            Value::Array(list) => list,
            value => vec![value],
        };
        for value in &list {
            let (document, field) = document(value).with_context(|| format!("line {}", line()))?;
            documents.push(document);
            fields.insert(field);
        }
    }
}

/// The text of one value, and a description of where in it that is.
fn document(value: &Value) -> Result<(String, &'static str)> {
    let fields = match value {
        Value::String(text) => return Ok((text.clone(), "texts of a list")),
        Value::Object(fields) => fields,
        _ => bail!(
            "{}; a text or an object with a field \"text\" is needed",
            kind(value)
        ),
    };
    for name in FIELDS {
        if let Some(text) = fields.get(name).and_then(Value::as_str) {
            let field = if name == "text" {
                "the field \"text\""
            } else {
                "the field \"content\""
            };
            return Ok((text.to_owned(), field));
        }
    }
    let conversation = CONVERSATIONS
        .iter()
        .find_map(|&name| fields.get(name)?.as_array());
    if let Some(messages) = conversation {
        let texts: Option<Vec<String>> = messages.iter().map(message).collect();
        let texts = texts.context("a message without a text \"content\" or \"value\"")?;
        return Ok((texts.join("\n"), "the messages of conversations"));
    }
    let names: Vec<String> = fields.keys().map(|name| format!("\"{name}\"")).collect();
    bail!(
        "an object without a text \"text\" or \"content\" and without \"messages\"; it has {}",
        if names.is_empty() {
            "nothing".to_owned()
        } else {
            names.join(", ")
        }
    )
}

/// The text of a message, which may come in parts. Of parts that are no text, nothing.
fn message(message: &Value) -> Option<String> {
    match MESSAGES.iter().find_map(|&name| message.get(name))? {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => {
            let texts = parts.iter().filter_map(|part| part.get("text")?.as_str());
            Some(texts.collect())
        }
        // An assistant that only calls a function says nothing.
        Value::Null => Some(String::new()),
        _ => None,
    }
}

/// What a value is, for people.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_come_in_many_shapes() {
        for (json, texts) in [
            ("{\"text\": \"a\"}\n\n{\"text\": \"b\"}\n", &["a", "b"][..]),
            ("{\"content\": \"a\", \"text\": null}", &["a"]),
            ("[{\"text\": \"a\"}, \"b\"]", &["a", "b"]),
            ("\"a\"\n\"b\"\n", &["a", "b"]),
            ("[\"a\",\n \"b\"]\n", &["a", "b"]),
            (
                "{\n  \"text\": \"a\"\n}\n{\n  \"text\": \"b\"\n}\n",
                &["a", "b"],
            ),
            (
                r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "text", "text": "b"}]}]}"#,
                &["a\nb"],
            ),
            (
                r#"{"conversations": [{"from": "human", "value": "a"}]}"#,
                &["a"],
            ),
            ("", &[]),
        ] {
            assert_eq!(documents(json).expect(json).0, texts, "{json}");
        }
    }

    #[test]
    fn what_is_no_document_is_told_by_its_line() {
        for (json, words) in [
            (
                "{\"text\": \"a\"}\n{\"txt\": \"b\", \"url\": 1}\n",
                &["line 2", "\"txt\", \"url\""][..],
            ),
            (
                "{\"text\": \"a\"}\n\n\n{\"text\": 1}\n",
                &["line 4", "\"text\""],
            ),
            ("{\"text\": \"a\"}\nplain\n", &["line 2", "not JSON"]),
            ("[1]", &["line 1", "a number"]),
            (
                "{\"messages\": [{\"role\": \"user\"}]}",
                &["line 1", "message"],
            ),
        ] {
            let error = format!("{:#}", documents(json).expect_err(json));
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }

    #[test]
    fn names_say_what_is_json() {
        for name in [
            "a.json",
            "a.jsonl.gz",
            "c4-train.00000-of-01024.json.gz",
            "a.ndjson",
        ] {
            assert!(is_json(Path::new(name)), "{name}");
        }
        for name in ["a.txt", "a.gz", "json", "a.json.txt"] {
            assert!(!is_json(Path::new(name)), "{name}");
        }
        assert!(looks_like_json(" {\"text\": \"a\"}\nrest"));
        assert!(looks_like_json("[{\"a\": 1}]"));
        assert!(!looks_like_json("[1] a note") && !looks_like_json("{ braces"));
    }
}
