//! Where things are in the blocks of a page.

use std::ops::Range;

use sparamx_kernels::attention::{PAGE_TOKENS, PageShape};
use sparamx_kernels::{KernelError, Rows};
use sparamx_model::Config;

/// What a [`PagePool`](crate::PagePool) has to know of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Layers that have keys and values.
    pub layers: usize,
    /// Query heads of a layer.
    pub heads: usize,
    /// Key and value heads of a layer; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

impl From<&Config> for KvShape {
    fn from(config: &Config) -> Self {
        Self {
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        }
    }
}

/// Sizes of a dense block, `[layers][kv_heads]` of
///
/// 1. a key page,
/// 2. a value page,
/// 3. where packing asks for it, the magnitudes of the queries of each token, `[64, head_dim]` in bf16, summed over the query
///    heads of the kv head. They are kept by token, because tokens can be taken back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub shape: PageShape,
    pub keeps_queries: bool,
}

impl Layout {
    pub fn new(shape: KvShape, keeps_queries: bool) -> Self {
        let KvShape {
            layers,
            heads,
            kv_heads,
            head_dim,
        } = shape;
        Self {
            layers,
            heads,
            kv_heads,
            shape: PageShape { head_dim },
            keeps_queries,
        }
    }

    /// Elements of all that belongs to one layer and kv head.
    pub fn head_elems(self) -> usize {
        let queries = if self.keeps_queries {
            PAGE_TOKENS * self.shape.head_dim
        } else {
            0
        };
        self.shape.key_elems() + self.shape.value_elems() + queries
    }

    /// Elements of a block.
    pub fn block_elems(self) -> usize {
        self.pairs() * self.head_elems()
    }

    /// Pairs of a key and a value page in a block.
    pub fn pairs(self) -> usize {
        self.layers * self.kv_heads
    }

    /// What belongs to layer `layer` in a block.
    pub fn layer(self, layer: usize) -> Range<usize> {
        let elems = self.kv_heads * self.head_elems();
        layer * elems..(layer + 1) * elems
    }

    /// What belongs to pair `pair`, `layer * kv_heads + kv_head`, in a block.
    pub fn pair(self, block: &[u16], pair: usize) -> Pair<'_> {
        let elems = self.head_elems();
        let (key, rest) = block[pair * elems..][..elems].split_at(self.shape.key_elems());
        let (value, queries) = rest.split_at(self.shape.value_elems());
        Pair {
            key,
            value,
            queries,
        }
    }

    /// Refuses queries, keys and values that are not those of one layer for the same tokens.
    pub fn check(self, q: Rows<'_>, k: Rows<'_>, v: Rows<'_>) -> Result<(), KernelError> {
        let same = |what, left, right| {
            if left != right {
                return Err(KernelError::Mismatch { what, left, right });
            }
            Ok(())
        };
        let head_dim = self.shape.head_dim;
        let (q_width, kv_width) = (self.heads * head_dim, self.kv_heads * head_dim);
        same("rows of queries and of keys", q.rows(), k.rows())?;
        same("rows of keys and of values", k.rows(), v.rows())?;
        same(
            "columns of queries and elements of all heads",
            q.cols(),
            q_width,
        )?;
        same(
            "columns of keys and elements of all kv heads",
            k.cols(),
            kv_width,
        )?;
        same(
            "columns of values and elements of all kv heads",
            v.cols(),
            kv_width,
        )
    }
}

/// What belongs to one layer and kv head in a dense block.
pub(super) struct Pair<'a> {
    pub key: &'a [u16],
    pub value: &'a [u16],
    pub queries: &'a [u16],
}

/// Pages that hold `tokens` tokens.
pub(super) fn pages(tokens: usize) -> usize {
    tokens.div_ceil(PAGE_TOKENS)
}
