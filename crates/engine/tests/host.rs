//! The engine on a thread of its own: the same results as in the caller's thread, and ends of every kind.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{BYTE_LEVEL_IDS, byte_level, host, loaded, model, tokenizer};
use sparamx_cpu::{Cpu, Isa};
use sparamx_engine::{
    BatchEngine, Cancel, Engine, EngineError, EngineOptions, Event, FinishReason, GenerateParams,
    Handle, Host, HostOptions, Loaded, LogitsProcessor, Request, SamplingParams, Sink, Speculation,
    StoppedBy, Usage,
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
    assert!(host.check(0, 0).is_ok());
    for refused in [host.check(0, 1).err(), host.submit(request(3, 1)).err()] {
        assert!(matches!(refused, Some(EngineError::Busy { requests: 2 })));
    }
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

type Events = Receiver<(usize, Event)>;

/// Submits requests together; their events come with their indices.
fn submit(host: &Host, requests: Vec<Request>) -> Result<(Cancel, Events), EngineError> {
    let (sender, receiver) = mpsc::channel();
    let requests = requests.into_iter().enumerate().map(|(index, request)| {
        let sender = sender.clone();
        let sink: Sink = Box::new(move |event| {
            let _ = sender.send((index, event));
        });
        (request, sink)
    });
    Ok((host.submit_to(requests.collect())?, receiver))
}

/// What requests of one submission come to: text, end, and what they took.
fn outcomes(events: Events, count: usize) -> Vec<(String, Option<FinishReason>, Usage)> {
    let mut outcomes = vec![(String::new(), None, Usage::default()); count];
    for (index, event) in events {
        match event {
            Event::Token { text, .. } => outcomes[index].0 += &text,
            Event::Finished {
                text,
                result,
                usage,
                ..
            } => {
                outcomes[index].0 += &text;
                outcomes[index].1 = result.ok();
                outcomes[index].2 = usage;
            }
            Event::Prompt { .. } => {}
        }
    }
    outcomes
}

/// One that would run for long.
fn plug() -> Request {
    let mut request = request(1, 15_000);
    request.params.ignore_eos = true;
    request
}

fn one_at_a_time() -> EngineOptions {
    EngineOptions {
        max_running: 1,
        ..EngineOptions::default()
    }
}

fn wait(what: &str, mut until: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !until() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn requests_with_one_prompt_share_its_pages_and_get_what_they_get_alone() {
    let host = host(small(600), EngineOptions::default());
    let sampled = |prompt: &[u32], seed: u64| {
        let mut request = request(1, 30);
        request.prompt = prompt.to_vec();
        request.params.sampling.seed = seed;
        request
    };
    let [first, second] = [3, 5].map(|step| (0..200).map(|i| i * step % 250).collect::<Vec<u32>>());
    // Two prompts in turn, and one that is too short to have a page.
    let prompts = [
        &first,
        &second,
        &first,
        &second,
        &first,
        &first[..64].to_vec(),
    ];
    let requests = |_| -> Vec<Request> {
        let prompts = prompts.iter().zip(0..);
        prompts
            .map(|(prompt, seed)| sampled(prompt, seed))
            .collect()
    };
    let (_cancel, events) = submit(&host, requests(())).unwrap();
    let together = outcomes(events, prompts.len());
    let cached: Vec<usize> = together.iter().map(|o| o.2.cached_tokens).collect();
    assert_eq!(cached, [0, 0, 192, 192, 192, 0]);
    let stats = host.stats();
    assert_eq!((stats.prompt_tokens, stats.cached_tokens), (1064, 576));
    assert_eq!(
        (stats.waiting, stats.deferred, stats.finished.length),
        (0, 0, 6)
    );
    for (request, together) in requests(()).into_iter().zip(&together) {
        let (_cancel, events) = submit(&host, vec![request]).unwrap();
        let alone = outcomes(events, 1).remove(0);
        assert_eq!((&alone.0, alone.1), (&together.0, together.1));
    }
    assert_ne!(together[0].0, together[2].0, "other seeds");
}

#[test]
fn a_salt_keeps_the_prefix_cache_apart() {
    let host = host(small(600), EngineOptions::default());
    let cached = |salt: Option<&str>| {
        let request = Request {
            prompt: (0..200).collect(),
            cache_salt: salt.map(str::to_owned),
            ..request(1, 3)
        };
        let (_cancel, events) = submit(&host, vec![request]).unwrap();
        outcomes(events, 1)[0].2.cached_tokens
    };
    let salts = [None, Some("a"), Some("b"), Some(""), Some("ab")];
    for salt in salts {
        assert_eq!(cached(salt), 0, "{salt:?} is the first of its kind");
    }
    for salt in salts {
        assert_eq!(cached(salt), 192, "{salt:?} has its own pages");
    }
}

#[test]
fn requests_of_one_submission_are_taken_all_or_none() {
    let options = HostOptions {
        max_requests: 3,
        max_tenant_requests: 2,
        pin: false,
        ..HostOptions::default()
    };
    let host = Host::start(small(20_000), options).unwrap();
    let of = |tenant: u64| Request { tenant, ..plug() };
    let refused = |requests: Vec<Request>| submit(&host, requests).err().unwrap();
    let busy = |error, most| {
        assert!(
            matches!(error, EngineError::Busy { requests } if requests == most),
            "{error}"
        )
    };
    for (requests, limit) in [
        (vec![of(1), of(2), of(1), of(2)], 3),
        (vec![of(1), of(1), of(1)], 2),
    ] {
        // They would never be taken.
        let (count, error) = (requests.len(), refused(requests));
        assert!(
            matches!(error, EngineError::TooMany { requests, most } if (requests, most) == (count, limit)),
            "{error}"
        );
    }
    let mut bad = of(1);
    bad.params.stop_token_ids = vec![5, BYTE_LEVEL_IDS as u32];
    let error = refused(vec![of(1), bad]).to_string();
    assert!(
        error.starts_with("stop_token_ids is 261, allowed is an id below 261"),
        "{error}"
    );
    assert_eq!((host.requests(), host.stats().waiting), (0, 0));
    let (two, _events) = submit(&host, vec![of(1), of(1)]).unwrap();
    busy(refused(vec![of(1)]), 2);
    let (_third, _other) = submit(&host, vec![of(2)]).unwrap();
    busy(refused(vec![of(3)]), 3);
    drop(two);
    wait("they still run", || host.requests() == 1);
    submit(&host, vec![of(1), of(3)]).unwrap();
}

#[test]
fn tenants_take_turns() {
    let host = host(small(20_000), one_at_a_time());
    let (plug, _events) = submit(&host, vec![plug()]).unwrap();
    wait("it does not run", || host.stats().running == 1);
    let order = Arc::new(Mutex::new(String::new()));
    let mut cancels = Vec::new();
    for (tenant, name) in [(8, 'a'), (8, 'b'), (8, 'c'), (3, 'x'), (3, 'y'), (5, 'p')] {
        let request = Request {
            tenant,
            ..request(2, 2)
        };
        let order = Arc::clone(&order);
        let sink: Sink = Box::new(move |event| {
            if matches!(event, Event::Finished { .. }) {
                order.lock().unwrap().push(name);
            }
        });
        cancels.push(host.submit_to(vec![(request, sink)]).unwrap());
    }
    assert_eq!(host.stats().waiting, 6);
    drop(plug);
    wait("they do not end", || host.requests() == 0);
    assert_eq!(*order.lock().unwrap(), "xpaybc");
}

#[test]
fn a_request_that_waits_ends_at_once_when_it_is_cancelled() {
    let host = host(small(20_000), one_at_a_time());
    let (plug, _events) = submit(&host, vec![plug()]).unwrap();
    wait("it does not run", || host.stats().running == 1);
    // Of these one is in line, and two wait for its prompt.
    let same = || Request {
        prompt: (0..200).collect(),
        ..request(2, 5)
    };
    let (cancel, events) = submit(&host, vec![same(), same(), same()]).unwrap();
    assert_eq!((host.stats().waiting, host.stats().deferred), (3, 2));
    drop(cancel);
    assert_eq!((host.stats().waiting, host.stats().deferred), (0, 0));
    // Nothing has to happen for that.
    let ended = events.try_iter().map(|(index, event)| match event {
        Event::Finished { result, usage, .. } => {
            assert!(usage.queue_time > Duration::ZERO && usage.tokens == 0);
            (index, result.unwrap())
        }
        event => panic!("{event:?}"),
    });
    let cancelled = |index| (index, FinishReason::Cancelled);
    assert_eq!(ended.collect::<Vec<_>>(), [0, 1, 2].map(cancelled));
    assert_eq!((host.requests(), host.stats().finished.cancelled), (1, 3));
    drop(plug);
    wait("it still runs", || host.requests() == 0);
    assert_eq!(host.stats().finished.cancelled, 4);
}

#[test]
fn a_prompt_that_is_cancelled_has_no_token() {
    let options = EngineOptions {
        step_tokens: 64,
        ..EngineOptions::default()
    };
    let host = host(small(20_000), options);
    let request = Request {
        prompt: (0..15_000).map(|i| i * 7 % 250).collect(),
        ..request(1, 10)
    };
    let mut handle = host.submit(request).unwrap();
    let Some(Event::Prompt { done, total, .. }) = handle.next() else {
        panic!("no prompt");
    };
    assert!(done < total);
    handle.cancel();
    let rest: Vec<Event> = handle.collect();
    assert!(rest.len() < 200, "{} more", rest.len());
    let tokens = rest
        .iter()
        .filter(|event| matches!(event, Event::Token { .. }));
    assert_eq!(tokens.count(), 0);
    assert_eq!(host.stats().pool.in_use_bytes, 0);
    assert_eq!(host.stats().finished.cancelled, 1);
}

#[test]
fn a_host_that_drains_ends_what_it_has_and_takes_no_more() {
    let host = host(small(600), one_at_a_time());
    let requests = (0..3).map(|seed| request(seed, 40)).collect();
    let (_cancel, events) = submit(&host, requests).unwrap();
    host.drain();
    let refused = host.submit(request(1, 1)).err().unwrap();
    assert!(matches!(refused, EngineError::Draining), "{refused}");
    for (text, end, usage) in outcomes(events, 3) {
        assert_eq!((end, usage.tokens), (Some(FinishReason::Length), 40));
        assert!(!text.is_empty());
    }
    assert_eq!(host.requests(), 0);
    assert!(host.failure().is_none());
}

/// Waits in the step until it is let go.
#[derive(Debug)]
struct Hang(Receiver<()>);

impl LogitsProcessor for Hang {
    fn process(&mut self, _: &mut [f32]) {
        let _ = self.0.recv();
    }

    fn accept(&mut self, _: u32) {}
}

#[test]
fn a_step_that_hangs_is_seen_and_holds_up_nobody_else() {
    let host = host(small(600), one_at_a_time());
    assert_eq!(host.busy_for(), None);
    let (go, hang) = mpsc::channel();
    let request = Request {
        processor: Some(Box::new(Hang(hang))),
        ..request(1, 1)
    };
    let handle = host.submit(request).unwrap();
    wait("it does not hang", || {
        host.busy_for()
            .is_some_and(|time| time > Duration::from_millis(50))
    });
    // Another one is taken and cancelled meanwhile.
    let (cancel, _events) = submit(&host, vec![self::request(2, 1)]).unwrap();
    assert_eq!((host.stats().waiting, host.requests()), (1, 2));
    drop(cancel);
    assert_eq!((host.stats().waiting, host.requests()), (0, 1));
    drop(go);
    assert_eq!(result(handle).unwrap(), FinishReason::Length);
    assert_eq!(host.busy_for(), None);
}

#[test]
fn steps_are_observed() {
    let host = host(small(600), EngineOptions::default());
    let (rows, steps) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = (Arc::clone(&rows), Arc::clone(&steps));
    host.observe(Box::new(move |report| {
        assert!(report.requests >= 1 && report.rows >= report.requests);
        seen.0.fetch_add(report.rows, Ordering::Relaxed);
        seen.1.fetch_add(1, Ordering::Relaxed);
    }));
    let requests = (0..3).map(|seed| request(seed, 10)).collect();
    let (_cancel, events) = submit(&host, requests).unwrap();
    let prompts: usize = outcomes(events, 3).iter().map(|o| o.2.prompt_tokens).sum();
    let stats = host.stats();
    assert_eq!(rows.load(Ordering::Relaxed) as u64, stats.rows);
    assert_eq!(steps.load(Ordering::Relaxed) as u64, stats.steps);
    // The last token of each goes nowhere.
    assert_eq!(stats.rows - stats.drafted, prompts as u64 + 3 * 9);
    assert_eq!(stats.tokens, 30);
}

#[test]
fn a_panic_ends_those_that_wait_as_well() {
    let host = host(small(20_000), one_at_a_time());
    let fault = Request {
        prompt: (0..200).collect(),
        processor: Some(Box::new(Fault)),
        ..request(2, 10)
    };
    let same = || Request {
        prompt: (0..200).collect(),
        ..request(2, 10)
    };
    let (_cancel, events) = submit(&host, vec![fault, same(), request(3, 10)]).unwrap();
    let mut ended = Vec::new();
    for (index, event) in events {
        if let Event::Finished { result, .. } = event {
            assert!(matches!(result, Err(EngineError::Panicked { .. })));
            ended.push(index);
        }
    }
    ended.sort_unstable();
    assert_eq!(ended, [0, 1, 2]);
    assert_eq!((host.requests(), host.busy_for()), (0, None));
    let failure = host.failure().unwrap().to_string();
    assert_eq!(failure, "a fault of the engine ended it: a fault in a test");
    let refused = host.submit(request(1, 1)).err().unwrap();
    assert!(matches!(refused, EngineError::Panicked { .. }), "{refused}");
}

#[test]
fn the_last_handle_on_a_host_may_be_with_a_sink() {
    let host = Arc::new(host(small(600), EngineOptions::default()));
    let (sender, receiver) = mpsc::channel();
    let mut last = Some(Arc::clone(&host));
    let sink: Sink = Box::new(move |event| {
        if matches!(event, Event::Finished { .. }) {
            drop(last.take());
            let _ = sender.send(());
        }
    });
    let cancel = host.submit_to(vec![(request(1, 5), sink)]).unwrap();
    drop(host);
    receiver.recv_timeout(Duration::from_secs(60)).unwrap();
    drop(cancel);
}

/// Ids, text, reason and what ended a request.
fn end(host: &Host, request: Request) -> (Vec<u32>, String, FinishReason, Option<StoppedBy>) {
    let (mut ids, mut text) = (Vec::new(), String::new());
    for event in host.submit(request).unwrap() {
        match event {
            Event::Prompt { .. } => {}
            Event::Token { id, text: more, .. } => {
                ids.push(id);
                text += &more;
            }
            Event::Finished {
                text: rest,
                result,
                stopped_by,
                ending,
                usage,
            } => {
                assert_eq!(usage.tokens, ids.len());
                let by_token = matches!(stopped_by, Some(StoppedBy::Eos(_) | StoppedBy::Token(_)));
                assert_eq!(ending.is_some(), by_token);
                return (ids, text + &rest, result.unwrap(), stopped_by);
            }
        }
    }
    panic!("no end");
}

#[test]
fn a_text_ends_where_the_request_says() {
    let rt = Arc::new(Runtime::new(Cpu::detect().unwrap().at_most(Isa::Avx512), 2).unwrap());
    let free = {
        let host = host(small(600), EngineOptions::default());
        end(&host, request(1, 60)).0
    };
    // The id that comes at 20 first ends the text, of a model that has it for that.
    let at = (20..60)
        .find(|&at| !free[..at].contains(&free[at]))
        .unwrap();
    let eos = free[at];
    let files = [
        ("tokenizer.json", byte_level()),
        (
            "generation_config.json",
            serde_json::json!({"eos_token_id": eos}),
        ),
    ];
    let tokenizer = tokenizer(&files, BYTE_LEVEL_IDS);
    let host = host(
        loaded(&rt, &model(&rt, 600), &tokenizer),
        EngineOptions::default(),
    );
    let with = |change: &dyn Fn(&mut GenerateParams)| {
        let mut request = request(1, 60);
        change(&mut request.params);
        end(&host, request)
    };
    let text = |ids: &[u32]| {
        let whole: Vec<u32> = request(1, 0).prompt.iter().chain(ids).copied().collect();
        let before = tokenizer.decode(&request(1, 0).prompt).unwrap();
        tokenizer.decode(&whole).unwrap()[before.len()..].to_owned()
    };

    let plain = with(&|_| ());
    assert_eq!(plain.0, free[..at]);
    assert_eq!(
        (plain.2, plain.3),
        (FinishReason::Stop, Some(StoppedBy::Eos(eos)))
    );
    let ignored = with(&|p| p.ignore_eos = true);
    assert_eq!(
        ignored,
        (free.clone(), ignored.1.clone(), FinishReason::Length, None)
    );
    let late = with(&|p| p.min_tokens = 50);
    assert!(late.0.len() >= 50 && !late.0.contains(&eos), "{late:?}");

    let stop = free[10];
    let first = free.iter().position(|&id| id == stop).unwrap();
    let stopped = with(&|p| p.stop_token_ids = vec![stop, 3]);
    assert_eq!(stopped.0, free[..first]);
    assert_eq!(stopped.3, Some(StoppedBy::Token(stop)));
    assert_eq!(stopped.1, text(&free[..first]));
    let included = with(&|p| (p.stop_token_ids, p.include_stop) = (vec![stop], true));
    assert_eq!(included.0, free[..first], "it is no event");
    assert_eq!(included.1, text(&free[..=first]));
    let both = with(&|p| (p.stop_token_ids, p.ignore_eos) = (vec![eos], true));
    assert_eq!(
        (both.0, both.3),
        (free[..at].to_vec(), Some(StoppedBy::Token(eos)))
    );

    let string: String = ignored.1.chars().skip(5).take(2).collect();
    let before = ignored.1.find(&string).unwrap();
    let cut =
        with(&|p| (p.stop, p.ignore_eos) = (vec!["\u{1}\u{2}\u{3}".into(), string.clone()], true));
    assert_eq!(cut.1, ignored.1[..before]);
    assert_eq!(cut.3, Some(StoppedBy::Text(string.clone())));
    let whole = with(&|p| {
        (p.stop, p.ignore_eos, p.include_stop) = (vec![string.clone()], true, true);
    });
    assert_eq!(whole.1, ignored.1[..before + string.len()]);
}

#[test]
fn special_tokens_are_shown_if_they_are_wanted() {
    let host = host(small(600), EngineOptions::default());
    let special = BYTE_LEVEL_IDS as u32 - 1;
    let only = |shown_ids: &[u32], shows: bool, stop: &[&str]| {
        let mut request = request(1, 4);
        request.params.shown_ids = shown_ids.to_vec();
        request.params.sampling = SamplingParams {
            logit_bias: [(special, 100.0)].into(),
            ..SamplingParams::greedy()
        };
        request.params.show_special = shows;
        request.params.stop = stop.iter().map(|&stop| stop.to_owned()).collect();
        end(&host, request)
    };
    let with = |shows, stop: &[&str]| only(&[], shows, stop);
    let end = "<|end|>";
    assert_eq!(only(&[special], false, &[]).1, end.repeat(4));
    assert_eq!(only(&[special - 1], false, &[]).1, "");
    assert_eq!(with(false, &[]).1, "");
    assert_eq!(with(true, &[]).1, end.repeat(4));
    assert_eq!(with(true, &["|><|"]).1, "<|end");
    assert_eq!(with(false, &[end]).0, [special]);
    let named = with(true, &[end]);
    assert_eq!(
        (named.1.as_str(), named.3),
        ("", Some(StoppedBy::Text(end.to_owned())))
    );
}

#[test]
fn parameters_that_cannot_be_are_refused_by_name() {
    let host = host(small(600), EngineOptions::default());
    let message = |change: &dyn Fn(&mut GenerateParams)| {
        let mut request = request(1, 10);
        change(&mut request.params);
        host.submit(request).err().unwrap().to_string()
    };
    assert_eq!(
        message(&|p| p.min_tokens = 11),
        "min_tokens is 11, allowed is 0 to max_tokens, which is 10"
    );
    assert_eq!(
        message(&|p| p.sampling.logit_bias = [(5, 1.0), (300, 1.0)].into()),
        "logit_bias is 300, allowed is an id below 261, the model's vocabulary"
    );
    assert_eq!(
        message(&|p| p.sampling.presence_penalty = -3.0),
        "presence_penalty is -3, allowed is -2 to 2"
    );
}
