//! What a forward pass needs from its caller: tokens, and the keys and values of those before them.

use std::ops::Range;

use sparamx_kernels::attention::KvPages;
use sparamx_kernels::{Rows, Runtime};

use crate::ModelError;

/// Keys and values of one sequence, in every layer.
///
/// A forward pass appends to every layer in turn and then advances once. If it fails before that, the cache is as it was:
/// what was appended is overwritten by the next pass.
pub trait KvCache {
    /// Number of tokens it holds, the same in every layer.
    fn len(&self) -> usize;

    /// Whether it holds no tokens.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Stores keys (rotated) and values, `[tokens, kv_heads * head_dim]` each, at positions `len() ..` of a layer. The queries
    /// of the same tokens (rotated), `[tokens, heads * head_dim]`, say what will be of weight in them.
    ///
    /// # Errors
    /// [`ModelError::CacheFull`] if there is no room for them, and [`ModelError::NotEnoughMemory`].
    fn append(
        &mut self,
        rt: &Runtime,
        layer: usize,
        q: Rows<'_>,
        k: Rows<'_>,
        v: Rows<'_>,
    ) -> Result<(), ModelError>;

    /// The pages of a layer, with what was appended since the last [`KvCache::advance`].
    fn pages(&self, layer: usize) -> Box<dyn KvPages + '_>;

    /// Which pages a query in page `query_page` sees packed, and the bytes of such a page in one layer. For profiles, which
    /// say how much was read.
    fn packed(&self, query_page: usize) -> (Range<usize>, usize) {
        let _ = query_page;
        (0..0, 0)
    }

    /// Counts tokens that were appended to every layer.
    fn advance(&mut self, tokens: usize);
}

/// Which rows of logits are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Those after the last token.
    Last,
    /// Those after every token.
    All,
    /// None: the tokens only fill the cache.
    None,
}

/// The next tokens of one sequence.
pub struct Input<'a> {
    /// Token ids, at least one.
    pub tokens: &'a [u32],
    /// Keys and values of the tokens before them.
    pub cache: &'a mut dyn KvCache,
    /// The logits to compute.
    pub logits: Want,
}

impl Input<'_> {
    /// Number of rows of logits that are wanted.
    pub(crate) fn wanted(&self) -> usize {
        match self.logits {
            Want::Last => 1,
            Want::All => self.tokens.len(),
            Want::None => 0,
        }
    }
}
