//! The loops around the kernels: activations made ready, strips shared out among the threads.

use std::ops::Range;

use sparamx_cpu::Cpu;
use sparamx_format::LINE_BYTES;

use super::activation::{Activation, write_rows};
use super::chunk::{Activations, Chunk, Parts};
use super::job::LinearJob;
use super::out::Out;
use crate::spec::KernelSpec;
use crate::{Rows, Runtime, Weight};

/// Bytes of weights from which a call is shared out. To start the pool and wait for it costs some two microseconds, in which
/// one thread reads about this much from its L2 cache.
const PARALLEL_BYTES: usize = 64 << 10;
/// Elements of activations from which their conversion is shared out, for the same reason.
const PARALLEL_ELEMS: usize = 64 << 10;

/// Computes all jobs, whose shapes were checked; `kernels[i]` computes `jobs[i]`.
///
/// # Panics
/// If the CPU lacks what a kernel needs or a kernel reads other weights; if shapes do not fit.
pub(super) fn run(rt: &Runtime, x: Rows<'_>, jobs: &mut [LinearJob<'_>], kernels: &[&KernelSpec]) {
    if x.rows() == 0 || jobs.is_empty() {
        return;
    }
    let k_padded = jobs
        .iter()
        .map(|job| job.linear.weight.k_padded())
        .max()
        .unwrap_or(0);
    let cpu = *rt.cpu();
    let mut shared = rt.shared_scratch();
    let ready = Ready::new(rt, x, k_padded, kernels, &mut shared);
    let weights: Vec<&Weight> = jobs.iter().map(|job| &job.linear.weight).collect();
    let calls: Vec<Parts<'_>> = jobs
        .iter_mut()
        .zip(kernels)
        .map(|(job, kernel)| parts(cpu, ready.of(kernel.activation), x.rows(), job, kernel))
        .collect();
    let total: usize = weights.iter().map(|w| w.bytes()).sum();
    let parts = if total * x.rows() < PARALLEL_BYTES {
        1
    } else {
        rt.threads()
    };
    let work = |thread: usize| {
        let mut scratch = rt.scratch(thread);
        for (i, strips) in share(&weights, total, thread, parts) {
            let part = Parts {
                strips,
                ..calls[i].clone()
            };
            // SAFETY: weights are validated when they are made; y is borrowed for the call and of this shape (asserted by `parts`);
            // `share` gives each strip to one thread, so this one alone uses these columns of y.
            let chunk = unsafe { Chunk::new(part) };
            let scratch = scratch.bytes((kernels[i].scratch_bytes)(chunk.k_padded));
            // SAFETY: the CPU has the kernel's features, asserted by `parts`.
            unsafe { (kernels[i].run)(&chunk, scratch) };
        }
    };
    if parts == 1 {
        work(0)
    } else {
        rt.pool().run(&work)
    }
}

/// All of a job, for `kernel`.
///
/// # Panics
/// If the CPU lacks what the kernel needs, it reads other weights, or y has another shape.
fn parts<'a>(
    cpu: Cpu,
    x: Activations<'a>,
    m: usize,
    job: &'a mut LinearJob<'_>,
    kernel: &KernelSpec,
) -> Parts<'a> {
    let (weight, y) = (&job.linear.weight, &mut job.y);
    assert!(
        cpu.features().contains(kernel.features) && kernel.weight == weight.format(),
        "{} weights by {} on a CPU with {}",
        weight.format(),
        kernel.name,
        cpu.features()
    );
    assert_eq!((y.rows(), y.cols()), (m, weight.n()), "shape of y");
    Parts {
        cpu,
        x,
        m,
        k_padded: weight.k_padded(),
        weight: weight.into(),
        strips: 0..weight.strips(),
        out: Out {
            stride: y.stride(),
            n: weight.n(),
            bias: job.linear.bias.as_deref(),
            ptr: y.as_mut_ptr(),
        },
        page: None,
    }
}

/// The strips that thread `thread` of `threads` computes: an equal part of the bytes of all weights together.
///
/// Memory bandwidth is what limits small M, so bytes are the measure; at large M they still are a fair one.
fn share(
    weights: &[&Weight],
    total: usize,
    thread: usize,
    threads: usize,
) -> Vec<(usize, Range<usize>)> {
    let (from, to) = (total * thread / threads, total * (thread + 1) / threads);
    let mut shares = Vec::new();
    let mut before = 0;
    for (i, w) in weights.iter().enumerate() {
        // The strip that a boundary falls into belongs to the thread after the boundary.
        let cut = |bytes: usize| partition(w.strips(), |s| before + w.bytes_before(s) < bytes);
        let strips = cut(from)..cut(to);
        if !strips.is_empty() {
            shares.push((i, strips));
        }
        before += w.bytes();
    }
    shares
}

/// The first of `0..count` for which `below` is false; it is true for none after.
fn partition(count: usize, below: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low.midpoint(high);
        if below(middle) {
            low = middle + 1
        } else {
            high = middle
        }
    }
    low
}

/// Activations in the forms that the kernels of a call want.
struct Ready<'a>([Option<Activations<'a>>; Activation::ALL.len()]);

impl<'a> Ready<'a> {
    fn new(
        rt: &Runtime,
        x: Rows<'a>,
        k_padded: usize,
        kernels: &[&KernelSpec],
        scratch: &'a mut crate::Scratch,
    ) -> Self {
        let as_is = |kind| kind == Activation::F32 && x.cols() == k_padded;
        let bytes = Activation::ALL.map(|kind| {
            let wanted = kernels.iter().any(|kernel| kernel.activation == kind);
            let rows = kind.padded_rows(x.rows()) * kind.row_bytes(k_padded);
            if wanted && !as_is(kind) {
                rows.next_multiple_of(LINE_BYTES)
            } else {
                0
            }
        });
        let mut rest = scratch.bytes(bytes.iter().sum());
        let mut made = Activation::ALL.into_iter().zip(bytes);
        Self(std::array::from_fn(|_| {
            let (kind, bytes) = made.next()?;
            let (out, after) = std::mem::take(&mut rest).split_at_mut(bytes);
            rest = after;
            if as_is(kind) {
                return Some(Activations {
                    bytes: bytemuck::cast_slice(x.data()),
                    stride: x.stride(),
                    kind,
                });
            }
            (bytes > 0).then(|| convert(rt, x, k_padded, kind, out))
        }))
    }

    fn of(&self, kind: Activation) -> Activations<'a> {
        let made = self.0.into_iter().flatten().find(|x| x.kind == kind);
        made.expect("made in `new` for every kernel of the call")
    }
}

fn convert<'a>(
    rt: &Runtime,
    x: Rows<'_>,
    k_padded: usize,
    kind: Activation,
    out: &'a mut [u8],
) -> Activations<'a> {
    let row_bytes = kind.row_bytes(k_padded);
    let (rows, fill) = out.split_at_mut(x.rows() * row_bytes);
    fill.fill(0);
    let cpu = rt.cpu();
    if x.rows() * k_padded < PARALLEL_ELEMS {
        write_rows(cpu, kind, (0..x.rows()).map(|i| x.row(i)), k_padded, rows);
    } else {
        let per_thread = x.rows().div_ceil(rt.threads());
        let parts: Vec<_> = rows
            .chunks_mut(per_thread * row_bytes)
            .map(std::sync::Mutex::new)
            .collect();
        rt.pool().run(&|thread| {
            let Some(part) = parts.get(thread) else {
                return;
            };
            let mut part = part.lock().expect("each thread locks its own part");
            let own = thread * per_thread..x.rows().min((thread + 1) * per_thread);
            write_rows(cpu, kind, own.map(|i| x.row(i)), k_padded, &mut part);
        });
    }
    Activations {
        bytes: out,
        stride: row_bytes / kind.bytes(),
        kind,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sparamx_format::DenseBf16;

    #[test]
    fn shares_cover_every_strip_once() {
        let weights: Vec<Weight> = [(1, 7), (160, 64), (33, 64), (4096, 32)]
            .map(|(n, k)| Weight::DenseBf16(DenseBf16::from_rows(&vec![0; n * k], n, k).unwrap()))
            .into();
        let weights: Vec<&Weight> = weights.iter().collect();
        let total = weights.iter().map(|w| w.bytes()).sum();
        for threads in 1..70 {
            let mut next = vec![0; weights.len()];
            for thread in 0..threads {
                for (i, strips) in share(&weights, total, thread, threads) {
                    assert_eq!(
                        strips.start, next[i],
                        "weight {i}, thread {thread} of {threads}"
                    );
                    next[i] = strips.end;
                }
            }
            assert!(
                next.iter().zip(&weights).all(|(&end, w)| end == w.strips()),
                "{threads} threads: {next:?}"
            );
        }
    }

    /// The busiest thread's bytes over the average, for the calls of a decode step; see docs/decisions/0004.
    #[test]
    fn shares_of_llama_3_8b_are_even() {
        // Outputs of the jobs of a call, K, and calls in a step. Shares do not depend on K, so the weights are narrow.
        let calls: [(&[usize], usize, usize); 5] = [
            (&[4096, 1024, 1024], 4096, 32),
            (&[4096], 4096, 32),
            (&[14336, 14336], 4096, 32),
            (&[4096], 14336, 32),
            (&[128_256], 4096, 1),
        ];
        let dense =
            |n: &usize| Weight::DenseBf16(DenseBf16::from_rows(&vec![0; n * 32], *n, 32).unwrap());
        let calls = calls.map(|(ns, k, count)| {
            let weights: Vec<Weight> = ns.iter().map(dense).collect();
            (weights, (k * count) as f64)
        });
        let worst = |threads: usize| {
            let (mut busiest, mut average) = (0.0, 0.0);
            for (weights, times) in &calls {
                let weights: Vec<&Weight> = weights.iter().collect();
                let total: usize = weights.iter().map(|w| w.bytes()).sum();
                let strips = |thread| -> usize {
                    let shares = share(&weights, total, thread, threads);
                    shares.into_iter().map(|(_, strips)| strips.len()).sum()
                };
                let most = (0..threads).map(strips).max().unwrap_or(0);
                let all: usize = weights.iter().map(|w| w.strips()).sum();
                busiest += most as f64 * times;
                average += all as f64 / threads as f64 * times;
            }
            busiest / average
        };
        for (threads, most) in [(2, 1.01), (32, 1.01), (48, 1.06), (63, 1.11), (64, 1.01)] {
            let worst = worst(threads);
            assert!(worst < most, "{threads} threads: {worst}");
        }
    }
}
