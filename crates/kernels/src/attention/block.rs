//! One block and kv head, through its pages.

use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};

use super::multiply::{PageWeight, Product, multiply};
use super::plan::{CHUNK_PAGES, Plan, Unit};
use super::state::State;
use super::{Call, PAGE_TOKENS};
use crate::linear::activation::Activation;
use crate::simd::Lanes;
use crate::vecops::DisjointRows;

/// The memory of a thread.
pub(super) struct Memory<'a> {
    tiles: Tiles<'a>,
    /// A state of one chunk, and of all chunks merged.
    chunk: State<'a>,
    total: State<'a>,
}

/// Matrices of [`Plan::block_rows`] rows, of which a unit uses the first ones. The row of query head `h` of a group and token
/// `t` of a block is `t * group + h`.
struct Tiles<'a> {
    /// Queries times the scale, padded with zeros, in each form of [`Plan::queries`].
    q: &'a mut [u8],
    /// Scores with the tokens of a page, then their weights, `[rows, 64]`.
    scores: &'a mut [f32],
    /// The weights as the kernel for the page's values wants them, unless as they are.
    weights: &'a mut [u8],
    /// Weights times values, `[rows, value_n]`.
    product: &'a mut [f32],
    /// For each row what [`State::weigh`] gave.
    factors: &'a mut [f32],
    /// The kernel's own.
    scratch: &'a mut [u8],
}

impl<'a> Memory<'a> {
    /// Bytes of each part: queries, scores, weights, products, factors, the kernel's scratch and two states; each a multiple
    /// of 64, so that all begin at a cache line.
    fn parts(plan: &Plan<'_>) -> [usize; 8] {
        let (rows, n) = (plan.block_rows, plan.shape.value_n());
        let [queries, weights, scratch] = plan.operand_bytes();
        [
            queries,
            4 * rows * PAGE_TOKENS,
            weights,
            4 * rows * n,
            4 * rows,
            scratch,
            4 * plan.state_elems(),
            4 * plan.state_elems(),
        ]
        .map(|bytes| bytes.next_multiple_of(64))
    }

    /// Bytes that [`Memory::new`] needs.
    pub fn bytes(plan: &Plan<'_>) -> usize {
        Self::parts(plan).iter().sum()
    }

    /// Cuts up `memory`.
    pub fn new(plan: &Plan<'_>, mut memory: &'a mut [u8]) -> Self {
        let parts = Self::parts(plan).map(|bytes| {
            let (part, rest) = std::mem::take(&mut memory).split_at_mut(bytes);
            memory = rest;
            part
        });
        let [q, scores, weights, product, factors, scratch, chunk, total] = parts;
        let tiles = Tiles {
            q,
            scores: cast_slice_mut(scores),
            weights,
            product: cast_slice_mut(product),
            factors: cast_slice_mut(factors),
            scratch,
        };
        Self {
            tiles,
            chunk: state(plan, cast_slice_mut(chunk)),
            total: state(plan, cast_slice_mut(total)),
        }
    }
}

fn state<'a>(plan: &Plan<'_>, memory: &'a mut [f32]) -> State<'a> {
    State::new(memory, plan.block_rows, plan.shape.value_n())
}

/// A unit of a call, on the vectors `L`.
pub(super) struct Work<'a, L> {
    pub l: L,
    pub call: &'a Call<'a>,
    pub unit: Unit<'a>,
}

impl<L: Lanes> Work<'_, L> {
    /// All chunks, merged, into the output.
    ///
    /// # Safety
    /// Nobody else uses the rows and heads of the unit in the output.
    #[inline(always)]
    pub unsafe fn whole(&self, memory: &mut Memory<'_>) {
        let Memory {
            tiles,
            chunk,
            total,
        } = memory;
        self.take_queries(tiles);
        total.reset();
        for index in 0..self.unit.chunks() {
            self.see_chunk(index, tiles, chunk);
            total.merge(self.l, self.rows(), chunk);
        }
        // SAFETY: nobody else uses the unit's rows and heads, as required.
        unsafe { self.finish(total) }
    }

    /// Chunk `index` of the unit, if it has one, into its row of `partial`.
    ///
    /// # Safety
    /// Nobody else uses that row.
    #[inline(always)]
    pub unsafe fn chunk(&self, memory: &mut Memory<'_>, index: usize, partial: &DisjointRows<'_>) {
        if index >= self.unit.chunks() {
            return;
        }
        self.take_queries(&mut memory.tiles);
        // SAFETY: nobody else uses the chunk's row of `partial`, as required.
        let mut state = unsafe { self.partial_state(index, partial) };
        self.see_chunk(index, &mut memory.tiles, &mut state);
    }

    /// The states of all chunks in `partial`, merged, into the output.
    ///
    /// # Safety
    /// Nobody else uses the unit's rows of `partial`, nor its rows and heads in the output.
    #[inline(always)]
    pub unsafe fn merge(&self, memory: &mut Memory<'_>, partial: &DisjointRows<'_>) {
        let total = &mut memory.total;
        total.reset();
        for index in 0..self.unit.chunks() {
            // SAFETY: nobody else uses the unit's rows of `partial`, as required.
            let state = unsafe { self.partial_state(index, partial) };
            total.merge(self.l, self.rows(), &state);
        }
        // SAFETY: nobody else uses the unit's rows and heads, as required.
        unsafe { self.finish(total) }
    }

    /// # Safety
    /// Nobody else uses the row of chunk `index` in `partial`.
    unsafe fn partial_state<'p>(&self, index: usize, partial: &'p DisjointRows<'_>) -> State<'p> {
        let plan = self.call.plan;
        let row = self.unit.index * plan.shared_chunks + index;
        // SAFETY: nobody else uses the row, as required; `part` checks that it is there.
        state(plan, unsafe { partial.part(row, 0..partial.cols()) })
    }

    /// Query rows of the unit.
    fn rows(&self) -> usize {
        self.unit.tokens * self.call.plan.group
    }

    /// Row of queries and output, and columns there, of row `row` of the block.
    fn place(&self, row: usize) -> (usize, Range<usize>) {
        let Plan { group, params, .. } = self.call.plan;
        let head = self.unit.kv_head * group + row % group;
        let token = self.unit.task.first_row + self.unit.first + row / group;
        (token, head * params.head_dim..(head + 1) * params.head_dim)
    }

    /// Makes the queries of the block, times the scale, ready for the kernels.
    #[inline(always)]
    fn take_queries(&self, tiles: &mut Tiles<'_>) {
        let (l, plan) = (self.l, self.call.plan);
        let scale = l.splat(plan.params.scale);
        // No product is there yet: its memory takes the row that is being scaled.
        let scaled = &mut tiles.product[..plan.params.head_dim];
        for row in 0..self.rows() {
            let (token, cols) = self.place(row);
            for (to, from) in scaled
                .chunks_mut(L::LEN)
                .zip(self.call.q.row(token)[cols].chunks(L::LEN))
            {
                l.store_some(l.mul(l.load_some(from, 0.0), scale), to);
            }
            for (kind, k, bytes) in plan.queries() {
                let row_bytes = kind.row_bytes(k);
                let to = &mut tiles.q[bytes][row * row_bytes..][..row_bytes];
                kind.write_row(scaled, k, to);
            }
        }
    }

    /// Chunk `index` of the unit, from nothing.
    #[inline(always)]
    fn see_chunk(&self, index: usize, tiles: &mut Tiles<'_>, state: &mut State<'_>) {
        let first = (self.unit.first_chunk() + index) * CHUNK_PAGES;
        let last = self.unit.pages.1.min(first + CHUNK_PAGES - 1);
        state.reset();
        let first = self.unit.pages.0.max(first);
        let mut keys = self.keys(first);
        for page in first..=last {
            let next = (page < last).then(|| self.keys(page + 1));
            self.see_page(page, (keys, next), tiles, state);
            keys = next.unwrap_or(keys);
        }
    }

    fn keys(&self, page: usize) -> PageWeight<'_> {
        let Unit {
            task,
            kv_head,
            query_page,
            ..
        } = self.unit;
        PageWeight::key(task.kv.key(kv_head, page, query_page), self.call.plan.shape)
    }

    fn values(&self, page: usize) -> PageWeight<'_> {
        let Unit {
            task,
            kv_head,
            query_page,
            ..
        } = self.unit;
        PageWeight::value(
            task.kv.value(kv_head, page, query_page),
            self.call.plan.shape,
        )
    }

    /// `keys` are those of the page and of the one after.
    #[inline(always)]
    fn see_page(
        &self,
        page: usize,
        (keys, next_keys): (PageWeight<'_>, Option<PageWeight<'_>>),
        tiles: &mut Tiles<'_>,
        state: &mut State<'_>,
    ) {
        let (l, plan, n, rows) = (
            self.l,
            self.call.plan,
            self.call.plan.shape.value_n(),
            self.rows(),
        );
        let Tiles {
            q,
            scores,
            weights,
            product,
            factors,
            scratch,
        } = tiles;
        let values = self.values(page);
        let kernel = plan.kernel(keys.format);
        let query = plan.queries().find(|(kind, ..)| *kind == kernel.activation);
        let (_, _, bytes) = query.expect("queries are made ready for every kernel");
        let scored = Product {
            x: &q[bytes],
            rows,
            w: keys,
            next: Some(values),
            y: scores,
        };
        multiply(self.call.rt.cpu(), kernel, scored, scratch);
        let kernel = plan.kernel(values.format);
        let as_is = kernel.activation == Activation::F32;
        let row_bytes = kernel.activation.row_bytes(PAGE_TOKENS);
        let pairs = scores
            .chunks_exact_mut(PAGE_TOKENS)
            .zip(weights.chunks_exact_mut(row_bytes));
        for (row, (scores, weights)) in pairs.take(rows).enumerate() {
            factors[row] = state.weigh(l, row, scores, self.visible(row, page));
            if !as_is {
                kernel.activation.write_row(scores, PAGE_TOKENS, weights);
            }
        }
        let weighted = Product {
            x: if as_is { cast_slice(scores) } else { weights },
            rows,
            w: values,
            next: next_keys,
            y: product,
        };
        multiply(self.call.rt.cpu(), kernel, weighted, scratch);
        for (row, product) in product.chunks_exact(n).take(rows).enumerate() {
            state.accumulate(l, row, factors[row], product);
        }
    }

    /// The slots of page `page` that row `row` of the block sees.
    fn visible(&self, row: usize, page: usize) -> Range<usize> {
        let plan = self.call.plan;
        let position = self.unit.task.start + self.unit.first + row / plan.group;
        let slot = |position: usize| position.saturating_sub(page * PAGE_TOKENS).min(PAGE_TOKENS);
        let (first, end) = (slot(plan.oldest(position)), slot(position + 1));
        first.min(end)..end
    }

    /// Writes the output of the block.
    ///
    /// # Safety
    /// Nobody else uses its rows and heads.
    #[inline(always)]
    unsafe fn finish(&self, total: &State<'_>) {
        for row in 0..self.rows() {
            let (token, cols) = self.place(row);
            // SAFETY: nobody else uses the unit's rows and heads, as required; `part` checks that they are there.
            let out = unsafe { self.call.out.part(token, cols) };
            total.finish(self.l, row, out);
        }
    }
}
