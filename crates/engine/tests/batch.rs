//! The batch engine against one that runs every request alone: whatever happens around it, a request gets the same tokens.

mod common;
#[path = "common/naive.rs"]
mod naive;

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use common::{BYTE_LEVEL_IDS, byte_level, letters, loaded, model, tokenizer};
use naive::NaiveEngine;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::json;
use sparamx_cpu::{Cpu, Isa};
use sparamx_engine::{
    BatchEngine, Engine, EngineError, EngineOptions, Event, FinishReason, GenerateParams,
    KvOptions, KvPrecision, KvRule, Loaded, LogitsProcessor, PagePool, Request, RequestId,
    SamplingParams, Speculation, StoppedBy, TokenLogprob, Tokenizer, Usage,
};
use sparamx_kernels::Runtime;
use sparamx_model::{Checkpoint, LoadOptions, Model};

/// Tokens that the model was made for.
const CONTEXT: usize = 700;

/// Kernels of one numeric class: with AMX, a batch of five rows would be of another than one row.
fn runtime(threads: usize) -> Arc<Runtime> {
    Arc::new(Runtime::new(Cpu::detect().unwrap().at_most(Isa::Avx512), threads).unwrap())
}

fn plain() -> Arc<Tokenizer> {
    // Some texts end by themselves.
    let files = [
        ("tokenizer.json", byte_level()),
        ("generation_config.json", json!({"eos_token_id": [17, 99]})),
    ];
    tokenizer(&files, BYTE_LEVEL_IDS)
}

/// All events of a request, put together, and checked for their order.
#[derive(Debug, Default)]
struct Received {
    prompt_done: usize,
    prompt_logprobs: Vec<TokenLogprob>,
    ids: Vec<u32>,
    logprobs: Vec<TokenLogprob>,
    text: String,
    end: Option<(Result<FinishReason, EngineError>, Usage)>,
    stopped_by: Option<StoppedBy>,
    ending: Option<TokenLogprob>,
}

impl Received {
    fn receive(&mut self, event: Event) {
        assert!(self.end.is_none(), "{event:?} after the last");
        match event {
            Event::Prompt {
                done,
                total,
                logprobs,
            } => {
                assert!(self.ids.is_empty() && done > self.prompt_done && done <= total);
                self.prompt_done = done;
                self.prompt_logprobs.extend(logprobs);
            }
            Event::Token { id, text, logprob } => {
                self.ids.push(id);
                self.text += &text;
                self.logprobs.extend(logprob);
            }
            Event::Finished {
                text,
                result,
                usage,
                stopped_by,
                ending,
            } => {
                self.text += &text;
                assert_eq!(usage.tokens.max(self.ids.len()), self.ids.len());
                let stopped = matches!(result, Ok(FinishReason::Stop));
                assert_eq!(stopped, stopped_by.is_some());
                self.end = Some((result, usage));
                self.stopped_by = stopped_by;
                self.ending = ending;
            }
        }
    }

    fn reason(&self) -> FinishReason {
        let (result, _) = self.end.as_ref().expect("an end");
        *result.as_ref().expect("no error")
    }

    fn usage(&self) -> Usage {
        self.end.as_ref().expect("an end").1
    }
}

/// Runs all that was submitted.
fn drain(engine: &mut dyn Engine) -> BTreeMap<RequestId, Received> {
    let mut received: BTreeMap<RequestId, Received> = BTreeMap::new();
    while engine.step(&mut |id, event| received.entry(id).or_default().receive(event)) {}
    received
}

/// What a request gets when it runs alone.
fn alone(naive: &mut NaiveEngine, request: &Request) -> Received {
    let id = naive.submit(copy(request)).unwrap();
    drain(naive).remove(&id).unwrap()
}

/// The same request.
fn copy(request: &Request) -> Request {
    Request {
        prompt: request.prompt.clone(),
        params: request.params.clone(),
        logprobs: request.logprobs,
        prompt_logprobs: request.prompt_logprobs,
        processor: Mask::of(request.tenant),
        tenant: request.tenant,
        cache_salt: request.cache_salt.clone(),
    }
}

fn greedy(prompt: &[u32], max_tokens: usize) -> Request {
    Request {
        prompt: prompt.to_vec(),
        params: GenerateParams {
            max_tokens,
            sampling: SamplingParams::greedy(),
            ..GenerateParams::default()
        },
        ..Request::default()
    }
}

struct Dice(ChaCha8Rng);

impl Dice {
    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        self.0.next_u32() as usize % end
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }
}

/// The beginnings that prompts share: some repeat themselves, so that draft tokens are accepted.
fn documents() -> Vec<Vec<u32>> {
    let word: Vec<u32> = (100..117).collect();
    vec![
        (0..500).map(|i| (i * i + 3 * i) % 250).collect(),
        word.iter().copied().cycle().take(500).collect(),
        (0..500).map(|i| 60 + i * 7 % 50).collect(),
    ]
}

fn random_request(dice: &mut Dice, documents: &[Vec<u32>], longest: usize) -> Request {
    let document = dice.pick(documents);
    let shared = match dice.below(3) {
        0 => 0,
        1 => 64 * dice.below(5),
        _ => dice.below(330),
    };
    let mut prompt = document[..shared].to_vec();
    prompt.extend((0..1 + dice.below(40)).map(|_| dice.below(250) as u32));
    prompt.truncate(longest - 1);
    let mut sampling = match dice.below(3) {
        0 => SamplingParams::greedy(),
        1 => SamplingParams {
            temperature: 0.3,
            seed: dice.below(1000) as u64,
            ..SamplingParams::default()
        },
        _ => SamplingParams {
            temperature: 0.9,
            repetition_penalty: 1.1,
            seed: dice.below(1000) as u64,
            ..SamplingParams::default()
        },
    };
    if dice.one_in(4) {
        sampling.presence_penalty = dice.below(5) as f32 - 2.0;
        sampling.frequency_penalty = dice.below(5) as f32 / 4.0 - 0.5;
    }
    if dice.one_in(4) {
        let bias = |dice: &mut Dice| {
            (
                dice.below(BYTE_LEVEL_IDS) as u32,
                dice.below(9) as f32 - 4.0,
            )
        };
        sampling.logit_bias = (0..1 + dice.below(40)).map(|_| bias(dice)).collect();
    }
    let max_tokens = 1 + dice.below(160);
    let tenant = if dice.one_in(4) { 1 + dice.below(9) } else { 0 } as u64;
    let salts = [None, None, None, Some("a"), Some("b")];
    Request {
        prompt,
        params: GenerateParams {
            max_tokens,
            min_tokens: if dice.one_in(3) {
                dice.below(max_tokens + 1)
            } else {
                0
            },
            sampling,
            stop: match dice.one_in(3) {
                true => vec!["e".into(), "th".into(), "<|end|>".into()],
                false => Vec::new(),
            },
            include_stop: dice.one_in(3),
            stop_token_ids: match dice.one_in(4) {
                true => (0..5).map(|_| dice.below(BYTE_LEVEL_IDS) as u32).collect(),
                false => Vec::new(),
            },
            ignore_eos: dice.one_in(3),
            show_special: dice.one_in(3),
            shown_ids: Vec::new(),
        },
        logprobs: dice.one_in(4).then_some(dice.below(5)),
        prompt_logprobs: dice.one_in(6).then_some(dice.below(3)),
        processor: Mask::of(tenant),
        tenant,
        cache_salt: dice.pick(&salts).map(str::to_owned),
    }
}

/// Forbids a third of the ids, others after each token; what [`Request::tenant`] says, so that a request can be copied.
#[derive(Debug)]
struct Mask(u64);

impl Mask {
    fn of(tenant: u64) -> Option<Box<dyn LogitsProcessor>> {
        (tenant > 0).then(|| Box::new(Self(tenant)) as Box<dyn LogitsProcessor>)
    }
}

impl LogitsProcessor for Mask {
    fn process(&mut self, logits: &mut [f32]) {
        for (logit, id) in logits.iter_mut().zip(0..) {
            if (id * 7 + self.0).is_multiple_of(3) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }

    fn accept(&mut self, id: u32) {
        assert_ne!((u64::from(id) * 7 + self.0) % 3, 0, "{id} is forbidden");
        self.0 = self.0 * 31 % 1009 + u64::from(id);
    }
}

fn random_kv(dice: &mut Dice) -> KvOptions {
    let packs = dice.one_in(2);
    KvOptions {
        budget_bytes: None,
        precision: match packs && dice.one_in(2) {
            true => KvPrecision::Int8,
            false => KvPrecision::Bf16,
        },
        key_sparsity: if packs { 0.5 } else { 0.0 },
        value_sparsity: if packs { 0.3 } else { 0.0 },
        window: 64 * (1 + dice.below(2)),
        sinks: 64 * dice.below(2),
        rule: dice.pick(&KvRule::ALL),
    }
}

/// What happened under a random load.
#[derive(Debug, Default)]
struct Load {
    steps: u64,
    preemptions: u64,
    /// Draft tokens.
    accepted: u64,
    /// Those of them of requests whose logits are changed.
    accepted_changed: u64,
    /// Tokens of prompts that were in the cache.
    cached: u64,
}

/// One engine with a random load.
fn campaign(seed: u64, loaded: &Loaded) -> Load {
    let mut dice = Dice(ChaCha8Rng::seed_from_u64(seed));
    let documents = documents();
    let mut options = EngineOptions {
        context: Some(CONTEXT),
        max_running: 1 + dice.below(12),
        step_tokens: dice.pick(&[1, 20, 64, 130, 512]),
        paced: dice.one_in(2),
        speculation: dice.pick(&[
            Speculation::Auto,
            Speculation::Always,
            Speculation::Always,
            Speculation::Off,
        ]),
        kv: random_kv(&mut dice),
    };
    let mut naive = NaiveEngine::new(loaded.clone(), options.kv.clone());
    // From the least that the longest request needs to enough for several.
    let longest = 540;
    let least = PagePool::new(loaded.model.config(), &options.kv)
        .unwrap()
        .sequence_bytes(longest, options.step_tokens);
    options.kv.budget_bytes = Some(least + least * dice.below(100) as u64 / 100);
    let mut engine = BatchEngine::new(loaded, options.clone()).unwrap();
    assert!(engine.context() >= longest);

    let mut requests: BTreeMap<RequestId, Request> = BTreeMap::new();
    let mut received: BTreeMap<RequestId, Received> = BTreeMap::new();
    let mut cancelled = Vec::new();
    let total = 20 + dice.below(20);
    let arrivals = 1 + dice.below(8);
    loop {
        if requests.len() < total && dice.one_in(arrivals) {
            for _ in 0..1 + dice.below(3) {
                let request = random_request(&mut dice, &documents, longest);
                let id = engine.submit(copy(&request)).unwrap();
                requests.insert(id, request);
                received.insert(id, Received::default());
            }
        }
        if dice.one_in(25) && !requests.is_empty() {
            // Perhaps one that has ended.
            let ids: Vec<RequestId> = requests.keys().copied().collect();
            let id = dice.pick(&ids);
            engine.cancel(id);
            cancelled.push(id);
        }
        let mut last = None;
        let more = engine.step(&mut |id, event| {
            assert!(last.is_none_or(|last| last <= id), "in order");
            last = Some(id);
            received.get_mut(&id).unwrap().receive(event);
        });
        let usage = engine.stats().pool;
        assert!(usage.in_use_bytes + usage.cached_bytes + usage.free_bytes <= usage.budget_bytes);
        if !more && requests.len() >= total {
            break;
        }
    }

    let mut known: HashMap<String, Received> = HashMap::new();
    for (id, request) in &requests {
        let got = &received[id];
        let want = known
            .entry(format!("{request:?}"))
            .or_insert_with(|| alone(&mut naive, request));
        let about =
            format!("seed {seed}, request {id}, {options:?}\n{request:?}\n{got:?}\n{want:?}");
        if got.reason() == FinishReason::Cancelled {
            assert!(cancelled.contains(id), "{about}");
            assert!(want.ids.starts_with(&got.ids), "{about}");
            assert!(want.logprobs.starts_with(&got.logprobs), "{about}");
            assert!(
                want.prompt_logprobs.starts_with(&got.prompt_logprobs),
                "{about}"
            );
        } else {
            assert_eq!(got.ids, want.ids, "{about}");
            assert_eq!(got.text, want.text, "{about}");
            assert_eq!(got.reason(), want.reason(), "{about}");
            assert_eq!(got.stopped_by, want.stopped_by, "{about}");
            assert_eq!(got.ending, want.ending, "{about}");
            assert_eq!(got.logprobs, want.logprobs, "{about}");
            assert_eq!(got.prompt_logprobs, want.prompt_logprobs, "{about}");
            assert_eq!(got.prompt_done, request.prompt.len(), "{about}");
        }
        assert_eq!(got.usage().tokens, got.ids.len(), "{about}");
    }
    let stats = engine.stats();
    let prompts: usize = requests.values().map(|request| request.prompt.len()).sum();
    let usages = || received.values().map(Received::usage);
    let cached: usize = usages().map(|usage| usage.cached_tokens).sum();
    assert!(stats.prompt_tokens <= prompts as u64);
    assert_eq!(stats.cached_tokens, cached as u64, "seed {seed}");
    let preemptions: usize = usages().map(|usage| usage.preemptions).sum();
    assert_eq!(stats.preemptions, preemptions as u64);
    let ends = stats.finished;
    let ended = ends.stop + ends.length + ends.context + ends.cancelled + ends.error;
    assert_eq!(ended, requests.len() as u64);
    assert_eq!(stats.pool.in_use_bytes, 0, "seed {seed}");
    assert_eq!((stats.running, stats.waiting), (0, 0));
    let tokens: usize = received.values().map(|received| received.ids.len()).sum();
    assert_eq!(stats.tokens, tokens as u64);
    let changed = received.iter().filter(|(id, _)| {
        let Request {
            params, processor, ..
        } = &requests[id];
        let sampling = &params.sampling;
        processor.is_some() || sampling.presence_penalty != 0.0 || !sampling.logit_bias.is_empty()
    });
    Load {
        steps: stats.steps,
        preemptions: stats.preemptions,
        accepted: stats.accepted,
        accepted_changed: changed.map(|(_, got)| got.usage().accepted as u64).sum(),
        cached: stats.cached_tokens,
    }
}

/// `SPARAMX_TEST_SEED` runs other seeds: `7` or `100..200`.
#[test]
fn whatever_happens_around_it_a_request_gets_the_same_tokens() {
    let seeds: Vec<u64> = match std::env::var("SPARAMX_TEST_SEED") {
        Ok(text) => match text.split_once("..") {
            Some((first, end)) => (first.parse().unwrap()..end.parse().unwrap()).collect(),
            None => vec![text.parse().unwrap()],
        },
        Err(_) => (0..16).collect(),
    };
    let runtimes = [1, 2].map(runtime);
    let model = model(&runtimes[0], CONTEXT);
    let tokenizer = plain();
    let mut sum = Load::default();
    for &seed in &seeds {
        // Past the capture of the test harness: a failure or a hang is to say where it is.
        let _ = writeln!(std::io::stderr(), "batch engine: seed {seed}");
        let load = campaign(
            seed,
            &loaded(&runtimes[seed as usize % 2], &model, &tokenizer),
        );
        sum.steps += load.steps;
        sum.preemptions += load.preemptions;
        sum.accepted += load.accepted;
        sum.accepted_changed += load.accepted_changed;
        sum.cached += load.cached;
    }
    let _ = writeln!(std::io::stderr(), "batch engine: {sum:?}");
    // Nothing is shown by a load too light.
    if std::env::var("SPARAMX_TEST_SEED").is_err() {
        let enough = sum.steps > 2000 && sum.preemptions > 5 && sum.accepted > 200;
        assert!(
            enough && sum.accepted_changed > 20 && sum.cached > 2000,
            "{sum:?}"
        );
    }
}

#[test]
fn what_can_never_run_is_refused_with_the_numbers() {
    let rt = runtime(1);
    let model = model(&rt, CONTEXT);
    let tokenizer = plain();
    let page = PagePool::new(model.config(), &KvOptions::default())
        .unwrap()
        .sequence_bytes(1, 1);
    let options = EngineOptions {
        kv: KvOptions {
            budget_bytes: Some(3 * page),
            ..KvOptions::default()
        },
        ..EngineOptions::default()
    };
    let mut engine = BatchEngine::new(&loaded(&rt, &model, &tokenizer), options.clone()).unwrap();
    assert_eq!(engine.context(), 3 * 64);
    let mut message = |request: Request| engine.submit(request).unwrap_err().to_string();
    assert_eq!(
        message(greedy(&[1; 192], 5)),
        format!(
            "the KV cache needs {} bytes more and of its {} bytes {} are left: choose a smaller context, fewer sequences \
             at a time, or more memory for the cache",
            4 * page,
            3 * page,
            3 * page
        )
    );
    assert!(
        message(greedy(&[1; CONTEXT], 5))
            .starts_with("the prompt has 700 tokens and the context 700")
    );
    assert!(message(greedy(&[1, BYTE_LEVEL_IDS as u32], 5)).contains(&BYTE_LEVEL_IDS.to_string()));
    assert!(message(greedy(&[], 5)).starts_with("the prompt is empty"));
    assert!(message(greedy(&[1], 0)).starts_with("max_tokens is 0"));
    for change in [
        |r: &mut Request| r.logprobs = Some(21),
        |r: &mut Request| r.prompt_logprobs = Some(21),
    ] {
        let mut request = greedy(&[1], 5);
        change(&mut request);
        assert!(message(request).ends_with("is 21, allowed is 0 to 20"));
    }
    // What fits just so runs until the pool is full.
    let id = engine.submit(greedy(&[1; 191], 5)).unwrap();
    let received = drain(&mut engine);
    assert_eq!(
        (received[&id].reason(), received[&id].ids.len()),
        (FinishReason::Context, 1)
    );

    for (max_running, step_tokens) in [(0, 1), (1, 0)] {
        let options = EngineOptions {
            max_running,
            step_tokens,
            ..options.clone()
        };
        assert!(BatchEngine::new(&loaded(&rt, &model, &tokenizer), options).is_err());
    }
}

#[test]
fn a_request_that_is_cancelled_is_gone_at_once() {
    let rt = runtime(1);
    let model = model(&rt, CONTEXT);
    let tokenizer = plain();
    let options = EngineOptions {
        max_running: 1,
        ..EngineOptions::default()
    };
    let mut engine = BatchEngine::new(&loaded(&rt, &model, &tokenizer), options).unwrap();
    let [first, second] = [1, 2].map(|id| engine.submit(greedy(&[id; 100], 300)).unwrap());
    assert!(engine.step(&mut |id, _| assert_eq!(id, first)));
    assert!(engine.stats().pool.in_use_bytes > 0);
    engine.cancel(first);
    assert_eq!(engine.stats().pool.in_use_bytes, 0);
    // One that waits, one that has ended, one that never was.
    engine.cancel(second);
    engine.cancel(first);
    engine.cancel(RequestId::new(77));
    let mut received = Vec::new();
    assert!(!engine.step(&mut |id, event| received.push((id, event))));
    for ((id, event), want) in received.iter().zip([first, second]) {
        assert_eq!(*id, want);
        assert!(
            matches!(
                event,
                Event::Finished {
                    result: Ok(FinishReason::Cancelled),
                    ..
                }
            ),
            "{event:?}"
        );
    }
    assert_eq!(received.len(), 2);
}

#[test]
fn a_prompt_can_be_scored_without_a_new_token() {
    let rt = runtime(1);
    let model = model(&rt, CONTEXT);
    let tokenizer = plain();
    let mut naive = NaiveEngine::new(loaded(&rt, &model, &tokenizer), KvOptions::default());
    let mut engine =
        BatchEngine::new(&loaded(&rt, &model, &tokenizer), EngineOptions::default()).unwrap();
    let whole: Vec<u32> = (0..CONTEXT as u32).map(|i| i * 13 % 240).collect();
    for length in [CONTEXT, 65, 2, 1] {
        let request = Request {
            prompt_logprobs: Some(2),
            ..greedy(&whole[..length], 0)
        };
        let want = alone(&mut naive, &request);
        let id = engine.submit(request).unwrap();
        let got = drain(&mut engine).remove(&id).unwrap();
        assert_eq!(got.prompt_logprobs.len(), length - 1);
        assert_eq!(got.prompt_logprobs, want.prompt_logprobs);
        assert_eq!((got.reason(), got.ids.len()), (FinishReason::Length, 0));
        assert_eq!(got.usage().cached_tokens, 0, "cached pages have no logits");
    }
}

#[test]
fn events_come_in_the_same_order_every_time() {
    let rt = runtime(2);
    let model = model(&rt, CONTEXT);
    let tokenizer = plain();
    let run = || {
        let options = EngineOptions {
            max_running: 3,
            step_tokens: 100,
            paced: false,
            speculation: Speculation::Always,
            ..EngineOptions::default()
        };
        let mut engine = BatchEngine::new(&loaded(&rt, &model, &tokenizer), options).unwrap();
        let mut dice = Dice(ChaCha8Rng::seed_from_u64(5));
        let documents = documents();
        for _ in 0..8 {
            engine
                .submit(random_request(&mut dice, &documents, 300))
                .unwrap();
        }
        let mut received = Vec::new();
        while engine.step(&mut |id, event| {
            // All but times.
            received.push(match event {
                Event::Finished { text, result, .. } => format!("{id} {text} {result:?}"),
                event => format!("{id} {event:?}"),
            });
        }) {}
        received
    };
    let first = run();
    assert!(first.len() > 100);
    assert_eq!(first, run());
}

/// A model some of whose states have a logit of infinity: a request that comes there fails, and no other.
#[test]
fn an_error_ends_the_request_it_belongs_to() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/llama-gqa");
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(&source).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    blow_up(&dir.path().join("model.safetensors"), "lm_head.weight", 5);
    let rt = runtime(1);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let model = Model::load(&rt, &checkpoint, &LoadOptions::default(), &mut |_| ()).unwrap();
    let model = Arc::new(model);
    let vocab_size = model.config().vocab_size;
    let tokenizer = tokenizer(&[("tokenizer.json", letters(vocab_size))], vocab_size);
    let mut naive = NaiveEngine::new(loaded(&rt, &model, &tokenizer), KvOptions::default());
    let mut engine =
        BatchEngine::new(&loaded(&rt, &model, &tokenizer), EngineOptions::default()).unwrap();
    let requests: Vec<Request> = (0..12).map(|i| greedy(&[i, i + 7, 2 * i], 12)).collect();
    let ids: Vec<RequestId> = requests
        .iter()
        .map(|request| engine.submit(copy(request)).unwrap())
        .collect();
    let received = drain(&mut engine);
    let mut failed = 0;
    for (id, request) in ids.iter().zip(&requests) {
        let want = alone(&mut naive, request);
        let end = |received: &Received| match &received.end.as_ref().unwrap().0 {
            Ok(reason) => reason.to_string(),
            Err(error) => error.to_string(),
        };
        assert_eq!(received[id].ids, want.ids);
        assert_eq!(end(&received[id]), end(&want));
        failed += usize::from(end(&want).starts_with("the logit of token 5 is inf"));
    }
    assert!((1..12).contains(&failed), "{failed} of 12 failed");
    assert_eq!(engine.stats().pool.in_use_bytes, 0);
}

/// Makes the first number of a row of a bf16 tensor as large as can be.
fn blow_up(file: &Path, tensor: &str, row: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let about: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let about = &about[tensor];
    assert_eq!(about["dtype"], "BF16");
    let begin = about["data_offsets"][0].as_u64().unwrap() as usize;
    let width = about["shape"][1].as_u64().unwrap() as usize;
    let at = 8 + header + begin + row * width * 2;
    bytes[at..at + 2].copy_from_slice(&0x7f7f_u16.to_le_bytes());
    std::fs::write(file, bytes).unwrap();
}
