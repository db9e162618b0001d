//! A hub behind a certificate that only a company knows: `certificates/ca.pem` signed it, for `localhost`, until 2120.

mod common;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use common::{Cache, arrives, fails};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use sparamx_testkit::hub::{Files, serve};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/certificates")
        .join(name)
}

/// The address of a hub that speaks TLS.
fn start(files: Files) -> String {
    let certificate = CertificateDer::from_pem_file(file("server.pem")).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(file("server.key")).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions of TLS")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("a key that fits");
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (config, files) = (Arc::clone(&config), files.clone());
            thread::spawn(move || {
                let connection = ServerConnection::new(config).expect("a server");
                let mut stream = StreamOwned::new(connection, stream);
                serve(&mut stream, &Mutex::default(), &|request| {
                    files.reply(request)
                });
                stream.conn.send_close_notify();
                let _ = stream.conn.complete_io(&mut stream.sock);
            });
        }
    });
    format!("https://localhost:{port}")
}

#[test]
fn certificates_of_a_company_are_trusted_by_name() {
    let files = Files::new(5000);
    let endpoint = start(files.clone());
    let cache = Cache::new();
    let mut settings = cache.settings(&endpoint);
    fails(
        &settings,
        &["cannot be reached", "certificate", "SSL_CERT_FILE"],
    );
    settings.certificates = vec![file("ca.pem")];
    arrives(&files, &settings);
    settings.certificates = vec![file("nothing.pem")];
    fails(&settings, &["REQUESTS_CA_BUNDLE", "nothing.pem"]);
}

/// Runs the test `child` in a process whose environment names the certificate.
#[test]
fn ssl_cert_file_and_directory_are_read() {
    let files = Files::new(5000);
    let endpoint = start(files);
    // A directory has files by the hash of the subject of a certificate, as `openssl rehash` makes them.
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::copy(file("ca.pem"), directory.path().join("HASH.0")).expect("a copy");
    for (variable, value) in [
        ("SSL_CERT_FILE", file("ca.pem")),
        ("SSL_CERT_DIR", directory.path().to_owned()),
    ] {
        let mut child = Command::new(std::env::current_exe().expect("this test"));
        child
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env("HUB_OF_THE_TEST", &endpoint);
        child
            .env_remove("SSL_CERT_FILE")
            .env_remove("SSL_CERT_DIR")
            .env(variable, value);
        let output = child.output().expect("it starts");
        assert!(
            output.status.success(),
            "{variable}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
#[ignore = "run by another test in a process of its own"]
fn child() {
    let endpoint = std::env::var("HUB_OF_THE_TEST").expect("an address");
    arrives(&Files::new(5000), &Cache::new().settings(&endpoint));
}
