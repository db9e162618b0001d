//! Plain tensors and those that this program packed.

use std::collections::BTreeMap;
use std::path::Path;

use sparamx_format::container::{self, PackedWeight, TensorFile};
use sparamx_format::{ElementKind, WeightFormat};

use super::shards::Shards;
use super::stored::{At, Stored, Tensors, missing};
use super::unneeded::{self, LeftOut};
use crate::checkpoint::convert::Source;
use crate::families::plan::{self, TensorPlan};
use crate::{Config, ModelError, Precision};

/// Suffixes of the tensors of a packed weight. That with the masks makes a weight a packed one, and so does an entry in the
/// header for a format without masks.
pub(super) const PACKED: [&str; 4] = [MASK, VALUES, ".offsets", ".scale"];
const MASK: &str = ".mask";
const VALUES: &str = ".values";

/// The tensors of the files, those of each packed weight put together.
pub(super) struct Named<'a> {
    dir: &'a Path,
    shards: &'a Shards,
    /// By the names that the model has for them.
    found: BTreeMap<String, Found>,
}

/// A tensor, or the tensors of a packed weight, as the files' names show it.
struct Found {
    at: At,
    packed: bool,
}

impl<'a> Named<'a> {
    pub(super) fn new(dir: &'a Path, shards: &'a Shards) -> Result<Self, ModelError> {
        let mut found = BTreeMap::new();
        for (name, &file) in &shards.names {
            let (name, packed) = match packed_weight(shards, name, file) {
                // It cannot be both.
                Some(weight) if shards.names.contains_key(weight) => {
                    return Err(ModelError::UnexpectedTensor {
                        dir: dir.to_owned(),
                        tensor: name.clone(),
                    });
                }
                Some(weight) => (weight.to_owned(), true),
                None => (name.clone(), false),
            };
            let at = At {
                file,
                name: name.clone(),
            };
            found.insert(name, Found { at, packed });
        }
        Ok(Self { dir, shards, found })
    }

    /// A tensor against what the configuration asks for; how it is packed, if it is. Shapes inside a packed one are checked when
    /// it is mapped.
    fn check(
        &self,
        config: &Config,
        tensor: &TensorPlan,
        found: &Found,
    ) -> Result<Option<WeightFormat>, ModelError> {
        let (path, file) = &self.shards.files[found.at.file];
        let name = &found.at.name;
        if found.packed {
            return self
                .check_packed(config, tensor, name, path, file)
                .map(Some);
        }
        let view = file.tensor(name).ok_or_else(|| missing(self.dir, name))?;
        if view.shape != tensor.shape {
            return Err(ModelError::Shape {
                path: path.clone(),
                tensor: name.clone(),
                expected: tensor.shape.clone(),
                found: view.shape,
            });
        }
        Source::new(path, name, &view).map(|_| None)
    }

    fn check_packed(
        &self,
        config: &Config,
        tensor: &TensorPlan,
        name: &str,
        path: &Path,
        file: &TensorFile,
    ) -> Result<WeightFormat, ModelError> {
        let part = |suffix| format!("{name}{suffix}");
        let Some(expected) = config.packed.filter(|_| tensor.role.may_be_packed()) else {
            let masks = file.tensor(&part(MASK)).is_some();
            return Err(ModelError::UnexpectedTensor {
                dir: self.dir.to_owned(),
                tensor: part(if masks { MASK } else { VALUES }),
            });
        };
        let packed = container::packed_weight(file, name)?;
        // The masks are in another file than the last of the other tensors.
        let packed = packed.ok_or_else(|| missing(path, &part(MASK)))?;
        let found = precision(&packed);
        if found != expected {
            return Err(ModelError::Precision {
                path: path.to_owned(),
                tensor: name.to_owned(),
                expected,
                found,
            });
        }
        Ok(packed.format)
    }
}

impl Tensors for Named<'_> {
    fn has(&self, name: &str) -> bool {
        self.found.contains_key(name)
    }

    fn head_is_embedding(&mut self) {
        if let Some(head) = self.found.remove(plan::HEAD) {
            self.found.insert(plan::EMBEDDING.to_owned(), head);
        }
    }

    fn find(
        mut self,
        config: &Config,
        plan: &[TensorPlan],
        left_out: &mut LeftOut,
    ) -> Result<Vec<Stored>, ModelError> {
        let mut stored = Vec::with_capacity(plan.len());
        for tensor in plan {
            let found = self.found.remove(&tensor.name);
            let found = found.ok_or_else(|| missing(self.dir, &tensor.name))?;
            stored.push(match self.check(config, tensor, &found)? {
                None => Stored::Plain(found.at),
                Some(format) => Stored::Packed(found.at, format),
            });
        }
        // Part of a packed weight that has lost another part: its name is damaged.
        let part = |name: &str| {
            config.packed.is_some() && PACKED.iter().any(|suffix| name.ends_with(suffix))
        };
        for tensor in self.found.into_keys() {
            match unneeded::kind(config, &tensor).filter(|_| !part(&tensor)) {
                Some(kind) => left_out.add(kind, &tensor),
                None => {
                    let dir = self.dir.to_owned();
                    return Err(ModelError::UnexpectedTensor { dir, tensor });
                }
            }
        }
        Ok(stored)
    }
}

/// The packed weight that a tensor belongs to.
fn packed_weight<'n>(shards: &Shards, name: &'n str, file: usize) -> Option<&'n str> {
    let weight = PACKED.iter().find_map(|suffix| name.strip_suffix(suffix))?;
    let file = &shards.files[file].1;
    let packed = shards.names.contains_key(&format!("{weight}{MASK}"))
        || file.metadata(&format!("{weight}.format")).is_some();
    packed.then_some(weight)
}

/// The dtype of a packed weight, by the words of the configuration.
fn precision(packed: &PackedWeight) -> Precision {
    match (packed.format.element(), packed.group_elems) {
        (ElementKind::Bf16, _) => Precision::Bf16,
        (ElementKind::Int4, Some(group_elems)) => Precision::Int4 { group_elems },
        // int4 has groups: a file that says otherwise was refused.
        (ElementKind::Int8 | ElementKind::Int4, _) => Precision::Int8,
    }
}
