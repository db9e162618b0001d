//! The safetensors files of a folder: one, or several with an index or numbered names.

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::path::{Component, Path, PathBuf};

use serde_json::Value;
use sparamx_format::container::TensorFile;

use super::files::model_file_names;
use super::unneeded;
use crate::config::json;
use crate::config::small_file::{is_there, read_small_file};
use crate::{Config, ModelError};

/// The only file, where there is one.
const SINGLE: &str = "model.safetensors";
/// The file that says which tensor is in which.
const INDEX: &str = "model.safetensors.index.json";

/// Open files, and the tensors in them.
pub(crate) struct Shards {
    /// Paths and files.
    pub files: Vec<(PathBuf, TensorFile)>,
    /// The file of each tensor, by index.
    pub names: BTreeMap<String, usize>,
}

/// The files that an index names for tensors.
type Index = BTreeMap<String, String>;

impl Shards {
    /// Opens the files of a folder. What is in a file its own header says; an index only says which files there are, and which of
    /// two copies counts.
    ///
    /// # Errors
    /// [`ModelError::NoWeights`], [`ModelError::MissingShard`], [`ModelError::BadTensor`] for a tensor that is in two files;
    /// whatever keeps a file from being read.
    pub(crate) fn open(dir: &Path, config: &Config) -> Result<Self, ModelError> {
        if is_there(&dir.join(SINGLE))? {
            return Self::of(dir, [SINGLE], &Index::new());
        }
        let path = dir.join(INDEX);
        let index = match read_small_file(&path)? {
            Some(text) => parse(&text, &path)?,
            None => Index::new(),
        };
        // An empty index says as little as none.
        if !index.is_empty() {
            let mut names = BTreeSet::new();
            for (tensor, shard) in &index {
                if names.contains(shard.as_str()) || is_there(&dir.join(shard))? {
                    names.insert(shard.as_str());
                } else if unneeded::kind(config, tensor).is_none() {
                    return Err(missing(&path, shard, Some(tensor)));
                }
            }
            return Self::of(dir, names, &index);
        }
        let names = numbered(dir)?;
        if names.is_empty() {
            return Err(no_weights(dir));
        }
        if let Some(name) = first_missing(dir, &names)? {
            return Err(missing(dir, name, None));
        }
        Self::of(dir, names.iter().map(String::as_str), &Index::new())
    }

    fn of<'n>(
        dir: &Path,
        files: impl IntoIterator<Item = &'n str>,
        index: &Index,
    ) -> Result<Self, ModelError> {
        let mut shards = Shards {
            files: Vec::new(),
            names: BTreeMap::new(),
        };
        for shard in files {
            let path = dir.join(shard);
            let file = TensorFile::open(&path)?;
            for name in file.names() {
                shards.add(name, shard, index, &path)?;
            }
            shards.files.push((path, file));
        }
        Ok(shards)
    }

    /// Adds a tensor of the file that comes next.
    fn add(
        &mut self,
        name: String,
        shard: &str,
        index: &Index,
        path: &Path,
    ) -> Result<(), ModelError> {
        let file = self.files.len();
        match self.names.entry(name) {
            Entry::Vacant(entry) => {
                entry.insert(file);
            }
            Entry::Occupied(mut entry) => match index.get(entry.key()) {
                Some(named) if named == shard => {
                    entry.insert(file);
                }
                Some(named) if self.files[*entry.get()].0.ends_with(named) => {}
                _ => {
                    let other = &self.files[*entry.get()].0;
                    return Err(ModelError::BadTensor {
                        path: path.to_owned(),
                        tensor: entry.key().clone(),
                        reason: format!(
                            "it is in {} too, and no index says which of the two counts: remove the file of another model",
                            other.display()
                        ),
                    });
                }
            },
        }
        Ok(())
    }

    /// Whether two plain tensors are the same, bit for bit. Their pages are given back.
    pub(crate) fn equal(&self, a: &str, b: &str) -> bool {
        let file = |name: &str| Some(&self.files[*self.names.get(name)?].1);
        let view = |name| file(name)?.tensor(name);
        let equal = match (view(a), view(b)) {
            (Some(a), Some(b)) => a == b,
            _ => false,
        };
        for name in [a, b] {
            file(name).inspect(|file| file.release(name));
        }
        equal
    }
}

/// Reads an index.
fn parse(text: &[u8], path: &Path) -> Result<Index, ModelError> {
    let map = json::object(text, path)?;
    let weight_map = map.get("weight_map").and_then(Value::as_object);
    let weight_map = weight_map.ok_or_else(|| ModelError::MissingField {
        path: path.to_owned(),
        field: "weight_map".to_owned(),
    })?;
    let entry = |(tensor, shard): (&String, &Value)| {
        let shard = shard_name(path, tensor, shard)?;
        Ok((tensor.clone(), shard.to_owned()))
    };
    weight_map.iter().map(entry).collect()
}

/// The file that an index names. An index is input from elsewhere: it may not lead out of its folder.
fn shard_name<'a>(index: &Path, tensor: &str, shard: &'a Value) -> Result<&'a str, ModelError> {
    let name = shard.as_str().filter(|name| {
        let mut parts = Path::new(name).components();
        matches!(
            (parts.next(), parts.next()),
            (Some(Component::Normal(_)), None)
        )
    });
    name.ok_or_else(|| ModelError::BadField {
        path: index.to_owned(),
        field: format!("weight_map.{tensor}"),
        found: shard.to_string(),
        expected: "the name of a file in the same folder".to_owned(),
    })
}

/// All names `model-00001-of-0000N.safetensors` of the series that some file in the folder belongs to; none if none does.
///
/// # Errors
/// [`ModelError::NoWeights`] for files of several series, [`ModelError::Io`].
fn numbered(dir: &Path) -> Result<Vec<String>, ModelError> {
    let count = |name: &String| {
        let numbers = name.strip_prefix("model-")?.strip_suffix(".safetensors")?;
        let (number, count) = numbers.split_once("-of-")?;
        let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
        (digits(number) && digits(count)).then(|| count.to_owned())
    };
    let counts: BTreeSet<String> = model_file_names(dir)?.iter().filter_map(count).collect();
    let all = |count: &String| {
        let number: usize = count.parse().unwrap_or(0);
        (1..=number).map(move |i| format!("model-{i:05}-of-{number:05}.safetensors"))
    };
    if counts.len() > 1 {
        return Err(ModelError::NoWeights {
            dir: dir.to_owned(),
            hint: "files of several series here, and no model.safetensors.index.json that says which make up the model: download it",
        });
    }
    Ok(counts.iter().flat_map(all).collect())
}

fn first_missing<'n>(dir: &Path, names: &'n [String]) -> Result<Option<&'n str>, ModelError> {
    for name in names {
        if !is_there(&dir.join(name))? {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn missing(index: &Path, shard: &str, tensor: Option<&str>) -> ModelError {
    ModelError::MissingShard {
        index: index.to_owned(),
        shard: shard.to_owned(),
        tensor: tensor.map(str::to_owned),
    }
}

fn no_weights(dir: &Path) -> ModelError {
    let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"]
        .iter()
        .any(|name| dir.join(name).is_file());
    let hint = if pickled {
        "only pytorch_model.bin here: save the model again with save_pretrained(..., safe_serialization=True)"
    } else {
        "neither model.safetensors nor model.safetensors.index.json here: give a folder in Hugging Face layout"
    };
    ModelError::NoWeights {
        dir: dir.to_owned(),
        hint,
    }
}
