//! Every tile instruction that we use.
//!
//! Rust has no stable AMX intrinsics, so each is inline assembly with a fixed tile number. The compiler knows nothing of tile
//! registers and never touches them: what an instruction leaves in a tile is there for the next one, as long as the
//! [`TileScope`] lives on this thread.

use std::arch::asm;
use std::cell::Cell;
use std::marker::PhantomData;

use sparamx_cpu::{Amx, AmxInt8};

/// Rows of a full tile.
pub(crate) const ROWS: usize = 16;
/// Bytes of a row of a full tile.
pub(crate) const ROW_BYTES: usize = 64;
/// Bytes of a full tile.
pub(crate) const TILE_BYTES: usize = ROWS * ROW_BYTES;

/// Memory that a full tile is loaded from or stored to, row after row.
pub(crate) type Tile = [u8; TILE_BYTES];

/// The operand of `ldtilecfg` (Intel, Architecture Instruction Set Extensions, "tile configuration").
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

thread_local! {
    /// Whether a scope lives on this thread.
    static CONFIGURED: Cell<bool> = const { Cell::new(false) };
}

/// Eight full tiles of 16 rows x 64 bytes, configured on this thread until dropped. Its methods are the tile instructions, so
/// none runs without AMX or without a configuration.
pub(crate) struct TileScope {
    /// Tiles belong to a thread.
    not_send: PhantomData<*const ()>,
}

impl TileScope {
    /// Configures the tiles of this thread.
    ///
    /// # Panics
    /// If another scope lives on this thread: the end of one would take the tiles from the other.
    pub fn new(_: Amx) -> Self {
        assert!(!CONFIGURED.replace(true), "two tile scopes on a thread");
        let mut config = TileConfig {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            bytes_per_row: [0; 16],
            rows: [0; 16],
        };
        config.bytes_per_row[..8].fill(ROW_BYTES as u16);
        config.rows[..8].fill(ROWS as u8);
        // SAFETY: the token proves AMX and the permission to use it; `config` is 64 bytes in the form that the instruction reads.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, preserves_flags, readonly))
        };
        Self {
            not_send: PhantomData,
        }
    }

    /// Sets tile `T` to zero.
    #[inline(always)]
    pub fn zero<const T: u8>(&self) {
        const { assert!(T < 8) };
        // SAFETY: `new` configured the tiles of this thread, which the scope never leaves; tile T is one of the eight.
        unsafe { asm!("tilezero tmm{t}", t = const T, options(nostack, preserves_flags, nomem)) };
    }

    /// Loads tile `T`.
    #[inline(always)]
    pub fn load<const T: u8>(&self, from: &Tile) {
        // SAFETY: `from` is 16 rows of 64 bytes, one after the other.
        unsafe { self.load_rows::<T>(from.as_ptr(), ROW_BYTES) }
    }

    /// Loads tile `T`: row `i` from `base + i * stride_bytes`.
    ///
    /// # Safety
    /// 16 rows of 64 bytes are there.
    #[inline(always)]
    pub unsafe fn load_rows<const T: u8>(&self, base: *const u8, stride_bytes: usize) {
        const { assert!(T < 8) };
        // SAFETY: `new` configured the tiles of this thread; tile T is one of the eight; the rows are there, as required.
        unsafe {
            asm!("tileloadd tmm{t}, [{base} + {stride}*1]", t = const T, base = in(reg) base, stride = in(reg) stride_bytes,
                options(nostack, preserves_flags, readonly));
        }
    }

    /// Stores tile `T`.
    #[inline(always)]
    pub fn store<const T: u8>(&self, to: &mut Tile) {
        const { assert!(T < 8) };
        // SAFETY: `new` configured the tiles of this thread; tile T is one of the eight; `to` is 16 rows of 64 bytes.
        unsafe {
            asm!("tilestored [{base} + {stride}*1], tmm{t}", t = const T, base = in(reg) to.as_mut_ptr(), stride = in(reg) ROW_BYTES,
                options(nostack, preserves_flags));
        }
    }

    /// Tile `C` += tile `A` x tile `B`: f32 sums of bf16 products; A is 16 rows x 32 k, B is 16 k-pairs x 16 columns.
    #[inline(always)]
    pub fn dot_bf16<const C: u8, const A: u8, const B: u8>(&self) {
        const { assert!(C < 8 && A < 8 && B < 8 && C != A && C != B && A != B) };
        // SAFETY: `new` had the proof of AMX-BF16 and configured the tiles of this thread; they are three of the eight.
        unsafe {
            asm!("tdpbf16ps tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B, options(nostack, preserves_flags, nomem));
        }
    }

    /// Tile `C` += tile `A` x tile `B`: i32 sums of products of signed bytes; A is 16 rows x 64 k, B is 16 k-quads x 16 columns.
    #[inline(always)]
    pub fn dot_i8<const C: u8, const A: u8, const B: u8>(&self, _: AmxInt8) {
        const { assert!(C < 8 && A < 8 && B < 8 && C != A && C != B && A != B) };
        // SAFETY: the token proves AMX-INT8, `new` configured the tiles of this thread; they are three of the eight.
        unsafe {
            asm!("tdpbssd tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B, options(nostack, preserves_flags, nomem));
        }
    }
}

impl Drop for TileScope {
    fn drop(&mut self) {
        // SAFETY: `new` had the proof of AMX. Gives the tile memory's state back, so that thread switches stop saving it.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
        CONFIGURED.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sparamx_cpu::Cpu;

    #[test]
    fn a_thread_has_one_scope_at_a_time() {
        let Some(amx) = Cpu::detect().expect("a level").amx() else {
            eprintln!("skipped: no AMX");
            return;
        };
        let first = TileScope::new(amx);
        assert!(std::panic::catch_unwind(|| TileScope::new(amx)).is_err());
        // The one that lives is as it was.
        let mut tile = [7; TILE_BYTES];
        first.zero::<3>();
        first.store::<3>(&mut tile);
        assert_eq!(tile, [0; TILE_BYTES]);
        drop(first);
        let _again = TileScope::new(amx);
    }
}
