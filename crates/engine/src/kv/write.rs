//! Writing what new tokens bring into their slots.

use std::sync::{Mutex, PoisonError};

use half::bf16;
use sparamx_kernels::attention::{PAGE_TOKENS, add_magnitudes, write_key, write_value};
use sparamx_kernels::{Rows, Runtime};

use super::layout::Layout;

/// From so many elements on, threads share the writing: about 10 us for one of them, the time it takes to wake the others.
const SHARED_ELEMS: usize = 1 << 14;

/// Queries, keys and values of neighboring tokens in one layer.
#[derive(Clone, Copy)]
pub(super) struct New<'a> {
    /// Position of the first.
    pub start: usize,
    pub q: Rows<'a>,
    pub k: Rows<'a>,
    pub v: Rows<'a>,
}

/// What one thread writes at a time: some rows of one kv head into one page of keys and one of values.
struct Piece<'a> {
    kv_head: usize,
    first_row: usize,
    rows: usize,
    first_slot: usize,
    /// All that belongs to the head in its block.
    memory: &'a mut [u16],
}

/// Writes `new`. `blocks` are what belongs to the layer in the blocks from the page of the first token on.
pub(super) fn write<'a>(
    rt: &Runtime,
    layout: Layout,
    new: New<'_>,
    blocks: impl Iterator<Item = &'a mut [u16]>,
) {
    let mut pieces = pieces(layout, new.start, new.k.rows(), blocks);
    let each = |piece: &mut Piece<'_>| piece.write(layout, new);
    if new.k.rows() * new.k.cols() < SHARED_ELEMS {
        pieces.iter_mut().for_each(each);
    } else {
        share_out(rt, &mut pieces, &each);
    }
}

/// Cuts rows for positions `start ..` by page and head.
fn pieces<'a>(
    layout: Layout,
    start: usize,
    rows: usize,
    blocks: impl Iterator<Item = &'a mut [u16]>,
) -> Vec<Piece<'a>> {
    let mut pieces = Vec::with_capacity(layout.kv_heads * (rows / PAGE_TOKENS + 2));
    for (page, block) in (start / PAGE_TOKENS..).zip(blocks) {
        let first = (page * PAGE_TOKENS).max(start);
        let end = ((page + 1) * PAGE_TOKENS).min(start + rows);
        let heads = block.chunks_exact_mut(layout.head_elems());
        pieces.extend(heads.enumerate().map(|(kv_head, memory)| Piece {
            kv_head,
            first_row: first - start,
            rows: end - first,
            first_slot: first % PAGE_TOKENS,
            memory,
        }));
    }
    pieces
}

impl Piece<'_> {
    fn write(&mut self, layout: Layout, new: New<'_>) {
        let (shape, head_dim) = (layout.shape, layout.shape.head_dim);
        if self.first_slot == 0 && self.rows < PAGE_TOKENS {
            // What an earlier sequence left need not be finite, and slots without a token have to be.
            self.memory.fill(0);
        }
        let (key_page, rest) = self.memory.split_at_mut(shape.key_elems());
        let (value_page, queries) = rest.split_at_mut(shape.value_elems());
        let group = layout.heads / layout.kv_heads * head_dim;
        let mut sums = vec![0.0; head_dim];
        for i in 0..self.rows {
            let (row, slot) = (self.first_row + i, self.first_slot + i);
            let columns = self.kv_head * head_dim..(self.kv_head + 1) * head_dim;
            write_key(key_page, shape, slot, &new.k.row(row)[columns.clone()]);
            write_value(value_page, shape, slot, &new.v.row(row)[columns]);
            if !layout.keeps_queries {
                continue;
            }
            sums.fill(0.0);
            let q = &new.q.row(row)[self.kv_head * group..(self.kv_head + 1) * group];
            for q in q.chunks_exact(head_dim) {
                add_magnitudes(&mut sums, q);
            }
            let to = &mut queries[slot * head_dim..(slot + 1) * head_dim];
            for (to, sum) in to.iter_mut().zip(&sums) {
                *to = bf16::from_f32(*sum).to_bits();
            }
        }
    }
}

/// The magnitudes of queries in each dimension, summed over the tokens of a page, of what [`write()`] wrote for each token.
pub(super) fn query_sums(queries: &[u16], head_dim: usize) -> Vec<f32> {
    let mut sums = vec![0.0; head_dim];
    for token in queries.chunks_exact(head_dim) {
        for (sum, &bits) in sums.iter_mut().zip(token) {
            *sum += bf16::from_bits(bits).to_f32();
        }
    }
    sums
}

/// Has `each` done for all items, by all threads.
pub(super) fn share_out<T: Send>(rt: &Runtime, items: &mut [T], each: &(impl Fn(&mut T) + Sync)) {
    let threads = rt.threads().min(items.len());
    if threads < 2 {
        items.iter_mut().for_each(each);
        return;
    }
    let share = items.len().div_ceil(threads);
    let shares: Vec<_> = items.chunks_mut(share).map(Mutex::new).collect();
    rt.pool().run(&|thread| {
        let Some(share) = shares.get(thread) else {
            return;
        };
        let mut share = share.lock().unwrap_or_else(PoisonError::into_inner);
        share.iter_mut().for_each(each);
    });
}
