//! Where the hub and the cache are, and how we are known there.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Fault};
use crate::proxy::Proxies;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// As in `huggingface_hub`.
const DEFAULT_LIMIT: Duration = Duration::from_secs(10);

/// What the environment says. The variables mean what they mean to the `huggingface_hub` library.
#[derive(Clone)]
pub struct Settings {
    /// The address of the hub (`HF_ENDPOINT`), with a path if it lies under one.
    pub endpoint: String,
    /// The directory of the cache (`HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`).
    pub cache: PathBuf,
    /// Who we are (`HF_TOKEN`, or a file: `HF_TOKEN_PATH`).
    pub token: Option<String>,
    /// The variable or file that the token is from.
    pub token_source: String,
    /// Never ask the hub (`HF_HUB_OFFLINE`).
    pub offline: bool,
    /// How long the hub may take to describe a model or a file (`HF_HUB_ETAG_TIMEOUT`).
    pub answer_limit: Duration,
    /// How long a file may stand still (`HF_HUB_DOWNLOAD_TIMEOUT`).
    pub transfer_limit: Duration,
    /// The pause before the second try; each further one is twice as long.
    pub pause: Duration,
    /// Files or directories of root certificates beside those of the system (`REQUESTS_CA_BUNDLE`, `CURL_CA_BUNDLE`). `SSL_CERT_FILE`
    /// and `SSL_CERT_DIR` are read in place of the system's.
    pub certificates: Vec<PathBuf>,
    /// What to go through (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`).
    pub proxies: Proxies,
    /// The name and version of the program that asks.
    pub user_agent: String,
}

impl Settings {
    /// What the environment of this process says; `user_agent` is the name and version of the program.
    ///
    /// # Errors
    /// A variable has no value of use, or there is no home directory to keep models in.
    pub fn from_env(user_agent: &str) -> Result<Settings, Error> {
        Settings::read(&|name| env::var_os(name), user_agent)
    }

    /// Settings that name the cache and the hub, all others as if the environment were empty.
    pub fn new(endpoint: &str, cache: &Path) -> Settings {
        Settings {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache: cache.to_owned(),
            token: None,
            token_source: "HF_TOKEN".to_owned(),
            offline: false,
            answer_limit: DEFAULT_LIMIT,
            transfer_limit: DEFAULT_LIMIT,
            pause: Duration::from_millis(500),
            certificates: Vec::new(),
            proxies: Proxies::default(),
            user_agent: concat!("sparamx/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }

    fn read(
        variable: &dyn Fn(&str) -> Option<OsString>,
        user_agent: &str,
    ) -> Result<Settings, Error> {
        let set = |names: &[&str]| {
            let mut values = names.iter().filter_map(|name| variable(name));
            values.find(|value| !value.is_empty())
        };
        let text = |names: &[&str]| set(names).map(|value| value.to_string_lossy().into_owned());
        let person = set(&["HOME"]).map(PathBuf::from).or_else(env::home_dir);
        let path = |names: &[&str]| set(names).map(|value| expand(value.into(), person.as_deref()));
        let home = path(&["HF_HOME"]).or_else(|| {
            let caches =
                path(&["XDG_CACHE_HOME"]).or_else(|| Some(person.as_deref()?.join(".cache")));
            caches.map(|caches| caches.join("huggingface"))
        });
        let Some(home) = home else {
            return Err(wrong(
                "HF_HOME",
                "no home directory to keep models in; set it",
            ));
        };
        let cache = path(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]);
        let endpoint = text(&["HF_ENDPOINT"]).unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let mut settings =
            Settings::new(endpoint.trim(), &cache.unwrap_or_else(|| home.join("hub")));
        user_agent.clone_into(&mut settings.user_agent);
        settings.offline =
            text(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]).is_some_and(|value| yes(&value));
        settings.answer_limit = limit(&text, "HF_HUB_ETAG_TIMEOUT")?;
        settings.transfer_limit = limit(&text, "HF_HUB_DOWNLOAD_TIMEOUT")?;
        settings.token = text(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]);
        if settings.token.is_none() {
            let file = path(&["HF_TOKEN_PATH"]).unwrap_or_else(|| home.join("token"));
            settings.token = fs::read_to_string(&file).ok();
            settings.token_source = file.display().to_string();
        }
        settings.token = settings
            .token
            .map(|token| token.trim().to_owned())
            .filter(|token| !token.is_empty());
        for name in ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"] {
            settings.certificates.extend(path(&[name]));
        }
        settings.proxies = Proxies::read(&|name| text(&[name]));
        Ok(settings)
    }
}

impl fmt::Debug for Settings {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

/// `~` as the home directory, for values that no shell has seen.
fn expand(path: PathBuf, person: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), person) {
        (Ok(rest), Some(person)) => person.join(rest),
        _ => path,
    }
}

fn yes(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str())
}

fn limit(text: &dyn Fn(&[&str]) -> Option<String>, name: &str) -> Result<Duration, Error> {
    let Some(value) = text(&[name]) else {
        return Ok(DEFAULT_LIMIT);
    };
    match value.trim().parse::<u32>() {
        Ok(0) => Ok(DEFAULT_LIMIT),
        Ok(seconds) => Ok(Duration::from_secs(seconds.into())),
        Err(_) => Err(wrong(name, "a whole number of seconds is needed")),
    }
}

fn wrong(name: &str, why: &str) -> Error {
    Error {
        what: name.to_owned(),
        fault: Fault::Setting(why.to_owned()),
        place: Box::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, Error> {
        let find = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        };
        Settings::read(&find, "test/1")
    }

    #[test]
    fn the_cache_is_where_other_tools_have_it() {
        let table: [(&[(&str, &str)], &str); 6] = [
            (&[("HOME", "/h")], "/h/.cache/huggingface/hub"),
            (
                &[("HOME", "/h"), ("XDG_CACHE_HOME", "/c")],
                "/c/huggingface/hub",
            ),
            (&[("HF_HOME", "/x"), ("XDG_CACHE_HOME", "/c")], "/x/hub"),
            (&[("HF_HOME", "/x"), ("HF_HUB_CACHE", "/y")], "/y"),
            (&[("HF_HOME", "/x"), ("HUGGINGFACE_HUB_CACHE", "/z")], "/z"),
            (&[("HOME", "/h"), ("HF_HOME", "~/models")], "/h/models/hub"),
        ];
        for (variables, cache) in table {
            let settings = read(variables).expect("settings");
            assert_eq!(settings.cache, Path::new(cache), "{variables:?}");
        }
    }

    #[test]
    fn limits_are_whole_seconds() {
        let settings =
            read(&[("HF_HOME", "/x"), ("HF_HUB_DOWNLOAD_TIMEOUT", "30")]).expect("settings");
        assert_eq!(settings.transfer_limit, Duration::from_secs(30));
        assert_eq!(settings.answer_limit, Duration::from_secs(10));
        let error =
            read(&[("HF_HOME", "/x"), ("HF_HUB_ETAG_TIMEOUT", "soon")]).expect_err("no number");
        assert_eq!(
            error.to_string(),
            "HF_HUB_ETAG_TIMEOUT: a whole number of seconds is needed"
        );
    }

    #[test]
    fn offline_and_the_endpoint() {
        let settings = read(&[
            ("HF_HOME", "/x"),
            ("TRANSFORMERS_OFFLINE", "yes"),
            ("HF_ENDPOINT", "http://m/hf/"),
        ]);
        let settings = settings.expect("settings");
        assert!(settings.offline);
        assert_eq!(settings.endpoint, "http://m/hf");
        assert!(
            !read(&[("HF_HOME", "/x"), ("HF_HUB_OFFLINE", "0")])
                .expect("settings")
                .offline
        );
    }

    #[test]
    fn a_token_is_trimmed() {
        let settings = read(&[("HF_HOME", "/x"), ("HF_TOKEN", " hf_a\r\n")]).expect("settings");
        assert_eq!(settings.token.as_deref(), Some("hf_a"));
        assert!(!format!("{settings:?}").contains("hf_a"));
    }
}
