//! `sparamx._native`: packed weights, the calls that multiply with them, packed files, and models that write, for the Python code
//! beside it.
//!
//! Private to that code, which hands over the addresses of tensors that it has checked: every function with an address trusts
//! that there is what its documentation says. The interpreter is released while Rust works.

mod checkpoint;
mod engine;
mod kv;
mod memory;
mod moments;
mod runtime;
mod weight;

use pyo3::exceptions::{PyMemoryError, PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use sparamx_compress::CompressError;
use sparamx_engine::{EngineError, KvPrecision};
use sparamx_format::{ElementKind, FormatError, GROUP_ELEMS};
use sparamx_kernels::KernelError;
use sparamx_model::ModelError;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("WEIGHTS", ElementKind::ALL.map(ElementKind::name).to_vec())?;
    module.add("GROUP_SIZES", GROUP_ELEMS.to_vec())?;
    module.add(
        "KV_DTYPES",
        KvPrecision::ALL.map(|dtype| dtype.to_string()).to_vec(),
    )?;
    module.add_class::<weight::Weight>()?;
    module.add_class::<moments::Moments>()?;
    module.add_class::<checkpoint::Checkpoint>()?;
    module.add_class::<engine::Engine>()?;
    module.add_class::<kv::KvCache>()?;
    module.add_function(wrap_pyfunction!(checkpoint::write_checkpoint, module)?)?;
    module.add_function(wrap_pyfunction!(runtime::after_fork, module)?)?;
    module.add_function(wrap_pyfunction!(runtime::isa, module)?)
}

/// The exception that Python users expect for what went wrong.
trait IntoPython {
    fn into_python(self) -> PyErr;
}

impl IntoPython for FormatError {
    fn into_python(self) -> PyErr {
        match self.root() {
            FormatError::Io { .. } => PyOSError::new_err(self.to_string()),
            FormatError::OutOfMemory { .. } => PyMemoryError::new_err(self.to_string()),
            _ => PyValueError::new_err(self.to_string()),
        }
    }
}

impl IntoPython for EngineError {
    fn into_python(self) -> PyErr {
        let message = self.to_string();
        match self {
            Self::Io { .. } => PyOSError::new_err(message),
            Self::Model(ModelError::Io { .. }) => PyOSError::new_err(message),
            Self::CacheMemory { .. } | Self::PoolFull { .. } => PyMemoryError::new_err(message),
            Self::Panicked { .. } => PyRuntimeError::new_err(message),
            _ => PyValueError::new_err(message),
        }
    }
}

impl IntoPython for CompressError {
    fn into_python(self) -> PyErr {
        PyValueError::new_err(self.to_string())
    }
}

impl IntoPython for KernelError {
    fn into_python(self) -> PyErr {
        PyValueError::new_err(self.to_string())
    }
}
