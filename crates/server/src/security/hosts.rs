//! The names that requests reach this server by.
//!
//! A page can have its own name lead to 127.0.0.1 (DNS rebinding): its scripts then talk to a local server as to their own. The
//! `Host` of such requests is the page's name, which no program of this machine would give.

use std::net::{IpAddr, Ipv6Addr};

use axum::extract::Request;
use axum::http::{Version, header};

use crate::error::{ApiError, ECHO, cut};
use crate::state::App;

/// Checks the names that a request gives.
///
/// # Errors
/// 400 without one, 403 for one that leads here by mistake or worse.
pub fn check(app: &App, request: &Request) -> Result<(), ApiError> {
    let allowed = &app.options().allowed_hosts;
    let local = app
        .address()
        .is_some_and(|address| address.ip().to_canonical().is_loopback());
    if !local && allowed.is_empty() {
        return Ok(());
    }
    let mut names: Vec<&str> = Vec::new();
    for value in request.headers().get_all(header::HOST) {
        let name = value.to_str();
        names.push(name.map_err(|_| ApiError::malformed("the Host is not a name"))?);
    }
    match names.len() {
        0 if request.version() < Version::HTTP_11 => {}
        1 => {}
        count => {
            let message = format!("the request has {count} Host fields, and one is needed");
            return Err(ApiError::malformed(message));
        }
    }
    names.extend(request.uri().authority().map(|name| name.as_str()));
    let foreign = names.into_iter().find(|name| {
        let name = without_port(name);
        let known = || allowed.iter().any(|host| host.eq_ignore_ascii_case(name));
        !is_loopback(name) && !known()
    });
    match foreign {
        None => Ok(()),
        Some(name) => Err(ApiError::forbidden(format!(
            "the Host '{}' is not a name of this server: use localhost, or allow it by --allowed-host",
            cut(name, ECHO)
        ))),
    }
}

fn without_port(name: &str) -> &str {
    // An address of IPv6 has colons of its own, in brackets.
    let end = name.find(']').map_or(0, |bracket| bracket + 1);
    match name[end..].find(':') {
        Some(colon) => &name[..end + colon],
        None => name,
    }
}

fn is_loopback(name: &str) -> bool {
    if name.eq_ignore_ascii_case("localhost") {
        return true;
    }
    let v6 = name
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let address: Option<IpAddr> = match v6 {
        Some(inside) => inside.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => name.parse().ok(),
    };
    address.is_some_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_loopback() {
        for name in [
            "localhost",
            "LOCALHOST:8000",
            "127.0.0.1",
            "127.9.9.9:1",
            "[::1]:8000",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(is_loopback(without_port(name)), "{name}");
        }
        for name in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.nip.io",
            "10.0.0.1",
            "[::2]",
            "[",
            "]:",
        ] {
            assert!(!is_loopback(without_port(name)), "{name}");
        }
    }
}
