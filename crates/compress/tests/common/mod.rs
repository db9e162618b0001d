//! What the tests of the crate share.
#![allow(dead_code)] // Every test binary uses its own part.

use std::fs;
use std::path::Path;

/// Names of what is in a folder, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a directory");
    let mut names: Vec<String> = entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

/// Names and bytes of the files in a folder, sorted.
pub fn content(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let read = |name: String| {
        let bytes = fs::read(dir.join(&name)).expect("a file");
        (name, bytes)
    };
    names(dir).into_iter().map(read).collect()
}
