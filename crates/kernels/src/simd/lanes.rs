//! The trait that operations are written over.

/// A vector unit with registers of [`LEN`](Lanes::LEN) f32. Holding a value proves that its instructions may be executed.
///
/// Every method is `#[inline(always)]` in every implementation. Methods take slices and check their length; with the chunks
/// of `chunks_exact(LEN)` the compiler sees that the check cannot fail and drops it.
pub(crate) trait Lanes: Copy {
    /// Number of f32 in a vector.
    const LEN: usize;
    /// The vector.
    type F32: Copy;

    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::F32;
    /// The first `LEN` elements of `from`.
    fn load(self, from: &[f32]) -> Self::F32;
    /// The elements of `from`, fewer than `LEN`, then `fill` in the lanes left over.
    fn load_part(self, from: &[f32], fill: f32) -> Self::F32;
    /// Writes `x` to the first `LEN` elements of `to`.
    fn store(self, x: Self::F32, to: &mut [f32]);
    /// Writes the first lanes of `x` to the elements of `to`, fewer than `LEN`.
    fn store_part(self, x: Self::F32, to: &mut [f32]);

    /// [`Lanes::load`] or, for the last chunk of a slice, [`Lanes::load_part`].
    #[inline(always)]
    fn load_some(self, from: &[f32], fill: f32) -> Self::F32 {
        if from.len() >= Self::LEN {
            self.load(from)
        } else {
            self.load_part(from, fill)
        }
    }

    /// [`Lanes::store`] or, for the last chunk of a slice, [`Lanes::store_part`].
    #[inline(always)]
    fn store_some(self, x: Self::F32, to: &mut [f32]) {
        if to.len() >= Self::LEN {
            self.store(x, to)
        } else {
            self.store_part(x, to)
        }
    }

    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b + c`, rounded once where the instruction set has it, else twice.
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// The larger; `b` if either is NaN.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The smaller; `b` if either is NaN.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `x * 2^n` for whole numbers `n` in -252..=254, also where `2^n` itself is no f32. Any value for other `n`, NaN for
    /// NaN in `x`.
    fn scale(self, x: Self::F32, n: Self::F32) -> Self::F32;

    /// Sum of the lanes: halves are added until one lane is left, so the order is fixed.
    fn reduce_sum(self, x: Self::F32) -> f32;
    /// Largest lane, in the order of [`Lanes::reduce_sum`].
    fn reduce_max(self, x: Self::F32) -> f32;
}
