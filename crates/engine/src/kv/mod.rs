//! Keys and values of the tokens so far, in pages that sequences share.
//!
//! A page holds the keys and the values of 64 tokens for one layer and one kv head, each as a weight in the layout that the
//! kernels multiply with (see [`sparamx_kernels::attention`]). The pages of all layers and heads, for the same 64 tokens,
//! lie side by side in one *block*: the unit that a [`PagePool`] counts, shares and hands out, within one budget of bytes.
//!
//! A block that is full is never written again, so that any number of sequences can hold it. Those whose token ids are known
//! stay in a tree when no sequence holds them any more, as long as there is room: the *prefix cache*, in which a later
//! sequence with the same prefix finds them.
//!
//! From below: [`layout`] and [`options`], [`block`], [`prefix`] (the tree), [`ledger`] (who holds which block), [`pool`];
//! [`mod@write`], [`slot`] (a page of a sequence) and [`sequence`].

mod block;
mod layout;
mod ledger;
mod options;
mod pool;
mod prefix;
mod sequence;
mod slot;
mod write;

pub use layout::KvShape;
pub use options::{KvOptions, UNDO_TOKENS};
pub use pool::{PagePool, PoolUsage};
pub use sequence::PagedCache;
