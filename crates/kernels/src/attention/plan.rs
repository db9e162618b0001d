//! What a call is cut into.

use std::ops::Range;

use sparamx_format::LINE_BYTES;
use sparamx_format::page::PageDtype;

use super::multiply::{key_k, operand_bytes};
use super::{PAGE_TOKENS, PageShape, Params, Task};
use crate::catalog::select_in_one_class;
use crate::linear::activation::Activation;
use crate::spec::KernelSpec;
use crate::{Runtime, WeightFormat};

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

/// The formats of pages: those of bf16, then those of int8.
const PAGE_FORMATS: [WeightFormat; 4] = [
    PageDtype::Bf16.format(false),
    PageDtype::Bf16.format(true),
    PageDtype::Int8.format(false),
    PageDtype::Int8.format(true),
];

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
    /// Multiply by the pages that tasks may give, one kernel for each format.
    kernels: Vec<&'static KernelSpec>,
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
    /// The page of all rows' positions.
    pub query_page: usize,
}

impl<'a> Plan<'a> {
    pub fn new(rt: &Runtime, params: &Params, tasks: &'a [Task<'a>]) -> Self {
        let (group, threads) = (params.heads / params.kv_heads, rt.threads());
        let formats: &[WeightFormat] = match tasks
            .iter()
            .any(|task| task.kv.precision() == PageDtype::Int8)
        {
            true => &PAGE_FORMATS,
            false => &PAGE_FORMATS[..2],
        };
        let most_tokens = tasks.iter().map(|task| task.rows).max().unwrap_or(0);
        let block_tokens = (BLOCK_ROWS / group).clamp(1, most_tokens.max(1));
        let block_rows = block_tokens * group;
        let mut plan = Self {
            params: *params,
            tasks,
            group,
            block_tokens,
            block_rows,
            shape: PageShape {
                head_dim: params.head_dim,
            },
            kernels: formats
                .iter()
                .map(|&format| kernel(rt, format, block_rows))
                .collect(),
            units: 0,
            shared_chunks: 0,
            parallel: false,
        };
        let (mut pages, mut most_chunks) = (0, 0);
        for task in tasks {
            for block in 0..plan.blocks(task) {
                let unit = plan.block(task, block);
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
            let blocks = self.blocks(task);
            if left < blocks * self.params.kv_heads {
                let kv_head = left / blocks;
                return Unit {
                    index,
                    kv_head,
                    ..self.block(task, left % blocks)
                };
            }
            left -= blocks * self.params.kv_heads;
        }
        panic!("unit {index} of {}", self.units);
    }

    /// Blocks of a task. Each is inside one page of positions: what a row sees of a page may depend on the page it is in.
    fn blocks(&self, task: &Task<'_>) -> usize {
        let head = first_page_tokens(task);
        let rest = task.rows - head;
        let full = rest / PAGE_TOKENS * PAGE_TOKENS.div_ceil(self.block_tokens);
        let tail = rest % PAGE_TOKENS;
        head.div_ceil(self.block_tokens) + full + tail.div_ceil(self.block_tokens)
    }

    /// Block `index` of a task, for kv head 0.
    fn block(&self, task: &'a Task<'a>, index: usize) -> Unit<'a> {
        let (most, head) = (self.block_tokens, first_page_tokens(task));
        let (first, end) = match index.checked_sub(head.div_ceil(most)) {
            None => (index * most, head),
            Some(index) => {
                let per_page = PAGE_TOKENS.div_ceil(most);
                let page = head + index / per_page * PAGE_TOKENS;
                (page + index % per_page * most, page + PAGE_TOKENS)
            }
        };
        let tokens = most.min(end.min(task.rows) - first);
        let (low, high) = (task.start + first, task.start + first + tokens - 1);
        let pages = (self.oldest(low) / PAGE_TOKENS, high / PAGE_TOKENS);
        Unit {
            index: 0,
            task,
            kv_head: 0,
            first,
            tokens,
            pages,
            query_page: high / PAGE_TOKENS,
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

    /// The kernel for pages of `format`.
    ///
    /// # Panics
    /// If no task said that it has such pages.
    pub fn kernel(&self, format: WeightFormat) -> &'static KernelSpec {
        let found = self.kernels.iter().find(|spec| spec.weight == format);
        found.unwrap_or_else(|| panic!("a {format} page of a cache that has none"))
    }

    /// The forms in which queries are needed, each with K and with the place of all rows' bytes in memory for queries.
    pub fn queries(&self) -> impl Iterator<Item = (Activation, usize, Range<usize>)> {
        let mut end = 0;
        Activation::ALL.into_iter().filter_map(move |kind| {
            let spec = self.kernels.iter().find(|spec| spec.activation == kind)?;
            let k = key_k(self.shape, spec.weight);
            let start = end;
            end += operand_bytes(kind, self.block_rows, k).next_multiple_of(LINE_BYTES);
            Some((kind, k, start..end))
        })
    }

    /// Bytes of the memory for queries, for weights of a page, and for what kernels scribble on.
    pub fn operand_bytes(&self) -> [usize; 3] {
        let queries = self.queries().map(|(_, _, bytes)| bytes.end).last();
        let weights =
            |spec: &&KernelSpec| operand_bytes(spec.activation, self.block_rows, PAGE_TOKENS);
        let scratch = |spec: &&KernelSpec| {
            let bytes = spec.scratch_bytes;
            bytes(key_k(self.shape, spec.weight)).max(bytes(PAGE_TOKENS))
        };
        [
            queries.unwrap_or(0),
            self.kernels.iter().map(weights).max().unwrap_or(0),
            self.kernels.iter().map(scratch).max().unwrap_or(0),
        ]
    }
}

/// Tokens of a task until the first end of a page.
fn first_page_tokens(task: &Task<'_>) -> usize {
    task.rows.min(PAGE_TOKENS - task.start % PAGE_TOKENS)
}

/// The kernel for blocks of `rows` rows: a row's result must not depend on how many rows it is computed with.
fn kernel(rt: &Runtime, format: WeightFormat, rows: usize) -> &'static KernelSpec {
    let forced = rt.forced_kernel().filter(|spec| spec.weight == format);
    forced.unwrap_or_else(|| select_in_one_class(rt.cpu().features(), format, rows))
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
