//! The ledger of a pool: which blocks there are, and who holds them.

use std::sync::Arc;

use sparamx_cpu::topology;
use sparamx_format::Storage;
use sparamx_kernels::attention::PackedPages;

use super::block::{Block, DenseBlock, PackedBlock};
use super::layout::Layout;
use super::options::Forms;
use super::prefix::{Evicted, Node, NodeId, Tree};

/// What a block has inside: one form of a page.
pub(super) trait Content: Sized {
    /// Memory of a new block; none if the system refuses it.
    fn new(layout: Layout, forms: Forms) -> Option<Self>;
    fn shelf(ledger: &mut Ledger) -> &mut Shelf<Self>;
    fn of(node: &mut Node) -> &mut Option<Arc<Block<Self>>>;
}

impl Content for Storage<u16> {
    fn new(layout: Layout, _: Forms) -> Option<Self> {
        Storage::zeroed(layout.block_elems()).ok()
    }

    fn shelf(ledger: &mut Ledger) -> &mut Shelf<Self> {
        &mut ledger.dense
    }

    fn of(node: &mut Node) -> &mut Option<Arc<DenseBlock>> {
        &mut node.dense
    }
}

impl Content for PackedPages {
    fn new(layout: Layout, forms: Forms) -> Option<Self> {
        PackedPages::new(forms.packing?, layout.pairs()).ok()
    }

    fn shelf(ledger: &mut Ledger) -> &mut Shelf<Self> {
        &mut ledger.packed
    }

    fn of(node: &mut Node) -> &mut Option<Arc<PackedBlock>> {
        &mut node.packed
    }
}

/// Where the memory of a pool is: all that its lock protects.
pub(super) struct Ledger {
    pub in_use: u64,
    pub cached: u64,
    pub free: u64,
    pub dense: Shelf<Storage<u16>>,
    pub packed: Shelf<PackedPages>,
    pub tree: Tree,
}

/// Blocks of one form that nobody holds.
pub(super) struct Shelf<T> {
    pub block_bytes: u64,
    pub free: Vec<Arc<Block<T>>>,
}

impl<T> Shelf<T> {
    pub fn new(block_bytes: u64) -> Self {
        Self {
            block_bytes,
            free: Vec::new(),
        }
    }
}

impl Ledger {
    /// The budget, or what the system has left if that is less.
    pub fn limit(&self, budget: u64) -> u64 {
        let held = self.in_use + self.cached + self.free;
        match topology::available_memory_bytes() {
            Some(available) => budget.min(held.saturating_add(available)),
            None => budget,
        }
    }

    /// Gives the memory of a free block back to the system; false if there is none.
    pub fn scrap<T: Content>(&mut self) -> bool {
        let shelf = T::shelf(self);
        let bytes = shelf.block_bytes;
        let scrapped = shelf.free.pop().is_some();
        if scrapped {
            self.free -= bytes;
        }
        scrapped
    }

    /// Makes free what the tree misses least; false if all of it is in use.
    pub fn evict(&mut self) -> bool {
        let Evicted { dense, packed } = self.tree.evict();
        let evicted = dense.is_some() || packed.is_some();
        dense.into_iter().for_each(|block| self.shelve(block));
        packed.into_iter().for_each(|block| self.shelve(block));
        evicted
    }

    /// A block that the tree held becomes free.
    fn shelve<T: Content>(&mut self, block: Arc<Block<T>>) {
        block.set_cached(false);
        let shelf = T::shelf(self);
        let bytes = shelf.block_bytes;
        shelf.free.push(block);
        self.cached -= bytes;
        self.free += bytes;
    }

    /// A sequence lets go of a block.
    pub fn release<T: Content>(&mut self, block: Arc<Block<T>>) {
        let bytes = T::shelf(self).block_bytes;
        match (Arc::strong_count(&block), block.is_cached()) {
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
                block.set_cached(true);
                *T::of(self.tree.node(id)) = Some(Arc::clone(block));
            }
        }
    }
}
