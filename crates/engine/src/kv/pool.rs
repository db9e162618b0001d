//! The memory of pages.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use sparamx_cpu::topology;
use sparamx_format::Storage;
use sparamx_kernels::attention::{PAGE_TOKENS, PackedPages, PageShape};

use super::KvOptions;
use super::layout::{KvShape, Layout, pages};
use super::options::Forms;
use super::prefix::{Evicted, Node, NodeId, Tree};
use super::sequence::{PagedCache, UNDO_TOKENS};
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
    books: Mutex<Books>,
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

/// A block, of which the number of references is also the book about who holds it. References are made and dropped under the
/// pool's lock only.
pub(super) struct Block<T> {
    pub content: T,
    /// Whether one of the references is the tree's.
    cached: AtomicBool,
}

pub(super) type DenseBlock = Block<Storage<u16>>;
pub(super) type PackedBlock = Block<PackedPages>;

impl<T> Block<T> {
    /// Whether a sequence holds the block, which the tree holds.
    pub fn in_use(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 1
    }
}

/// What a block has inside: one form of a page.
pub(super) trait Content: Sized {
    /// Memory of a new block; none if the system refuses it.
    fn new(layout: Layout, forms: Forms) -> Option<Self>;
    fn shelf(books: &mut Books) -> &mut Shelf<Self>;
    fn of(node: &mut Node) -> &mut Option<Arc<Block<Self>>>;
}

impl Content for Storage<u16> {
    fn new(layout: Layout, _: Forms) -> Option<Self> {
        Storage::zeroed(layout.block_elems()).ok()
    }

    fn shelf(books: &mut Books) -> &mut Shelf<Self> {
        &mut books.dense
    }

    fn of(node: &mut Node) -> &mut Option<Arc<DenseBlock>> {
        &mut node.dense
    }
}

impl Content for PackedPages {
    fn new(layout: Layout, forms: Forms) -> Option<Self> {
        PackedPages::new(forms.packing?, layout.pairs()).ok()
    }

    fn shelf(books: &mut Books) -> &mut Shelf<Self> {
        &mut books.packed
    }

    fn of(node: &mut Node) -> &mut Option<Arc<PackedBlock>> {
        &mut node.packed
    }
}

/// All that the lock protects.
pub(super) struct Books {
    pub(super) in_use: u64,
    cached: u64,
    free: u64,
    dense: Shelf<Storage<u16>>,
    packed: Shelf<PackedPages>,
    pub tree: Tree,
}

/// Blocks of one form that nobody holds.
pub(super) struct Shelf<T> {
    block_bytes: u64,
    free: Vec<Arc<Block<T>>>,
}

impl<T> Shelf<T> {
    fn new(block_bytes: u64) -> Self {
        Self {
            block_bytes,
            free: Vec::new(),
        }
    }
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
        let books = Books {
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
            block_bytes: (books.dense.block_bytes, books.packed.block_bytes),
            books: Mutex::new(books),
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
        let books = self.lock();
        PoolUsage {
            budget_bytes: self.0.budget,
            in_use_bytes: books.in_use,
            cached_bytes: books.cached,
            free_bytes: books.free,
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

    /// A sequence without tokens.
    pub fn sequence(&self) -> PagedCache {
        PagedCache::empty(self.clone(), usize::MAX)
    }

    /// A sequence that begins with the longest part of `tokens` that the prefix cache has: whole pages, and less than all of
    /// the tokens, so that one is left whose logits say how to go on.
    pub fn resume(&self, tokens: &[u32]) -> PagedCache {
        let mut sequence = self.sequence();
        let whole = tokens.len().saturating_sub(1) / PAGE_TOKENS;
        sequence.find(tokens, whole);
        sequence
    }

    /// Empties the prefix cache and gives all memory that no sequence holds back to the system.
    pub fn clear_cache(&self) {
        let mut books = self.lock();
        while books.evict() {}
        books.free = 0;
        books.dense.free = Vec::new();
        books.packed.free = Vec::new();
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

    pub(super) fn lock(&self) -> MutexGuard<'_, Books> {
        // A panic under the lock is a bug in here; what the books say is of no matter then.
        self.0.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many blocks of each form, all or none, whatever they hold; cached pages make room if there is no other.
    ///
    /// # Errors
    /// [`EngineError::PoolFull`] if sequences hold too much, [`EngineError::CacheMemory`] if the system has too little.
    pub(super) fn take(
        &self,
        books: &mut Books,
        dense: usize,
        packed: usize,
    ) -> Result<Taken, EngineError> {
        let needed_bytes = self.bytes_of(dense, packed);
        let free_bytes = self.0.budget - books.in_use;
        if needed_bytes > free_bytes {
            return Err(EngineError::PoolFull {
                needed_bytes,
                free_bytes,
                budget_bytes: self.0.budget,
            });
        }
        // The system is asked only if it has to give.
        let limit = match dense <= books.dense.free.len() && packed <= books.packed.free.len() {
            true => self.0.budget,
            false => books.limit(self.0.budget),
        };
        let available_bytes = limit.saturating_sub(books.in_use);
        let taken = match needed_bytes <= available_bytes {
            true => self.take_below(limit, books, dense, packed),
            false => None,
        };
        taken.ok_or(EngineError::CacheMemory {
            needed_bytes,
            available_bytes,
        })
    }

    fn take_below(
        &self,
        limit: u64,
        books: &mut Books,
        dense: usize,
        packed: usize,
    ) -> Option<Taken> {
        let mut taken = Taken {
            dense: Vec::new(),
            packed: Vec::new(),
        };
        while taken.dense.len() < dense
            && let Some(block) = self.take_one(limit, books)
        {
            taken.dense.push(block);
        }
        while taken.packed.len() < packed
            && let Some(block) = self.take_one(limit, books)
        {
            taken.packed.push(block);
        }
        if taken.dense.len() == dense && taken.packed.len() == packed {
            return Some(taken);
        }
        taken
            .dense
            .into_iter()
            .for_each(|block| books.release(block));
        taken
            .packed
            .into_iter()
            .for_each(|block| books.release(block));
        None
    }

    /// A block; none if neither the free ones, nor the system, nor the cache have the memory below the limit.
    fn take_one<T: Content>(&self, limit: u64, books: &mut Books) -> Option<Arc<Block<T>>> {
        let bytes = T::shelf(books).block_bytes;
        loop {
            if let Some(block) = T::shelf(books).free.pop() {
                books.free -= bytes;
                books.in_use += bytes;
                return Some(block);
            }
            if books.in_use + books.cached + books.free + bytes <= limit {
                let content = T::new(self.0.layout, self.0.forms)?;
                books.in_use += bytes;
                return Some(Arc::new(Block {
                    content,
                    cached: AtomicBool::new(false),
                }));
            }
            // Free ones of the other form first.
            if !books.scrap::<Storage<u16>>() && !books.scrap::<PackedPages>() && !books.evict() {
                return None;
            }
        }
    }
}

impl Books {
    /// The budget, or what the system has left if that is less.
    fn limit(&self, budget: u64) -> u64 {
        let held = self.in_use + self.cached + self.free;
        match topology::available_memory_bytes() {
            Some(available) => budget.min(held.saturating_add(available)),
            None => budget,
        }
    }

    /// Gives the memory of a free block back to the system; false if there is none.
    fn scrap<T: Content>(&mut self) -> bool {
        let shelf = T::shelf(self);
        let bytes = shelf.block_bytes;
        let scrapped = shelf.free.pop().is_some();
        if scrapped {
            self.free -= bytes;
        }
        scrapped
    }

    /// Makes free what the tree misses least; false if all of it is in use.
    fn evict(&mut self) -> bool {
        let Evicted { dense, packed } = self.tree.evict();
        let evicted = dense.is_some() || packed.is_some();
        dense.into_iter().for_each(|block| self.shelve(block));
        packed.into_iter().for_each(|block| self.shelve(block));
        evicted
    }

    /// A block that the tree held becomes free.
    fn shelve<T: Content>(&mut self, block: Arc<Block<T>>) {
        block.cached.store(false, Ordering::Relaxed);
        let shelf = T::shelf(self);
        let bytes = shelf.block_bytes;
        shelf.free.push(block);
        self.cached -= bytes;
        self.free += bytes;
    }

    /// A sequence lets go of a block.
    pub fn release<T: Content>(&mut self, block: Arc<Block<T>>) {
        let bytes = T::shelf(self).block_bytes;
        match (
            Arc::strong_count(&block),
            block.cached.load(Ordering::Relaxed),
        ) {
            (1, _) => {
                self.in_use -= bytes;
                self.free += bytes;
                T::shelf(self).free.push(block);
            }
            (2, true) => {
                self.in_use -= bytes;
                self.cached += bytes;
            }
            _ => {}
        }
    }

    /// The page of node `id` in the form `T` for one more sequence.
    pub fn share<T: Content>(&mut self, id: NodeId) -> Option<Arc<Block<T>>> {
        let block = T::of(self.tree.node(id)).clone()?;
        if Arc::strong_count(&block) == 2 {
            let bytes = T::shelf(self).block_bytes;
            self.cached -= bytes;
            self.in_use += bytes;
        }
        Some(block)
    }

    /// Puts a page into the tree as node `id`. If it is there already, the sequence gets that one in place of its own.
    pub fn register<T: Content>(&mut self, id: NodeId, block: &mut Arc<Block<T>>) {
        match self.share(id) {
            // Another sequence came first. Both have computed the same, and one copy is enough.
            Some(known) => {
                let own = std::mem::replace(block, known);
                self.release(own);
            }
            None => {
                block.cached.store(true, Ordering::Relaxed);
                *T::of(self.tree.node(id)) = Some(Arc::clone(block));
            }
        }
    }
}
