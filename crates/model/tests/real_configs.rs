//! The shapes of real models. `configs.json` has the fields that decide; where a development checkout has the whole files beside it,
//! in `shared/data/configs`, they are read, too.

use std::path::Path;

use serde_json::{Map, Value};
use sparamx_model::{Arch, Config, ModelError, RopeScaling};
use sparamx_testkit::shared;

/// The configuration of a model from `configs.json` and, where it is there, from the file as its authors wrote it.
fn configs(name: &str) -> Vec<Result<Config, ModelError>> {
    let all: Map<String, Value> = serde_json::from_str(include_str!("configs.json")).unwrap();
    let (text, file) = (all[name].to_string(), format!("{name}.json"));
    let mut configs = vec![Config::from_json(text.as_bytes(), Path::new(&file))];
    let whole = shared(&format!("configs/{file}"));
    configs.extend(whole.map(|path| Config::from_file(&path)));
    configs
}

#[test]
fn real_configs_are_read() {
    for (name, arch, layers, heads, head_dim, context) in [
        ("llama-1-7b-pygmalion", Arch::Llama, 32, (32, 32), 128, 2048),
        ("llama-2-70b-gqa-lzlv", Arch::Llama, 80, (64, 8), 128, 4096),
        (
            "llama-3.1-70b-reflection",
            Arch::Llama,
            80,
            (64, 8),
            128,
            8192,
        ),
        ("llama-3.1-merge", Arch::Llama, 32, (32, 8), 128, 131_072),
        ("llama-7b-kailas", Arch::Llama, 32, (32, 32), 128, 2048),
        ("mistral-devstral", Arch::Mistral, 40, (32, 8), 128, 131_072),
        (
            "mistral-dolphin3-24b",
            Arch::Mistral,
            40,
            (32, 8),
            128,
            32_768,
        ),
        ("qwen2-cogito-14b", Arch::Qwen2, 48, (40, 8), 128, 131_072),
        ("smollm2-135m", Arch::Llama, 30, (9, 3), 64, 8192),
        ("triangulum", Arch::Llama, 40, (12, 4), 256, 32_768),
    ] {
        for c in configs(name) {
            let c = c.unwrap_or_else(|e| panic!("{e}"));
            let found = (
                c.arch,
                c.num_hidden_layers,
                (c.num_attention_heads, c.num_key_value_heads),
                c.head_dim,
            );
            assert_eq!(found, (arch, layers, heads, head_dim), "{name}");
            assert_eq!(c.context_length(), context, "{name}");
            assert!(
                c.layers.iter().all(|layer| layer.window.is_none()),
                "{name}"
            );
            assert_eq!(c.layers.len(), layers, "{name}");
            assert_eq!(
                matches!(c.rope_scaling, RopeScaling::Llama3 { .. }),
                name == "llama-3.1-merge",
                "{name}"
            );
            assert_eq!(c.layers[0].qkv_bias, arch == Arch::Qwen2, "{name}");
        }
    }
}

#[test]
fn others_are_refused_for_the_right_reason() {
    for (name, reason) in [
        (
            "granite-3.1-moe-negative",
            "architecture 'GraniteMoeForCausalLM' is not supported",
        ),
        ("llama-2-13b-8bit", "weights quantized with 'bitsandbytes'"),
        (
            "llama-3.1-8b-instruct",
            "weights quantized with 'bitsandbytes'",
        ),
        (
            "qwen3-14b-mlx4",
            "weights quantized with a method that quantization_config does not name",
        ),
    ] {
        for config in configs(name) {
            let message = config.unwrap_err().to_string();
            assert!(
                message.contains(reason) && message.contains(name),
                "{message}"
            );
        }
    }
}
