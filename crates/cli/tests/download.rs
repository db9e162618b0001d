//! Models from a hub: a local server plays the hub, and the cache is a directory of the test.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{fails, output, run, sparamx};
use sparamx_testkit::hub::{COMMIT, Files, Flow, MODEL, Reply, Server};
use tempfile::TempDir;

/// A model that `inspect` can read, as the files of a repository.
fn files() -> Files {
    let directory = common::model::directory();
    let mut files: Vec<(String, Vec<u8>)> = fs::read_dir(&directory)
        .expect("the model of the tests")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_file())
        .map(|path| (name_of(&path), fs::read(&path).expect("a file")))
        .collect();
    // What a download has no use for.
    for name in [
        "README.md",
        "pytorch_model.bin",
        "original/consolidated.safetensors",
        "consolidated.safetensors",
    ] {
        files.push((name.to_owned(), b"large".to_vec()));
    }
    Files(files)
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .expect("a name")
        .to_str()
        .expect("UTF-8")
        .to_owned()
}

/// A hub that does everything right.
fn hub(files: Files) -> Server {
    Server::start(move |request| files.reply(request))
}

/// `inspect --json` of a model of the hub, with this cache and these further variables.
fn inspect(hub: &Server, cache: &TempDir, model: &str, variables: &[(&str, &str)]) -> Output {
    let mut command = sparamx();
    command
        .env("HF_ENDPOINT", &hub.endpoint)
        .env("HF_HOME", cache.path());
    command.envs(variables.iter().copied());
    output(command.args(["inspect", "--json", model]))
}

fn snapshot(cache: &TempDir) -> PathBuf {
    cache
        .path()
        .join("hub/models--acme--tiny/snapshots")
        .join(COMMIT)
}

#[test]
fn a_model_is_downloaded_once_and_then_read_from_the_cache() {
    let hub = hub(files());
    let cache = TempDir::new().expect("a directory");
    let first = common::json(&inspect(&hub, &cache, MODEL, &[]));
    let downloaded = files();
    for (name, bytes) in &downloaded.0 {
        let path = snapshot(&cache).join(name);
        let wanted = name.ends_with(".json") || name == "model.safetensors";
        assert_eq!(path.exists(), wanted, "{name}");
        if wanted {
            assert_eq!(&fs::read(path).expect("a file"), bytes, "{name}");
        }
    }
    let reference = cache.path().join("hub/models--acme--tiny/refs/main");
    assert_eq!(fs::read_to_string(reference).expect("a reference"), COMMIT);
    assert_eq!(
        (
            hub.count("GET", "/consolidated.safetensors"),
            hub.count("GET", ".bin")
        ),
        (0, 0)
    );

    assert_eq!(hub.count("GET", "?signed=1"), 1);
    assert_eq!(common::json(&inspect(&hub, &cache, MODEL, &[])), first);
    assert_eq!(hub.count("GET", "?signed=1"), 1, "downloaded twice");

    let requests = hub.requests().len();
    let offline = inspect(&hub, &cache, MODEL, &[("HF_HUB_OFFLINE", "1")]);
    assert_eq!(common::json(&offline), first);
    assert_eq!(hub.requests().len(), requests, "asked though offline");
}

#[test]
fn the_cache_serves_when_the_hub_is_out_of_reach() {
    let hub = hub(files());
    let cache = TempDir::new().expect("a directory");
    let first = common::json(&inspect(&hub, &cache, MODEL, &[]));
    let away = inspect(
        &hub,
        &cache,
        MODEL,
        &[("HF_ENDPOINT", "http://127.0.0.1:9")],
    );
    assert!(String::from_utf8_lossy(&away.stderr).starts_with("warning: "));
    assert_eq!(common::json(&away), first);
}

#[test]
fn a_named_revision_is_asked_for() {
    let files = files();
    let hub = Server::start(move |request| match request.path.contains("/main") {
        true => Reply::new(404),
        false => files.reply(request),
    });
    let cache = TempDir::new().expect("a directory");
    common::json(&inspect(&hub, &cache, "acme/tiny@v2", &[]));
    let main = inspect(&hub, &cache, MODEL, &[]);
    fails(&main, 1, &["acme/tiny", "404", "revision"]);
}

#[test]
fn hf_hub_cache_says_where_to_keep_models() {
    let hub = hub(files());
    let (home, cache) = (
        TempDir::new().expect("a directory"),
        TempDir::new().expect("a directory"),
    );
    let path = cache.path().to_str().expect("UTF-8");
    common::json(&inspect(&hub, &home, MODEL, &[("HF_HUB_CACHE", path)]));
    assert!(cache.path().join("models--acme--tiny/refs/main").exists());
    assert!(!home.path().join("hub").exists());
}

#[test]
fn shards_are_downloaded_as_the_index_lists_them() {
    let mut files = files();
    let weights = files
        .0
        .iter()
        .position(|(name, _)| name == "model.safetensors")
        .expect("weights");
    "model-00001-of-00001.safetensors".clone_into(&mut files.0[weights].0);
    let index = common::model::index("model-00001-of-00001.safetensors");
    files.0.push((
        "model.safetensors.index.json".to_owned(),
        index.into_bytes(),
    ));
    let whole = hub(files.clone());
    let cache = TempDir::new().expect("a directory");
    common::json(&inspect(&whole, &cache, MODEL, &[]));
    assert!(
        snapshot(&cache)
            .join("model-00001-of-00001.safetensors")
            .exists()
    );

    files.0.remove(weights);
    let cache = TempDir::new().expect("a directory");
    let output = inspect(&hub(files), &cache, MODEL, &[]);
    fails(&output, 1, &["model-00001-of-00001.safetensors", "404"]);
}

#[test]
fn a_gated_model_needs_a_token() {
    let files = files();
    let hub =
        Server::start(
            move |request| match request.header("authorization") == "Bearer secret" {
                true => files.reply(request),
                false => Reply::new(401).body("{\"error\": \"gated\"}"),
            },
        );
    let cache = TempDir::new().expect("a directory");
    let none = inspect(&hub, &cache, MODEL, &[]);
    fails(
        &none,
        1,
        &["acme/tiny", "401", "set HF_TOKEN", &hub.endpoint],
    );
    let wrong = inspect(&hub, &cache, MODEL, &[("HF_TOKEN", "guess")]);
    let line = fails(&wrong, 1, &["401", "check HF_TOKEN"]);
    assert!(!line.contains("guess"), "{line}");
    common::json(&inspect(&hub, &cache, MODEL, &[("HF_TOKEN", "secret")]));

    let cache = TempDir::new().expect("a directory");
    fs::write(cache.path().join("token"), "secret\n").expect("a token file");
    common::json(&inspect(&hub, &cache, MODEL, &[]));
}

#[test]
fn refusals_say_what_to_do() {
    for (status, advice) in [(403, "HF_TOKEN"), (404, "check the name")] {
        let hub = Server::start(move |_| Reply::new(status));
        let cache = TempDir::new().expect("a directory");
        let output = inspect(&hub, &cache, MODEL, &[]);
        fails(&output, 1, &["acme/tiny", &status.to_string(), advice]);
    }
}

#[test]
fn values_of_the_environment_that_cannot_be_used_are_named() {
    let hub = hub(files());
    let cache = TempDir::new().expect("a directory");
    let table = [
        ("HF_HOME", "/dev/null/home", "HF_HOME"),
        ("HF_TOKEN", "hf_one\nhf_two", "line break"),
        ("HF_ENDPOINT", "hub.example", "https://"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "soon", "seconds"),
        ("REQUESTS_CA_BUNDLE", "/nonexistent.pem", "/nonexistent.pem"),
        ("SSL_CERT_FILE", "/nonexistent.pem", "/nonexistent.pem"),
    ];
    for (name, value, word) in table {
        let output = inspect(&hub, &cache, MODEL, &[(name, value)]);
        let line = fails(&output, 1, &[name, word]);
        assert!(!line.contains("hf_one"), "{line}");
    }
}

#[test]
fn a_broken_transfer_goes_on_where_it_stopped() {
    let (files, broken) = (files(), AtomicBool::new(false));
    let hub = Server::start(move |request| {
        let reply = files.reply(request);
        let sends = request.method == "GET" && request.path.contains("/cdn/");
        let first = sends && !broken.swap(true, Ordering::SeqCst);
        if first {
            reply.flow(Flow::Cut(1000))
        } else {
            reply
        }
    });
    let cache = TempDir::new().expect("a directory");
    common::json(&inspect(&hub, &cache, MODEL, &[]));
    let requests = hub.requests();
    let goes_on = |range: &str| range.starts_with("bytes=1000-");
    assert!(
        requests
            .iter()
            .any(|request| goes_on(request.header("range"))),
        "{requests:?}"
    );
}

#[test]
fn no_hub_no_cache() {
    let refused = run(&["inspect", MODEL]);
    fails(
        &refused,
        1,
        &[
            "acme/tiny",
            "http://127.0.0.1:9",
            "cannot be reached",
            "give a directory",
        ],
    );
    let offline = output(
        sparamx()
            .env("HF_HUB_OFFLINE", "1")
            .args(["inspect", MODEL]),
    );
    fails(&offline, 1, &["acme/tiny", "HF_HUB_OFFLINE", "unset"]);
}

#[test]
fn a_repository_without_a_model_is_refused() {
    let table = [
        ("config.json", "no config.json"),
        ("model.safetensors", "safetensors"),
    ];
    for (missing, word) in table {
        let mut files = files();
        files.0.retain(|(name, _)| name != missing);
        let cache = TempDir::new().expect("a directory");
        fails(
            &inspect(&hub(files), &cache, MODEL, &[]),
            1,
            &["acme/tiny", word],
        );
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_under_the_cache_is_one_line() {
    let hub = hub(files());
    let disk = TempDir::new().expect("a directory");
    let cache = disk.path().join("cache");
    let mut command = sparamx();
    command
        .env("HF_ENDPOINT", &hub.endpoint)
        .env("HF_HOME", &cache);
    command.args(["inspect", "--json", MODEL]);
    if let Some(mut done) = common::on_small_disk(&command, disk.path(), "60k") {
        // What has arrived stays, to go on from.
        assert_eq!(done.stdout, b"cache\n");
        done.stdout.clear();
        fails(
            &done,
            1,
            &["model.safetensors", "full", "make room", "HF_HOME"],
        );
    }
}
