//! Writes a checkpoint of random bf16 weights in the shape of a well-known model, to try on disk what needs no trained weights:
//!
//! ```text
//! cargo run --release -p sparamx-model --example random_checkpoint -- llama3-8b DIR
//! ```
//!
//! One decoder layer is in memory at a time. The same bytes every time.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use serde_json::{Map, json};
use sparamx_format::container::{self, Dtype, TensorOut};
use sparamx_kernels::linear::WeightFormat;
use sparamx_model::plan::{self, TensorPlan};
use sparamx_model::{random_weight, shapes};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [shape, dir] = &args[..] else {
        let names = shapes::names().join(", ");
        return Err(format!("usage: random_checkpoint SHAPE DIR; shapes are {names}").into());
    };
    let (dir, plan) = (Path::new(dir), plan::tensors(&shapes::config(shape)?));
    std::fs::create_dir_all(dir)?;
    let files: Vec<&[TensorPlan]> = plan.chunk_by(|a, b| a.layer() == b.layer()).collect();
    let (mut weight_map, mut total_size, mut seed) = (Map::new(), 0, 0);
    for (number, tensors) in files.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", number + 1, files.len());
        let mut data = Vec::new();
        for tensor in *tensors {
            seed += 1;
            data.push(elements(tensor, seed)?);
        }
        let pairs = tensors.iter().zip(&data);
        let out: Vec<TensorOut<'_>> = pairs
            .map(|(tensor, bits)| {
                let bytes = bytemuck::cast_slice(bits);
                TensorOut::new(&tensor.name, Dtype::BF16, tensor.shape.clone(), bytes)
            })
            .collect();
        container::write(dir.join(&name), &out, &BTreeMap::new())?;
        total_size += out.iter().map(TensorOut::bytes).sum::<usize>();
        weight_map.extend(
            out.iter()
                .map(|tensor| (tensor.name().to_owned(), json!(name))),
        );
        eprintln!("{name}");
    }
    let index = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string())?;
    std::fs::write(dir.join("config.json"), shapes::json(shape)?)?;
    Ok(())
}

/// Random elements of a matrix; ones of a norm, zeros of a bias.
fn elements(tensor: &TensorPlan, seed: u64) -> Result<Vec<u16>, Box<dyn Error>> {
    const ONE: u16 = 0x3f80;
    match tensor.shape[..] {
        [n, k] => {
            let weight = random_weight(WeightFormat::DenseBf16, n, k, 0.0, seed)?;
            Ok(weight.bits().expect("bf16 was asked for"))
        }
        _ if tensor.name.ends_with(".bias") => Ok(vec![0; tensor.shape[0]]),
        _ => Ok(vec![ONE; tensor.shape[0]]),
    }
}
