//! A decoder layer on its own computes what it computes in the model.

mod common;

use sparamx_engine::PagedCache;
use sparamx_format::DenseBf16;
use sparamx_kernels::{Linear, LinearJob, Rows, RowsMut, Weight, linear};
use sparamx_model::{
    Checkpoint, DecoderLayer, DecoderWorkspace, Input, LoadOptions, Model, Want, Workspace,
    head_input,
};

use common::{Files, runtime};

/// More than a page of the cache.
const TOKENS: usize = 70;

fn checkpoint(dir: &std::path::Path) -> Checkpoint {
    let config = serde_json::json!({"max_position_embeddings": 128});
    Files::new(config).write(dir);
    Checkpoint::open(dir).unwrap()
}

fn tokens() -> Vec<u32> {
    (0..TOKENS as u32).map(|i| (i * 7 + 3) % 40).collect()
}

/// The rows of the embedding.
fn embedded(checkpoint: &Checkpoint, tokens: &[u32]) -> Vec<f32> {
    let rows = checkpoint.raw_rows("model.embed_tokens.weight").unwrap();
    let row = |&token: &u32| &rows.bits[token as usize * rows.k..][..rows.k];
    let bits = tokens.iter().flat_map(row);
    bits.map(|&bits| half::bf16::from_bits(bits).to_f32())
        .collect()
}

fn dense(checkpoint: &Checkpoint, name: &str) -> Linear {
    let rows = checkpoint.raw_rows(name).unwrap();
    Linear {
        weight: Weight::DenseBf16(DenseBf16::from_rows(&rows.bits, rows.n, rows.k).unwrap()),
        bias: None,
    }
}

#[test]
fn layer_by_layer_is_the_forward_pass() {
    let (dir, rt) = (tempfile::tempdir().unwrap(), runtime());
    let checkpoint = checkpoint(dir.path());
    let model = Model::load(&rt, &checkpoint, &LoadOptions::default(), &mut |_| ()).unwrap();
    let config = checkpoint.config();
    let tokens = tokens();
    let mut cache = PagedCache::new(config, TOKENS).unwrap();
    let mut ws = Workspace::new();
    let input = Input {
        tokens: &tokens,
        cache: &mut cache,
        logits: Want::All,
    };
    let wanted = model.forward(&rt, &mut [input], &mut ws).unwrap();

    let mut ws = DecoderWorkspace::new(config);
    // A longer sequence first: what it leaves behind changes nothing.
    let mut longer = vec![1.0; 2 * TOKENS * config.hidden_size];
    let mut x = embedded(&checkpoint, &tokens);
    for l in 0..config.num_hidden_layers {
        let layer = DecoderLayer::load(&checkpoint, l).unwrap();
        layer.forward(&rt, &mut longer, &mut ws).unwrap();
        layer.forward(&rt, &mut x, &mut ws).unwrap();
    }
    let mut normed = vec![0.0; x.len()];
    head_input(&rt, &checkpoint, &x, &mut normed).unwrap();
    let mut logits = vec![0.0; TOKENS * config.vocab_size];
    let head = dense(&checkpoint, "lm_head.weight");
    let mut jobs = [LinearJob {
        linear: &head,
        y: RowsMut::new(&mut logits, TOKENS, config.vocab_size),
    }];
    let x = Rows::new(&normed, TOKENS, config.hidden_size);
    linear(&rt, x, &mut jobs).unwrap();
    assert!(logits == wanted, "not the same bits");
}

#[test]
fn inputs_are_what_the_linear_layers_read() {
    let (dir, rt) = (tempfile::tempdir().unwrap(), runtime());
    let checkpoint = checkpoint(dir.path());
    let config = checkpoint.config();
    let (hidden, mut ws) = (config.hidden_size, DecoderWorkspace::new(config));
    let x = embedded(&checkpoint, &tokens());
    let layer = DecoderLayer::load(&checkpoint, 0).unwrap();
    let mut input = |layer: &DecoderLayer, which| {
        let rows = layer.input(&rt, which, &x, &mut ws).unwrap();
        assert_eq!(rows.rows(), TOKENS);
        (0..TOKENS)
            .flat_map(|i| rows.row(i).to_vec())
            .collect::<Vec<f32>>()
    };
    let inputs = layer.inputs();
    let mut all = |layer: &DecoderLayer| -> Vec<Vec<f32>> {
        let read = inputs.iter().map(|(which, _)| input(layer, *which));
        read.collect()
    };
    let before = all(&layer);
    assert_eq!(before.len(), 4);
    for ((_, modules), rows) in inputs.iter().zip(&before) {
        for module in modules {
            let name = format!("model.layers.0.{module}.weight");
            let k = checkpoint.raw_rows(&name).unwrap().k;
            assert_eq!(rows.len(), TOKENS * k, "{name}");
        }
    }
    // The stream is x + o(..) before the second norm, and x + o(..) + down(..) at the end.
    let mut out = x.clone();
    layer
        .forward(&rt, &mut out, &mut DecoderWorkspace::new(config))
        .unwrap();
    let product = |module: &str, rows: &[f32]| {
        let linear_layer = dense(&checkpoint, &format!("model.layers.0.{module}.weight"));
        let mut y = vec![0.0; TOKENS * hidden];
        let mut jobs = [LinearJob {
            linear: &linear_layer,
            y: RowsMut::new(&mut y, TOKENS, hidden),
        }];
        linear(&rt, Rows::new(rows, TOKENS, rows.len() / TOKENS), &mut jobs).unwrap();
        y
    };
    let (o, down) = (
        product("self_attn.o_proj", &before[1]),
        product("mlp.down_proj", &before[3]),
    );
    let sum: Vec<f32> = (0..x.len()).map(|i| (x[i] + o[i]) + down[i]).collect();
    assert!(sum == out, "not the same bits");

    // A weight in another's place changes what comes after it, and only that.
    let mut changed = layer.clone();
    let (n, k) = (config.intermediate_size, hidden);
    let ones = DenseBf16::from_rows(&vec![0x3f80; n * k], n, k).unwrap();
    changed.set_weight("mlp.gate_proj", Weight::DenseBf16(ones));
    let after = all(&changed);
    assert!(before[..3] == after[..3]);
    assert!(before[3] != after[3]);
}
