//! Weights written file by file, none larger than a limit, with little memory.
//!
//! Every tensor goes to a file of its own first; when enough are there, they are mapped and put together. So memory holds one
//! tensor, and the disk for a while one finished file twice.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, json};
use sparamx_format::container::{self, Dtype, TensorFile, TensorOut};

use crate::{CompressError, files};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The files of weights in a folder.
pub(crate) struct Shards<'a> {
    dir: &'a Path,
    limit_bytes: u64,
    /// Tensors that are in no finished file yet.
    parts: Vec<PathBuf>,
    parts_bytes: u64,
    /// Names of the tensors in every finished file.
    finished: Vec<(PathBuf, Vec<String>)>,
    total_bytes: u64,
}

impl<'a> Shards<'a> {
    /// No files yet; each will hold at most `limit_bytes` of tensors, or a single one.
    pub(crate) fn new(dir: &'a Path, limit_bytes: u64) -> Self {
        Shards {
            dir,
            limit_bytes,
            parts: Vec::new(),
            parts_bytes: 0,
            finished: Vec::new(),
            total_bytes: 0,
        }
    }

    /// Adds a tensor as it is.
    ///
    /// # Errors
    /// [`CompressError::Format`] if a file cannot be written.
    pub(crate) fn add_dense(
        &mut self,
        name: &str,
        dtype: Dtype,
        shape: &[usize],
        data: &[u8],
    ) -> Result<(), CompressError> {
        self.add(&[TensorOut::new(name, dtype, shape.to_vec(), data)])
    }

    /// Adds tensors that stay in one file, such as the parts of a packed weight.
    ///
    /// # Errors
    /// [`CompressError::Format`] if a file cannot be written.
    pub(crate) fn add(&mut self, tensors: &[TensorOut<'_>]) -> Result<(), CompressError> {
        let bytes = tensors
            .iter()
            .map(|tensor| tensor.bytes() as u64)
            .sum::<u64>();
        if !self.parts.is_empty() && self.parts_bytes + bytes > self.limit_bytes {
            self.join_parts()?;
        }
        let path = self
            .dir
            .join(format!("part-{}.safetensors", self.parts.len()));
        container::write(&path, tensors, &BTreeMap::new())?;
        self.parts.push(path);
        self.parts_bytes += bytes;
        self.total_bytes += bytes;
        Ok(())
    }

    /// Makes one file of the parts that are there.
    fn join_parts(&mut self) -> Result<(), CompressError> {
        let parts = self
            .parts
            .iter()
            .map(TensorFile::open)
            .collect::<Result<Vec<_>, _>>()?;
        // What other readers of safetensors files look for.
        let mut metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let mut tensors = Vec::new();
        for part in &parts {
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
        let path = self
            .dir
            .join(format!("shard-{}.safetensors", self.finished.len()));
        container::write(&path, &tensors, &metadata)?;
        let names = tensors
            .iter()
            .map(|tensor| tensor.name().to_owned())
            .collect();
        self.finished.push((path, names));
        for part in self.parts.drain(..) {
            fs::remove_file(&part).map_err(|error| CompressError::io(&part, error))?;
        }
        self.parts_bytes = 0;
        Ok(())
    }

    /// Gives the files their names, and writes the index if there are several. Returns how many there are.
    ///
    /// # Errors
    /// [`CompressError::Format`] or [`CompressError::Io`] if a file cannot be written.
    pub(crate) fn finish(mut self) -> Result<usize, CompressError> {
        self.join_parts()?;
        let count = self.finished.len();
        let mut weight_map = Map::new();
        for (index, (path, names)) in self.finished.iter().enumerate() {
            let file = match count {
                1 => SINGLE.to_owned(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
            };
            fs::rename(path, self.dir.join(&file))
                .map_err(|error| CompressError::io(path, error))?;
            weight_map.extend(names.iter().map(|name| (name.clone(), json!(file))));
        }
        if count > 1 {
            let index =
                json!({ "metadata": { "total_size": self.total_bytes }, "weight_map": weight_map });
            files::write_json(&self.dir.join(INDEX), &index)?;
        }
        Ok(count)
    }
}
