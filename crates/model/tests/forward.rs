//! What `forward` refuses, what it leaves as it was, and models with random weights.

mod common;

use common::{Files, runtime};
use serde_json::json;
use sparamx_engine::PagedCache;
use sparamx_kernels::linear::WeightFormat;
use sparamx_model::{
    Config, Input, KvCache, LoadOptions, Model, ModelError, Op, Precision, RandomSpec, Want,
    Workspace, shapes,
};

fn model() -> Model {
    let checkpoint = Files::new(json!({})).open().unwrap();
    Model::load(
        &runtime(),
        &checkpoint,
        &LoadOptions::default(),
        &mut |_| {},
    )
    .unwrap()
}

fn forward(
    model: &Model,
    tokens: &[u32],
    cache: &mut PagedCache,
    logits: Want,
) -> Result<Vec<f32>, ModelError> {
    let mut ws = Workspace::new();
    Ok(model
        .forward(
            &runtime(),
            &mut [Input {
                tokens,
                cache,
                logits,
            }],
            &mut ws,
        )?
        .to_vec())
}

#[test]
fn wanted_rows_are_those_of_the_last_tokens() {
    let model = model();
    let cache = || PagedCache::new(model.config(), 16).unwrap();
    let all = forward(&model, &[1, 2, 3], &mut cache(), Want::All).unwrap();
    let last = forward(&model, &[1, 2, 3], &mut cache(), Want::Last).unwrap();
    assert_eq!((all.len(), last.len()), (3 * 40, 40));
    assert_eq!(all[80..], last[..]);
    let mut filled = cache();
    assert!(
        forward(&model, &[1, 2], &mut filled, Want::None)
            .unwrap()
            .is_empty()
    );
    assert_eq!(filled.len(), 2);
    let next = forward(&model, &[3], &mut filled, Want::Last).unwrap();
    assert!(
        next.iter().zip(&last).all(|(a, b)| (a - b).abs() < 1e-3),
        "{next:?} {last:?}"
    );
    assert!(last.iter().any(|&v| v != 0.0));
}

#[test]
fn a_profile_counts_every_operation_and_changes_no_result() {
    let model = model();
    let layers = model.config().num_hidden_layers as u64;
    let mut ws = Workspace::new();
    let logits = |ws: &mut Workspace| {
        let mut cache = PagedCache::new(model.config(), 2).unwrap();
        let mut inputs = [Input {
            tokens: &[1, 2],
            cache: &mut cache,
            logits: Want::Last,
        }];
        let logits = model.forward(&runtime(), &mut inputs, ws).unwrap();
        logits.to_vec()
    };
    assert_eq!(ws.take_profile(), None);
    let plain = logits(&mut ws);
    ws.start_profile();
    assert_eq!(logits(&mut ws), plain);
    let profile = ws.take_profile().unwrap();
    assert_eq!(ws.take_profile(), None);

    let calls = |op| profile.of(op).calls;
    for op in [Op::Qkv, Op::Rope, Op::Cache, Op::Attention, Op::O] {
        assert_eq!(calls(op), layers, "{op:?}");
    }
    for op in [Op::GateUp, Op::Silu, Op::Down] {
        assert_eq!(calls(op), layers, "{op:?}");
    }
    assert_eq!(calls(Op::Norm), 2 * layers + 1);
    assert_eq!(calls(Op::Residual), 2 * layers);
    assert_eq!((calls(Op::Embedding), calls(Op::Head)), (1, 1));
    let linear = [Op::Qkv, Op::O, Op::GateUp, Op::Down, Op::Head];
    let bytes: u64 = linear.iter().map(|&op| profile.of(op).bytes).sum();
    assert_eq!(bytes, model.weight_bytes());
    // Two tokens, seen once each.
    let width = 2 * model.config().kv_width() as u64;
    assert_eq!(profile.of(Op::Attention).bytes, layers * 2 * width * 2);
}

#[test]
fn a_refused_call_leaves_the_cache_as_it_was() {
    let model = model();
    let mut cache = PagedCache::new(model.config(), 3).unwrap();
    forward(&model, &[1, 2], &mut cache, Want::None).unwrap();
    let error = forward(&model, &[], &mut cache, Want::Last).unwrap_err();
    assert!(
        matches!(error, ModelError::EmptyInput { input: 0 }),
        "{error}"
    );
    let error = forward(&model, &[3, 40], &mut cache, Want::Last).unwrap_err();
    assert!(
        matches!(
            error,
            ModelError::TokenOutOfRange {
                token: 40,
                vocab_size: 40
            }
        ),
        "{error}"
    );
    let error = forward(&model, &[3, 4], &mut cache, Want::Last).unwrap_err();
    assert!(
        matches!(
            error,
            ModelError::CacheFull {
                needed: 4,
                capacity: 3
            }
        ),
        "{error}"
    );
    assert_eq!(cache.len(), 2);
    let after = forward(&model, &[3], &mut cache, Want::Last).unwrap();
    let mut fresh = PagedCache::new(model.config(), 3).unwrap();
    forward(&model, &[1, 2], &mut fresh, Want::None).unwrap();
    assert_eq!(
        after,
        forward(&model, &[3], &mut fresh, Want::Last).unwrap()
    );
}

#[test]
fn no_inputs_give_no_logits() {
    assert!(
        model()
            .forward(&runtime(), &mut [], &mut Workspace::new())
            .unwrap()
            .is_empty()
    );
}

/// A small model with the proportions of a large one.
fn small() -> Config {
    let mut config = shapes::config("llama3.2-1b").unwrap();
    (
        config.hidden_size,
        config.intermediate_size,
        config.vocab_size,
    ) = (128, 320, 300);
    (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
    ) = (8, 2, 16);
    config
}

#[test]
fn random_models_run_and_follow_from_their_seed() {
    let config = small();
    let precision = Precision::Bf16;
    let logits = |sparsity, seed| {
        let spec = RandomSpec {
            sparsity,
            precision,
            seed,
        };
        let model = Model::random(&runtime(), &config, spec).unwrap();
        let mut cache = PagedCache::new(&config, 8).unwrap();
        let logits = forward(&model, &[5, 6, 7], &mut cache, Want::Last).unwrap();
        assert!(logits.iter().all(|v| v.is_finite()) && logits.iter().any(|&v| v != 0.0));
        (logits, model.weight_bytes())
    };
    let (dense, dense_bytes) = logits(0.0, 1);
    let (sparse, sparse_bytes) = logits(0.5, 1);
    assert_eq!(dense, logits(0.0, 1).0);
    assert_ne!(dense, logits(0.0, 2).0);
    assert_ne!(dense, sparse);
    assert!(sparse_bytes < dense_bytes, "{sparse_bytes} {dense_bytes}");
}

#[test]
fn random_models_have_the_numbers_asked_for() {
    let mut config = small();
    // Large enough that padding does not decide about sizes.
    (config.hidden_size, config.intermediate_size) = (256, 512);
    for (precision, dense, sparse) in [
        (
            Precision::Bf16,
            WeightFormat::DenseBf16,
            WeightFormat::SparseBf16,
        ),
        (
            Precision::Int8,
            WeightFormat::DenseI8,
            WeightFormat::SparseI8,
        ),
        (
            Precision::Int4 { group_elems: 32 },
            WeightFormat::DenseI4,
            WeightFormat::SparseI4,
        ),
    ] {
        for (sparsity, format) in [(0.0, dense), (0.5, sparse)] {
            let spec = RandomSpec {
                sparsity,
                precision,
                seed: 1,
            };
            let model = Model::random(&runtime(), &config, spec).unwrap();
            assert_eq!(model.weight_format(), format);
            let mut cache = PagedCache::new(&config, 8).unwrap();
            let logits = forward(&model, &[5, 6, 7], &mut cache, Want::Last).unwrap();
            assert!(logits.iter().all(|v| v.is_finite()) && logits.iter().any(|&v| v != 0.0));

            // The embedding is not among the bytes of a pass, nor are norms.
            let expected = Model::random_bytes(&config, spec) as f64;
            let found = model.weight_bytes() as f64;
            assert!(
                (0.7..1.2).contains(&(found / expected)),
                "{format}: {found} of {expected}"
            );
        }
    }
}

#[test]
fn random_models_that_cannot_be_are_refused() {
    for sparsity in [-0.1, 1.5, f64::NAN] {
        let spec = RandomSpec {
            sparsity,
            precision: Precision::Bf16,
            seed: 0,
        };
        let error = Model::random(&runtime(), &small(), spec).err().unwrap();
        assert!(matches!(error, ModelError::Sparsity { .. }), "{error}");
    }
    let mut config = small();
    (config.hidden_size, config.vocab_size) = (1 << 24, 1 << 24);
    let error = Model::random(
        &runtime(),
        &config,
        RandomSpec {
            sparsity: 0.0,
            precision: Precision::Bf16,
            seed: 0,
        },
    )
    .err()
    .unwrap();
    assert!(
        matches!(error, ModelError::NotEnoughMemory { .. }),
        "{error}"
    );
}
