//! Layers against an independent implementation in float64, written from the papers: `tools/reference/make_layers.py`, which says
//! why bits can be compared.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::Value;
use sparamx_compress::Scope;
use sparamx_compress::layer::{LayerSpec, Method, Moments, Pattern, Solved, solve};
use sparamx_model::{Checkpoint, Precision};

/// How far the relative errors of both may be apart. The errors are at least 1e-3, so their squares 1e-6, made from sums of
/// squares of relative accuracy 1e-13 at worst; the root halves what is left of it.
const ERROR_TOLERANCE: f64 = 1e-7;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/layers")
}

fn bf16(bytes: &[u8]) -> Vec<f32> {
    let value =
        |pair: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes([pair[0], pair[1]])) << 16);
    bytes.chunks(2).map(value).collect()
}

/// Where the weights of a trained model are, by the name of the fixture; none if they are not here.
fn model(layer: &str) -> Option<PathBuf> {
    if layer == "stories-5m" {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
        return Some(models.join(layer));
    }
    sparamx_testkit::shared(&format!("models/{layer}"))
}

/// The weights of a fixture, their number of columns, and the moments of its inputs.
fn layer(
    tensors: &SafeTensors<'_>,
    name: &str,
    tensor: Option<&str>,
) -> Option<(Vec<f32>, usize, Moments)> {
    let get = |name| tensors.tensor(name).ok();
    let inputs = get("inputs").expect("inputs");
    let k = inputs.shape()[1];
    let weights = match tensor {
        None => bf16(get("weights").expect("weights").data()),
        Some(tensor) => {
            let checkpoint = Checkpoint::open(&model(name)?).expect("a model");
            let rows = checkpoint.raw_rows(tensor).expect("a tensor");
            assert_eq!(rows.k, k);
            let value = |&bits: &u16| f32::from_bits(u32::from(bits) << 16);
            rows.bits.iter().map(value).collect()
        }
    };
    let dense = get("dense").map(|dense| bf16(dense.data()));
    let mut moments = Moments::new(k, dense.is_some());
    moments.add(&bf16(inputs.data()), dense.as_deref());
    Some((weights, k, moments))
}

fn spec(case: &Value) -> LayerSpec {
    let group_elems = case["group"].as_u64().unwrap_or_default() as usize;
    LayerSpec {
        method: match case["method"].as_str().expect("a method") {
            "magnitude" => Method::Magnitude,
            "wanda" => Method::Wanda,
            "sparsegpt" => Method::SparseGpt,
            other => panic!("{other}"),
        },
        pattern: match case["n_of_m"].as_array().map(Vec::as_slice) {
            Some([keep, of]) => Pattern::NofM {
                keep: keep.as_u64().expect("a number") as usize,
                of: of.as_u64().expect("a number") as usize,
            },
            _ => Pattern::Unstructured(case["sparsity"].as_f64().expect("a share")),
        },
        scope: if case["scope"] == "row" {
            Scope::Row
        } else {
            Scope::Tensor
        },
        precision: match case["weights"].as_str().expect("a precision") {
            "bf16" => Precision::Bf16,
            "int8" => Precision::Int8,
            "int4" => Precision::Int4 { group_elems },
            other => panic!("{other}"),
        },
        rtn: case["rtn"] == true,
        reconstruct: case["reconstruct"] == true,
    }
}

/// How many of `found` are not `wanted`, as little-endian bytes.
fn differing<const N: usize>(
    found: impl ExactSizeIterator<Item = [u8; N]>,
    wanted: &[u8],
) -> usize {
    assert_eq!(found.len() * N, wanted.len());
    found
        .zip(wanted.chunks(N))
        .filter(|(found, wanted)| found != wanted)
        .count()
}

#[test]
fn layers_are_those_of_the_reference() {
    let cases = fs::read(fixtures().join("cases.json")).expect("cases");
    let cases: Vec<Value> = serde_json::from_slice(&cases).expect("JSON");
    let mut by_layer = BTreeMap::<&str, Vec<&Value>>::new();
    for case in &cases {
        by_layer
            .entry(case["layer"].as_str().expect("a layer"))
            .or_default()
            .push(case);
    }
    assert_eq!(by_layer.len(), 8);
    for (name, cases) in by_layer {
        let content = fs::read(fixtures().join(format!("{name}.safetensors"))).expect("a fixture");
        let tensors = SafeTensors::deserialize(&content).expect("safetensors");
        let Some((weights, k, moments)) = layer(&tensors, name, cases[0]["tensor"].as_str()) else {
            continue;
        };
        for case in cases {
            let title = format!("{name}: {}", case["case"]);
            let found = solve(&weights, weights.len() / k, k, Some(&moments), &spec(case))
                .unwrap_or_else(|error| panic!("{title}: {error}"));
            let wanted = |field: &str| {
                let tensor = format!("{}.{field}", case["case"].as_str().expect("a name"));
                tensors.tensor(&tensor).expect("an output").data()
            };
            let (differ, of) = match &found.rows {
                Solved::Bf16(bits) => (
                    differing(bits.iter().map(|b| b.to_le_bytes()), wanted("bits")),
                    bits.len(),
                ),
                Solved::Int8 { levels, scales } | Solved::Int4 { levels, scales, .. } => {
                    let scales =
                        differing(scales.iter().map(|s| s.to_le_bytes()), wanted("scales"));
                    let levels_differ =
                        differing(levels.iter().map(|l| l.to_le_bytes()), wanted("levels"));
                    (scales + levels_differ, levels.len())
                }
            };
            assert_eq!(differ, 0, "{title}: {differ} of {of} differ");
            let error = case["error"].as_f64().expect("an error");
            assert!(error > 1e-3, "{title}: the tolerance supposes this");
            assert!(
                (found.error / error - 1.0).abs() < ERROR_TOLERANCE,
                "{title}: error {} instead of {error}",
                found.error
            );
        }
    }
}
