//! The engine on a thread of its own: the same results as in the caller's thread, and ends of every kind.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{BYTE_LEVEL_IDS, byte_level, host, loaded, model, tokenizer};
use sparamx_cpu::{Cpu, Isa};
use sparamx_engine::{
    BatchEngine, Engine, EngineError, EngineOptions, Event, FinishReason, GenerateParams, Handle,
    Host, HostOptions, Loaded, LogitsProcessor, Request, SamplingParams, Speculation,
};
use sparamx_kernels::Runtime;

/// A small model, made for so many tokens. Kernels of one numeric class: with AMX, a batch of five rows would be of another.
fn small(context: usize) -> Loaded {
    let rt = Arc::new(Runtime::new(Cpu::detect().unwrap().at_most(Isa::Avx512), 2).unwrap());
    let tokenizer = tokenizer(&[("tokenizer.json", byte_level())], BYTE_LEVEL_IDS);
    loaded(&rt, &model(&rt, context), &tokenizer)
}

fn request(seed: u32, max_tokens: usize) -> Request {
    Request {
        prompt: (0..20 + 13 * seed).map(|i| (i * 7 + seed) % 200).collect(),
        params: GenerateParams {
            max_tokens,
            sampling: SamplingParams {
                seed: seed.into(),
                ..SamplingParams::default()
            },
            ..GenerateParams::default()
        },
        logprobs: Some(2),
        ..Request::default()
    }
}

/// What an event says, but for times.
fn text(event: Event) -> String {
    match event {
        Event::Finished { text, result, .. } => format!("{text} {result:?}"),
        event => format!("{event:?}"),
    }
}

fn result(handle: Handle) -> Result<FinishReason, EngineError> {
    match handle.last() {
        Some(Event::Finished { result, .. }) => result,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_engine_can_be_sent_and_a_host_shared() {
    fn send<T: Send>() {}
    fn sync<T: Sync>() {}
    send::<BatchEngine>();
    send::<Host>();
    send::<Handle>();
    sync::<Host>();
    sync::<Loaded>();
}

#[test]
fn events_are_those_of_the_engine_in_the_callers_thread() {
    let loaded = small(600);
    let options = EngineOptions {
        max_running: 3,
        step_tokens: 100,
        speculation: Speculation::Always,
        ..EngineOptions::default()
    };
    let mut engine = BatchEngine::new(&loaded, options.clone()).unwrap();
    let host = host(loaded, options);
    assert_eq!(host.context(), engine.context());
    // All are there before anything is read: a slow reader holds up nobody.
    let handles: Vec<Handle> = (0..8)
        .map(|seed| host.submit(request(seed, 60)).unwrap())
        .collect();
    for (seed, handle) in handles.into_iter().enumerate() {
        let got: Vec<String> = handle.map(text).collect();
        let mut want = Vec::new();
        engine.submit(request(seed as u32, 60)).unwrap();
        while engine.step(&mut |_, event| want.push(text(event))) {}
        // How a prompt is cut depends on the others.
        let tokens = |events: &[String]| {
            let tokens = events.iter().filter(|text| !text.starts_with("Prompt"));
            tokens.cloned().collect::<Vec<_>>()
        };
        assert_eq!(tokens(&got), tokens(&want), "request {seed}");
    }
    let stats = host.stats();
    assert_eq!((stats.running, stats.waiting), (0, 0));
    assert_eq!(stats.tokens, engine.stats().tokens);
    assert_eq!(stats.pool.in_use_bytes, 0);
}

#[test]
fn what_can_never_run_is_refused_at_once() {
    let host = host(small(100), EngineOptions::default());
    let message = |prompt: &[u32]| {
        let request = Request {
            prompt: prompt.to_vec(),
            ..request(1, 5)
        };
        host.submit(request).err().unwrap().to_string()
    };
    assert!(message(&[]).starts_with("the prompt is empty"));
    assert!(message(&[1; 100]).starts_with("the prompt has 100 tokens"));
}

#[test]
fn more_requests_than_allowed_are_refused_until_one_ends() {
    let options = HostOptions {
        max_requests: 2,
        pin: false,
        ..HostOptions::default()
    };
    let host = Host::start(small(20_000), options).unwrap();
    let [first, _second] = [1, 2].map(|seed| host.submit(request(seed, 15_000)).unwrap());
    let refused = host.submit(request(3, 1)).err().unwrap();
    assert!(matches!(refused, EngineError::Busy { requests: 2 }));
    first.cancel();
    assert_eq!(result(first).unwrap(), FinishReason::Cancelled);
    assert_eq!(
        result(host.submit(request(3, 1)).unwrap()).unwrap(),
        FinishReason::Length
    );
}

#[test]
fn a_handle_that_is_dropped_cancels() {
    let host = host(small(20_000), EngineOptions::default());
    let mut handle = host.submit(request(1, 15_000)).unwrap();
    handle.next().unwrap();
    drop(handle);
    let begin = Instant::now();
    while host.stats().running > 0 {
        assert!(begin.elapsed() < Duration::from_secs(60), "it still runs");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(host.stats().tokens < 15_000);
    assert_eq!(host.stats().pool.in_use_bytes, 0);
}

#[test]
fn a_host_that_is_dropped_cancels_what_it_runs() {
    let host = host(small(20_000), EngineOptions::default());
    let [first, second] = [1, 2].map(|seed| host.submit(request(seed, 15_000)).unwrap());
    drop(host);
    for handle in [first, second] {
        assert_eq!(result(handle).unwrap(), FinishReason::Cancelled);
    }
}

/// Panics at the first token.
#[derive(Debug)]
struct Fault;

impl LogitsProcessor for Fault {
    fn process(&mut self, _: &mut [f32]) {
        panic!("a fault in a test");
    }

    fn accept(&mut self, _: u32) {}
}

#[test]
fn a_panic_of_the_engine_is_an_error_of_every_request() {
    let host = Arc::new(host(small(20_000), EngineOptions::default()));
    let other = host.submit(request(1, 15_000)).unwrap();
    let fault = Request {
        processor: Some(Box::new(Fault)),
        ..request(2, 10)
    };
    let fault = host.submit(fault).unwrap();
    for handle in [fault, other] {
        let error = result(handle).unwrap_err();
        assert!(
            matches!(&error, EngineError::Panicked { message } if message == "a fault in a test"),
            "{error:?}"
        );
    }
    let begin = Instant::now();
    // Until the thread is gone, a request may still be taken; it ends with the same error.
    while let Ok(handle) = host.submit(request(3, 1)) {
        assert!(matches!(result(handle), Err(EngineError::Panicked { .. })));
        assert!(begin.elapsed() < Duration::from_secs(60));
    }
}

/// Forbids a token.
#[derive(Debug)]
struct Ban(u32);

impl LogitsProcessor for Ban {
    fn process(&mut self, logits: &mut [f32]) {
        logits[self.0 as usize] = f32::NEG_INFINITY;
    }

    fn accept(&mut self, id: u32) {
        assert_ne!(id, self.0);
    }
}

#[test]
fn a_processor_changes_the_tokens_of_its_request_only() {
    let host = host(small(600), EngineOptions::default());
    let ids = |processor: Option<Box<dyn LogitsProcessor>>| {
        let request = Request {
            processor,
            params: GenerateParams {
                max_tokens: 40,
                sampling: SamplingParams::greedy(),
                ..GenerateParams::default()
            },
            ..request(1, 0)
        };
        let events = host.submit(request).unwrap();
        let id = |event| match event {
            Event::Token { id, .. } => Some(id),
            _ => None,
        };
        events.filter_map(id).collect::<Vec<u32>>()
    };
    let free = ids(None);
    let banned = free[10];
    let other = ids(Some(Box::new(Ban(banned))));
    let first = free.iter().position(|&id| id == banned).unwrap();
    assert_eq!(other[..first], free[..first]);
    assert!(other.len() == 40 && !other.contains(&banned));
    assert_eq!(ids(None), free);
}
