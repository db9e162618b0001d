//! Packed weights as groups of tensors.

use bytemuck::Pod;
use safetensors::Dtype;

use super::read::TensorFile;
use super::write::TensorOut;
use crate::shape::{Geometry, LINE_BYTES, LINE_ELEMS_BF16, LINE_ELEMS_I8, STRIP_ROWS};
use crate::{DenseI4, DenseI8, FormatError, Scales, SparseBf16, SparseI4, SparseI8, Storage};

const MASK: &str = ".mask";
const VALUES: &str = ".values";
const OFFSETS: &str = ".offsets";
const SCALE: &str = ".scale";
/// Suffix of the `__metadata__` key that holds the logical shape.
const SHAPE: &str = ".shape";
/// Suffix of the key that holds the number format, absent for bf16.
const FORMAT: &str = ".format";
/// Suffix of the key that holds the columns of a group, absent where there is one scale a row.
const GROUP: &str = ".group";
/// What the group can be.
const GROUPS: &str = "32, 64 or 128";

/// How a weight that is not a plain tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackedFormat {
    /// [`SparseBf16`].
    SparseBf16,
    /// [`SparseI8`].
    SparseI8,
    /// [`DenseI8`].
    DenseI8,
    /// [`SparseI4`].
    SparseI4,
    /// [`DenseI4`].
    DenseI4,
}

impl PackedFormat {
    /// Whether zeros are left out.
    pub fn is_sparse(self) -> bool {
        use PackedFormat::{SparseBf16, SparseI4, SparseI8};
        matches!(self, SparseBf16 | SparseI8 | SparseI4)
    }

    /// The name, for people.
    pub fn name(self) -> &'static str {
        match self {
            PackedFormat::SparseBf16 => "packed bf16",
            PackedFormat::SparseI8 => "packed int8",
            PackedFormat::DenseI8 => "dense int8",
            PackedFormat::SparseI4 => "packed int4",
            PackedFormat::DenseI4 => "dense int4",
        }
    }
}

/// What a file says about one of its packed weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedWeight {
    /// The name, by custom `<module>.weight`.
    pub name: String,
    /// Logical shape, `[n, k]`.
    pub shape: [usize; 2],
    /// How it is stored.
    pub format: PackedFormat,
    /// Columns that share a scale, where there is not one scale a row.
    pub group_elems: Option<usize>,
}

/// The packed weights of `file`, in file order.
///
/// # Errors
/// If a packed weight has no logical shape, or a number format or group that are not known.
pub fn packed_weights(file: &TensorFile) -> Result<Vec<PackedWeight>, FormatError> {
    file.names()
        .iter()
        .filter_map(|tensor| match tensor.strip_suffix(VALUES) {
            // With masks it is found by these.
            Some(name) if file.tensor(&format!("{name}{MASK}")).is_some() => None,
            Some(name) => file.metadata(&format!("{name}{FORMAT}")).map(|_| name),
            None => tensor.strip_suffix(MASK),
        })
        .map(|name| describe(file, name).map_err(|e| e.in_tensor(name).in_file(file.path())))
        .collect()
}

/// What `file` says about weight `name`, or `None` if it is not a packed weight of this file.
///
/// # Errors
/// As [`packed_weights`].
pub fn packed_weight(file: &TensorFile, name: &str) -> Result<Option<PackedWeight>, FormatError> {
    let has_mask = file.tensor(&format!("{name}{MASK}")).is_some();
    if !has_mask && file.metadata(&format!("{name}{FORMAT}")).is_none() {
        return Ok(None);
    }
    let described = describe(file, name);
    described
        .map(Some)
        .map_err(|e| e.in_tensor(name).in_file(file.path()))
}

fn describe(file: &TensorFile, name: &str) -> Result<PackedWeight, FormatError> {
    let format = format(file, name)?;
    let group_elems = group_elems(file, name)?;
    let contradiction = match (format, group_elems) {
        (PackedFormat::SparseBf16 | PackedFormat::SparseI8, Some(_)) => Some("no group"),
        (PackedFormat::SparseI4 | PackedFormat::DenseI4, None) => Some(GROUPS),
        _ => None,
    };
    if let Some(expected) = contradiction {
        return Err(FormatError::Description {
            key: format!("{name}{GROUP}"),
            found: group_elems.map_or_else(String::new, |elems| elems.to_string()),
            expected,
        });
    }
    Ok(PackedWeight {
        name: name.to_string(),
        shape: logical_shape(file, name)?,
        format,
        group_elems,
    })
}

/// The tensors of packed weight `name`, ready for [`super::write()`], which also records the logical shape.
pub fn sparse_bf16_tensors<'a>(name: &str, weight: &'a SparseBf16) -> Vec<TensorOut<'a>> {
    let lines = [weight.strips(), weight.lines_per_strip()];
    let (values, offsets) = (weight.values(), weight.padded_offsets());
    let masks = tensor(name, MASK, Dtype::U32, &lines, weight.masks());
    vec![
        with_shape(masks, name, weight.n(), weight.k()),
        tensor(name, VALUES, Dtype::BF16, &[values.len()], values),
        tensor(name, OFFSETS, Dtype::U64, &[offsets.len()], offsets),
    ]
}

/// The tensors of packed weight `name`, ready for [`super::write()`], which also records its shape and format.
pub fn sparse_i8_tensors<'a>(name: &str, weight: &'a SparseI8) -> Vec<TensorOut<'a>> {
    let lines = [weight.strips(), weight.lines_per_strip()];
    let (values, offsets) = (weight.values(), weight.padded_offsets());
    let masks = tensor(name, MASK, Dtype::U64, &lines, weight.masks());
    let masks = with_format(masks, name, "int8", weight.scales());
    vec![
        with_shape(masks, name, weight.n(), weight.k()),
        tensor(name, VALUES, Dtype::I8, &[values.len()], values),
        tensor(name, OFFSETS, Dtype::U64, &[offsets.len()], offsets),
        scale_tensor(name, weight.scales()),
    ]
}

/// The tensors of packed weight `name`, ready for [`super::write()`], which also records its shape and format.
pub fn sparse_i4_tensors<'a>(name: &str, weight: &'a SparseI4) -> Vec<TensorOut<'a>> {
    let lines = [weight.strips(), weight.lines_per_strip()];
    let (values, offsets) = (weight.values(), weight.padded_offsets());
    let masks = tensor(name, MASK, Dtype::U64, &lines, weight.masks());
    let masks = with_format(masks, name, "int4", weight.scales());
    vec![
        with_shape(masks, name, weight.n(), weight.k()),
        tensor(name, VALUES, Dtype::U8, &[values.len()], values),
        tensor(name, OFFSETS, Dtype::U64, &[offsets.len()], offsets),
        scale_tensor(name, weight.scales()),
    ]
}

/// The tensors of dense weight `name`, ready for [`super::write()`], which also records its shape and format.
pub fn dense_i8_tensors<'a>(name: &str, weight: &'a DenseI8) -> Vec<TensorOut<'a>> {
    let shape = [weight.strips(), weight.lines_per_strip(), LINE_ELEMS_I8];
    let values = tensor(name, VALUES, Dtype::I8, &shape, weight.lines());
    let values = with_format(values, name, "int8", weight.scales());
    vec![
        with_shape(values, name, weight.n(), weight.k()),
        scale_tensor(name, weight.scales()),
    ]
}

/// The tensors of dense weight `name`, ready for [`super::write()`], which also records its shape and format.
pub fn dense_i4_tensors<'a>(name: &str, weight: &'a DenseI4) -> Vec<TensorOut<'a>> {
    let shape = [weight.strips(), weight.lines_per_strip() / 2, LINE_BYTES];
    let values = tensor(name, VALUES, Dtype::U8, &shape, weight.lines());
    let values = with_format(values, name, "int4", weight.scales());
    vec![
        with_shape(values, name, weight.n(), weight.k()),
        scale_tensor(name, weight.scales()),
    ]
}

fn tensor<'a, T: Pod>(
    name: &str,
    suffix: &str,
    dtype: Dtype,
    shape: &[usize],
    data: &'a [T],
) -> TensorOut<'a> {
    let data = bytemuck::cast_slice(data);
    TensorOut::new(format!("{name}{suffix}"), dtype, shape.to_vec(), data)
}

fn scale_tensor<'a>(name: &str, scales: &'a Scales) -> TensorOut<'a> {
    match scales {
        Scales::Row(values) => tensor(name, SCALE, Dtype::F32, &[values.len()], values),
        Scales::Group { groups, values, .. } => {
            let shape = [values.len() / (groups * STRIP_ROWS), *groups, STRIP_ROWS];
            tensor(name, SCALE, Dtype::BF16, &shape, values)
        }
    }
}

fn with_shape<'a>(tensor: TensorOut<'a>, name: &str, n: usize, k: usize) -> TensorOut<'a> {
    tensor.with_metadata(format!("{name}{SHAPE}"), format!("[{n}, {k}]"))
}

fn with_format<'a>(
    tensor: TensorOut<'a>,
    name: &str,
    format: &str,
    scales: &Scales,
) -> TensorOut<'a> {
    let tensor = tensor.with_metadata(format!("{name}{FORMAT}"), format.to_string());
    match scales {
        Scales::Row(_) => tensor,
        Scales::Group { elems, .. } => {
            tensor.with_metadata(format!("{name}{GROUP}"), elems.to_string())
        }
    }
}

/// Packed weight `name` of `file` as an `[n, k]` weight, straight from the map where it is aligned. Every byte of
/// it is checked, which reads all of it.
///
/// # Errors
/// If one of its tensors is missing or has another type or size than the shape asks for, if the file records
/// another shape or format, or if the content fails [`SparseBf16::from_parts`].
pub fn sparse_bf16(
    file: &TensorFile,
    name: &str,
    n: usize,
    k: usize,
) -> Result<SparseBf16, FormatError> {
    let weight = Reader::new(file, name, Geometry::new(n, k, LINE_ELEMS_BF16))?;
    weight.check(PackedFormat::SparseBf16)?;
    let values = weight.array(VALUES, Dtype::BF16, None)?;
    let masks = weight.masks(Dtype::U32)?;
    let offsets = weight.offsets()?;
    SparseBf16::from_parts(n, k, masks, values, offsets).map_err(|e| weight.error(e))
}

/// As [`sparse_bf16`], for a packed int8 weight.
///
/// # Errors
/// As [`sparse_bf16`].
pub fn sparse_i8(
    file: &TensorFile,
    name: &str,
    n: usize,
    k: usize,
) -> Result<SparseI8, FormatError> {
    let weight = Reader::new(file, name, Geometry::for_levels(n, k))?;
    weight.check(PackedFormat::SparseI8)?;
    let values = weight.array(VALUES, Dtype::I8, None)?;
    let masks = weight.masks(Dtype::U64)?;
    let (offsets, scales) = (weight.offsets()?, weight.scales()?);
    SparseI8::from_parts(n, k, masks, values, offsets, scales).map_err(|e| weight.error(e))
}

/// As [`sparse_bf16`], for a packed int4 weight.
///
/// # Errors
/// As [`sparse_bf16`].
pub fn sparse_i4(
    file: &TensorFile,
    name: &str,
    n: usize,
    k: usize,
) -> Result<SparseI4, FormatError> {
    let weight = Reader::new(file, name, Geometry::for_levels(n, k))?;
    weight.check(PackedFormat::SparseI4)?;
    let values = weight.array(VALUES, Dtype::U8, None)?;
    let masks = weight.masks(Dtype::U64)?;
    let (offsets, scales) = (weight.offsets()?, weight.scales()?);
    SparseI4::from_parts(n, k, masks, values, offsets, scales).map_err(|e| weight.error(e))
}

/// As [`sparse_bf16`], for a dense int8 weight.
///
/// # Errors
/// As [`sparse_bf16`].
pub fn dense_i8(file: &TensorFile, name: &str, n: usize, k: usize) -> Result<DenseI8, FormatError> {
    let weight = Reader::new(file, name, Geometry::for_levels(n, k))?;
    weight.check(PackedFormat::DenseI8)?;
    let lines = weight.geometry.lines_per_strip;
    let shape = [weight.geometry.strips, lines, LINE_ELEMS_I8];
    let values = weight.array(VALUES, Dtype::I8, Some(&shape))?;
    DenseI8::from_parts(n, k, values, weight.scales()?).map_err(|e| weight.error(e))
}

/// As [`sparse_bf16`], for a dense int4 weight.
///
/// # Errors
/// As [`sparse_bf16`].
pub fn dense_i4(file: &TensorFile, name: &str, n: usize, k: usize) -> Result<DenseI4, FormatError> {
    let weight = Reader::new(file, name, Geometry::for_levels(n, k))?;
    weight.check(PackedFormat::DenseI4)?;
    let pairs = weight.geometry.lines_per_strip / 2;
    let shape = [weight.geometry.strips, pairs, LINE_BYTES];
    let values = weight.array(VALUES, Dtype::U8, Some(&shape))?;
    DenseI4::from_parts(n, k, values, weight.scales()?).map_err(|e| weight.error(e))
}

/// A weight that is being read.
struct Reader<'a> {
    file: &'a TensorFile,
    name: &'a str,
    geometry: Geometry,
}

impl<'a> Reader<'a> {
    fn new(
        file: &'a TensorFile,
        name: &'a str,
        geometry: Result<Geometry, FormatError>,
    ) -> Result<Self, FormatError> {
        let geometry = geometry.map_err(|e| e.in_tensor(name).in_file(file.path()))?;
        Ok(Self {
            file,
            name,
            geometry,
        })
    }

    /// Says which weight of which file the error is about.
    fn error(&self, error: FormatError) -> FormatError {
        error.in_tensor(self.name).in_file(self.file.path())
    }

    /// Checks that the file records the logical shape and format asked for. Comes before the shapes of tensors that
    /// follow from it, because it names the cause of a difference.
    fn check(&self, expected: PackedFormat) -> Result<(), FormatError> {
        let values = format!("{}{VALUES}", self.name);
        if self.file.tensor(&values).is_none() {
            let error = FormatError::MissingTensor { tensor: values };
            return Err(error.in_file(self.file.path()));
        }
        let described = describe(self.file, self.name).map_err(|e| self.error(e))?;
        if described.format != expected {
            return Err(self.error(FormatError::WeightFormat {
                expected: expected.name(),
                found: described.format.name(),
            }));
        }
        let (expected, found) = ([self.geometry.n, self.geometry.k], described.shape);
        if found != expected {
            return Err(self.error(FormatError::LogicalShape { expected, found }));
        }
        Ok(())
    }

    fn masks<T: Pod>(&self, dtype: Dtype) -> Result<Storage<T>, FormatError> {
        let shape = [self.geometry.strips, self.geometry.lines_per_strip];
        self.array(MASK, dtype, Some(&shape))
    }

    fn offsets(&self) -> Result<Storage<u64>, FormatError> {
        let shape = [self.geometry.offset_count_padded()];
        self.array(OFFSETS, Dtype::U64, Some(&shape))
    }

    /// Group scales if the file records a group, else row scales.
    fn scales(&self) -> Result<Scales, FormatError> {
        let strips = self.geometry.strips;
        let Some(elems) = group_elems(self.file, self.name).map_err(|e| self.error(e))? else {
            let values = self.array(SCALE, Dtype::F32, Some(&[strips * STRIP_ROWS]))?;
            return Ok(Scales::Row(values));
        };
        let groups = self.geometry.k_padded.div_ceil(elems);
        let shape = [strips, groups, STRIP_ROWS];
        let values = self.array(SCALE, Dtype::BF16, Some(&shape))?;
        Ok(Scales::Group {
            elems,
            groups,
            values,
        })
    }

    /// A tensor whose type, and shape where it is known, are as expected. `None`: any length in one dimension.
    fn array<T: Pod>(
        &self,
        suffix: &str,
        dtype: Dtype,
        shape: Option<&[usize]>,
    ) -> Result<Storage<T>, FormatError> {
        let name = format!("{}{suffix}", self.name);
        if let Some(tensor) = self.file.tensor(&name) {
            let error = if tensor.dtype != dtype {
                Some(FormatError::Dtype {
                    expected: dtype,
                    found: tensor.dtype,
                })
            } else {
                let flat = [tensor.shape.iter().product()];
                let expected = shape.unwrap_or(&flat);
                (tensor.shape != expected).then(|| FormatError::Shape {
                    expected: expected.to_vec(),
                    found: tensor.shape.clone(),
                })
            };
            if let Some(error) = error {
                return Err(error.in_tensor(name).in_file(self.file.path()));
            }
        }
        self.file.storage(&name)
    }
}

/// The logical shape that the file records for packed weight `name`.
fn logical_shape(file: &TensorFile, name: &str) -> Result<[usize; 2], FormatError> {
    let key = format!("{name}{SHAPE}");
    let text = file.metadata(&key).unwrap_or_default();
    serde_json::from_str(text).map_err(|_| FormatError::MissingShape { key })
}

/// The format by the number format that the file records and by whether there are masks.
fn format(file: &TensorFile, name: &str) -> Result<PackedFormat, FormatError> {
    let key = format!("{name}{FORMAT}");
    let has = |suffix: &str| file.tensor(&format!("{name}{suffix}")).is_some();
    // Offsets without masks are a packed weight that lacks a tensor.
    let packed = has(MASK) || has(OFFSETS);
    match (file.metadata(&key), packed) {
        (None, _) => Ok(PackedFormat::SparseBf16),
        (Some("int8"), true) => Ok(PackedFormat::SparseI8),
        (Some("int8"), false) => Ok(PackedFormat::DenseI8),
        (Some("int4"), true) => Ok(PackedFormat::SparseI4),
        (Some("int4"), false) => Ok(PackedFormat::DenseI4),
        (Some(found), _) => Err(FormatError::Description {
            key,
            found: found.to_string(),
            expected: "int8 or int4",
        }),
    }
}

/// The columns of a group that the file records, if it does.
fn group_elems(file: &TensorFile, name: &str) -> Result<Option<usize>, FormatError> {
    let key = format!("{name}{GROUP}");
    match file.metadata(&key) {
        None => Ok(None),
        Some("32") => Ok(Some(32)),
        Some("64") => Ok(Some(64)),
        Some("128") => Ok(Some(128)),
        Some(found) => Err(FormatError::Description {
            key,
            found: found.to_string(),
            expected: GROUPS,
        }),
    }
}
