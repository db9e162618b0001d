//! How numbers become levels of int8.

/// How numbers are rounded to levels: `scale = most / 127` and `level = v * (127 / most)`, rounded to the nearest integer, ties to
/// even, where `most` is the largest magnitude. A row with a NaN or an infinity gets a scale that is not finite, and so does
/// everything made of it.
#[derive(Clone, Copy, Debug)]
pub struct Quantizer {
    inverse: f32,
    /// What a level must be multiplied by.
    pub scale: f32,
}

impl Quantizer {
    /// For the numbers of a row.
    #[inline]
    pub fn of_row(row: &[f32]) -> Self {
        // Magnitudes compare as their bits do, NaN above all; the comparison of signed integers is there on every x86-64.
        let bits = row.iter().map(|v| (v.to_bits() & 0x7fff_ffff) as i32);
        Self::new(f32::from_bits(bits.fold(0, i32::max) as u32))
    }

    /// For numbers of which `most` is the largest magnitude.
    #[inline]
    pub fn new(most: f32) -> Self {
        let inverse = if most > 0.0 { 127.0 / most } else { 0.0 };
        // A magnitude below 2^-142 has no finite inverse; it is nothing beside any other.
        let scale = if inverse.is_finite() {
            most / 127.0
        } else {
            0.0
        };
        Self { inverse, scale }
    }

    /// The level of a number. Plain Rust; inside a function for a level of CPU it becomes code of that level.
    #[inline(always)]
    pub fn level(&self, v: f32) -> i8 {
        // Adding 1.5 * 2^23 leaves no bits below 1, so the sum is rounded as the unit says, to nearest, ties to even; the integer
        // is then in the low bits. A call of `round_ties_even` per element would be a function call on plain x86-64.
        const ROUND: f32 = 12_582_912.0;
        (v * self.inverse + ROUND).to_bits() as i8
    }
}
