//! How fast this machine reads memory: what every speed here is compared with.

use std::hint::black_box;
use std::time::Instant;

use crate::Runtime;

/// Streams a thread reads at once. One stream alone does not keep enough cache lines under way on some CPUs, so the best of
/// both is the bandwidth.
const STREAMS: [usize; 2] = [1, 4];

/// Memory to read, larger than any cache, kept so that it is measured again and again between other work.
pub struct Bandwidth {
    /// One part a thread, written first by that thread, so that it lies on its NUMA node.
    parts: Vec<Vec<u64>>,
}

impl Bandwidth {
    /// Takes and touches `bytes` bytes. At least several times the last-level cache; 512 MiB serves most machines.
    pub fn new(rt: &Runtime, bytes: usize) -> Self {
        let len = (bytes / 8 / rt.threads()).next_multiple_of(64);
        let parts: Vec<_> = (0..rt.threads())
            .map(|_| std::sync::Mutex::new(Vec::new()))
            .collect();
        rt.pool().run(&|thread| {
            *parts[thread]
                .lock()
                .expect("each thread locks its own part") = vec![1; len]
        });
        Self {
            parts: parts
                .into_iter()
                .map(|part| part.into_inner().expect("no thread panicked"))
                .collect(),
        }
    }

    /// Reads everything once with each number of streams; the better rate, in GB/s (10^9 bytes a second).
    ///
    /// # Panics
    /// If `rt` has another number of threads than the one given to [`Bandwidth::new`].
    pub fn measure(&self, rt: &Runtime) -> f64 {
        assert_eq!(self.parts.len(), rt.threads(), "threads");
        let bytes = (self.parts.len() * self.parts[0].len() * 8) as f64;
        let rates = STREAMS.map(|streams| {
            let start = Instant::now();
            rt.pool().run(&|thread| {
                black_box(read(&self.parts[thread], streams));
            });
            bytes / start.elapsed().as_secs_f64() * 1e-9
        });
        rates.into_iter().fold(0.0, f64::max)
    }
}

/// Reads `data` as `streams` streams of equal length in step.
fn read(data: &[u64], streams: usize) -> u64 {
    let parts: Vec<&[u64]> = data.chunks(data.len().div_ceil(streams)).collect();
    let mut sums = [0u64; 8];
    for at in (0..parts[0].len()).step_by(8) {
        for part in &parts {
            if let Some(line) = part.get(at..at + 8) {
                for (sum, v) in sums.iter_mut().zip(line) {
                    *sum = sum.wrapping_add(*v);
                }
            }
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}

/// The best of `rounds` measurements over 512 MiB, in GB/s. For repeated use between other work keep a [`Bandwidth`].
pub fn read_bandwidth(rt: &Runtime, rounds: usize) -> f64 {
    let memory = Bandwidth::new(rt, 512 << 20);
    (0..rounds.max(1))
        .map(|_| memory.measure(rt))
        .fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stream_reads_everything() {
        for streams in STREAMS {
            assert_eq!(read(&vec![3; 64 * 5], streams), 3 * 64 * 5);
        }
    }
}
