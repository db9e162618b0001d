//! One page of a sequence, dense, packed, or both.

use std::sync::Arc;

use sparamx_kernels::Runtime;
use sparamx_kernels::attention::PackedPair;

use super::block::{DenseBlock, PackedBlock};
use super::layout::{Layout, Pair};
use super::ledger::Ledger;
use super::prefix::NodeId;
use super::write::query_sums;

/// A page. At least one form is there.
pub(super) struct Slot {
    pub dense: Option<Arc<DenseBlock>>,
    pub packed: Option<Packed>,
}

/// The packed form of a page.
pub(super) struct Packed {
    block: Arc<PackedBlock>,
    /// By layer, whether it is packed.
    layers: Vec<bool>,
    /// Whether the block is the tree's too.
    in_tree: bool,
}

impl Packed {
    /// Memory for a page of which no layer is packed.
    pub fn memory(block: Arc<PackedBlock>, layers: usize) -> Self {
        Self {
            block,
            layers: vec![false; layers],
            in_tree: false,
        }
    }

    /// A page of the tree.
    pub fn known(block: Arc<PackedBlock>, layers: usize) -> Self {
        Self {
            block,
            layers: vec![true; layers],
            in_tree: true,
        }
    }

    pub fn release(self, ledger: &mut Ledger) {
        ledger.release(self.block);
    }

    pub fn block(&self) -> &PackedBlock {
        &self.block
    }

    pub fn is_complete(&self) -> bool {
        self.layers.iter().all(|&packed| packed)
    }

    /// By layer, whether it is packed.
    pub fn layers(&self) -> &[bool] {
        &self.layers
    }

    /// What was packed of a layer no longer holds.
    pub fn forget(&mut self, layer: usize) {
        self.layers[layer] = false;
    }
}

/// The pages of a layer and kv head, to be packed.
pub(super) struct Job<'a> {
    from: Pair<'a>,
    to: PackedPair<'a>,
}

impl Job<'_> {
    pub fn run(&mut self, rt: &Runtime, layout: Layout) {
        let query = if layout.keeps_queries {
            query_sums(self.from.queries, layout.shape.head_dim)
        } else {
            Vec::new()
        };
        self.to
            .pack(rt.cpu(), self.from.key, self.from.value, &query);
    }
}

impl Slot {
    pub fn dense(block: Arc<DenseBlock>) -> Self {
        Self {
            dense: Some(block),
            packed: None,
        }
    }

    /// Whether the page is packed whole and the tree does not have it yet.
    pub fn is_news(&self) -> bool {
        let news = |packed: &Packed| !packed.in_tree && packed.is_complete();
        self.packed.as_ref().is_some_and(news)
    }

    /// Whether others hold the dense page as well.
    pub fn is_shared(&self) -> bool {
        let shared = |block: &Arc<DenseBlock>| Arc::strong_count(block) > 1;
        self.dense.as_ref().is_some_and(shared)
    }

    /// The elements of the dense page, which nobody else holds.
    pub fn dense_mut(&mut self) -> &mut [u16] {
        let block = self.dense.as_mut().and_then(Arc::get_mut);
        let block = block.and_then(|block| block.content.as_mut_slice());
        block.expect("a page is copied before it is written when others hold it")
    }

    /// What there is to do to pack a layer. Counts it as packed.
    pub fn jobs(&mut self, layout: Layout, layer: usize) -> Vec<Job<'_>> {
        let Self {
            dense: Some(dense),
            packed: Some(packed),
        } = self
        else {
            panic!("a page is packed from its dense form to memory that was reserved");
        };
        packed.layers[layer] = true;
        let block = Arc::get_mut(&mut packed.block).expect("a page is shared once it is packed");
        let pairs = block.content.pairs_mut().enumerate();
        pairs
            .skip(layer * layout.kv_heads)
            .take(layout.kv_heads)
            .map(|(pair, to)| Job {
                from: layout.pair(&dense.content, pair),
                to,
            })
            .collect()
    }

    /// Has the tree know the page, which is full, in the forms that are there.
    pub fn register(&mut self, ledger: &mut Ledger, id: NodeId) {
        if let Some(block) = &mut self.dense {
            ledger.register(id, block);
        }
        if self.is_news()
            && let Some(packed) = &mut self.packed
        {
            ledger.register(id, &mut packed.block);
            packed.in_tree = true;
        }
    }

    /// The page for one more sequence, as far as it is finished. The pool has to be locked.
    pub fn share(&self) -> Self {
        let finished = self.packed.as_ref().filter(|packed| packed.is_complete());
        Self {
            dense: self.dense.clone(),
            packed: finished.map(|packed| Packed {
                block: Arc::clone(&packed.block),
                layers: packed.layers.clone(),
                in_tree: packed.in_tree,
            }),
        }
    }

    pub fn release_dense(&mut self, ledger: &mut Ledger) {
        if let Some(block) = self.dense.take() {
            ledger.release(block);
        }
    }

    pub fn release_packed(&mut self, ledger: &mut Ledger) {
        if let Some(packed) = self.packed.take() {
            packed.release(ledger);
        }
    }
}
