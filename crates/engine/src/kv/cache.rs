//! The pages of one sequence.

use std::sync::{Mutex, PoisonError};

use sparamx_format::Storage;
use sparamx_kernels::attention::{KvPages, PAGE_TOKENS, Page, write_key, write_value};
use sparamx_kernels::{KernelError, Rows, Runtime};
use sparamx_model::{Config, KvCache, ModelError};

use super::pool::{BlockLayout, PagePool};
use crate::EngineError;

/// From so many elements on, threads share the writing: about 10 us for one of them, the time it takes to wake the others.
const SHARED_ELEMS: usize = 1 << 14;

/// Keys and values of one sequence, of up to a fixed number of tokens. Memory grows page by page.
pub struct PagedCache {
    pool: PagePool,
    layers: Vec<LayerPages>,
    len: usize,
    capacity: usize,
}

/// One layer: block `i` has positions `64 i ..`.
struct LayerPages {
    layout: BlockLayout,
    blocks: Vec<Storage<u16>>,
}

impl PagedCache {
    /// An empty cache for a sequence of up to `max_tokens` tokens of the model with this `config`, with a pool of its own.
    ///
    /// # Errors
    /// `max_tokens` is 0.
    pub fn new(config: &Config, max_tokens: usize) -> Result<Self, EngineError> {
        Self::in_pool(&PagePool::new(config), max_tokens)
    }

    /// An empty cache whose pages come from `pool`.
    ///
    /// # Errors
    /// As [`PagedCache::new`].
    pub fn in_pool(pool: &PagePool, max_tokens: usize) -> Result<Self, EngineError> {
        if max_tokens == 0 {
            return Err(EngineError::parameter("context", 0, "1 token or more"));
        }
        let layer = || LayerPages {
            layout: pool.layout(),
            blocks: Vec::new(),
        };
        Ok(Self {
            layers: (0..pool.layers()).map(|_| layer()).collect(),
            pool: pool.clone(),
            len: 0,
            capacity: max_tokens,
        })
    }

    /// Tokens it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes of its pages.
    pub fn bytes(&self) -> u64 {
        let blocks: usize = self.layers.iter().map(|layer| layer.blocks.len()).sum();
        blocks as u64 * self.pool.block_bytes()
    }

    /// Gets the memory for `tokens` tokens after those it holds, so that adding them cannot fail for want of it.
    ///
    /// # Errors
    /// [`ModelError::CacheFull`]; [`EngineError::CacheMemory`] with the bytes needed and available.
    pub fn reserve(&mut self, tokens: usize) -> Result<(), EngineError> {
        let end = self.end(tokens)?;
        let missing =
            |layer: &LayerPages| end.div_ceil(PAGE_TOKENS).saturating_sub(layer.blocks.len());
        let blocks = self
            .layers
            .iter()
            .map(missing)
            .fold(0, usize::saturating_add);
        self.pool.check(blocks, end)?;
        let out_of_memory = EngineError::CacheMemory {
            needed_bytes: (blocks as u64).saturating_mul(self.pool.block_bytes()),
            available_bytes: 0,
            tokens: end,
        };
        let grow = |layer: &mut LayerPages| layer.grow(&self.pool, end);
        match self.layers.iter_mut().all(grow) {
            true => Ok(()),
            false => Err(out_of_memory),
        }
    }

    /// Forgets the tokens from position `len` on and gives back the pages that held only them.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        let blocks = self.len.div_ceil(PAGE_TOKENS);
        for layer in &mut self.layers {
            let blocks = blocks.min(layer.blocks.len());
            self.pool.give_back(layer.blocks.drain(blocks..));
        }
    }

    /// Position after `tokens` more tokens, if that many fit.
    fn end(&self, tokens: usize) -> Result<usize, ModelError> {
        let needed = self.len.saturating_add(tokens);
        match needed <= self.capacity {
            true => Ok(needed),
            false => Err(ModelError::CacheFull {
                needed,
                capacity: self.capacity,
            }),
        }
    }
}

impl Drop for PagedCache {
    fn drop(&mut self) {
        self.truncate(0);
    }
}

impl KvCache for PagedCache {
    fn len(&self) -> usize {
        self.len
    }

    fn append(
        &mut self,
        rt: &Runtime,
        layer: usize,
        k: Rows<'_>,
        v: Rows<'_>,
    ) -> Result<(), ModelError> {
        let end = self.end(k.rows())?;
        let layer = &mut self.layers[layer];
        layer.check(k, v)?;
        if !layer.grow(&self.pool, end) {
            return Err(ModelError::NotEnoughMemory {
                needed_bytes: self.pool.block_bytes(),
                available_bytes: 0,
            });
        }
        layer.write(rt, self.len, k, v);
        Ok(())
    }

    fn pages(&self, layer: usize) -> &dyn KvPages {
        &self.layers[layer]
    }

    fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}

impl KvPages for LayerPages {
    fn key(&self, kv_head: usize, page: usize) -> Page<'_> {
        let start = kv_head * self.layout.head_elems();
        Page::Dense(&self.blocks[page][start..start + self.layout.shape.key_elems()])
    }

    fn value(&self, kv_head: usize, page: usize) -> Page<'_> {
        let end = (kv_head + 1) * self.layout.head_elems();
        Page::Dense(&self.blocks[page][end - self.layout.shape.value_elems()..end])
    }
}

/// What one thread writes at a time: some rows of one head into one page of keys and one of values.
struct Piece<'a> {
    head: usize,
    first_row: usize,
    rows: usize,
    first_slot: usize,
    key_page: &'a mut [u16],
    value_page: &'a mut [u16],
}

impl Piece<'_> {
    fn write(&mut self, layout: BlockLayout, k: Rows<'_>, v: Rows<'_>) {
        let shape = layout.shape;
        let columns = self.head * shape.head_dim..(self.head + 1) * shape.head_dim;
        for i in 0..self.rows {
            let (row, slot) = (self.first_row + i, self.first_slot + i);
            write_key(self.key_page, shape, slot, &k.row(row)[columns.clone()]);
            write_value(self.value_page, shape, slot, &v.row(row)[columns.clone()]);
        }
    }
}

impl LayerPages {
    /// Takes blocks until there is room for `end` tokens; false if the system refuses the memory.
    fn grow(&mut self, pool: &PagePool, end: usize) -> bool {
        while self.blocks.len() * PAGE_TOKENS < end {
            match pool.take() {
                Some(block) => self.blocks.push(block),
                None => return false,
            }
        }
        true
    }

    fn check(&self, k: Rows<'_>, v: Rows<'_>) -> Result<(), KernelError> {
        let same = |what, left, right| match left == right {
            true => Ok(()),
            false => Err(KernelError::Mismatch { what, left, right }),
        };
        let width = self.layout.kv_heads * self.layout.shape.head_dim;
        same("rows of keys and of values", k.rows(), v.rows())?;
        same(
            "columns of keys and elements of all kv heads",
            k.cols(),
            width,
        )?;
        same(
            "columns of values and elements of all kv heads",
            v.cols(),
            width,
        )
    }

    /// Writes the rows to positions `start ..`, for which there is room.
    fn write(&mut self, rt: &Runtime, start: usize, k: Rows<'_>, v: Rows<'_>) {
        let layout = self.layout;
        let mut pieces = self.pieces(start, k.rows());
        let threads = rt.threads().min(pieces.len());
        if threads < 2 || k.rows() * k.cols() < SHARED_ELEMS {
            pieces
                .iter_mut()
                .for_each(|piece| piece.write(layout, k, v));
            return;
        }
        let share = pieces.len().div_ceil(threads);
        let shares: Vec<_> = pieces.chunks_mut(share).map(Mutex::new).collect();
        rt.pool().run(&|thread| {
            let Some(share) = shares.get(thread) else {
                return;
            };
            let mut share = share.lock().unwrap_or_else(PoisonError::into_inner);
            share.iter_mut().for_each(|piece| piece.write(layout, k, v));
        });
    }

    /// Cuts `rows` rows for positions `start ..` by page.
    fn pieces(&mut self, start: usize, rows: usize) -> Vec<Piece<'_>> {
        let BlockLayout { kv_heads, shape } = self.layout;
        let head_elems = self.layout.head_elems();
        let mut pieces = Vec::with_capacity(kv_heads * (rows / PAGE_TOKENS + 2));
        for (index, block) in self.blocks.iter_mut().enumerate() {
            let first = (index * PAGE_TOKENS).max(start);
            let end = ((index + 1) * PAGE_TOKENS).min(start + rows);
            if first >= end {
                continue;
            }
            let block = block.as_mut_slice().expect("no block is in two caches");
            for (head, pages) in block.chunks_exact_mut(head_elems).enumerate() {
                let (key_page, value_page) = pages.split_at_mut(shape.key_elems());
                pieces.push(Piece {
                    head,
                    first_row: first - start,
                    rows: end - first,
                    first_slot: first % PAGE_TOKENS,
                    key_page,
                    value_page,
                });
            }
        }
        pieces
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
