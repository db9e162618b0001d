//! Sequences beside a naive model of them: what attention sees, what memory is counted, and what comes back.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;
use sparamx_cpu::Cpu;
use sparamx_kernels::attention::{
    PageShape, PruneRule, read_key, read_value, write_key, write_value,
};

use super::*;

const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 20;
const SHAPE: PageShape = PageShape { head_dim: HEAD_DIM };

fn config() -> Config {
    let fields = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HEADS * HEAD_DIM, "intermediate_size": 8,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
        "vocab_size": 16, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    });
    Config::from_json(fields.to_string().as_bytes(), Path::new("config.json")).unwrap()
}

fn runtime(threads: usize) -> Runtime {
    Runtime::new(Cpu::detect().unwrap(), threads).unwrap()
}

fn mix(state: u64, value: u64) -> u64 {
    let x = (state ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

#[derive(Clone, Copy)]
enum Kind {
    Query,
    Key,
    Value,
}

/// For each token a number that depends on it and on all before it, as what a model computes does.
fn texts(ids: &[u32]) -> Vec<u64> {
    let mut text = 7;
    let next = |&id: &u32| {
        text = mix(text, u64::from(id));
        text
    };
    ids.iter().map(next).collect()
}

/// What a model would compute for a token in a layer.
fn row(text: u64, layer: usize, kind: Kind) -> Vec<f32> {
    let width = match kind {
        Kind::Query => HEADS * HEAD_DIM,
        Kind::Key | Kind::Value => KV_HEADS * HEAD_DIM,
    };
    let seed = mix(mix(text, layer as u64), kind as u64 + 1);
    let number = |i| (mix(seed, i) >> 40) as f32 / (1 << 22) as f32 - 2.0;
    (0..width as u64).map(number).collect()
}

/// The numbers of a page, `[64 tokens, head_dim]` of keys and of values.
type Numbers = (Vec<f32>, Vec<f32>);

fn numbers(key: Page<'_>, value: Page<'_>) -> Numbers {
    let mut numbers = (
        vec![0.0; PAGE_TOKENS * HEAD_DIM],
        vec![0.0; PAGE_TOKENS * HEAD_DIM],
    );
    let tokens = numbers.0.chunks_exact_mut(HEAD_DIM);
    for (slot, (k, v)) in tokens.zip(numbers.1.chunks_exact_mut(HEAD_DIM)).enumerate() {
        match key {
            Page::Dense(lines) => read_key(lines, SHAPE, slot, k),
            Page::Packed(page) => page.read_key(slot, k),
        }
        match value {
            Page::Dense(lines) => read_value(lines, SHAPE, slot, v),
            Page::Packed(page) => page.read_value(slot, v),
        }
    }
    numbers
}

/// What page `page` of a text has to be in the form that queries of page `query_page` see.
fn expected(
    forms: Forms,
    texts: &[u64],
    layer: usize,
    head: usize,
    page: usize,
    query_page: usize,
) -> Numbers {
    let mut key = vec![0; SHAPE.key_elems()];
    let mut value = vec![0; SHAPE.value_elems()];
    let mut queries = vec![0.0; HEAD_DIM];
    let columns = head * HEAD_DIM..(head + 1) * HEAD_DIM;
    let tokens = texts[page * PAGE_TOKENS..].iter().take(PAGE_TOKENS);
    for (slot, &text) in tokens.enumerate() {
        let (k, v) = (row(text, layer, Kind::Key), row(text, layer, Kind::Value));
        write_key(&mut key, SHAPE, slot, &k[columns.clone()]);
        write_value(&mut value, SHAPE, slot, &v[columns.clone()]);
        let q = row(text, layer, Kind::Query);
        let group = HEADS / KV_HEADS * HEAD_DIM;
        let group = &q[head * group..(head + 1) * group];
        for (dim, sum) in queries.iter_mut().enumerate() {
            let of_token: f32 = group
                .iter()
                .skip(dim)
                .step_by(HEAD_DIM)
                .map(|x| x.abs())
                .sum();
            *sum += half::bf16::from_f32(of_token).to_f32();
        }
    }
    let is_packed = page >= forms.sinks && page + forms.window < query_page;
    let Some(packing) = forms.packing.filter(|_| is_packed) else {
        return numbers(Page::Dense(&key), Page::Dense(&value));
    };
    let mut packed = PackedPages::new(packing, 1).unwrap();
    let cpu = Cpu::detect().unwrap();
    packed
        .pairs_mut()
        .for_each(|mut pair| pair.pack(&cpu, &key, &value, &queries));
    numbers(packed.key(0), packed.value(0))
}

/// Appends the tokens after those that the cache has, in one layer, and looks at all that attention would see then.
fn append_layer(cache: &mut PagedCache, rt: &Runtime, ids: &[u32], layer: usize) {
    let (start, tokens) = (cache.len(), ids.len() - cache.len());
    let texts = texts(ids);
    let of = |kind| -> Vec<f32> {
        let rows = texts[start..].iter().map(|&text| row(text, layer, kind));
        rows.flatten().collect()
    };
    let (q, k, v) = (of(Kind::Query), of(Kind::Key), of(Kind::Value));
    cache
        .append(
            rt,
            layer,
            Rows::new(&q, tokens, HEADS * HEAD_DIM),
            Rows::new(&k, tokens, KV_HEADS * HEAD_DIM),
            Rows::new(&v, tokens, KV_HEADS * HEAD_DIM),
        )
        .unwrap();
    let pages = cache.pages(layer);
    let query_pages = start / PAGE_TOKENS..=(ids.len() - 1) / PAGE_TOKENS;
    for (query_page, head) in query_pages.flat_map(|p| (0..KV_HEADS).map(move |h| (p, h))) {
        for page in 0..=query_page {
            let found = numbers(
                pages.key(head, page, query_page),
                pages.value(head, page, query_page),
            );
            let expected = expected(cache.pool.forms(), &texts, layer, head, page, query_page);
            // Slots without a token may hold what an earlier one left.
            let filled = PAGE_TOKENS.min(ids.len() - page * PAGE_TOKENS) * HEAD_DIM;
            let same = found.0[..filled] == expected.0[..filled]
                && found.1[..filled] == expected.1[..filled];
            assert!(
                same,
                "layer {layer} head {head} page {page} from {query_page}"
            );
            let finite = |x: &[f32]| x.iter().all(|x| x.is_finite());
            assert!(finite(&found.0) && finite(&found.1));
        }
    }
}

/// Appends the tokens after those that the cache has.
fn append(cache: &mut PagedCache, rt: &Runtime, ids: &[u32]) {
    let tokens = ids.len() - cache.len();
    for layer in 0..LAYERS {
        append_layer(cache, rt, ids, layer);
    }
    cache.advance(tokens);
}

/// What sequences hold, counted block by block.
fn held_bytes(pool: &PagePool, caches: &[&PagedCache]) -> u64 {
    let slots = || caches.iter().flat_map(|cache| &cache.slots);
    let dense: HashSet<_> = slots().flat_map(|s| &s.dense).map(Arc::as_ptr).collect();
    let packed = slots().flat_map(|s| &s.packed);
    let packed: HashSet<_> = packed.map(|p| std::ptr::from_ref(p.block())).collect();
    pool.bytes_of(dense.len(), packed.len())
}

/// A sequence, and what is known about it.
struct Subject {
    cache: PagedCache,
    ids: Vec<u32>,
    /// From here on tokens were added to it, not found.
    base: usize,
    /// Most tokens that it had.
    peak: usize,
    /// Most tokens that it had memory for, and most of them to be added.
    reserved: (usize, usize),
}

impl Subject {
    fn new(cache: PagedCache) -> Self {
        Self {
            ids: cache.tokens().to_vec(),
            base: cache.len(),
            peak: cache.len(),
            reserved: (cache.len(), 1),
            cache,
        }
    }

    fn append(&mut self, rt: &Runtime, ids: &[u32], named: bool) {
        let unnamed = self.cache.tokens().len();
        self.ids.extend_from_slice(ids);
        let held = self.cache.bytes();
        append(&mut self.cache, rt, &self.ids);
        assert_eq!(self.cache.bytes(), held, "it has what it reserved");
        if named {
            self.cache.commit(&self.ids[unnamed..]);
        }
        self.peak = self.peak.max(self.ids.len());
    }

    fn truncate(&mut self, len: usize) {
        let kept = self.cache.truncate(len);
        let sinks = self.cache.pool.forms().sinks * PAGE_TOKENS;
        let sure = self.peak.saturating_sub(UNDO_TOKENS).max(self.base);
        assert!(
            kept == len || (len < sure && kept == len.min(sinks)),
            "{kept}"
        );
        self.ids.truncate(kept);
        assert_eq!(self.cache.len(), kept);
        if kept < len {
            (self.base, self.peak) = (0, kept);
        }
    }
}

#[derive(Debug, Clone)]
enum Op {
    Append {
        who: usize,
        tokens: usize,
        id: u32,
        named: bool,
    },
    Truncate {
        who: usize,
        tokens: usize,
    },
    Fork {
        who: usize,
    },
    Drop {
        who: usize,
    },
    Resume {
        text: usize,
        tokens: usize,
    },
    Fail {
        who: usize,
        tokens: usize,
        layers: usize,
    },
    Reserve {
        who: usize,
        tokens: usize,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let who = 0..4usize;
    let tokens = prop_oneof![1..4usize, 1..80usize, 100..260usize];
    let append = (who.clone(), tokens.clone(), 0..2u32, any::<bool>());
    prop_oneof![
        6 => append.prop_map(|(who, tokens, id, named)| Op::Append { who, tokens, id, named }),
        2 => (who.clone(), prop_oneof![0..=UNDO_TOKENS, 0..200usize])
            .prop_map(|(who, tokens)| Op::Truncate { who, tokens }),
        1 => who.clone().prop_map(|who| Op::Fork { who }),
        1 => who.clone().prop_map(|who| Op::Drop { who }),
        2 => (0..100usize, 1..600usize).prop_map(|(text, tokens)| Op::Resume { text, tokens }),
        1 => (who.clone(), tokens.clone(), 0..=LAYERS)
            .prop_map(|(who, tokens, layers)| Op::Fail { who, tokens, layers }),
        1 => (who, tokens).prop_map(|(who, tokens)| Op::Reserve { who, tokens }),
    ]
}

fn options() -> impl Strategy<Value = KvOptions> {
    let sparsity = prop_oneof![Just(0.0), Just(0.5), 0.0..0.95f32];
    let forms = (
        prop_oneof![Just(PageDtype::Bf16), Just(PageDtype::Int8)],
        sparsity.clone(),
        sparsity,
        prop_oneof![Just(0), Just(64), Just(100)],
        prop_oneof![Just(0), Just(3), Just(64), Just(100)],
        prop::sample::select(PruneRule::ALL.to_vec()),
    );
    (200_000..2_000_000u64, forms).prop_map(
        |(budget, (precision, key_sparsity, value_sparsity, window, sinks, rule))| KvOptions {
            budget_bytes: Some(budget),
            precision,
            key_sparsity,
            value_sparsity,
            window,
            sinks,
            rule,
        },
    )
}

/// Does `op`, if there is the sequence that it is about and the memory.
fn perform(
    pool: &PagePool,
    rt: &Runtime,
    subjects: &mut Vec<Subject>,
    texts: &mut Vec<Vec<u32>>,
    op: Op,
) {
    let budget = pool.usage().budget_bytes;
    let reserve = |subjects: &mut Vec<Subject>, who: usize, tokens: usize| -> bool {
        let caches: Vec<_> = subjects.iter().map(|s| &s.cache).collect();
        let before = held_bytes(pool, &caches);
        let Some(subject) = subjects.get_mut(who) else {
            return false;
        };
        match subject.cache.reserve(tokens) {
            Ok(()) => {
                let (end, step) = subject.reserved;
                subject.reserved = (end.max(subject.ids.len() + tokens), step.max(tokens));
                true
            }
            Err(EngineError::PoolFull {
                needed_bytes,
                free_bytes,
                budget_bytes,
            }) => {
                assert!(needed_bytes > free_bytes && budget_bytes == budget);
                // It may have let go of pages that it no longer needs.
                assert!(free_bytes >= budget - before);
                false
            }
            Err(error) => panic!("{error}"),
        }
    };
    match op {
        Op::Append {
            who,
            tokens,
            id,
            named,
        } => {
            if reserve(subjects, who, tokens) {
                subjects[who].append(rt, &vec![id; tokens], named);
                texts.push(subjects[who].ids.clone());
            }
        }
        Op::Truncate { who, tokens } => {
            if let Some(subject) = subjects.get_mut(who) {
                subject.truncate(subject.ids.len().saturating_sub(tokens));
            }
        }
        Op::Fork { who } => {
            if let Some(subject) = subjects.get(who).filter(|_| subjects.len() < 4) {
                let fork = Subject {
                    cache: subject.cache.fork(),
                    ids: subject.ids.clone(),
                    base: subject.base,
                    peak: subject.peak,
                    reserved: subject.reserved,
                };
                subjects.push(fork);
            }
        }
        Op::Drop { who } => {
            if who < subjects.len() {
                subjects.remove(who);
            }
        }
        Op::Resume { text, tokens } => {
            let none = Vec::new();
            let ids = texts.get(text % texts.len().max(1)).unwrap_or(&none);
            let ids = &ids[..tokens.min(ids.len())];
            let subject = Subject::new(pool.resume(ids));
            assert!(subject.ids.len() < ids.len().max(1) && ids.starts_with(&subject.ids));
            if subjects.len() < 4 {
                subjects.push(subject);
            }
        }
        Op::Fail {
            who,
            tokens,
            layers,
        } => {
            if reserve(subjects, who, tokens) {
                let subject = &mut subjects[who];
                let ids = [&subject.ids[..], &vec![9; tokens]].concat();
                for layer in 0..layers {
                    append_layer(&mut subject.cache, rt, &ids, layer);
                }
                assert_eq!(subject.cache.len(), subject.ids.len());
            }
        }
        Op::Reserve { who, tokens } => {
            reserve(subjects, who, tokens);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sequences_are_what_a_naive_cache_would_hold(
        options in options(),
        threads in 1..3usize,
        ops in prop::collection::vec(op(), 1..60),
    ) {
        let (pool, rt) = (PagePool::new(&config(), &options).unwrap(), runtime(threads));
        let (mut subjects, mut texts) = (vec![Subject::new(pool.sequence())], Vec::new());
        for op in ops {
            perform(&pool, &rt, &mut subjects, &mut texts, op);
            let caches: Vec<_> = subjects.iter().map(|s| &s.cache).collect();
            let usage = pool.usage();
            prop_assert_eq!(usage.in_use_bytes, held_bytes(&pool, &caches));
            for subject in &subjects {
                let (end, step) = subject.reserved;
                prop_assert!(subject.cache.bytes() <= pool.sequence_bytes(end, step));
            }
            prop_assert!(usage.in_use_bytes + usage.cached_bytes + usage.free_bytes <= usage.budget_bytes);
        }
        drop(subjects);
        prop_assert_eq!(pool.usage().in_use_bytes, 0);
        // All of the memory can be had again, whatever is cached.
        let mut all = pool.sequence();
        let pages = (options.budget_bytes.unwrap() / pool.bytes_of(1, 1)) as usize;
        prop_assert!(all.reserve(pages * PAGE_TOKENS).is_ok());
        drop(all);
        pool.clear_cache();
        let budget_bytes = options.budget_bytes.unwrap();
        prop_assert_eq!(pool.usage(), crate::PoolUsage { budget_bytes, ..crate::PoolUsage::default() });
    }
}

/// Half of all numbers, by the rule that knows most.
fn packing(window: usize, sinks: usize) -> KvOptions {
    KvOptions {
        budget_bytes: Some(100 << 20),
        precision: PageDtype::Bf16,
        key_sparsity: 0.5,
        value_sparsity: 0.5,
        window,
        sinks,
        rule: PruneRule::Query,
    }
}

/// Tokens that tell their position and, by the seed, the text they are of.
fn text(seed: u32, tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|i| seed * 100_000 + i).collect()
}

/// The forms of all pages: d for dense, p for packed, b for both.
fn forms(cache: &PagedCache) -> String {
    let form = |slot: &Slot| match (&slot.dense, &slot.packed) {
        (Some(_), None) => 'd',
        (None, Some(_)) => 'p',
        _ => 'b',
    };
    cache.slots.iter().map(form).collect()
}

#[test]
fn a_page_is_packed_in_the_steps_that_fill_the_last_page_that_sees_it_dense() {
    let (pool, rt) = (
        PagePool::new(&config(), &packing(64, 0)).unwrap(),
        runtime(1),
    );
    let (mut cache, ids) = (pool.sequence(), text(1, 300));
    let packed = |cache: &PagedCache, page: usize| {
        let layers = cache.slots[page].packed.as_ref();
        layers.map_or(0, |packed| packed.layers().iter().filter(|&&p| p).count())
    };
    for end in 1..=ids.len() {
        append(&mut cache, &rt, &ids[..end]);
        cache.commit(&ids[end - 1..end]);
        let done: usize = (0..cache.slots.len())
            .map(|page| packed(&cache, page))
            .sum();
        // Page 0 while page 1 fills, one layer a step, and so on.
        let expected = |page: usize| {
            let begin = (page + 1) * PAGE_TOKENS + PACKING_SLOT;
            end.saturating_sub(begin).min(LAYERS)
        };
        assert_eq!(done, (0..5).map(expected).sum::<usize>(), "{end}");
    }
    assert_eq!(forms(&cache), "pppbd");
    cache.truncate(0);

    // What a pass over several pages needs is packed within it.
    append(&mut cache, &rt, &ids);
    cache.commit(&ids);
    assert_eq!(forms(&cache), "pppbd");
    assert_eq!(packed(&cache, 3), LAYERS);
}

#[test]
fn forks_are_right_at_every_stage_of_packing() {
    let (pool, rt) = (
        PagePool::new(&config(), &packing(64, 0)).unwrap(),
        runtime(1),
    );
    let (mut cache, mut ids) = (pool.sequence(), text(1, 128));
    append(&mut cache, &rt, &ids);
    for step in 0..70 {
        ids.push(step);
        append(&mut cache, &rt, &ids);
        let mut fork = cache.fork();
        let mut other = ids.clone();
        for tokens in [1, 70] {
            other.extend(text(2, tokens));
            append(&mut fork, &rt, &other);
        }
    }
}

#[test]
fn what_is_reserved_is_never_more_than_a_sequence_is_said_to_take() {
    let rt = runtime(1);
    for (window, sinks) in [(0, 0), (64, 64), (65, 100), (256, 0)] {
        let pool = PagePool::new(&config(), &packing(window, sinks)).unwrap();
        for step in [1, 17, 64, 100, 512] {
            let (mut cache, ids) = (pool.sequence(), text(1, 1100));
            let mut most = 0;
            for end in (step..=ids.len()).step_by(step) {
                cache.reserve(step).unwrap();
                most = most.max(cache.bytes());
                // What the pages hold is of no matter here.
                let zeros = vec![0.0; step * HEADS * HEAD_DIM];
                let kv = Rows::new(
                    &zeros[..step * KV_HEADS * HEAD_DIM],
                    step,
                    KV_HEADS * HEAD_DIM,
                );
                for layer in 0..LAYERS {
                    let q = Rows::new(&zeros, step, HEADS * HEAD_DIM);
                    cache.append(&rt, layer, q, kv, kv).unwrap();
                }
                cache.advance(step);
                cache.commit(&ids[end - step..end]);
                let said = pool.sequence_bytes(end, step);
                assert!(most <= said, "{most} > {said} at {end} by {step}");
            }
            let said = pool.sequence_bytes(ids.len(), step);
            let slack = said - most;
            assert!(slack <= pool.bytes_of(2, 1), "{most} of {said} by {step}");
        }
    }
}

#[test]
fn a_prefix_is_found_as_long_as_the_forms_that_are_needed_are_there() {
    let rt = runtime(1);
    let options = |blocks: (usize, usize)| {
        let pool = PagePool::new(&config(), &packing(64, 64)).unwrap();
        KvOptions {
            budget_bytes: Some(pool.bytes_of(blocks.0, blocks.1)),
            ..packing(64, 64)
        }
    };
    let ids = text(1, 400);
    for step in [1, ids.len()] {
        let pool = PagePool::new(&config(), &options((8, 8))).unwrap();
        finds_prefixes(&pool, &rt, &ids, step);
    }
}

/// For a pool of eight blocks of each form; the text is computed `step` tokens at a time.
fn finds_prefixes(pool: &PagePool, rt: &Runtime, ids: &[u32], step: usize) {
    // With room for everything dense copies stay, and the text can go on from any page.
    let mut cache = pool.sequence();
    for end in (step..=ids.len()).step_by(step) {
        append(&mut cache, rt, &ids[..end]);
        cache.commit(&ids[end - step..end]);
    }
    // The sink, packed pages, the window, whose packed form has its memory, and the page that is being filled.
    assert_eq!(forms(&cache), "dppppbd");
    drop(cache);
    for (tokens, expected) in [
        (400, "dppppd"),
        (385, "dppppd"),
        (384, "dpppd"),
        (200, "dpd"),
        (64, ""),
    ] {
        let mut found = pool.resume(&ids[..tokens]);
        assert_eq!((tokens, forms(&found).as_str()), (tokens, expected));
        let other = [&ids[..found.len()], &text(2, 100)].concat();
        append(&mut found, rt, &other);
        // What the first one packed is not packed again.
        let block = |cache: &PagedCache, page: usize| {
            let slot = cache.slots.get(page)?;
            slot.packed
                .as_ref()
                .map(|packed| std::ptr::from_ref(packed.block()))
        };
        let first = pool.resume(ids);
        for page in (1..5).filter(|page| page * PAGE_TOKENS < found.tokens().len()) {
            assert_eq!(block(&found, page), block(&first, page), "{tokens}, {page}");
        }
    }

    // Dense copies of packed pages go first, and the text is of use from its end only.
    let mut other = pool.sequence();
    other.reserve(6 * PAGE_TOKENS).unwrap();
    assert_eq!(forms(&pool.resume(ids)), "dppppd");
    assert_eq!(forms(&pool.resume(&ids[..300])), "d");
}

#[test]
fn what_cannot_be_reserved_leaves_everything_where_it_was() {
    let (pool, rt) = (
        PagePool::new(&config(), &packing(64, 64)).unwrap(),
        runtime(1),
    );
    let ids = text(1, 400);
    let mut first = pool.sequence();
    append(&mut first, &rt, &ids);
    first.commit(&ids);
    drop(first);
    // Its last page is there packed as well, for when it will be needed.
    let mut second = pool.resume(&ids[..384]);
    assert_eq!(forms(&second), "dpppd");
    let usage = pool.usage();
    for tokens in [1 << 20, 1 << 60] {
        let error = second.reserve(tokens).unwrap_err();
        assert!(matches!(error, EngineError::PoolFull { .. }), "{error}");
        assert_eq!((pool.usage(), forms(&second)), (usage, "dpppd".to_owned()));
    }
    let longer = [&ids[..320], &text(2, 100)].concat();
    append(&mut second, &rt, &longer);
}

#[test]
fn options_outside_their_range_are_refused() {
    let message = |options: KvOptions| {
        let error = PagePool::new(&config(), &options).err();
        error.map(|error| error.to_string())
    };
    for sparsity in [-0.1, 1.0, 1.5, f32::NAN, f32::INFINITY] {
        let keys = KvOptions {
            key_sparsity: sparsity,
            ..KvOptions::default()
        };
        let values = KvOptions {
            value_sparsity: sparsity,
            ..KvOptions::default()
        };
        for (options, what) in [(keys, "keys"), (values, "values")] {
            let expected = format!(
                "the sparsity of {what} is {sparsity}, allowed is 0, where nothing is left out, to below 1"
            );
            assert_eq!(message(options), Some(expected));
        }
    }
    let endless = KvOptions {
        window: usize::MAX,
        sinks: usize::MAX,
        ..packing(0, 0)
    };
    let (pool, rt) = (PagePool::new(&config(), &endless).unwrap(), runtime(1));
    let (mut cache, ids) = (pool.sequence(), text(1, 200));
    append(&mut cache, &rt, &ids);
    assert_eq!((forms(&cache), cache.truncate(70)), ("dddd".to_owned(), 70));
}

#[test]
fn threads_share_a_pool() {
    let options = packing(64, 64);
    let pages = PagePool::new(&config(), &options).unwrap().bytes_of(14, 10);
    let options = KvOptions {
        budget_bytes: Some(pages),
        ..options
    };
    let pool = PagePool::new(&config(), &options).unwrap();
    let full = std::sync::atomic::AtomicUsize::new(0);
    let work = &|seed: u64| {
        let rt = runtime(1);
        let mut state = mix(1, seed);
        let mut below = |n: u64| {
            state = mix(state, 1);
            (state >> 20) % n
        };
        for _ in 0..40 {
            // Few texts, so that they meet.
            let ids = text(below(3) as u32, 64 + below(300) as usize);
            let mut subject = Subject::new(pool.resume(&ids));
            while subject.ids.len() < ids.len() {
                let at = subject.ids.len();
                let tokens = (1 + below(100) as usize).min(ids.len() - at);
                if subject.cache.reserve(tokens).is_err() {
                    full.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    break;
                }
                subject.append(&rt, &ids[at..at + tokens], below(4) > 0);
                match below(6) {
                    0 => subject.truncate(subject.ids.len() - tokens.min(UNDO_TOKENS)),
                    1 => subject.cache = subject.cache.fork(),
                    _ => {}
                }
            }
            let usage = pool.usage();
            let all = usage.in_use_bytes + usage.cached_bytes + usage.free_bytes;
            assert!(all <= usage.budget_bytes);
        }
    };
    std::thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || work(seed));
        }
    });
    assert!(full.into_inner() > 0, "the budget is meant to be too small");
    assert_eq!(pool.usage().in_use_bytes, 0);
    pool.clear_cache();
    let usage = pool.usage();
    assert_eq!((usage.cached_bytes, usage.free_bytes), (0, 0));
}
