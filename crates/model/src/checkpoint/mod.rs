//! A folder in Hugging Face layout: `config.json` and one safetensors file, or several with an index. Or a GGUF file.
//!
//! A tensor is plain (F32, F16, BF16) or packed (`<name>.values`, and `.mask`, `.offsets`, `.scale` as its format in the layout
//! `strip16` has them); one checkpoint may hold both. Other programs have other forms (`foreign`), which are read as if they
//! were plain or, where that gives the same values, as int8 and int4 weights. Opening compares names and shapes with
//! `config.json` and reads no matrices.

pub(crate) mod convert;
pub(crate) mod encoding;
pub(crate) mod files;
pub(crate) mod foreign;
mod own;
pub(crate) mod shards;
pub(crate) mod stored;
pub(crate) mod unneeded;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sparamx_format::container::{TensorFile, TensorView};
use sparamx_format::{Weight, WeightFormat};

use self::convert::{RawRows, Source};
use self::encoding::Encoding;
use self::foreign::compressed_tensors;
use self::foreign::gguf::{Found as InGguf, Gguf};
use self::own::PACKED;
use self::shards::Shards;
use self::stored::{At, Stored, Tensors, missing};
use self::unneeded::LeftOut;
use crate::config::small_file::read_small_file;
use crate::config::{Described, Storage};
use crate::families::plan::{self, TensorPlan};
use crate::{Config, ModelError};

/// An open checkpoint.
pub struct Checkpoint {
    dir: PathBuf,
    config: Config,
    files: Vec<(PathBuf, TensorFile)>,
    plan: Vec<TensorPlan>,
    /// Where each tensor of the plan is.
    stored: Vec<Stored>,
    /// Index in the plan.
    by_name: BTreeMap<String, usize>,
    notes: Vec<String>,
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
    pub packed: Option<WeightFormat>,
    /// The form in the file.
    pub encoding: Encoding,
    /// Bytes in the file.
    pub bytes: u64,
}

impl TensorInfo {
    /// The form in which a matrix is multiplied.
    pub fn weight_format(&self) -> WeightFormat {
        self.packed.unwrap_or(WeightFormat::DenseBf16)
    }
}

impl Checkpoint {
    /// Opens a folder, or a GGUF file, and checks that it holds the tensors that its `config.json` (its metadata) asks for, in
    /// their shapes, and no others that would make a difference. [`Checkpoint::notes`] says what was passed over.
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
        let json = read_small_file(&path)?.ok_or_else(|| ModelError::not_found(&path))?;
        let Described {
            mut config,
            storage,
            mut notes,
        } = Config::describe(&json, &path)?;
        let shards = Shards::open(dir, &config)?;
        let mut left_out = LeftOut::default();
        let (plan, stored) = match storage {
            Storage::CompressedTensors => {
                let tensors = compressed_tensors::Modules::new(dir, &shards);
                locate(tensors, &shards, &mut config, &mut notes, &mut left_out)?
            }
            Storage::Plain | Storage::Packed(_) => {
                let tensors = own::Named::new(dir, &shards)?;
                locate(tensors, &shards, &mut config, &mut notes, &mut left_out)?
            }
        };
        notes.extend(left_out.note());
        Ok(Self::new(dir, config, shards.files, plan, stored, notes))
    }

    fn open_gguf(path: &Path) -> Result<Self, ModelError> {
        let gguf = Gguf::open(path)?;
        let (config, mut notes) = gguf.config()?;
        let plan = plan::tensors(&config);
        let mut left_out = LeftOut::default();
        let stored = gguf.tensors(&config, &plan, &mut left_out)?;
        let stored = stored.into_iter().map(|found| match found {
            InGguf::Matrix(foreign) => Stored::Foreign(foreign),
            InGguf::Vector(vector) => Stored::Vector(vector),
        });
        let stored = stored.collect();
        notes.extend(left_out.note());
        Ok(Self::new(path, config, Vec::new(), plan, stored, notes))
    }

    fn new(
        dir: &Path,
        config: Config,
        files: Vec<(PathBuf, TensorFile)>,
        plan: Vec<TensorPlan>,
        stored: Vec<Stored>,
        notes: Vec<String>,
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
            notes,
        }
    }

    /// What users should know about the files: a line each on what contradicts itself, is left out, or was corrected.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The model's shape, as the files have it: `tie_word_embeddings` is false if they have an output head of their own, whatever
    /// `config.json` says.
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
            Stored::Packed(at, _) => {
                let (path, file) = &self.files[at.file];
                convert::expand(&Weight::read(file, &at.name, n, k)?, path, name)
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
            Stored::Packed(at, _) => {
                let (n, k) = self.matrix(name)?;
                Ok(Some(Weight::read(&self.files[at.file].1, &at.name, n, k)?))
            }
            Stored::Foreign(foreign) => foreign.weight(&self.plan[i]),
        }
    }

    /// Quantized matrices that linear layers have in bf16, because int8 and int4 weights cannot hold the same values: how
    /// many there are, and why, for the first of them. Reads them, unless that was done before.
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
        match self.packed(name)? {
            Some(weight) => Ok(weight.nnz()),
            None => {
                let rows = self.raw_rows(name)?;
                // All bits but the sign: -0.0 is a zero.
                Ok(rows.bits.iter().filter(|&&bits| bits & 0x7fff != 0).count())
            }
        }
    }

    /// A norm or a bias, or a plain matrix, as it is in the file.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`] for a name that is neither.
    pub fn view(&self, name: &str) -> Result<TensorView<'_>, ModelError> {
        let view = match &self.stored[self.index(name)?] {
            Stored::Plain(at) => self.files[at.file].1.tensor(&at.name),
            Stored::Vector(vector) => Some(vector.view()),
            Stored::Packed(..) | Stored::Foreign(_) => None,
        };
        view.ok_or_else(|| missing(&self.dir, name))
    }

    /// Gives the memory of a tensor that was read back to the system ([`TensorFile::release`]); it can be read again. For
    /// walks through a model larger than memory.
    pub fn release(&self, name: &str) {
        let Ok(i) = self.index(name) else {
            return;
        };
        match &self.stored[i] {
            Stored::Plain(at) => self.files[at.file].1.release(&at.name),
            Stored::Packed(at, _) => PACKED.iter().for_each(|suffix| {
                let part = format!("{}{suffix}", at.name);
                self.files[at.file].1.release(&part);
            }),
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
            Stored::Plain(at) | Stored::Packed(at, _) => &self.files[at.file].0,
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
        let bytes = |at: &At, suffixes: &[&str]| {
            let file = &self.files[at.file].1;
            let part = |suffix| file.tensor(&format!("{}{suffix}", at.name));
            let parts = suffixes.iter().filter_map(part);
            parts.map(|part| part.bytes.len() as u64).sum()
        };
        let (dtype, packed, encoding, bytes) = match at {
            Stored::Plain(at) => {
                let view = self.files[at.file].1.tensor(&at.name);
                let dtype = view.map(|view| format!("{:?}", view.dtype));
                (
                    dtype.unwrap_or_default(),
                    None,
                    Encoding::Dense,
                    bytes(at, &[""]),
                )
            }
            Stored::Packed(at, format) => {
                let encoding = if format.is_sparse() {
                    Encoding::Strip16
                } else {
                    Encoding::Dense
                };
                let dtype = format.element().dtype_name().to_owned();
                (dtype, Some(*format), encoding, bytes(at, &PACKED))
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

/// The plan, and where its tensors are. Where `config.json` says that the embedding and the output head are one matrix, the files
/// decide, as in Transformers 5: a head that is another matrix is used, and one without an embedding is the embedding, too.
fn locate(
    mut tensors: impl Tensors,
    shards: &Shards,
    config: &mut Config,
    notes: &mut Vec<String>,
    left_out: &mut LeftOut,
) -> Result<(Vec<TensorPlan>, Vec<Stored>), ModelError> {
    if config.tie_word_embeddings && tensors.has(plan::HEAD) {
        if !tensors.has(plan::EMBEDDING) {
            tensors.head_is_embedding();
        } else if !shards.equal(plan::EMBEDDING, plan::HEAD) {
            config.tie_word_embeddings = false;
            notes.push(format!(
                "config.json ties the output head to the embedding, and the files have an '{}' that differs: it is used; set \
                 tie_word_embeddings to false to say the same in both",
                plan::HEAD
            ));
        }
    }
    let plan = plan::tensors(config);
    let stored = tensors.find(config, &plan, left_out)?;
    Ok((plan, stored))
}
