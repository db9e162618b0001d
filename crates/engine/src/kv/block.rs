//! Blocks: the unit of memory that sequences and the prefix cache share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sparamx_format::Storage;
use sparamx_kernels::attention::PackedPages;

/// A block, whose references are the record of who holds it. They are made and dropped under the pool's lock only.
pub(super) struct Block<T> {
    pub content: T,
    /// Whether one of the references is the tree's.
    cached: AtomicBool,
}

pub(super) type DenseBlock = Block<Storage<u16>>;
pub(super) type PackedBlock = Block<PackedPages>;

impl<T> Block<T> {
    /// A block that nobody holds yet.
    pub fn new(content: T) -> Self {
        Self {
            content,
            cached: AtomicBool::new(false),
        }
    }

    /// Whether the tree holds the block.
    pub fn is_cached(&self) -> bool {
        self.cached.load(Ordering::Relaxed)
    }

    pub fn set_cached(&self, cached: bool) {
        self.cached.store(cached, Ordering::Relaxed);
    }

    /// Whether a sequence holds the block, which the tree holds.
    pub fn in_use(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 1
    }
}
