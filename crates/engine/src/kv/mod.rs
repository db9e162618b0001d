//! Keys and values of the tokens so far, in pages.
//!
//! A page holds the keys and the values of 64 tokens for one layer and one kv head, each as a weight in the layout that the
//! kernels multiply with (see [`sparamx_kernels::attention`]). The pages of all kv heads of a layer, for the same 64 tokens,
//! lie side by side in one *block*: the unit that a [`PagePool`] hands out.

mod cache;
mod pool;

pub use cache::PagedCache;
pub use pool::PagePool;
