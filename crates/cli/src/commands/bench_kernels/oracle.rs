//! Whether a kernel computes what it should, before it is timed.

use sparamx_format::{Elements, STRIP_ROWS};
use sparamx_kernels::linear::{Activation, reference};
use sparamx_kernels::tolerance::sum_tolerance;
use sparamx_kernels::{Rows, Weight};

/// Compares a sample of `y = x W^T`, `[M, N]`, with plain loops: the first and the last row, and the outputs of the first, the
/// middle and the last strip. Quantized weights must agree to the bit, others up to the derived tolerance.
///
/// # Errors
/// The output that is wrong, and what it should be.
pub fn check(
    activation: Activation,
    weight: &Weight,
    x: Rows<'_>,
    y: Rows<'_>,
) -> Result<(), String> {
    let strips = weight.n().div_ceil(STRIP_ROWS);
    let mut of_strips = vec![0, strips / 2, strips - 1];
    of_strips.dedup();
    let mut of_rows = vec![0, x.rows() - 1];
    of_rows.dedup();
    for s in of_strips {
        let first = s * STRIP_ROWS;
        let count = STRIP_ROWS.min(weight.n() - first);
        let strip = decode(weight, s);
        for &i in &of_rows {
            let want = strip.outputs(activation, x.row(i), count);
            for (j, want) in want.iter().enumerate() {
                let found = y.row(i)[first + j];
                if !want.allows(found) {
                    return Err(format!(
                        "output [{i}][{}] is {found} and should be {}",
                        first + j,
                        want.value
                    ));
                }
            }
        }
    }
    Ok(())
}

/// An output: the right value, and how far from it a kernel may be.
struct Want {
    value: f64,
    tolerance: f64,
}

impl Want {
    fn allows(&self, found: f32) -> bool {
        (f64::from(found) - self.value).abs() <= self.tolerance
    }
}

/// The rows of a strip, row-major.
enum Strip {
    Float(Vec<f32>),
    Quantized(reference::Quantized),
}

impl Strip {
    /// The outputs of one row of activations.
    fn outputs(&self, activation: Activation, x: &[f32], n: usize) -> Vec<Want> {
        let k = x.len();
        match self {
            Strip::Quantized(w) => {
                let y = reference::linear_int(Rows::new(x, 1, k), w, n, None);
                let exact = |value| Want {
                    value: f64::from(value),
                    tolerance: 0.0,
                };
                y.into_iter().map(exact).collect()
            }
            Strip::Float(w) => {
                let x: Vec<f32> = x.iter().map(|&x| rounded(activation, x)).collect();
                let y = reference::linear(Rows::new(&x, 1, k), w, n, None);
                let magnitude = |row: &[f32]| -> f64 {
                    let products = x.iter().zip(row).map(|(a, b)| f64::from((a * b).abs()));
                    products.sum()
                };
                let near = |(value, row)| Want {
                    value,
                    tolerance: sum_tolerance(k, magnitude(row)),
                };
                y.into_iter().zip(w.chunks_exact(k)).map(near).collect()
            }
        }
    }
}

/// The activation as the kernel multiplies it.
fn rounded(activation: Activation, x: f32) -> f32 {
    match activation {
        Activation::Bf16 => half::bf16::from_f32(x).to_f32(),
        Activation::F32 | Activation::I8 | Activation::I16 => x,
    }
}

/// The rows of strip `s`, by the scalar decoders of the formats.
fn decode(weight: &Weight, s: usize) -> Strip {
    let k = weight.k();
    match weight.decode_strip(s) {
        Elements::Bf16(bits) => {
            let bits = bits.into_iter().map(half::bf16::from_bits);
            Strip::Float(bits.map(half::bf16::to_f32).collect())
        }
        Elements::Levels(levels, scales) => {
            let group = scales.group_elems(weight.k_padded());
            let of_group: Vec<_> = (0..k.div_ceil(group)).map(|g| scales.strip(s, g)).collect();
            let of_row = |j: usize| of_group.iter().map(move |scales| scales[j]);
            Strip::Quantized(reference::Quantized {
                scales: (0..levels.len() / k).flat_map(of_row).collect(),
                levels,
                group,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sparamx_cpu::Cpu;
    use sparamx_kernels::linear::{WeightFormat, linear};
    use sparamx_kernels::{Linear, LinearJob, RowsMut, Runtime};
    use sparamx_model::random_weight;

    #[test]
    fn right_outputs_pass_and_wrong_ones_do_not() {
        let rt = Runtime::new(Cpu::detect().unwrap(), 1).unwrap();
        let (m, n, k) = (3, 70, 200);
        let x: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.7).sin()).collect();
        let x = Rows::new(&x, m, k);
        for format in WeightFormat::ALL {
            let weight = random_weight(format, n, k, 0.5, 3).unwrap();
            let layer = Linear { weight, bias: None };
            let mut y = vec![0.0; m * n];
            let job = LinearJob {
                linear: &layer,
                y: RowsMut::new(&mut y, m, n),
            };
            linear(&rt, x, &mut [job]).unwrap();
            // The widest kernel may round activations to bf16: then the float oracle must know.
            let spec = sparamx_kernels::catalog::select(rt.cpu().features(), format, m);
            let result = |y: &[f32]| check(spec.activation, &layer.weight, x, Rows::new(y, m, n));
            assert_eq!(result(&y), Ok(()), "{format}");
            for at in [0, 16 * 2, n - 1, (m - 1) * n + 69] {
                let mut wrong = y.clone();
                wrong[at] += 0.01;
                let message = result(&wrong).unwrap_err();
                let name = format!("output [{}][{}]", at / n, at % n);
                assert!(message.contains(&name), "{format}: {message}");
            }
        }
    }
}
