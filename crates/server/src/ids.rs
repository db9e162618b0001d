//! Names for requests and what comes of them.

use ring::rand::{SecureRandom, SystemRandom};

/// `prefix` and 32 random hexadecimal digits.
pub fn unique(prefix: &str) -> String {
    let mut bytes = [0; 16];
    // The system always has some; without it names are not unique, and nothing else depends on them.
    let _ = SystemRandom::new().fill(&mut bytes);
    let mut id = prefix.to_owned();
    for byte in bytes {
        id += &format!("{byte:02x}");
    }
    id
}
