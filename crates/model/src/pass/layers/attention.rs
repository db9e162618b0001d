//! Grouped-query attention with rotary positions.

use std::ops::ControlFlow;
use std::slice;

use sparamx_kernels::attention::{self, KvPages, PAGE_TOKENS, Params, Task};
use sparamx_kernels::{Rows, RowsMut, Runtime, vecops};

use super::norm::Norm;
use super::projection::{LayerInput, Projection, multiply};
use crate::pass::cache::Input;
use crate::pass::context::{Pass, Stream};
use crate::pass::profile::Op;
use crate::{Config, ModelError};

/// Buffers of an attention layer.
#[derive(Default)]
pub(crate) struct AttentionBuffers {
    /// `[rows, heads * head_dim]`
    pub q: Vec<f32>,
    /// `[rows, kv_heads * head_dim]`
    pub k: Vec<f32>,
    /// `[rows, kv_heads * head_dim]`
    pub v: Vec<f32>,
    /// `[rows, heads * head_dim]`
    pub attended: Vec<f32>,
}

impl AttentionBuffers {
    /// Makes room for so many rows.
    pub(crate) fn resize(&mut self, c: &Config, rows: usize) {
        self.q.resize(rows * c.q_width(), 0.0);
        self.k.resize(rows * c.kv_width(), 0.0);
        self.v.resize(rows * c.kv_width(), 0.0);
        self.attended.resize(rows * c.q_width(), 0.0);
    }
}

/// `o(attend(rope(q(x)), rope(k(x)), v(x)))`
#[derive(Clone)]
pub(crate) struct Attention {
    /// Index of the layer, by which the cache knows it.
    pub layer: usize,
    /// q, `[heads * head_dim, hidden_size]`, and k and v, `[kv_heads * head_dim, hidden_size]` each.
    pub qkv: [Projection; 3],
    /// `[hidden_size, heads * head_dim]`
    pub o: Projection,
    /// Norms of the heads of q and of k, `[head_dim]`, before the rotation.
    pub qk_norms: Option<[Norm; 2]>,
    /// Index of its rotation in [`Pass::angles`].
    pub rotation: usize,
    pub params: Params,
}

impl Attention {
    /// The linear layers by what they read, in the order of the forward pass.
    pub(crate) fn groups(&self) -> [(LayerInput, &[Projection]); 2] {
        [
            (LayerInput::Qkv, &self.qkv[..]),
            (LayerInput::O, slice::from_ref(&self.o)),
        ]
    }

    /// The linear layers, in the order of the forward pass.
    pub(crate) fn linears_mut(&mut self) -> Vec<&mut Projection> {
        self.qkv.iter_mut().chain([&mut self.o]).collect()
    }

    /// `stream.delta = attention(stream.normed)`, or the steps as far as the input that is wanted.
    ///
    /// # Errors
    /// What the caches and kernels report.
    pub(crate) fn forward(
        &self,
        pass: &mut Pass<'_>,
        inputs: &mut [Input<'_>],
        stream: &mut Stream,
        ws: &mut AttentionBuffers,
        until: Option<LayerInput>,
    ) -> Result<ControlFlow<()>, ModelError> {
        if until == Some(LayerInput::Qkv) {
            return Ok(ControlFlow::Break(()));
        }
        let (hidden, q_width) = (self.o.linear.weight.n(), self.o.linear.weight.k());
        let rows = stream.x.len() / hidden;
        let AttentionBuffers { q, k, v, .. } = ws;
        let x = Rows::new(&stream.normed, rows, hidden);
        let [q_proj, k_proj, v_proj] = &self.qkv;
        multiply(pass, Op::Qkv, x, [(q_proj, q), (k_proj, k), (v_proj, v)])?;
        self.rotate(pass, rows, ws)?;
        self.attend(pass, inputs, rows, ws)?;
        if until == Some(LayerInput::O) {
            return Ok(ControlFlow::Break(()));
        }
        let x = Rows::new(&ws.attended, rows, q_width);
        multiply(pass, Op::O, x, [(&self.o, &mut stream.delta)])?;
        Ok(ControlFlow::Continue(()))
    }

    /// Stores the keys and values of all rows, and lets each row attend to those of its sequence.
    fn attend(
        &self,
        pass: &mut Pass<'_>,
        inputs: &mut [Input<'_>],
        rows: usize,
        ws: &mut AttentionBuffers,
    ) -> Result<(), ModelError> {
        // f32 is read and bf16 written.
        let bytes = (ws.k.len() + ws.v.len()) * (size_of::<f32>() + size_of::<u16>());
        pass.time(Op::Cache, bytes, |rt| self.append(rt, inputs, ws))?;

        let pages: Vec<_> = inputs
            .iter()
            .map(|input| input.cache.pages(self.layer))
            .collect();
        let tasks = self.tasks(inputs, &pages);
        let (q_width, _) = self.widths();
        let q = Rows::new(&ws.q, rows, q_width);
        let out = RowsMut::new(&mut ws.attended, rows, q_width);
        Ok(pass.time(Op::Attention, self.cache_bytes(inputs), |rt| {
            attention::attention(rt, &self.params, q, &tasks, out)
        })?)
    }

    /// Widths of the queries, and of the keys and of the values, of all heads.
    fn widths(&self) -> (usize, usize) {
        let Params {
            heads,
            kv_heads,
            head_dim,
            ..
        } = self.params;
        (heads * head_dim, kv_heads * head_dim)
    }

    /// Bytes of the keys and values that the inputs see, each counted once, in the form that the last token of the input sees.
    fn cache_bytes(&self, inputs: &[Input<'_>]) -> usize {
        let window = self.params.window.unwrap_or(usize::MAX);
        let token_bytes = 2 * self.widths().1 * size_of::<u16>();
        let of = |input: &Input<'_>| {
            let (start, rows) = (input.cache.len(), input.tokens.len());
            let seen = rows + start.min(window.saturating_sub(1));
            let first_page = (start + rows - seen) / PAGE_TOKENS;
            let (packed, page_bytes) = input.cache.packed((start + rows - 1) / PAGE_TOKENS);
            let packed = packed.end.saturating_sub(packed.start.max(first_page));
            let dense = seen.saturating_sub(packed * PAGE_TOKENS);
            dense * token_bytes + packed * page_bytes
        };
        inputs.iter().map(of).sum()
    }

    /// Norms and rotation of queries and keys, in place.
    fn rotate(
        &self,
        pass: &mut Pass<'_>,
        rows: usize,
        ws: &mut AttentionBuffers,
    ) -> Result<(), ModelError> {
        let (q_width, kv_width) = self.widths();
        // Everything is read and written.
        let bytes = 2 * (size_of_val(&ws.q[..]) + size_of_val(&ws.k[..]));
        if let Some([q_norm, k_norm]) = &self.qk_norms {
            pass.time(Op::Norm, bytes, |rt| {
                q_norm.heads(rt, RowsMut::new(&mut ws.q, rows, q_width))?;
                k_norm.heads(rt, RowsMut::new(&mut ws.k, rows, kv_width))
            })?;
        }
        let head_dim = self.params.head_dim;
        let angles = &pass.angles[self.rotation];
        pass.time(Op::Rope, bytes, |rt| {
            for (heads, width) in [(&mut ws.q, q_width), (&mut ws.k, kv_width)] {
                let x = RowsMut::new(heads, rows, width);
                vecops::rope(rt, x, head_dim, head_dim, &angles.cos, &angles.sin)?;
            }
            Ok(())
        })
    }

    /// Gives every sequence the keys and values of its rows.
    fn append(
        &self,
        rt: &Runtime,
        inputs: &mut [Input<'_>],
        ws: &AttentionBuffers,
    ) -> Result<(), ModelError> {
        let (q_width, kv_width) = self.widths();
        let mut first = 0;
        for input in inputs {
            let rows = input.tokens.len();
            let part = |width: usize| first * width..(first + rows) * width;
            let (q, k, v) = (
                Rows::new(&ws.q[part(q_width)], rows, q_width),
                Rows::new(&ws.k[part(kv_width)], rows, kv_width),
                Rows::new(&ws.v[part(kv_width)], rows, kv_width),
            );
            input.cache.append(rt, self.layer, q, k, v)?;
            first += rows;
        }
        Ok(())
    }

    /// One task for each sequence: its rows attend to its own cache, `pages`.
    fn tasks<'a>(&self, inputs: &[Input<'_>], pages: &'a [Box<dyn KvPages + '_>]) -> Vec<Task<'a>> {
        let mut first_row = 0;
        inputs
            .iter()
            .zip(pages)
            .map(|(input, pages)| {
                let rows = input.tokens.len();
                first_row += rows;
                Task {
                    first_row: first_row - rows,
                    rows,
                    start: input.cache.len(),
                    kv: &**pages,
                }
            })
            .collect()
    }
}
