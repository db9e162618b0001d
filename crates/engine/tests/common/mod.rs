//! Small tokenizers in the two styles there are, and what tests with models need.
#![allow(dead_code)] // Each test binary uses a part.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use sparamx_cpu::Cpu;
use sparamx_engine::{EngineOptions, Host, HostOptions, Loaded, PagedCache, Tokenizer};
use sparamx_kernels::Runtime;
use sparamx_model::{
    Checkpoint, Config, Input, LoadOptions, Model, Precision, RandomSpec, Want, Workspace,
};
use sparamx_testkit::shared;

/// llama.cpp's 47 vectors for a vocabulary: texts, and their ids without BOS.
pub fn vectors(name: &str) -> Vec<(String, Vec<u32>)> {
    let stem = shared("tokenizers/vectors")
        .unwrap()
        .join(format!("ggml-vocab-{name}.gguf"));
    let texts = std::fs::read_to_string(stem.with_extension("gguf.inp")).unwrap();
    let lines = std::fs::read_to_string(stem.with_extension("gguf.out")).unwrap();
    let ids = |line: &str| {
        line.split_whitespace()
            .map(|id| id.parse().unwrap())
            .collect()
    };
    let vectors: Vec<_> = texts
        .split("\n__ggml_vocab_test__\n")
        .zip(lines.split('\n'))
        .map(|(text, line)| (text.to_owned(), ids(line)))
        .collect();
    assert_eq!(vectors.len(), 47, "{name}");
    vectors
}

/// The tokenizer that `files` (name, content) make, for a model of `vocab_size` ids.
pub fn tokenizer(files: &[(&str, Value)], vocab_size: usize) -> Arc<Tokenizer> {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), files);
    Arc::new(Tokenizer::from_dir(dir.path(), vocab_size).unwrap())
}

/// Writes `files` (name, content) into `dir`.
pub fn write(dir: &Path, files: &[(&str, Value)]) {
    for (name, content) in files {
        std::fs::write(dir.join(name), content.to_string()).unwrap();
    }
}

fn special(id: usize, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
           "normalized": false, "special": true})
}

/// `tokenizer.json` of a byte-level BPE, as GPT-2, Llama 3 and Qwen have: 256 bytes, some merges, `<|end|>`. No BOS.
pub fn byte_level() -> Value {
    let letters = byte_letters();
    let mut tokens: Vec<String> = letters.iter().map(char::to_string).collect();
    let mut merges = Vec::new();
    // Merges within words, across a space, and through the middle of a character: the crab is F0 9F A6 80.
    let crab: Vec<char> = "🦀".bytes().map(|b| letters[b as usize]).collect();
    let joins = [
        ("h".to_owned(), "e".to_owned()),
        ("Ġ".to_owned(), "t".to_owned()),
        ("l".to_owned(), "l".to_owned()),
    ];
    let split = (crab[1].to_string(), crab[2].to_string());
    for (a, b) in joins.into_iter().chain([split]) {
        tokens.push(format!("{a}{b}"));
        merges.push(json!([a, b]));
    }
    let vocab: Map<String, Value> = tokens
        .into_iter()
        .zip(0..)
        .map(|(t, id)| (t, json!(id)))
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(vocab.len(), "<|end|>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges},
    })
}

/// Number of ids of [`byte_level`], `<|end|>` included.
pub const BYTE_LEVEL_IDS: usize = 261;

/// The letter that stands for each byte in a byte-level vocabulary: itself where it can be seen, else the next of 256...
fn byte_letters() -> Vec<char> {
    let seen = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || b >= 174;
    let mut next = 256;
    let letter = |b| {
        if seen(b) {
            return char::from_u32(b).unwrap();
        }
        next += 1;
        char::from_u32(next - 1).unwrap()
    };
    (0..256).map(letter).collect()
}

/// `tokenizer.json` of a SentencePiece-like BPE with byte fallback, as Llama 2 has: `<unk>`, `<s>`, `</s>`, 256 bytes, letters
/// and words. A BOS is put before every text.
pub fn byte_fallback() -> Value {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    tokens.extend("▁abcdefghijklmnopqrstuvwxyz.é".chars().map(String::from));
    let mut merges = Vec::new();
    for (a, b) in [
        ("▁", "t"),
        ("▁t", "o"),
        ("h", "e"),
        ("▁", "▁"),
        ("▁▁", "▁▁"),
    ] {
        tokens.push(format!("{a}{b}"));
        merges.push(json!([a, b]));
    }
    let vocab: Map<String, Value> = tokens
        .into_iter()
        .zip(0..)
        .map(|(t, id)| (t, json!(id)))
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": merges},
    })
}

/// Number of ids of [`byte_fallback`].
pub const BYTE_FALLBACK_IDS: usize = 293;

/// `tokenizer.json` of the vocabulary of [`byte_fallback`] with the decoder that goes with a Metaspace pre-tokenizer: it takes all
/// spaces of the first token.
pub fn metaspace() -> Value {
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    let mut file = byte_fallback();
    file["normalizer"] = Value::Null;
    file["pre_tokenizer"] = metaspace.clone();
    file["decoder"] =
        json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, metaspace]});
    file
}

/// The pieces that a stream makes of `ids`.
pub fn pieces(tokenizer: &Arc<Tokenizer>, ids: &[u32]) -> Vec<String> {
    pieces_after(tokenizer, &[], ids)
}

/// The pieces that a stream makes of `ids` after a prompt.
pub fn pieces_after(tokenizer: &Arc<Tokenizer>, prompt: &[u32], ids: &[u32]) -> Vec<String> {
    let mut stream = tokenizer.stream(prompt).unwrap();
    let mut pieces: Vec<String> = ids
        .iter()
        .filter_map(|&id| stream.push(id).unwrap())
        .collect();
    pieces.extend(stream.finish().unwrap());
    pieces
}

/// Text of the ids from `start` on, by the definition: what all ids decode to, without what is certain before `start`. A
/// character that `start` cuts is new; U+FFFD stands for it before, and with byte fallback for whole ones next to it, too.
pub fn difference(tokenizer: &Tokenizer, ids: &[u32], start: usize) -> String {
    let whole = tokenizer.decode(ids).unwrap();
    let known = |end: usize| {
        let text = tokenizer.decode(&ids[..end]).unwrap();
        let certain = text.trim_end_matches(char::REPLACEMENT_CHARACTER).len();
        let mut lengths = [text.len(), certain].into_iter();
        lengths.find(|&length| whole.starts_with(&text[..length]))
    };
    let known = (0..=start).filter_map(known).max().unwrap();
    whole[known..].to_owned()
}

/// A runtime of so many threads.
pub fn runtime(threads: usize) -> Arc<Runtime> {
    Arc::new(Runtime::new(Cpu::detect().unwrap(), threads).unwrap())
}

/// A small Llama with grouped queries and random weights, for the vocabulary of [`byte_level`].
pub fn model(rt: &Runtime, context: usize) -> Arc<Model> {
    let fields = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": BYTE_LEVEL_IDS,
        "max_position_embeddings": context, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
    });
    let config =
        Config::from_json(fields.to_string().as_bytes(), Path::new("config.json")).unwrap();
    let spec = RandomSpec {
        sparsity: 0.5,
        precision: Precision::Bf16,
        seed: 3,
    };
    Arc::new(Model::random(rt, &config, spec).unwrap())
}

/// The parts of a model together.
pub fn loaded(rt: &Arc<Runtime>, model: &Arc<Model>, tokenizer: &Arc<Tokenizer>) -> Loaded {
    Loaded::new(Arc::clone(rt), Arc::clone(model), Arc::clone(tokenizer))
}

/// Reads the model in a directory.
pub fn load(rt: &Arc<Runtime>, dir: &Path) -> Loaded {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let model = Model::load(rt, &checkpoint, &LoadOptions::default(), &mut |_| ()).unwrap();
    let tokenizer = Tokenizer::from_dir(dir, model.config().vocab_size).unwrap();
    loaded(rt, &Arc::new(model), &Arc::new(tokenizer))
}

/// A host that leaves its thread where the system puts it: tests run side by side.
pub fn host(loaded: Loaded, engine: EngineOptions) -> Host {
    let options = HostOptions {
        engine,
        pin: false,
        ..HostOptions::default()
    };
    Host::start(loaded, options).unwrap()
}

/// `tokenizer.json` of as many letters as there are ids.
pub fn letters(vocab_size: usize) -> Value {
    let vocab: Map<String, Value> = ('A'..)
        .zip(0..vocab_size)
        .map(|(c, id)| (c.to_string(), json!(id)))
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    })
}

/// Logits after each of `ids`, from one pass.
pub fn logits(rt: &Runtime, model: &Model, ids: &[u32]) -> Vec<Vec<f32>> {
    let mut cache = PagedCache::new(model.config(), ids.len()).unwrap();
    let mut workspace = Workspace::new();
    let input = Input {
        tokens: ids,
        cache: &mut cache,
        logits: Want::All,
    };
    let rows = model.forward(rt, &mut [input], &mut workspace).unwrap();
    rows.chunks(model.config().vocab_size)
        .map(<[f32]>::to_vec)
        .collect()
}
