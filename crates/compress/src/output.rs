//! The files of weights, each written once and whole.
//!
//! A model is written unit by unit: what comes before the decoder layers, each layer, and what comes after them. Of a large model
//! every unit is a file of the output. Those of a small one are parts, which become one file at the end.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, json};
use sparamx_format::container::{self, TensorFile, TensorOut};

use crate::staging::Staging;
use crate::{CompressError, files};

const SINGLE: &str = "model.safetensors";
/// What is read at a time: few calls, and it stays in the cache.
const BUFFER_BYTES: usize = 256 << 10;
const INDEX: &str = "model.safetensors.index.json";

/// Where the units of a model go.
pub(crate) struct Output<'a> {
    staging: &'a Staging,
    units: usize,
    single: bool,
}

impl<'a> Output<'a> {
    /// `single`: one file in the end.
    pub(crate) fn new(staging: &'a Staging, units: usize, single: bool) -> Self {
        Output {
            staging,
            units,
            single,
        }
    }

    /// The file of a unit.
    pub(crate) fn path(&self, unit: usize) -> PathBuf {
        if self.single {
            self.staging.root().join(format!("part-{unit}.safetensors"))
        } else {
            let name = format!("model-{:05}-of-{:05}.safetensors", unit + 1, self.units);
            self.staging.out().join(name)
        }
    }

    /// Writes a unit.
    ///
    /// # Errors
    /// [`CompressError::Format`] if the file cannot be written.
    pub(crate) fn write(
        &self,
        unit: usize,
        tensors: &[TensorOut<'_>],
    ) -> Result<(), CompressError> {
        write(&self.path(unit), tensors, BTreeMap::new())
    }

    /// The CRC-32 of the file of a unit; none if it cannot be read.
    pub(crate) fn checksum(&self, unit: usize) -> Option<u32> {
        let mut file = File::open(self.path(unit)).ok()?;
        let (mut crc, mut buffer) = (crc32fast::Hasher::new(), vec![0; BUFFER_BYTES]);
        loop {
            match file.read(&mut buffer).ok()? {
                0 => return Some(crc.finalize()),
                bytes => crc.update(&buffer[..bytes]),
            }
        }
    }

    /// Makes one file of the parts, or writes the index. Returns how many files there are.
    ///
    /// # Errors
    /// [`CompressError::Format`] or [`CompressError::Io`] if a file cannot be read or written.
    pub(crate) fn finish(&self) -> Result<usize, CompressError> {
        let units = (0..self.units)
            .map(|unit| TensorFile::open(self.path(unit)))
            .collect::<Result<Vec<_>, _>>()?;
        if self.single {
            join(&units, &self.staging.out().join(SINGLE))?;
            return Ok(1);
        }
        let (mut weight_map, mut total_bytes) = (Map::new(), 0);
        for (unit, file) in units.iter().enumerate() {
            let path = self.path(unit);
            let name = path.file_name().expect("a file").to_string_lossy();
            for tensor in file.names() {
                total_bytes += file.tensor(&tensor).map_or(0, |view| view.bytes.len());
                weight_map.insert(tensor, json!(name));
            }
        }
        let index = json!({ "metadata": { "total_size": total_bytes }, "weight_map": weight_map });
        files::write_json(&self.staging.out().join(INDEX), &index)?;
        Ok(self.units)
    }
}

/// Makes one file of several.
fn join(parts: &[TensorFile], path: &Path) -> Result<(), CompressError> {
    let (mut metadata, mut tensors) = (BTreeMap::new(), Vec::new());
    for part in parts {
        let entries = part
            .metadata_keys()
            .into_iter()
            .filter_map(|key| Some((key, part.metadata(key)?)));
        metadata.extend(entries.map(|(key, value)| (key.to_owned(), value.to_owned())));
        for name in part.names() {
            let view = part.tensor(&name).expect("a name of its own");
            tensors.push(TensorOut::new(name, view.dtype, view.shape, view.bytes));
        }
    }
    write(path, &tensors, metadata)
}

fn write(
    path: &Path,
    tensors: &[TensorOut<'_>],
    mut metadata: BTreeMap<String, String>,
) -> Result<(), CompressError> {
    // What other readers of safetensors files look for.
    metadata.insert("format".to_owned(), "pt".to_owned());
    Ok(container::write(path, tensors, &metadata)?)
}
