//! Keys and values of a batch of sequences, in packed pages.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use sparamx_engine::{
    EngineError, KvOptions, KvPrecision, KvRule, KvShape, PagePool, PagedCache, UNDO_TOKENS,
};
use sparamx_kernels::attention::{KvPages, Params, Task, attention};
use sparamx_kernels::{Rows, RowsMut};
use sparamx_model::KvCache as _;

use crate::IntoPython;
use crate::memory;
use crate::runtime::{Threads, threads};

/// The caches of the sequences of a batch, which share the memory of one pool.
#[pyclass(frozen, module = "sparamx._native")]
pub(crate) struct KvCache {
    shape: KvShape,
    pool: PagePool,
    sequences: Mutex<Vec<PagedCache>>,
}

impl KvCache {
    fn lock(&self) -> MutexGuard<'_, Vec<PagedCache>> {
        self.sequences
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl KvCache {
    /// Empty caches for `batch` sequences. `numbers` of packed pages are `bf16` or `int8`; `memory` is in bytes.
    #[new]
    #[pyo3(signature = (
        *, layers, heads, kv_heads, head_dim, batch, key_sparsity, value_sparsity, numbers, rule, window, sinks, memory
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments")]
    fn new(
        layers: usize,
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        batch: usize,
        key_sparsity: f32,
        value_sparsity: f32,
        numbers: &str,
        rule: &str,
        window: usize,
        sinks: usize,
        memory: Option<u64>,
    ) -> PyResult<Self> {
        let options = KvOptions {
            budget_bytes: memory,
            precision: by_name(&KvPrecision::ALL, numbers)?,
            key_sparsity,
            value_sparsity,
            window,
            sinks,
            rule: by_name(&KvRule::ALL, rule)?,
        };
        let shape = KvShape {
            layers,
            heads,
            kv_heads,
            head_dim,
        };
        let pool = PagePool::new(shape, &options).map_err(IntoPython::into_python)?;
        let sequences = (0..batch).map(|_| pool.sequence()).collect();
        Ok(Self {
            shape,
            pool,
            sequences: Mutex::new(sequences),
        })
    }

    /// Stores the keys and values of the next tokens in layer `layer`, and writes what their queries attend to.
    ///
    /// Sequence `i` has `counts[i]` of the rows, those of the first sequence first. `q`, `k`, `v` and `out` are addresses of
    /// contiguous float32 rows: of all heads, of all kv heads (twice), and of all heads. A token sees its sequence up to
    /// itself, and of that the last `window` tokens if that is given.
    #[expect(
        clippy::too_many_arguments,
        reason = "a call by position is the cheapest"
    )]
    fn attend(
        &self,
        py: Python<'_>,
        layer: usize,
        q: usize,
        k: usize,
        v: usize,
        out: usize,
        counts: Vec<usize>,
        scale: f32,
        window: Option<usize>,
        num_threads: usize,
    ) -> PyResult<()> {
        let KvShape {
            heads,
            kv_heads,
            head_dim,
            ..
        } = self.shape;
        let params = Params {
            heads,
            kv_heads,
            head_dim,
            scale,
            window,
        };
        let threads = threads(num_threads)?;
        let rows: usize = counts.iter().sum();
        let (width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        py.detach(|| {
            // SAFETY: `SparseCache` of cache.py makes q, k and v contiguous float32 rows and the output new, and holds all four
            // during the call.
            let (q, k, v, out) = unsafe {
                (
                    memory::slice(q, rows * width),
                    memory::slice(k, rows * kv_width),
                    memory::slice(v, rows * kv_width),
                    memory::slice_mut(out, rows * width),
                )
            };
            let mut sequences = self.lock();
            let new = [(q, width), (k, kv_width), (v, kv_width)];
            store(&threads, &mut sequences, layer, &counts, new)
                .map_err(IntoPython::into_python)?;
            let pages: Vec<Box<dyn KvPages + '_>> =
                sequences.iter().map(|cache| cache.pages(layer)).collect();
            let starts = sequences.iter().map(|cache| cache.len());
            let tasks = tasks(starts, &pages, &counts);
            let (q, out) = (Rows::new(q, rows, width), RowsMut::new(out, rows, width));
            attention(&threads.kernels, &params, q, &tasks, out).map_err(IntoPython::into_python)
        })
    }

    /// Counts the tokens that every layer has stored.
    fn advance(&self, py: Python<'_>, counts: Vec<usize>) {
        py.detach(|| {
            for (cache, tokens) in self.lock().iter_mut().zip(counts) {
                cache.advance(tokens);
                // Lets go of pages that no later query sees dense.
                cache.commit(&[]);
            }
        });
    }

    /// Takes back the last tokens, so that sequence `i` has `lengths[i]` left. False, and nothing happens, if pages that
    /// would be the last ones then are there only packed.
    fn truncate(&self, py: Python<'_>, lengths: Vec<usize>) -> bool {
        py.detach(|| {
            let mut sequences = self.lock();
            let mut shorter: Vec<PagedCache> = sequences.iter().map(PagedCache::fork).collect();
            let mut pairs = shorter.iter_mut().zip(&lengths);
            let exact = pairs.all(|(cache, &len)| cache.truncate(len) == len);
            if exact {
                *sequences = shorter;
            }
            exact
        })
    }

    /// Makes sequence `i` a copy of what sequence `indices[i]` was. Copies share pages until they differ.
    fn select(&self, py: Python<'_>, indices: Vec<usize>) {
        py.detach(|| {
            let mut sequences = self.lock();
            *sequences = indices.iter().map(|&i| sequences[i].fork()).collect();
        });
    }

    /// A copy, which shares pages with this one until they differ, and the memory of the pool.
    fn fork(&self, py: Python<'_>) -> Self {
        py.detach(|| Self {
            shape: self.shape,
            pool: self.pool.clone(),
            sequences: Mutex::new(self.lock().iter().map(PagedCache::fork).collect()),
        })
    }

    /// Bytes of the pages that sequences hold, those of copies included; a page that several share counts once.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.pool.usage().in_use_bytes
    }

    /// So many of the last tokens can be taken back in any case.
    #[classattr]
    const UNDO_TOKENS: usize = UNDO_TOKENS;
}

/// Stores the queries, keys and values that `new` has of the next tokens, each with the width of its rows, once there is memory
/// for all sequences.
fn store(
    threads: &Threads,
    sequences: &mut [PagedCache],
    layer: usize,
    counts: &[usize],
    new: [(&[f32], usize); 3],
) -> Result<(), EngineError> {
    for (cache, &rows) in sequences.iter_mut().zip(counts) {
        cache.reserve(rows)?;
    }
    let mut first = 0;
    for (cache, &rows) in sequences.iter_mut().zip(counts) {
        let [q, k, v] =
            new.map(|(all, width)| Rows::new(&all[first * width..][..rows * width], rows, width));
        cache.append(&threads.kernels, layer, q, k, v)?;
        first += rows;
    }
    Ok(())
}

/// What each sequence with new rows computes, from the first position of these and its pages.
fn tasks<'a>(
    starts: impl Iterator<Item = usize>,
    pages: &'a [Box<dyn KvPages + 'a>],
    counts: &[usize],
) -> Vec<Task<'a>> {
    let mut first_row = 0;
    let mut tasks = Vec::new();
    for ((start, kv), &rows) in starts.zip(pages).zip(counts) {
        if rows > 0 {
            tasks.push(Task {
                first_row,
                rows,
                start,
                kv: &**kv,
            });
        }
        first_row += rows;
    }
    tasks
}

/// The one of that name.
pub(crate) fn by_name<T: Copy + ToString>(all: &[T], name: &str) -> PyResult<T> {
    let found = all.iter().find(|one| one.to_string() == name);
    found
        .copied()
        .ok_or_else(|| PyValueError::new_err(format!("no pages are called {name}")))
}
