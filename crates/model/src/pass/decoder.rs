//! One decoder layer on its own, for walks through a model layer by layer that look at what its linear layers read.
//!
//! The layers are those of [`crate::Model::forward`]. Only the tokens of one sequence go through them at a time, from its
//! first position on, and keys and values are kept no longer than the call.

use sparamx_kernels::attention::{KvPages, PAGE_TOKENS, Page, PageShape, write_key, write_value};
use sparamx_kernels::{Rows, RowsMut, Runtime, Weight};

use crate::families::plan;
use crate::pass::cache::{Input, KvCache, Want};
use crate::pass::layers::Layer;
use crate::pass::layers::norm::Norm;
use crate::pass::layers::projection::{LayerInput, Projection};
use crate::pass::rope::Rope;
use crate::pass::workspace::Workspace;
use crate::{Checkpoint, Config, ModelError};

/// One decoder layer in memory. A clone shares the weights.
#[derive(Clone)]
pub struct DecoderLayer(pub(crate) Layer);

impl DecoderLayer {
    /// What its linear layers read, in the order of the forward pass, and the modules of those that read it, named as their
    /// tensors are without the layer before and `.weight` behind.
    pub fn inputs(&self) -> Vec<(LayerInput, Vec<&'static str>)> {
        let modules = |list: &[Projection]| list.iter().map(|linear| linear.module).collect();
        let groups = self.0.groups();
        groups.map(|(input, list)| (input, modules(list))).collect()
    }

    /// Puts another weight of the same shape in the place of a linear layer's.
    ///
    /// # Panics
    /// If no module has this name, or the shape differs.
    pub fn set_weight(&mut self, module: &str, weight: Weight) {
        let mut linears = self.0.linears_mut();
        let found = linears.find(|projection| projection.module == module);
        let linear = &mut found
            .unwrap_or_else(|| panic!("no linear layer {module}"))
            .linear;
        let shape = |weight: &Weight| (weight.n(), weight.k());
        assert_eq!(shape(&linear.weight), shape(&weight), "shape of {module}");
        linear.weight = weight;
    }

    /// What the linear layers of `input` read when the hidden states `x`, `[tokens, hidden_size]`, of one sequence go through
    /// this layer.
    ///
    /// # Errors
    /// What the kernels report.
    pub fn input<'w>(
        &self,
        rt: &Runtime,
        input: LayerInput,
        x: &[f32],
        ws: &'w mut DecoderWorkspace,
    ) -> Result<Rows<'w>, ModelError> {
        let rows = ws.start(x);
        self.run(rt, Some(input), ws)?;
        let data = Layer::input(input, &ws.workspace.buffers);
        Ok(Rows::new(data, rows, data.len() / rows))
    }

    /// Takes the hidden states `x`, `[tokens, hidden_size]`, of one sequence through this layer.
    ///
    /// # Errors
    /// What the kernels report.
    pub fn forward(
        &self,
        rt: &Runtime,
        x: &mut [f32],
        ws: &mut DecoderWorkspace,
    ) -> Result<(), ModelError> {
        ws.start(x);
        self.run(rt, None, ws)?;
        x.copy_from_slice(&ws.workspace.buffers.stream.x);
        Ok(())
    }

    /// The steps of the layer as far as the input that is wanted, or all.
    fn run(
        &self,
        rt: &Runtime,
        until: Option<LayerInput>,
        ws: &mut DecoderWorkspace,
    ) -> Result<(), ModelError> {
        let mut inputs = [Input {
            tokens: &ws.tokens,
            cache: &mut ws.cache,
            logits: Want::None,
        }];
        let (mut pass, buffers) = ws.workspace.pass(rt);
        self.0.forward(&mut pass, &mut inputs, buffers, until)
    }
}

/// What the output head reads: the hidden states after the last layer, normalized; `x` and `out` are `[tokens, hidden_size]`.
///
/// # Errors
/// [`ModelError::NotFinite`] for a damaged norm, and what the kernels report.
pub fn head_input(
    rt: &Runtime,
    checkpoint: &Checkpoint,
    x: &[f32],
    out: &mut [f32],
) -> Result<(), ModelError> {
    let config = checkpoint.config();
    let norm = Norm::last(config, checkpoint.vector(plan::FINAL_NORM)?);
    let (rows, width) = (x.len() / config.hidden_size, config.hidden_size);
    norm.forward(
        rt,
        Rows::new(x, rows, width),
        RowsMut::new(out, rows, width),
    )
}

/// Buffers of decoder layers, kept from call to call.
pub struct DecoderWorkspace {
    config: Config,
    ropes: Vec<Rope>,
    workspace: Workspace,
    /// As many as there are rows; their values do not matter after the embedding.
    tokens: Vec<u32>,
    cache: Window,
}

impl DecoderWorkspace {
    /// Empty ones, for the layers of a model.
    pub fn new(config: &Config) -> Self {
        Self {
            config: config.clone(),
            ropes: Rope::all(config),
            workspace: Workspace::new(),
            tokens: Vec::new(),
            cache: Window::new(config),
        }
    }

    /// Makes room for the hidden states of a sequence and copies them. Returns the number of tokens.
    fn start(&mut self, x: &[f32]) -> usize {
        let rows = x.len() / self.config.hidden_size;
        let ws = &mut self.workspace;
        ws.resize(&self.config, self.ropes.len(), rows, 0);
        ws.buffers.stream.x.copy_from_slice(x);
        self.tokens.resize(rows, 0);
        for (rope, angles) in self.ropes.iter().zip(&mut ws.angles) {
            rope.angles(0, &mut angles.cos, &mut angles.sin, &mut angles.frequencies);
        }
        rows
    }
}

/// Keys and values of one sequence in one layer: overwritten by each.
struct Window {
    kv_heads: usize,
    shape: PageShape,
    /// `[pages][kv_heads]`
    keys: Vec<u16>,
    /// `[pages][kv_heads]`
    values: Vec<u16>,
}

impl Window {
    fn new(config: &Config) -> Self {
        Self {
            kv_heads: config.num_key_value_heads,
            shape: PageShape {
                head_dim: config.head_dim,
            },
            keys: Vec::new(),
            values: Vec::new(),
        }
    }
}

impl KvCache for Window {
    fn len(&self) -> usize {
        0
    }

    fn append(
        &mut self,
        _rt: &Runtime,
        _layer: usize,
        _q: Rows<'_>,
        k: Rows<'_>,
        v: Rows<'_>,
    ) -> Result<(), ModelError> {
        let heads = k.rows().div_ceil(PAGE_TOKENS) * self.kv_heads;
        let (shape, head_dim) = (self.shape, self.shape.head_dim);
        // What an earlier sequence left in later slots is finite, and is never read.
        self.keys.resize(heads * shape.key_elems(), 0);
        self.values.resize(heads * shape.value_elems(), 0);
        let keys = self.keys.chunks_exact_mut(shape.key_elems());
        let pages = keys.zip(self.values.chunks_exact_mut(shape.value_elems()));
        for (i, (key_page, value_page)) in pages.enumerate() {
            let (page, head) = (i / self.kv_heads, i % self.kv_heads);
            let columns = head * head_dim..(head + 1) * head_dim;
            let first = page * PAGE_TOKENS;
            for slot in 0..PAGE_TOKENS.min(k.rows() - first) {
                let (key, value) = (k.row(first + slot), v.row(first + slot));
                write_key(key_page, shape, slot, &key[columns.clone()]);
                write_value(value_page, shape, slot, &value[columns.clone()]);
            }
        }
        Ok(())
    }

    fn pages(&self, _layer: usize) -> Box<dyn KvPages + '_> {
        Box::new(self)
    }

    fn advance(&mut self, _tokens: usize) {}
}

impl KvPages for &Window {
    fn key(&self, kv_head: usize, page: usize, _query_page: usize) -> Page<'_> {
        let elems = self.shape.key_elems();
        let start = (page * self.kv_heads + kv_head) * elems;
        Page::Dense(&self.keys[start..start + elems])
    }

    fn value(&self, kv_head: usize, page: usize, _query_page: usize) -> Page<'_> {
        let elems = self.shape.value_elems();
        let start = (page * self.kv_heads + kv_head) * elems;
        Page::Dense(&self.values[start..start + elems])
    }
}
