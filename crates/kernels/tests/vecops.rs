//! Operations on rows against the oracles, at every level that this CPU has.

mod common;
mod oracles;

use common::{at_each_level, bits, cpus};
use oracles::vecops as oracle;
use sparamx_cpu::{Cpu, Isa};
use sparamx_kernels::vecops::{add, rms_norm, rms_norm_heads, rope, silu_mul, softmax_in_place};
use sparamx_kernels::{KernelError, Rows, RowsMut, Runtime};
use sparamx_testkit::{Canary, Random, activations, fast};

/// The levels with vectors of their own.
const LEVELS: [Isa; 3] = [Isa::Portable, Isa::Avx2, Isa::Avx512];

/// Lengths around the vectors of all levels and their blocks of four.
fn lengths() -> Vec<usize> {
    let most = if fast() { 35 } else { 131 };
    (1..=most).chain([255, 1000]).collect()
}

fn runtime(cpu: Cpu) -> Runtime {
    Runtime::new(cpu, 2).unwrap()
}

/// Rows with gaps of NaN, which must not be read as if they belonged to them.
struct Input {
    data: Vec<f32>,
    rows: usize,
    cols: usize,
    stride: usize,
}

impl Input {
    fn new(rows: usize, cols: usize, gap: usize, seed: u64) -> Self {
        let stride = cols + gap;
        let mut data = activations(rows, stride, &mut Random::new(seed));
        data.chunks_mut(stride)
            .for_each(|row| row[cols..].fill(f32::NAN));
        Self {
            data,
            rows,
            cols,
            stride,
        }
    }

    fn rows(&self) -> Rows<'_> {
        Rows::with_stride(&self.data, self.rows, self.cols, self.stride).unwrap()
    }

    /// A copy to work on in place, with gaps of its own.
    fn to_output(&self, gap: usize) -> Canary {
        let mut out = Canary::new(self.rows, self.cols, gap);
        for i in 0..self.rows {
            out.data[i * out.stride..][..self.cols].copy_from_slice(self.rows().row(i));
        }
        out
    }
}

fn output(out: &mut Canary, rows: usize, cols: usize) -> RowsMut<'_> {
    let stride = out.stride;
    RowsMut::with_stride(&mut out.data, rows, cols, stride).unwrap()
}

/// A row of each length, and a case that is large enough for several threads.
fn shapes() -> impl Iterator<Item = (usize, usize, usize)> {
    let small = lengths()
        .into_iter()
        .map(|cols| (1 + cols % 3, cols, cols % 4));
    small.chain([
        (if fast() { 0 } else { 301 }, 300, 5),
        (0, 16, 0),
        (3, 0, 2),
    ])
}

#[test]
fn rms_norm_agrees_with_the_oracle() {
    at_each_level("rms_norm", &LEVELS, |cpu| {
        let rt = runtime(cpu);
        for (rows, cols, gap) in shapes() {
            let x = Input::new(rows, cols, gap, cols as u64);
            let weight = activations(1, cols, &mut Random::new(7));
            let mut out = Canary::new(rows, cols, gap + 1);
            rms_norm(&rt, x.rows(), &weight, 1e-5, output(&mut out, rows, cols)).unwrap();
            let context = format!("{} rows of {cols}", cpu.isa());
            out.check(&context);
            for i in 0..rows {
                let want = oracle::rms_norm(x.rows().row(i), &weight, 1e-5);
                want.iter()
                    .zip(out.row(i))
                    .for_each(|(want, &got)| want.check(got, &context));
            }
        }
    });
}

#[test]
fn a_row_of_zeros_stays_zero() {
    let rt = runtime(Cpu::detect().unwrap());
    let mut out = [1.0; 40];
    rms_norm(
        &rt,
        Rows::new(&[0.0; 40], 1, 40),
        &[2.0; 40],
        1e-6,
        RowsMut::new(&mut out, 1, 40),
    )
    .unwrap();
    assert_eq!(out, [0.0; 40]);
}

#[test]
fn heads_are_normalized_like_rows() {
    at_each_level("rms_norm_heads", &LEVELS, |cpu| {
        let rt = runtime(cpu);
        for head_dim in [1, 8, 40, 64, 96, 128, 160, 256] {
            let (tokens, heads) = (3, 5);
            let x = Input::new(tokens, heads * head_dim, 3, head_dim as u64);
            let weight = activations(1, head_dim, &mut Random::new(8));
            let mut out = x.to_output(2);
            rms_norm_heads(
                &rt,
                output(&mut out, tokens, heads * head_dim),
                &weight,
                1e-6,
            )
            .unwrap();
            out.check("heads");
            for i in 0..tokens {
                let mut want = vec![0.0; heads * head_dim];
                let x = Rows::new(x.rows().row(i), heads, head_dim);
                rms_norm(
                    &rt,
                    x,
                    &weight,
                    1e-6,
                    RowsMut::new(&mut want, heads, head_dim),
                )
                .unwrap();
                assert_eq!(
                    bits(out.row(i)),
                    bits(&want),
                    "{} heads of {head_dim}, row {i}",
                    cpu.isa()
                );
            }
        }
    });
}

#[test]
fn rope_agrees_with_the_oracle() {
    at_each_level("rope", &LEVELS, |cpu| {
        let rt = runtime(cpu);
        let dims = [
            (8, 8),
            (40, 40),
            (64, 64),
            (80, 32),
            (96, 96),
            (128, 128),
            (128, 6),
            (160, 160),
            (256, 64),
            (7, 2),
            (7, 0),
        ];
        for (head_dim, rot_dim) in dims {
            let tokens = if fast() || head_dim != 128 { 3 } else { 200 };
            let (cols, half) = (3 * head_dim, rot_dim / 2);
            let x = Input::new(tokens, cols, 1, head_dim as u64);
            let angle = |at: usize| (at / half.max(1)) as f32 * 0.1 + (at % half.max(1)) as f32;
            let cos: Vec<f32> = (0..tokens * half).map(|at| angle(at).cos()).collect();
            let sin: Vec<f32> = (0..tokens * half).map(|at| angle(at).sin()).collect();
            let mut out = x.to_output(3);
            rope(
                &rt,
                output(&mut out, tokens, cols),
                head_dim,
                rot_dim,
                &cos,
                &sin,
            )
            .unwrap();
            out.check("rope");
            for (i, at) in (0..tokens).flat_map(|i| (0..cols).map(move |at| (i, at))) {
                let context = format!(
                    "{}, {rot_dim} of {head_dim}, row {i}, column {at}",
                    cpu.isa()
                );
                let (row, got, dim) = (x.rows().row(i), out.row(i)[at], at % head_dim);
                if dim >= rot_dim {
                    assert_eq!(got, row[at], "{context}");
                } else if dim < half {
                    let angle = i * half + dim;
                    let [a, b] = oracle::rotate(row[at], row[at + half], cos[angle], sin[angle]);
                    a.check(got, &context);
                    b.check(out.row(i)[at + half], &context);
                }
            }
        }
    });
}

#[test]
fn silu_mul_agrees_with_the_oracle() {
    at_each_level("silu_mul", &LEVELS, |cpu| {
        let rt = runtime(cpu);
        for (rows, cols, gap) in shapes() {
            let mut gate = Input::new(rows, cols, gap, 2 * cols as u64);
            let extremes = [
                0.0, -0.0, 1e-30, -1e-40, -87.0, -88.8, -90.0, -1e4, 88.8, 1e4, 3e38, -3e38,
            ];
            gate.data
                .iter_mut()
                .step_by(3)
                .zip(extremes.iter().cycle())
                .for_each(|(x, e)| *x = if x.is_nan() { *x } else { *e });
            let up = Input::new(rows, cols, gap + 2, 2 * cols as u64 + 1);
            let mut out = gate.to_output(1);
            silu_mul(&rt, output(&mut out, rows, cols), up.rows()).unwrap();
            let context = format!("{} {rows} x {cols}", cpu.isa());
            out.check(&context);
            for i in 0..rows {
                let inputs = gate.rows().row(i).iter().zip(up.rows().row(i));
                inputs
                    .zip(out.row(i))
                    .filter(|((g, _), _)| g.abs() < 1e38)
                    .for_each(|((&g, &u), &got)| {
                        oracle::silu_mul(g, u).check(got, &format!("{context}: silu({g}) * {u}"));
                    });
            }
        }
    });
}

#[test]
fn add_is_rounded_once() {
    at_each_level("add", &LEVELS, |cpu| {
        let rt = runtime(cpu);
        for (rows, cols, gap) in shapes() {
            let (x, y) = (
                Input::new(rows, cols, gap, 1),
                Input::new(rows, cols, gap + 1, 2),
            );
            let mut out = x.to_output(2);
            add(&rt, output(&mut out, rows, cols), y.rows()).unwrap();
            out.check("add");
            for i in 0..rows {
                let want: Vec<f32> = x
                    .rows()
                    .row(i)
                    .iter()
                    .zip(y.rows().row(i))
                    .map(|(x, y)| x + y)
                    .collect();
                assert_eq!(
                    bits(out.row(i)),
                    bits(&want),
                    "{} {rows} x {cols}, row {i}",
                    cpu.isa()
                );
            }
        }
    });
}

#[test]
fn softmax_agrees_with_the_oracle() {
    at_each_level("softmax", &LEVELS, |cpu| {
        let rt = runtime(cpu);
        let mut random = Random::new(3);
        for cols in lengths()
            .into_iter()
            .chain([if fast() { 64 } else { 128_256 }])
        {
            for width in [1.0, 30.0, 1e4, 1e38] {
                let mut x: Vec<f32> = (0..cols).map(|_| random.signed() * width).collect();
                x.iter_mut()
                    .skip(1)
                    .step_by(5)
                    .for_each(|x| *x = f32::NEG_INFINITY);
                let want = oracle::softmax(&x);
                softmax_in_place(&rt, &mut x);
                let context = format!("{}, {cols} elements up to {width}", cpu.isa());
                want.iter()
                    .zip(&x)
                    .for_each(|(want, &got)| want.check(got, &context));
            }
        }
    });
}

#[test]
fn softmax_of_nothing_and_of_no_choice() {
    for cpu in cpus(&LEVELS) {
        let rt = runtime(cpu);
        softmax_in_place(&rt, &mut []);
        let mut masked = [f32::NEG_INFINITY; 21];
        softmax_in_place(&rt, &mut masked);
        assert!(masked.iter().all(|x| x.is_nan()), "{masked:?}");
        let mut nan = [0.0, f32::NAN, 1.0];
        softmax_in_place(&rt, &mut nan);
        assert!(nan.iter().all(|x| x.is_nan()), "{nan:?}");
    }
}

/// Every operation on a matrix that is shared out among the threads.
#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let (rows, cols) = (259, 320);
    let (x, y) = (Input::new(rows, cols, 0, 1), Input::new(rows, cols, 0, 2));
    let angles = activations(rows, 20, &mut Random::new(3));
    for cpu in cpus(&LEVELS) {
        let mut first = None;
        for threads in [1, 2, 3, 5] {
            let rt = Runtime::new(cpu, threads).unwrap();
            let (mut a, mut b) = (x.to_output(0), x.to_output(0));
            rms_norm(
                &rt,
                x.rows(),
                &y.data[..cols],
                1e-5,
                output(&mut a, rows, cols),
            )
            .unwrap();
            silu_mul(&rt, output(&mut a, rows, cols), y.rows()).unwrap();
            add(&rt, output(&mut b, rows, cols), y.rows()).unwrap();
            rms_norm_heads(&rt, output(&mut b, rows, cols), &y.data[..40], 1e-5).unwrap();
            rope(
                &rt,
                output(&mut b, rows, cols),
                40,
                40,
                &angles,
                &y.data[..rows * 20],
            )
            .unwrap();
            let results = (bits(&a.data), bits(&b.data));
            assert!(
                *first.get_or_insert_with(|| results.clone()) == results,
                "{} on {threads} threads",
                cpu.isa()
            );
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let rt = runtime(Cpu::detect().unwrap());
    let (mut a, mut b) = ([0f32; 24], [0f32; 24]);
    let refused = |result: Result<(), KernelError>, words: &str| {
        let text = result.unwrap_err().to_string();
        assert!(text.contains(words), "{text:?} without {words:?}");
    };
    let x = Rows::new(&[0.0; 24], 2, 12);
    refused(
        rms_norm(&rt, x, &[0.0; 12], 0.0, RowsMut::new(&mut a, 1, 12)),
        "rows of x and of the output differ: 2 and 1",
    );
    refused(
        rms_norm(&rt, x, &[0.0; 12], 0.0, RowsMut::new(&mut a, 2, 11)),
        "columns of x and of the output",
    );
    refused(
        rms_norm(&rt, x, &[0.0; 11], 0.0, RowsMut::new(&mut a, 2, 12)),
        "elements of the weight",
    );
    refused(
        rms_norm_heads(&rt, RowsMut::new(&mut a, 2, 12), &[0.0; 5], 0.0),
        "whole heads",
    );
    refused(
        rms_norm_heads(&rt, RowsMut::new(&mut a, 2, 12), &[], 0.0),
        "whole heads",
    );
    refused(
        silu_mul(&rt, RowsMut::new(&mut a, 1, 12), x),
        "rows of gate",
    );
    refused(
        silu_mul(&rt, RowsMut::new(&mut a, 2, 11), x),
        "columns of gate",
    );
    refused(add(&rt, RowsMut::new(&mut a, 1, 12), x), "rows of x");
    refused(add(&rt, RowsMut::new(&mut a, 2, 11), x), "columns of x");
    let mut rope = |head_dim, rot_dim, cos: usize, sin: usize, words| {
        let x = RowsMut::new(&mut b, 2, 12);
        refused(
            rope(&rt, x, head_dim, rot_dim, &vec![0.0; cos], &vec![0.0; sin]),
            words,
        );
    };
    rope(6, 3, 2, 2, "pairs");
    rope(6, 8, 8, 8, "inside the head");
    rope(5, 4, 4, 4, "whole heads");
    rope(0, 0, 0, 0, "whole heads");
    rope(6, 4, 3, 4, "cos");
    rope(6, 4, 4, 5, "sin");
}
