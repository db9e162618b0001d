//! A folder in Hugging Face layout: `config.json` and one safetensors file, or several with an index.
//!
//! A tensor is dense (F32, F16, BF16) or packed (`<name>.mask`, `.values`, `.offsets` in the layout `strip16`); one checkpoint
//! may hold both. Opening compares names and shapes with `config.json` and reads no weights.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};
use sparamx_format::SparseBf16;
use sparamx_format::container::{self, TensorFile, TensorView};

use crate::convert::{RawRows, Source};
use crate::plan::{self, TensorPlan};
use crate::{Config, ModelError};

/// Suffix of the tensor that makes a weight a packed one.
const MASK: &str = ".mask";
/// Suffixes of the tensors of a packed weight.
const PACKED: [&str; 3] = [MASK, ".values", ".offsets"];

/// An open checkpoint.
pub struct Checkpoint {
    dir: PathBuf,
    config: Config,
    files: Files,
    plan: Vec<TensorPlan>,
    /// Where each tensor of the plan is.
    stored: Vec<Stored>,
    /// Index in the plan.
    by_name: BTreeMap<String, usize>,
}

type Files = Vec<(PathBuf, TensorFile)>;

/// Where a tensor is.
struct Stored {
    /// Index of the file.
    file: usize,
    packed: bool,
}

/// A tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// `[N, K]`, or `[N]` for norms and biases.
    pub shape: Vec<usize>,
    /// Element type, as safetensors names it.
    pub dtype: String,
    /// Stored as mask, values and offsets.
    pub packed: bool,
    /// Bytes in the file.
    pub bytes: u64,
}

impl Checkpoint {
    /// Opens a folder and checks that it holds the tensors that its `config.json` asks for, in their shapes, and no others.
    ///
    /// # Errors
    /// Those of [`Config::from_file`]; [`ModelError::Io`], [`ModelError::NoWeights`], [`ModelError::Json`] or
    /// [`ModelError::BadField`] (an index), [`ModelError::MissingShard`], [`ModelError::MissingTensor`],
    /// [`ModelError::UnexpectedTensor`], [`ModelError::Shape`], [`ModelError::Dtype`]; [`ModelError::Format`] for a container
    /// that is damaged.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let config = Config::from_file(&dir.join("config.json"))?;
        let (files, physical) = open_files(dir)?;
        let mut found = logical(dir, physical)?;
        let plan = plan::tensors(&config);
        let mut stored = Vec::with_capacity(plan.len());
        for tensor in &plan {
            let at = found
                .remove(&tensor.name)
                .ok_or_else(|| missing(dir, &tensor.name))?;
            check(&config, dir, tensor, &at, &files[at.file])?;
            stored.push(at);
        }
        if let Some(name) = found
            .into_keys()
            .find(|name| !plan::is_ignored(&config, name))
        {
            return Err(ModelError::UnexpectedTensor {
                dir: dir.to_owned(),
                tensor: name,
            });
        }
        let by_name = plan
            .iter()
            .enumerate()
            .map(|(i, tensor)| (tensor.name.clone(), i))
            .collect();
        Ok(Self {
            dir: dir.to_owned(),
            config,
            files,
            plan,
            stored,
            by_name,
        })
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The tensors of the model in the order of the forward pass, with their use.
    pub fn plan(&self) -> &[TensorPlan] {
        &self.plan
    }

    /// What is stored for each tensor of [`Checkpoint::plan`], in the same order.
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo> + '_ {
        self.plan
            .iter()
            .zip(&self.stored)
            .map(|(tensor, at)| self.info(tensor, at))
    }

    /// A matrix `[N, K]` as bf16: a dense one converted, a packed one expanded.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`] for a name that is no matrix of the plan, [`ModelError::NotFinite`], or
    /// [`ModelError::Format`] for a damaged packed weight.
    pub fn raw_rows(&self, name: &str) -> Result<RawRows<'_>, ModelError> {
        if let Some(packed) = self.packed(name)? {
            let bits = Cow::Owned(packed.decode());
            return Ok(RawRows {
                n: packed.n(),
                k: packed.k(),
                bits,
                inexact: 0,
            });
        }
        let (n, k) = self.matrix(name)?;
        self.source(name)?.rows(n, k)
    }

    /// A norm or a bias, in f32.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`] for a name that is no tensor of the plan, or [`ModelError::NotFinite`].
    pub fn vector(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        self.source(name)?.vector()
    }

    /// A packed weight, mapped and validated; nothing if it is stored dense.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`] for a name that is no tensor of the plan, or [`ModelError::Format`] for a damaged one.
    pub fn packed(&self, name: &str) -> Result<Option<SparseBf16>, ModelError> {
        let at = &self.stored[self.index(name)?];
        if !at.packed {
            return Ok(None);
        }
        let (n, k) = self.matrix(name)?;
        Ok(Some(container::sparse_bf16(
            &self.files[at.file].1,
            name,
            n,
            k,
        )?))
    }

    /// Number of elements that are not zero; reads the whole tensor.
    ///
    /// # Errors
    /// Those of [`Checkpoint::raw_rows`] and [`Checkpoint::vector`].
    pub fn nnz(&self, name: &str) -> Result<usize, ModelError> {
        if let Some(packed) = self.packed(name)? {
            return Ok(packed.nnz());
        }
        match self.matrix(name) {
            // All bits but the sign: -0.0 is a zero.
            Ok(_) => Ok(self
                .raw_rows(name)?
                .bits
                .iter()
                .filter(|&&bits| bits & 0x7fff != 0)
                .count()),
            Err(_) => Ok(self.vector(name)?.iter().filter(|&&v| v != 0.0).count()),
        }
    }

    /// A dense tensor as it is in the file.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`] for a name that is no dense tensor of the plan.
    pub fn view(&self, name: &str) -> Result<TensorView<'_>, ModelError> {
        let at = &self.stored[self.index(name)?];
        self.files[at.file]
            .1
            .tensor(name)
            .ok_or_else(|| missing(&self.dir, name))
    }

    fn source(&self, name: &str) -> Result<Source<'_>, ModelError> {
        let i = self.index(name)?;
        Source::new(
            &self.files[self.stored[i].file].0,
            &self.plan[i].name,
            &self.view(name)?,
        )
    }

    fn index(&self, name: &str) -> Result<usize, ModelError> {
        self.by_name
            .get(name)
            .copied()
            .ok_or_else(|| missing(&self.dir, name))
    }

    fn matrix(&self, name: &str) -> Result<(usize, usize), ModelError> {
        match self.plan[self.index(name)?].shape[..] {
            [n, k] => Ok((n, k)),
            _ => Err(missing(&self.dir, name)),
        }
    }

    fn info(&self, tensor: &TensorPlan, at: &Stored) -> TensorInfo {
        let file = &self.files[at.file].1;
        let suffixes: &[&str] = if at.packed { &PACKED } else { &[""] };
        let parts = suffixes
            .iter()
            .filter_map(|suffix| file.tensor(&format!("{}{suffix}", tensor.name)));
        let parts: Vec<TensorView> = parts.collect();
        TensorInfo {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            // The values' of a packed one.
            dtype: parts
                .get(usize::from(at.packed))
                .map_or(String::new(), |part| format!("{:?}", part.dtype)),
            packed: at.packed,
            bytes: parts.iter().map(|part| part.bytes.len() as u64).sum(),
        }
    }
}

fn missing(dir: &Path, name: &str) -> ModelError {
    ModelError::MissingTensor {
        dir: dir.to_owned(),
        tensor: name.to_owned(),
    }
}

/// A tensor against what the configuration asks for. Shapes inside a packed one are checked when it is mapped.
fn check(
    config: &Config,
    dir: &Path,
    tensor: &TensorPlan,
    at: &Stored,
    (path, file): &(PathBuf, TensorFile),
) -> Result<(), ModelError> {
    if at.packed {
        if config.packed && tensor.role.may_be_packed() {
            return Ok(());
        }
        let name = format!("{}{MASK}", tensor.name);
        return Err(ModelError::UnexpectedTensor {
            dir: dir.to_owned(),
            tensor: name,
        });
    }
    let view = file
        .tensor(&tensor.name)
        .ok_or_else(|| missing(dir, &tensor.name))?;
    if view.shape != tensor.shape {
        return Err(ModelError::Shape {
            path: path.clone(),
            tensor: tensor.name.clone(),
            expected: tensor.shape.clone(),
            found: view.shape,
        });
    }
    Source::new(path, &tensor.name, &view).map(|_| ())
}

/// The files of a checkpoint, and the file of each tensor in them.
fn open_files(dir: &Path) -> Result<(Files, BTreeMap<String, usize>), ModelError> {
    let single = dir.join("model.safetensors");
    let index = dir.join("model.safetensors.index.json");
    if single.is_file() {
        let file = TensorFile::open(&single)?;
        let names = file.names().into_iter().map(|name| (name, 0)).collect();
        return Ok((vec![(single, file)], names));
    }
    if index.is_file() {
        return open_shards(dir, &index);
    }
    let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"]
        .iter()
        .any(|name| dir.join(name).is_file());
    let hint = if pickled {
        "only pytorch_model.bin here: save the model again with save_pretrained(..., safe_serialization=True)"
    } else {
        "neither model.safetensors nor model.safetensors.index.json here: give a folder in Hugging Face layout"
    };
    Err(ModelError::NoWeights {
        dir: dir.to_owned(),
        hint,
    })
}

fn open_shards(dir: &Path, index: &Path) -> Result<(Files, BTreeMap<String, usize>), ModelError> {
    let json = std::fs::read(index).map_err(|e| ModelError::io(index, e))?;
    let bad_json = |error: String| ModelError::Json {
        path: index.to_owned(),
        error,
    };
    let map: Map<String, Value> =
        serde_json::from_slice(&json).map_err(|e| bad_json(e.to_string()))?;
    let weight_map = map.get("weight_map").and_then(Value::as_object);
    let weight_map = weight_map.ok_or_else(|| ModelError::MissingField {
        path: index.to_owned(),
        field: "weight_map".to_owned(),
    })?;
    let (mut files, mut names) = (Files::new(), BTreeMap::new());
    for (tensor, shard) in weight_map {
        let path = dir.join(shard_name(index, tensor, shard)?);
        let file = match files.iter().position(|(known, _)| *known == path) {
            Some(file) => file,
            None if path.is_file() => {
                files.push((path.clone(), TensorFile::open(&path)?));
                files.len() - 1
            }
            None => {
                let shard = shard.as_str().unwrap_or_default().to_owned();
                return Err(ModelError::MissingShard {
                    index: index.to_owned(),
                    shard,
                    tensor: tensor.clone(),
                });
            }
        };
        if files[file].1.tensor(tensor).is_none() {
            return Err(ModelError::MissingTensor {
                dir: path,
                tensor: tensor.clone(),
            });
        }
        names.insert(tensor.clone(), file);
    }
    Ok((files, names))
}

/// The file that an index names. An index is input from elsewhere: it may not lead out of its folder.
fn shard_name<'a>(index: &Path, tensor: &str, shard: &'a Value) -> Result<&'a str, ModelError> {
    let name = shard.as_str().filter(|name| {
        let mut parts = Path::new(name).components();
        matches!(
            (parts.next(), parts.next()),
            (Some(Component::Normal(_)), None)
        )
    });
    name.ok_or_else(|| ModelError::BadField {
        path: index.to_owned(),
        field: format!("weight_map.{tensor}"),
        found: shard.to_string(),
        expected: "the name of a file in the same folder".to_owned(),
    })
}

/// Puts the tensors of each packed weight together.
fn logical(
    dir: &Path,
    physical: BTreeMap<String, usize>,
) -> Result<BTreeMap<String, Stored>, ModelError> {
    let packed_weight = |name: &str| {
        let weight = PACKED.iter().find_map(|suffix| name.strip_suffix(suffix))?;
        physical
            .contains_key(&format!("{weight}{MASK}"))
            .then(|| weight.to_owned())
    };
    let mut tensors = BTreeMap::new();
    for (name, &file) in &physical {
        match packed_weight(name) {
            // It cannot be both.
            Some(weight) if physical.contains_key(&weight) => {
                return Err(ModelError::UnexpectedTensor {
                    dir: dir.to_owned(),
                    tensor: name.clone(),
                });
            }
            Some(weight) => tensors.insert(weight, Stored { file, packed: true }),
            None => tensors.insert(
                name.clone(),
                Stored {
                    file,
                    packed: false,
                },
            ),
        };
    }
    Ok(tensors)
}
