//! Packed weights as groups of tensors.

use safetensors::Dtype;

use super::read::TensorFile;
use super::write::TensorOut;
use crate::shape::{Geometry, LINE_ELEMS_BF16};
use crate::{FormatError, SparseBf16, Storage};

const MASK: &str = ".mask";
const VALUES: &str = ".values";
const OFFSETS: &str = ".offsets";
/// Suffix of the `__metadata__` key that holds the logical shape.
const SHAPE: &str = ".shape";

/// The tensors of packed weight `name`, ready for [`super::write()`], which also records the logical shape.
pub fn sparse_bf16_tensors<'a>(name: &str, weight: &'a SparseBf16) -> Vec<TensorOut<'a>> {
    let tensor = |suffix: &str, dtype, shape, data| {
        TensorOut::new(format!("{name}{suffix}"), dtype, shape, data)
    };
    let mask_shape = vec![weight.strips(), weight.lines_per_strip()];
    let masks = tensor(
        MASK,
        Dtype::U32,
        mask_shape,
        bytemuck::cast_slice(weight.masks()),
    );
    let values = weight.values();
    let offsets = weight.padded_offsets();
    let shape = format!("[{}, {}]", weight.n(), weight.k());
    vec![
        masks.with_metadata(format!("{name}{SHAPE}"), shape),
        tensor(
            VALUES,
            Dtype::BF16,
            vec![values.len()],
            bytemuck::cast_slice(values),
        ),
        tensor(
            OFFSETS,
            Dtype::U64,
            vec![offsets.len()],
            bytemuck::cast_slice(offsets),
        ),
    ]
}

/// Name and logical shape `[n, k]` of every packed weight of `file`, in file order.
///
/// # Errors
/// If a `.mask` tensor has no logical shape.
pub fn packed_shapes(file: &TensorFile) -> Result<Vec<(String, [usize; 2])>, FormatError> {
    file.names()
        .iter()
        .filter_map(|tensor| tensor.strip_suffix(MASK))
        .map(|name| match logical_shape(file, name) {
            Ok(shape) => Ok((name.to_string(), shape)),
            Err(e) => Err(e.in_file(file.path())),
        })
        .collect()
}

/// Packed weight `name` of `file` as an `[n, k]` weight, straight from the map where it is aligned. Every byte of
/// it is checked, which reads all of it.
///
/// # Errors
/// If one of its tensors is missing or has another type or size than the shape asks for, if the file records
/// another shape, or if the content fails [`SparseBf16::from_parts`].
pub fn sparse_bf16(
    file: &TensorFile,
    name: &str,
    n: usize,
    k: usize,
) -> Result<SparseBf16, FormatError> {
    let in_weight = |e: FormatError| e.in_tensor(name).in_file(file.path());
    let geometry = Geometry::new(n, k, LINE_ELEMS_BF16).map_err(in_weight)?;
    let values = field(file, &format!("{name}{VALUES}"), Dtype::BF16, None)?;
    // Before the shapes of the other two, because it names the cause of a difference.
    let (expected, found) = ([n, k], logical_shape(file, name).map_err(in_weight)?);
    if found != expected {
        return Err(in_weight(FormatError::LogicalShape { expected, found }));
    }
    let shape = [geometry.strips, geometry.lines_per_strip];
    let masks = field(file, &format!("{name}{MASK}"), Dtype::U32, Some(&shape))?;
    let shape = [geometry.offset_count_padded()];
    let offsets = field(file, &format!("{name}{OFFSETS}"), Dtype::U64, Some(&shape))?;
    SparseBf16::from_parts(n, k, masks, values, offsets).map_err(in_weight)
}

/// A tensor whose type, and shape where it is known, are as expected. `None`: any length in one dimension.
fn field<T: bytemuck::Pod>(
    file: &TensorFile,
    name: &str,
    dtype: Dtype,
    shape: Option<&[usize]>,
) -> Result<Storage<T>, FormatError> {
    if let Some(tensor) = file.tensor(name) {
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
            return Err(error.in_tensor(name).in_file(file.path()));
        }
    }
    file.storage(name)
}

/// The logical shape that the file records for packed weight `name`.
fn logical_shape(file: &TensorFile, name: &str) -> Result<[usize; 2], FormatError> {
    let key = format!("{name}{SHAPE}");
    let text = file.metadata(&key).unwrap_or_default();
    serde_json::from_str(text).map_err(|_| FormatError::MissingShape { key })
}
