//! Keys: any of them opens all paths.

use axum::http::{HeaderMap, header};
use ring::digest::{Digest, SHA256, digest};
use subtle::{Choice, ConstantTimeEq};

/// The keys of a server, by their hashes.
pub struct Keys(Vec<Digest>);

impl Keys {
    /// The hashes of keys.
    pub fn new(keys: &[String]) -> Self {
        let hash = |key: &String| digest(&SHA256, key.as_bytes());
        Self(keys.iter().map(hash).collect())
    }

    /// The index of the key that a request has; 0 where none is needed. None: it has not one of them.
    pub fn tenant(&self, headers: &HeaderMap) -> Option<u64> {
        if self.0.is_empty() {
            return Some(0);
        }
        let mut found = None;
        // All are compared, whichever it is.
        for given in given(headers) {
            let given = digest(&SHA256, given);
            for (index, key) in (0..).zip(&self.0) {
                if bool::from(equal(key, &given)) {
                    found = Some(index);
                }
            }
        }
        found
    }
}

fn equal(a: &Digest, b: &Digest) -> Choice {
    a.as_ref().ct_eq(b.as_ref())
}

/// The keys in the headers of a request: some clients send a word of their own as one of them.
fn given(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
    });
    let other = headers.get("x-api-key").map(|value| value.as_bytes());
    bearer.into_iter().chain(other).map(<[u8]>::trim_ascii)
}
