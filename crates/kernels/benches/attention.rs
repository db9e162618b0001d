//! Attention over pages that come from memory, at every level of this CPU: `cargo bench -p sparamx-kernels --bench attention`, for
//! one model and depth with `-- llama-3-8b 8192`, for one level with `SPARAMX_ISA=avx2`.
//!
//! Decode (one token at a depth) over dense and packed pages is compared with the read bandwidth measured between the rounds,
//! and packed pages with dense ones; prefill (512 tokens) in GFLOP/s. Medians; the levels and forms take turns. Each result is
//! compared with the oracle first.

#[path = "../tests/oracles/mod.rs"]
mod oracles;

use std::time::Instant;

use half::bf16;
use oracles::attention::{Query, attention as oracle};
use sparamx_cpu::{Cpu, Isa, topology};
use sparamx_format::Storage;
use sparamx_kernels::attention::{
    KvPages, PAGE_TOKENS, PackedPages, Packing, Page, PageDtype, PageShape, Params, PruneRule,
    Task, attention, read_key, read_value,
};
use sparamx_kernels::bandwidth::Bandwidth;
use sparamx_kernels::catalog::select;
use sparamx_kernels::linear::{Activation, WeightFormat};
use sparamx_kernels::{Rows, RowsMut, Runtime};
use sparamx_testkit::{Random, activations};

/// Bytes of distinct dense pages in a round: many times the last-level cache.
const STREAM_BYTES: usize = 384 << 20;
const ROUNDS: usize = 9;
const PREFILL: usize = 512;
const DEPTHS: [usize; 5] = [512, 1024, 2048, 8192, 16384];

/// Heads, kv heads and their size.
const MODELS: [(&str, usize, usize, usize); 3] = [
    ("llama-3-8b", 32, 8, 128),
    ("llama-2-7b", 32, 32, 128),
    ("tinyllama-1.1b", 32, 4, 64),
];

/// How pages are packed, and what share of keys and values is left out.
const FORMS: [(&str, Option<(PageDtype, f32)>); 6] = [
    ("dense", None),
    ("30 %", Some((PageDtype::Bf16, 0.3))),
    ("50 %", Some((PageDtype::Bf16, 0.5))),
    ("70 %", Some((PageDtype::Bf16, 0.7))),
    ("int8", Some((PageDtype::Int8, 0.0))),
    ("int8 50 %", Some((PageDtype::Int8, 0.5))),
];

fn main() {
    let cpu = sparamx_testkit::cpu();
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
    let mut only = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"));
    let (model, depth) = (only.next(), only.next());
    for (name, heads, kv_heads, head_dim) in MODELS {
        if model.as_ref().is_some_and(|model| model != name) {
            continue;
        }
        let scale = 1.0 / (head_dim as f32).sqrt();
        let params = Params {
            heads,
            kv_heads,
            head_dim,
            scale,
            window: None,
        };
        for at in DEPTHS {
            if depth.as_ref().is_none_or(|depth| *depth == at.to_string()) {
                decode(name, &params, at, &runtimes, &memory);
            }
        }
        if depth.is_none() {
            prefill(name, &params, &runtimes);
        }
    }
}

/// Layers of pages in the order in which a cache fills: those of all kv heads, then the next 64 tokens.
struct Layers {
    kv_heads: usize,
    shape: PageShape,
    /// Of a layer.
    pages: usize,
    count: usize,
    /// In large pages of the system, as a cache's should be.
    lines: Storage<u16>,
}

impl Layers {
    fn new(params: &Params, tokens: usize) -> Self {
        let shape = PageShape {
            head_dim: params.head_dim,
        };
        let pages = tokens.div_ceil(PAGE_TOKENS);
        let elems = pages * params.kv_heads * (shape.key_elems() + shape.value_elems());
        let count = (STREAM_BYTES / (2 * elems)).max(1);
        let mut random = Random::new(5);
        let some: Vec<u16> = (0..4099)
            .map(|_| bf16::from_f32(random.signed()).to_bits())
            .collect();
        let mut lines = Storage::zeroed(count * elems).expect("memory");
        let to = lines.as_mut_slice().expect("nobody else has it");
        to.iter_mut()
            .zip(some.iter().cycle())
            .for_each(|(to, x)| *to = *x);
        Self {
            kv_heads: params.kv_heads,
            shape,
            pages,
            count,
            lines,
        }
    }

    fn pair_elems(&self) -> usize {
        self.shape.key_elems() + self.shape.value_elems()
    }

    /// All pages packed.
    fn pack(&self, cpu: &Cpu, precision: PageDtype, sparsity: f32) -> PackedPages {
        let rule = PruneRule::Magnitude;
        let packing = Packing::new(self.shape, precision, sparsity, sparsity, rule);
        let pairs = self.lines.len() / self.pair_elems();
        let mut packed = PackedPages::new(packing, pairs).expect("memory");
        let from = self.lines.chunks_exact(self.pair_elems());
        for (mut to, pair) in packed.pairs_mut().zip(from) {
            let (key, value) = pair.split_at(self.shape.key_elems());
            to.pack(cpu, key, value, &[]);
        }
        packed
    }
}

/// A layer of [`Layers`], and how queries see it.
#[derive(Clone, Copy)]
struct Pages<'a> {
    layers: &'a Layers,
    packed: Option<&'a PackedPages>,
    layer: usize,
}

impl Pages<'_> {
    fn pair(&self, kv_head: usize, page: usize) -> usize {
        (self.layer * self.layers.pages + page) * self.layers.kv_heads + kv_head
    }

    fn lines(&self, kv_head: usize, page: usize) -> (&[u16], &[u16]) {
        let elems = self.layers.pair_elems();
        let pair = &self.layers.lines[self.pair(kv_head, page) * elems..][..elems];
        pair.split_at(self.layers.shape.key_elems())
    }

    /// Bytes that a token in the last page reads: that page and the one before are dense.
    fn bytes(&self) -> usize {
        let heads = self.layers.kv_heads;
        let dense = self.packed.map_or(self.layers.pages, |_| 2);
        let packed = self
            .packed
            .map_or(0, |packed| packed.packing().pair_bytes());
        heads * (dense * 2 * self.layers.pair_elems() + (self.layers.pages - dense) * packed)
    }
}

impl KvPages for Pages<'_> {
    fn precision(&self) -> PageDtype {
        self.packed
            .map_or(PageDtype::Bf16, |packed| packed.packing().precision)
    }

    fn key(&self, kv_head: usize, page: usize, query_page: usize) -> Page<'_> {
        match self.packed {
            Some(packed) if page + 1 < query_page => packed.key(self.pair(kv_head, page)),
            _ => Page::Dense(self.lines(kv_head, page).0),
        }
    }

    fn value(&self, kv_head: usize, page: usize, query_page: usize) -> Page<'_> {
        match self.packed {
            Some(packed) if page + 1 < query_page => packed.value(self.pair(kv_head, page)),
            _ => Page::Dense(self.lines(kv_head, page).1),
        }
    }
}

fn decode(name: &str, params: &Params, depth: usize, runtimes: &[Runtime], memory: &Bandwidth) {
    let layers = Layers::new(params, depth);
    let width = params.heads * params.head_dim;
    let q = activations(1, width, &mut Random::new(1));
    let mut out = vec![0.0; width];
    let step = |rt: &Runtime, kv: Pages<'_>, out: &mut [f32]| {
        let task = Task {
            first_row: 0,
            rows: 1,
            start: depth - 1,
            kv: &kv,
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
    let cpu = runtimes[0].cpu();
    let forms = FORMS.map(|(form, packing)| {
        let packed = packing.map(|(precision, sparsity)| layers.pack(cpu, precision, sparsity));
        (form, packed)
    });
    let seen = forms.each_ref().map(|(_, packed)| {
        let layers = &layers;
        let packed = packed.as_ref();
        move |layer| Pages {
            layers,
            packed,
            layer,
        }
    });
    for rt in runtimes {
        for layer in &seen {
            step(rt, layer(0), &mut out);
            check(rt, params, layer(0), depth - 1, &q, &out);
        }
    }
    let mut seconds = vec![vec![Vec::new(); forms.len()]; runtimes.len()];
    let mut bandwidth = Vec::new();
    for _ in 0..ROUNDS {
        bandwidth.push(memory.measure(runtimes.last().expect("at least AVX2")));
        for (rt, seconds) in runtimes.iter().zip(&mut seconds) {
            for (layer, seconds) in seen.iter().zip(seconds) {
                let start = Instant::now();
                (0..layers.count).for_each(|i| step(rt, layer(i), &mut out));
                seconds.push(start.elapsed().as_secs_f64() / layers.count as f64);
            }
        }
    }
    let bandwidth = median(&mut bandwidth);
    let bytes = seen.each_ref().map(|layer| layer(0).bytes());
    for (rt, seconds) in runtimes.iter().zip(&mut seconds) {
        let what = format!("{name:<15} {:<7} decode at {depth:>5}", rt.cpu().isa());
        print_forms(&what, seconds, bytes, bandwidth);
    }
}

/// A line for each of [`FORMS`], the dense one first: `seconds` of a layer and its `bytes`.
fn print_forms(what: &str, seconds: &mut [Vec<f64>], bytes: [usize; FORMS.len()], bandwidth: f64) {
    let dense = median(&mut seconds[0]);
    for ((form, _), (bytes, seconds)) in FORMS.iter().zip(bytes.into_iter().zip(seconds)) {
        let seconds = median(seconds);
        let (us, rate) = (seconds * 1e6, bytes as f64 / seconds * 1e-9);
        println!(
            "{what} {form:<10} {us:>8.0} us {rate:>6.1} GB/s, {:.2} of memory, {:.2} times dense",
            rate / bandwidth,
            dense / seconds
        );
    }
}

fn prefill(name: &str, params: &Params, runtimes: &[Runtime]) {
    let layers = Layers::new(params, PREFILL);
    let kv = Pages {
        layers: &layers,
        packed: None,
        layer: 0,
    };
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
fn check(rt: &Runtime, params: &Params, kv: Pages<'_>, position: usize, q: &[f32], out: &[f32]) {
    let (dim, query_page) = (params.head_dim, position / PAGE_TOKENS);
    let (mut keys, mut values) = (
        vec![0.0; (position + 1) * dim],
        vec![0.0; (position + 1) * dim],
    );
    let mut int8 = vec![None; position + 1];
    for (at, (key, value)) in keys.chunks_mut(dim).zip(values.chunks_mut(dim)).enumerate() {
        let (page, slot) = (at / PAGE_TOKENS, at % PAGE_TOKENS);
        match kv.key(0, page, query_page) {
            Page::Dense(lines) => read_key(lines, kv.layers.shape, slot, key),
            Page::Packed(packed) => {
                int8[at] = (kv.precision() == PageDtype::Int8).then_some(page);
                packed.read_key(slot, key);
            }
        }
        match kv.value(0, page, query_page) {
            Page::Dense(lines) => read_value(lines, kv.layers.shape, slot, value),
            Page::Packed(packed) => packed.read_value(slot, value),
        }
    }
    let kernel = select(rt.cpu().features(), WeightFormat::DenseBf16, usize::MAX);
    let bf16 = kernel.activation == Activation::Bf16;
    let query = Query {
        q: &q[..dim],
        scale: params.scale,
        bf16,
        pages: position / PAGE_TOKENS + 1,
        int8: &int8,
    };
    for (want, &got) in oracle(query, &keys, &values).iter().zip(out) {
        want.check(got, &rt.cpu().isa().to_string());
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
