//! Every tile instruction that we use.
//!
//! Rust has no stable AMX intrinsics, so each is inline assembly with a fixed tile number. The compiler knows nothing of tile
//! registers and never touches them: what an instruction leaves in a tile is there for the next one, as long as the
//! [`TileScope`] lives on this thread.

use std::arch::asm;
use std::marker::PhantomData;

/// Rows of a full tile.
pub(crate) const ROWS: usize = 16;
/// Bytes of a row of a full tile.
pub(crate) const ROW_BYTES: usize = 64;

/// The operand of `ldtilecfg` (Intel, Architecture Instruction Set Extensions, "tile configuration").
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

/// Eight full tiles of 16 rows x 64 bytes, configured on this thread until dropped.
pub(crate) struct TileScope {
    /// Tiles belong to a thread.
    not_send: PhantomData<*const ()>,
}

impl TileScope {
    /// Configures the tiles of this thread.
    ///
    /// # Safety
    /// The CPU has AMX and this process may use it. No other scope lives on this thread.
    pub unsafe fn new() -> Self {
        let mut config = TileConfig {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            bytes_per_row: [0; 16],
            rows: [0; 16],
        };
        config.bytes_per_row[..8].fill(ROW_BYTES as u16);
        config.rows[..8].fill(ROWS as u8);
        // SAFETY: 64 bytes in the form that the instruction wants.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, preserves_flags, readonly))
        };
        Self {
            not_send: PhantomData,
        }
    }
}

impl Drop for TileScope {
    fn drop(&mut self) {
        // SAFETY: AMX may be used: `new` did. Gives the tile memory's state back, so that thread switches stop saving it.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}

/// Sets tile `T` to zero.
///
/// # Safety
/// Inside a [`TileScope`]; `T < 8`.
#[inline(always)]
pub(crate) unsafe fn zero<const T: u8>() {
    // SAFETY: the caller's promise.
    unsafe { asm!("tilezero tmm{t}", t = const T, options(nostack, preserves_flags, nomem)) };
}

/// Loads tile `T`: row `i` from `base + i * stride_bytes`.
///
/// # Safety
/// Inside a [`TileScope`]; `T < 8`; 16 rows of 64 bytes are there.
#[inline(always)]
pub(crate) unsafe fn load<const T: u8>(base: *const u8, stride_bytes: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("tileloadd tmm{t}, [{base} + {stride}*1]", t = const T, base = in(reg) base, stride = in(reg) stride_bytes,
            options(nostack, preserves_flags, readonly));
    }
}

/// Stores tile `T`: row `i` to `base + i * stride_bytes`.
///
/// # Safety
/// Inside a [`TileScope`]; `T < 8`; 16 rows of 64 bytes are there.
#[inline(always)]
pub(crate) unsafe fn store<const T: u8>(base: *mut u8, stride_bytes: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("tilestored [{base} + {stride}*1], tmm{t}", t = const T, base = in(reg) base, stride = in(reg) stride_bytes,
            options(nostack, preserves_flags));
    }
}

/// Tile `C` += tile `A` x tile `B`: f32 sums of bf16 products; A is 16 rows x 32 k, B is 16 k-pairs x 16 columns.
///
/// # Safety
/// Inside a [`TileScope`]; three different tiles below 8.
#[inline(always)]
pub(crate) unsafe fn dot_bf16<const C: u8, const A: u8, const B: u8>() {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("tdpbf16ps tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B, options(nostack, preserves_flags, nomem));
    }
}

/// Tile `C` += tile `A` x tile `B`: i32 sums of products of signed bytes; A is 16 rows x 64 k, B is 16 k-quads x 16 columns.
///
/// # Safety
/// Inside a [`TileScope`]; three different tiles below 8; the CPU has AMX-INT8.
#[inline(always)]
pub(crate) unsafe fn dot_i8<const C: u8, const A: u8, const B: u8>() {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("tdpbssd tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B, options(nostack, preserves_flags, nomem));
    }
}
