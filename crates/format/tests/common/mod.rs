//! What several test files share; each uses a part of it.
#![allow(dead_code)]

/// Finite bf16 bits that are hard to keep: zeros of both signs, denormals, the extremes, one.
pub const CORNERS: [u16; 8] = [
    0x0000, 0x8000, 0x0001, 0x807f, 0x0080, 0x7f7f, 0xff7f, 0x3f80,
];

/// A generator that is the same everywhere (splitmix64).
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Rows of `n * k` finite elements, of which about `density` are not +0.
pub fn rows(n: usize, k: usize, density: f64, seed: u64) -> Vec<u16> {
    let mut state = seed;
    (0..n * k)
        .map(|_| {
            let r = random(&mut state);
            if (r >> 40) as f64 >= density * (1u64 << 24) as f64 {
                return 0;
            }
            match r & 7 {
                0 => CORNERS[(r >> 3) as usize & 7],
                _ => (r >> 8) as u16 & 0xbfff | 1,
            }
        })
        .collect()
}

/// Row-major levels of which about `density` are not 0, all in `lowest..=highest`.
pub fn levels(n: usize, k: usize, density: f64, lowest: i8, highest: i8, seed: u64) -> Vec<i8> {
    let mut state = seed;
    let range = (i64::from(highest) - i64::from(lowest)) as u64 + 1;
    (0..n * k)
        .map(|_| {
            let r = random(&mut state);
            if (r >> 40) as f64 >= density * (1u64 << 24) as f64 {
                return 0;
            }
            match (i64::from(lowest) + (r % range) as i64) as i8 {
                0 => highest,
                level => level,
            }
        })
        .collect()
}

/// Scales of both signs for each of `len` rows or groups; all are bf16.
pub fn scale_values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    (0..len)
        .map(|_| {
            let bits = random(&mut state) as u32;
            f32::from_bits(0x3c00_0000 | bits & 0x83ff_0000)
        })
        .collect()
}
