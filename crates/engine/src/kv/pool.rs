//! The memory of pages.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use sparamx_cpu::topology;
use sparamx_format::Storage;
use sparamx_kernels::attention::{PAGE_TOKENS, PackedPages, PageShape};

use super::block::{Block, DenseBlock, PackedBlock};
use super::layout::{KvShape, Layout, pages};
use super::ledger::{Content, Ledger, Shelf};
use super::options::{Forms, KvOptions, UNDO_TOKENS};
use super::prefix::Tree;
use crate::EngineError;

/// Hands out the pages of any number of sequences of one model, within a budget of bytes, and keeps those that a later
/// sequence may want. A clone is the same pool; threads may share it.
#[derive(Clone)]
pub struct PagePool(Arc<Shared>);

struct Shared {
    layout: Layout,
    forms: Forms,
    options: KvOptions,
    budget: u64,
    /// Of a dense block, and of a packed one.
    block_bytes: (u64, u64),
    ledger: Mutex<Ledger>,
}

/// Where the memory of a pool is. All of it together is never more than the budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct PoolUsage {
    /// Bytes that the pool may take.
    pub budget_bytes: u64,
    /// Bytes of the blocks that sequences hold, each counted once.
    pub in_use_bytes: u64,
    /// Bytes of the blocks that only the prefix cache holds; they make room when a sequence needs it.
    pub cached_bytes: u64,
    /// Bytes of blocks that wait for the next use.
    pub free_bytes: u64,
}

/// Blocks for a sequence.
pub(super) struct Taken {
    pub dense: Vec<Arc<DenseBlock>>,
    pub packed: Vec<Arc<PackedBlock>>,
}

impl PagePool {
    /// A pool without blocks yet, for the layers and heads of a model: its `&Config`, or a [`KvShape`].
    ///
    /// # Errors
    /// [`EngineError::Parameter`] for what [`KvOptions::check`] refuses, and a budget that is too small for a single token.
    pub fn new(model: impl Into<KvShape>, options: &KvOptions) -> Result<Self, EngineError> {
        options.check()?;
        let model = model.into();
        let shape = PageShape {
            head_dim: model.head_dim,
        };
        let forms = Forms::new(options, shape);
        let keeps_queries = forms.packing.is_some_and(|packing| packing.needs_query());
        let layout = Layout::new(model, keeps_queries);
        let available = || topology::available_memory_bytes().map_or(u64::MAX, |b| b / 4 * 3);
        let budget = options.budget_bytes.unwrap_or_else(available);
        let pair_bytes = forms.packing.map_or(0, |packing| packing.pair_bytes());
        let ledger = Ledger {
            in_use: 0,
            cached: 0,
            free: 0,
            dense: Shelf::new(layout.block_elems() as u64 * 2),
            packed: Shelf::new(layout.pairs() as u64 * pair_bytes as u64),
            tree: Tree::new(),
        };
        let pool = Self(Arc::new(Shared {
            layout,
            forms,
            options: options.clone(),
            budget,
            block_bytes: (ledger.dense.block_bytes, ledger.packed.block_bytes),
            ledger: Mutex::new(ledger),
        }));
        let least = pool.sequence_bytes(1, 1);
        if budget < least {
            let allowed = format!("{least} bytes or more, a page of {PAGE_TOKENS} tokens");
            return Err(EngineError::parameter(
                "memory of the KV cache",
                budget,
                allowed,
            ));
        }
        Ok(pool)
    }

    /// What the pool was made with.
    pub fn options(&self) -> &KvOptions {
        &self.0.options
    }

    /// Where the memory is, exactly.
    pub fn usage(&self) -> PoolUsage {
        let ledger = self.lock();
        PoolUsage {
            budget_bytes: self.0.budget,
            in_use_bytes: ledger.in_use,
            cached_bytes: ledger.cached,
            free_bytes: ledger.free,
        }
    }

    /// The most bytes that a sequence on its way to `tokens` tokens holds, if it grows by up to `step` tokens a pass.
    pub fn sequence_bytes(&self, tokens: usize, step: usize) -> u64 {
        let Forms { sinks, window, .. } = self.0.forms;
        let all = pages(tokens);
        let packed = self.0.forms.packed_end(all).saturating_sub(sinks);
        let dense = match self.0.forms.packing {
            // Those that a pass fills, those in the window, and the one that went out of it last if its tokens can be taken
            // back.
            Some(_) => pages(step.saturating_add(UNDO_TOKENS + PAGE_TOKENS - 1))
                .saturating_add(window)
                .saturating_add(sinks)
                .min(all),
            None => all,
        };
        self.bytes_of(dense, packed)
    }

    /// Empties the prefix cache and gives all memory that no sequence holds back to the system.
    #[cfg(test)]
    pub fn clear_cache(&self) {
        let mut ledger = self.lock();
        while ledger.evict() {}
        ledger.free = 0;
        ledger.dense.free = Vec::new();
        ledger.packed.free = Vec::new();
    }

    pub(super) fn layout(&self) -> Layout {
        self.0.layout
    }

    pub(super) fn forms(&self) -> Forms {
        self.0.forms
    }

    /// Bytes of so many dense and packed blocks.
    pub(super) fn bytes_of(&self, dense: usize, packed: usize) -> u64 {
        let (dense_bytes, packed_bytes) = self.0.block_bytes;
        let bytes = |blocks: usize, bytes: u64| (blocks as u64).saturating_mul(bytes);
        bytes(dense, dense_bytes).saturating_add(bytes(packed, packed_bytes))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Ledger> {
        // A panic under the lock is a bug in here; what the ledger says does not matter then.
        self.0.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many blocks of each form, all or none, whatever they hold; cached pages make room if there is no other.
    ///
    /// # Errors
    /// [`EngineError::PoolFull`] if sequences hold too much, [`EngineError::CacheMemory`] if the system has too little.
    pub(super) fn take(
        &self,
        ledger: &mut Ledger,
        dense: usize,
        packed: usize,
    ) -> Result<Taken, EngineError> {
        let needed_bytes = self.bytes_of(dense, packed);
        let free_bytes = self.0.budget - ledger.in_use;
        if needed_bytes > free_bytes {
            return Err(EngineError::PoolFull {
                needed_bytes,
                free_bytes,
                budget_bytes: self.0.budget,
            });
        }
        // The system is asked only if it has to give.
        let has_both = dense <= ledger.dense.free.len() && packed <= ledger.packed.free.len();
        let limit = if has_both {
            self.0.budget
        } else {
            ledger.limit(self.0.budget)
        };
        let available_bytes = limit.saturating_sub(ledger.in_use);
        let taken = if needed_bytes <= available_bytes {
            self.take_below(limit, ledger, dense, packed)
        } else {
            None
        };
        taken.ok_or(EngineError::CacheMemory {
            needed_bytes,
            available_bytes,
        })
    }

    fn take_below(
        &self,
        limit: u64,
        ledger: &mut Ledger,
        dense: usize,
        packed: usize,
    ) -> Option<Taken> {
        let mut taken = Taken {
            dense: Vec::new(),
            packed: Vec::new(),
        };
        while taken.dense.len() < dense
            && let Some(block) = self.take_one(limit, ledger)
        {
            taken.dense.push(block);
        }
        while taken.packed.len() < packed
            && let Some(block) = self.take_one(limit, ledger)
        {
            taken.packed.push(block);
        }
        if taken.dense.len() == dense && taken.packed.len() == packed {
            return Some(taken);
        }
        taken
            .dense
            .into_iter()
            .for_each(|block| ledger.release(block));
        taken
            .packed
            .into_iter()
            .for_each(|block| ledger.release(block));
        None
    }

    /// A block; none if neither the free ones, nor the system, nor the cache have the memory below the limit.
    fn take_one<T: Content>(&self, limit: u64, ledger: &mut Ledger) -> Option<Arc<Block<T>>> {
        let bytes = T::shelf(ledger).block_bytes;
        loop {
            if let Some(block) = T::shelf(ledger).free.pop() {
                ledger.free -= bytes;
                ledger.in_use += bytes;
                return Some(block);
            }
            if ledger.in_use + ledger.cached + ledger.free + bytes <= limit {
                let content = T::new(self.0.layout, self.0.forms)?;
                ledger.in_use += bytes;
                return Some(Arc::new(Block::new(content)));
            }
            // Free ones of the other form first.
            if !ledger.scrap::<Storage<u16>>() && !ledger.scrap::<PackedPages>() && !ledger.evict()
            {
                return None;
            }
        }
    }
}
