//! What a call is cut into.

use super::{PAGE_TOKENS, PageShape, Params, Task};
use crate::Runtime;
use crate::catalog::{KernelSpec, select};
use crate::linear::WeightFormat;

/// Query rows (tokens times the heads of a group) in a block, unless one token has more. 32 rows are two AMX row tiles; their
/// queries, scores and sums, 50 KiB with heads of 128, stay in the L2 cache with a page.
pub(super) const BLOCK_ROWS: usize = 32;

/// Pages in a chunk. Part of the numerics: chunks are summed apart and then merged. 512 tokens of keys and values are a
/// hundred times the bytes of the sums of 8 rows, so merging costs about a percent, and 8192 tokens are 16 chunks to share.
pub(super) const CHUNK_PAGES: usize = 8;

/// Threads share the chunks of units if there are fewer units than this for each thread: with more, the last ones to finish
/// leave the others waiting for at most a quarter of the time.
const UNITS_PER_THREAD: usize = 4;

/// Bytes of pages from which a call is shared out. To hand work to the pool and wait for it costs one to three microseconds;
/// one thread reads 64 KiB in two to four.
const PARALLEL_BYTES: usize = 1 << 16;

/// The sizes of a call and its units, the pairs of a block and a kv head.
pub(super) struct Plan<'a> {
    pub params: Params,
    tasks: &'a [Task<'a>],
    /// Query heads of a kv head.
    pub group: usize,
    /// Most tokens in a block.
    block_tokens: usize,
    /// Most query rows in a block.
    pub block_rows: usize,
    pub shape: PageShape,
    /// Multiplies by pages: one kernel whatever the rows, the best for whole blocks, because a row's result must not depend on
    /// how many rows it is computed with.
    pub kernel: &'static KernelSpec,
    /// Number of units.
    pub units: usize,
    /// Most chunks of a unit if threads share them, else 0.
    pub shared_chunks: usize,
    /// Whether there is work for more than one thread.
    pub parallel: bool,
}

/// A block and a kv head.
pub(super) struct Unit<'a> {
    /// Position in the order of units.
    pub index: usize,
    pub task: &'a Task<'a>,
    pub kv_head: usize,
    /// First token, counted from the task's first.
    pub first: usize,
    pub tokens: usize,
    /// Pages that some row of the block sees: first and last.
    pub pages: (usize, usize),
}

impl<'a> Plan<'a> {
    pub fn new(rt: &Runtime, params: &Params, tasks: &'a [Task<'a>]) -> Self {
        let (group, threads) = (params.heads / params.kv_heads, rt.threads());
        let forced = rt
            .forced_kernel()
            .filter(|spec| spec.weight == WeightFormat::DenseBf16);
        let best = || select(rt.cpu().features(), WeightFormat::DenseBf16, BLOCK_ROWS);
        let most_tokens = tasks.iter().map(|task| task.rows).max().unwrap_or(0);
        let block_tokens = (BLOCK_ROWS / group).clamp(1, most_tokens.max(1));
        let mut plan = Self {
            params: *params,
            tasks,
            group,
            block_tokens,
            block_rows: block_tokens * group,
            shape: PageShape {
                head_dim: params.head_dim,
            },
            kernel: forced.unwrap_or_else(best),
            units: 0,
            shared_chunks: 0,
            parallel: false,
        };
        let (mut pages, mut most_chunks) = (0, 0);
        for task in tasks {
            for first in (0..task.rows).step_by(block_tokens) {
                let unit = plan.block(task, first);
                plan.units += params.kv_heads;
                pages += params.kv_heads * (unit.pages.1 - unit.pages.0 + 1);
                most_chunks = most_chunks.max(unit.chunks());
            }
        }
        let page_bytes = 2 * (plan.shape.key_elems() + plan.shape.value_elems());
        plan.parallel = threads > 1 && pages * page_bytes >= PARALLEL_BYTES;
        if plan.parallel && most_chunks > 1 && plan.units < UNITS_PER_THREAD * threads {
            plan.shared_chunks = most_chunks;
        }
        plan
    }

    /// Unit `index`: blocks of a task follow one another for the same kv head, so that its pages stay in the caches.
    pub fn unit(&self, index: usize) -> Unit<'a> {
        let mut left = index;
        for task in self.tasks {
            let blocks = task.rows.div_ceil(self.block_tokens);
            if left < blocks * self.params.kv_heads {
                let kv_head = left / blocks;
                return Unit {
                    index,
                    kv_head,
                    ..self.block(task, left % blocks * self.block_tokens)
                };
            }
            left -= blocks * self.params.kv_heads;
        }
        panic!("unit {index} of {}", self.units);
    }

    /// The block that begins with token `first` of a task, for kv head 0.
    fn block(&self, task: &'a Task<'a>, first: usize) -> Unit<'a> {
        let tokens = self.block_tokens.min(task.rows - first);
        let (low, high) = (task.start + first, task.start + first + tokens - 1);
        let pages = (self.oldest(low) / PAGE_TOKENS, high / PAGE_TOKENS);
        Unit {
            index: 0,
            task,
            kv_head: 0,
            first,
            tokens,
            pages,
        }
    }

    /// The oldest position that a token at `position` sees.
    pub fn oldest(&self, position: usize) -> usize {
        self.params
            .window
            .map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// Elements of a [`super::state::State`] of a block.
    pub fn state_elems(&self) -> usize {
        self.block_rows * (self.shape.value_n() + 2)
    }

    /// Bytes of one row of activations of `k` elements, as the kernel wants them, and of all rows of a block.
    pub fn operand_bytes(&self, k: usize) -> (usize, usize) {
        let row = k * self.kernel.activation.bytes();
        (
            row,
            row * self.kernel.activation.padded_rows(self.block_rows),
        )
    }
}

impl Unit<'_> {
    /// The first chunk with a page that the block sees.
    pub fn first_chunk(&self) -> usize {
        self.pages.0 / CHUNK_PAGES
    }

    /// Number of chunks with pages that the block sees.
    pub fn chunks(&self) -> usize {
        self.pages.1 / CHUNK_PAGES - self.first_chunk() + 1
    }
}
