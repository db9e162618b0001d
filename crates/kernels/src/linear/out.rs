//! Where a linear kernel writes its results.

use sparamx_format::STRIP_ROWS;

/// Where results go: `y[i][j] = sum + bias[j]` for `j < n`.
#[derive(Clone, Copy)]
pub(crate) struct Out<'a> {
    pub ptr: *mut f32,
    /// Elements from one row to the next.
    pub stride: usize,
    pub n: usize,
    pub bias: Option<&'a [f32]>,
}

// SAFETY: elements are written by `put` alone, whose caller keeps others away from them.
unsafe impl Sync for Out<'_> {}

impl Out<'_> {
    /// Writes the 16 sums of row `i` and strip `s`, but those beyond N.
    ///
    /// # Safety
    /// Row `i` and its N elements are there, strip `s` begins below N, and nobody else uses that part of the row.
    #[inline(always)]
    pub unsafe fn put(&self, i: usize, s: usize, sums: [f32; STRIP_ROWS]) {
        let first = s * STRIP_ROWS;
        if self.n - first < STRIP_ROWS {
            // SAFETY: the same is required, and strip `s` begins with output `first`.
            return unsafe { self.put_part(i, first, &sums) };
        }
        let mut sums = sums;
        if let Some(bias) = self.bias {
            for (sum, b) in sums.iter_mut().zip(&bias[first..][..STRIP_ROWS]) {
                *sum += b;
            }
        }
        // SAFETY: row `i` is there, as required, with N elements, of which 16 from `first` on (the branch above was not taken); they
        // are this thread's alone, as required.
        unsafe {
            let y = self.ptr.add(i * self.stride + first);
            y.cast::<[f32; STRIP_ROWS]>().write(sums);
        }
    }

    /// The last strip of some weights: apart, so that a whole one is stored without a call of memcpy.
    ///
    /// # Safety
    /// As [`put`](Self::put) for the strip that begins with output `first`.
    #[cold]
    unsafe fn put_part(&self, i: usize, first: usize, sums: &[f32; STRIP_ROWS]) {
        // SAFETY: row `i` is there, as required, with N elements, of which those from `first` on are this thread's alone.
        let y = unsafe {
            let start = self.ptr.add(i * self.stride + first);
            std::slice::from_raw_parts_mut(start, self.n - first)
        };
        for (j, (y, sum)) in y.iter_mut().zip(sums).enumerate() {
            *y = self.bias.map_or(*sum, |bias| sum + bias[first + j]);
        }
    }
}
