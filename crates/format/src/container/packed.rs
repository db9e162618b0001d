//! Packed weights as groups of tensors.

use bytemuck::Pod;
use safetensors::Dtype;

use super::read::TensorFile;
use super::write::TensorOut;
use crate::dense::Dense;
use crate::element::{Bf16, Element, Mask, Quantized, WeightScales, geometry};
use crate::shape::{Geometry, STRIP_ROWS};
use crate::sparse::Sparse;
use crate::{ElementKind, FormatError, GROUP_ELEMS, Scales, Storage, WeightFormat};

pub(super) const MASK: &str = ".mask";
pub(super) const VALUES: &str = ".values";
pub(super) const OFFSETS: &str = ".offsets";
pub(super) const SCALE: &str = ".scale";
/// Suffix of the `__metadata__` key that holds the logical shape.
const SHAPE: &str = ".shape";
/// Suffix of the key that holds the dtype, absent for bf16.
const FORMAT: &str = ".format";
/// Suffix of the key that holds the columns of a group, absent where there is one scale a row.
const GROUP: &str = ".group";
/// What the group can be.
const GROUPS: &str = "32, 64 or 128";

/// What a file says about one of its packed weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedWeight {
    /// The name, by custom `<module>.weight`.
    pub name: String,
    /// Logical shape, `[n, k]`.
    pub shape: [usize; 2],
    /// How it is stored.
    pub format: WeightFormat,
    /// Columns that share a scale, where there is not one scale a row.
    pub group_elems: Option<usize>,
}

/// The packed weights of `file`, in file order.
///
/// # Errors
/// If a packed weight has no logical shape, or a dtype or group that are not known.
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
    let contradiction = match (format.element(), group_elems) {
        (ElementKind::Bf16 | ElementKind::Int8, Some(_)) if format.is_sparse() => Some("no group"),
        (ElementKind::Int4, None) => Some(GROUPS),
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

impl<E: Element> Sparse<E> {
    /// The tensors of the weight in a file, called `name`, for [`super::write()`], which also records shape and dtype.
    pub fn tensors(&self, name: &str) -> Vec<TensorOut<'_>> {
        let lines = [self.strips(), self.lines_per_strip()];
        let (values, offsets) = (self.values(), self.padded_offsets());
        let masks = tensor(name, MASK, E::Mask::DTYPE, &lines, self.masks());
        let scales = self.scale_set().get();
        let mut tensors = vec![
            described::<E>(masks, name, self.geometry(), scales),
            tensor(name, VALUES, E::UNIT_DTYPE, &[values.len()], values),
            tensor(name, OFFSETS, Dtype::U64, &[offsets.len()], offsets),
        ];
        tensors.extend(scales.map(|scales| scale_tensor(name, scales)));
        tensors
    }
}

impl<E: Quantized> Dense<E> {
    /// The tensors of the weight in a file, called `name`, for [`super::write()`], which also records shape and dtype.
    pub fn tensors(&self, name: &str) -> Vec<TensorOut<'_>> {
        let values = tensor(
            name,
            VALUES,
            E::UNIT_DTYPE,
            &dense_shape::<E>(self.geometry()),
            self.lines(),
        );
        vec![
            described::<E>(values, name, self.geometry(), Some(self.scales())),
            scale_tensor(name, self.scales()),
        ]
    }
}

/// The shape of the values of a dense weight: 64 bytes in the innermost dimension.
fn dense_shape<E: Element>(geometry: &Geometry) -> [usize; 3] {
    let lines = geometry.lines_per_strip / E::PER_UNIT;
    [geometry.strips, lines, E::LINE_UNITS]
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

/// With what the file's header says about the weight.
fn described<'a, E: Element>(
    tensor: TensorOut<'a>,
    name: &str,
    geometry: &Geometry,
    scales: Option<&Scales>,
) -> TensorOut<'a> {
    let Geometry { n, k, .. } = geometry;
    let tensor = tensor.with_metadata(format!("{name}{SHAPE}"), format!("[{n}, {k}]"));
    let Some(scales) = scales else {
        return tensor;
    };
    let tensor = tensor.with_metadata(format!("{name}{FORMAT}"), E::KIND.to_string());
    match scales {
        Scales::Row(_) => tensor,
        Scales::Group { elems, .. } => {
            tensor.with_metadata(format!("{name}{GROUP}"), elems.to_string())
        }
    }
}

impl Sparse<Bf16> {
    /// Packed weight `name` of `file` as an `[n, k]` weight, straight from the map where it is aligned. Every byte of
    /// it is checked, which reads all of it.
    ///
    /// # Errors
    /// If one of its tensors is missing or has another type or size than the shape asks for, if the file records
    /// another shape or format, or if the content fails [`Sparse::from_parts`].
    pub fn read(file: &TensorFile, name: &str, n: usize, k: usize) -> Result<Self, FormatError> {
        let weight = Reader::of_sparse::<Bf16>(file, name, n, k)?;
        let (masks, values, offsets) = weight.sparse_parts::<Bf16>()?;
        Self::from_parts(n, k, masks, values, offsets).map_err(|e| weight.error(e))
    }
}

impl<E: Quantized> Sparse<E> {
    /// Packed weight `name` of `file` as an `[n, k]` weight, straight from the map where it is aligned. Every byte of
    /// it is checked, which reads all of it.
    ///
    /// # Errors
    /// If one of its tensors is missing or has another type or size than the shape asks for, if the file records
    /// another shape or format, or if the content fails [`Sparse::from_parts`].
    pub fn read(file: &TensorFile, name: &str, n: usize, k: usize) -> Result<Self, FormatError> {
        let weight = Reader::of_sparse::<E>(file, name, n, k)?;
        let (masks, values, offsets) = weight.sparse_parts::<E>()?;
        let scales = weight.scales()?;
        Self::from_parts(n, k, masks, values, offsets, scales).map_err(|e| weight.error(e))
    }
}

impl Dense<Bf16> {
    /// The plain tensor `name` of `file` as an `[n, k]` weight.
    ///
    /// # Errors
    /// If it is missing or has elements of another size, or fails [`Dense::from_rows`].
    pub fn read(file: &TensorFile, name: &str, n: usize, k: usize) -> Result<Self, FormatError> {
        Self::from_rows(&file.storage::<u16>(name)?, n, k)
    }
}

impl<E: Quantized> Dense<E> {
    /// As [`Sparse::read`], for a dense weight.
    ///
    /// # Errors
    /// Likewise.
    pub fn read(file: &TensorFile, name: &str, n: usize, k: usize) -> Result<Self, FormatError> {
        let weight = Reader::new(file, name, geometry::<E>(n, k))?;
        weight.check(WeightFormat::new(E::KIND, false))?;
        let shape = dense_shape::<E>(&weight.geometry);
        let values = weight.array(VALUES, E::UNIT_DTYPE, Some(&shape))?;
        Self::from_parts(n, k, values, weight.scales()?).map_err(|e| weight.error(e))
    }
}

/// Masks, values and offsets of a packed weight.
type SparseParts<E> = (
    Storage<<E as Element>::Mask>,
    Storage<<E as Element>::Unit>,
    Storage<u64>,
);

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

    /// A packed weight; the file says that it is one, and of this shape.
    fn of_sparse<E: Element>(
        file: &'a TensorFile,
        name: &'a str,
        n: usize,
        k: usize,
    ) -> Result<Self, FormatError> {
        let weight = Self::new(file, name, geometry::<E>(n, k))?;
        weight.check(WeightFormat::new(E::KIND, true))?;
        Ok(weight)
    }

    /// Says which weight of which file the error is about.
    fn error(&self, error: FormatError) -> FormatError {
        error.in_tensor(self.name).in_file(self.file.path())
    }

    /// Checks that the file records the logical shape and format asked for. Comes before the shapes of tensors that
    /// follow from it, because it names the cause of a difference.
    fn check(&self, expected: WeightFormat) -> Result<(), FormatError> {
        let values = format!("{}{VALUES}", self.name);
        if self.file.tensor(&values).is_none() {
            let error = FormatError::MissingTensor { tensor: values };
            return Err(error.in_file(self.file.path()));
        }
        let described = describe(self.file, self.name).map_err(|e| self.error(e))?;
        if described.format != expected {
            return Err(self.error(FormatError::WeightFormat {
                expected: expected.name_in_files(),
                found: described.format.name_in_files(),
            }));
        }
        let (expected, found) = ([self.geometry.n, self.geometry.k], described.shape);
        if found != expected {
            return Err(self.error(FormatError::LogicalShape { expected, found }));
        }
        Ok(())
    }

    fn sparse_parts<E: Element>(&self) -> Result<SparseParts<E>, FormatError> {
        let lines = [self.geometry.strips, self.geometry.lines_per_strip];
        let offsets = [self.geometry.offset_count_padded()];
        let values = self.array(VALUES, E::UNIT_DTYPE, None)?;
        let masks = self.array(MASK, E::Mask::DTYPE, Some(&lines))?;
        let offsets = self.array(OFFSETS, Dtype::U64, Some(&offsets))?;
        Ok((masks, values, offsets))
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

/// The format by the dtype that the file records and by whether there are masks.
fn format(file: &TensorFile, name: &str) -> Result<WeightFormat, FormatError> {
    let key = format!("{name}{FORMAT}");
    let has = |suffix: &str| file.tensor(&format!("{name}{suffix}")).is_some();
    let Some(found) = file.metadata(&key) else {
        return Ok(WeightFormat::SparseBf16);
    };
    match found.parse() {
        // Offsets without masks are a packed weight that lacks a tensor.
        Ok(element) if element != ElementKind::Bf16 => {
            Ok(WeightFormat::new(element, has(MASK) || has(OFFSETS)))
        }
        _ => Err(FormatError::Description {
            key,
            found: found.to_string(),
            expected: "int8 or int4",
        }),
    }
}

/// The columns of a group that the file records, if it does.
fn group_elems(file: &TensorFile, name: &str) -> Result<Option<usize>, FormatError> {
    let key = format!("{name}{GROUP}");
    let Some(found) = file.metadata(&key) else {
        return Ok(None);
    };
    let known = GROUP_ELEMS
        .into_iter()
        .find(|elems| elems.to_string() == found);
    known.map(Some).ok_or_else(|| FormatError::Description {
        key,
        found: found.to_string(),
        expected: GROUPS,
    })
}
