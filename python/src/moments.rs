//! What calibration remembers of the inputs of a layer.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;

use crate::memory;
use crate::runtime::threads;

/// Second moments of the inputs of a layer.
#[pyclass(frozen, module = "sparamx._native")]
pub(crate) struct Moments(Mutex<sparamx_compress::layer::Moments>);

impl Moments {
    pub fn lock(&self) -> MutexGuard<'_, sparamx_compress::layer::Moments> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Moments {
    /// Of no inputs yet, of `k` features.
    #[new]
    fn new(k: usize) -> Self {
        Self(Mutex::new(sparamx_compress::layer::Moments::new(k, false)))
    }

    /// Adds `rows` contiguous rows of float32 from address `x` on.
    fn add(&self, py: Python<'_>, x: usize, rows: usize, num_threads: usize) -> PyResult<()> {
        let threads = threads(num_threads)?;
        py.detach(|| {
            let mut moments = self.lock();
            // SAFETY: `_observe` of sparsify.py makes x a contiguous float32 tensor [rows, k] and holds it during the call.
            let x = unsafe { memory::slice::<f32>(x, rows * moments.k()) };
            let moments = &mut *moments;
            threads.work.install(|| moments.add(x, None));
        });
        Ok(())
    }

    /// Rows that were added.
    #[getter]
    fn tokens(&self) -> u64 {
        self.lock().tokens()
    }
}
