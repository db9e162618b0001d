//! From a checkpoint to a model that can run.

use std::collections::HashMap;

use rayon::ThreadPool;
use sparamx_cpu::topology;
use sparamx_format::{DenseBf16, LINE_ELEMS_BF16, STRIP_ROWS};
use sparamx_kernels::attention::Params;
use sparamx_kernels::linear::WeightFormat;
use sparamx_kernels::{KernelError, Linear, Runtime, Weight};

use crate::families::plan::{self, TensorPlan};
use crate::pass::layers::{Attention, Layer, Mlp, Norm};
use crate::pass::rope::Rope;
use crate::{Checkpoint, Config, ModelError};

/// A model in memory.
pub struct Model {
    pub(crate) config: Config,
    pub(crate) embedding: DenseBf16,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Norm,
    /// With tied embeddings its weight shares the embedding's memory.
    pub(crate) lm_head: Linear,
    pub(crate) rope: Rope,
    inexact: Inexact,
}

/// Values of a checkpoint that bf16 cannot hold and that were rounded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Inexact {
    /// Values in matrices.
    pub values: u64,
    /// How many of them were rounded.
    pub rounded: u64,
}

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

    /// The model's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Values that were rounded when the model was loaded.
    pub fn inexact(&self) -> Inexact {
        self.inexact
    }

    /// Bytes of weights that a forward pass of one token reads: every matrix but the embedding, unless it is also the output
    /// head.
    pub fn weight_bytes(&self) -> u64 {
        let layers: usize = self.projections().map(|weight| weight.bytes()).sum();
        (layers + self.lm_head.weight.bytes()) as u64
    }

    /// The form of the matrices in the decoder layers; where there are several, that of most bytes.
    pub fn weight_format(&self) -> WeightFormat {
        let bytes = |format: &WeightFormat| {
            let weights = self
                .projections()
                .filter(|weight| weight.format() == *format);
            weights.map(|weight| weight.bytes()).sum::<usize>()
        };
        let most = WeightFormat::ALL.into_iter().max_by_key(bytes);
        most.unwrap_or(WeightFormat::DenseBf16)
    }

    /// The matrices in the decoder layers.
    fn projections(&self) -> impl Iterator<Item = &Weight> {
        self.layers.iter().flat_map(|layer| {
            let (a, m) = (&layer.attention, &layer.mlp);
            [&a.q, &a.k, &a.v, &a.o, &m.gate, &m.up, &m.down].map(|linear| &linear.weight)
        })
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
    let norm = builder.norm(plan::FINAL_NORM)?;
    let lm_head = match builder.plan.get(plan::HEAD) {
        Some(tensor) => Linear {
            weight: builder.source.weight(tensor)?,
            bias: None,
        },
        None => Linear {
            weight: Weight::DenseBf16(embedding.clone()),
            bias: None,
        },
    };
    let (config, rope) = (config.clone(), Rope::new(config));
    Ok(Model {
        config,
        embedding,
        layers,
        norm,
        lm_head,
        rope,
        inexact: Inexact::default(),
    })
}

/// Takes tensors from a source by their names. What the plan does not have, the model does without.
struct Builder<'a> {
    config: &'a Config,
    plan: HashMap<&'a str, &'a TensorPlan>,
    source: &'a mut dyn Source,
}

/// Reads one decoder layer.
pub(crate) fn layer(checkpoint: &Checkpoint, l: usize) -> Result<Layer, ModelError> {
    let config = checkpoint.config();
    let plan = plan::tensors(config);
    Builder::new(config, &plan, &mut Plain(checkpoint)).layer(l)
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

    fn layer(&mut self, l: usize) -> Result<Layer, ModelError> {
        Ok(Layer {
            attention: self.attention(l)?,
            mlp: self.mlp(l)?,
        })
    }

    fn attention(&mut self, l: usize) -> Result<Attention, ModelError> {
        let c = self.config;
        Ok(Attention {
            layer: l,
            norm: self.norm(&plan::layer(l, "input_layernorm.weight"))?,
            q: self.linear(l, "self_attn.q_proj")?,
            k: self.linear(l, "self_attn.k_proj")?,
            v: self.linear(l, "self_attn.v_proj")?,
            head_norms: self.head_norms(l)?,
            o: self.linear(l, "self_attn.o_proj")?,
            params: Params {
                heads: c.num_attention_heads,
                kv_heads: c.num_key_value_heads,
                head_dim: c.head_dim,
                scale: c.layers[l].score_scale,
                window: c.layers[l].window,
            },
        })
    }

    fn mlp(&mut self, l: usize) -> Result<Mlp, ModelError> {
        Ok(Mlp {
            norm: self.norm(&plan::layer(l, "post_attention_layernorm.weight"))?,
            gate: self.linear(l, "mlp.gate_proj")?,
            up: self.linear(l, "mlp.up_proj")?,
            down: self.linear(l, "mlp.down_proj")?,
        })
    }

    fn linear(&mut self, l: usize, module: &str) -> Result<Linear, ModelError> {
        let weight = self
            .source
            .weight(self.plan[plan::layer(l, &format!("{module}.weight")).as_str()])?;
        let bias = match self
            .plan
            .get(plan::layer(l, &format!("{module}.bias")).as_str())
        {
            Some(bias) => Some(self.source.vector(bias)?),
            None => None,
        };
        Ok(Linear { weight, bias })
    }

    fn head_norms(&mut self, l: usize) -> Result<Option<(Norm, Norm)>, ModelError> {
        let names = ["q", "k"].map(|part| plan::layer(l, &format!("self_attn.{part}_norm.weight")));
        if !self.plan.contains_key(names[0].as_str()) {
            return Ok(None);
        }
        Ok(Some((self.norm(&names[0])?, self.norm(&names[1])?)))
    }

    fn norm(&mut self, name: &str) -> Result<Norm, ModelError> {
        Ok(Norm {
            weight: self.source.vector(self.plan[name])?,
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
