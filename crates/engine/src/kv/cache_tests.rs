use std::path::Path;

use serde_json::json;
use sparamx_cpu::Cpu;
use sparamx_kernels::attention::{PageShape, read_key, read_value};

use super::*;

const LAYERS: usize = 2;
const HEADS: usize = 3;
const HEAD_DIM: usize = 20;
const WIDTH: usize = HEADS * HEAD_DIM;

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

/// A value that tells where it belongs and that bf16 holds exactly; keys are positive, values negative.
fn mark(layer: usize, position: usize, column: usize) -> f32 {
    ((layer * 31 + position * 7 + column) % 255 + 1) as f32
}

fn append(cache: &mut PagedCache, rt: &Runtime, tokens: usize) -> Result<(), ModelError> {
    for layer in 0..LAYERS {
        let start = cache.len();
        let marks = |sign: f32| -> Vec<f32> {
            (0..tokens * WIDTH)
                .map(|i| sign * mark(layer, start + i / WIDTH, i % WIDTH))
                .collect()
        };
        let (k, v) = (marks(1.0), marks(-1.0));
        cache.append(
            rt,
            layer,
            Rows::new(&k, tokens, WIDTH),
            Rows::new(&v, tokens, WIDTH),
        )?;
    }
    cache.advance(tokens);
    Ok(())
}

/// Checks every slot of every page that there is, those without a token included.
fn assert_holds(cache: &PagedCache, tokens: usize) {
    assert_eq!(cache.len(), tokens);
    let shape = PageShape { head_dim: HEAD_DIM };
    for (layer, head) in (0..LAYERS).flat_map(|l| (0..HEADS).map(move |h| (l, h))) {
        let pages = cache.pages(layer);
        for position in 0..tokens.next_multiple_of(PAGE_TOKENS) {
            let (page, slot) = (position / PAGE_TOKENS, position % PAGE_TOKENS);
            let (Page::Dense(keys), Page::Dense(values)) =
                (pages.key(head, page), pages.value(head, page));
            let (mut k, mut v) = ([0.0; HEAD_DIM], [0.0; HEAD_DIM]);
            read_key(keys, shape, slot, &mut k);
            read_value(values, shape, slot, &mut v);
            for dim in 0..HEAD_DIM {
                let want = match position < tokens {
                    true => mark(layer, position, head * HEAD_DIM + dim),
                    false => 0.0,
                };
                assert_eq!(
                    (k[dim], v[dim]),
                    (want, -want),
                    "layer {layer} head {head} position {position}"
                );
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
            append(&mut cache, &rt, tokens).unwrap();
            total += tokens;
            assert_holds(&cache, total);
        }
    }
}

#[test]
fn memory_is_counted_by_the_page_and_comes_back() {
    let rt = runtime(1);
    let pool = PagePool::new(&config());
    // Three heads; keys padded to 32 columns, values to 32 rows, 64 tokens, two bytes.
    assert_eq!(pool.block_bytes(), 3 * (64 * 32 + 32 * 64) * 2);
    let mut cache = PagedCache::in_pool(&pool, 1000).unwrap();
    let page = pool.block_bytes() * LAYERS as u64;
    assert_eq!((cache.bytes(), pool.sequence_bytes(65)), (0, 2 * page));
    append(&mut cache, &rt, 64).unwrap();
    assert_eq!(cache.bytes(), page);
    append(&mut cache, &rt, 1).unwrap();
    assert_eq!((cache.bytes(), pool.used_bytes()), (2 * page, 2 * page));

    cache.truncate(70);
    assert_holds(&cache, 65);
    cache.truncate(64);
    assert_eq!(
        (cache.bytes(), pool.used_bytes(), pool.bytes()),
        (page, page, 2 * page)
    );
    let mut other = PagedCache::in_pool(&pool, 1000).unwrap();
    append(&mut other, &rt, 3).unwrap();
    assert_holds(&other, 3);
    assert_eq!(
        pool.bytes(),
        2 * page,
        "the page given back serves the other sequence, cleared"
    );
    drop((cache, other));
    assert_eq!((pool.used_bytes(), pool.bytes()), (0, 2 * page));
}

#[test]
fn what_was_not_counted_is_written_over() {
    let rt = runtime(1);
    let mut cache = PagedCache::new(&config(), 100).unwrap();
    append(&mut cache, &rt, 10).unwrap();
    let junk = [7.5; 2 * WIDTH];
    let rows = Rows::new(&junk, 2, WIDTH);
    cache.append(&rt, 0, rows, rows).unwrap();
    append(&mut cache, &rt, 2).unwrap();
    assert_holds(&cache, 12);
}

#[test]
fn room_shapes_and_memory_are_checked() {
    let rt = runtime(1);
    let mut cache = PagedCache::new(&config(), 10).unwrap();
    append(&mut cache, &rt, 9).unwrap();
    let full = append(&mut cache, &rt, 2).unwrap_err();
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
    let narrow = [0.0; WIDTH - 1];
    let rows = Rows::new(&narrow, 1, WIDTH - 1);
    let error = cache.append(&rt, 0, rows, rows).unwrap_err();
    assert!(
        matches!(error, ModelError::Kernel(KernelError::Mismatch { .. })),
        "{error}"
    );
    assert_holds(&cache, 9);

    let error = PagedCache::new(&config(), 0).err().unwrap();
    assert_eq!(
        error.to_string(),
        "context is 0, allowed is 1 token or more"
    );
    let mut endless = PagedCache::new(&config(), usize::MAX).unwrap();
    let error = endless.reserve(1 << 40).unwrap_err().to_string();
    assert!(
        error.starts_with("a KV cache of 1099511627776 tokens needs 844424930131968 bytes and "),
        "{error}"
    );
    assert_eq!(endless.bytes(), 0);
    endless.reserve(65).unwrap();
    assert_eq!(endless.bytes(), endless.pool.sequence_bytes(65));
}
