//! What a cache may take, and how its pages are kept.

use sparamx_kernels::attention::{PAGE_TOKENS, Packing, PageDtype, PageShape, PruneRule};

use crate::EngineError;

/// So many of the tokens that were added last can be taken back exactly, whatever the form of the pages.
pub const UNDO_TOKENS: usize = 16;

/// The memory of a [`PagePool`](crate::PagePool) and the form of its pages.
///
/// Pages between the first tokens and the last ones are packed once they are full; the others stay as they are, in bf16.
/// With the defaults nothing is packed.
#[derive(Debug, Clone, PartialEq)]
pub struct KvOptions {
    /// Most bytes of all pages together, those in the prefix cache included. `None`: three quarters of the memory that is
    /// available when the pool is made.
    pub budget_bytes: Option<u64>,
    /// The dtype of packed pages.
    pub precision: PageDtype,
    /// Share of the elements of a packed key page that are left out, from 0 to below 1.
    pub key_sparsity: f32,
    /// Share of the elements of a packed value page that are left out, from 0 to below 1.
    pub value_sparsity: f32,
    /// So many of the last tokens stay as they are, rounded up to whole pages, at least one page besides the one that is
    /// being filled.
    pub window: usize,
    /// So many of the first tokens stay as they are, rounded up to whole pages.
    pub sinks: usize,
    /// Which elements are left out.
    pub rule: PruneRule,
}

impl Default for KvOptions {
    /// Dense bf16.
    fn default() -> Self {
        Self {
            budget_bytes: None,
            precision: PageDtype::Bf16,
            key_sparsity: 0.0,
            value_sparsity: 0.0,
            window: PAGE_TOKENS,
            sinks: 0,
            rule: PruneRule::Query,
        }
    }
}

impl KvOptions {
    /// Whether pages are packed at all.
    pub fn packs(&self) -> bool {
        self.precision != PageDtype::Bf16 || self.key_sparsity > 0.0 || self.value_sparsity > 0.0
    }

    /// Bits that an element of a key or value takes once its page is packed: masks, scales and padding included.
    pub fn bits_per_element(&self, head_dim: usize) -> f64 {
        match Forms::new(self, PageShape { head_dim }).packing {
            None => 16.0,
            Some(packing) => {
                let elements = 2 * PAGE_TOKENS * head_dim;
                8.0 * packing.pair_bytes() as f64 / elements as f64
            }
        }
    }

    /// Checks the sparsities.
    ///
    /// # Errors
    /// [`EngineError::Parameter`] for one outside its range.
    pub fn check(&self) -> Result<(), EngineError> {
        let sparsities = [
            ("the sparsity of keys", self.key_sparsity),
            ("the sparsity of values", self.value_sparsity),
        ];
        for (name, sparsity) in sparsities {
            // Not a number is in no range.
            if !(0.0..1.0).contains(&sparsity) {
                let allowed = "0, where nothing is left out, to below 1";
                return Err(EngineError::parameter(name, sparsity, allowed));
            }
        }
        Ok(())
    }
}

/// Which pages are packed and how. It depends on positions only, so that results do not depend on what else a pool holds, or
/// on how a text is cut into passes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Forms {
    /// None: nothing is packed.
    pub packing: Option<Packing>,
    /// First page that may be packed.
    pub sinks: usize,
    /// Pages before the query's own that it sees as they were computed.
    pub window: usize,
}

impl Forms {
    /// What `options` say, for heads of `shape`.
    pub fn new(options: &KvOptions, shape: PageShape) -> Self {
        let KvOptions {
            precision,
            key_sparsity,
            value_sparsity,
            window,
            sinks,
            rule,
            ..
        } = *options;
        let packing = Packing::new(shape, precision, key_sparsity, value_sparsity, rule);
        Self {
            packing: (!packing.is_identity()).then_some(packing),
            sinks: sinks.div_ceil(PAGE_TOKENS),
            window: window.div_ceil(PAGE_TOKENS).max(1),
        }
    }

    /// Whether a query in page `query_page` sees page `page` packed.
    pub fn packed(&self, page: usize, query_page: usize) -> bool {
        self.packed_end(query_page) > page && page >= self.sinks
    }

    /// Queries in page `query_page` see the pages from the sinks to this one packed.
    pub fn packed_end(&self, query_page: usize) -> usize {
        match self.packing {
            Some(_) => query_page.saturating_sub(self.window),
            None => 0,
        }
    }
}
