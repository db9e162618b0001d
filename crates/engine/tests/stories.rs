//! A trained model of 260 thousand parameters from ../shared, against its reference figures. Skips loudly without it.

mod common;

use std::ops::ControlFlow;

use common::{host, load, runtime, shared};
use sparamx_engine::{EngineOptions, Event, GenerateParams, SamplingParams};

/// The first greedy text from BOS, as a float64 forward pass makes it.
#[test]
fn greedy_text_is_the_reference() {
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
        for threads in [1, 2] {
            let rt = runtime(threads);
            let host = host(load(&rt, &dir), EngineOptions::default());
            let tokenizer = &host.loaded().tokenizer;
            let prompt = tokenizer.encode_prompt("").unwrap();
            let params = GenerateParams {
                max_tokens: tokens,
                sampling: SamplingParams::greedy(),
                stop: Vec::new(),
            };
            let mut streamed = String::new();
            let outcome = host.generate(&prompt, &params, &mut |event| {
                if let Event::Token { text, .. } | Event::Finished { text, .. } = event {
                    streamed += text;
                }
                ControlFlow::Continue(())
            });
            let outcome = outcome.unwrap();
            assert_eq!(outcome.prompt_ids, [1]);
            assert_eq!(streamed, outcome.text);
            assert!(outcome.text.contains(want), "{}", outcome.text);
        }
    }
}
