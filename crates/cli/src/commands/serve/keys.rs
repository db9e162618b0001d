//! The keys that requests need: from options, a file, and the environment.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::args::UsageError;
use crate::texts;

/// The environment variable that holds a key, or several with commas between.
const VARIABLE: &str = "SPARAMX_API_KEY";
/// The largest file of keys, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// All keys there are, in the order of options, file and environment.
///
/// # Errors
/// A file that cannot be read, or has none; a key that no request could send.
pub fn read(options: &[String], file: Option<&Path>) -> Result<Vec<String>> {
    let mut keys = options.to_vec();
    if let Some(path) = file {
        let name = path.display();
        let file = std::fs::File::open(path).with_context(|| format!("--api-key-file {name}"))?;
        let bytes = texts::limited(file, MAX_FILE_BYTES)
            .with_context(|| format!("--api-key-file {name}"))?;
        let text = String::from_utf8_lossy(&bytes);
        let before = keys.len();
        let lines = text.lines().map(str::trim);
        keys.extend(
            lines
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .map(str::to_owned),
        );
        if keys.len() == before {
            bail!(UsageError(format!(
                "--api-key-file {name}: there is no key in it; it has one a line"
            )));
        }
    }
    if let Ok(value) = std::env::var(VARIABLE) {
        let several = value.split(',').map(str::trim);
        keys.extend(several.filter(|key| !key.is_empty()).map(str::to_owned));
    }
    for (index, key) in keys.iter().enumerate() {
        let printable = |c: char| c.is_ascii_graphic() || c == ' ';
        if key.trim().is_empty() || key.trim() != key || !key.chars().all(printable) {
            bail!(UsageError(format!(
                "key {} of the server: letters, digits and signs of ASCII are needed, and no blanks around them",
                index + 1
            )));
        }
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_file_are_its_lines() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("keys");
        std::fs::write(&path, "# two\nalpha\n\n  beta \r\n").expect("a file");
        let keys = read(&["first".to_owned()], Some(&path)).expect("keys");
        assert_eq!(keys[..3], ["first", "alpha", "beta"]);
        std::fs::write(&path, "# none\n").expect("a file");
        let error = read(&[], Some(&path)).expect_err("no key").to_string();
        assert!(error.contains("no key"), "{error}");
        for key in ["", " a", "a\nb", "schlüssel"] {
            let error = read(&[key.to_owned()], None).expect_err(key).to_string();
            assert!(
                error.starts_with("key 1") && !error.contains("schl"),
                "{error}"
            );
        }
    }
}
