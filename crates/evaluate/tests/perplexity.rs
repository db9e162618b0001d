//! Perplexity: against the forward pass called by hand, and against a reference for a trained model.

#[path = "../../engine/tests/common/mod.rs"]
mod common;

use std::path::Path;
use std::sync::Arc;

use common::{BYTE_LEVEL_IDS, byte_level, load, loaded, logits, model, runtime};
use sparamx_engine::Tokenizer;
use sparamx_evaluate::{EvaluateError, Prediction, Scoring, perplexity};
use sparamx_testkit::shared;

fn tokenizer() -> Arc<Tokenizer> {
    common::tokenizer(&[("tokenizer.json", byte_level())], BYTE_LEVEL_IDS)
}

#[test]
fn perplexity_is_that_of_its_definition() {
    let rt = runtime(2);
    let model = model(&rt, 2000);
    let tokenizer = tokenizer();
    let text = "the tall crab 🦀 told her tale. ".repeat(60);
    let ids = tokenizer.encode(&text, true).unwrap();
    for ctx in [2, 100, 700, 2000] {
        let (mut sum, mut scored) = (0.0, 0);
        for window in ids.chunks(ctx) {
            for (row, &target) in logits(&rt, &model, window).iter().zip(&window[1..]) {
                let total: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
                sum += total.ln() - f64::from(row[target as usize]);
                scored += 1;
            }
        }
        let mut seen = Vec::new();
        let got = perplexity(
            &loaded(&rt, &model, &tokenizer),
            &text,
            &Scoring::windows_of(ctx),
            &mut |done, all| seen.push((done, all)),
        );
        let got = got.unwrap().perplexity();
        assert_eq!(got.tokens, scored);
        // Passes of other lengths run other kernels; see above.
        assert!(
            (got.perplexity.ln() - sum / scored as f64).abs() < 1e-3,
            "ctx {ctx}: {got:?}"
        );
        let bits = got.perplexity.log2() * ids.len() as f64 / text.len() as f64;
        assert!(
            (got.bits_per_byte - bits).abs() < 1e-9,
            "ctx {ctx}: {got:?}"
        );
        assert_eq!(seen.last(), Some(&(scored, scored)));
        assert!(seen.iter().all(|&(_, all)| all == scored) && seen.is_sorted());
    }
}

#[test]
fn texts_that_cannot_be_measured_are_refused() {
    let rt = runtime(1);
    let model = model(&rt, 100);
    let message = |text: &str, ctx| {
        perplexity(
            &loaded(&rt, &model, &tokenizer()),
            text,
            &Scoring::windows_of(ctx),
            &mut |_, _| (),
        )
        .unwrap_err()
    };
    assert!(matches!(
        message("", 10),
        EvaluateError::TextTooShort {
            tokens: 0,
            needed: 2
        }
    ));
    assert!(matches!(
        message("a", 10),
        EvaluateError::TextTooShort {
            tokens: 1,
            needed: 2
        }
    ));
    let error = message("text", 101).to_string();
    assert_eq!(
        error,
        "ctx is 101, allowed is 2 to 100, what the model was made for"
    );
}

/// The reference: 215.1876 nats over 89 tokens, by a float64 forward pass (`tools/reference/story_goldens.py`). Here keys and
/// values and activations are rounded to bf16.
#[test]
fn perplexity_of_the_shipped_model_is_the_reference() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let model = load(&runtime(2), &dir.join("../../models/stories-5m"));
    let text = std::fs::read_to_string(dir.join("tests/fixtures/story.txt")).unwrap();
    let windows = Scoring::windows_of(512);
    let got = perplexity(&model, &text, &windows, &mut |_, _| ()).unwrap();
    assert_eq!(got.tokens, 89);
    assert!((got.nll - 215.1876).abs() < 0.3, "{got:?}");
}

/// The reference: 3.473 over the first 40 stories, each from its BOS, by a float64 forward pass over the float32 weights of
/// the file. Here weights, keys and values are rounded to bf16, which moves each likelihood a little, either way.
#[test]
fn perplexity_of_a_model_of_260_thousand_parameters_is_the_reference() {
    let Some(dir) = shared("models/stories260K") else {
        return;
    };
    let Some(text) = shared("texts/tinystories/tinystories-2MiB.txt") else {
        return;
    };
    let rt = runtime(2);
    let model = load(&rt, &dir);
    let text = std::fs::read_to_string(text).unwrap();
    let mut all = Prediction::default();
    for story in text.split("<|endoftext|>").take(40) {
        all += perplexity(
            &model,
            story.trim(),
            &Scoring::windows_of(512),
            &mut |_, _| (),
        )
        .unwrap();
    }
    let got = all.perplexity();
    assert_eq!(got.tokens, 12_571);
    assert!((got.perplexity - 3.473).abs() < 0.01, "{got:?}");
}
