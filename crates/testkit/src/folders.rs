//! What is in folders, and the one beside the repository.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

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

/// `path` in the folder of shared data beside the repository. Where a checkout stands alone there is none, which is said past the
/// capture of the test harness.
pub fn shared(path: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let full = root.join("shared/data").join(path);
    if full.exists() {
        return Some(full);
    }
    let _ = writeln!(
        std::io::stderr(),
        "SKIPPED: ../shared/data/{path} is absent, nothing of it was tested"
    );
    None
}
