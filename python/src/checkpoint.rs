//! Packed files.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use sparamx_format as format;
use sparamx_format::container::{self, TensorFile, TensorOut};

use crate::IntoPython;
use crate::memory;
use crate::runtime::threads;
use crate::weight::{Part, Weight};

/// A safetensors file with plain tensors and packed weights, mapped.
#[pyclass(frozen, module = "sparamx._native")]
pub(crate) struct Checkpoint {
    file: TensorFile,
    packed: Vec<container::PackedWeight>,
}

#[pymethods]
impl Checkpoint {
    /// Opens and checks the header.
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        py.detach(|| {
            let file = TensorFile::open(path).map_err(IntoPython::into_python)?;
            let packed = container::packed_weights(&file).map_err(IntoPython::into_python)?;
            Ok(Self { file, packed })
        })
    }

    /// Names and shapes `(n, k)` of the packed weights.
    fn packed(&self) -> Vec<(String, usize, usize)> {
        let packed = self.packed.iter();
        packed
            .map(|w| (w.name.clone(), w.shape[0], w.shape[1]))
            .collect()
    }

    /// Names, dtypes, shapes and addresses of the other tensors. The addresses are good for as long as this lives.
    fn plain(&self) -> PyResult<Vec<Part>> {
        let mut plain = Vec::new();
        for name in self.file.names() {
            if self
                .packed
                .iter()
                .any(|w| name.starts_with(&format!("{}.", w.name)))
            {
                continue;
            }
            let view = self.file.tensor(&name);
            let view = view.ok_or_else(|| PyKeyError::new_err(name.clone()))?;
            let dtype = memory::torch_name(view.dtype)?;
            let address = view.bytes.as_ptr().expose_provenance();
            plain.push((name, dtype, view.shape, address));
        }
        Ok(plain)
    }

    /// A packed weight in the program's own memory; every byte is checked.
    fn weight(&self, py: Python<'_>, name: &str, num_threads: usize) -> PyResult<Weight> {
        let threads = threads(num_threads)?;
        let found = self.packed.iter().find(|w| w.name == name);
        let found = found.ok_or_else(|| PyKeyError::new_err(name.to_owned()))?;
        py.detach(|| {
            let read = || {
                let [n, k] = found.shape;
                format::Weight::read(&self.file, name, n, k)?.in_memory()
            };
            let weight = threads.work.install(read);
            weight.map(Weight::new).map_err(IntoPython::into_python)
        })
    }
}

/// Writes a safetensors file: plain tensors by name, dtype, shape and address, all contiguous, and packed weights by name.
#[pyfunction]
pub(crate) fn write_checkpoint(
    py: Python<'_>,
    path: PathBuf,
    plain: Vec<(String, String, Vec<usize>, usize)>,
    packed: Vec<(String, Py<Weight>)>,
    metadata: BTreeMap<String, String>,
) -> PyResult<()> {
    let mut tensors = Vec::new();
    for (name, dtype, shape, address) in plain {
        let dtype = memory::dtype(&dtype)?;
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        // SAFETY: `save` of checkpoint.py passes contiguous tensors of that dtype and shape, which it holds during the call.
        let data = unsafe { memory::slice(address, bytes) };
        tensors.push(TensorOut::new(name, dtype, shape, data));
    }
    for (name, weight) in &packed {
        tensors.extend(weight.get().layer.weight.tensors(name));
    }
    py.detach(|| container::write(path, &tensors, &metadata))
        .map_err(IntoPython::into_python)
}
