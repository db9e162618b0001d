//! What the server takes beside the engine: `cargo bench -p sparamx-server --bench streams`.
//!
//! For the model that ships and a random one of TinyLlama's shape (another shape as argument; `none` for none), by the number
//! of streams: tokens a second of the engine alone, whose events are counted where they come, and through the server over
//! loopback sockets, as server-sent events of chat. In one process, on one engine; a round is engine, server, server, engine, so that
//! a machine that gets slower or faster favours neither. Medians of the rounds, and of their ratios.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Instant;

use sparamx_cpu::{Cpu, topology};
use sparamx_engine::{
    EngineOptions, Event, GenerateParams, Host, HostOptions, Loaded, Request, SamplingParams,
    Speculation,
};
use sparamx_kernels::Runtime;
use sparamx_model::{Model, Precision, RandomSpec, shapes};
use sparamx_server::{Listen, Served, Server, ServerOptions};

const STREAMS: [usize; 3] = [1, 8, 32];
const PROMPT: &str = "Once upon a time";

fn main() {
    let shape = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let shape = shape.as_deref().unwrap_or("tinyllama-1.1b");
    let cpu = Cpu::detect().expect("a CPU");
    let runtime = Arc::new(Runtime::new(cpu, topology::default_threads()).expect("threads"));
    println!(
        "{}, {}, {} threads",
        cpu.report().brand,
        cpu.isa(),
        runtime.threads()
    );
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/stories-5m-50");
    let loaded =
        Loaded::open(&dir, Arc::clone(&runtime), None, &mut |_| ()).expect("the shipped model");
    let tokenizer = Arc::clone(&loaded.tokenizer);
    measure("stories-5m-50", loaded, 480, 11);
    if shape == "none" {
        return;
    }
    let config = shapes::config(shape).expect("a shape");
    let spec = RandomSpec {
        sparsity: 0.5,
        precision: Precision::Bf16,
        seed: 1,
    };
    let model = Model::random(&runtime, &config, spec).expect("memory");
    measure(
        shape,
        Loaded::new(runtime, Arc::new(model), tokenizer),
        48,
        5,
    );
}

fn measure(name: &str, loaded: Loaded, tokens: usize, rounds: usize) {
    // Draft tokens would be taken or not as the texts are, which differ with the prompts.
    let host = HostOptions {
        engine: EngineOptions {
            speculation: Speculation::Off,
            ..EngineOptions::default()
        },
        ..HostOptions::default()
    };
    let host = Arc::new(Host::start(loaded, host).expect("an engine"));
    let options = ServerOptions {
        listen: Listen::Tcp {
            host: "127.0.0.1".to_owned(),
            port: 0,
        },
        ..ServerOptions::default()
    };
    let server = Server::start(options.clone()).expect("a server");
    let address = server.address().expect("an address");
    server.ready(Served::new(
        Arc::clone(&host),
        vec![name.to_owned()],
        name.to_owned(),
        &options,
    ));
    println!("\n{name}: streams, tokens/s of the engine, through the server, ratio");
    for streams in STREAMS {
        let (mut alone, mut served, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=rounds {
            let alone_1 = engine(&host, streams, tokens);
            let served_both = through(address, streams, tokens) + through(address, streams, tokens);
            let alone_both = alone_1 + engine(&host, streams, tokens);
            // The first round fills the cache with the prompt.
            if round > 0 {
                alone.push(alone_both);
                served.push(served_both);
                ratios.push(alone_both / served_both);
            }
        }
        let rate = |seconds: f64| (2 * streams * tokens) as f64 / seconds;
        println!(
            "{streams:4} {:9.1} {:9.1} {:6.3}",
            rate(median(&mut alone)),
            rate(median(&mut served)),
            median(&mut ratios)
        );
    }
}

/// Seconds of the engine alone.
fn engine(host: &Host, streams: usize, tokens: usize) -> f64 {
    let prompt = host.loaded().tokenizer.encode_prompt(PROMPT).expect("ids");
    let (sender, receiver) = mpsc::channel();
    let begin = Instant::now();
    let mut cancels = Vec::new();
    for _ in 0..streams {
        let sender = sender.clone();
        let request = Request {
            prompt: prompt.clone(),
            params: GenerateParams {
                max_tokens: tokens,
                ignore_eos: true,
                sampling: SamplingParams::greedy(),
                ..GenerateParams::default()
            },
            ..Request::default()
        };
        let mut count = 0;
        let sink = move |event| match event {
            Event::Token { .. } => count += 1,
            Event::Finished { .. } => sender.send(count).expect("a receiver"),
            Event::Prompt { .. } => {}
        };
        cancels.push(
            host.submit_to(vec![(request, Box::new(sink))])
                .expect("room"),
        );
    }
    let count: usize = receiver.iter().take(streams).sum();
    let seconds = begin.elapsed().as_secs_f64();
    assert_eq!(count, streams * tokens);
    seconds
}

/// Seconds through the server.
fn through(address: SocketAddr, streams: usize, tokens: usize) -> f64 {
    let body = format!(
        r#"{{"messages":[{{"role":"user","content":"{PROMPT}"}}],"max_tokens":{tokens},"ignore_eos":true,"temperature":0,
        "stream":true,"stream_options":{{"include_usage":true}}}}"#
    );
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let begin = Instant::now();
    let clients: Vec<_> = (0..streams)
        .map(|_| {
            let request = request.clone();
            thread::spawn(move || client(address, &request))
        })
        .collect();
    let texts: Vec<String> = clients
        .into_iter()
        .map(|client| client.join().expect("an answer"))
        .collect();
    let seconds = begin.elapsed().as_secs_f64();
    let usage = format!("\"completion_tokens\":{tokens}");
    assert!(
        texts.iter().all(|text| text.contains(&usage)),
        "{}",
        texts[0]
    );
    seconds
}

/// Reads a stream to its end.
fn client(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.write_all(request.as_bytes()).expect("a request");
    let (mut text, mut buffer) = (Vec::new(), [0; 16 << 10]);
    while !text.ends_with(b"0\r\n\r\n") {
        let count = stream.read(&mut buffer).expect("an answer");
        assert!(
            count > 0,
            "the connection ended: {}",
            String::from_utf8_lossy(&text)
        );
        text.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
