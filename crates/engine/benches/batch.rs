//! What a step of the batch engine takes beside the model: `cargo bench -p sparamx-engine --bench batch`.
//!
//! For the model that ships and a random one of TinyLlama's shape (dense bf16; another shape as argument), by the number of
//! sequences that decode: tokens a second, time of a step, and how it divides into the model, the choice of tokens, and the
//! rest, which is the schedule. Then the gain by draft tokens on texts that repeat themselves. Medians of the steps. And what
//! requests that wait in a host cost.

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use sparamx_cpu::{Cpu, topology};
use sparamx_engine::{
    BatchEngine, Engine, EngineOptions, Event, GenerateParams, Host, HostOptions, Loaded, Request,
    SamplingParams, Sink, Speculation, Stats,
};
use sparamx_kernels::Runtime;
use sparamx_model::{Model, Precision, RandomSpec, shapes};

const SEQUENCES: [usize; 4] = [1, 8, 32, 64];
const PROMPT: usize = 8;

fn main() {
    let shape = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let shape = shape.as_deref().unwrap_or("tinyllama-1.1b");
    let cpu = Cpu::detect().expect("a CPU");
    let rt = Runtime::new(cpu, topology::default_threads()).expect("threads");
    let rt = Arc::new(rt);
    println!(
        "{}, {}, {} threads",
        cpu.report().brand,
        cpu.isa(),
        rt.threads()
    );
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/stories-5m-50");
    let loaded = Loaded::open(&dir, Arc::clone(&rt), None, &mut |_| ()).expect("the shipped model");
    rt.pin_caller();
    measure("stories-5m-50", &loaded, 128);
    queued(&loaded);
    let config = shapes::config(shape).expect("a shape");
    let spec = RandomSpec {
        sparsity: 0.0,
        precision: Precision::Bf16,
        seed: 1,
    };
    let model = Model::random(&rt, &config, spec).expect("memory");
    measure(
        shape,
        &Loaded::new(rt, Arc::new(model), loaded.tokenizer),
        16,
    );
}

/// What requests that wait cost those that run: microseconds a token of one sequence in a host, by the number that waits.
fn queued(loaded: &Loaded) {
    println!("\nhost: requests that wait, us a token of the one that runs");
    for waiting in [0, 1000, 10_000] {
        let options = HostOptions {
            engine: EngineOptions {
                max_running: 1,
                speculation: Speculation::Off,
                ..EngineOptions::default()
            },
            max_requests: waiting + 1,
            ..HostOptions::default()
        };
        let host = Host::start(loaded.clone(), options).expect("a host");
        let (sender, tokens) = mpsc::channel();
        let request = |tenant: usize| {
            let sender = sender.clone();
            let sink: Sink = Box::new(move |event| {
                if let Event::Token { .. } = event {
                    // The last of them may come when nobody listens.
                    let _ = sender.send(Instant::now());
                }
            });
            let request = Request {
                prompt: vec![3; PROMPT],
                params: GenerateParams {
                    max_tokens: 400,
                    sampling: SamplingParams::greedy(),
                    ignore_eos: true,
                    ..GenerateParams::default()
                },
                tenant: tenant as u64 % 100,
                ..Request::default()
            };
            (request, sink)
        };
        let requests = (0..=waiting).map(request).collect();
        let cancel = host.submit_to(requests).expect("requests");
        let times: Vec<Instant> = tokens.iter().take(400).collect();
        drop(cancel);
        let mut steps: Vec<Duration> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        steps.sort_unstable();
        let median = steps[steps.len() / 2].as_secs_f64();
        println!("{waiting:6} {:9.1}", median * 1e6);
    }
}

fn measure(name: &str, loaded: &Loaded, tokens: usize) {
    println!("\n{name}: sequences, tokens/s, ms a step: model, choice, rest (share)");
    let sampled = SamplingParams {
        top_k: 40,
        ..SamplingParams::default()
    };
    let [greedy, sampled] = [SamplingParams::greedy(), sampled];
    let cases = SEQUENCES.map(|sequences| (sequences, "greedy", &greedy));
    for (sequences, kind, sampling) in cases.into_iter().chain([(32, "sampled", &sampled)]) {
        let parts = decode(loaded, sequences, tokens, sampling);
        let step: f64 = parts.iter().sum();
        let [forward, choice, rest] = parts.map(|seconds| seconds * 1e3);
        println!(
            "{sequences:4} {kind:8} {:9.1} {:9.3}: {forward:9.3} {choice:7.3} {rest:7.4} ({:.2} %)",
            sequences as f64 / step,
            step * 1e3,
            rest / step / 10.0
        );
    }
    println!("draft tokens: sequences, tokens/s without, with, accepted");
    for sequences in [1, 4, 16] {
        let [off, auto] = [Speculation::Off, Speculation::Auto]
            .map(|speculation| repetitive(loaded, sequences, 8 * tokens, speculation));
        println!(
            "{sequences:4} {:9.1} {:9.1} ({:.2} times), {} of {}",
            off.0,
            auto.0,
            auto.0 / off.0,
            auto.1.accepted,
            auto.1.drafted
        );
    }
}

fn engine(loaded: &Loaded, speculation: Speculation) -> BatchEngine {
    let options = EngineOptions {
        max_running: 128,
        step_tokens: 1024,
        speculation,
        ..EngineOptions::default()
    };
    BatchEngine::new(loaded, options).expect("an engine")
}

fn submit(engine: &mut BatchEngine, prompt: Vec<u32>, tokens: usize, sampling: &SamplingParams) {
    let request = Request {
        prompt,
        params: GenerateParams {
            max_tokens: tokens,
            sampling: sampling.clone(),
            ..GenerateParams::default()
        },
        ..Request::default()
    };
    engine.submit(request).expect("a request");
}

/// Median seconds of a step in which so many sequences decode: in the model, for the choice of tokens, and the rest.
fn decode(loaded: &Loaded, sequences: usize, tokens: usize, sampling: &SamplingParams) -> [f64; 3] {
    let mut engine = engine(loaded, Speculation::Off);
    for i in 0..sequences as u32 {
        let prompt = (0..PROMPT as u32).map(|j| 3 + (i * 31 + j * 7) % 200);
        submit(&mut engine, prompt.collect(), tokens, sampling);
    }
    engine.step(&mut |_, _| ());
    let mut before = engine.stats();
    let mut steps: [Vec<f64>; 3] = Default::default();
    while engine.step(&mut |_, _| ()) {
        let now = engine.stats();
        // As long as none has ended.
        if now.running < sequences {
            break;
        }
        let seconds = |of: fn(&Stats) -> Duration| (of(&now) - of(&before)).as_secs_f64();
        let forward = seconds(|s| s.forward_time);
        let choice = seconds(|s| s.sampling_time);
        let rest = seconds(|s| s.step_time) - forward - choice;
        for (list, seconds) in steps.iter_mut().zip([forward, choice, rest]) {
            list.push(seconds);
        }
        before = now;
    }
    steps.map(|mut list| {
        list.sort_by(f64::total_cmp);
        list.get(list.len() / 2).copied().unwrap_or(f64::NAN)
    })
}

/// Tokens a second, and what the engine did, for greedy texts after prompts that repeat a sentence.
fn repetitive(
    loaded: &Loaded,
    sequences: usize,
    tokens: usize,
    speculation: Speculation,
) -> (f64, Stats) {
    let mut engine = engine(loaded, speculation);
    for i in 0..sequences {
        let name = ["Tim", "Lily", "Ben", "Sue"][i % 4];
        let text = format!(
            "{name} saw a big red ball. The ball was {i}. {name} said, \"I like the ball.\" "
        );
        let prompt = loaded.tokenizer.encode(&text.repeat(3), true).expect("ids");
        submit(&mut engine, prompt, tokens, &SamplingParams::greedy());
    }
    engine.step(&mut |_, _| ());
    let before = engine.stats();
    while engine.step(&mut |_, _| ()) {}
    let after = engine.stats();
    let seconds = (after.step_time - before.step_time).as_secs_f64();
    ((after.tokens - before.tokens) as f64 / seconds, after)
}
