//! Trained models against reference texts: the one that ships, and tiny ones of ../shared, which are skipped loudly without it.

mod common;

use std::ops::ControlFlow;
use std::path::Path;

use common::{host, load, runtime};
use sparamx_engine::{EngineOptions, Event, GenerateParams, SamplingParams};
use sparamx_testkit::shared;

/// Checks that the greedy text of so many tokens after `prompt` has `want` in it: what a float64 forward pass makes
/// (`tools/reference/story_goldens.py`).
fn assert_text(dir: &Path, prompt: &str, tokens: usize, want: &str) {
    for threads in [1, 2] {
        let rt = runtime(threads);
        let host = host(load(&rt, dir), EngineOptions::default());
        let prompt = host.loaded().tokenizer.encode_prompt(prompt).unwrap();
        let params = GenerateParams {
            max_tokens: tokens,
            sampling: SamplingParams::greedy(),
            ..GenerateParams::default()
        };
        let mut streamed = String::new();
        let outcome = host.generate(&prompt, &params, &mut |event| {
            if let Event::Token { text, .. } | Event::Finished { text, .. } = event {
                streamed += text;
            }
            ControlFlow::Continue(())
        });
        let outcome = outcome.unwrap();
        assert_eq!(outcome.prompt_ids, prompt);
        assert_eq!(streamed, outcome.text);
        assert!(outcome.text.contains(want), "{}", outcome.text);
    }
}

#[test]
fn greedy_text_of_the_shipped_model_is_the_reference() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/stories-5m");
    assert_text(
        &dir,
        "Once upon a time",
        40,
        ", there was a little girl named Lily. She loved to play with her toys and run around outside. One day, she found a \
         big box in the corner of her house. She was so excited",
    );
}

#[test]
fn greedy_text_of_other_models_is_the_reference() {
    for (folder, tokens, want) in [
        (
            "models/stories260K",
            60,
            "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a \
             big, red ball. She wanted to play with it, but it was too high",
        ),
        (
            "models/babyllama-tok361",
            160,
            "She loved to play outside in the sunshine. One day, she went to the park with her mommy and daddy.",
        ),
    ] {
        let Some(dir) = shared(folder) else { return };
        assert_text(&dir, "", tokens, want);
    }
}
