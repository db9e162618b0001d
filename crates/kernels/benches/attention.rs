//! Attention over pages that come from memory, at every level of this CPU: `cargo bench -p sparamx-kernels --bench attention`.
//!
//! Decode (one token at a depth) is compared with the read bandwidth measured between the rounds, prefill (512 tokens) in GFLOP/s.
//! Medians; the levels take turns. Each result is compared with the oracle first.

use std::time::Instant;

use half::bf16;
use sparamx_cpu::{Cpu, Isa, topology};
use sparamx_kernels::attention::{
    KvPages, PAGE_TOKENS, Page, PageShape, Params, Task, attention, read_key, read_value,
};
use sparamx_kernels::bandwidth::Bandwidth;
use sparamx_kernels::catalog::select;
use sparamx_kernels::linear::{Activation, WeightFormat};
use sparamx_kernels::{Rows, RowsMut, Runtime};
use sparamx_testkit::attention::{Query, attention as oracle};
use sparamx_testkit::{Random, activations};

/// Bytes of distinct pages in a round: many times the last-level cache.
const STREAM_BYTES: usize = 384 << 20;
const ROUNDS: usize = 9;
const PREFILL: usize = 512;

/// Heads, kv heads and their size.
const MODELS: [(&str, usize, usize, usize); 3] = [
    ("llama-3-8b", 32, 8, 128),
    ("llama-2-7b", 32, 32, 128),
    ("tinyllama-1.1b", 32, 4, 64),
];

fn main() {
    let cpu = Cpu::detect().expect("a CPU");
    let threads = topology::default_threads();
    let runtimes: Vec<Runtime> = Isa::ALL
        .into_iter()
        .filter(|isa| (Isa::Avx2..=cpu.isa()).contains(isa))
        .map(|isa| Runtime::new(cpu.at_most(isa), threads).expect("threads"))
        .collect();
    let widest = runtimes.last().expect("at least AVX2");
    widest.pin_caller();
    let memory = Bandwidth::new(widest, 512 << 20).expect("memory");
    println!("{}, {threads} threads", cpu.report().brand);
    for (name, heads, kv_heads, head_dim) in MODELS {
        let scale = 1.0 / (head_dim as f32).sqrt();
        let params = Params {
            heads,
            kv_heads,
            head_dim,
            scale,
            window: None,
        };
        for depth in [512, 1024, 8192] {
            decode(name, &params, depth, &runtimes, &memory);
        }
        prefill(name, &params, &runtimes);
    }
}

/// Pages in the order in which a cache fills: those of all kv heads, then the next 64 tokens.
struct Pages {
    kv_heads: usize,
    shape: PageShape,
    lines: Vec<u16>,
}

impl Pages {
    fn new(params: &Params, tokens: usize) -> Self {
        let shape = PageShape {
            head_dim: params.head_dim,
        };
        let elems = tokens.div_ceil(PAGE_TOKENS)
            * params.kv_heads
            * (shape.key_elems() + shape.value_elems());
        let mut random = Random::new(5);
        let some: Vec<u16> = (0..4099)
            .map(|_| bf16::from_f32(random.signed()).to_bits())
            .collect();
        let lines = some.iter().copied().cycle().take(elems).collect();
        Self {
            kv_heads: params.kv_heads,
            shape,
            lines,
        }
    }

    fn page(&self, kv_head: usize, page: usize) -> &[u16] {
        let elems = self.shape.key_elems() + self.shape.value_elems();
        &self.lines[(page * self.kv_heads + kv_head) * elems..][..elems]
    }
}

impl KvPages for Pages {
    fn key(&self, kv_head: usize, page: usize) -> Page<'_> {
        Page::Dense(&self.page(kv_head, page)[..self.shape.key_elems()])
    }

    fn value(&self, kv_head: usize, page: usize) -> Page<'_> {
        Page::Dense(&self.page(kv_head, page)[self.shape.key_elems()..])
    }
}

fn decode(name: &str, params: &Params, depth: usize, runtimes: &[Runtime], memory: &Bandwidth) {
    let first = Pages::new(params, depth);
    let bytes = 2 * first.lines.len();
    let copies = (STREAM_BYTES / bytes).max(1);
    let mut layers = vec![first];
    layers.resize_with(copies, || Pages::new(params, depth));
    let width = params.heads * params.head_dim;
    let q = activations(1, width, &mut Random::new(1));
    let mut out = vec![0.0; width];
    let step = |rt: &Runtime, kv: &Pages, out: &mut [f32]| {
        let task = Task {
            first_row: 0,
            rows: 1,
            start: depth - 1,
            kv,
        };
        attention(
            rt,
            params,
            Rows::new(&q, 1, width),
            &[task],
            RowsMut::new(out, 1, width),
        )
        .expect("shapes fit");
    };
    for rt in runtimes {
        step(rt, &layers[0], &mut out);
        check(rt, params, &layers[0], depth - 1, &q, &out);
    }
    let (mut seconds, mut bandwidth) = (vec![Vec::new(); runtimes.len()], Vec::new());
    for _ in 0..ROUNDS {
        bandwidth.push(memory.measure(runtimes.last().expect("at least AVX2")));
        for (rt, seconds) in runtimes.iter().zip(&mut seconds) {
            let start = Instant::now();
            layers.iter().for_each(|kv| step(rt, kv, &mut out));
            seconds.push(start.elapsed().as_secs_f64() / copies as f64);
        }
    }
    let bandwidth = median(&mut bandwidth);
    for (rt, seconds) in runtimes.iter().zip(&mut seconds) {
        let seconds = median(seconds);
        let (us, rate) = (seconds * 1e6, bytes as f64 / seconds * 1e-9);
        let isa = rt.cpu().isa();
        println!(
            "{name:<15} {isa:<7} decode at {depth:>5} {us:>8.0} us {rate:>6.1} GB/s, {:.2} of memory",
            rate / bandwidth
        );
    }
}

fn prefill(name: &str, params: &Params, runtimes: &[Runtime]) {
    let kv = Pages::new(params, PREFILL);
    let width = params.heads * params.head_dim;
    let q = activations(PREFILL, width, &mut Random::new(1));
    let mut out = vec![0.0; PREFILL * width];
    let mut seconds = vec![Vec::new(); runtimes.len()];
    for _ in 0..ROUNDS {
        for (rt, seconds) in runtimes.iter().zip(&mut seconds) {
            let start = Instant::now();
            let task = Task {
                first_row: 0,
                rows: PREFILL,
                start: 0,
                kv: &kv,
            };
            let (q, out) = (
                Rows::new(&q, PREFILL, width),
                RowsMut::new(&mut out, PREFILL, width),
            );
            attention(rt, params, q, &[task], out).expect("shapes fit");
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    // Two products of head_dim multiply-adds for each pair of a token and one that it sees.
    let flops = (2 * PREFILL * (PREFILL + 1) * width) as f64;
    for (rt, seconds) in runtimes.iter().zip(&mut seconds) {
        let seconds = median(seconds);
        let isa = rt.cpu().isa();
        println!(
            "{name:<15} {isa:<7} prefill {PREFILL:>7} {:>8.0} us {:>6.1} GFLOP/s",
            seconds * 1e6,
            flops / seconds * 1e-9
        );
    }
}

/// Head 0 against the oracle.
fn check(rt: &Runtime, params: &Params, kv: &Pages, position: usize, q: &[f32], out: &[f32]) {
    let dim = params.head_dim;
    let (mut keys, mut values) = (
        vec![0.0; (position + 1) * dim],
        vec![0.0; (position + 1) * dim],
    );
    for (at, (key, value)) in keys.chunks_mut(dim).zip(values.chunks_mut(dim)).enumerate() {
        let (Page::Dense(k), Page::Dense(v)) =
            (kv.key(0, at / PAGE_TOKENS), kv.value(0, at / PAGE_TOKENS));
        read_key(k, kv.shape, at % PAGE_TOKENS, key);
        read_value(v, kv.shape, at % PAGE_TOKENS, value);
    }
    let kernel = select(rt.cpu().features(), WeightFormat::DenseBf16, usize::MAX);
    let bf16 = kernel.activation == Activation::Bf16;
    let query = Query {
        q: &q[..dim],
        scale: params.scale,
        bf16,
        pages: position / PAGE_TOKENS + 1,
    };
    for (want, &got) in oracle(query, &keys, &values).iter().zip(out) {
        want.check(got, &rt.cpu().isa().to_string());
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
