//! Tokens a second of the engine alone, for those who compare a server with it:
//!
//! ```text
//! cargo run --release -p sparamx-engine --example streams -- MODEL THREADS
//! ```
//!
//! Each line of standard input is `STREAMS TOKENS PROMPT_TOKENS SEED`: so many requests start together. The answer is a line with the
//! tokens a second, prompts included. "ready" is the first line.

use std::error::Error;
use std::io::{self, BufRead, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::time::Instant;

use sparamx_cpu::Cpu;
use sparamx_engine::{
    EngineOptions, Event, GenerateParams, Host, HostOptions, Request, SamplingParams, Sink,
    Speculation,
};
use sparamx_kernels::Runtime;

/// Ids of prompts are from here up to the end of the vocabulary: no special tokens.
const FIRST_ID: u64 = 300;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, threads] = &args[..] else {
        return Err("usage: streams MODEL THREADS".into());
    };
    let runtime = Runtime::new(
        Cpu::detect_up_to(std::env::var_os(sparamx_cpu::ISA_VARIABLE).as_deref())?,
        threads.parse()?,
    )?;
    // As `serve` has it.
    let runtime = Arc::new(runtime.batch_invariant(true));
    let options = HostOptions {
        engine: EngineOptions {
            speculation: Speculation::Off,
            ..EngineOptions::default()
        },
        ..HostOptions::default()
    };
    let host = Host::open(Path::new(model), runtime, options, &mut |_| {})?;
    println!("ready");
    for line in io::stdin().lock().lines() {
        let line = line?;
        let numbers: Vec<u64> = line
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let [streams, tokens, prompt, seed] = numbers[..] else {
            return Err("a line is STREAMS TOKENS PROMPT_TOKENS SEED".into());
        };
        let rate = tokens_per_second(&host, streams, tokens, prompt, seed)?;
        println!("{rate}");
        io::stdout().flush()?;
    }
    Ok(())
}

fn tokens_per_second(
    host: &Host,
    streams: u64,
    tokens: u64,
    prompt: u64,
    seed: u64,
) -> Result<f64, Box<dyn Error>> {
    let ids = host.loaded().model.config().vocab_size as u64 - FIRST_ID;
    let (done, ended) = mpsc::channel();
    let mut state = seed;
    let mut id = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (FIRST_ID + (state >> 33) % ids) as u32
    };
    let start = Instant::now();
    let mut running = Vec::new();
    for _ in 0..streams {
        let request = Request {
            prompt: (0..prompt).map(|_| id()).collect(),
            params: GenerateParams {
                max_tokens: tokens as usize,
                sampling: SamplingParams {
                    temperature: 0.0,
                    ..SamplingParams::default()
                },
                ignore_eos: true,
                ..GenerateParams::default()
            },
            ..Request::default()
        };
        running.push(host.submit_to(vec![(request, sink(done.clone()))])?);
    }
    drop(done);
    let generated: usize = ended.iter().take(streams as usize).sum();
    if generated as u64 != streams * tokens {
        return Err(format!("{generated} tokens instead of {}", streams * tokens).into());
    }
    Ok(generated as f64 / start.elapsed().as_secs_f64())
}

fn sink(done: Sender<usize>) -> Sink {
    Box::new(move |event| {
        if let Event::Finished { usage, .. } = event {
            let _ = done.send(usage.tokens);
        }
    })
}
