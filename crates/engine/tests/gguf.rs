//! Tokenizers out of GGUF files: one made from a tokenizer.json encodes as that does.

mod common;

use std::sync::Arc;

use std::path::Path;

use common::{difference, pieces_after, vectors};
use serde_json::Value;
use sparamx_engine::{ChatTemplate, Tokenizer};
use sparamx_testkit::shared;

/// Writes a GGUF file whose only tensor has a shape and no data.
#[derive(Default)]
struct Metadata {
    entries: Vec<u8>,
    count: u64,
}

impl Metadata {
    fn new() -> Self {
        let mut metadata = Self::default();
        metadata.text("general.architecture", "llama");
        for key in [
            "embedding_length",
            "block_count",
            "feed_forward_length",
            "context_length",
        ] {
            metadata.int(&format!("llama.{key}"), 256);
        }
        metadata.int("llama.attention.head_count", 1);
        metadata.entry(
            "llama.attention.layer_norm_rms_epsilon",
            6,
            &1e-5f32.to_le_bytes(),
        );
        metadata
    }

    fn entry(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.entries.extend(text(key));
        self.entries.extend(kind.to_le_bytes());
        self.entries.extend(value);
        self.count += 1;
    }

    fn text(&mut self, key: &str, value: &str) {
        self.entry(key, 8, &text(value));
    }

    fn int(&mut self, key: &str, value: u32) {
        self.entry(key, 4, &value.to_le_bytes());
    }

    fn flag(&mut self, key: &str, value: bool) {
        self.entry(key, 7, &[u8::from(value)]);
    }

    fn array(&mut self, key: &str, kind: u32, values: impl Iterator<Item = Vec<u8>>) {
        let values: Vec<Vec<u8>> = values.collect();
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        bytes.extend(values.concat());
        self.entry(key, 9, &bytes);
    }

    fn write(&self, path: &Path) {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(1u64.to_le_bytes());
        bytes.extend(self.count.to_le_bytes());
        bytes.extend(&self.entries);
        // The embedding, in a type that nobody here reads.
        const VOCAB: u64 = 200_000;
        bytes.extend(text("token_embd.weight"));
        bytes.extend(2u32.to_le_bytes());
        bytes.extend([256, VOCAB].map(u64::to_le_bytes).concat());
        bytes.extend(12u32.to_le_bytes());
        bytes.extend(0u64.to_le_bytes());
        std::fs::write(path, bytes).unwrap();
    }
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

/// The vocabulary of a tokenizer.json as llama.cpp's converter writes it.
fn convert(dir: &Path, pre: Option<&str>) -> Metadata {
    let json: Value =
        serde_json::from_slice(&std::fs::read(dir.join("tokenizer.json")).unwrap()).unwrap();
    let vocab = json["model"]["vocab"].as_object().unwrap();
    let mut tokens: Vec<(u64, String, u32)> = vocab
        .iter()
        .map(|(token, id)| (id.as_u64().unwrap(), token.clone(), 1))
        .collect();
    for added in json["added_tokens"].as_array().unwrap() {
        let kind = if added["special"] == true { 3 } else { 4 };
        let (id, content) = (
            added["id"].as_u64().unwrap(),
            added["content"].as_str().unwrap(),
        );
        tokens.retain(|(known, ..)| *known != id);
        tokens.push((id, content.to_owned(), kind));
    }
    tokens.sort();
    for (id, token, kind) in &mut tokens {
        *kind = match token.as_str() {
            "<unk>" => 2,
            byte if pre.is_none() && byte.len() == 6 && byte.starts_with("<0x") => 6,
            _ => *kind,
        };
        // There is no gap in what is converted here.
        assert!(*id < 1 << 20);
    }
    let mut metadata = Metadata::new();
    let (model, bpe) = if pre.is_some() {
        ("gpt2", true)
    } else {
        ("llama", false)
    };
    metadata.text("tokenizer.ggml.model", model);
    metadata.text("tokenizer.ggml.pre", pre.unwrap_or("default"));
    metadata.array(
        "tokenizer.ggml.tokens",
        8,
        tokens.iter().map(|(_, token, _)| text(token)),
    );
    metadata.array(
        "tokenizer.ggml.token_type",
        5,
        tokens
            .iter()
            .map(|(_, _, kind)| kind.to_le_bytes().to_vec()),
    );
    if bpe {
        let merges = json["model"]["merges"].as_array().unwrap().iter();
        let merge = |merge: &Value| match merge {
            Value::String(merge) => text(merge),
            pair => text(&format!(
                "{} {}",
                pair[0].as_str().unwrap(),
                pair[1].as_str().unwrap()
            )),
        };
        metadata.array("tokenizer.ggml.merges", 8, merges.map(merge));
    } else {
        // SentencePiece numbers its pieces by falling score; runs of spaces come last.
        let scores = tokens.iter().map(|(id, token, _)| {
            let spaces = token.chars().all(|char| char == '▁');
            let score = if spaces { -1e9 } else { -(*id as f32) };
            score.to_le_bytes().to_vec()
        });
        metadata.array("tokenizer.ggml.scores", 6, scores);
        metadata.int("tokenizer.ggml.unknown_token_id", 0);
    }
    metadata
}

#[test]
fn the_shipped_tokenizer_survives() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/stories-5m");
    let mut metadata = convert(&dir, Some("gpt-2"));
    metadata.int("tokenizer.ggml.bos_token_id", 1);
    metadata.int("tokenizer.ggml.eos_token_id", 0);
    metadata.flag("tokenizer.ggml.add_bos_token", true);
    metadata.text(
        "tokenizer.chat_template",
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}",
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    metadata.write(file.path());
    let (ours, theirs) = (
        Tokenizer::from_dir(file.path(), 4096).unwrap(),
        Tokenizer::from_dir(&dir, 4096).unwrap(),
    );
    assert_eq!((ours.bos(), ours.eos()), (theirs.bos(), theirs.eos()));
    for text in [
        "",
        " ",
        "Once upon a time, there was a cat.\n\nIt's 1234 o'clock!",
        "é 🐛 漢字 <s> <|endoftext|>",
        "\t\r\n  x  ",
    ] {
        let ids = ours.encode(text, true).unwrap();
        assert_eq!(ids, theirs.encode(text, true).unwrap(), "{text:?}");
        assert_eq!(ours.decode(&ids).unwrap(), theirs.decode(&ids).unwrap());
    }
    let template = ChatTemplate::from_dir(file.path()).unwrap().unwrap();
    assert_eq!(template.render(&[], true).unwrap(), "<s>");
}

/// How a text is cut into words, by `tokenizer.ggml.pre`: what the Python package tokenizers makes of the models' own definitions (of
/// llama.cpp's expressions for `default`, `bloom` and `viking`).
#[test]
fn texts_are_cut_as_the_models_learned_them() {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};
    const TEXT: &str = "I'LL pay $1234.50 for Straße, Ωmega!\r\n\n  x";
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/stories-5m");
    for (name, want) in [
        (
            "gpt-2",
            "I|'|LL|Ġpay|Ġ$|1234|.|50|Ġfor|ĠStraÃŁe|,|ĠÎ©mega|!|čĊĊĠ|Ġx",
        ),
        (
            "starcoder",
            "I|'|LL|Ġpay|Ġ$|1|2|3|4|.|5|0|Ġfor|ĠStraÃŁe|,|ĠÎ©mega|!|čĊĊĠ|Ġx",
        ),
        (
            "falcon",
            "I|'|LL|Ġpay|Ġ|$|123|4|.|50|Ġfor|ĠStraÃŁe|,|ĠÎ©mega|!|čĊĊĠ|Ġx",
        ),
        (
            "default",
            "I|'|LL|Ġpay|Ġ|$|123|4|.|50|Ġfor|ĠStraÃŁe|,|ĠÎ©mega|!|čĊĊĠ|Ġx",
        ),
        (
            "smaug-bpe",
            "I|'LL|Ġpay|Ġ$|123|4|.|50|Ġfor|ĠStraÃŁe|,|ĠÎ©mega|!čĊĊ|Ġ|Ġx",
        ),
        (
            "stablelm2",
            "I|'LL|Ġpay|Ġ$|1|2|3|4|.|5|0|Ġfor|ĠStraÃŁe|,|ĠÎ©mega|!čĊĊ|Ġ|Ġx",
        ),
        (
            "gpt-4o",
            "I'LL|Ġpay|Ġ$|123|4|.|50|Ġfor|ĠStraÃŁe|,|ĠÎ©mega|!čĊĊ|Ġ|Ġx",
        ),
        (
            "deepseek-llm",
            "I|'|LL|Ġpay|Ġ$|1234|.|50|Ġfor|ĠStra|ÃŁ|e|,|ĠÎ©|mega|!|č|Ċ|Ċ|Ġ|Ġx",
        ),
        (
            "deepseek-coder",
            "I|'|LL|Ġpay|Ġ$|1|2|3|4|.|5|0|Ġfor|ĠStraÃŁe|,|ĠÎ©mega|!|č|Ċ|Ċ|Ġ|Ġx",
        ),
        (
            "deepseek-v3",
            "I|'LL|Ġpay|Ġ$|123|4|.|50|Ġfor|ĠStraÃŁe|,|ĠÎ©mega|!čĊĊ|Ġ|Ġx",
        ),
        (
            "bloom",
            "I'LL|Ġpay|Ġ$1234|.|50|Ġfor|ĠStraÃŁe|,|ĠÎ©mega|!čĊĊĠ|Ġx",
        ),
        (
            "viking",
            "I'LL|Ġpay|Ġ$|1|2|3|4|.|5|0|Ġfor|ĠStraÃŁe|,|ĠÎ©mega|!čĊĊĠ|Ġx",
        ),
    ] {
        let file = tempfile::NamedTempFile::new().unwrap();
        convert(&dir, Some(name)).write(file.path());
        let json = sparamx_model::model_file(file.path(), "tokenizer.json")
            .unwrap()
            .unwrap();
        let tokenizer = tokenizers::Tokenizer::from_bytes(json).unwrap();
        let mut text = PreTokenizedString::from(TEXT);
        tokenizer
            .get_pre_tokenizer()
            .unwrap()
            .pre_tokenize(&mut text)
            .unwrap();
        let words = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let words: Vec<&str> = words.into_iter().map(|(word, ..)| word).collect();
        assert_eq!(words.join("|"), want, "{name}");
    }
}

/// llama.cpp's vectors: texts between separators, a line of ids for each, without BOS. Needs ../shared; skips loudly without.
#[test]
fn llama_cpp_vectors() {
    for (folder, name, pre) in [
        ("llama2", "llama-spm", None),
        ("llama3", "llama-bpe", Some("llama-bpe")),
        ("qwen2.5", "qwen2", Some("qwen2")),
    ] {
        let Some(dir) = shared(&format!("tokenizers/{folder}")) else {
            return;
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        convert(&dir, pre).write(file.path());
        let tokenizer = Arc::new(Tokenizer::from_dir(file.path(), 200_000).unwrap());
        for (text, want) in vectors(name) {
            assert_eq!(
                tokenizer.encode(&text, false).unwrap(),
                want,
                "{name}: {text:?}"
            );
            let start = want.len() / 2;
            assert_eq!(
                pieces_after(&tokenizer, &want[..start], &want[start..]).concat(),
                difference(&tokenizer, &want, start),
                "{name}: {text:?} from {start}"
            );
        }
    }
}
