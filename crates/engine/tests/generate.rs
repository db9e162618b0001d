//! Generation of a small random model, against the forward pass called by hand.

mod common;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use common::{
    BYTE_LEVEL_IDS, byte_fallback, byte_level, difference, letters, loaded, logits, metaspace,
    model, runtime, tokenizer,
};
use serde_json::json;
use sparamx_engine::{
    BatchEngine, EngineOptions, Event, FinishReason, GenerateParams, Outcome, SamplingParams,
    Tokenizer,
};
use sparamx_kernels::Runtime;
use sparamx_model::{Checkpoint, LoadOptions, Model, RopeScaling};

const PROMPT: &str = "the tall 🦀 told her";

fn plain() -> Arc<Tokenizer> {
    tokenizer(&[("tokenizer.json", byte_level())], BYTE_LEVEL_IDS)
}

fn greedy(max_tokens: usize) -> GenerateParams {
    GenerateParams {
        max_tokens,
        sampling: SamplingParams::greedy(),
        ..GenerateParams::default()
    }
}

fn all(_: &Event) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn within(context: usize) -> EngineOptions {
    EngineOptions {
        context: Some(context),
        ..EngineOptions::default()
    }
}

/// The tokens that a host makes of [`PROMPT`], without anything to end it early.
fn reference(rt: &Arc<Runtime>, model: &Arc<Model>, tokens: usize) -> Outcome {
    let tokenizer = plain();
    let prompt = tokenizer.encode(PROMPT, true).unwrap();
    let host = common::host(loaded(rt, model, &tokenizer), EngineOptions::default());
    host.generate(&prompt, &greedy(tokens), &mut all).unwrap()
}

#[test]
fn greedy_tokens_are_those_of_the_forward_pass() {
    let rt = runtime(1);
    let model = model(&rt, 2000);
    let outcome = reference(&rt, &model, 80);
    assert_eq!(
        (outcome.ids.len(), outcome.finish_reason),
        (80, FinishReason::Length)
    );
    assert_eq!(outcome.text, plain().decode(&outcome.ids).unwrap());
    let sequence = [outcome.prompt_ids.clone(), outcome.ids.clone()].concat();
    let rows = logits(&rt, &model, &sequence);
    for (i, &id) in outcome.ids.iter().enumerate() {
        let row = &rows[outcome.prompt_ids.len() + i - 1];
        let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // One pass over all tokens and token after token run different kernels, whose sums differ in the last bits: far
        // less than this share of the logits, which are of size 1.
        assert!(
            best - row[id as usize] < 1e-2,
            "token {i}: {best} and {}",
            row[id as usize]
        );
    }
    assert!(outcome.prefill_tokens_per_s > 0.0 && outcome.decode_tokens_per_s > 0.0);
    for threads in [2, 3] {
        assert_eq!(
            reference(&runtime(threads), &model, 80).ids,
            outcome.ids,
            "{threads} threads"
        );
    }
}

#[test]
fn events_report_the_prompt_and_then_the_text() {
    let rt = runtime(1);
    let model = model(&rt, 2000);
    let tokenizer = plain();
    let prompt: Vec<u32> = (0..1100).map(|i| i % 256).collect();
    let host = common::host(loaded(&rt, &model, &tokenizer), EngineOptions::default());
    let (mut seen, mut text) = (Vec::new(), String::new());
    let outcome = host.generate(&prompt, &greedy(40), &mut |event| {
        match event {
            Event::Prompt { done, total, .. } => {
                assert!(text.is_empty());
                seen.push((*done, *total));
            }
            Event::Token { text: piece, .. } | Event::Finished { text: piece, .. } => text += piece,
        }
        ControlFlow::Continue(())
    });
    assert_eq!(seen, [(512, 1100), (1024, 1100), (1100, 1100)]);
    assert_eq!(text, outcome.unwrap().text);
}

#[test]
fn text_ends_for_the_reason_that_is_reported() {
    let rt = runtime(1);
    let model = model(&rt, 2000);
    let want = reference(&rt, &model, 40);
    let prompt = &want.prompt_ids;
    let run = |tokenizer: &Arc<Tokenizer>, context, params: &GenerateParams| {
        let host = common::host(loaded(&rt, &model, tokenizer), within(context));
        host.generate(prompt, params, &mut all).unwrap()
    };

    let full = run(&plain(), prompt.len() + 7, &greedy(40));
    assert_eq!(
        (full.finish_reason, &full.ids[..]),
        (FinishReason::Context, &want.ids[..7])
    );

    // The first token that did not come before, so that it ends the text where it is.
    let at = (5..40)
        .find(|&i| !want.ids[..i].contains(&want.ids[i]))
        .unwrap();
    let files = [
        ("tokenizer.json", byte_level()),
        (
            "generation_config.json",
            json!({"eos_token_id": [want.ids[at]]}),
        ),
    ];
    let ended = run(&tokenizer(&files, BYTE_LEVEL_IDS), 1000, &greedy(40));
    assert_eq!(
        (ended.finish_reason, &ended.ids[..]),
        (FinishReason::Stop, &want.ids[..at])
    );
    assert_eq!(ended.text, plain().decode(&want.ids[..at]).unwrap());

    let stop: String = want.text.chars().skip(12).take(4).collect();
    let stopped = run(
        &plain(),
        1000,
        &GenerateParams {
            stop: vec![stop.clone()],
            ..greedy(40)
        },
    );
    assert_eq!(stopped.finish_reason, FinishReason::Stop);
    assert_eq!(stopped.text, want.text[..want.text.find(&stop).unwrap()]);
    assert!(stopped.ids.len() < 40 && want.ids.starts_with(&stopped.ids));
}

/// The tokens are not those of the tokenizer's text, but the text is that of the tokens.
#[test]
fn text_is_what_the_tokens_add_to_the_prompt() {
    let rt = runtime(1);
    let model = model(&rt, 2000);
    let (space, letter) = (259, 260);
    for file in [byte_level(), byte_fallback(), metaspace()] {
        let tokenizer = tokenizer(&[("tokenizer.json", file)], BYTE_LEVEL_IDS);
        let host = common::host(loaded(&rt, &model, &tokenizer), EngineOptions::default());
        for length in 1..40 {
            let mut prompt: Vec<u32> = (0..length).map(|i| 259 + i % 2).collect();
            prompt.extend([[space; 2], [letter; 2], [space, 1], [letter, 2]][length as usize % 4]);
            let made = host.generate(&prompt, &greedy(1), &mut all).unwrap();
            let ids = [prompt.clone(), made.ids.clone()].concat();
            assert_eq!(
                made.text,
                difference(&tokenizer, &ids, prompt.len()),
                "{ids:?}"
            );
        }
    }
}

#[test]
fn a_special_token_that_is_a_stop_string_ends_the_text() {
    let rt = runtime(1);
    let model = model(&rt, 2000);
    let want = reference(&rt, &model, 40);
    let at = (5..40)
        .find(|&i| !want.ids[..i].contains(&want.ids[i]))
        .unwrap();
    let mut file = byte_level();
    let vocab = file["model"]["vocab"].as_object().unwrap();
    let mut names = vocab.iter().filter(|(_, id)| **id == want.ids[at]);
    let name = names.next().unwrap().0.clone();
    let mut token = file["added_tokens"][0].clone();
    token["content"] = json!(name);
    file["added_tokens"].as_array_mut().unwrap().push(token);
    let tokenizer = tokenizer(&[("tokenizer.json", file)], BYTE_LEVEL_IDS);
    assert_eq!(tokenizer.special(want.ids[at]), Some(&name[..]));
    let run = |stop: &[&str]| {
        let params = GenerateParams {
            stop: stop.iter().map(|stop| (*stop).to_owned()).collect(),
            ..greedy(40)
        };
        common::host(loaded(&rt, &model, &tokenizer), EngineOptions::default())
            .generate(&want.prompt_ids, &params, &mut all)
            .unwrap()
    };
    let stopped = run(&[&name]);
    assert_eq!(stopped.finish_reason, FinishReason::Stop);
    assert_eq!(stopped.ids, want.ids[..=at]);
    assert_eq!(stopped.text, plain().decode(&want.ids[..at]).unwrap());
    // Without that, it goes on, and is not seen.
    let whole = run(&[]);
    assert_eq!((whole.ids, whole.text), {
        let text = tokenizer.decode(&want.ids).unwrap();
        (want.ids.clone(), text)
    });
}

#[test]
fn a_caller_can_end_it_and_go_on() {
    let rt = runtime(1);
    let model = model(&rt, 2000);
    let want = reference(&rt, &model, 20);
    let tokenizer = plain();
    let host = common::host(loaded(&rt, &model, &tokenizer), EngineOptions::default());
    let run = |left: usize| {
        let mut left = left;
        let outcome = host.generate(&want.prompt_ids, &greedy(20), &mut |_| {
            left -= 1;
            match left {
                0 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        });
        outcome.unwrap()
    };
    // The first event is about the prompt.
    for (events, ids) in [(1, 0), (4, 3)] {
        let cut = run(events);
        assert_eq!(cut.finish_reason, FinishReason::Cancelled);
        assert_eq!(cut.ids, want.ids[..ids]);
        assert!(want.text.starts_with(&cut.text));
    }
    assert_eq!(run(1000).text, want.text);
}

#[test]
fn what_prompts_have_in_common_is_kept() {
    let rt = runtime(1);
    let model = model(&rt, 2000);
    let tokenizer = plain();
    let first: Vec<u32> = (0..150).map(|i| i % 90).collect();
    let longer = [&first[..], &[5, 6, 7]].concat();
    let changed = [&first[..100], &[9, 8, 7]].concat();
    let host = common::host(loaded(&rt, &model, &tokenizer), EngineOptions::default());
    let mut cached = Vec::new();
    for prompt in [&first, &longer, &longer, &changed] {
        let mut done = Vec::new();
        let reused = host.generate(prompt, &greedy(12), &mut |event| {
            if let Event::Prompt { done: tokens, .. } = event {
                done.push(*tokens);
            }
            ControlFlow::Continue(())
        });
        assert_eq!(done, [prompt.len()]);
        let reused = reused.unwrap();
        cached.push(reused.cached_tokens);
        let fresh = common::host(loaded(&rt, &model, &tokenizer), EngineOptions::default())
            .generate(prompt, &greedy(12), &mut all);
        assert_eq!(reused.ids, fresh.unwrap().ids);
    }
    assert_eq!(cached, [0, 128, 128, 64], "whole pages of 64 tokens");
}

/// The tiny models of the `model` crate: every kind of rotation, sliding windows, biases, a prompt longer than a window.
#[test]
fn every_family_goes_on_from_its_cache() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures");
    let rt = runtime(2);
    let mut families = 0;
    for entry in std::fs::read_dir(fixtures).unwrap() {
        let dir = entry.unwrap().path();
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let model = Model::load(&rt, &checkpoint, &LoadOptions::default(), &mut |_| ()).unwrap();
        let model = Arc::new(model);
        let vocab_size = model.config().vocab_size;
        let tokenizer = tokenizer(&[("tokenizer.json", letters(vocab_size))], vocab_size);
        // Beyond this, dynamic rotations depend on the pass that a token goes through the model in.
        let steady = match model.config().rope_scaling {
            RopeScaling::Dynamic { .. } => model.config().max_position_embeddings,
            _ => model.config().context_length(),
        };
        let tokens = 24.min(steady / 2);
        let (length, cut) = (70.min(steady - tokens), tokens / 2);
        let prompt: Vec<u32> = (0..length as u32)
            .map(|i| i * 5 % vocab_size as u32)
            .collect();
        let host = common::host(loaded(&rt, &model, &tokenizer), EngineOptions::default());
        let run =
            |prompt: &[u32], tokens| host.generate(prompt, &greedy(tokens), &mut all).unwrap();
        let whole = run(&prompt, tokens);
        assert_eq!(whole.text, tokenizer.decode(&whole.ids).unwrap());
        // Now with the first of them as a part of the prompt; whole pages of it are in the cache.
        let longer = [&prompt[..], &whole.ids[..cut]].concat();
        let rest = run(&longer, tokens - cut);
        assert_eq!(rest.ids, whole.ids[cut..], "{}", dir.display());
        assert_eq!(rest.cached_tokens, (longer.len() - 1) / 64 * 64);
        families += 1;
    }
    assert!(families >= 9, "{families}");
}

#[test]
fn seeds_decide_samples() {
    let rt = runtime(1);
    let model = model(&rt, 2000);
    let tokenizer = plain();
    let host = common::host(loaded(&rt, &model, &tokenizer), EngineOptions::default());
    let ids = |seed| {
        let sampling = SamplingParams {
            seed,
            repetition_penalty: 1.2,
            ..SamplingParams::default()
        };
        let params = GenerateParams {
            sampling,
            ..greedy(24)
        };
        host.generate(&[1, 2, 3], &params, &mut all).unwrap().ids
    };
    assert_eq!(ids(1), ids(1));
    assert_ne!(ids(1), ids(2));
}

#[test]
fn requests_that_cannot_be_are_refused() {
    let rt = runtime(1);
    let model = model(&rt, 100);
    let tokenizer = plain();
    let message = |context: usize| {
        BatchEngine::new(&loaded(&rt, &model, &tokenizer), within(context))
            .err()
            .unwrap()
            .to_string()
    };
    assert_eq!(
        message(101),
        "context is 101, allowed is 2 to 100, what the model was made for"
    );
    assert_eq!(
        message(1),
        "context is 1, allowed is 2 to 100, what the model was made for"
    );
    let host = common::host(loaded(&rt, &model, &tokenizer), EngineOptions::default());
    let message = |prompt: &[u32], params: &GenerateParams| {
        host.generate(prompt, params, &mut all)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        message(&[1; 100], &greedy(1)),
        "the prompt has 100 tokens and the context 100, of which one is for the answer: shorten the prompt"
    );
    assert!(message(&[], &greedy(1)).starts_with("the prompt is empty"));
    assert_eq!(
        message(&[1], &greedy(0)),
        "max_tokens is 0, allowed is 1 or more, and 0 if prompt_logprobs are asked for"
    );
    assert!(message(&[999], &greedy(1)).contains("token id 999"));
    let mut params = greedy(1);
    params.sampling.top_p = 2.0;
    assert_eq!(message(&[1], &params), "top_p is 2, allowed is 0 to 1");
}
