//! Random matrices with the patterns that break kernels.

use half::bf16;

/// A small generator whose numbers are the same everywhere (xorshift64*).
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    /// Starts from a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in [-1, 1).
    pub fn signed(&mut self) -> f32 {
        (self.unit() * 2.0 - 1.0) as f32
    }

    /// Uniform in `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.unit() * n as f64) as usize
    }
}

/// How many weights are there, and where.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Density {
    /// All zero.
    Zero,
    /// One value in all.
    One,
    /// Each there with this probability.
    Random(f64),
    /// All there.
    Full,
    /// Empty rows, full rows, an empty block of 32 k and a full one, the rest random.
    Mixed,
}

/// A weight `[n, k]` in bf16 bits, row-major.
pub fn weights(n: usize, k: usize, density: Density, random: &mut Random) -> Vec<u16> {
    matrix(n, k, density, random, non_zero)
}

/// Levels of a quantized weight `[n, k]`, row-major: those that are there are not 0 and from `least` to `most`.
pub fn levels(
    n: usize,
    k: usize,
    density: Density,
    (least, most): (i8, i8),
    random: &mut Random,
) -> Vec<i8> {
    let choices = (i16::from(most) - i16::from(least)) as usize;
    matrix(n, k, density, random, |random| {
        // Zero is not among the choices: those from 0 on stand for the level above.
        let choice = i16::from(least) + random.below(choices) as i16;
        (if choice < 0 { choice } else { choice + 1 }) as i8
    })
}

/// `n * k` values, row-major: `value` where one is there, zero elsewhere.
fn matrix<T: Default>(
    n: usize,
    k: usize,
    density: Density,
    random: &mut Random,
    value: impl Fn(&mut Random) -> T,
) -> Vec<T> {
    let only = random.below((n * k).max(1));
    (0..n * k)
        .map(|at| {
            let (row, column) = (at / k, at % k);
            let there = match density {
                Density::Zero => false,
                Density::One => at == only,
                Density::Full => true,
                Density::Random(p) => random.unit() < p,
                Density::Mixed if row % 7 == 3 => false,
                Density::Mixed if row % 7 == 5 => true,
                Density::Mixed if column / 32 % 5 == 1 => false,
                Density::Mixed if column / 32 % 5 == 3 => true,
                Density::Mixed => random.unit() < 0.5,
            };
            if there { value(random) } else { T::default() }
        })
        .collect()
}

fn non_zero(random: &mut Random) -> u16 {
    loop {
        let v = bf16::from_f32(random.signed());
        if v != bf16::ZERO {
            return v.to_bits();
        }
    }
}

/// Activations `[m, k]` in [-1, 1), every row with its own scale (from 2^-4 to 2^4), so that mixed-up rows show.
pub fn activations(m: usize, k: usize, random: &mut Random) -> Vec<f32> {
    (0..m * k)
        .map(|at| random.signed() * 2f32.powi((at / k.max(1)) as i32 % 9 - 4))
        .collect()
}

/// Each value rounded to bf16, nearest even.
pub fn round_bf16(values: &[f32]) -> Vec<f32> {
    values.iter().map(|&v| bf16::from_f32(v).to_f32()).collect()
}

/// bf16 bits as f32.
pub fn to_f32(bits: &[u16]) -> Vec<f32> {
    bits.iter().map(|&b| bf16::from_bits(b).to_f32()).collect()
}

/// An output `[rows, cols]` with gaps between and after its rows, filled with a pattern that a kernel must not touch.
pub struct Canary {
    /// The buffer, rows `stride` apart.
    pub data: Vec<f32>,
    cols: usize,
    /// Elements from one row to the next.
    pub stride: usize,
}

/// A quiet NaN with a payload that no computation yields.
const CANARY: u32 = 0x7fc0_dead;

impl Canary {
    /// Rows with `gap` elements between them.
    pub fn new(rows: usize, cols: usize, gap: usize) -> Self {
        let stride = cols + gap;
        Self {
            data: vec![f32::from_bits(CANARY); rows * stride + gap],
            cols,
            stride,
        }
    }

    /// Row `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.stride..][..self.cols]
    }

    /// Panics with `context` if a gap was written to, or an element of a row was not.
    pub fn check(&self, context: &str) {
        for (at, v) in self.data.iter().enumerate() {
            let (row, column) = (at / self.stride.max(1), at % self.stride.max(1));
            let inside = column < self.cols && (row + 1) * self.stride <= self.data.len();
            let untouched = v.to_bits() == CANARY;
            assert_ne!(
                inside, untouched,
                "{context}: row {row}, column {column} of {} (stride {})",
                self.cols, self.stride
            );
        }
    }
}
