//! Causal attention of grouped queries over pages of keys and values.
//!
//! In one pass over the pages of a sequence, for every query row (Milakov and Gimelshein, 2018; Dao et al., 2022):
//!
//! ```text
//! max = -inf, sum = 0, acc = 0
//! for each page:  scores = q * keys^T;  new = max(max, scores);  weights = exp(scores - new)
//!                 acc = acc * exp(max - new) + weights * values;  sum likewise;  max = new
//! out = acc / sum
//! ```
//!
//! Departures from it:
//! 1. The query heads of a kv head, for up to `plan::BLOCK_ROWS` rows of neighboring tokens, go through the pages together:
//!    a *block*. Both products are those of the linear layers, with a page as the weight.
//! 2. The pages of a sequence are cut at fixed places into *chunks* of `plan::CHUNK_PAGES`. Each chunk starts anew with
//!    max, sum and acc, and chunks are merged in order. Where there are few blocks, threads share the chunks of a block.
//!
//! What a row computes depends on its own position only: not on the block it is in, on the other tasks of the call or on the
//! number of threads. So results are the same bits however a prompt is cut and whoever else is in the batch.

mod block;
mod multiply;
mod packed;
mod page;
mod plan;
mod prune;
mod state;

pub use packed::{PackedPage, PackedPages, PackedPair, Packing};
pub use page::{PAGE_TOKENS, PageShape, read_key, read_value, write_key, write_value};
pub use prune::{PruneRule, add_magnitudes};
pub use sparamx_format::page::PageDtype;

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::simd::{Lanes, VectorOp, dispatch};
use crate::vecops::DisjointRows;
use crate::{KernelError, Rows, RowsMut, Runtime};
use block::{Memory, Work};
use plan::Plan;

/// What all tasks of a call have in common.
#[derive(Debug, Clone, Copy)]
pub struct Params {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; query head `h` uses kv head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Number of last positions that a token sees, its own included; all if `None`.
    pub window: Option<usize>,
}

/// Neighboring tokens of one sequence. The token in row `first_row + i` is at position `start + i` and sees the positions up
/// to its own, as far back as the window reaches.
#[derive(Clone, Copy)]
pub struct Task<'a> {
    /// Row of the first token in queries and output.
    pub first_row: usize,
    /// Number of tokens.
    pub rows: usize,
    /// Position of the first token in its sequence.
    pub start: usize,
    /// Keys and values of the sequence, those of these tokens included.
    pub kv: &'a dyn KvPages,
}

/// Keys or values of [`PAGE_TOKENS`] positions.
#[derive(Clone, Copy)]
pub enum Page<'a> {
    /// Dense bf16 lines: [`PageShape::key_elems`] or [`PageShape::value_elems`] of them.
    Dense(&'a [u16]),
    /// Of [`PackedPages`].
    Packed(PackedPage<'a>),
}

/// The pages of one layer of one sequence: position `p` is in slot `p % 64` of page `p / 64`. Slots that no token has been
/// written to, and the padding, hold finite numbers (zeros, or what an earlier token left).
///
/// A page may come in one form to some queries and in another to others, by the page that the query's own position is in
/// (`query_page`): a row's result must not depend on when it is computed.
pub trait KvPages: Sync {
    /// What the elements of its packed pages are, if it has any.
    fn precision(&self) -> PageDtype {
        PageDtype::Bf16
    }
    /// Page `page` of the keys of kv head `kv_head`, as queries of page `query_page` see it.
    fn key(&self, kv_head: usize, page: usize, query_page: usize) -> Page<'_>;
    /// Page `page` of the values of kv head `kv_head`, as queries of page `query_page` see it.
    fn value(&self, kv_head: usize, page: usize, query_page: usize) -> Page<'_>;
}

/// `out = softmax(q * keys^T * scale) * values` for every query head of every row that a task names. `q` and `out` are
/// `[rows, heads * head_dim]`; other rows of `out` are left alone.
///
/// Tasks are in the order of their rows. A row whose scores are all minus infinity becomes NaN.
///
/// # Errors
/// [`KernelError::Mismatch`] for shapes that do not fit together, tasks whose rows overlap, are out of order or lie outside
/// `q`, and a window of 0.
///
/// # Panics
/// If a page has another size than the heads ask for, or is int8 where [`KvPages::precision`] said bf16.
pub fn attention(
    rt: &Runtime,
    params: &Params,
    q: Rows<'_>,
    tasks: &[Task<'_>],
    out: RowsMut<'_>,
) -> Result<(), KernelError> {
    check(params, q, tasks, &out)?;
    let plan = Plan::new(rt, params, tasks);
    if plan.units == 0 {
        return Ok(());
    }
    let out = DisjointRows::new(out);
    let call = Call {
        rt,
        plan: &plan,
        q,
        out: &out,
    };
    if plan.shared_chunks == 0 {
        call.run(Step::Whole);
        return Ok(());
    }
    let (states, state_elems) = (plan.units * plan.shared_chunks, plan.state_elems());
    let mut scratch = rt.shared_scratch();
    let partial = RowsMut::new(scratch.f32s(states * state_elems), states, state_elems);
    let partial = DisjointRows::new(partial);
    call.run(Step::Chunks(&partial));
    call.run(Step::Merge(&partial));
    Ok(())
}

/// What a call works on.
#[derive(Clone, Copy)]
struct Call<'a> {
    rt: &'a Runtime,
    plan: &'a Plan<'a>,
    q: Rows<'a>,
    out: &'a DisjointRows<'a>,
}

/// What is done to each item of work. With the partial states, one row for every chunk of every unit.
#[derive(Clone, Copy)]
enum Step<'a> {
    /// All chunks of a unit, merged, into the output.
    Whole,
    /// One chunk of a unit into its partial state.
    Chunks(&'a DisjointRows<'a>),
    /// The partial states of a unit, merged, into the output.
    Merge(&'a DisjointRows<'a>),
}

impl Call<'_> {
    /// Does `step` for all items, each taken by the thread that is free next.
    fn run(&self, step: Step<'_>) {
        let next = AtomicUsize::new(0);
        let work = |thread| {
            dispatch(
                self.rt.cpu(),
                Items {
                    call: self,
                    step,
                    next: &next,
                    thread,
                },
            )
        };
        if self.plan.parallel {
            self.rt.pool().run(&work)
        } else {
            work(0)
        }
    }
}

/// The items that one thread gets.
struct Items<'a> {
    call: &'a Call<'a>,
    step: Step<'a>,
    next: &'a AtomicUsize,
    thread: usize,
}

impl VectorOp for Items<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<L: Lanes>(self, lanes: L) {
        let plan = self.call.plan;
        let mut scratch = self.call.rt.scratch(self.thread);
        let mut memory = Memory::new(plan, scratch.bytes(Memory::bytes(plan)));
        let chunks = if let Step::Chunks(_) = self.step {
            plan.shared_chunks
        } else {
            1
        };
        loop {
            // No memory is passed along with an item, so no ordering is needed.
            let item = self.next.fetch_add(1, Ordering::Relaxed);
            if item >= plan.units * chunks {
                return;
            }
            let work = Work {
                l: lanes,
                call: self.call,
                unit: plan.unit(item / chunks),
            };
            // SAFETY: `next` gives each item to one thread once. Units differ in rows or heads of the output and in their
            // rows of `partial`; a chunk writes only its own row. Merging begins when the run before has ended.
            unsafe {
                match self.step {
                    Step::Whole => work.whole(&mut memory),
                    Step::Chunks(partial) => work.chunk(&mut memory, item % chunks, partial),
                    Step::Merge(partial) => work.merge(&mut memory, partial),
                }
            }
        }
    }
}

fn check(
    p: &Params,
    q: Rows<'_>,
    tasks: &[Task<'_>],
    out: &RowsMut<'_>,
) -> Result<(), KernelError> {
    let same = |what, left, right| {
        if left == right {
            Ok(())
        } else {
            Err(KernelError::Mismatch { what, left, right })
        }
    };
    let least_one = |what, n: usize| same(what, n, n.max(1));
    least_one("heads and the fewest allowed", p.heads)?;
    least_one("kv heads and the fewest allowed", p.kv_heads)?;
    least_one("elements of a head and the fewest allowed", p.head_dim)?;
    least_one("window and the smallest allowed", p.window.unwrap_or(1))?;
    same(
        "heads and whole groups for the kv heads",
        p.heads,
        p.heads / p.kv_heads * p.kv_heads,
    )?;
    let width = p.heads.saturating_mul(p.head_dim);
    same("columns of q and elements of all heads", q.cols(), width)?;
    same(
        "columns of the output and elements of all heads",
        out.cols(),
        width,
    )?;
    same("rows of q and of the output", q.rows(), out.rows())?;
    let mut free = 0;
    for task in tasks {
        same(
            "first row of a task and a row after the task before",
            task.first_row,
            task.first_row.max(free),
        )?;
        free = task.first_row.saturating_add(task.rows);
        same(
            "end of a task and a row that q has",
            free,
            free.min(q.rows()),
        )?;
        let room = usize::MAX - task.start;
        same(
            "tokens of a task and positions that can be counted",
            task.rows,
            task.rows.min(room),
        )?;
    }
    Ok(())
}
