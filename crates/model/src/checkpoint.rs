//! A folder in Hugging Face layout: `config.json` and one safetensors file, or several with an index.
//!
//! A tensor is plain (F32, F16, BF16) or packed (`<name>.values`, and `.mask`, `.offsets`, `.scale` as its format in the layout
//! `strip16` has them); one checkpoint may hold both. Opening compares names and shapes with `config.json` and reads no weights.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};
use sparamx_format::container::{self, PackedFormat, PackedWeight, TensorFile, TensorView};
use sparamx_kernels::Weight;
use sparamx_kernels::linear::WeightFormat;

use crate::convert::{self, RawRows, Source};
use crate::plan::{self, TensorPlan};
use crate::{Config, ModelError, Precision};

/// Suffixes of the tensors of a packed weight. That with the masks makes a weight a packed one, and so does an entry in the
/// header for a format without masks.
const PACKED: [&str; 4] = [MASK, VALUES, ".offsets", ".scale"];
const MASK: &str = ".mask";
const VALUES: &str = ".values";

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
    /// `None` for a plain tensor.
    packed: Option<PackedFormat>,
}

/// A tensor, or the tensors of a packed weight, as the files' names show it.
struct Found {
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
    /// Element type, as safetensors names it; `I4` for int4, for which it has no name.
    pub dtype: String,
    /// How a packed or quantized weight is stored; `None` for a plain tensor.
    pub packed: Option<PackedFormat>,
    /// Bytes in the file.
    pub bytes: u64,
}

impl TensorInfo {
    /// The form in which a matrix is multiplied.
    pub fn weight_format(&self) -> WeightFormat {
        match self.packed {
            None => WeightFormat::DenseBf16,
            Some(PackedFormat::SparseBf16) => WeightFormat::SparseBf16,
            Some(PackedFormat::SparseI8) => WeightFormat::SparseI8,
            Some(PackedFormat::DenseI8) => WeightFormat::DenseI8,
            Some(PackedFormat::SparseI4) => WeightFormat::SparseI4,
            Some(PackedFormat::DenseI4) => WeightFormat::DenseI4,
        }
    }
}

impl Checkpoint {
    /// Opens a folder and checks that it holds the tensors that its `config.json` asks for, in their shapes, and no others.
    ///
    /// # Errors
    /// Those of [`Config::from_file`]; [`ModelError::Io`], [`ModelError::NoWeights`], [`ModelError::Json`] or
    /// [`ModelError::BadField`] (an index), [`ModelError::MissingShard`], [`ModelError::MissingTensor`],
    /// [`ModelError::UnexpectedTensor`], [`ModelError::Shape`], [`ModelError::Dtype`], [`ModelError::Precision`];
    /// [`ModelError::Format`] for a container that is damaged.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let config = Config::from_file(&dir.join("config.json"))?;
        let (files, physical) = open_files(dir)?;
        let mut found = logical(dir, &files, physical)?;
        let plan = plan::tensors(&config);
        let mut stored = Vec::with_capacity(plan.len());
        for tensor in &plan {
            let at = found
                .remove(&tensor.name)
                .ok_or_else(|| missing(dir, &tensor.name))?;
            let packed = check(&config, dir, tensor, &at, &files[at.file])?;
            let file = at.file;
            stored.push(Stored { file, packed });
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

    /// A matrix `[N, K]` as bf16: a plain one converted, a packed one expanded, a quantized one rounded.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`] for a name that is no matrix of the plan, [`ModelError::NotFinite`], or
    /// [`ModelError::Format`] for a damaged packed weight.
    pub fn raw_rows(&self, name: &str) -> Result<RawRows<'_>, ModelError> {
        let (n, k) = self.matrix(name)?;
        match self.packed(name)? {
            None => self.source(name)?.rows(n, k),
            Some(weight) => {
                let path = &self.files[self.stored[self.index(name)?].file].0;
                convert::expand(&weight, path, name)
            }
        }
    }

    /// A norm or a bias, in f32.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`] for a name that is no tensor of the plan, or [`ModelError::NotFinite`].
    pub fn vector(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        self.source(name)?.vector()
    }

    /// A packed or quantized weight, mapped and validated; nothing if it is a plain tensor.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`] for a name that is no tensor of the plan, or [`ModelError::Format`] for a damaged one.
    pub fn packed(&self, name: &str) -> Result<Option<Weight>, ModelError> {
        let at = &self.stored[self.index(name)?];
        let Some(format) = at.packed else {
            return Ok(None);
        };
        let (n, k) = self.matrix(name)?;
        let file = &self.files[at.file].1;
        Ok(Some(match format {
            PackedFormat::SparseBf16 => {
                Weight::SparseBf16(container::sparse_bf16(file, name, n, k)?)
            }
            PackedFormat::SparseI8 => Weight::SparseI8(container::sparse_i8(file, name, n, k)?),
            PackedFormat::DenseI8 => Weight::DenseI8(container::dense_i8(file, name, n, k)?),
            PackedFormat::SparseI4 => Weight::SparseI4(container::sparse_i4(file, name, n, k)?),
            PackedFormat::DenseI4 => Weight::DenseI4(container::dense_i4(file, name, n, k)?),
        }))
    }

    /// Number of elements that are not zero; reads the whole tensor.
    ///
    /// # Errors
    /// Those of [`Checkpoint::raw_rows`] and [`Checkpoint::vector`].
    pub fn nnz(&self, name: &str) -> Result<usize, ModelError> {
        if self.matrix(name).is_err() {
            return Ok(self.vector(name)?.iter().filter(|&&v| v != 0.0).count());
        }
        let non_zero = |levels: Vec<i8>| levels.iter().filter(|&&level| level != 0).count();
        Ok(match self.packed(name)? {
            Some(Weight::SparseBf16(weight)) => weight.nnz(),
            Some(Weight::SparseI8(weight)) => weight.nnz(),
            Some(Weight::SparseI4(weight)) => weight.nnz(),
            Some(Weight::DenseI8(weight)) => non_zero(weight.to_rows()),
            Some(Weight::DenseI4(weight)) => non_zero(weight.to_rows()),
            Some(Weight::DenseBf16(_)) | None => {
                let rows = self.raw_rows(name)?;
                // All bits but the sign: -0.0 is a zero.
                rows.bits.iter().filter(|&&bits| bits & 0x7fff != 0).count()
            }
        })
    }

    /// A plain tensor as it is in the file.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`] for a name that is no plain tensor of the plan.
    pub fn view(&self, name: &str) -> Result<TensorView<'_>, ModelError> {
        let at = &self.stored[self.index(name)?];
        self.files[at.file]
            .1
            .tensor(name)
            .ok_or_else(|| missing(&self.dir, name))
    }

    /// Gives the memory of a tensor that was read back to the system ([`TensorFile::release`]); it can be read again. For
    /// whoever goes through a model larger than memory.
    pub fn release(&self, name: &str) {
        let Ok(i) = self.index(name) else {
            return;
        };
        let file = &self.files[self.stored[i].file].1;
        for suffix in PACKED.iter().chain(&[""]) {
            file.release(&format!("{name}{suffix}"));
        }
    }

    /// The files of weights.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
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
        let suffixes: &[&str] = if at.packed.is_some() { &PACKED } else { &[""] };
        let part = |suffix: &&str| file.tensor(&format!("{}{suffix}", tensor.name));
        let dtype = match at.packed {
            None => part(&"").map_or(String::new(), |part| format!("{:?}", part.dtype)),
            Some(PackedFormat::SparseBf16) => "BF16".to_owned(),
            Some(PackedFormat::SparseI8 | PackedFormat::DenseI8) => "I8".to_owned(),
            Some(PackedFormat::SparseI4 | PackedFormat::DenseI4) => "I4".to_owned(),
        };
        let parts = suffixes.iter().filter_map(part);
        TensorInfo {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            dtype,
            packed: at.packed,
            bytes: parts.map(|part| part.bytes.len() as u64).sum(),
        }
    }
}

fn missing(dir: &Path, name: &str) -> ModelError {
    ModelError::MissingTensor {
        dir: dir.to_owned(),
        tensor: name.to_owned(),
    }
}

/// A tensor against what the configuration asks for; how it is packed, if it is. Shapes inside a packed one are checked when it
/// is mapped.
fn check(
    config: &Config,
    dir: &Path,
    tensor: &TensorPlan,
    at: &Found,
    (path, file): &(PathBuf, TensorFile),
) -> Result<Option<PackedFormat>, ModelError> {
    if at.packed {
        let part = |suffix| format!("{}{suffix}", tensor.name);
        let Some(expected) = config.packed.filter(|_| tensor.role.may_be_packed()) else {
            let masks = file.tensor(&part(MASK)).is_some();
            return Err(ModelError::UnexpectedTensor {
                dir: dir.to_owned(),
                tensor: part(if masks { MASK } else { VALUES }),
            });
        };
        let packed = container::packed_weight(file, &tensor.name)?;
        // The masks are in another file than the last of the other tensors.
        let packed = packed.ok_or_else(|| missing(path, &part(MASK)))?;
        let found = precision(&packed);
        if found != expected {
            return Err(ModelError::Precision {
                path: path.clone(),
                tensor: tensor.name.clone(),
                expected,
                found,
            });
        }
        return Ok(Some(packed.format));
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
    Source::new(path, &tensor.name, &view).map(|_| None)
}

/// The numbers that a packed weight consists of, by the words of the configuration.
fn precision(packed: &PackedWeight) -> Precision {
    match (packed.format, packed.group_elems) {
        (PackedFormat::SparseBf16, _) => Precision::Bf16,
        (PackedFormat::SparseI4 | PackedFormat::DenseI4, Some(group_elems)) => {
            Precision::Int4 { group_elems }
        }
        // int4 has groups: a file that says otherwise was refused.
        _ => Precision::Int8,
    }
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
    files: &Files,
    physical: BTreeMap<String, usize>,
) -> Result<BTreeMap<String, Found>, ModelError> {
    let packed_weight = |name: &str, file: usize| {
        let weight = PACKED.iter().find_map(|suffix| name.strip_suffix(suffix))?;
        let packed = physical.contains_key(&format!("{weight}{MASK}"))
            || files[file]
                .1
                .metadata(&format!("{weight}.format"))
                .is_some();
        packed.then(|| weight.to_owned())
    };
    let mut tensors = BTreeMap::new();
    for (name, &file) in &physical {
        let (name, packed) = match packed_weight(name, file) {
            // It cannot be both.
            Some(weight) if physical.contains_key(&weight) => {
                return Err(ModelError::UnexpectedTensor {
                    dir: dir.to_owned(),
                    tensor: name.clone(),
                });
            }
            Some(weight) => (weight, true),
            None => (name.clone(), false),
        };
        tensors.insert(name, Found { file, packed });
    }
    Ok(tensors)
}
