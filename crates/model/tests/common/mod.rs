//! Writes tiny checkpoints, right ones and wrong ones.
#![allow(dead_code)] // Each test file uses its part.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize_to_file};
use serde_json::{Value, json};
use sparamx_cpu::Cpu;
use sparamx_format::SparseBf16;
use sparamx_format::container::{self, TensorOut};
use sparamx_kernels::Runtime;
use sparamx_model::{Checkpoint, Config, ModelError, plan};

/// A tensor to write.
#[derive(Clone)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// A checkpoint to write: change what should be wrong, then write it.
pub struct Files {
    pub config: Value,
    pub tensors: BTreeMap<String, Tensor>,
}

impl Files {
    /// A model of two layers in F32, all values exact in bf16, with the fields of `changes` in its config.
    pub fn new(changes: Value) -> Self {
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2,
            "num_attention_heads": 3, "num_key_value_heads": 1, "vocab_size": 40, "max_position_embeddings": 64
        });
        for (field, value) in changes.as_object().unwrap() {
            config[field] = value.clone();
        }
        let parsed = Config::from_json(config.to_string().as_bytes(), Path::new("test")).unwrap();
        let tensor = |t: plan::TensorPlan| {
            let values: Vec<f32> = (0..t.elements())
                .map(|i| ((i * 7 + 3) % 16) as f32 / 16.0 - 0.5)
                .collect();
            (t.name, Tensor::f32(t.shape, &values))
        };
        Self {
            config,
            tensors: plan::tensors(&parsed).into_iter().map(tensor).collect(),
        }
    }

    /// Writes config.json and one file.
    pub fn write(&self, dir: &Path) {
        self.write_config(dir);
        write_tensors(&self.tensors, &dir.join("model.safetensors"));
    }

    pub fn write_config(&self, dir: &Path) {
        std::fs::write(dir.join("config.json"), self.config.to_string()).unwrap();
    }

    /// Writes it to a folder of its own and opens that; the error's message follows if there is one.
    pub fn open(&self) -> Result<Checkpoint, ModelError> {
        let dir = tempfile::tempdir().unwrap();
        self.write(dir.path());
        Checkpoint::open(dir.path())
    }
}

impl Tensor {
    pub fn f32(shape: Vec<usize>, values: &[f32]) -> Self {
        Self {
            dtype: Dtype::F32,
            shape,
            bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }
}

/// Tensors of a file by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// The tensors of a file.
pub fn read_tensors(path: &Path) -> Tensors {
    let file = container::TensorFile::open(path).unwrap();
    let names = file.names().into_iter();
    let tensor = |name: String| {
        let view = file.tensor(&name).unwrap();
        let tensor = Tensor {
            dtype: view.dtype,
            shape: view.shape,
            bytes: view.bytes.to_vec(),
        };
        (name, tensor)
    };
    names.map(tensor).collect()
}

pub fn write_tensors(tensors: &BTreeMap<String, Tensor>, path: &Path) {
    let views = tensors.iter().map(|(name, t)| {
        (
            name,
            TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap(),
        )
    });
    serialize_to_file(views, None, path).unwrap();
}

pub fn runtime() -> Runtime {
    Runtime::new(Cpu::detect().unwrap(), 1).unwrap()
}

/// Writes the same checkpoint with every projection and the output head packed.
pub fn write_packed(from: &Checkpoint, mut config: Value, dir: &Path) {
    config["quantization_config"] =
        json!({"quant_method": "sparamx", "layout": "strip16", "version": 1});
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let packed = |name: &str| {
        let rows = from.raw_rows(name).unwrap();
        SparseBf16::pack(&rows.bits, rows.n, rows.k).unwrap()
    };
    let matrices = from.plan().iter().filter(|t| t.role.may_be_packed());
    let packed: Vec<_> = matrices.map(|t| (&t.name, packed(&t.name))).collect();
    let others = from.plan().iter().filter(|t| !t.role.may_be_packed());
    let dense = others.map(|t| {
        let view = from.view(&t.name).unwrap();
        TensorOut::new(&t.name, view.dtype, view.shape, view.bytes)
    });
    let tensors = packed
        .iter()
        .flat_map(|(name, weight)| weight.tensors(name));
    let tensors: Vec<TensorOut> = dense.chain(tensors).collect();
    container::write(dir.join("model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
}
