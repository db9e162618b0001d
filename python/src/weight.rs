//! Packed weights, and the calls that multiply with them.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use sparamx_compress::layer::{LayerSpec, Method, Pattern, Solved, solve};
use sparamx_compress::{Scope, smallest};
use sparamx_format::container::TensorOut;
use sparamx_format::{self as format, Scales};
use sparamx_kernels::{Linear, LinearJob, Rows, RowsMut, linear};
use sparamx_model::Precision;

use crate::IntoPython;
use crate::memory::{self, Float};
use crate::moments::Moments;
use crate::runtime::threads;

/// A weight `[n, k]` as kernels read it. It never changes.
#[pyclass(frozen, module = "sparamx._native")]
pub(crate) struct Weight {
    pub layer: Linear,
}

/// A tensor of a packed weight: suffix of its name, dtype, shape, address.
pub(crate) type Part = (String, &'static str, Vec<usize>, usize);

/// What came of a layer: the weight, its share of zeros, the error of its outputs (of its weights without moments), and what a
/// user should know.
type Outcome = (Weight, f64, f64, Option<String>);

impl Weight {
    pub fn new(weight: format::Weight) -> Self {
        let layer = Linear { weight, bias: None };
        Self { layer }
    }

    fn n(&self) -> usize {
        self.layer.weight.n()
    }

    fn k(&self) -> usize {
        self.layer.weight.k()
    }
}

#[pymethods]
impl Weight {
    /// Prunes, rounds and packs `n * k` floats from address `rows` on, row-major and all finite.
    ///
    /// `numbers` is `bf16`, `int8` or `int4`, of which `group` columns share a scale. The result is dense where a bitmap would not
    /// make it smaller. Weights that are zero stay so.
    #[staticmethod]
    #[pyo3(signature = (rows, n, k, *, method, sparsity, numbers, group, reconstruct, moments, num_threads))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments")]
    fn solve(
        py: Python<'_>,
        rows: usize,
        n: usize,
        k: usize,
        method: &str,
        sparsity: f64,
        numbers: &str,
        group: usize,
        reconstruct: bool,
        moments: Option<Py<Moments>>,
        num_threads: usize,
    ) -> PyResult<Outcome> {
        let method = match method {
            "magnitude" => Method::Magnitude,
            "wanda" => Method::Wanda,
            "sparsegpt" => Method::SparseGpt,
            other => {
                return Err(PyValueError::new_err(format!(
                    "no method is called {other}"
                )));
            }
        };
        let Ok(element) = numbers.parse() else {
            return Err(PyValueError::new_err(format!(
                "no numbers are called {numbers}"
            )));
        };
        let spec = LayerSpec {
            method,
            pattern: Pattern::Unstructured(sparsity),
            scope: Scope::Tensor,
            precision: Precision::new(element, group),
            rtn: method == Method::Magnitude && !reconstruct,
            reconstruct,
        };
        let threads = threads(num_threads)?;
        py.detach(|| {
            // SAFETY: `pack` of linear.py makes the rows a contiguous float32 tensor [n, k] and holds it during the call.
            let rows = unsafe { memory::slice::<f32>(rows, n * k) };
            threads.work.install(|| {
                let moments = moments.as_ref().map(|moments| moments.get().lock());
                let solved = solve(rows, n, k, moments.as_deref(), &spec);
                let solved = solved.map_err(IntoPython::into_python)?;
                let zeros = match &solved.rows {
                    Solved::Bf16(bits) => bits.iter().filter(|&&bits| bits == 0).count(),
                    Solved::Int8 { levels, .. } | Solved::Int4 { levels, .. } => {
                        levels.iter().filter(|&&level| level == 0).count()
                    }
                };
                let weight = smallest(solved.rows, n, k).map_err(IntoPython::into_python)?;
                let note = solved.note.map(|note| note.to_string());
                let sparsity = zeros as f64 / (n * k) as f64;
                Ok((Weight::new(weight), sparsity, solved.error, note))
            })
        })
    }

    /// A weight `[n, k]` of the tensors that [`Weight::parts`] gives, from suffix, dtype, shape and address of each. They are
    /// copied, and every byte is checked as one of a file.
    #[staticmethod]
    fn from_parts(
        py: Python<'_>,
        n: usize,
        k: usize,
        parts: Vec<(String, String, Vec<usize>, usize)>,
        num_threads: usize,
    ) -> PyResult<Self> {
        let threads = threads(num_threads)?;
        let tensors = parts.into_iter().map(|(suffix, dtype, shape, address)| {
            let dtype = memory::dtype(&dtype)?;
            let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            // SAFETY: `weight_of` of _ops.py and those of linear.py that call this pass contiguous tensors of that dtype and shape,
            // which they hold during the call.
            let data = unsafe { memory::slice(address, bytes) };
            Ok(TensorOut::new(suffix, dtype, shape, data))
        });
        let tensors = tensors.collect::<PyResult<Vec<_>>>()?;
        py.detach(|| {
            let weight = threads
                .work
                .install(|| format::Weight::from_tensors(n, k, &tensors));
            weight.map(Self::new).map_err(IntoPython::into_python)
        })
    }

    /// The tensors of the weight as files have them. The addresses are good for as long as the weight lives; nobody may write
    /// there.
    fn parts(&self) -> PyResult<Vec<Part>> {
        let tensors = self.layer.weight.tensors("");
        let part = |tensor: TensorOut<'_>| {
            let dtype = memory::torch_name(tensor.dtype())?;
            let address = tensor.data().as_ptr().expose_provenance();
            Ok((
                tensor.name().to_owned(),
                dtype,
                tensor.shape().to_vec(),
                address,
            ))
        };
        tensors.into_iter().map(part).collect()
    }

    /// Output features.
    #[getter(n)]
    fn get_n(&self) -> usize {
        self.n()
    }

    /// Input features.
    #[getter(k)]
    fn get_k(&self) -> usize {
        self.k()
    }

    /// `dense bf16`, `sparse bf16`, `dense int8` and so on.
    #[getter]
    fn format(&self) -> String {
        self.layer.weight.format().to_string()
    }

    /// Columns that share a scale, where there is not one a row.
    #[getter]
    fn group_size(&self) -> Option<usize> {
        match self.layer.weight.scales() {
            Some(Scales::Group { elems, .. }) => Some(*elems),
            Some(Scales::Row(_)) | None => None,
        }
    }

    /// Bytes in memory.
    #[getter]
    fn nbytes(&self) -> usize {
        self.layer.weight.bytes()
    }

    /// Elements that are not zero.
    #[getter]
    fn nnz(&self) -> usize {
        self.layer.weight.nnz()
    }

    /// Writes all elements, row-major, as numbers of the dtype with that code, to address `out`.
    fn unpack(&self, py: Python<'_>, out: usize, dtype: u8) -> PyResult<()> {
        let dtype = Float::from_code(dtype)?;
        py.detach(|| {
            let bytes = if dtype == Float::F32 { 4 } else { 2 };
            let mut at = out;
            for s in 0..self.layer.weight.strips() {
                let rows = self.layer.weight.strip_to_f32(s);
                // SAFETY: `unpack` of _ops.py makes a new tensor [n, k] of that dtype, which nobody else uses.
                unsafe { dtype.write(&rows, at) };
                at += rows.len() * bytes;
            }
            Ok(())
        })
    }

    /// `y = x W^T + bias` for `rows` rows of `k` numbers from address `x` on, `stride` elements apart. `y` are contiguous rows of
    /// the same dtype; `bias`, unless 0, is the address of n numbers of dtype `bias_dtype`.
    #[expect(
        clippy::too_many_arguments,
        reason = "a call by position is the cheapest"
    )]
    fn multiply(
        &self,
        py: Python<'_>,
        x: usize,
        rows: usize,
        stride: usize,
        bias: usize,
        bias_dtype: u8,
        y: usize,
        dtype: u8,
        num_threads: usize,
    ) -> PyResult<()> {
        let bias_dtype = Float::from_code(bias_dtype)?;
        let (n, k, dtype) = (self.n(), self.k(), Float::from_code(dtype)?);
        let threads = threads(num_threads)?;
        py.detach(|| {
            let add_bias = |y: &mut [f32]| {
                if bias == 0 {
                    return;
                }
                let mut numbers = vec![0.0; n];
                // SAFETY: `multiply` of _ops.py checks that the bias is [n] and makes it contiguous and of that dtype; it holds it.
                unsafe { bias_dtype.read(bias, &mut numbers) };
                for row in y.chunks_exact_mut(n) {
                    row.iter_mut().zip(&numbers).for_each(|(y, b)| *y += b);
                }
            };
            let call = |x: Rows<'_>, y: &mut [f32]| {
                let job = LinearJob {
                    linear: &self.layer,
                    y: RowsMut::new(y, rows, n),
                };
                linear(&threads.kernels, x, &mut [job]).map_err(IntoPython::into_python)?;
                add_bias(y);
                Ok(())
            };
            if dtype == Float::F32 {
                let elements = rows.saturating_sub(1) * stride + k;
                // SAFETY: `multiply` of _ops.py passes rows of k elements, `stride` apart, and a new tensor [rows, n], which nobody
                // else uses, both of that dtype; it holds them during the call.
                let (x, y) = unsafe {
                    (
                        memory::slice::<f32>(x, elements),
                        memory::slice_mut::<f32>(y, rows * n),
                    )
                };
                let x = Rows::with_stride(x, rows, k, stride).map_err(IntoPython::into_python)?;
                return call(x, y);
            }
            let (mut inputs, mut outputs) = (vec![0.0; rows * k], vec![0.0; rows * n]);
            for (i, row) in inputs.chunks_exact_mut(k).enumerate() {
                // SAFETY: as of the rows above; elements of half precision have two bytes.
                unsafe { dtype.read(x + 2 * i * stride, row) };
            }
            call(Rows::new(&inputs, rows, k), &mut outputs)?;
            // SAFETY: `multiply` of _ops.py passes a new tensor [rows, n] of that dtype, which nobody else uses.
            unsafe { dtype.write(&outputs, y) };
            Ok(())
        })
    }
}
