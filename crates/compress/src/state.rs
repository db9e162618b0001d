//! The record of what is done, in the folder of what is being written.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sparamx_model::Checkpoint;

use crate::{CompressError, Counts, Options, files};

const FILE: &str = "progress.json";
const NEW: &str = "progress.json.new";

/// What was asked for, and what is done of it.
#[derive(Serialize, Deserialize)]
pub(crate) struct State {
    /// What the output depends on: text only, since a number of JSON may come back a little different.
    key: Value,
    /// The sparsity of each layer where calibration decided it, as bits of an f64.
    layer_sparsities: Option<Vec<u64>>,
    /// The units that are written.
    units: Vec<Unit>,
}

/// A unit that is written.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Unit {
    /// What came of it.
    #[serde(flatten)]
    pub counts: Counts,
    /// The CRC-32 of its file, which a disk or a copy may have changed by the time the work goes on.
    pub crc32: Option<u32>,
}

impl State {
    /// The record in a folder, or a new one. What is recorded for something else than `key` is refused.
    ///
    /// # Errors
    /// [`CompressError::Changed`] for another key, [`CompressError::Json`] for a damaged record, or [`CompressError::Io`].
    pub(crate) fn open(root: &Path, key: &Value) -> Result<Self, CompressError> {
        let path = root.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(State {
                    key: key.clone(),
                    layer_sparsities: None,
                    units: Vec::new(),
                });
            }
            Err(error) => return Err(CompressError::io(&path, error)),
        };
        let state: State = serde_json::from_slice(&text).map_err(|error| CompressError::Json {
            path,
            error: error.to_string(),
        })?;
        match difference("", &state.key, key) {
            None => Ok(state),
            Some((what, then, now)) => Err(CompressError::Changed {
                partial: root.to_owned(),
                what,
                then,
                now,
            }),
        }
    }

    /// The number of units that a folder has a record of; 0 if there is none, or none that can be read.
    pub(crate) fn units_in(root: &Path) -> usize {
        let text = fs::read(root.join(FILE)).unwrap_or_default();
        serde_json::from_slice(&text).map_or(0, |state: State| state.units.len())
    }

    /// The units that are written.
    pub(crate) fn units(&self) -> &[Unit] {
        &self.units
    }

    /// The sparsity of each layer, if calibration decided it.
    pub(crate) fn layer_sparsities(&self) -> Option<Vec<f64>> {
        let bits = self.layer_sparsities.as_ref()?;
        Some(bits.iter().map(|&bits| f64::from_bits(bits)).collect())
    }

    /// Records the sparsity of each layer; it is on the disk with the next unit.
    pub(crate) fn set_layer_sparsities(&mut self, sparsities: &[f64]) {
        self.layer_sparsities = Some(sparsities.iter().map(|s| s.to_bits()).collect());
    }

    /// Records a unit whose file is written: the next one, or one in place of what was there.
    ///
    /// # Errors
    /// [`CompressError::Io`]
    pub(crate) fn set(
        &mut self,
        root: &Path,
        number: usize,
        unit: Unit,
    ) -> Result<(), CompressError> {
        match self.units.get_mut(number) {
            Some(known) => *known = unit,
            None => self.units.push(unit),
        }
        let (new, path) = (root.join(NEW), root.join(FILE));
        let value = serde_json::to_value(&*self).expect("plain data");
        files::write_json(&new, &value)?;
        fs::rename(&new, &path).map_err(|error| CompressError::io(&path, error))
    }
}

/// Everything that the output depends on, as text.
pub(crate) fn key(
    checkpoint: &Checkpoint,
    options: &Options,
    calibration: Option<&crate::Calibration<'_>>,
) -> Result<Value, CompressError> {
    let mut input = Map::new();
    // A GGUF file has its configuration inside.
    let config = checkpoint.dir().join("config.json");
    let config = checkpoint.dir().is_dir().then_some(config);
    let paths = checkpoint.paths().map(Path::to_owned);
    for path in paths.chain(config) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        input.insert(name.into_owned(), json!(fingerprint(&path)?));
    }
    let text = |value: &dyn std::fmt::Debug| json!(format!("{value:?}"));
    let calibration = calibration.map(|calibration| {
        format!(
            "{} windows, {:016x}",
            calibration.windows.len(),
            hash(calibration.windows)
        )
    });
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "input": input,
        "calibration": text(&calibration),
        "method": text(&options.method),
        "pattern": text(&options.pattern),
        "patterns by name": text(&options.patterns),
        "allocation": text(&options.allocation),
        "skip": text(&options.skip),
        "scope": text(&options.scope),
        "weights": text(&options.precision),
        "rounding": text(&options.rounding),
        "reconstruct": text(&options.reconstruct),
        "include lm_head": text(&options.include_lm_head),
        "single file bytes": text(&options.single_file_bytes),
    }))
}

/// Size and time of a file.
fn fingerprint(path: &PathBuf) -> Result<String, CompressError> {
    let found = fs::metadata(path).map_err(|error| CompressError::io(path, error))?;
    let modified = found
        .modified()
        .map_err(|error| CompressError::io(path, error))?;
    let since = modified
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    Ok(format!("{} bytes of {}", found.len(), since.as_nanos()))
}

/// FNV-1a (Fowler, Noll, Vo) over tokens and the ends of windows: the same in every build.
fn hash(windows: &[Vec<u32>]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    let ends = windows
        .iter()
        .map(|window| window.iter().chain([&u32::MAX]));
    for byte in ends.flatten().flat_map(|token| token.to_le_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash
}

/// The first entry in which two keys differ: its name, and what both say.
fn difference(name: &str, then: &Value, now: &Value) -> Option<(String, String, String)> {
    match (then, now) {
        (Value::Object(then), Value::Object(now)) => {
            let names = now
                .keys()
                .chain(then.keys().filter(|name| !now.contains_key(*name)));
            let value = |map: &Map<String, Value>, name: &String| {
                map.get(name).cloned().unwrap_or(Value::Null)
            };
            names
                .into_iter()
                .find_map(|name| difference(name, &value(then, name), &value(now, name)))
        }
        _ if then == now => None,
        _ => {
            let text = |value: &Value| value.as_str().unwrap_or("nothing").to_owned();
            Some((name.to_owned(), text(then), text(now)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_named() {
        let key = json!({"a": "1", "b": {"c": "2", "d": "3"}});
        assert_eq!(difference("", &key, &key), None);
        for (other, found) in [
            (
                json!({"a": "1", "b": {"c": "2", "d": "4"}}),
                ("d", "3", "4"),
            ),
            (json!({"a": "1", "b": {"c": "2"}}), ("d", "3", "nothing")),
            (
                json!({"a": "1", "b": {"c": "2", "d": "3"}, "e": "5"}),
                ("e", "nothing", "5"),
            ),
        ] {
            let (name, then, now) = difference("", &key, &other).expect("they differ");
            assert_eq!((&*name, &*then, &*now), found);
        }
    }

    #[test]
    fn windows_are_told_apart() {
        let hashes = [
            hash(&[vec![1, 2, 3]]),
            hash(&[vec![1, 2], vec![3]]),
            hash(&[vec![3, 2, 1]]),
            hash(&[]),
        ];
        for (i, a) in hashes.iter().enumerate() {
            assert!(!hashes[..i].contains(a));
        }
        assert_eq!(hash(&[]), 0xcbf2_9ce4_8422_2325);
    }
}
