//! A model on a cache whose pages are packed: what a text gives depends on nothing but the text.

mod common;

use common::model;
use sparamx_cpu::{Cpu, Isa};
use sparamx_engine::{KvOptions, KvPrecision, KvRule, PagePool, PagedCache};
use sparamx_kernels::Runtime;
use sparamx_model::{Input, KvCache, Model, Op, Want, Workspace};

const TOKENS: usize = 420;

/// Levels on which the number of rows does not decide about bits. With AMX few rows go another way than many.
const LEVELS: [Isa; 2] = [Isa::Avx2, Isa::Avx512];

fn runtime(isa: Isa) -> Runtime {
    Runtime::new(Cpu::detect().unwrap().at_most(isa), 2).unwrap()
}

fn ids(seed: u32) -> Vec<u32> {
    (0..TOKENS as u32)
        .map(|i| (i * 31 + i * i * (7 + seed)) % 256)
        .collect()
}

fn options(
    precision: KvPrecision,
    sparsity: f32,
    rule: KvRule,
    window: usize,
    sinks: usize,
) -> KvOptions {
    KvOptions {
        budget_bytes: Some(64 << 20),
        precision,
        key_sparsity: sparsity,
        value_sparsity: sparsity,
        window,
        sinks,
        rule,
    }
}

fn kinds() -> [KvOptions; 4] {
    [
        options(KvPrecision::Bf16, 0.0, KvRule::Token, 0, 0),
        options(KvPrecision::Bf16, 0.5, KvRule::Query, 0, 0),
        options(KvPrecision::Int8, 0.0, KvRule::Token, 64, 1),
        options(KvPrecision::Int8, 0.5, KvRule::Magnitude, 128, 64),
    ]
}

fn pool(model: &Model, options: &KvOptions) -> PagePool {
    PagePool::new(model.config(), options).unwrap()
}

/// Logits after all the tokens of `ids` that are not in the cache, which go through the model `step` at a time.
fn logits(
    rt: &Runtime,
    model: &Model,
    cache: &mut PagedCache,
    ids: &[u32],
    step: usize,
) -> Vec<f32> {
    let (mut workspace, mut all) = (Workspace::new(), Vec::new());
    for tokens in ids[cache.len()..].chunks(step) {
        cache.reserve(tokens.len()).unwrap();
        let input = Input {
            tokens,
            cache,
            logits: Want::All,
        };
        all.extend_from_slice(model.forward(rt, &mut [input], &mut workspace).unwrap());
        cache.commit(tokens);
    }
    all
}

#[test]
fn chunks_of_a_prompt_do_not_matter() {
    for isa in LEVELS {
        let rt = runtime(isa);
        let model = model(&rt, 1000);
        let ids = ids(1);
        let mut results = Vec::new();
        for options in kinds() {
            let of = |step| {
                logits(
                    &rt,
                    &model,
                    &mut pool(&model, &options).sequence(),
                    &ids,
                    step,
                )
            };
            let whole = of(TOKENS);
            for step in [1, 64, 100] {
                assert!(of(step) == whole, "{isa:?}, {options:?}, {step} at a time");
            }
            results.push(whole);
        }
        // The forms do matter, from where the first packed page is seen.
        let vocab = model.config().vocab_size;
        for (other, seen) in results[1..].iter().zip([128, 128 + 64, 64 + 192]) {
            let same = |rows: std::ops::Range<usize>| {
                let rows = rows.start * vocab..rows.end * vocab;
                other[rows.clone()] == results[0][rows]
            };
            assert!(same(0..seen) && !same(seen..seen + 1), "{seen}");
        }
    }
}

#[test]
fn a_prefix_that_was_found_does_not_matter() {
    let rt = runtime(Isa::Avx512);
    let model = model(&rt, 1000);
    let vocab = model.config().vocab_size;
    for options in kinds() {
        let (first, mut second) = (ids(1), ids(1));
        second[300..].copy_from_slice(&ids(2)[300..]);
        let alone = logits(
            &rt,
            &model,
            &mut pool(&model, &options).sequence(),
            &second,
            TOKENS,
        );
        for step in [TOKENS, 1, 37] {
            let pool = pool(&model, &options);
            logits(&rt, &model, &mut pool.sequence(), &first, step);
            let mut cache = pool.resume(&second);
            assert_eq!(cache.len(), 256, "{options:?}");
            let rest = logits(&rt, &model, &mut cache, &second, step);
            assert!(
                rest == alone[256 * vocab..],
                "{options:?}, {step} at a time"
            );
        }
    }
}

#[test]
fn tokens_that_were_taken_back_do_not_matter() {
    let rt = runtime(Isa::Avx512);
    let model = model(&rt, 1000);
    for options in kinds() {
        let ids = ids(1);
        let expected = logits(
            &rt,
            &model,
            &mut pool(&model, &options).sequence(),
            &ids,
            TOKENS,
        );
        let pool = pool(&model, &options);
        let mut cache = pool.sequence();
        let mut found = logits(&rt, &model, &mut cache, &ids[..1], 1);
        let mut workspace = Workspace::new();
        while cache.len() < TOKENS {
            // Draft tokens of which some are accepted: the text, then something else.
            let (at, right) = (cache.len(), 1 + cache.len() % 5);
            let right = right.min(TOKENS - at);
            let tokens = [&ids[at..at + right], &[9, 8, 7, 6, 5, 4][..]].concat();
            cache.reserve(tokens.len()).unwrap();
            let input = Input {
                tokens: &tokens,
                cache: &mut cache,
                logits: Want::All,
            };
            let rows = model.forward(&rt, &mut [input], &mut workspace).unwrap();
            found.extend_from_slice(&rows[..right * model.config().vocab_size]);
            assert_eq!(cache.truncate(at + right), at + right);
            cache.commit(&ids[at..at + right]);
        }
        assert!(found == expected, "{options:?}");
        assert_eq!(pool.usage().in_use_bytes, cache.bytes());
    }
}

#[test]
fn a_profile_says_what_was_read_of_packed_pages() {
    let rt = runtime(Isa::Avx512);
    let model = model(&rt, 1000);
    let pass = |options: &KvOptions| {
        let mut cache = pool(&model, options).sequence();
        logits(&rt, &model, &mut cache, &ids(1)[..TOKENS - 1], TOKENS);
        let mut workspace = Workspace::new();
        workspace.start_profile();
        let input = Input {
            tokens: &[1],
            cache: &mut cache,
            logits: Want::Last,
        };
        model.forward(&rt, &mut [input], &mut workspace).unwrap();
        let profile = workspace.take_profile().unwrap();
        profile.of(Op::Attention).bytes as usize
    };
    let layers = model.config().num_hidden_layers;
    let token = 2 * 2 * model.config().kv_width();
    let [dense, pruned, ..] = kinds();
    assert_eq!(pass(&dense), layers * TOKENS * token);
    // Of pages 0 to 6 the last two are dense, the last with 36 tokens. A packed page has half of the numbers, and masks.
    let packed = pass(&pruned) / layers - (64 + 36) * token;
    let half = 5 * 64 * token / 2;
    assert!((half..half * 3 / 2).contains(&packed), "{packed} {half}");
}
