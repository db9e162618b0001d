//! Addresses: where a redirection leads, and who may see the token.

use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};
use ureq::http::Uri;

use crate::error::Fault;
use crate::names;

/// What stays as it is in a part of a path.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// What some servers leave as it is though it cannot be in an address.
const ODD: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'<')
    .add(b'>')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// One part of a path, whatever characters it has.
pub fn encoded(part: &str) -> String {
    utf8_percent_encode(part, KEPT).to_string()
}

/// Who answers at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub https: bool,
    pub host: String,
    pub port: u16,
}

impl Origin {
    /// The origin of an address of HTTP or HTTPS.
    pub fn of(address: &Uri) -> Option<Origin> {
        let https = match address.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        Some(Origin {
            https,
            host: address.host()?.to_lowercase(),
            port: address.port_u16().unwrap_or(if https { 443 } else { 80 }),
        })
    }

    /// Whether what was meant for us may go on to `other`: the same host and port, or its move from HTTP to HTTPS.
    pub fn trusts(&self, other: &Origin) -> bool {
        let secured =
            (self.https, self.port) == (false, 80) && (other.https, other.port) == (true, 443);
        self == other || (secured && self.host == other.host)
    }
}

/// Reads an address.
pub fn parse(text: &str) -> Option<Uri> {
    let address: Uri = text.parse().ok()?;
    Origin::of(&address).map(|_| address)
}

/// Where `location` leads that the answer from `from` had.
pub fn join(from: &Uri, location: &str) -> Result<Uri, Fault> {
    let location = location.split('#').next().unwrap_or_default();
    let location = &*utf8_percent_encode(location, ODD).to_string();
    let base = || {
        let scheme = from.scheme_str().unwrap_or_default();
        let authority = from.authority().map(|authority| authority.as_str());
        format!("{scheme}://{}", authority.unwrap_or_default())
    };
    let scheme = location.split_once("://").map(|(scheme, _)| scheme);
    let text = if scheme.is_some_and(|scheme| scheme.bytes().all(|b| b.is_ascii_alphanumeric())) {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{}:{location}", from.scheme_str().unwrap_or_default())
    } else if location.starts_with('/') {
        base() + location
    } else if location.starts_with('?') {
        base() + from.path() + location
    } else {
        let folder = from
            .path()
            .rsplit_once('/')
            .map_or("", |(folder, _)| folder);
        format!("{}{folder}/{location}", base())
    };
    parse(&text).ok_or_else(|| Fault::Answer(format!("it redirects to {}", names::shown(location))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Origin {
        Origin::of(&parse(text).expect(text)).expect(text)
    }

    #[test]
    fn redirections_lead_where_they_say() {
        let from = parse("https://hub.example:8443/a/b?x=1").expect("an address");
        for (location, to) in [
            ("https://cdn.example/f?sig=1", "https://cdn.example/f?sig=1"),
            ("//cdn.example/f", "https://cdn.example/f"),
            (
                "/api/f?u=http://x",
                "https://hub.example:8443/api/f?u=http://x",
            ),
            ("c?u=http://x#d", "https://hub.example:8443/a/c?u=http://x"),
            ("/a b\u{e9}", "https://hub.example:8443/a%20b%C3%A9"),
            ("?y=2", "https://hub.example:8443/a/b?y=2"),
        ] {
            assert_eq!(join(&from, location).expect(location).to_string(), to);
        }
        for location in ["file:///etc/passwd", "ftp://x/y", "https://"] {
            assert!(join(&from, location).is_err(), "{location}");
        }
    }

    #[test]
    fn the_token_stays_with_the_hub() {
        let hub = origin("https://hub.example");
        assert!(hub.trusts(&origin("https://HUB.example:443/x")));
        for other in [
            "https://hub.example:444",
            "http://hub.example",
            "http://hub.example:443",
            "https://cdn.hub.example",
            "https://hub.example.evil",
            "https://hub.example@evil/",
            "https://hub.example:443@evil/",
        ] {
            assert!(!hub.trusts(&origin(other)), "{other}");
        }
        let open = origin("http://hub.example");
        assert!(open.trusts(&origin("https://hub.example")));
        assert!(!open.trusts(&origin("https://evil.example")));
        assert!(!origin("http://hub.example:8080").trusts(&origin("https://hub.example")));
    }

    #[test]
    fn parts_of_paths_are_encoded() {
        assert_eq!(encoded("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(
            encoded("a b?c#d%.safetensors"),
            "a%20b%3Fc%23d%25.safetensors"
        );
    }
}
