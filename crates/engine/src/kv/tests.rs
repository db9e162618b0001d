use std::path::Path;

use serde_json::json;
use sparamx_cpu::Cpu;
use sparamx_kernels::KernelError;
use sparamx_kernels::attention::{PageShape, read_key, read_value};

use super::*;
use crate::{KvShape, PoolUsage};

const LAYERS: usize = 2;
const HEADS: usize = 3;
const HEAD_DIM: usize = 20;
const WIDTH: usize = HEADS * HEAD_DIM;
/// Keys padded to 32 columns, values to 32 rows, 64 tokens, two bytes.
const PAGE_BYTES: u64 = (LAYERS * HEADS * (64 * 32 + 32 * 64) * 2) as u64;

fn config() -> Config {
    let fields = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2 * WIDTH, "intermediate_size": 8,
        "num_hidden_layers": LAYERS, "num_attention_heads": 2 * HEADS, "num_key_value_heads": HEADS, "head_dim": HEAD_DIM,
        "vocab_size": 16, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    });
    Config::from_json(fields.to_string().as_bytes(), Path::new("config.json")).unwrap()
}

fn runtime(threads: usize) -> Runtime {
    Runtime::new(Cpu::detect().unwrap(), threads).unwrap()
}

/// A pool for so many dense pages.
fn pool(pages: u64) -> PagePool {
    let options = KvOptions {
        budget_bytes: Some(pages * PAGE_BYTES),
        ..KvOptions::default()
    };
    PagePool::new(&config(), &options).unwrap()
}

/// In use, cached and free, in pages.
fn usage(pool: &PagePool) -> (u64, u64, u64) {
    let PoolUsage {
        in_use_bytes,
        cached_bytes,
        free_bytes,
        budget_bytes,
    } = pool.usage();
    assert!(in_use_bytes + cached_bytes + free_bytes <= budget_bytes);
    (
        in_use_bytes / PAGE_BYTES,
        cached_bytes / PAGE_BYTES,
        free_bytes / PAGE_BYTES,
    )
}

/// A token whose keys and values are not numbers.
const BROKEN: u32 = u32::MAX;

/// A value that tells where it belongs and of which token, and that bf16 holds exactly; keys are positive, values negative.
fn mark(layer: usize, position: usize, column: usize, id: u32) -> f32 {
    if id == BROKEN {
        return f32::NAN;
    }
    ((layer * 31 + position * 7 + column + id as usize * 13) % 255 + 1) as f32
}

fn append(cache: &mut PagedCache, rt: &Runtime, ids: &[u32]) -> Result<(), ModelError> {
    let (start, tokens) = (cache.len(), ids.len());
    let q = vec![1.0; tokens * 2 * WIDTH];
    for layer in 0..LAYERS {
        let marks = |sign: f32| -> Vec<f32> {
            let mark = |i: usize| mark(layer, start + i / WIDTH, i % WIDTH, ids[i / WIDTH]);
            (0..tokens * WIDTH).map(|i| sign * mark(i)).collect()
        };
        let (k, v) = (marks(1.0), marks(-1.0));
        cache.append(
            rt,
            layer,
            Rows::new(&q, tokens, 2 * WIDTH),
            Rows::new(&k, tokens, WIDTH),
            Rows::new(&v, tokens, WIDTH),
        )?;
    }
    cache.advance(tokens);
    Ok(())
}

/// Appends and names tokens.
fn feed(cache: &mut PagedCache, rt: &Runtime, ids: &[u32]) {
    append(cache, rt, ids).unwrap();
    cache.commit(ids);
}

/// Tokens that tell their position and, by the seed, the text they are of.
fn text(seed: u32, positions: std::ops::Range<usize>) -> Vec<u32> {
    positions.map(|i| seed * 1000 + i as u32).collect()
}

/// Checks every slot of every page that there is, those without a token included.
fn assert_holds(cache: &PagedCache, ids: &[u32]) {
    assert_eq!(cache.len(), ids.len());
    let shape = PageShape { head_dim: HEAD_DIM };
    for (layer, head) in (0..LAYERS).flat_map(|l| (0..HEADS).map(move |h| (l, h))) {
        let pages = cache.pages(layer);
        for position in 0..ids.len().next_multiple_of(PAGE_TOKENS) {
            let (page, slot) = (position / PAGE_TOKENS, position % PAGE_TOKENS);
            let (Page::Dense(keys), Page::Dense(values)) =
                (pages.key(head, page, page), pages.value(head, page, page))
            else {
                panic!("page {page} is packed");
            };
            let (mut k, mut v) = ([0.0; HEAD_DIM], [0.0; HEAD_DIM]);
            read_key(keys, shape, slot, &mut k);
            read_value(values, shape, slot, &mut v);
            for dim in 0..HEAD_DIM {
                let place = format!("layer {layer} head {head} position {position}");
                match ids.get(position) {
                    Some(&id) => {
                        let want = mark(layer, position, head * HEAD_DIM + dim, id);
                        assert_eq!((k[dim], v[dim]), (want, -want), "{place}");
                    }
                    None => assert!(k[dim].is_finite() && v[dim].is_finite(), "{place}"),
                }
            }
        }
    }
}

#[test]
fn rows_land_in_their_slots_however_they_come() {
    for threads in [1, 3] {
        let rt = runtime(threads);
        let mut cache = PagedCache::new(&config(), 1000).unwrap();
        let mut total = 0;
        // One token, within a page, to its end, over several with threads sharing the work, one more.
        for tokens in [1, 40, 23, 500, 1] {
            append(&mut cache, &rt, &text(1, total..total + tokens)).unwrap();
            total += tokens;
            assert_holds(&cache, &text(1, 0..total));
        }
    }
}

#[test]
fn memory_is_counted_by_the_page_and_comes_back() {
    let rt = runtime(1);
    let pool = pool(3);
    let mut cache = pool.sequence();
    assert_eq!(
        (cache.bytes(), pool.sequence_bytes(65, 1)),
        (0, 2 * PAGE_BYTES)
    );
    append(&mut cache, &rt, &text(1, 0..64)).unwrap();
    assert_eq!((cache.bytes(), usage(&pool)), (PAGE_BYTES, (1, 0, 0)));
    append(&mut cache, &rt, &text(1, 64..65)).unwrap();
    assert_eq!((cache.bytes(), usage(&pool)), (2 * PAGE_BYTES, (2, 0, 0)));
    assert_eq!(cache.truncate(70), 65);
    assert_holds(&cache, &text(1, 0..65));

    append(&mut cache, &rt, &[BROKEN; 10]).unwrap();
    assert_eq!(cache.truncate(64), 64);
    assert_eq!((cache.bytes(), usage(&pool)), (PAGE_BYTES, (1, 0, 1)));
    let mut other = pool.sequence();
    append(&mut other, &rt, &text(2, 0..3)).unwrap();
    // The page given back serves the other sequence, cleared.
    assert_holds(&other, &text(2, 0..3));
    assert_eq!(usage(&pool), (2, 0, 0));
    drop((cache, other));
    assert_eq!(usage(&pool), (0, 0, 2));
    pool.clear_cache();
    assert_eq!(usage(&pool), (0, 0, 0));
}

#[test]
fn what_was_not_counted_is_written_over() {
    let rt = runtime(1);
    let mut cache = PagedCache::new(&config(), 100).unwrap();
    append(&mut cache, &rt, &text(1, 0..10)).unwrap();
    let junk = [7.5; 4 * WIDTH];
    let rows = Rows::new(&junk[..2 * WIDTH], 2, WIDTH);
    let queries = Rows::new(&junk, 2, 2 * WIDTH);
    cache.append(&rt, 0, queries, rows, rows).unwrap();
    append(&mut cache, &rt, &text(1, 10..12)).unwrap();
    assert_holds(&cache, &text(1, 0..12));
}

#[test]
fn room_and_shapes_are_checked() {
    let rt = runtime(1);
    let mut cache = PagedCache::new(&config(), 10).unwrap();
    append(&mut cache, &rt, &text(1, 0..9)).unwrap();
    let full = append(&mut cache, &rt, &text(1, 9..11)).unwrap_err();
    assert!(
        matches!(
            full,
            ModelError::CacheFull {
                needed: 11,
                capacity: 10
            }
        ),
        "{full}"
    );
    assert!(matches!(
        cache.reserve(2),
        Err(EngineError::Model(ModelError::CacheFull { .. }))
    ));
    let zeros = [0.0; 4 * WIDTH];
    let rows = |tokens: usize, width: usize| Rows::new(&zeros[..tokens * width], tokens, width);
    let wrong = [
        (rows(1, 2 * WIDTH), rows(1, WIDTH - 1), rows(1, WIDTH)),
        (rows(1, 2 * WIDTH), rows(1, WIDTH), rows(1, WIDTH - 1)),
        (rows(1, WIDTH), rows(1, WIDTH), rows(1, WIDTH)),
        (rows(2, 2 * WIDTH), rows(1, WIDTH), rows(1, WIDTH)),
        (rows(1, 2 * WIDTH), rows(1, WIDTH), rows(2, WIDTH)),
    ];
    for (q, k, v) in wrong {
        let error = cache.append(&rt, 0, q, k, v).unwrap_err();
        assert!(
            matches!(error, ModelError::Kernel(KernelError::Mismatch { .. })),
            "{error}"
        );
    }
    assert_holds(&cache, &text(1, 0..9));

    let error = PagedCache::new(&config(), 0).err().unwrap();
    assert_eq!(
        error.to_string(),
        "context is 0, allowed is 1 token or more"
    );
}

#[test]
fn a_full_pool_says_what_it_has_and_changes_nothing() {
    let rt = runtime(1);
    let pool = pool(3);
    let (mut first, mut second) = (pool.sequence(), pool.sequence());
    append(&mut first, &rt, &text(1, 0..100)).unwrap();
    second.reserve(1).unwrap();
    let error = second.reserve(65).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "the KV cache needs {PAGE_BYTES} bytes more and of its {} bytes 0 are left: choose a smaller context, \
             fewer sequences at a time, or more memory for the cache",
            3 * PAGE_BYTES
        )
    );
    let error = append(&mut second, &rt, &text(2, 0..65)).unwrap_err();
    assert!(
        matches!(
            error,
            ModelError::CacheFull {
                needed: 65,
                capacity: 64
            }
        ),
        "{error}"
    );
    assert_eq!((usage(&pool), second.len()), ((3, 0, 0), 0));
    append(&mut second, &rt, &text(2, 0..64)).unwrap();
    assert_holds(&second, &text(2, 0..64));
    drop(first);
    second.reserve(128).unwrap();
    assert_eq!(usage(&pool), (3, 0, 0));
    let error = second.reserve(1 << 60).unwrap_err();
    assert!(matches!(error, EngineError::PoolFull { .. }), "{error}");
    assert_eq!(second.truncate(64), 64);
    assert_eq!(usage(&pool), (1, 0, 2));
}

#[test]
fn a_budget_below_a_page_is_refused() {
    let options = KvOptions {
        budget_bytes: Some(PAGE_BYTES - 1),
        ..KvOptions::default()
    };
    let error = PagePool::new(&config(), &options).err().unwrap();
    assert_eq!(
        error.to_string(),
        format!(
            "memory of the KV cache is {}, allowed is {PAGE_BYTES} bytes or more, a page of 64 tokens",
            PAGE_BYTES - 1
        )
    );
}

#[test]
fn a_shape_says_as_much_as_a_config() {
    let shape = KvShape {
        layers: LAYERS,
        heads: 2 * HEADS,
        kv_heads: HEADS,
        head_dim: HEAD_DIM,
    };
    assert_eq!(KvShape::from(&config()), shape);
    let pool = PagePool::new(shape, &KvOptions::default()).unwrap();
    assert_eq!(pool.sequence_bytes(65, 1), 2 * PAGE_BYTES);
}

#[test]
fn texts_that_begin_alike_share_pages() {
    let rt = runtime(1);
    let pool = pool(10);
    let mut first = pool.sequence();
    feed(&mut first, &rt, &text(1, 0..200));
    assert_eq!(first.tokens(), text(1, 0..200));

    // Of 192 tokens one is left to do, so that two pages are shared; of 193, three.
    for (tokens, shared) in [
        (1, 0),
        (64, 0),
        (65, 64),
        (192, 128),
        (193, 192),
        (200, 192),
    ] {
        let second = pool.resume(&text(1, 0..tokens));
        assert_holds(&second, &text(1, 0..shared));
        assert_eq!(second.tokens(), text(1, 0..shared));
    }
    let mut ids = text(1, 0..130);
    ids.extend(text(2, 130..200));
    let mut second = pool.resume(&ids);
    assert_eq!((second.len(), usage(&pool)), (128, (4, 0, 0)));
    feed(&mut second, &rt, &ids[128..]);
    assert_holds(&second, &ids);
    assert_holds(&first, &text(1, 0..200));
    assert_eq!(usage(&pool), (6, 0, 0));

    // The four full pages stay, and the partial ones go.
    drop((first, second));
    assert_eq!(usage(&pool), (0, 4, 2));
    assert_holds(&pool.resume(&ids), &ids[..192]);
    assert_holds(&pool.resume(&text(1, 0..200)), &text(1, 0..192));
    assert!(pool.resume(&text(2, 0..200)).is_empty());
    pool.clear_cache();
    assert_eq!(usage(&pool), (0, 0, 0));
    assert!(pool.resume(&ids).is_empty());
}

#[test]
fn what_two_compute_at_the_same_time_is_kept_once() {
    let rt = runtime(1);
    let pool = pool(10);
    let (mut first, mut second) = (pool.sequence(), pool.sequence());
    append(&mut first, &rt, &text(1, 0..100)).unwrap();
    append(&mut second, &rt, &text(1, 0..100)).unwrap();
    assert_eq!(usage(&pool), (4, 0, 0));
    first.commit(&text(1, 0..100));
    second.commit(&text(1, 0..100));
    assert_eq!(usage(&pool), (3, 0, 1));
    assert_holds(&first, &text(1, 0..100));
    assert_holds(&second, &text(1, 0..100));
}

#[test]
fn cached_pages_make_room_the_least_recently_used_first() {
    let rt = runtime(1);
    let pool = pool(5);
    for seed in [1, 2] {
        feed(&mut pool.sequence(), &rt, &text(seed, 0..128));
    }
    assert_eq!(usage(&pool), (0, 4, 0));
    // The first text is used again, so that the second goes: its last page first.
    drop(pool.resume(&text(1, 0..129)));
    let mut third = pool.sequence();
    third.reserve(128).unwrap();
    assert_eq!(usage(&pool), (2, 3, 0));
    assert_eq!(pool.resume(&text(2, 0..129)).len(), 64);
    assert_eq!(pool.resume(&text(1, 0..129)).len(), 128);
    third.reserve(192).unwrap();
    assert_eq!(pool.resume(&text(2, 0..129)).len(), 0);
    assert_eq!(pool.resume(&text(1, 0..129)).len(), 128);

    // What a sequence holds does not go.
    let held = pool.resume(&text(1, 0..129));
    let error = third.reserve(193).unwrap_err();
    assert!(matches!(error, EngineError::PoolFull { .. }), "{error}");
    assert_holds(&held, &text(1, 0..128));
    drop(held);
    third.reserve(5 * 64).unwrap();
    assert_eq!(usage(&pool), (5, 0, 0));
}

#[test]
fn forks_share_until_they_write() {
    let rt = runtime(1);
    let pool = pool(10);
    let mut first = pool.sequence();
    feed(&mut first, &rt, &text(1, 0..100));
    let mut second = first.fork();
    assert_eq!((usage(&pool), second.tokens().len()), ((2, 0, 0), 100));
    feed(&mut second, &rt, &text(2, 100..140));
    feed(&mut first, &rt, &text(1, 100..101));
    assert_holds(&first, &text(1, 0..101));
    assert_holds(&second, &[text(1, 0..100), text(2, 100..140)].concat());
    assert_eq!(usage(&pool), (4, 0, 0));
    // Back into a page that the cache has: the cache keeps its own.
    assert_eq!(second.truncate(80), 80);
    feed(&mut second, &rt, &text(3, 80..90));
    assert_holds(&second, &[text(1, 0..80), text(3, 80..90)].concat());
    let whole = [text(1, 0..100), text(2, 100..140)].concat();
    assert_holds(&pool.resume(&whole), &whole[..128]);
    drop((first, second));
    assert_eq!(usage(&pool), (0, 2, 2));
}

#[test]
#[should_panic(expected = "3 tokens named of 2")]
fn tokens_that_are_not_there_cannot_be_named() {
    let mut cache = PagedCache::new(&config(), 10).unwrap();
    append(&mut cache, &runtime(1), &[1, 2]).unwrap();
    cache.commit(&[1, 2, 3]);
}
