//! AVX2 and FMA for bf16 pages of keys and values: few outputs and few k, so there is nothing to wait for but memory, and most
//! often the same few rows, the query heads of a kv head.
//!
//! Up to [`MR`] rows are multiplied by each line as it comes. Of two bf16 side by side, the even and the odd k of an output, each
//! is widened by one instruction, so a line is four registers of weights that 16 outputs of [`MR`] rows share. Even and odd k go
//! into one sum, in order: the bits differ from those of [`super::bf16`], which has the same sums in other places.

#![expect(
    clippy::needless_range_loop,
    reason = "a group is a register of a line and of the sums"
)]

use std::arch::x86_64::*;

use sparamx_cpu::avx2_fns;
use sparamx_format::{LINE_BYTES, LINE_ELEMS_BF16, STRIP_ROWS};

use crate::linear::chunk::Chunk;
use crate::linear::loops::BLOCK_LINES;

/// Rows at a time: 4 rows x 2 sums, 4 registers of weights, one activation and a mask are 14 registers.
const MR: usize = 4;

/// Bytes of scratch: the lines of a block.
pub(super) const SCRATCH_BYTES: usize = BLOCK_LINES * LINE_BYTES;

/// Lines of a strip, one after the other.
trait Lines: Copy {
    /// The next line: outputs 0..8 and 8..16, of each the even and the odd k in one lane.
    ///
    /// # Safety
    /// AVX2 level; there is a next line, and what [`Chunk`] says of its strip.
    unsafe fn next(&mut self) -> [__m256i; 2];
}

/// Dense lines.
#[derive(Clone, Copy)]
struct Dense {
    line: *const u16,
    /// Bytes from a line to the one to prefetch.
    ahead: isize,
}

impl Lines for Dense {
    #[inline(always)]
    unsafe fn next(&mut self) -> [__m256i; 2] {
        let line = self.line;
        self.line = line.wrapping_add(LINE_ELEMS_BF16);
        // SAFETY: a line of two registers is there, as required. A prefetch may name any address.
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(line.cast::<i8>().wrapping_offset(self.ahead));
            [
                _mm256_loadu_si256(line.cast()),
                _mm256_loadu_si256(line.add(LINE_ELEMS_BF16 / 2).cast()),
            ]
        }
    }
}

/// Packed lines.
#[derive(Clone, Copy)]
struct Sparse {
    mask: *const u32,
    value: *const u16,
    /// Bytes from masks and values to those to prefetch.
    ahead: isize,
}

/// Controls of `vpshufb` that put the r-th value of a load into the place of the r-th set bit of a mask byte, zero into all
/// others. 4 KiB.
#[repr(align(64))]
struct Spread([[u8; 16]; 256]);

static SPREAD: Spread = {
    let mut table = [[0x80; 16]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut place, mut rank) = (0, 0);
        while place < 8 {
            if mask >> place & 1 == 1 {
                table[mask][2 * place] = 2 * rank;
                table[mask][2 * place + 1] = 2 * rank + 1;
                rank += 1;
            }
            place += 1;
        }
        mask += 1;
    }
    Spread(table)
};

impl Lines for Sparse {
    #[inline(always)]
    unsafe fn next(&mut self) -> [__m256i; 2] {
        // SAFETY: there is a mask, as required. Each load begins at a value of the strip or one past its last, from where 64 bytes
        // can be read (`Chunk`, *values*); the table has an entry for each byte. A prefetch may name any address.
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(self.mask.cast::<i8>().wrapping_offset(self.ahead));
            _mm_prefetch::<_MM_HINT_T1>(self.value.cast::<i8>().wrapping_offset(self.ahead));
            let (mask, value) = (*self.mask as usize, self.value);
            self.mask = self.mask.add(1);
            self.value = value.add(mask.count_ones() as usize);
            let eight = |group: usize| {
                let skip = (mask & ((1 << (8 * group)) - 1)).count_ones() as usize;
                let values = _mm_loadu_si128(value.add(skip).cast());
                let control = SPREAD.0[mask >> (8 * group) & 255].as_ptr();
                _mm_shuffle_epi8(values, _mm_load_si128(control.cast()))
            };
            [
                _mm256_set_m128i(eight(1), eight(0)),
                _mm256_set_m128i(eight(3), eight(2)),
            ]
        }
    }
}

/// Dense bf16.
///
/// # Safety
/// AVX2 level.
pub(super) unsafe fn dense(chunk: &Chunk<'_>, ahead: isize) {
    for s in chunk.strips.clone() {
        let all = Dense {
            line: chunk.dense_strip(s).as_ptr(),
            ahead,
        };
        for i in (0..chunk.m).step_by(MR) {
            let part = Part {
                s,
                from: 0,
                to: chunk.lines(),
            };
            // SAFETY: the level is required; the rows from `i` on are below M; strip and lines are the chunk's, all of them.
            unsafe { part.multiply_some(chunk, i, all) };
        }
    }
}

/// Packed bf16. Expanded once for all rows if those are more than [`MR`].
///
/// # Safety
/// As [`dense`].
///
/// # Panics
/// If the scratch is shorter than [`SCRATCH_BYTES`].
pub(super) unsafe fn sparse(chunk: &Chunk<'_>, scratch: &mut [u8], ahead: isize) {
    let keep: &mut [u16] = bytemuck::cast_slice_mut(&mut scratch[..SCRATCH_BYTES]);
    for s in chunk.strips.clone() {
        let (masks, values) = chunk.sparse_strip(s);
        let mut lines = Sparse {
            mask: masks.as_ptr(),
            value: values.as_ptr(),
            ahead,
        };
        for from in (0..chunk.lines()).step_by(BLOCK_LINES) {
            let to = chunk.lines().min(from + BLOCK_LINES);
            let part = Part { s, from, to };
            // SAFETY: the level is required; the rows are below M; `lines` began with the strip and yields the part next, and
            // `kept` yields what `expand` wrote of it.
            unsafe {
                if chunk.m <= MR {
                    lines = part.multiply_some(chunk, 0, lines);
                    continue;
                }
                lines = expand(lines, &mut keep[..(to - from) * LINE_ELEMS_BF16]);
                let kept = Dense {
                    line: keep.as_ptr(),
                    ahead: 0,
                };
                for i in (0..chunk.m).step_by(MR) {
                    part.multiply_some(chunk, i, kept);
                }
            }
        }
    }
}

/// Lines of a strip.
struct Part {
    s: usize,
    from: usize,
    to: usize,
}

impl Part {
    /// Up to [`MR`] rows from `i` on; gives what comes after.
    ///
    /// # Safety
    /// AVX2 level; the chunk has row `i` and the strip; `lines` yields the lines of the part, and those before were multiplied.
    unsafe fn multiply_some<L: Lines>(&self, chunk: &Chunk<'_>, i: usize, lines: L) -> L {
        // SAFETY: the same is required; each arm takes no more rows than are left below M.
        unsafe {
            match chunk.m - i {
                1 => self.multiply::<L, 1>(chunk, i, lines),
                2 => self.multiply::<L, 2>(chunk, i, lines),
                3 => self.multiply::<L, 3>(chunk, i, lines),
                _ => self.multiply::<L, MR>(chunk, i, lines),
            }
        }
    }

    avx2_fns!(
        /// `R` rows from `i` on; what they had from earlier parts is in the output. A function of its own for each, so that no
        /// sum has to leave its register.
        ///
        /// # Safety
        /// As [`Part::multiply_some`], for `R` rows.
        #[inline(never)]
        unsafe fn multiply<L: Lines, const R: usize>(
            &self,
            chunk: &Chunk<'_>,
            i: usize,
            mut lines: L,
        ) -> L {
            let x = chunk.f32_rows::<R>(i);
            let odd_half = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            let mut acc = [[_mm256_setzero_ps(); 2]; R];
            if self.from > 0 {
                for r in 0..R {
                    let sums = (i + r) * chunk.out.stride + self.s * STRIP_ROWS;
                    // SAFETY: `f32_rows` asserted the rows; the strip, a whole one as all of a page are, is the chunk's, and was
                    // written for the part before, as required.
                    unsafe {
                        acc[r][0] = _mm256_loadu_ps(chunk.out.ptr.add(sums));
                        acc[r][1] = _mm256_loadu_ps(chunk.out.ptr.add(sums + STRIP_ROWS / 2));
                    }
                }
            }
            for l in self.from..self.to {
                // SAFETY: `lines` yields line l, as required; each row has elements 2 l and 2 l + 1 (`Chunk`, *rows*).
                unsafe {
                    let pairs = lines.next();
                    let even = pairs.map(|w| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(w)));
                    let odd = pairs.map(|w| _mm256_castsi256_ps(_mm256_and_si256(w, odd_half)));
                    for r in 0..R {
                        let first = _mm256_set1_ps(*x[r].add(2 * l));
                        acc[r][0] = _mm256_fmadd_ps(even[0], first, acc[r][0]);
                        acc[r][1] = _mm256_fmadd_ps(even[1], first, acc[r][1]);
                    }
                    for r in 0..R {
                        let second = _mm256_set1_ps(*x[r].add(2 * l + 1));
                        acc[r][0] = _mm256_fmadd_ps(odd[0], second, acc[r][0]);
                        acc[r][1] = _mm256_fmadd_ps(odd[1], second, acc[r][1]);
                    }
                }
            }
            for r in 0..R {
                // SAFETY: `f32_rows` asserted the rows, and the strip is the chunk's, as required. Two registers are 16 floats.
                unsafe {
                    let sums = std::mem::transmute::<[__m256; 2], [f32; STRIP_ROWS]>(acc[r]);
                    chunk.out.put(i + r, self.s, sums);
                }
            }
            lines
        }
    );
}

avx2_fns!(
    /// Writes the next lines, as many as `out` takes; gives what comes after.
    ///
    /// # Safety
    /// `lines` yields that many.
    unsafe fn expand(mut lines: Sparse, out: &mut [u16]) -> Sparse {
        for line in out.chunks_exact_mut(LINE_ELEMS_BF16) {
            // SAFETY: `lines` yields a line for each of `out`, as required; `line` is two registers long.
            unsafe {
                let [low, high] = lines.next();
                _mm256_storeu_si256(line.as_mut_ptr().cast(), low);
                _mm256_storeu_si256(line[LINE_ELEMS_BF16 / 2..].as_mut_ptr().cast(), high);
            }
        }
        lines
    }
);
