//! A hub, a mirror or somebody in between that means harm: nothing outside the cache is touched, and the token goes to the hub alone.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Mutex;

use common::{Cache, arrives, fails};
use sparamx_testkit::hub::{COMMIT, Files, MODEL, Reply, Request, Server};

/// Names that would lead out of the directory they are put into, or are none.
fn evil_names(cache: &Cache) -> Vec<String> {
    let outside = cache.outside().join("new").display().to_string();
    let mut names: Vec<String> = [
        "..",
        "../..",
        "../../../outside/new",
        "../../../outside/file",
        "/",
        "/tmp/../tmp/sparamx-hostile",
        "a/../../../../outside/new",
        "..\\..\\outside",
        "C:new",
        ".",
        ".hidden",
        "a b",
        "%2e%2e%2f",
        "a\u{e9}",
    ]
    .map(str::to_owned)
    .into();
    names.extend([outside, "x".repeat(129), "x".repeat(4000)]);
    names
}

/// A hub with one thing wrong.
fn hub(files: &Files, change: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) -> Server {
    let files = files.clone();
    Server::start(move |request| change(request, files.reply(request)))
}

#[test]
fn entity_tags_name_no_files_elsewhere() {
    let files = Files::new(500);
    for header in ["etag", "x-linked-etag"] {
        let cache = Cache::new();
        for name in evil_names(&cache) {
            if header == "x-linked-etag" && !name.is_ascii() {
                continue; // No header: the other one is good.
            }
            for quoted in [format!("\"{name}\""), format!("W/\"{name}\""), name.clone()] {
                let tag = quoted.clone();
                let server = hub(&files, move |_, right| {
                    right.without("x-linked-etag").with(header, &tag)
                });
                let message = fails(&cache.settings(&server.endpoint), &["config.json", "ETag"]);
                assert!(message.len() < 400 && !message.contains('\n'), "{message}");
                assert!(cache.blobs().is_empty(), "{quoted}");
                cache.is_contained();
            }
        }
    }
    // Neither a name for a part of another file, nor none at all.
    for tag in ["\"a.incomplete\"", "\"\"", ""] {
        let cache = Cache::new();
        let server = hub(&files, move |_, right| right.with("etag", tag));
        fails(&cache.settings(&server.endpoint), &["ETag"]);
        cache.is_contained();
    }
    let cache = Cache::new();
    let server = hub(&files, |_, right| {
        right.without("etag").without("x-linked-etag")
    });
    fails(&cache.settings(&server.endpoint), &["ETag"]);
}

#[test]
fn commits_name_no_directories_elsewhere() {
    let files = Files::new(500);
    let cache = Cache::new();
    for name in evil_names(&cache) {
        let evil = name.clone();
        let server = hub(&files, move |_, right| right.with("x-repo-commit", &evil));
        let cache = Cache::new();
        // What this header says is not used at all.
        arrives(&files, &cache.settings(&server.endpoint));
        cache.is_contained();

        let cache = Cache::new();
        let mut info = files.info();
        info["sha"] = name.as_str().into();
        let info = info.to_string();
        let server = hub(&files, move |request, right| {
            match request.path.contains("/api/") {
                true => Reply::new(200).body(info.clone()),
                false => right,
            }
        });
        fails(&cache.settings(&server.endpoint), &["is no commit"]);
        assert!(!cache.path().exists(), "{name}");
        cache.is_contained();
    }
}

#[test]
fn a_description_is_taken_for_what_it_is() {
    let files = Files::new(500);
    let table = [
        "",
        "nonsense",
        "[]",
        "{}",
        "null",
        r#"{"sha": 1, "siblings": []}"#,
        r#"{"sha": "abc"}"#,
        r#"{"sha": "abc", "siblings": {}}"#,
    ];
    for text in table {
        let server = hub(&files, move |_, _| Reply::new(200).body(text));
        fails(
            &Cache::new().settings(&server.endpoint),
            &["does not describe a model"],
        );
    }
    let text = r#"{"sha": "abc", "siblings": [1, {}, {"rfilename": 1}, null]}"#;
    let server = hub(&files, move |_, _| Reply::new(200).body(text));
    fails(
        &Cache::new().settings(&server.endpoint),
        &["no config.json"],
    );
    let deep = "[".repeat(200_000);
    let server = hub(&files, move |_, _| Reply::new(200).body(deep.clone()));
    fails(
        &Cache::new().settings(&server.endpoint),
        &["does not describe a model"],
    );
    let server = hub(&files, |_, _| Reply::new(200).body(vec![b' '; 65 << 20]));
    fails(&Cache::new().settings(&server.endpoint), &["more than"]);
}

#[test]
fn names_of_files_stay_in_the_snapshot() {
    let files = Files::new(500);
    let cache = Cache::new();
    // Files of the repository that are not asked for have no say.
    let mut info = files.info();
    for name in evil_names(&cache) {
        let siblings = info["siblings"].as_array_mut().expect("a list");
        siblings.push(serde_json::json!({ "rfilename": name }));
        siblings.push(serde_json::json!({ "rfilename": format!("{name}/config.json") }));
    }
    let text = info.to_string();
    let server = hub(&files, move |request, right| {
        match request.path.contains("/api/") {
            true => Reply::new(200).body(text.clone()),
            false => right,
        }
    });
    arrives(&files, &cache.settings(&server.endpoint));
    assert!(
        server
            .requests()
            .iter()
            .all(|request| !request.path.contains("outside"))
    );
    cache.is_contained();

    // Those that an index names are.
    for name in evil_names(&cache) {
        let shard = format!("{name}.safetensors");
        if ["a b", "%2e%2e%2f", "a\u{e9}", "..\\..\\outside"].contains(&name.as_str())
            || name.len() == 129
        {
            continue;
        }
        let mut files = files.clone();
        let index = serde_json::json!({ "weight_map": { "a": shard } }).to_string();
        files.0.push((
            "model.safetensors.index.json".to_owned(),
            index.into_bytes(),
        ));
        let server = hub(&files, |_, right| right);
        let cache = Cache::new();
        let message = fails(&cache.settings(&server.endpoint), &["weight_map names"]);
        assert!(message.len() < 500, "{message}");
        cache.is_contained();
    }
}

#[test]
fn ranges_and_lengths_are_not_believed() {
    let files = Files::new(500);
    for range in [
        "bytes 7-499/500",
        "bytes 18446744073709551615-0/1",
        "bytes -1-0/0",
        "bytes x-y/z",
        "nonsense",
        "",
    ] {
        let server = hub(&files, move |request, mut right| {
            if request.is("GET", "?signed=1") {
                right.status = 206;
                right = right.with("content-range", range);
            }
            right
        });
        let cache = Cache::new();
        match common::fetch(MODEL, &cache.settings(&server.endpoint)) {
            Ok(directory) => {
                let bytes = fs::read(directory.join("model.safetensors")).expect("a file");
                assert_eq!(
                    &bytes,
                    files.bytes("model.safetensors").expect("a file"),
                    "{range}"
                );
            }
            Err(error) => assert!(
                error.to_string().contains("answer that cannot be used"),
                "{error}"
            ),
        }
        cache.is_contained();
    }
    for size in ["501", "1", "18446744073709551615"] {
        let server = hub(&files, move |request, right| {
            match request.path.ends_with("/model.safetensors") {
                true => right.with("x-linked-size", size),
                false => right,
            }
        });
        fails(
            &Cache::new().settings(&server.endpoint),
            &["model.safetensors has", "and 500 when it is sent"],
        );
    }
    // The beginning that an earlier run left of a file that has no SHA-256 may be anything.
    let cache = Cache::new();
    fs::create_dir_all(cache.repo().join("blobs")).expect("a directory");
    let part = format!("blobs/{}.incomplete", files.etag("tokenizer.json"));
    fs::write(cache.repo().join(part), [0; 1000]).expect("a part");
    let server = hub(&files, |_, right| right);
    arrives(&files, &cache.settings(&server.endpoint));
    let server = hub(&files, |_, right| right.with("content-encoding", "br"));
    fails(
        &Cache::new().settings(&server.endpoint),
        &["Content-Encoding \"br\""],
    );
}

#[test]
fn redirections_end() {
    let files = Files::new(500);
    for location in [
        "file:///etc/passwd",
        "gopher://x",
        "http://",
        "//",
        "https://a b",
        "\u{1}",
    ] {
        let server = hub(&files, move |_, _| {
            Reply::new(302).with("location", location)
        });
        fails(&Cache::new().settings(&server.endpoint), &["acme/tiny"]);
    }
    let server = hub(&files, |request, _| {
        Reply::new(302).with("location", &request.path)
    });
    fails(
        &Cache::new().settings(&server.endpoint),
        &["redirects again and again"],
    );
    assert!(server.requests().len() < 20);
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let files = Files::new(500);
    let cdn = hub(&files, |request, right| {
        match request.path.starts_with("/back/") {
            true => Reply::new(302).with("location", &request.path["/back/".len()..]),
            false => right,
        }
    });
    let elsewhere = [
        format!("{}/cdn/model.safetensors?signed=1", cdn.endpoint),
        format!(
            "{}/cdn/model.safetensors?signed=1",
            cdn.endpoint.replace("127.0.0.1", "localhost")
        ),
    ];
    for location in elsewhere {
        let server = hub(&files, move |request, right| {
            match request.path.ends_with("/model.safetensors") {
                true => right.with("location", &location),
                false => right,
            }
        });
        let cache = Cache::new();
        let mut settings = cache.settings(&server.endpoint);
        settings.token = Some("hf_secret".to_owned());
        arrives(&files, &settings);
        for request in server.requests() {
            assert_eq!(
                request.header("authorization"),
                "Bearer hf_secret",
                "{}",
                request.path
            );
        }
    }
    assert_eq!(cdn.count("GET", "?signed=1"), 2);
    assert!(
        cdn.requests()
            .iter()
            .all(|request| !request.headers.contains_key("authorization"))
    );

    // Whoever was sent elsewhere and back is not known any more: it was not the hub that asked.
    let to = cdn.endpoint.clone();
    let hub_address: std::sync::Arc<Mutex<String>> = std::sync::Arc::default();
    let known = std::sync::Arc::clone(&hub_address);
    let server = hub(&files, move |request, right| {
        match request.path.ends_with("/revision/main") {
            true => {
                let back = known.lock().expect("no panic");
                Reply::new(307).with(
                    "location",
                    &format!("{to}/back/{back}/api/models/acme/tiny/revision/{COMMIT}"),
                )
            }
            false => right,
        }
    });
    hub_address
        .lock()
        .expect("no panic")
        .clone_from(&server.endpoint);
    let mut settings = Cache::new().settings(&server.endpoint);
    settings.token = Some("hf_secret".to_owned());
    let cache = Cache::new();
    settings.cache = cache.path();
    arrives(&files, &settings);
    let seen = server.requests();
    let back = seen
        .iter()
        .find(|request| request.path.ends_with(&format!("revision/{COMMIT}")));
    assert!(
        !back
            .expect("a request")
            .headers
            .contains_key("authorization")
    );
}

#[test]
fn a_redirection_within_the_hub_keeps_the_token() {
    let files = Files::new(500);
    let server = hub(&files, |request, right| {
        if request.header("authorization") != "Bearer hf_secret" {
            return Reply::new(401);
        }
        match request.path.strip_prefix("/api/models/acme/tiny") {
            Some(rest) => {
                Reply::new(307).with("location", &format!("/moved/api/models/acme/tiny{rest}"))
            }
            None => right,
        }
    });
    let cache = Cache::new();
    let mut settings = cache.settings(&server.endpoint);
    fails(&settings, &["401", "set HF_TOKEN"]);
    settings.token = Some("hf_guess".to_owned());
    let message = fails(&settings, &["401", "check HF_TOKEN"]);
    assert!(!message.contains("guess"));
    settings.token = Some("hf_secret".to_owned());
    arrives(&files, &settings);
}

#[test]
fn a_token_of_two_lines_is_not_sent_and_not_shown() {
    let files = Files::new(500);
    let server = hub(&files, |_, right| right);
    for token in [
        "hf_a\nhf_b",
        "hf_a\r\nx-header: 1",
        "hf a",
        "hf_\u{e9}",
        "hf_a\0",
    ] {
        let mut settings = Cache::new().settings(&server.endpoint);
        settings.token = Some(token.to_owned());
        let message = fails(&settings, &["HF_TOKEN", "line break"]);
        assert!(
            !message.contains("hf_a") && !message.contains("x-header"),
            "{message}"
        );
    }
    assert!(server.requests().is_empty());
}

#[test]
fn a_proxy_is_gone_through_and_its_password_not_shown() {
    let proxy = Server::start(|_| Reply::new(403));
    let cache = Cache::new();
    let address = proxy.endpoint.replace("http://", "http://me:secret@");
    let mut settings = cache.settings("http://hub.invalid");
    settings.proxies = sparamx_hub::Proxies::for_all(&address);
    let message = fails(&settings, &["hub.invalid", "cannot be reached"]);
    assert!(!message.contains("secret"), "{message}");
    assert!(
        proxy
            .requests()
            .iter()
            .any(|request| request.method == "CONNECT" && request.path == "hub.invalid:80")
    );
    settings.proxies = sparamx_hub::Proxies::for_all("::secret::");
    let message = fails(&settings, &["ALL_PROXY"]);
    assert!(!message.contains("secret"), "{message}");
}

#[test]
fn a_reference_leads_nowhere_else() {
    let files = Files::new(500);
    for text in ["../../../outside", "/etc", "..", "", "a/b", "\0"] {
        let cache = Cache::new();
        cache.fill(&files, Some(text));
        let mut settings = cache.settings("http://127.0.0.1:9");
        settings.offline = true;
        fails(&settings, &["not complete"]);
        settings.offline = false;
        fails(&settings, &["cannot be reached"]);
    }
}

#[cfg(unix)]
mod links {
    use super::*;
    use std::os::unix::fs::symlink;

    fn make(link: &Path, target: &Path) {
        fs::create_dir_all(link.parent().expect("a parent")).expect("a directory");
        symlink(target, link).expect("a link");
    }

    #[test]
    fn no_directory_of_the_cache_leads_out_of_it() {
        let files = Files::new(500);
        let server = hub(&files, |_, right| right);
        for link in [
            "models--acme--tiny",
            "models--acme--tiny/blobs",
            "models--acme--tiny/snapshots",
            &format!("models--acme--tiny/snapshots/{COMMIT}"),
            "models--acme--tiny/refs",
            ".locks",
            ".locks/models--acme--tiny",
        ] {
            for target in ["../outside", "missing"] {
                let cache = Cache::new();
                let target = if target == "missing" {
                    Path::new(target).to_owned()
                } else {
                    cache.outside()
                };
                make(&cache.path().join(link), &target);
                fails(
                    &cache.settings(&server.endpoint),
                    &["acme/tiny", "cannot be written"],
                );
                cache.is_contained();
            }
        }
    }

    #[test]
    fn files_of_the_cache_are_not_written_through() {
        let files = Files::new(500);
        let server = hub(&files, |_, right| right);
        let etag = files.etag("model.safetensors");
        for link in [
            format!("models--acme--tiny/blobs/{etag}"),
            format!("models--acme--tiny/blobs/{etag}.incomplete"),
            format!("models--acme--tiny/snapshots/{COMMIT}/model.safetensors"),
            format!("models--acme--tiny/snapshots/{COMMIT}/config.json"),
            "models--acme--tiny/refs/main".to_owned(),
            format!(".locks/models--acme--tiny/{etag}.lock"),
        ] {
            for target in ["file", "new"] {
                let cache = Cache::new();
                make(&cache.path().join(&link), &cache.outside().join(target));
                arrives(&files, &cache.settings(&server.endpoint));
                cache.is_contained();
                let real = cache
                    .snapshot()
                    .join("model.safetensors")
                    .canonicalize()
                    .expect("a file");
                assert!(
                    real.starts_with(cache.path().canonicalize().expect("a cache")),
                    "{link}"
                );
            }
        }
    }

    #[test]
    fn a_cache_on_another_disk_is_read_and_written() {
        let (files, cache) = (Files::new(500), Cache::new());
        let disk = tempfile::tempdir().expect("a directory");
        symlink(disk.path(), cache.path()).expect("a link");
        let server = hub(&files, |_, right| right);
        arrives(&files, &cache.settings(&server.endpoint));

        // A model that was moved to another disk is read from there.
        let cache = Cache::new();
        fs::create_dir(cache.path()).expect("a directory");
        symlink(disk.path().join("models--acme--tiny"), cache.repo()).expect("a link");
        arrives(&files, &cache.settings(&server.endpoint));
        arrives(&files, &cache.settings("http://127.0.0.1:9"));
    }
}
