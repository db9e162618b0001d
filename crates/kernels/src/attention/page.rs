//! Pages of the key/value cache: 64 tokens of one layer and one kv head, as weights in the strip16 order of
//! `docs/weight-format.md`, so that scores and outputs are products with a weight.

use half::bf16;

/// Tokens in a page.
pub const PAGE_TOKENS: usize = 64;

/// Rows of a strip.
const STRIP_ROWS: usize = 16;

/// The sizes of pages of one head size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageShape {
    /// Elements of the key, and of the value, of one token and kv head.
    pub head_dim: usize,
}

impl PageShape {
    /// `head_dim` padded to whole lines: K of a key page, a weight `[64 tokens, head_dim]`.
    pub fn key_k(self) -> usize {
        self.head_dim.next_multiple_of(32)
    }

    /// `head_dim` padded to whole lines of int8: K of a packed key page of levels.
    pub(super) fn key_k_i8(self) -> usize {
        self.head_dim.next_multiple_of(64)
    }

    /// `head_dim` padded to whole strips: N of a value page, a weight `[head_dim, 64 tokens]`.
    pub fn value_n(self) -> usize {
        self.head_dim.next_multiple_of(STRIP_ROWS)
    }

    /// Elements of a key page: dense lines of bf16, four strips of 16 tokens.
    pub fn key_elems(self) -> usize {
        PAGE_TOKENS * self.key_k()
    }

    /// Elements of a value page: dense lines of bf16, a strip for every 16 dimensions.
    pub fn value_elems(self) -> usize {
        self.value_n() * PAGE_TOKENS
    }

    /// Where dimension `dim` of the key in slot `slot` is.
    fn key_at(self, slot: usize, dim: usize) -> usize {
        strip16(self.key_k(), slot, dim)
    }

    /// Where dimension `dim` of the value in slot `slot` is.
    fn value_at(self, slot: usize, dim: usize) -> usize {
        strip16(PAGE_TOKENS, dim, slot)
    }

    fn check(self, page_elems: usize, needed: usize, slot: usize, dims: usize) {
        assert_eq!(
            page_elems, needed,
            "elements of a page for heads of {}",
            self.head_dim
        );
        assert!(slot < PAGE_TOKENS, "slot {slot} of {PAGE_TOKENS}");
        assert_eq!(
            dims, self.head_dim,
            "elements of a key or value and of a head"
        );
    }
}

/// Index of element (n, k) in the dense strip16 order of a bf16 weight with `k_padded` columns.
fn strip16(k_padded: usize, n: usize, k: usize) -> usize {
    let (strip, line) = (n / STRIP_ROWS, k / 2);
    strip * STRIP_ROWS * k_padded + line * 2 * STRIP_ROWS + 2 * (n % STRIP_ROWS) + k % 2
}

/// Rounds the key of one token to bf16 (nearest even) and writes it to slot `slot` of a key page.
///
/// # Panics
/// If the page or the key has another length than `shape` says, or there is no such slot.
pub fn write_key(page: &mut [u16], shape: PageShape, slot: usize, key: &[f32]) {
    shape.check(page.len(), shape.key_elems(), slot, key.len());
    for (dim, x) in key.iter().enumerate() {
        page[shape.key_at(slot, dim)] = bf16::from_f32(*x).to_bits();
    }
}

/// Rounds the value of one token to bf16 (nearest even) and writes it to slot `slot` of a value page.
///
/// # Panics
/// If the page or the value has another length than `shape` says, or there is no such slot.
pub fn write_value(page: &mut [u16], shape: PageShape, slot: usize, value: &[f32]) {
    shape.check(page.len(), shape.value_elems(), slot, value.len());
    for (dim, x) in value.iter().enumerate() {
        page[shape.value_at(slot, dim)] = bf16::from_f32(*x).to_bits();
    }
}

/// Reads the key in slot `slot` of a key page.
///
/// # Panics
/// As [`write_key`].
pub fn read_key(page: &[u16], shape: PageShape, slot: usize, key: &mut [f32]) {
    shape.check(page.len(), shape.key_elems(), slot, key.len());
    for (dim, x) in key.iter_mut().enumerate() {
        *x = bf16::from_bits(page[shape.key_at(slot, dim)]).to_f32();
    }
}

/// Reads the value in slot `slot` of a value page.
///
/// # Panics
/// As [`write_value`].
pub fn read_value(page: &[u16], shape: PageShape, slot: usize, value: &mut [f32]) {
    shape.check(page.len(), shape.value_elems(), slot, value.len());
    for (dim, x) in value.iter_mut().enumerate() {
        *x = bf16::from_bits(page[shape.value_at(slot, dim)]).to_f32();
    }
}
