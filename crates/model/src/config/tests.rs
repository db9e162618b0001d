use std::path::Path;

use serde_json::{Value, json};

use super::{Arch, Config, Precision, RopeScaling};
use crate::{Activation, FfnKind, LayerSpec, ModelError, NormKind, NormPlace};

/// A small Llama, to change fields of.
fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 172,
        "num_hidden_layers": 3, "num_attention_heads": 8, "vocab_size": 512
    })
}

fn with(changes: Value) -> Value {
    let mut config = llama();
    for (field, value) in changes.as_object().unwrap() {
        config[field] = value.clone();
    }
    config
}

fn without(field: &str) -> Value {
    let mut config = llama();
    config.as_object_mut().unwrap().remove(field);
    config
}

fn parse(config: &Value) -> Result<Config, ModelError> {
    Config::from_json(config.to_string().as_bytes(), Path::new("some/config.json"))
}

fn windows(config: &Config) -> Vec<Option<usize>> {
    config.layers.iter().map(|layer| layer.window).collect()
}

/// The message for a config that is refused.
fn refused(config: &Value) -> String {
    let message = parse(config).expect_err(&config.to_string()).to_string();
    assert!(
        message.starts_with("some/config.json: ") && !message.contains('\n'),
        "{message}"
    );
    message
}

#[test]
fn absent_fields_have_the_defaults_of_transformers() {
    let c = parse(&llama()).unwrap();
    assert_eq!(
        (c.arch, c.num_key_value_heads, c.head_dim),
        (Arch::Llama, 8, 8)
    );
    assert_eq!(
        (c.rms_norm_eps, c.rope_theta, c.max_position_embeddings),
        (1e-6, 10_000.0, 2048)
    );
    assert_eq!(
        (c.bos_token_id, c.eos_token_id.as_slice()),
        (Some(1), &[2][..])
    );
    assert_eq!(
        (c.rope_scaling, c.tie_word_embeddings, c.packed),
        (RopeScaling::None, false, None)
    );
    assert_eq!(
        c.layers,
        vec![
            LayerSpec {
                norm: NormKind::Rms,
                norm_place: NormPlace::Before,
                qkv_bias: false,
                o_bias: false,
                qk_norm: false,
                rotation: 0,
                score_scale: 8f32.sqrt().recip(),
                window: None,
                ffn: FfnKind::Gated,
                activation: Activation::Silu,
                mlp_bias: false,
            };
            3
        ]
    );
}

#[test]
fn other_families_have_defaults_of_their_own() {
    let c = parse(&with(
        json!({"architectures": ["MistralForCausalLM"], "num_attention_heads": 16}),
    ))
    .unwrap();
    assert_eq!(
        (c.arch, c.num_key_value_heads, c.max_position_embeddings),
        (Arch::Mistral, 8, 131_072)
    );
    assert_eq!(windows(&c), [Some(4096); 3]);

    let c = parse(&with(
        json!({"architectures": ["Qwen2ForCausalLM"], "num_attention_heads": 32}),
    ))
    .unwrap();
    assert_eq!(
        (c.arch, c.num_key_value_heads, c.head_dim),
        (Arch::Qwen2, 32, 2)
    );
    assert_eq!(
        (c.bos_token_id, c.eos_token_id.len(), c.layers[0].o_bias),
        (None, 0, false)
    );
    assert!(c.layers.iter().all(|layer| layer.qkv_bias));
    assert_eq!(windows(&c), [None; 3]);

    let c = parse(&with(
        json!({"architectures": ["Qwen3ForCausalLM"], "num_attention_heads": 32}),
    ))
    .unwrap();
    assert_eq!((c.arch, c.head_dim, c.layers.len()), (Arch::Qwen3, 128, 3));
    assert!(
        c.layers
            .iter()
            .all(|layer| layer.qk_norm && !layer.qkv_bias)
    );
}

#[test]
fn null_is_not_absent() {
    let c = parse(&with(json!({
        "architectures": ["MistralForCausalLM"], "num_key_value_heads": null, "sliding_window": null, "head_dim": null,
        "bos_token_id": null, "eos_token_id": null, "rope_scaling": null
    })))
    .unwrap();
    assert_eq!(
        (c.num_key_value_heads, c.layers[0].window, c.head_dim),
        (8, None, 8)
    );
    assert_eq!((c.bos_token_id, c.eos_token_id.len()), (None, 0));
    let c = parse(&with(
        json!({"architectures": ["Qwen3ForCausalLM"], "num_key_value_heads": 4, "head_dim": null}),
    ));
    assert_eq!(c.unwrap().head_dim, 8);
}

#[test]
fn the_family_comes_from_architectures_or_else_from_model_type() {
    let mut config = with(json!({"model_type": "qwen3", "num_key_value_heads": 8}));
    assert_eq!(parse(&config).unwrap().arch, Arch::Llama);
    config.as_object_mut().unwrap().remove("architectures");
    assert_eq!(parse(&config).unwrap().arch, Arch::Qwen3);
    config.as_object_mut().unwrap().remove("model_type");
    assert!(refused(&config).contains("'architectures' is missing"));
    assert!(
        refused(&with(json!({"architectures": "LlamaForCausalLM"}))).contains("'architectures'")
    );
    let message = refused(&with(json!({"architectures": ["GraniteMoeForCausalLM"]})));
    assert!(
        message.contains("GraniteMoeForCausalLM") && message.contains("Qwen3ForCausalLM"),
        "{message}"
    );
}

#[test]
fn bias_and_tied_embeddings() {
    let c = parse(&with(
        json!({"attention_bias": true, "mlp_bias": true, "tie_word_embeddings": true}),
    ))
    .unwrap();
    let biases = |layer: &LayerSpec| (layer.qkv_bias, layer.o_bias, layer.mlp_bias);
    assert!(
        c.layers
            .iter()
            .map(biases)
            .all(|all| all == (true, true, true))
    );
    assert!(c.tie_word_embeddings);
}

#[test]
fn qwen_windows_are_on_the_layers_that_the_fields_name() {
    let qwen = |changes: Value| {
        let mut config = with(json!({
            "architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 4, "sliding_window": 32, "max_window_layers": 1
        }));
        for (field, value) in changes.as_object().unwrap() {
            config[field] = value.clone();
        }
        config
    };
    let windows = |changes| windows(&parse(&qwen(changes)).unwrap());
    assert_eq!(windows(json!({})), [None, None, None]);
    assert_eq!(
        windows(json!({"use_sliding_window": true})),
        [None, Some(32), Some(32)]
    );
    assert_eq!(
        windows(json!({"use_sliding_window": true, "max_window_layers": 70})),
        [None, None, None]
    );
    assert_eq!(
        windows(json!({"use_sliding_window": true, "max_window_layers": 0})),
        [Some(32); 3]
    );
    assert_eq!(
        windows(json!({"use_sliding_window": true, "sliding_window": null})),
        [None, None, None]
    );
    let types = json!(["full_attention", "sliding_attention", "full_attention"]);
    assert_eq!(
        windows(json!({"use_sliding_window": true, "layer_types": types})),
        [None, Some(32), None]
    );
    assert!(refused(&qwen(json!({"layer_types": types}))).contains("use_sliding_window"));
    assert!(
        refused(&qwen(json!({"layer_types": ["full_attention"]}))).contains("a list of 3 names")
    );
    let unknown = json!(["full_attention", "linear_attention", "full_attention"]);
    assert!(refused(&qwen(json!({"layer_types": unknown}))).contains("linear_attention"));
}

#[test]
fn rope_scaling_old_and_new() {
    let rope = |changes: Value| {
        let c = parse(&with(changes)).unwrap();
        (c.rope_theta, c.rope_scaling)
    };
    let linear = RopeScaling::Linear { factor: 4.0 };
    assert_eq!(
        rope(json!({"rope_scaling": {"type": "linear", "factor": 4.0}})),
        (10_000.0, linear.clone())
    );
    assert_eq!(
        rope(
            json!({"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "type": "x", "factor": 4}})
        ),
        (5e5, linear.clone())
    );
    assert_eq!(
        rope(
            json!({"rope_parameters": {"rope_type": "linear", "factor": 4, "rope_theta": 1e6}, "rope_theta": 5e5})
        ),
        (1e6, linear)
    );
    assert_eq!(
        rope(json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}})),
        (1e6, RopeScaling::None)
    );
    assert_eq!(
        rope(json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}})).1,
        RopeScaling::Dynamic { factor: 2.0 }
    );
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    assert_eq!(
        rope(json!({"rope_scaling": llama3})).1,
        RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192
        }
    );
}

#[test]
fn yarn_infers_what_is_absent() {
    let yarn = |rope: Value| match parse(&with(json!({"rope_scaling": rope})))
        .unwrap()
        .rope_scaling
    {
        RopeScaling::Yarn {
            attention_factor,
            original_max_position_embeddings,
            beta_fast,
            beta_slow,
            ..
        } => {
            assert_eq!((beta_fast, beta_slow), (32.0, 1.0));
            (attention_factor, original_max_position_embeddings)
        }
        other => panic!("{other:?}"),
    };
    let near = |found: (f64, usize), factor: f64, original| {
        assert!(
            (found.0 - factor).abs() < 1e-9 && found.1 == original,
            "{found:?}"
        );
    };
    // Attention factors as Transformers computes them.
    near(
        yarn(json!({"type": "yarn", "factor": 4.0})),
        1.138629436111989,
        2048,
    );
    let given = json!({"type": "yarn", "factor": 4.0, "attention_factor": 0.5, "original_max_position_embeddings": 64});
    near(yarn(given), 0.5, 64);
    let mscale = json!({"type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.3});
    near(yarn(mscale), 0.9295234923939468, 2048);
}

#[test]
fn rope_fields_that_make_no_sense_are_refused_by_name() {
    for (rope, expected) in [
        (
            json!({"type": "longrope", "factor": 4.0}),
            "'rope_scaling.type' is longrope",
        ),
        (
            json!({"type": "linear"}),
            "'rope_scaling.factor' is missing",
        ),
        (
            json!({"type": "linear", "factor": 0.5}),
            "'rope_scaling.factor' is 0.5, expected at least 1",
        ),
        (
            json!({"type": "linear", "factor": "4"}),
            "'rope_scaling.factor' is \"4\", expected a number",
        ),
        (
            json!({"type": "llama3", "factor": 8.0}),
            "'rope_scaling.low_freq_factor' is missing",
        ),
        (
            json!({"type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}),
            "'rope_scaling.high_freq_factor' is 4, expected above low_freq_factor 4",
        ),
        (
            json!({"type": "yarn", "factor": 4.0, "attention_factor": 0}),
            "'rope_scaling.attention_factor' is 0",
        ),
        (
            json!({"type": "yarn", "factor": 4.0, "beta_fast": -1}),
            "'rope_scaling.beta_fast' is -1",
        ),
        (
            json!({"type": "yarn", "factor": 4, "original_max_position_embeddings": 0}),
            "original_max_position",
        ),
        (
            json!({"rope_theta": 1.0}),
            "'rope_scaling.rope_theta' is 1, expected a number above 1",
        ),
        (
            json!({"partial_rotary_factor": 0.5}),
            "'rope_scaling.partial_rotary_factor' is 0.5",
        ),
        (
            json!({"full_attention": {"rope_type": "default"}}),
            "one set of parameters",
        ),
        (json!([1, 2]), "'rope_scaling' is [1,2], expected an object"),
    ] {
        let message = refused(&with(json!({"rope_scaling": rope})));
        assert!(message.contains(expected), "{message} lacks {expected}");
    }
}

#[test]
fn sizes_without_which_there_is_no_model_are_required() {
    let required = [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
    ];
    for field in required {
        let message = refused(&without(field));
        assert!(
            message.contains(&format!("field '{field}' is missing")),
            "{message}"
        );
        assert!(refused(&with(json!({field: null}))).contains("is missing"));
        for hostile in [
            json!(0),
            json!(-1),
            json!(1e18),
            json!(u64::MAX),
            json!(1.5),
            json!("64"),
            json!([64]),
        ] {
            let message = refused(&with(json!({field: hostile})));
            assert!(
                message.contains(&format!("field '{field}' is")),
                "{message}"
            );
        }
    }
}

#[test]
fn sizes_that_contradict_each_other_are_refused_by_name() {
    all_refused(&[
        (
            json!({"num_attention_heads": 7}),
            "'num_attention_heads' is 7, expected a divisor of hidden_size 64",
        ),
        (
            json!({"num_key_value_heads": 3}),
            "'num_key_value_heads' is 3, expected a divisor of num_attention_heads 8",
        ),
        (
            json!({"num_key_value_heads": 16}),
            "'num_key_value_heads' is 16",
        ),
        (
            json!({"num_key_value_heads": 0}),
            "'num_key_value_heads' is 0",
        ),
        (
            json!({"head_dim": 7}),
            "'head_dim' is 7, expected an even number",
        ),
        (
            json!({"head_dim": 1 << 24}),
            "'head_dim' is 16777216, expected at most",
        ),
        (
            json!({"head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2.0}}),
            "'head_dim' is 2, expected at least 4",
        ),
        (
            json!({"num_hidden_layers": 5000}),
            "'num_hidden_layers' is 5000, expected at most 4096",
        ),
    ]);
}

#[test]
fn values_out_of_range_are_refused_by_name() {
    all_refused(&[
        (json!({"rms_norm_eps": 0}), "'rms_norm_eps' is 0"),
        (json!({"rms_norm_eps": -1e-6}), "'rms_norm_eps'"),
        (json!({"rms_norm_eps": 1e-60}), "'rms_norm_eps'"),
        (json!({"rms_norm_eps": 1e60}), "'rms_norm_eps'"),
        (json!({"rope_theta": 0.5}), "'rope_theta' is 0.5"),
        (json!({"rope_theta": "big"}), "'rope_theta'"),
        (
            json!({"rope_theta": 1e60}),
            "'rope_theta' is 1e+60, expected a number up to 3.4",
        ),
        (
            json!({"eos_token_id": 1.5}),
            "'eos_token_id' is 1.5, expected token ids",
        ),
        (json!({"eos_token_id": [1, true]}), "'eos_token_id' is true"),
        (json!({"bos_token_id": "<s>"}), "'bos_token_id'"),
        (
            json!({"hidden_act": "gelu"}),
            "'hidden_act' is gelu, expected silu",
        ),
        (
            json!({"partial_rotary_factor": 0.25}),
            "'partial_rotary_factor' is 0.25",
        ),
        (
            json!({"tie_word_embeddings": "yes"}),
            "'tie_word_embeddings' is \"yes\", expected true or false",
        ),
        (
            json!({"max_position_embeddings": 0}),
            "'max_position_embeddings' is 0",
        ),
        (
            json!({"hidden_act": "x".repeat(10_000)}),
            "xxx..., expected silu",
        ),
    ]);
}

/// Each change makes a config that is refused with a short message that has these words.
fn all_refused(cases: &[(Value, &str)]) {
    for (changes, expected) in cases {
        let message = refused(&with(changes.clone()));
        assert!(
            message.contains(expected) && message.len() < 200,
            "{message} lacks {expected}"
        );
    }
}

#[test]
fn text_that_is_not_a_json_object_is_refused() {
    let nested = format!("{{\"a\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    for text in [
        "",
        "{",
        "[]",
        "null",
        "{\"rms_norm_eps\": nan}",
        "{\"a\": 1e999}",
        "\u{0}\u{1}",
        nested.as_str(),
    ] {
        let e = Config::from_json(text.as_bytes(), Path::new("some/config.json")).unwrap_err();
        assert!(matches!(e, ModelError::Json { .. }), "{e}");
        assert!(
            e.to_string()
                .starts_with("some/config.json: not a JSON object: "),
            "{e}"
        );
    }
    let invalid_utf8 =
        Config::from_json(b"{\"model_type\": \"\xff\"}", Path::new("c")).unwrap_err();
    assert!(matches!(invalid_utf8, ModelError::Json { .. }));
}

#[test]
fn only_our_own_packing_is_read() {
    let quantized = |q: Value| with(json!({"quantization_config": q}));
    let ours = json!({"quant_method": "sparamx", "layout": "strip16", "version": 1});
    let packed = |config| parse(&quantized(config)).unwrap().packed;
    assert_eq!(packed(ours.clone()), Some(Precision::Bf16));
    assert_eq!(packed(Value::Null), None);
    let with_weights = |weights: Value, group: Value| {
        let mut config = ours.clone();
        config["weights"] = weights;
        config["group_size"] = group;
        config
    };
    assert_eq!(
        packed(with_weights(json!("bf16"), Value::Null)),
        Some(Precision::Bf16)
    );
    assert_eq!(
        packed(with_weights(json!("int8"), Value::Null)),
        Some(Precision::Int8)
    );
    for group_elems in [32, 64, 128] {
        let int4 = with_weights(json!("int4"), json!(group_elems));
        assert_eq!(packed(int4), Some(Precision::Int4 { group_elems }));
    }
    for (config, expected) in [
        (
            json!({"quant_method": "bitsandbytes", "load_in_4bit": true}),
            "'bitsandbytes'",
        ),
        (json!({"group_size": 64, "bits": 4}), "does not name"),
        (
            json!({"quant_method": "sparamx", "version": 1}),
            "'quantization_config.layout' is missing",
        ),
        (
            json!({"quant_method": "sparamx", "layout": "strip32", "version": 1}),
            "is strip32, expected strip16",
        ),
        (
            json!({"quant_method": "sparamx", "layout": "strip16", "version": 2}),
            "newer sparamx",
        ),
        (
            json!({"quant_method": "sparamx", "layout": "strip16"}),
            "'quantization_config.version' is missing",
        ),
        (
            with_weights(json!("int16"), Value::Null),
            "'quantization_config.weights' is int16, expected bf16, int8 or int4",
        ),
        (
            with_weights(json!(8), Value::Null),
            "'quantization_config.weights'",
        ),
        (
            with_weights(json!("int4"), Value::Null),
            "'quantization_config.group_size' is missing",
        ),
        (
            with_weights(json!("int4"), json!(16)),
            "is 16, expected 32, 64 or 128",
        ),
        (
            with_weights(json!("int8"), json!(128)),
            "is 128, expected no group: only int4 has one",
        ),
        (
            json!("int8"),
            "'quantization_config' is \"int8\", expected an object",
        ),
    ] {
        let message = refused(&quantized(config));
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn the_context_is_what_scaling_stretches_it_to() {
    let context = |changes| parse(&with(changes)).unwrap().context_length();
    assert_eq!(context(json!({"max_position_embeddings": 512})), 512);
    let dynamic = json!({"type": "dynamic", "factor": 2.0});
    assert_eq!(
        context(json!({"max_position_embeddings": 512, "rope_scaling": dynamic})),
        1024
    );
    let yarn = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512});
    assert_eq!(
        context(json!({"max_position_embeddings": 512, "rope_scaling": yarn})),
        2048
    );
    assert_eq!(
        context(json!({"max_position_embeddings": 4096, "rope_scaling": yarn})),
        4096
    );
    let huge = json!({"type": "dynamic", "factor": 1e30});
    assert_eq!(context(json!({"rope_scaling": huge})), 1 << 24);
}

/// What no field, or hardly any, should hold.
fn hostile_values() -> Vec<Value> {
    vec![
        Value::Null,
        json!(true),
        json!(0),
        json!(1),
        json!(2),
        json!(3),
        json!(-1),
        json!(1e-40),
        json!(1.0000001),
        json!(3e38),
        json!(1e300),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(""),
        json!("yarn"),
        json!([]),
        json!([null, 1, "x"]),
        json!({}),
        json!({"type": "dynamic", "factor": 1e38}),
        json!({"type": "yarn", "factor": 3e38, "original_max_position_embeddings": 1}),
    ]
}

/// Every field with every kind of value: an error or a configuration whose angles are numbers, never a panic.
#[test]
fn hostile_values_are_refused_or_harmless() {
    let plain = with(
        json!({"head_dim": 8, "num_key_value_heads": 2, "sliding_window": 4, "use_sliding_window": true,
        "max_window_layers": 1, "layer_types": null, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 1e4, "bos_token_id": 1, "eos_token_id": [2], "hidden_act": "silu", "attention_bias": false,
        "mlp_bias": false, "tie_word_embeddings": false, "quantization_config": null, "rope_parameters": null,
        "original_max_position_embeddings": null, "partial_rotary_factor": 1.0}),
    );
    let ropes = [
        json!({"type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
            "original_max_position_embeddings": 16, "rope_theta": 1e4}),
        json!({"type": "yarn", "factor": 8, "beta_fast": 32, "beta_slow": 1, "mscale": 1, "mscale_all_dim": 1,
            "attention_factor": null, "truncate": true, "original_max_position_embeddings": 16}),
        json!({"type": "dynamic", "factor": 2}),
        json!({"type": "linear", "factor": 2}),
    ];
    for architecture in [
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
    ] {
        let mut config = plain.clone();
        config["architectures"] = json!([architecture]);
        for field in plain.as_object().unwrap().keys() {
            for value in &hostile_values() {
                let mut config = config.clone();
                config[field] = value.clone();
                harmless(&config);
            }
        }
        for rope in &ropes {
            for field in rope.as_object().unwrap().keys() {
                for value in &hostile_values() {
                    let mut config = config.clone();
                    config["rope_scaling"] = rope.clone();
                    config["rope_scaling"][field] = value.clone();
                    harmless(&config);
                }
            }
        }
    }
}

fn harmless(config: &Value) {
    let Ok(config) = parse(config) else { return };
    assert_eq!(config.layers.len(), config.num_hidden_layers);
    assert!(config.context_length() > 0 && !crate::families::plan::tensors(&config).is_empty());
    let half = config.head_dim / 2;
    let (mut cos, mut sin, mut scratch) =
        (vec![0.0; 2 * half], vec![0.0; 2 * half], vec![0.0; half]);
    for start in [0, 63, 1 << 20] {
        crate::pass::rope::Rope::all(&config)[0].angles(start, &mut cos, &mut sin, &mut scratch);
        assert!(cos.iter().chain(&sin).all(|v| v.is_finite()), "{config:?}");
    }
}
