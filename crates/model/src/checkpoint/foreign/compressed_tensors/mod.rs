//! Checkpoints written by compressed-tensors: bitmasks of both generations, levels in bytes and packed into words.
//!
//! A tensor `<module>.weight` is there as it is; as a bitmask, whose parts are called `<module>.weight.bitmask` and so on up to
//! version 0.8 of the package and `<module>.bitmask` from 0.9 on; as `<module>.weight_packed`; or as levels in int8, with a
//! bitmask or without. Scales and zero points of a module lie beside it, and up to version 0.8 may have bitmasks themselves.

mod tensor;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rayon::prelude::*;
use sparamx_format::container::{Dtype, TensorFile, TensorView};
use sparamx_format::words;

use self::tensor::{PARTS, Part, Tensor};
use super::{Decode, Decoded, Foreign, Groups, Quantized, Vector};
use crate::checkpoint::convert::Source;
use crate::checkpoint::encoding::Encoding;
use crate::checkpoint::shards::Shards;
use crate::checkpoint::stored::{At, Stored, Tensors};
use crate::checkpoint::unneeded::{self, LeftOut};
use crate::families::plan::{self, Role, TensorPlan};
use crate::{Config, ModelError};

const WEIGHT: &str = ".weight";

/// The tensors of a checkpoint, by module.
pub(crate) struct Modules<'a> {
    dir: &'a Path,
    files: &'a [(PathBuf, TensorFile)],
    /// The file of each tensor.
    names: &'a BTreeMap<String, usize>,
    /// Names that belong to a tensor of the model.
    used: HashSet<String>,
    /// What the embedding is called.
    embedding: &'static str,
}

impl Tensors for Modules<'_> {
    fn has(&self, name: &str) -> bool {
        let module = name.strip_suffix(WEIGHT).unwrap_or(name);
        let [_, _, bitmask, _] = PARTS;
        [
            name.to_owned(),
            format!("{module}.weight_packed"),
            format!("{name}{bitmask}"),
            format!("{module}{bitmask}"),
        ]
        .iter()
        .any(|name| self.names.contains_key(name))
    }

    fn head_is_embedding(&mut self) {
        self.embedding = plan::HEAD;
    }

    fn find(
        mut self,
        config: &Config,
        plan: &[TensorPlan],
        left_out: &mut LeftOut,
    ) -> Result<Vec<Stored>, ModelError> {
        let stored = plan.iter().map(|tensor| match tensor.role {
            Role::Embedding => self.locate(&TensorPlan {
                name: self.embedding.to_owned(),
                ..tensor.clone()
            }),
            _ => self.locate(tensor),
        });
        let stored = stored.collect::<Result<_, ModelError>>()?;
        for name in self.names.keys().filter(|name| !self.used.contains(*name)) {
            let base = PARTS.iter().find_map(|part| name.strip_suffix(part));
            let base = base.unwrap_or(name);
            let weight = || unneeded::kind(config, &format!("{base}{WEIGHT}"));
            match unneeded::kind(config, base).or_else(weight) {
                Some(kind) => left_out.add(kind, name),
                None => return Err(self.unexpected(name)),
            }
        }
        Ok(stored)
    }
}

impl<'a> Modules<'a> {
    pub(crate) fn new(dir: &'a Path, shards: &'a Shards) -> Self {
        Self {
            dir,
            files: &shards.files,
            names: &shards.names,
            used: HashSet::new(),
            embedding: plan::EMBEDDING,
        }
    }

    /// Finds a tensor of the model and checks its type and shape.
    fn locate(&mut self, tensor: &TensorPlan) -> Result<Stored, ModelError> {
        let module = tensor.name.strip_suffix(WEIGHT).unwrap_or(&tensor.name);
        let packed = format!("{module}.weight_packed");
        let (whole, packed) = (self.tensor(&tensor.name)?, self.tensor(&packed)?);
        match (whole, packed) {
            (Some(whole), None) => {
                let levels = matches!(whole.header()?, (Dtype::I8, _)) && tensor.shape.len() == 2;
                if levels {
                    whole.check_shape(&tensor.shape)?;
                    return self
                        .levels(tensor, module, whole, None)
                        .map(Stored::Foreign);
                }
                floats(tensor, whole)
            }
            (None, Some(packed)) if tensor.shape.len() == 2 => {
                let shape = self.required(&format!("{module}.weight_shape"))?;
                self.levels(tensor, module, packed, Some(shape))
                    .map(Stored::Foreign)
            }
            // It cannot be both.
            (Some(_), Some(packed)) => Err(self.unexpected(packed.name())),
            _ => Err(self.missing(&tensor.name)),
        }
    }

    fn levels(
        &mut self,
        tensor: &TensorPlan,
        module: &str,
        levels: Tensor,
        shape: Option<Tensor>,
    ) -> Result<Foreign, ModelError> {
        let bits = match &shape {
            None => 8,
            Some(shape) => packed_bits(tensor, &levels, shape)?,
        };
        let encoding = match (&shape, &levels) {
            (Some(_), _) => Encoding::PackQuantized,
            (None, Tensor::Bitmask(..)) => Encoding::SparseBitmask,
            (None, Tensor::Plain(..)) => Encoding::IntQuantized,
        };
        let scale = self.required(&format!("{module}.weight_scale"))?;
        let zero = self.tensor(&format!("{module}.weight_zero_point"))?;
        let index = self.tensor(&format!("{module}.weight_g_idx"))?;
        let parts = [Some(&levels), Some(&scale), zero.as_ref(), index.as_ref()];
        let bytes = parts.into_iter().flatten().map(Tensor::bytes).sum();
        let path = levels.path().to_owned();
        let source = Levels {
            bits,
            words: shape.is_some(),
            levels,
            scale,
            zero,
            index,
        };
        source.check_headers(&tensor.shape)?;
        Ok(Foreign {
            source: Box::new(source),
            path,
            form: OnceLock::new(),
            encoding,
            dtype: format!("I{bits}"),
            bytes,
        })
    }

    /// A tensor under its name or, as a bitmask, under one of the names that its parts can have.
    fn tensor(&mut self, name: &str) -> Result<Option<Tensor>, ModelError> {
        let plain = self
            .part(name)
            .map(|(file, part)| Tensor::Plain(file, part));
        let old = self.bitmask(name)?;
        let new = match name.strip_suffix(WEIGHT) {
            Some(module) => self.bitmask(module)?,
            None => None,
        };
        let mut found = [plain, old, new].into_iter().flatten();
        match (found.next(), found.next()) {
            (tensor, None) => Ok(tensor),
            (_, Some(second)) => Err(self.unexpected(second.name())),
        }
    }

    fn required(&mut self, name: &str) -> Result<Tensor, ModelError> {
        self.tensor(name)?.ok_or_else(|| self.missing(name))
    }

    fn bitmask(&mut self, prefix: &str) -> Result<Option<Tensor>, ModelError> {
        let [shape, compressed, bitmask, offsets] = PARTS.map(|part| format!("{prefix}{part}"));
        if !self.names.contains_key(&bitmask) {
            return Ok(None);
        }
        let mut parts = Vec::with_capacity(3);
        for name in [shape, compressed, bitmask] {
            let (_, part) = self.part(&name).ok_or_else(|| self.missing(&name))?;
            parts.push(part);
        }
        let offsets = self.part(&offsets).map(|(_, part)| part);
        let parts = parts
            .try_into()
            .unwrap_or_else(|_| unreachable!("there are three"));
        Ok(Some(Tensor::Bitmask(parts, offsets)))
    }

    fn part(&mut self, name: &str) -> Option<(usize, Part)> {
        let &file = self.names.get(name)?;
        self.used.insert(name.to_owned());
        let part = Part {
            file: self.files[file].1.clone(),
            name: name.to_owned(),
        };
        Some((file, part))
    }

    fn missing(&self, name: &str) -> ModelError {
        ModelError::MissingTensor {
            dir: self.dir.to_owned(),
            tensor: name.to_owned(),
        }
    }

    fn unexpected(&self, name: &str) -> ModelError {
        ModelError::UnexpectedTensor {
            dir: self.dir.to_owned(),
            tensor: name.to_owned(),
        }
    }
}

/// A tensor of floats.
fn floats(tensor: &TensorPlan, found: Tensor) -> Result<Stored, ModelError> {
    found.check_shape(&tensor.shape)?;
    let (dtype, shape) = found.header()?;
    let header = TensorView {
        dtype,
        shape: shape.clone(),
        bytes: &[],
    };
    Source::new(found.path(), found.name(), &header)?;
    let (path, bytes) = (found.path().to_owned(), found.bytes());
    Ok(match found {
        Tensor::Plain(file, Part { name, .. }) => Stored::Plain(At { file, name }),
        Tensor::Bitmask(..) if shape.len() == 2 => Stored::Foreign(Foreign {
            path,
            form: OnceLock::new(),
            encoding: Encoding::SparseBitmask,
            dtype: format!("{dtype:?}"),
            bytes,
            source: Box::new(Floats(found)),
        }),
        Tensor::Bitmask(..) => Stored::Vector(Vector {
            path,
            dtype,
            shape,
            elements: found.elements()?.into_owned(),
            encoding: Encoding::SparseBitmask,
            bytes,
        }),
    })
}

/// Bits of the levels in words: what the number of words in a row allows, 4 or 8.
fn packed_bits(tensor: &TensorPlan, levels: &Tensor, shape: &Tensor) -> Result<u32, ModelError> {
    let expected: Vec<i64> = tensor.shape.iter().map(|&size| size as i64).collect();
    let elements = shape.elements()?;
    let found: Option<Vec<i64>> = match shape.header()?.0 {
        Dtype::I64 => Some(
            elements
                .as_chunks()
                .0
                .iter()
                .map(|&b| i64::from_le_bytes(b))
                .collect(),
        ),
        Dtype::I32 => {
            let sizes = elements.as_chunks().0.iter();
            Some(sizes.map(|&b| i32::from_le_bytes(b).into()).collect())
        }
        _ => None,
    };
    if found.as_ref() != Some(&expected) {
        let found = found.map_or("of another type".to_owned(), |found| format!("{found:?}"));
        return Err(shape.wrong(format!("it is {found}, config.json asks for {expected:?}")));
    }
    let (n, k) = (tensor.shape[0], tensor.shape[1]);
    let (dtype, found) = levels.header()?;
    let fits = |&bits: &u32| found == [n, words::words(k, bits)];
    match ([4, 8].into_iter().find(fits), dtype) {
        (Some(bits), Dtype::I32) => Ok(bits),
        _ => Err(levels.wrong(format!(
            "it is {found:?} of type {dtype}, {n} rows of {k} levels take [{n}, {}] (4 bits) or [{n}, {}] (8 bits) of I32; \
             other numbers of bits are not supported",
            words::words(k, 4),
            words::words(k, 8)
        ))),
    }
}

/// A bitmask over floats.
struct Floats(Tensor);

impl Decode for Floats {
    fn decode(&self, _: usize, _: usize) -> Result<Decoded<'_>, ModelError> {
        let (dtype, _) = self.0.header()?;
        let bytes = self.0.elements()?;
        Ok(Decoded::Float { dtype, bytes })
    }

    fn floats(&self) -> Option<Dtype> {
        self.0.header().ok().map(|(dtype, _)| dtype)
    }

    fn stored_elements(&self) -> Option<usize> {
        Some(self.0.bitmask().ok()??.nnz())
    }

    fn release(&self) {
        self.0.release();
    }
}

/// Levels in bytes or words, and what they are worth.
struct Levels {
    bits: u32,
    words: bool,
    levels: Tensor,
    scale: Tensor,
    zero: Option<Tensor>,
    /// The group of each column.
    index: Option<Tensor>,
}

impl Levels {
    /// Checks the shapes against that of the weight. Returns the rows that scales have, 1 or n, and the scales of a row.
    fn check_headers(&self, shape: &[usize]) -> Result<(usize, usize), ModelError> {
        let (n, k) = (shape[0], shape[1]);
        let (dtype, found) = self.scale.header()?;
        if !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(self
                .scale
                .wrong(format!("element type {dtype}, scales are F32, F16 or BF16")));
        }
        let (rows, groups) = match found[..] {
            [] | [1] => (1, 1),
            [rows] if rows == n => (n, 1),
            [rows, groups]
                if (rows == 1 || rows == n) && groups > 0 && k.is_multiple_of(groups) =>
            {
                (rows, groups)
            }
            _ => {
                return Err(self.scale.wrong(format!(
                    "shape {found:?} gives no scale to every row, or group of columns, of a weight of {shape:?}"
                )));
            }
        };
        if let Some(zero) = &self.zero {
            let (dtype, found) = zero.header()?;
            let elements = found.iter().product::<usize>();
            let expected = match dtype {
                Dtype::I8 => rows * groups,
                Dtype::I32 => words::words(rows, self.bits) * groups,
                _ => {
                    return Err(zero.wrong(format!(
                        "element type {dtype}, zero points are I8 or packed in I32"
                    )));
                }
            };
            if elements != expected {
                return Err(zero.wrong(format!(
                    "shape {found:?} does not go with {rows} x {groups} scales"
                )));
            }
        }
        if let Some(index) = &self.index {
            let (dtype, found) = index.header()?;
            if dtype != Dtype::I32 || found != [k] {
                return Err(
                    index.wrong(format!("{found:?} of type {dtype}, expected [{k}] of I32"))
                );
            }
        }
        Ok((rows, groups))
    }

    fn level_bytes(&self, n: usize, k: usize) -> Result<Cow<'_, [i8]>, ModelError> {
        let elements = self.levels.elements()?;
        if self.words {
            let mut levels = vec![0i8; n * k];
            let line_bytes = words::words(k, self.bits) * 4;
            levels
                .par_chunks_mut(k)
                .zip(elements.par_chunks(line_bytes))
                .for_each(|(levels, line)| {
                    for (i, level) in levels.iter_mut().enumerate() {
                        *level = words::level(line, i, self.bits);
                    }
                });
            return Ok(Cow::Owned(levels));
        }
        Ok(match elements {
            Cow::Borrowed(bytes) => Cow::Borrowed(bytemuck::cast_slice(bytes)),
            Cow::Owned(bytes) => Cow::Owned(bytes.into_iter().map(|byte| byte as i8).collect()),
        })
    }

    fn scales(&self, n: usize, rows: usize) -> Result<Vec<f32>, ModelError> {
        let (dtype, shape) = self.scale.header()?;
        let elements = self.scale.elements()?;
        let view = TensorView {
            dtype,
            shape,
            bytes: &elements,
        };
        let mut scales = Source::new(self.scale.path(), self.scale.name(), &view)?.vector()?;
        // A scale of -0 is worth the same as 0, which is what kernels take.
        scales.iter_mut().for_each(|scale| *scale += 0.0);
        Ok(if rows == n { scales } else { scales.repeat(n) })
    }

    /// Zero points like the scales; nothing if all are 0, as symmetric schemes of some versions write them.
    fn zeros(&self, n: usize, rows: usize, groups: usize) -> Result<Option<Vec<i8>>, ModelError> {
        let Some(zero) = &self.zero else {
            return Ok(None);
        };
        let elements = zero.elements()?;
        let zeros: Vec<i8> = match zero.header()?.0 {
            Dtype::I8 => bytemuck::cast_slice(&elements).to_vec(),
            // Packed along the rows: words are [rows / levels in a word, groups].
            _ => {
                let (words, _) = elements.as_chunks::<4>();
                let per_word = 32 / self.bits as usize;
                let one = |i: usize| {
                    let (row, group) = (i / groups, i % groups);
                    words::level(
                        &words[row / per_word * groups + group],
                        row % per_word,
                        self.bits,
                    )
                };
                (0..rows * groups).map(one).collect()
            }
        };
        let zeros = if rows == n { zeros } else { zeros.repeat(n) };
        Ok(Some(zeros).filter(|zeros| zeros.iter().any(|&zero| zero != 0)))
    }

    fn groups(&self, k: usize, groups: usize) -> Result<Groups, ModelError> {
        let in_order = Groups::Of(k / groups);
        let Some(index) = &self.index else {
            return Ok(in_order);
        };
        let elements = index.elements()?;
        let (found, _) = elements.as_chunks();
        let found: Vec<i32> = found.iter().map(|&b| i32::from_le_bytes(b)).collect();
        let ordered = (0..k).all(|column| found[column] == (column / (k / groups)) as i32);
        // -1 is what an index holds before anybody has set it.
        if ordered || found.contains(&-1) {
            return Ok(in_order);
        }
        let known = |&group: &i32| usize::try_from(group).is_ok_and(|group| group < groups);
        if !found.iter().all(known) {
            return Err(index.wrong(format!(
                "it names a group that is not in 0 to {}",
                groups - 1
            )));
        }
        Ok(Groups::Index(
            found.into_iter().map(|group| group as u32).collect(),
        ))
    }
}

impl Decode for Levels {
    fn decode(&self, n: usize, k: usize) -> Result<Decoded<'_>, ModelError> {
        let (rows, groups) = self.check_headers(&[n, k])?;
        Ok(Decoded::Levels(Quantized {
            n,
            k,
            narrow: self.bits == 4,
            levels: self.level_bytes(n, k)?,
            scales: self.scales(n, rows)?,
            zeros: self.zeros(n, rows, groups)?,
            groups: self.groups(k, groups)?,
        }))
    }

    fn floats(&self) -> Option<Dtype> {
        None
    }

    fn stored_elements(&self) -> Option<usize> {
        Some(self.levels.bitmask().ok()??.nnz())
    }

    fn release(&self) {
        let parts = [Some(&self.levels), Some(&self.scale)];
        let others = [self.zero.as_ref(), self.index.as_ref()];
        let parts = parts.into_iter().chain(others).flatten();
        parts.for_each(Tensor::release);
    }
}
