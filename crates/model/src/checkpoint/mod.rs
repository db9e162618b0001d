//! A folder in Hugging Face layout: `config.json` and one safetensors file, or several with an index. Or a GGUF file.
//!
//! A tensor is plain (F32, F16, BF16) or packed (`<name>.values`, and `.mask`, `.offsets`, `.scale` as its format in the layout
//! `strip16` has them); one checkpoint may hold both. Other programs have other forms (`foreign`), which are read as if they
//! were plain or, where that gives the same numbers, as int8 and int4 weights. Opening compares names and shapes with
//! `config.json` and reads no matrices.

use std::collections::{BTreeMap, HashSet};
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};
use sparamx_format::container::{self, PackedFormat, PackedWeight, TensorFile, TensorView};
use sparamx_kernels::Weight;
use sparamx_kernels::linear::WeightFormat;

use crate::config::Storage;
use crate::convert::{self, RawRows, Source};
use crate::foreign::compressed_tensors::{Found as InTensors, Tensors};
use crate::foreign::gguf::{Found as InGguf, Gguf};
use crate::foreign::{Foreign, Vector};
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
enum Stored {
    /// A tensor of the same name, by index of the file.
    Plain(usize),
    /// A packed weight, by index of the file.
    Packed(usize, PackedFormat),
    /// A matrix in another program's form.
    Foreign(Foreign),
    /// A norm or bias in another program's form.
    Vector(Vector),
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
    /// The form in which linear layers have a packed or quantized weight; `None` for one that they have in bf16.
    pub packed: Option<PackedFormat>,
    /// What the form in the file is called, for people: `dense` for a plain tensor, `strip16` for one packed by this program.
    pub encoding: &'static str,
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
    /// Opens a folder, or a GGUF file, and checks that it holds the tensors that its `config.json` (its metadata) asks for, in
    /// their shapes, and no others.
    ///
    /// # Errors
    /// Those of [`Config::from_file`]; [`ModelError::Io`], [`ModelError::NoWeights`], [`ModelError::Json`] or
    /// [`ModelError::BadField`] (an index), [`ModelError::MissingShard`], [`ModelError::MissingTensor`],
    /// [`ModelError::UnexpectedTensor`], [`ModelError::Shape`], [`ModelError::Dtype`], [`ModelError::Precision`];
    /// [`ModelError::Format`] for a container that is damaged.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        if dir.is_file() {
            return Self::open_gguf(dir);
        }
        let path = dir.join("config.json");
        let json = std::fs::read(&path).map_err(|e| ModelError::io(&path, e))?;
        let (config, storage) = Config::with_storage(&json, &path)?;
        let plan = plan::tensors(&config);
        let (files, physical) = open_files(dir)?;
        let stored = match storage {
            Storage::CompressedTensors => {
                compressed_tensors(&config, dir, &plan, &files, &physical)?
            }
            Storage::Plain | Storage::Packed(_) => own(&config, dir, &plan, &files, physical)?,
        };
        Ok(Self::new(dir, config, files, plan, stored))
    }

    fn open_gguf(path: &Path) -> Result<Self, ModelError> {
        let gguf = Gguf::open(path)?;
        let json = gguf.side_file("config.json")?.unwrap_or_default();
        let config = Config::from_json(&json, path)?;
        let plan = plan::tensors(&config);
        let stored = gguf.tensors(&config, &plan)?;
        let stored = stored.into_iter().map(|found| match found {
            InGguf::Matrix(foreign) => Stored::Foreign(foreign),
            InGguf::Vector(vector) => Stored::Vector(vector),
        });
        let stored = stored.collect();
        Ok(Self::new(path, config, Files::new(), plan, stored))
    }

    fn new(
        dir: &Path,
        config: Config,
        files: Files,
        plan: Vec<TensorPlan>,
        stored: Vec<Stored>,
    ) -> Self {
        let names = plan.iter().enumerate();
        let by_name = names.map(|(i, tensor)| (tensor.name.clone(), i)).collect();
        Self {
            dir: dir.to_owned(),
            config,
            files,
            plan,
            stored,
            by_name,
        }
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The folder, or the GGUF file; see [`crate::model_file`] for what else there is of the model.
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
        let i = self.index(name)?;
        match &self.stored[i] {
            Stored::Plain(_) | Stored::Vector(_) => self.source(name)?.rows(n, k),
            Stored::Packed(file, format) => {
                let (path, file) = &self.files[*file];
                convert::expand(&read_packed(file, *format, name, n, k)?, path, name)
            }
            Stored::Foreign(foreign) => foreign.rows(&self.plan[i]),
        }
    }

    /// A norm or a bias, in f32.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`] for a name that is no tensor of the plan, or [`ModelError::NotFinite`].
    pub fn vector(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        self.source(name)?.vector()
    }

    /// A packed or quantized weight, validated and where possible mapped; nothing if linear layers have it in bf16.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`] for a name that is no tensor of the plan, or [`ModelError::Format`] for a damaged one.
    pub fn packed(&self, name: &str) -> Result<Option<Weight>, ModelError> {
        let i = self.index(name)?;
        match &self.stored[i] {
            Stored::Plain(_) | Stored::Vector(_) => Ok(None),
            Stored::Packed(file, format) => {
                let (n, k) = self.matrix(name)?;
                read_packed(&self.files[*file].1, *format, name, n, k).map(Some)
            }
            Stored::Foreign(foreign) => foreign.weight(&self.plan[i]),
        }
    }

    /// Quantized matrices that linear layers have in bf16, because int8 and int4 weights cannot hold the same numbers: how
    /// many there are, and why, for the first of them. Reads them, if nobody has yet.
    pub fn dequantized(&self) -> Option<(usize, &'static str)> {
        let mut reasons = self
            .plan
            .iter()
            .zip(&self.stored)
            .filter_map(|(tensor, at)| match at {
                Stored::Foreign(foreign) => foreign.why_not_levels(tensor),
                _ => None,
            });
        let first = reasons.next()?;
        Some((1 + reasons.count(), first))
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

    /// A norm or a bias, or a plain matrix, as it is in the file.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`] for a name that is neither.
    pub fn view(&self, name: &str) -> Result<TensorView<'_>, ModelError> {
        let view = match &self.stored[self.index(name)?] {
            Stored::Plain(file) => self.files[*file].1.tensor(name),
            Stored::Vector(vector) => Some(vector.view()),
            Stored::Packed(..) | Stored::Foreign(_) => None,
        };
        view.ok_or_else(|| missing(&self.dir, name))
    }

    /// Gives the memory of a tensor that was read back to the system ([`TensorFile::release`]); it can be read again. For
    /// whoever goes through a model larger than memory.
    pub fn release(&self, name: &str) {
        let Ok(i) = self.index(name) else {
            return;
        };
        match &self.stored[i] {
            Stored::Plain(file) => self.files[*file].1.release(name),
            Stored::Packed(file, _) => PACKED
                .iter()
                .for_each(|suffix| self.files[*file].1.release(&format!("{name}{suffix}"))),
            Stored::Foreign(foreign) => foreign.source.release(),
            // It was decoded when the checkpoint was opened.
            Stored::Vector(_) => {}
        }
    }

    /// The files of weights.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let gguf = self.files.is_empty().then_some(self.dir.as_path());
        let files = self.files.iter().map(|(path, _)| path.as_path());
        files.chain(gguf)
    }

    fn source(&self, name: &str) -> Result<Source<'_, '_>, ModelError> {
        let i = self.index(name)?;
        let path = match &self.stored[i] {
            Stored::Plain(file) | Stored::Packed(file, _) => &self.files[*file].0,
            Stored::Foreign(foreign) => &foreign.path,
            Stored::Vector(vector) => &vector.path,
        };
        Source::new(path, &self.plan[i].name, &self.view(name)?)
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
        let bytes = |file: &usize, suffixes: &[&str]| {
            let file = &self.files[*file].1;
            let part = |suffix| file.tensor(&format!("{}{suffix}", tensor.name));
            let parts = suffixes.iter().filter_map(part);
            parts.map(|part| part.bytes.len() as u64).sum()
        };
        let (dtype, packed, encoding, bytes) = match at {
            Stored::Plain(file) => {
                let dtype = self.files[*file]
                    .1
                    .tensor(&tensor.name)
                    .map(|view| format!("{:?}", view.dtype));
                (dtype.unwrap_or_default(), None, "dense", bytes(file, &[""]))
            }
            Stored::Packed(file, format) => {
                let dtype = match format {
                    PackedFormat::SparseBf16 => "BF16",
                    PackedFormat::SparseI8 | PackedFormat::DenseI8 => "I8",
                    PackedFormat::SparseI4 | PackedFormat::DenseI4 => "I4",
                };
                let encoding = if format.is_sparse() {
                    "strip16"
                } else {
                    "dense"
                };
                (
                    dtype.to_owned(),
                    Some(*format),
                    encoding,
                    bytes(file, &PACKED),
                )
            }
            Stored::Foreign(foreign) => (
                foreign.dtype.clone(),
                foreign.form(tensor),
                foreign.encoding,
                foreign.bytes,
            ),
            Stored::Vector(vector) => (
                format!("{:?}", vector.dtype),
                None,
                vector.encoding,
                vector.bytes,
            ),
        };
        TensorInfo {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            dtype,
            packed,
            encoding,
            bytes,
        }
    }
}

/// A weight that this program packed.
fn read_packed(
    file: &TensorFile,
    format: PackedFormat,
    name: &str,
    n: usize,
    k: usize,
) -> Result<Weight, ModelError> {
    Ok(match format {
        PackedFormat::SparseBf16 => Weight::SparseBf16(container::sparse_bf16(file, name, n, k)?),
        PackedFormat::SparseI8 => Weight::SparseI8(container::sparse_i8(file, name, n, k)?),
        PackedFormat::DenseI8 => Weight::DenseI8(container::dense_i8(file, name, n, k)?),
        PackedFormat::SparseI4 => Weight::SparseI4(container::sparse_i4(file, name, n, k)?),
        PackedFormat::DenseI4 => Weight::DenseI4(container::dense_i4(file, name, n, k)?),
    })
}

/// Where the tensors of the plan are in files with plain tensors and those that this program packed.
fn own(
    config: &Config,
    dir: &Path,
    plan: &[TensorPlan],
    files: &Files,
    physical: BTreeMap<String, usize>,
) -> Result<Vec<Stored>, ModelError> {
    let mut found = logical(dir, files, physical)?;
    let mut stored = Vec::with_capacity(plan.len());
    for tensor in plan {
        let at = found
            .remove(&tensor.name)
            .ok_or_else(|| missing(dir, &tensor.name))?;
        let packed = check(config, dir, tensor, &at, &files[at.file])?;
        stored.push(match packed {
            None => Stored::Plain(at.file),
            Some(format) => Stored::Packed(at.file, format),
        });
    }
    let unexpected = |name: &String| !plan::is_ignored(config, name);
    match found.into_keys().find(unexpected) {
        None => Ok(stored),
        Some(tensor) => Err(ModelError::UnexpectedTensor {
            dir: dir.to_owned(),
            tensor,
        }),
    }
}

/// Where they are in files of compressed-tensors.
fn compressed_tensors(
    config: &Config,
    dir: &Path,
    plan: &[TensorPlan],
    files: &Files,
    names: &BTreeMap<String, usize>,
) -> Result<Vec<Stored>, ModelError> {
    let mut tensors = Tensors {
        dir,
        files,
        names,
        used: HashSet::new(),
    };
    let stored = plan
        .iter()
        .map(|tensor| {
            Ok(match tensors.find(tensor)? {
                InTensors::Plain(file) => Stored::Plain(file),
                InTensors::Matrix(foreign) => Stored::Foreign(foreign),
                InTensors::Vector(vector) => Stored::Vector(vector),
            })
        })
        .collect::<Result<_, ModelError>>()?;
    tensors.check_unused(config)?;
    Ok(stored)
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
