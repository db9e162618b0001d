//! From a checkpoint to a model that can run.

use std::collections::HashMap;

use rayon::ThreadPool;
use sparamx_cpu::topology;
use sparamx_format::{DenseBf16, LINE_ELEMS_BF16, STRIP_ROWS};
use sparamx_kernels::attention::Params;
use sparamx_kernels::{KernelError, Linear, Runtime, Weight};

use crate::families::parts::{self, Part};
use crate::families::plan::{self, TensorPlan};
use crate::families::spec::FfnKind;
use crate::pass::decoder::DecoderLayer;
use crate::pass::layers::Layer;
use crate::pass::layers::attention::Attention;
use crate::pass::layers::ffn::{Ffn, Gated};
use crate::pass::layers::norm::Norm;
use crate::pass::layers::projection::Projection;
use crate::pass::model::{Inexact, Model};
use crate::pass::rope::Rope;
use crate::{Checkpoint, Config, ModelError};

/// How to load.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions {
    /// Memory that the model may use; `None` asks the operating system.
    pub available_bytes: Option<u64>,
}

/// How far loading is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The tensor that was just loaded.
    pub tensor: &'a str,
    /// Bytes of memory filled so far.
    pub done_bytes: u64,
    /// Bytes of memory there are to fill.
    pub total_bytes: u64,
}

impl Model {
    /// Loads all weights. Packed and quantized ones are used from the map; plain ones are rounded to bf16 and put in the kernels' order, on
    /// as many threads as the runtime has.
    ///
    /// # Errors
    /// [`ModelError::NotEnoughMemory`] before anything is read; [`ModelError::NotFinite`] and [`ModelError::Format`] for
    /// damaged weights; [`ModelError::Kernel`] if there are no threads to be had.
    pub fn load(
        rt: &Runtime,
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Self, ModelError> {
        check_memory(Self::required_bytes(checkpoint), options.available_bytes)?;
        let total_bytes = memory(checkpoint).sum();
        let (inexact, done_bytes) = (Inexact::default(), 0);
        let threads = threads(rt)?;
        let mut source = FromCheckpoint {
            checkpoint,
            progress,
            inexact,
            done_bytes,
            total_bytes,
            threads,
        };
        let mut model = build(checkpoint.config(), &mut source)?;
        model.inexact = source.inexact;
        Ok(model)
    }

    /// Bytes of memory that loading takes at its peak: all weights as the kernels hold them, and the largest one once more
    /// as it is converted. KV cache and buffers come on top.
    pub fn required_bytes(checkpoint: &Checkpoint) -> u64 {
        memory(checkpoint)
            .fold(0, u64::saturating_add)
            .saturating_add(memory(checkpoint).max().unwrap_or(0))
    }
}

impl DecoderLayer {
    /// Reads layer `index` of a checkpoint, on the threads of rayon's current pool.
    ///
    /// # Errors
    /// [`ModelError::NotFinite`] or [`ModelError::Format`] for damaged weights.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn load(checkpoint: &Checkpoint, index: usize) -> Result<Self, ModelError> {
        let config = checkpoint.config();
        let layers = config.num_hidden_layers;
        assert!(index < layers, "layer {index} of {layers}");
        let plan = plan::tensors(config);
        let layer = Builder::new(config, &plan, &mut Plain(checkpoint)).layer(index)?;
        Ok(Self(layer))
    }
}

/// Where weights come from: a checkpoint or a random generator.
pub(crate) trait Source {
    /// A matrix that has to be dense.
    fn dense(&mut self, tensor: &TensorPlan) -> Result<DenseBf16, ModelError>;
    /// A matrix, dense or packed.
    fn weight(&mut self, tensor: &TensorPlan) -> Result<Weight, ModelError>;
    /// A norm or a bias.
    fn vector(&mut self, tensor: &TensorPlan) -> Result<Vec<f32>, ModelError>;
}

/// Puts a model together.
pub(crate) fn build(config: &Config, source: &mut dyn Source) -> Result<Model, ModelError> {
    let plan = plan::tensors(config);
    let mut builder = Builder::new(config, &plan, source);
    let embedding = builder.source.dense(builder.plan[plan::EMBEDDING])?;
    let layers = (0..config.num_hidden_layers)
        .map(|l| builder.layer(l))
        .collect::<Result<_, _>>()?;
    let norm = builder.source.vector(builder.plan[plan::FINAL_NORM])?;
    let weight = match builder.plan.get(plan::HEAD) {
        Some(tensor) => builder.source.weight(tensor)?,
        None => Weight::DenseBf16(embedding.clone()),
    };
    let linear = Linear { weight, bias: None };
    Ok(Model {
        config: config.clone(),
        embedding,
        layers,
        norm: Norm::last(config, norm),
        lm_head: Projection {
            module: "lm_head",
            linear,
        },
        ropes: Rope::all(config),
        inexact: Inexact::default(),
    })
}

/// Takes tensors from a source by their names. What the plan does not have, the model does without.
struct Builder<'a> {
    config: &'a Config,
    plan: HashMap<&'a str, &'a TensorPlan>,
    source: &'a mut dyn Source,
}

impl<'a> Builder<'a> {
    fn new(config: &'a Config, plan: &'a [TensorPlan], source: &'a mut dyn Source) -> Self {
        let plan = plan
            .iter()
            .map(|tensor| (tensor.name.as_str(), tensor))
            .collect();
        Builder {
            config,
            plan,
            source,
        }
    }

    /// The parts in the order of the plan.
    fn layer(&mut self, l: usize) -> Result<Layer, ModelError> {
        Ok(Layer {
            norm_place: self.config.layers[l].norm_place,
            attention_norm: self.norm(l, &parts::ATTENTION_NORM)?,
            attention: self.attention(l)?,
            ffn_norm: self.norm(l, &parts::FFN_NORM)?,
            ffn: self.ffn(l)?,
        })
    }

    fn attention(&mut self, l: usize) -> Result<Attention, ModelError> {
        let (c, spec) = (self.config, &self.config.layers[l]);
        Ok(Attention {
            layer: l,
            qkv: self.all(l, &parts::QKV, Self::linear)?,
            qk_norms: spec
                .qk_norm
                .then(|| self.all(l, &parts::QK_NORMS, Self::norm))
                .transpose()?,
            o: self.linear(l, &parts::O)?,
            rotation: spec.rotation,
            params: Params {
                heads: c.num_attention_heads,
                kv_heads: c.num_key_value_heads,
                head_dim: c.head_dim,
                scale: spec.score_scale,
                window: spec.window,
            },
        })
    }

    fn ffn(&mut self, l: usize) -> Result<Ffn, ModelError> {
        let spec = &self.config.layers[l];
        match spec.ffn {
            FfnKind::Gated => Ok(Ffn::Gated(Gated {
                activation: spec.activation,
                gate_up: self.all(l, &parts::GATE_UP, Self::linear)?,
                down: self.linear(l, &parts::DOWN)?,
            })),
        }
    }

    /// What `read` makes of each of some parts.
    fn all<T, const N: usize>(
        &mut self,
        l: usize,
        parts: &'static [Part; N],
        read: fn(&mut Self, usize, &'static Part) -> Result<T, ModelError>,
    ) -> Result<[T; N], ModelError> {
        let list = parts.iter().map(|part| read(self, l, part));
        let list = list.collect::<Result<Vec<T>, _>>()?;
        Ok(list
            .try_into()
            .unwrap_or_else(|_| unreachable!("one for each part")))
    }

    fn linear(&mut self, l: usize, part: &'static Part) -> Result<Projection, ModelError> {
        let tensor = self.plan[plan::layer(l, part.module, "weight").as_str()];
        let weight = self.source.weight(tensor)?;
        let bias = self.plan.get(plan::layer(l, part.module, "bias").as_str());
        let bias = bias.map(|tensor| self.source.vector(tensor)).transpose()?;
        Ok(Projection {
            module: part.module,
            linear: Linear { weight, bias },
        })
    }

    fn norm(&mut self, l: usize, part: &'static Part) -> Result<Norm, ModelError> {
        let tensor = self.plan[plan::layer(l, part.module, "weight").as_str()];
        Ok(Norm {
            kind: self.config.layers[l].norm,
            weight: self.source.vector(tensor)?,
            eps: self.config.rms_norm_eps,
        })
    }
}

/// Tensors as they are in a checkpoint; their pages are released when they are in memory.
struct Plain<'a>(&'a Checkpoint);

impl Source for Plain<'_> {
    fn dense(&mut self, tensor: &TensorPlan) -> Result<DenseBf16, ModelError> {
        let rows = self.0.raw_rows(&tensor.name)?;
        let dense = DenseBf16::from_rows(&rows.bits, rows.n, rows.k)?;
        self.0.release(&tensor.name);
        Ok(dense)
    }

    fn weight(&mut self, tensor: &TensorPlan) -> Result<Weight, ModelError> {
        match self.0.packed(&tensor.name)? {
            None => Ok(Weight::DenseBf16(self.dense(tensor)?)),
            Some(weight) => Ok(weight),
        }
    }

    fn vector(&mut self, tensor: &TensorPlan) -> Result<Vec<f32>, ModelError> {
        self.0.vector(&tensor.name)
    }
}

struct FromCheckpoint<'a> {
    checkpoint: &'a Checkpoint,
    progress: &'a mut dyn FnMut(Progress<'_>),
    inexact: Inexact,
    done_bytes: u64,
    total_bytes: u64,
    threads: ThreadPool,
}

impl FromCheckpoint<'_> {
    fn loaded(&mut self, tensor: &TensorPlan, bytes: u64) {
        self.done_bytes += bytes;
        let (done_bytes, total_bytes) = (self.done_bytes, self.total_bytes);
        (self.progress)(Progress {
            tensor: &tensor.name,
            done_bytes,
            total_bytes,
        });
    }
}

impl Source for FromCheckpoint<'_> {
    fn dense(&mut self, tensor: &TensorPlan) -> Result<DenseBf16, ModelError> {
        let checkpoint = self.checkpoint;
        let (dense, inexact) = self.threads.install(|| {
            let rows = checkpoint.raw_rows(&tensor.name)?;
            let dense = DenseBf16::from_rows(&rows.bits, rows.n, rows.k)?;
            Ok::<_, ModelError>((dense, rows.inexact as u64))
        })?;
        self.inexact.rounded += inexact;
        self.inexact.values += tensor.elements();
        self.loaded(tensor, dense_bytes(&tensor.shape));
        Ok(dense)
    }

    fn weight(&mut self, tensor: &TensorPlan) -> Result<Weight, ModelError> {
        let checkpoint = self.checkpoint;
        match self.threads.install(|| checkpoint.packed(&tensor.name))? {
            None => Ok(Weight::DenseBf16(self.dense(tensor)?)),
            Some(weight) => {
                self.inexact.values += tensor.elements();
                self.loaded(tensor, weight.bytes() as u64);
                Ok(weight)
            }
        }
    }

    fn vector(&mut self, tensor: &TensorPlan) -> Result<Vec<f32>, ModelError> {
        let vector = self.checkpoint.vector(&tensor.name)?;
        self.loaded(tensor, dense_bytes(&tensor.shape));
        Ok(vector)
    }
}

/// Threads for the work of loading, as many as the runtime has.
pub(crate) fn threads(rt: &Runtime) -> Result<ThreadPool, ModelError> {
    let threads = rt.threads();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(|e| {
        KernelError::Thread {
            threads,
            error: e.to_string(),
        }
        .into()
    })
}

/// Refuses what does not fit.
pub(crate) fn check_memory(
    needed_bytes: u64,
    available_bytes: Option<u64>,
) -> Result<(), ModelError> {
    match available_bytes.or_else(topology::available_memory_bytes) {
        Some(available_bytes) if needed_bytes > available_bytes => {
            Err(ModelError::NotEnoughMemory {
                needed_bytes,
                available_bytes,
            })
        }
        _ => Ok(()),
    }
}

/// Bytes of memory of each tensor.
fn memory(checkpoint: &Checkpoint) -> impl Iterator<Item = u64> + '_ {
    checkpoint.tensors().map(|t| {
        if t.packed.is_some() {
            t.bytes
        } else {
            dense_bytes(&t.shape)
        }
    })
}

/// Bytes of memory of a dense tensor: a matrix in bf16, padded to whole strips and lines, or a vector in f32.
pub(crate) fn dense_bytes(shape: &[usize]) -> u64 {
    match *shape {
        [n, k] => (n.next_multiple_of(STRIP_ROWS) * k.next_multiple_of(LINE_ELEMS_BF16)) as u64 * 2,
        _ => shape.iter().map(|&n| n as u64 * 4).sum(),
    }
}
