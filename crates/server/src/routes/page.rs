//! GET /: the page, a chat with the model. Its files are part of this program; each has one path, and there are no others.

use std::borrow::Cow;
use std::sync::LazyLock;

use axum::Router;
use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use rust_embed::RustEmbed;

use crate::state::App;

/// The files, from `crates/server/page`.
#[derive(RustEmbed)]
#[folder = "page"]
struct Files;

/// A file and where it is.
struct Asset {
    path: String,
    content_type: &'static str,
    etag: HeaderValue,
    bytes: &'static [u8],
}

static ASSETS: LazyLock<Vec<Asset>> =
    LazyLock::new(|| Files::iter().filter_map(|name| asset(&name)).collect());

/// The path of each file.
pub fn routes() -> Router<App> {
    ASSETS.iter().fold(Router::new(), |router, asset| {
        router.route(
            &asset.path,
            get(move |headers: HeaderMap| async move { answer(asset, &headers) }),
        )
    })
}

/// Whether a path is a file of the page: they tell nothing about the model and need no key if `--public-page` says it.
pub fn is_file(path: &str) -> bool {
    ASSETS.iter().any(|asset| asset.path == path)
}

/// A file of a kind that the page is made of.
fn asset(name: &str) -> Option<Asset> {
    let path = match name {
        "index.html" => "/".to_owned(),
        "favicon.svg" => "/favicon.svg".to_owned(),
        _ => format!("/page/{name}"),
    };
    let content_type = match name.rsplit_once('.')?.1 {
        "html" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "svg" => "image/svg+xml",
        _ => return None,
    };
    let file = Files::get(name)?;
    let hash: String = file.metadata.sha256_hash()[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let bytes = match file.data {
        Cow::Borrowed(bytes) => bytes,
        Cow::Owned(bytes) => bytes.leak(),
    };
    Some(Asset {
        path,
        content_type,
        etag: HeaderValue::from_str(&format!("\"{hash}\"")).ok()?,
        bytes,
    })
}

fn answer(asset: &Asset, headers: &HeaderMap) -> Response {
    let known = headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|tag| matches!(tag.trim().trim_start_matches("W/"), tag if tag == "*" || tag.as_bytes() == asset.etag.as_bytes()));
    let fixed = |name: HeaderName, value: &'static str| (name, HeaderValue::from_static(value));
    let about = [
        (ETAG, asset.etag.clone()),
        // A new version of the server is a new page at once.
        fixed(CACHE_CONTROL, "no-cache"),
        fixed(REFERRER_POLICY, "no-referrer"),
    ];
    if known {
        return (StatusCode::NOT_MODIFIED, about).into_response();
    }
    let content_type = fixed(CONTENT_TYPE, asset.content_type);
    (about, [content_type], Body::from(asset.bytes)).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::testing::loading;

    #[test]
    fn files_come_with_their_type_and_the_policy() {
        // The page is there before the model is.
        let server = loading(Default::default());
        for (path, content_type, beginning) in [
            ("/", "text/html; charset=utf-8", "<!doctype html>"),
            ("/favicon.svg", "image/svg+xml", "<svg"),
            ("/page/app.js", "text/javascript; charset=utf-8", "//"),
            ("/page/style.css", "text/css; charset=utf-8", "/*"),
        ] {
            let answer = server.get(path);
            assert_eq!(answer.status, 200, "{path}");
            assert_eq!(answer.header("content-type"), Some(content_type), "{path}");
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
            let policy = answer.header("content-security-policy").unwrap();
            assert!(policy.starts_with(
                "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
            ));
            assert!(!policy.contains("unsafe"), "{policy}");
            assert!(answer.text().starts_with(beginning), "{path}");
        }
    }

    #[test]
    fn a_file_that_is_known_is_not_sent_again() {
        let server = loading(Default::default());
        let etag = server
            .get("/page/app.js")
            .header("etag")
            .unwrap()
            .to_owned();
        for tags in [etag.clone(), format!("\"other\", W/{etag}"), "*".to_owned()] {
            let answer = server.request("GET", "/page/app.js", &[("If-None-Match", &tags)], b"");
            assert_eq!(answer.status, 304, "{tags}");
            assert!(answer.body.is_empty());
            assert_eq!(answer.header("etag"), Some(etag.as_str()));
        }
        let answer = server.request(
            "GET",
            "/page/app.js",
            &[("If-None-Match", "\"other\"")],
            b"",
        );
        assert_eq!(answer.status, 200);
    }

    #[test]
    fn there_is_nothing_at_any_other_path() {
        let server = loading(Default::default());
        for path in [
            "/index.html",
            "/page",
            "/page/",
            "/page/../page/app.js",
            "/page/%2e%2e/Cargo.toml",
            "/page//app.js",
            "/page/app.js/",
            "/page/..%2fCargo.toml",
        ] {
            let answer = server.get(path);
            assert_eq!(answer.status, 404, "{path}");
        }
        assert_eq!(
            server
                .request("POST", "/", &[("Content-Type", "application/json")], b"{}")
                .status,
            405
        );
    }

    /// No address but those of this server, no script or style in the markup, no text that becomes markup.
    #[test]
    fn the_files_need_nothing_from_elsewhere() {
        let paths: BTreeSet<&str> = ASSETS.iter().map(|asset| asset.path.as_str()).collect();
        assert!(ASSETS.len() > 10 && ASSETS.len() == paths.len());
        for asset in ASSETS.iter() {
            let text = std::str::from_utf8(asset.bytes).unwrap();
            let namespace = text.replace("http://www.w3.org/2000/svg", "");
            let addresses =
                namespace.matches("https://").count() + namespace.matches("http://").count();
            assert_eq!(addresses, 0, "{}: an address", asset.path);
            for forbidden in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "new Function",
                "DOMParser",
            ] {
                assert!(!text.contains(forbidden), "{}: {forbidden}", asset.path);
            }
            for import in text.lines().filter_map(|line| line.strip_prefix("import ")) {
                let from = import.split('"').nth(1).unwrap().trim_start_matches("./");
                assert!(
                    paths.contains(format!("/page/{from}").as_str()),
                    "{}: {import}",
                    asset.path
                );
            }
        }
        let index = Files::get("index.html").unwrap().data;
        let index = std::str::from_utf8(&index).unwrap();
        assert!(
            !index.contains(" style=") && !index.contains("<style") && !index.contains(" onclick=")
        );
        for attribute in [" src=\"", " href=\"/"] {
            for file in index.split(attribute).skip(1) {
                let path = file.split('"').next().unwrap();
                let path = if attribute.ends_with('/') {
                    format!("/{path}")
                } else {
                    path.to_owned()
                };
                assert!(paths.contains(path.as_str()), "{path}");
            }
        }
        for script in index.split("<script").skip(1) {
            assert!(script.contains("></script>"), "{script}");
        }
    }
}
