//! Keys and values of the tokens so far, in pages that sequences share.
//!
//! A page holds the keys and the values of 64 tokens for one layer and one kv head, each as a weight in the layout that the
//! kernels multiply with (see [`sparamx_kernels::attention`]). The pages of all layers and heads, for the same 64 tokens,
//! lie side by side in one *block*: the unit that a [`PagePool`] counts, shares and hands out, within one budget of bytes.
//!
//! A block that is full is never written again, so that any number of sequences can hold it. Those whose token ids are known
//! stay in a tree when no sequence holds them any more, as long as there is room: the *prefix cache*, in which a later
//! sequence that begins alike finds them.

mod layout;
mod options;
mod pool;
mod prefix;
mod sequence;
mod slot;
mod write;

pub use layout::KvShape;
pub use options::KvOptions;
pub use pool::{PagePool, PoolUsage};
pub use sequence::{PagedCache, UNDO_TOKENS};
