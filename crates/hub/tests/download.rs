//! Downloads that work in the end, and the cache they leave.

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Cache, Watch, arrives, fails, fetch};
use sparamx_hub::{Fault, HubId};
use sparamx_testkit::hub::{COMMIT, Files, Flow, MODEL, Reply, Request, Server};

/// A hub that does everything right but for what `change` says of a request, the n-th it is asked about.
fn hub(
    files: &Files,
    change: impl Fn(&Request, Reply, usize) -> Option<Reply> + Send + Sync + 'static,
) -> Server {
    let (files, count) = (files.clone(), AtomicUsize::new(0));
    Server::start(move |request| {
        let right = files.reply(request);
        match change(request, right.clone(), count.load(Ordering::SeqCst)) {
            Some(reply) => {
                count.fetch_add(1, Ordering::SeqCst);
                reply
            }
            None => right,
        }
    })
}

fn right(files: &Files) -> Server {
    hub(files, |_, _, _| None)
}

#[test]
fn the_cache_is_that_of_other_tools() {
    let (files, cache) = (Files::new(5000), Cache::new());
    let server = right(&files);
    let settings = cache.settings(&server.endpoint);
    arrives(&files, &settings);
    assert_eq!(
        fs::read_to_string(cache.repo().join("refs/main")).expect("a reference"),
        COMMIT
    );
    let mut etags: Vec<String> = ["config.json", "tokenizer.json", "model.safetensors"]
        .map(|name| files.etag(name))
        .into();
    etags.sort();
    assert_eq!(cache.blobs(), etags);
    #[cfg(unix)]
    assert_eq!(
        fs::read_link(cache.snapshot().join("config.json"))
            .expect("a link")
            .to_str(),
        Some(format!("../../blobs/{}", files.etag("config.json")).as_str())
    );
    let lock = format!(
        ".locks/models--acme--tiny/{}.lock",
        files.etag("config.json")
    );
    assert!(cache.path().join(lock).is_file());
    assert_eq!(server.count("GET", "README.md"), 0);
    assert!(
        server
            .requests()
            .iter()
            .all(|request| request.header("accept-encoding") == "identity")
    );

    let before = server.requests().len();
    arrives(&files, &settings);
    assert_eq!(
        server.requests().len(),
        before + 1,
        "only what the revision is"
    );
    let offline = sparamx_hub::Settings {
        offline: true,
        ..settings
    };
    arrives(&files, &offline);
    assert_eq!(server.requests().len(), before + 1);
}

#[test]
fn answers_need_no_length_and_no_range() {
    let files = Files::new(5000);
    let gzip = |bytes: &[u8]| {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(bytes).expect("memory");
        packed.finish().expect("memory")
    };
    let chunks = |bytes: &[u8]| {
        let mut body = Vec::new();
        for chunk in bytes.chunks(700) {
            body.extend(format!("{:x}\r\n", chunk.len()).bytes());
            body.extend(chunk);
            body.extend(b"\r\n");
        }
        body.extend(b"0\r\n\r\n");
        body
    };
    type Change = Box<dyn Fn(Reply) -> Reply + Send + Sync>;
    let changes: [Change; 5] = [
        Box::new(move |reply| {
            let body = gzip(&reply.body);
            reply.body(body).with("content-encoding", "gzip")
        }),
        Box::new(move |reply| {
            let body = chunks(&gzip(&reply.body));
            reply
                .body(body)
                .with("content-encoding", "gzip")
                .with("transfer-encoding", "chunked")
        }),
        Box::new(move |reply| {
            let body = chunks(&reply.body);
            reply.body(body).with("transfer-encoding", "chunked")
        }),
        Box::new(|reply| reply.with("x-no-length", "1")),
        Box::new(|mut reply| {
            reply.status = 206;
            reply
        }),
    ];
    for change in changes {
        let server = hub(&files, move |request, right, _| {
            (request.method == "GET" && right.status == 200).then(|| change(right))
        });
        let cache = Cache::new();
        arrives(&files, &cache.settings(&server.endpoint));
    }
}

#[test]
fn small_files_may_be_redirected() {
    // As the hub does: to its own cache, with the entity tag on the way.
    let files = Files::new(5000);
    let server = hub(&files, |request, right, _| {
        let name = request
            .path
            .strip_prefix(&format!("/acme/tiny/resolve/{COMMIT}/"))?;
        let location = format!("/api/resolve-cache/models/acme/tiny/{COMMIT}/{name}?etag=x");
        name.ends_with(".json").then(|| {
            Reply::new(307)
                .with("location", &location)
                .with("etag", &right.headers[0].1)
        })
    });
    let cache = Cache::new();
    arrives(&files, &cache.settings(&server.endpoint));
    assert!(cache.blobs().contains(&files.etag("config.json")));
}

#[test]
fn a_commit_needs_no_reference() {
    let (files, cache) = (Files::new(500), Cache::new());
    cache.fill(&files, None);
    let name = format!("{MODEL}@{COMMIT}");
    let mut settings = cache.settings("http://127.0.0.1:9");
    assert_eq!(
        fetch(&name, &settings).expect("the cache"),
        cache.snapshot()
    );
    settings.offline = true;
    assert_eq!(
        fetch(&name, &settings).expect("the cache"),
        cache.snapshot()
    );
    fails(&settings, &[MODEL, "HF_HUB_OFFLINE"]);

    let server = right(&files);
    let settings = cache.settings(&server.endpoint);
    assert_eq!(fetch(&name, &settings).expect("the hub"), cache.snapshot());
    assert_eq!(server.count("HEAD", ""), 0);
    assert!(
        !cache.repo().join("refs").join(COMMIT).exists(),
        "as huggingface_hub does"
    );
}

#[test]
fn a_reference_may_end_with_a_line_feed() {
    let (files, cache) = (Files::new(500), Cache::new());
    cache.fill(&files, Some(&format!("{COMMIT}\n")));
    let mut settings = cache.settings("http://127.0.0.1:9");
    settings.offline = true;
    arrives(&files, &settings);
}

#[test]
fn a_snapshot_without_all_of_its_weights_is_not_complete() {
    let (files, cache) = (Files::new(500), Cache::new());
    cache.fill(&files, Some(COMMIT));
    fs::remove_file(cache.snapshot().join("model.safetensors")).expect("a link");
    let mut settings = cache.settings("http://127.0.0.1:9");
    settings.offline = true;
    fails(&settings, &["not complete"]);
    settings.offline = false;
    let server = right(&files);
    settings.endpoint.clone_from(&server.endpoint);
    arrives(&files, &settings);
    assert_eq!(server.count("GET", "signed=1"), 0, "the blob was there");
}

#[test]
fn what_fails_once_is_asked_again() {
    let files = Files::new(5000);
    let table = [
        ("GET", "/revision/main"),
        ("HEAD", "/tokenizer.json"),
        ("GET", "/config.json"),
        ("GET", "?signed=1"),
    ];
    for (method, end) in table {
        for status in [408, 429, 500, 502, 503, 504] {
            let server = hub(&files, move |request, _, n| {
                (n < 2 && request.is(method, end)).then(|| Reply::new(status))
            });
            let cache = Cache::new();
            arrives(&files, &cache.settings(&server.endpoint));
            assert_eq!(server.count(method, end), 3, "{method} {end} {status}");
        }
    }
}

#[test]
fn the_hub_says_how_long_to_wait() {
    let files = Files::new(500);
    let busy = |name: &'static str, value: &'static str| {
        hub(&files, move |request, _, n| {
            (n < 1 && request.is("GET", "/main")).then(|| Reply::new(429).with(name, value))
        })
    };
    for (name, value) in [("retry-after", "1"), ("ratelimit", "\"api\";r=0;t=1")] {
        let start = Instant::now();
        let server = busy(name, value);
        arrives(&files, &Cache::new().settings(&server.endpoint));
        assert!(start.elapsed() >= Duration::from_secs(1), "{name}");
    }

    // Too long to wait without a word.
    let server = busy("retry-after", "900");
    let settings = Cache::new().settings(&server.endpoint);
    fails(&settings, &["429", "900 seconds"]);
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn what_fails_always_is_said() {
    let files = Files::new(500);
    for (status, word) in [
        (401, "set HF_TOKEN"),
        (403, "gated"),
        (404, "check the name"),
        (429, "wait"),
        (503, "try again later"),
    ] {
        let server = hub(&files, move |_, _, _| Some(Reply::new(status)));
        fails(
            &Cache::new().settings(&server.endpoint),
            &[MODEL, &status.to_string(), word, &server.endpoint],
        );
        let tries = if matches!(status, 429 | 503) { 5 } else { 1 };
        assert_eq!(server.requests().len(), tries, "{status}");
        // What is in the cache is as good as ever.
        let cache = Cache::new();
        cache.fill(&files, Some(COMMIT));
        arrives(&files, &cache.settings(&server.endpoint));
    }
}

#[test]
fn a_silent_hub_is_given_up() {
    let files = Files::new(500);
    for end in ["/main", "/config.json"] {
        let server = hub(&files, move |request, right, _| {
            request.path.ends_with(end).then(|| {
                thread::sleep(Duration::from_secs(30));
                right
            })
        });
        let cache = Cache::new();
        let mut settings = cache.settings(&server.endpoint);
        settings.answer_limit = Duration::from_millis(200);
        let start = Instant::now();
        fails(&settings, &["no answer within"]);
        assert!(start.elapsed() < Duration::from_secs(10));
        if end == "/main" {
            cache.fill(&files, Some(COMMIT));
            arrives(&files, &settings);
        }
    }
}

#[test]
fn a_stalled_transfer_goes_on_where_it_stopped() {
    let files = Files::new(5000);
    for flow in [
        Flow::Stall(3000),
        Flow::Cut(3000),
        Flow::Drip(3000, Duration::from_millis(20)),
    ] {
        let server = hub(&files, move |request, right, n| {
            (n < 1 && request.is("GET", "?signed=1")).then(|| right.flow(flow))
        });
        let cache = Cache::new();
        let start = Instant::now();
        arrives(&files, &cache.settings(&server.endpoint));
        assert!(start.elapsed() < Duration::from_secs(10), "{flow:?}");
        let firsts: Vec<usize> = server
            .requests()
            .iter()
            .filter(|request| request.is("GET", "?signed=1"))
            .map(Request::first)
            .collect();
        assert!(
            firsts.len() == 2 && firsts[0] == 0 && (3000..5000).contains(&firsts[1]),
            "{firsts:?}"
        );
    }
}

#[test]
fn a_transfer_that_always_breaks_ends_and_is_taken_up_by_the_next() {
    let files = Files::new(50_000);
    let broken = hub(&files, |request, right, _| {
        request
            .is("GET", "?signed=1")
            .then(|| right.flow(Flow::Cut(1000)))
    });
    let cache = Cache::new();
    fails(
        &cache.settings(&broken.endpoint),
        &["model.safetensors", "broke off", "run the command again"],
    );
    assert_eq!(broken.count("GET", "?signed=1"), 5);
    let silent = hub(&files, |request, right, _| {
        (request.is("GET", "?signed=1")).then(|| right.flow(Flow::Stall(0)))
    });
    let mut settings = cache.settings(&silent.endpoint);
    settings.transfer_limit = Duration::from_millis(300);
    fails(
        &settings,
        &["model.safetensors", "broke off: it stood still"],
    );
    let part = format!("{}.incomplete", files.etag("model.safetensors"));
    assert!(cache.blobs().contains(&part));
    assert!(!cache.snapshot().join("model.safetensors").exists());
    assert!(
        !cache.repo().join("refs/main").exists(),
        "named before it is complete"
    );

    let server = right(&files);
    arrives(&files, &cache.settings(&server.endpoint));
    let resumed = server
        .requests()
        .into_iter()
        .find(|request| request.is("GET", "?signed=1"));
    assert_eq!(resumed.expect("a request").first(), 5000);
    assert!(!cache.blobs().contains(&part));
}

#[test]
fn a_part_that_does_not_fit_is_dropped() {
    let files = Files::new(5000);
    type Change = fn(&Request, Reply) -> Option<Reply>;
    let table: [(&str, Vec<u8>, Change); 6] = [
        ("other bytes", vec![7; 3000], |_, _| None),
        ("too many bytes", vec![7; 6000], |_, _| None),
        ("all bytes, but others", vec![7; 5000], |_, _| None),
        (
            "no ranges",
            files.bytes("model.safetensors").expect("a file")[..3000].to_vec(),
            |_, right| {
                let whole = Files::new(5000).bytes("model.safetensors")?.to_vec();
                Some(Reply {
                    status: 200,
                    ..right.without("content-range").body(whole)
                })
            },
        ),
        ("a refused range", vec![7; 3000], |request, _| {
            (request.first() > 0).then(|| Reply::new(416))
        }),
        ("another range", vec![7; 3000], |request, right| {
            (request.first() > 0).then(|| right.with("content-range", "bytes 0-4999/5000"))
        }),
    ];
    for (what, part, change) in table {
        let server = hub(&files, move |request, right, _| {
            if request.is("GET", "?signed=1") {
                change(request, right)
            } else {
                None
            }
        });
        let cache = Cache::new();
        fs::create_dir_all(cache.repo().join("blobs")).expect("a directory");
        let name = format!("blobs/{}.incomplete", files.etag("model.safetensors"));
        fs::write(cache.repo().join(name), part).expect("a part");
        println!("{what}");
        arrives(&files, &cache.settings(&server.endpoint));
    }
}

#[test]
fn a_whole_part_needs_no_transfer() {
    let (files, cache) = (Files::new(5000), Cache::new());
    fs::create_dir_all(cache.repo().join("blobs")).expect("a directory");
    let name = format!("blobs/{}.incomplete", files.etag("model.safetensors"));
    fs::write(
        cache.repo().join(name),
        files.bytes("model.safetensors").expect("a file"),
    )
    .expect("a part");
    let server = right(&files);
    arrives(&files, &cache.settings(&server.endpoint));
    assert_eq!(server.count("GET", "?signed=1"), 0);
}

#[test]
fn bytes_that_are_not_those_of_the_file_are_refused() {
    let files = Files::new(5000);
    let server = hub(&files, |request, mut right, _| {
        request.is("GET", "?signed=1").then(|| {
            right.body[1234] ^= 1;
            right
        })
    });
    let cache = Cache::new();
    fails(
        &cache.settings(&server.endpoint),
        &["model.safetensors", "SHA-256", "was removed"],
    );
    assert!(
        cache
            .blobs()
            .iter()
            .all(|name| !name.starts_with(&files.etag("model.safetensors")))
    );

    let longer = hub(&files, |request, mut right, _| {
        request.is("GET", "?signed=1").then(|| {
            right.body.push(1);
            right.with("x-no-length", "1")
        })
    });
    fails(
        &Cache::new().settings(&longer.endpoint),
        &["more bytes", "was removed"],
    );
}

#[test]
fn two_downloads_wait_for_each_other() {
    let (files, cache) = (Files::new(5000), Cache::new());
    let server = right(&files);
    let locks = cache.path().join(".locks/models--acme--tiny");
    fs::create_dir_all(&locks).expect("a directory");
    let lock = File::create(locks.join(format!("{}.lock", files.etag("model.safetensors"))))
        .expect("a lock file");
    lock.lock().expect("a lock");

    let settings = cache.settings(&server.endpoint);
    let watch = Watch::default();
    let notices = Arc::clone(&watch.notices);
    let waiting = thread::spawn(move || {
        let mut watch = watch;
        sparamx_hub::fetch(&HubId::parse(MODEL).expect("a name"), &settings, &mut watch).map(|_| ())
    });
    let start = Instant::now();
    while notices.lock().expect("no panic").is_empty() {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "it does not wait"
        );
        thread::sleep(Duration::from_millis(10));
    }
    assert!(
        notices.lock().expect("no panic")[0]
            .contains("another process is downloading model.safetensors")
    );
    assert_eq!(server.count("GET", "?signed=1"), 0);
    lock.unlock().expect("locked");
    waiting.join().expect("no panic").expect("a download");
    assert_eq!(server.count("GET", "?signed=1"), 1);
}

#[test]
fn an_interrupted_download_leaves_its_part() {
    let files = Files::new(5000);
    let server = hub(&files, |request, right, _| {
        request
            .is("GET", "?signed=1")
            .then(|| right.flow(Flow::Stall(3000)))
    });
    let cache = Cache::new();
    let mut settings = cache.settings(&server.endpoint);
    settings.transfer_limit = Duration::from_secs(60);
    let mut watch = Watch {
        stop_at: Some(3000),
        ..Watch::default()
    };
    let start = Instant::now();
    let result = sparamx_hub::fetch(&HubId::parse(MODEL).expect("a name"), &settings, &mut watch);
    assert!(matches!(
        result.expect_err("no end").fault,
        Fault::Interrupted
    ));
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(
        cache
            .blobs()
            .contains(&format!("{}.incomplete", files.etag("model.safetensors")))
    );
}

#[test]
fn the_hub_may_lie_under_a_path() {
    let (files, cache) = (Files::new(500), Cache::new());
    let server = right(&files);
    arrives(
        &files,
        &cache.settings(&format!("{}/mirror/hf/", server.endpoint)),
    );
    assert_eq!(
        server.count("GET", "/mirror/hf/api/models/acme/tiny/revision/main"),
        1
    );
    fails(&cache.settings("hub.example"), &["HF_ENDPOINT", "https://"]);
}

#[test]
fn revisions_and_shards_are_encoded() {
    let mut files = Files::new(500);
    let weights = files.0.pop().expect("weights").1;
    let index = r#"{"weight_map": {"a": "part 1#?.safetensors"}}"#;
    files
        .0
        .push(("model.safetensors.index.json".to_owned(), index.into()));
    files
        .0
        .push(("part 1#.safetensors".to_owned(), weights.clone()));
    // A name with a question mark cannot be on all systems.
    let server = right(&files);
    let cache = Cache::new();
    fails(&cache.settings(&server.endpoint), &["weight_map"]);

    let index = r#"{"weight_map": {"a": "part 1#.safetensors"}}"#;
    files.0[3].1 = index.into();
    let cache = Cache::new();
    let decoded = files.clone();
    let server = Server::start(move |request| {
        let path = request.path.replace("%20", " ").replace("%23", "#");
        decoded.reply(&Request {
            path,
            ..request.clone()
        })
    });
    let directory =
        fetch("acme/tiny@refs/pr/1", &cache.settings(&server.endpoint)).expect("a download");
    assert_eq!(
        fs::read(directory.join("part 1#.safetensors")).expect("a file"),
        weights
    );
    assert_eq!(server.count("GET", "/revision/refs%2Fpr%2F1"), 1);
    assert_eq!(
        fs::read_to_string(cache.repo().join("refs/refs/pr/1")).expect("a reference"),
        COMMIT
    );
}

#[cfg(unix)]
#[test]
fn a_read_only_cache_that_is_complete_serves() {
    use std::os::unix::fs::PermissionsExt;
    let (files, cache) = (Files::new(500), Cache::new());
    cache.fill(&files, Some("ffffffffffffffffffffffffffffffffffffffff"));
    let folders = ["", "blobs", "refs", "snapshots"].map(|name| cache.repo().join(name));
    let set = |mode| {
        for folder in folders.iter().chain([&cache.path()]) {
            fs::set_permissions(folder, fs::Permissions::from_mode(mode)).expect("our directory");
        }
    };
    set(0o555);
    let server = right(&files);
    arrives(&files, &cache.settings(&server.endpoint));
    assert_eq!(server.count("HEAD", ""), 0);
    set(0o755);
}
