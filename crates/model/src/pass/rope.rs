//! Rotary position embeddings: angles of every position, for all scalings.
//!
//! A head of `d` elements is `d / 2` pairs `(x[i], x[i + d/2])` (the "rotate half" convention of Transformers); pair `i` at
//! position `p` turns by `p * f[i]`, where without scaling `f[i] = theta^(-2i/d)`.
//!
//! Source: `modeling_rope_utils.py` of Transformers 5. Where it computes in f32, so does this: at position 100 000 a
//! frequency that differs in its last bit is a different angle.

use std::f64::consts::PI;

use crate::{Config, RopeScaling};

/// The rotation of a model.
pub(crate) struct Rope {
    /// Elements of a head; all are rotated.
    head_dim: usize,
    theta: f64,
    scaling: RopeScaling,
    max_position_embeddings: usize,
    /// Radians per position, `[head_dim / 2]`, for sequences up to `max_position_embeddings`.
    frequencies: Vec<f32>,
}

impl Rope {
    /// The rotations of a model, by the index that [`crate::LayerSpec::rotation`] names: one so far.
    pub(crate) fn all(config: &Config) -> Vec<Self> {
        vec![Self::new(config)]
    }

    fn new(config: &Config) -> Self {
        let mut rope = Self {
            head_dim: config.head_dim,
            theta: config.rope_theta,
            scaling: config.rope_scaling.clone(),
            max_position_embeddings: config.max_position_embeddings,
            frequencies: vec![0.0; config.head_dim / 2],
        };
        let mut frequencies = std::mem::take(&mut rope.frequencies);
        rope.fill_frequencies(rope.theta as f32, &mut frequencies);
        rope.frequencies = frequencies;
        rope
    }

    /// Writes cosine and sine of positions `start ..`, `[tokens, head_dim / 2]` each, `tokens` given by their length.
    /// `scratch` is `[head_dim / 2]`.
    ///
    /// With dynamic scaling the frequencies follow from the end of this sequence, as they do in Transformers; keys that are
    /// in the cache keep the rotation they got there.
    pub(crate) fn angles(
        &self,
        start: usize,
        cos: &mut [f32],
        sin: &mut [f32],
        scratch: &mut [f32],
    ) {
        let half = self.head_dim / 2;
        let end = start + cos.len() / half;
        let frequencies = match self.scaling {
            RopeScaling::Dynamic { factor } if end > self.max_position_embeddings => {
                self.fill_frequencies(self.dynamic_base(factor, end), scratch);
                &*scratch
            }
            _ => &self.frequencies,
        };
        let attention_factor = match self.scaling {
            RopeScaling::Yarn {
                attention_factor, ..
            } => attention_factor as f32,
            _ => 1.0,
        };
        let rows = cos.chunks_exact_mut(half).zip(sin.chunks_exact_mut(half));
        for (position, (cos, sin)) in (start..end).zip(rows) {
            for ((cos, sin), &f) in cos.iter_mut().zip(sin).zip(frequencies) {
                // The product in f32 as in Transformers, its sine and cosine then without further error.
                let (s, c) = f64::from(position as f32 * f).sin_cos();
                *cos = c as f32 * attention_factor;
                *sin = s as f32 * attention_factor;
            }
        }
    }

    /// The base that makes the longest wavelength `factor` times longer when the sequence is.
    fn dynamic_base(&self, factor: f64, sequence: usize) -> f32 {
        let d = self.head_dim as f64;
        let stretch =
            factor * sequence as f64 / self.max_position_embeddings as f64 - (factor - 1.0);
        (self.theta * stretch.powf(d / (d - 2.0))) as f32
    }

    /// Radians per position of each pair, `[head_dim / 2]`.
    fn fill_frequencies(&self, base: f32, out: &mut [f32]) {
        for (i, f) in out.iter_mut().enumerate() {
            let exponent = (2 * i) as f32 / self.head_dim as f32;
            *f = 1.0 / f64::from(base).powf(f64::from(exponent)) as f32;
        }
        match self.scaling {
            RopeScaling::None | RopeScaling::Dynamic { .. } => {}
            RopeScaling::Linear { factor } => out.iter_mut().for_each(|f| *f /= factor as f32),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let original = original_max_position_embeddings as f32;
                let (low, high) = (low_freq_factor as f32, high_freq_factor as f32);
                out.iter_mut()
                    .for_each(|f| *f = llama3(*f, factor as f32, low, high, original));
            }
            RopeScaling::Yarn { factor, .. } => {
                let (low, high) = self.yarn_ramp();
                for (i, f) in out.iter_mut().enumerate() {
                    let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0) as f32;
                    *f = *f / factor as f32 * divided + *f * (1.0 - divided);
                }
            }
        }
    }

    /// The indices of pairs between which YaRN goes from keeping frequencies to dividing them.
    fn yarn_ramp(&self) -> (f64, f64) {
        let RopeScaling::Yarn {
            beta_fast,
            beta_slow,
            original_max_position_embeddings,
            truncate,
            ..
        } = self.scaling
        else {
            return (0.0, 1.0);
        };
        let d = self.head_dim as f64;
        // The (fractional) pair that turns so many times in the original context.
        let pair = |turns: f64| {
            d * (original_max_position_embeddings as f64 / (turns * 2.0 * PI)).ln()
                / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (pair(beta_fast), pair(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(d - 1.0));
        // A ramp of no length is a step.
        if low == high {
            (low, high + 0.001)
        } else {
            (low, high)
        }
    }
}

/// Keeps high frequencies, divides low ones by `factor`, and interpolates between.
fn llama3(f: f32, factor: f32, low_freq_factor: f32, high_freq_factor: f32, original: f32) -> f32 {
    let wavelength = 2.0 * std::f32::consts::PI / f;
    if wavelength > original / low_freq_factor {
        f / factor
    } else if wavelength < original / high_freq_factor {
        f
    } else {
        let smooth =
            (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
        (1.0 - smooth) * f / factor + smooth * f
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(scaling: RopeScaling) -> Rope {
        let mut config = crate::families::shapes::config("tinyllama-1.1b").unwrap();
        config.head_dim = 8;
        config.max_position_embeddings = 64;
        config.rope_theta = 10_000.0;
        config.rope_scaling = scaling;
        Rope::new(&config)
    }

    fn close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            assert!(
                (f - e).abs() <= 1e-6 * e.abs(),
                "{found:?} is not {expected:?}"
            );
        }
    }

    // Expected frequencies: ROPE_INIT_FUNCTIONS of Transformers 5.23 for head_dim 8, theta 10000.
    #[test]
    fn frequencies_are_those_of_transformers() {
        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 128,
        };
        let yarn = |beta_fast, beta_slow, truncate| RopeScaling::Yarn {
            factor: 4.0,
            attention_factor: 1.0,
            beta_fast,
            beta_slow,
            original_max_position_embeddings: 256,
            truncate,
        };
        for (scaling, expected) in [
            (RopeScaling::None, [1.0, 0.1, 0.01, 0.001]),
            (
                RopeScaling::Linear { factor: 4.0 },
                [0.25, 0.025, 0.0025, 0.00025],
            ),
            (
                RopeScaling::Dynamic { factor: 2.0 },
                [1.0, 0.1, 0.01, 0.001],
            ),
            (llama3, [1.0, 0.042_751_18, 0.00125, 0.000125]),
            (yarn(32.0, 1.0, true), [1.0, 0.0625, 0.0025, 0.00025]),
            (yarn(8.0, 2.0, false), [1.0, 0.06349659, 0.0025, 0.00025]),
            (yarn(4.0, 4.0, false), [1.0, 0.1, 0.0025, 0.00025]),
        ] {
            close(&rope(scaling).frequencies, &expected);
        }
    }

    #[test]
    fn dynamic_frequencies_follow_the_end_of_the_sequence() {
        let rope = rope(RopeScaling::Dynamic { factor: 2.0 });
        let angle = |start: usize, tokens: usize| {
            let (mut cos, mut sin) = (vec![0.0; tokens * 4], vec![0.0; tokens * 4]);
            rope.angles(start, &mut cos, &mut sin, &mut [0.0; 4]);
            sin[(tokens - 1) * 4 + 3]
        };
        close(&[angle(60, 4)], &[(63.0f32 * 0.001).sin()]);
        close(&[angle(90, 10)], &[(99.0f32 * 0.00047058825).sin()]);
    }

    #[test]
    fn yarn_scales_cosine_and_sine() {
        let rope = rope(RopeScaling::Yarn {
            factor: 4.0,
            attention_factor: 1.5,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_max_position_embeddings: 256,
            truncate: true,
        });
        let (mut cos, mut sin) = ([0.0; 8], [0.0; 8]);
        rope.angles(0, &mut cos, &mut sin, &mut [0.0; 4]);
        close(&cos[..4], &[1.5; 4]);
        close(&[sin[4]], &[1.5 * 1f32.sin()]);
    }
}
