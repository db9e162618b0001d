//! How fast this machine reads memory: what every speed here is compared with.

use std::hint::black_box;
use std::sync::Mutex;
use std::time::Instant;

use sparamx_cpu::topology::{self, CacheKind};
use sparamx_format::{LINE_BYTES, Storage};

use crate::simd::{Lanes, VectorOp, dispatch};
use crate::{KernelError, Runtime};

/// Streams a thread reads at once. One stream alone does not keep enough cache lines under way on some CPUs, more than one
/// disturb the prefetchers of others, so the best of both is the bandwidth.
const STREAMS: [usize; 2] = [1, 4];
/// Passes over the memory in a measurement, for each number of streams: the fastest counts, as what else the machine does
/// can only slow a pass down.
const PASSES: usize = 3;
/// Times the last-level caches that memory must have: of what is read in turn they keep a quarter at most, and those of a virtual
/// machine, which may be hundreds of megabytes, are shared with others.
const CACHES: usize = 4;
/// Below this a pass is too short to be timed, whatever the caches.
const LEAST_BYTES: usize = 256 << 20;
const LINE_ELEMS: usize = LINE_BYTES / size_of::<f32>();
/// Lines that all streams together read in a step of the loop: as many as it has sums, at the fewest lanes.
const STEP_LINES: usize = 4;

/// Memory to read, larger than any cache, kept so that it is measured again and again between other work.
pub struct Bandwidth {
    /// One part a thread, written first by that thread, so that it lies on its NUMA node. Huge pages, as weights have.
    parts: Vec<Storage<f32>>,
}

impl Bandwidth {
    /// Takes and touches at least `bytes` bytes; [`uncached_bytes`] are enough.
    ///
    /// # Errors
    /// [`KernelError::Memory`] if the system refuses them.
    pub fn new(rt: &Runtime, bytes: usize) -> Result<Self, KernelError> {
        // Every stream reads a whole number of steps.
        let len = (bytes / size_of::<f32>())
            .div_ceil(rt.threads())
            .next_multiple_of(STEP_LINES * LINE_ELEMS * STREAMS[STREAMS.len() - 1]);
        let parts = (0..rt.threads()).map(|_| Storage::zeroed(len).map(Mutex::new));
        let parts = parts
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| KernelError::Memory { bytes })?;
        rt.pool().run(&|thread| {
            let mut part = parts[thread]
                .lock()
                .expect("each thread locks its own part");
            // Memory that nobody wrote to is one page of zeros, which the caches hold.
            part.as_mut_slice()
                .expect("storage that was just made is nobody else's")
                .fill(1.0);
        });
        let parts = parts
            .into_iter()
            .map(|part| part.into_inner().expect("no thread panicked"));
        Ok(Self {
            parts: parts.collect(),
        })
    }

    /// The best rate of some passes over everything with each number of streams, in GB/s (10^9 bytes a second). Between the
    /// rounds of a benchmark it gives the roof of that round; the median over the rounds is the roof of the benchmark.
    ///
    /// # Panics
    /// If `rt` has another number of threads than the one given to [`Bandwidth::new`].
    pub fn measure(&self, rt: &Runtime) -> f64 {
        let rates = STREAMS.map(|streams| self.best(rt, streams));
        rates.into_iter().fold(0.0, f64::max)
    }

    /// Bytes that are read in a pass.
    fn bytes(&self) -> usize {
        self.parts.iter().map(|part| size_of_val(&**part)).sum()
    }

    /// The best rate with one number of streams, in GB/s.
    fn best(&self, rt: &Runtime, streams: usize) -> f64 {
        assert_eq!(self.parts.len(), rt.threads(), "threads");
        let pass = || {
            let start = Instant::now();
            rt.pool().run(&|thread| {
                black_box(read(rt, &self.parts[thread], streams));
            });
            self.bytes() as f64 / start.elapsed().as_secs_f64() * 1e-9
        };
        (0..PASSES).map(|_| pass()).fold(0.0, f64::max)
    }
}

/// Bytes of which the caches of this machine hold next to nothing when they are read in turn: several times all last-level
/// caches together.
pub fn uncached_bytes() -> usize {
    let caches = topology::caches();
    let last = caches
        .iter()
        .filter(|cache| cache.kind != CacheKind::Instruction)
        .max_by_key(|cache| cache.level);
    let cpus = topology::allowed_cpus().len();
    let all = last.map_or(0, |c| c.bytes * cpus.div_ceil(c.shared_by.max(1)));
    LEAST_BYTES.max(CACHES * all)
}

/// Reads `data` as `streams` streams of equal length in step; the sum of all elements.
fn read(rt: &Runtime, data: &[f32], streams: usize) -> f32 {
    match streams {
        1 => dispatch(rt.cpu(), Sum(cut::<1>(data))),
        4 => dispatch(rt.cpu(), Sum(cut::<4>(data))),
        _ => panic!("{streams} streams, and not one of {STREAMS:?}"),
    }
}

fn cut<const PARTS: usize>(data: &[f32]) -> [&[f32]; PARTS] {
    let len = data.len() / PARTS;
    std::array::from_fn(|part| &data[part * len..][..len])
}

/// The sum of streams of one length, a whole number of [`STEP_LINES`] lines. A load and an addition a vector, with
/// four sums for the four cycles that an addition takes, are done long before the next line is there: memory alone limits it.
struct Sum<'a, const STREAMS: usize>([&'a [f32]; STREAMS]);

impl<const STREAMS: usize> VectorOp for Sum<'_, STREAMS> {
    type Output = f32;

    #[inline(always)]
    fn eval<L: Lanes>(self, l: L) -> f32 {
        let run = STEP_LINES / STREAMS * LINE_ELEMS;
        let mut sums = [l.splat(0.0); 4];
        for at in (0..self.0[0].len()).step_by(run) {
            for (first, stream) in self.0.iter().enumerate() {
                for (i, x) in stream[at..at + run].chunks_exact(L::LEN).enumerate() {
                    let sum = &mut sums[(first + i) % 4];
                    *sum = l.add(*sum, l.load(x));
                }
            }
        }
        l.reduce_sum(l.add(l.add(sums[0], sums[1]), l.add(sums[2], sums[3])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sparamx_cpu::{Cpu, Isa};

    #[test]
    fn every_stream_reads_everything() {
        let cpu = Cpu::detect().unwrap();
        let data: Vec<f32> = (0..STEP_LINES * LINE_ELEMS * 3).map(|i| i as f32).collect();
        let sum: f32 = data.iter().sum();
        for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512] {
            let rt = Runtime::new(cpu.at_most(isa), 1).unwrap();
            for streams in STREAMS {
                // Whole numbers of which every partial sum is below 2^24: exact in any order.
                assert_eq!(read(&rt, &data, streams), sum, "{isa}, {streams} streams");
            }
        }
    }

    #[test]
    fn every_thread_has_a_part_and_all_parts_are_there() {
        for threads in [1, 3] {
            let rt = Runtime::new(Cpu::detect().unwrap(), threads).unwrap();
            let memory = Bandwidth::new(&rt, 1 << 20).unwrap();
            assert_eq!(memory.parts.len(), threads);
            assert!(
                memory
                    .parts
                    .iter()
                    .all(|part| part.iter().all(|&v| v == 1.0))
            );
            assert!(memory.bytes() >= 1 << 20);
            assert!(memory.measure(&rt) > 0.0);
        }
    }

    #[test]
    fn caches_are_exceeded() {
        let largest = topology::caches()
            .iter()
            .map(|c| c.bytes)
            .max()
            .unwrap_or(0);
        assert!(uncached_bytes() >= LEAST_BYTES.max(CACHES * largest));
    }
}
