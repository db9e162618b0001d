//! A model small enough to be made anew in every test: random weights, one token for each byte.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// Vocabulary: `<s>`, `</s>`, then the 256 bytes.
pub const VOCAB: usize = 258;
const HIDDEN: usize = 64;
const INTER: usize = 96;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = HIDDEN / HEADS;
/// Positions the model has.
pub const CONTEXT: usize = 128;

/// A tensor: name, shape, data type and bytes.
pub struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: &'static str,
    pub bytes: Vec<u8>,
}

/// The model in a directory of its own for the whole test run; not to be changed.
pub fn directory() -> PathBuf {
    static MADE: OnceLock<TempDir> = OnceLock::new();
    MADE.get_or_init(made).path().to_owned()
}

/// A fresh copy of the model, to be spoiled.
pub fn made() -> TempDir {
    let directory = TempDir::new().expect("a directory");
    write(directory.path());
    directory
}

/// Writes the model.
pub fn write(directory: &Path) {
    let text = |value: Value| serde_json::to_string_pretty(&value).expect("JSON");
    fs::write(directory.join("config.json"), text(config())).expect("a file");
    fs::write(directory.join("tokenizer.json"), text(tokenizer())).expect("a file");
    fs::write(
        directory.join("tokenizer_config.json"),
        text(tokenizer_config()),
    )
    .expect("a file");
    fs::write(directory.join("model.safetensors"), safetensors(&tensors())).expect("a file");
}

/// `config.json` as a value.
pub fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCAB,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": false,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "bfloat16",
    })
}

/// `tokenizer_config.json` as a value.
pub fn tokenizer_config() -> Value {
    json!({ "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true })
}

/// A byte-level tokenizer without merges.
pub fn tokenizer() -> Value {
    let mut vocab = Map::new();
    vocab.insert("<s>".to_owned(), json!(0));
    vocab.insert("</s>".to_owned(), json!(1));
    // GPT-2's printable stand-ins: the bytes that are printable stand for themselves, the others follow from 256.
    let printable =
        |byte: u32| (33..=126).contains(&byte) || (161..=172).contains(&byte) || byte >= 174;
    let mut next = 256;
    for byte in 0..256u32 {
        let code = if printable(byte) {
            byte
        } else {
            next += 1;
            next - 1
        };
        let letter = char::from_u32(code).expect("a character").to_string();
        vocab.insert(letter, json!(byte + 2));
    }
    let special = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false })
    };
    json!({
        "version": "1.0",
        "added_tokens": [special(0, "<s>"), special(1, "</s>")],
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [0], "tokens": ["<s>"] } }
        },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "vocab": vocab, "merges": [] }
    })
}

/// Names and shapes of the tensors of such a model, with another vocabulary and width if need be.
pub fn shapes(vocab: usize, hidden: usize) -> Vec<(String, Vec<usize>)> {
    let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    let mut list = vec![("model.embed_tokens.weight".to_owned(), vec![vocab, hidden])];
    for layer in 0..LAYERS {
        let mut add = |part: &str, shape: &[usize]| {
            list.push((
                format!("model.layers.{layer}.{part}.weight"),
                shape.to_vec(),
            ))
        };
        add("input_layernorm", &[hidden]);
        add("self_attn.q_proj", &[q, hidden]);
        add("self_attn.k_proj", &[kv, hidden]);
        add("self_attn.v_proj", &[kv, hidden]);
        add("self_attn.o_proj", &[hidden, q]);
        add("post_attention_layernorm", &[hidden]);
        add("mlp.gate_proj", &[INTER, hidden]);
        add("mlp.up_proj", &[INTER, hidden]);
        add("mlp.down_proj", &[hidden, INTER]);
    }
    list.push(("model.norm.weight".to_owned(), vec![hidden]));
    list.push(("lm_head.weight".to_owned(), vec![vocab, hidden]));
    list
}

/// All tensors of the model, random and always the same.
pub fn tensors() -> Vec<Tensor> {
    let mut random = Random(7);
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let bytes = match shape[..] {
            [len] => 0x3f80u16.to_le_bytes().repeat(len),
            _ => random.values(shape.iter().product()),
        };
        Tensor {
            name,
            shape,
            dtype: "BF16",
            bytes,
        }
    };
    shapes(VOCAB, HIDDEN).into_iter().map(tensor).collect()
}

/// An index that puts all tensors into one file.
pub fn index(file: &str) -> String {
    let map: Map<String, Value> = tensors()
        .into_iter()
        .map(|tensor| (tensor.name, json!(file)))
        .collect();
    json!({ "metadata": {}, "weight_map": map }).to_string()
}

/// The bytes of a safetensors file.
pub fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for tensor in tensors {
        let start = data.len();
        data.extend_from_slice(&tensor.bytes);
        let entry = json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, data.len()] });
        header.insert(tensor.name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&data);
    file
}

/// A multiplicative congruential generator, good enough for weights.
struct Random(u64);

impl Random {
    /// Uniform in -0.25 .. 0.25, never zero, cut to bf16.
    fn values(&mut self, count: usize) -> Vec<u8> {
        let mut value = || {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let unit = ((self.0 >> 40) as f32 + 0.5) / 16_777_216.0 - 0.5;
            ((unit / 2.0).to_bits() >> 16) as u16
        };
        (0..count).flat_map(|_| value().to_le_bytes()).collect()
    }
}
