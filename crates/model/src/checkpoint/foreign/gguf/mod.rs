//! GGUF files: tensors under the names of llama.cpp, `config.json` and the tokenizer from the metadata.

mod config;
mod keys;
mod pre;
mod tokenizer;
mod vocabulary;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};
use sparamx_format::FormatError;
use sparamx_format::container::Dtype;
use sparamx_format::gguf::{self, Blocks, GgufFile, GgufTensor, GgufType};

use super::{Decode, Decoded, Foreign, Groups, Quantized, Vector};
use crate::checkpoint::encoding::Encoding;
use crate::checkpoint::unneeded::{Kind, LATER_LAYERS, LeftOut, OTHER, PREDICTION};
use crate::config::Described;
use crate::families::parts::{self, Part};
use crate::families::plan::{self, TensorPlan};
use crate::{Arch, Config, ModelError};
use keys::Keys;
use vocabulary::Vocabulary;

/// Tensors whose content is in the configuration.
const ROPE_FREQS: &str = "rope_freqs.weight";

/// An open file.
pub(crate) struct Gguf {
    file: Arc<GgufFile>,
    /// Index of each tensor.
    names: BTreeMap<String, usize>,
}

/// A tensor of the model.
pub(crate) enum Found {
    Matrix(Foreign),
    Vector(Vector),
}

impl Gguf {
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let file = GgufFile::open(path)?;
        let tensors = file.tensors().iter().enumerate();
        let names = tensors.map(|(i, tensor)| (tensor.name.clone(), i));
        Ok(Self {
            names: names.collect(),
            file: Arc::new(file),
        })
    }

    /// The text of a small file of the model, as a folder in Hugging Face layout has it; nothing for a name that is not made
    /// from metadata, or whose metadata are not there.
    pub(crate) fn side_file(&self, name: &str) -> Result<Option<Vec<u8>>, ModelError> {
        let keys = Keys::new(&self.file)?;
        let vocabulary = Vocabulary::read(&keys)?;
        let value = match (name, &vocabulary) {
            ("config.json", _) => Some(config::config(self, &keys, vocabulary.as_ref())?),
            ("generation_config.json", _) => Some(generation_config(&keys, vocabulary.as_ref())?),
            ("tokenizer.json", Some(vocabulary)) => Some(tokenizer::tokenizer(&keys, vocabulary)?),
            ("tokenizer_config.json", Some(vocabulary)) => {
                Some(tokenizer::tokenizer_config(&keys, vocabulary)?)
            }
            _ => None,
        };
        Ok(value.map(|value| format!("{value:#}\n").into_bytes()))
    }

    /// What the metadata say of the model, and a line each on what was passed over.
    pub(crate) fn config(&self) -> Result<(Config, Vec<String>), ModelError> {
        let keys = Keys::new(&self.file)?;
        let vocabulary = Vocabulary::read(&keys)?;
        let json = config::config(self, &keys, vocabulary.as_ref())?.to_string();
        let described = Config::describe(json.as_bytes(), self.file.path());
        let Described { config, notes, .. } =
            described.map_err(|error| config::in_own_words(error, keys.arch))?;
        let tokens = vocabulary
            .into_iter()
            .flat_map(|vocabulary| vocabulary.notes);
        let notes = notes.into_iter().chain(tokens);
        Ok((config, notes.chain(tokenizer::note(&keys)?).collect()))
    }

    /// The tensors of the plan, in its order.
    pub(crate) fn tensors(
        &self,
        config: &Config,
        plan: &[TensorPlan],
        left_out: &mut LeftOut,
    ) -> Result<Vec<Found>, ModelError> {
        let mut used = HashSet::from([ROPE_FREQS.to_owned()]);
        let found = plan
            .iter()
            .map(|tensor| {
                let name = name_of(&tensor.name);
                let found = self.find(config, tensor, &name)?;
                used.insert(name);
                Ok(found)
            })
            .collect::<Result<_, ModelError>>()?;
        for name in self.names.keys().filter(|name| !used.contains(*name)) {
            match unneeded(config, name) {
                Some(kind) => left_out.add(kind, name),
                None => {
                    return Err(ModelError::UnexpectedTensor {
                        dir: self.file.path().to_owned(),
                        tensor: name.clone(),
                    });
                }
            }
        }
        Ok(found)
    }

    fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.names.get(name).map(|&i| &self.file.tensors()[i])
    }

    fn find(&self, config: &Config, tensor: &TensorPlan, name: &str) -> Result<Found, ModelError> {
        let path = self.file.path().to_owned();
        let Some(found) = self.tensor(name) else {
            let (dir, tensor) = (path, name.to_owned());
            return Err(ModelError::MissingTensor { dir, tensor });
        };
        if found.shape != tensor.shape {
            return Err(ModelError::Shape {
                path,
                tensor: name.to_owned(),
                expected: tensor.shape.clone(),
                found: found.shape.clone(),
            });
        }
        let matrix = tensor.shape.len() == 2;
        let form = Form::of(found.kind).filter(|form| matrix || matches!(form, Form::Float(_)));
        let Some(form) = form else {
            return Err(ModelError::BadTensor {
                path,
                tensor: name.to_owned(),
                reason: format!(
                    "type {} is not supported; supported are F32, F16 and BF16, and Q8_0, Q4_0, Q4_1 and Q6_K for matrices: \
                     llama-quantize --allow-requantize IN OUT Q8_0 converts the file",
                    found.kind.name()
                ),
            });
        };
        let bytes = self.file.bytes(found).len() as u64;
        let source = Tensor {
            file: Arc::clone(&self.file),
            index: self.names[name],
            form,
            heads: rotated_heads(config, &tensor.name),
        };
        Ok(match form {
            Form::Float(dtype) if !matrix => Found::Vector(Vector {
                elements: source.float_rows(dtype, 1).into_owned(),
                path,
                dtype,
                shape: tensor.shape.clone(),
                encoding: Encoding::Gguf,
                bytes,
            }),
            _ => Found::Matrix(Foreign {
                source: Box::new(source),
                path,
                form: OnceLock::new(),
                encoding: Encoding::Gguf,
                dtype: found.kind.name().to_owned(),
                bytes,
            }),
        })
    }
}

/// The name that llama.cpp has for a tensor of the plan.
fn name_of(name: &str) -> String {
    match name {
        plan::EMBEDDING => return "token_embd.weight".to_owned(),
        plan::FINAL_NORM => return "output_norm.weight".to_owned(),
        plan::HEAD => return "output.weight".to_owned(),
        _ => {}
    }
    let in_layer = name.strip_prefix("model.layers.").and_then(|rest| {
        let (layer, rest) = rest.split_once('.')?;
        let (module, part) = rest.rsplit_once('.')?;
        let named = parts::all().find(|part| part.module == module)?;
        Some(format!("blk.{layer}.{}.{part}", named.gguf))
    });
    in_layer.unwrap_or_else(|| name.to_owned())
}

/// What a tensor is, if the model computes the same without it.
fn unneeded(config: &Config, name: &str) -> Option<Kind> {
    let (first, rest) = name.split_once('.')?;
    let layer = rest.split('.').next();
    let layer: Option<usize> = layer.and_then(|layer| layer.parse().ok());
    match (first, layer) {
        // Old converters wrote a table that nothing reads.
        ("blk", _) if name.ends_with(".attn_rot_embd.weight") => Some(Kind::Silent),
        ("blk", _) if name.contains(".nextn.") => Some(PREDICTION),
        ("blk", Some(layer)) if layer >= config.num_hidden_layers => Some(LATER_LAYERS),
        ("mtp" | "nextn", _) => Some(PREDICTION),
        ("cls" | "v" | "mm" | "a", _) => Some(OTHER),
        _ => None,
    }
}

/// The heads of a tensor whose rows llama.cpp keeps in another order: for the architecture `llama`, those that rotary
/// embeddings turn, so that the two elements of a pair are neighbours.
fn rotated_heads(config: &Config, name: &str) -> Option<usize> {
    if config.arch != Arch::Llama {
        return None;
    }
    let [q, k, _] = &parts::QKV;
    let heads = [
        (q, config.num_attention_heads),
        (k, config.num_key_value_heads),
    ];
    let is = |(part, _): &(&Part, usize)| name.contains(&format!(".{}.", part.module));
    heads.into_iter().find(is).map(|(_, heads)| heads)
}

/// The forms that are decoded.
#[derive(Clone, Copy)]
enum Form {
    Float(Dtype),
    /// Levels of 4 bits, where `narrow`, or of 8, with a scale a block.
    Blocks {
        decode: fn(&[u8]) -> Result<Blocks, FormatError>,
        narrow: bool,
    },
    /// Blocks that no form of levels has, as f32.
    Values(fn(&[u8]) -> Result<Vec<f32>, FormatError>),
}

impl Form {
    fn of(kind: GgufType) -> Option<Self> {
        let blocks = |decode, narrow| Some(Form::Blocks { decode, narrow });
        match kind {
            GgufType::F32 => Some(Form::Float(Dtype::F32)),
            GgufType::F16 => Some(Form::Float(Dtype::F16)),
            GgufType::Bf16 => Some(Form::Float(Dtype::BF16)),
            GgufType::Q8_0 => blocks(gguf::q8_0, false),
            GgufType::Q6K => blocks(gguf::q6_k, false),
            GgufType::Q4_0 => blocks(gguf::q4_0, true),
            GgufType::Q4_1 => Some(Form::Values(gguf::q4_1)),
            GgufType::Other(_) => None,
        }
    }
}

fn generation_config(keys: &Keys, vocabulary: Option<&Vocabulary>) -> Result<Value, ModelError> {
    let (bos, ends) = config::ids(keys, vocabulary)?;
    Ok(json!({"bos_token_id": bos, "eos_token_id": ends}))
}

/// A tensor, and the number of its heads if their rows have llama.cpp's order.
struct Tensor {
    file: Arc<GgufFile>,
    index: usize,
    form: Form,
    heads: Option<usize>,
}

impl Tensor {
    fn tensor(&self) -> &GgufTensor {
        &self.file.tensors()[self.index]
    }

    /// The bytes of floats, rows of `k` elements in Hugging Face's order.
    fn float_rows(&self, dtype: Dtype, k: usize) -> Cow<'_, [u8]> {
        let bytes = self.file.bytes(self.tensor());
        self.ordered(Cow::Borrowed(bytes), k * (dtype.bitsize() / 8))
    }

    /// An error of a decoder, with the tensor and the file.
    fn named(&self, error: FormatError) -> ModelError {
        let error = error.in_tensor(&self.tensor().name);
        error.in_file(self.file.path()).into()
    }

    /// Rows of `width` values in Hugging Face's order: a head's first elements of pairs, then the second ones.
    fn ordered<'a, T: Copy>(&self, rows: Cow<'a, [T]>, width: usize) -> Cow<'a, [T]> {
        let Some(heads) = self.heads else {
            return rows;
        };
        let head_dim = rows.len() / width / heads;
        let mut out = Vec::with_capacity(rows.len());
        for head in rows.chunks(width * head_dim) {
            for half in 0..2 {
                for pair in 0..head_dim / 2 {
                    let row = 2 * pair + half;
                    out.extend_from_slice(&head[row * width..][..width]);
                }
            }
        }
        Cow::Owned(out)
    }
}

impl Decode for Tensor {
    fn decode(&self, n: usize, k: usize) -> Result<Decoded<'_>, ModelError> {
        let tensor = self.tensor();
        let (decode, narrow) = match self.form {
            Form::Float(dtype) => {
                let bytes = self.float_rows(dtype, k);
                return Ok(Decoded::Float { dtype, bytes });
            }
            Form::Values(decode) => {
                let values = decode(self.file.bytes(tensor)).map_err(|e| self.named(e))?;
                let values = self.ordered(Cow::Owned(values), k);
                let bytes = values.iter().flat_map(|value| value.to_le_bytes());
                let (dtype, bytes) = (Dtype::F32, Cow::Owned(bytes.collect()));
                return Ok(Decoded::Float { dtype, bytes });
            }
            Form::Blocks { decode, narrow } => (decode, narrow),
        };
        let Blocks { levels, mut scales } =
            decode(self.file.bytes(tensor)).map_err(|e| self.named(e))?;
        let columns = levels.len() / scales.len();
        // A scale of -0 is worth the same as 0, which is what kernels take.
        scales.iter_mut().for_each(|scale| *scale += 0.0);
        if let Some(block) = scales.iter().position(|scale| !scale.is_finite()) {
            return Err(ModelError::NotFinite {
                path: self.file.path().to_owned(),
                tensor: tensor.name.clone(),
                element: block * columns,
                value: scales[block],
            });
        }
        Ok(Decoded::Levels(Quantized {
            n,
            k,
            narrow,
            levels: self.ordered(Cow::Owned(levels), k),
            scales: self.ordered(Cow::Owned(scales), k / columns).into_owned(),
            zeros: None,
            groups: Groups::Of(columns),
        }))
    }

    fn floats(&self) -> Option<Dtype> {
        match self.form {
            Form::Float(dtype) => Some(dtype),
            Form::Values(_) => Some(Dtype::F32),
            Form::Blocks { .. } => None,
        }
    }

    fn stored_elements(&self) -> Option<usize> {
        None
    }

    fn release(&self) {
        self.file.release(self.tensor());
    }
}
