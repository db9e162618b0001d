//! The memory of pages.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sparamx_cpu::topology;
use sparamx_format::Storage;
use sparamx_kernels::attention::{PAGE_TOKENS, PageShape};
use sparamx_model::Config;

use crate::EngineError;

/// Hands out blocks of pages and takes them back, for any number of sequences of one model. A clone is the same pool.
#[derive(Clone)]
pub struct PagePool(Arc<Shared>);

struct Shared {
    layout: BlockLayout,
    layers: usize,
    blocks: Mutex<Blocks>,
}

struct Blocks {
    /// Blocks given back.
    free: Vec<Storage<u16>>,
    /// Blocks with a sequence.
    used: usize,
}

/// Sizes of a block, in elements: `[kv_heads]` of a key page followed by a value page.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockLayout {
    pub kv_heads: usize,
    pub shape: PageShape,
}

impl BlockLayout {
    /// Elements of a key page and its value page.
    pub fn head_elems(self) -> usize {
        self.shape.key_elems() + self.shape.value_elems()
    }

    fn block_elems(self) -> usize {
        self.kv_heads * self.head_elems()
    }
}

impl PagePool {
    /// A pool without blocks yet, for the layers and heads of `config`.
    pub fn new(config: &Config) -> Self {
        let layout = BlockLayout {
            kv_heads: config.num_key_value_heads,
            shape: PageShape {
                head_dim: config.head_dim,
            },
        };
        Self(Arc::new(Shared {
            layout,
            layers: config.num_hidden_layers,
            blocks: Mutex::new(Blocks {
                free: Vec::new(),
                used: 0,
            }),
        }))
    }

    /// Bytes of the pages of one layer for 64 tokens.
    pub fn block_bytes(&self) -> u64 {
        self.0.layout.block_elems() as u64 * 2
    }

    /// Bytes of a sequence of `tokens` tokens.
    pub fn sequence_bytes(&self, tokens: usize) -> u64 {
        let blocks = (tokens.div_ceil(PAGE_TOKENS) as u64).saturating_mul(self.layers() as u64);
        blocks.saturating_mul(self.block_bytes())
    }

    /// Bytes of the blocks that sequences hold.
    pub fn used_bytes(&self) -> u64 {
        self.lock().used as u64 * self.block_bytes()
    }

    /// Bytes of all blocks, those given back included.
    pub fn bytes(&self) -> u64 {
        let blocks = self.lock();
        (blocks.used + blocks.free.len()) as u64 * self.block_bytes()
    }

    pub(super) fn layout(&self) -> BlockLayout {
        self.0.layout
    }

    pub(super) fn layers(&self) -> usize {
        self.0.layers
    }

    /// Refuses when the system lacks the memory for `blocks` more blocks.
    pub(super) fn check(&self, blocks: usize, tokens: usize) -> Result<(), EngineError> {
        let new = blocks.saturating_sub(self.lock().free.len());
        if new == 0 {
            return Ok(());
        }
        let needed_bytes = (new as u64).saturating_mul(self.block_bytes());
        match topology::available_memory_bytes() {
            Some(available_bytes) if needed_bytes > available_bytes => {
                Err(EngineError::CacheMemory {
                    needed_bytes,
                    available_bytes,
                    tokens,
                })
            }
            _ => Ok(()),
        }
    }

    /// A block of zeros, or none if the system refuses the memory.
    pub(super) fn take(&self) -> Option<Storage<u16>> {
        let returned = self.lock().free.pop();
        let block = match returned {
            // What an earlier sequence left need not be finite, and slots without a token have to be.
            Some(mut block) => {
                block.as_mut_slice()?.fill(0);
                block
            }
            None => Storage::zeroed(self.0.layout.block_elems()).ok()?,
        };
        self.lock().used += 1;
        Some(block)
    }

    pub(super) fn give_back(&self, returned: impl IntoIterator<Item = Storage<u16>>) {
        let mut blocks = self.lock();
        let before = blocks.free.len();
        blocks.free.extend(returned);
        blocks.used -= blocks.free.len() - before;
    }

    fn lock(&self) -> MutexGuard<'_, Blocks> {
        // Nothing panics while it is held.
        self.0.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
