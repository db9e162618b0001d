//! A trained model of 260 thousand parameters from ../shared, against its reference figures. Skips loudly without it.

mod common;

use std::ops::ControlFlow;
use std::path::Path;

use common::{runtime, shared};
use sparamx_engine::{EngineOptions, Event, GenerateParams, SamplingParams, Session, Tokenizer};
use sparamx_kernels::Runtime;
use sparamx_model::{Checkpoint, LoadOptions, Model};

fn load(rt: &Runtime, dir: &Path) -> (Model, Tokenizer) {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let model = Model::load(rt, &checkpoint, &LoadOptions::default(), &mut |_| ()).unwrap();
    let tokenizer = Tokenizer::from_dir(dir, model.config().vocab_size).unwrap();
    (model, tokenizer)
}

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
            let (model, tokenizer) = load(&rt, &dir);
            let mut session =
                Session::new(&rt, &model, &tokenizer, EngineOptions::default()).unwrap();
            let prompt = tokenizer.encode_prompt("").unwrap();
            let params = GenerateParams {
                max_tokens: tokens,
                sampling: SamplingParams::greedy(),
                stop: Vec::new(),
            };
            let mut streamed = String::new();
            let outcome = session.generate(&prompt, &params, &mut |event| {
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
