//! Grouped-query attention with rotary positions.

use sparamx_kernels::attention::{self, KvPages, PAGE_TOKENS, Params, Task};
use sparamx_kernels::{Linear, LinearJob, Rows, RowsMut, Runtime, linear, vecops};

use super::Norm;
use crate::ModelError;
use crate::pass::cache::Input;
use crate::pass::profile::{Op, Recorder};
use crate::pass::workspace::{Angles, AttentionBuffers, Stream};

/// `x += o(attend(rope(q(norm(x))), rope(k(norm(x))), v(norm(x))))`
#[derive(Clone)]
pub(crate) struct Attention {
    /// Index of the layer, by which the cache knows it.
    pub layer: usize,
    pub norm: Norm,
    /// `[heads * head_dim, hidden_size]`
    pub q: Linear,
    /// `[kv_heads * head_dim, hidden_size]`
    pub k: Linear,
    /// `[kv_heads * head_dim, hidden_size]`
    pub v: Linear,
    /// `[hidden_size, heads * head_dim]`
    pub o: Linear,
    /// Norms of the heads of q and of k, `[head_dim]`, before the rotation.
    pub head_norms: Option<(Norm, Norm)>,
    pub params: Params,
}

impl Attention {
    pub(crate) fn forward(
        &self,
        rt: &Runtime,
        inputs: &mut [Input<'_>],
        angles: &Angles,
        stream: &mut Stream,
        ws: &mut AttentionBuffers,
        recorder: &mut Recorder,
    ) -> Result<(), ModelError> {
        self.attend(rt, inputs, angles, stream, ws, recorder)?;
        self.output(rt, stream, ws, recorder)
    }

    /// All but the last step: `ws.attended` is the input of `o` then, and `stream.normed` still that of q, k and v.
    pub(crate) fn attend(
        &self,
        rt: &Runtime,
        inputs: &mut [Input<'_>],
        angles: &Angles,
        stream: &mut Stream,
        ws: &mut AttentionBuffers,
        recorder: &mut Recorder,
    ) -> Result<(), ModelError> {
        let (hidden, q_width) = (self.o.weight.n(), self.o.weight.k());
        let rows = stream.x.len() / hidden;
        stream.normalize(rt, &self.norm, recorder)?;
        self.project(rt, Rows::new(&stream.normed, rows, hidden), ws, recorder)?;
        self.rotate(rt, rows, angles, ws, recorder)?;
        // f32 is read and bf16 written.
        let bytes = (ws.k.len() + ws.v.len()) * (size_of::<f32>() + size_of::<u16>());
        recorder.time(Op::Cache, bytes, || self.append(rt, inputs, ws))?;

        let pages: Vec<_> = inputs
            .iter()
            .map(|input| input.cache.pages(self.layer))
            .collect();
        let tasks = self.tasks(inputs, &pages);
        let q = Rows::new(&ws.q, rows, q_width);
        let out = RowsMut::new(&mut ws.attended, rows, q_width);
        recorder.time(Op::Attention, self.cache_bytes(inputs), || {
            attention::attention(rt, &self.params, q, &tasks, out)
        })?;
        Ok(())
    }

    /// The last step: what was attended to goes through `o` and into the stream.
    pub(crate) fn output(
        &self,
        rt: &Runtime,
        stream: &mut Stream,
        ws: &AttentionBuffers,
        recorder: &mut Recorder,
    ) -> Result<(), ModelError> {
        let (hidden, q_width) = (self.o.weight.n(), self.o.weight.k());
        let rows = stream.x.len() / hidden;
        let x = Rows::new(&ws.attended, rows, q_width);
        let mut jobs = [LinearJob {
            linear: &self.o,
            y: RowsMut::new(&mut stream.delta, rows, hidden),
        }];
        let bytes = self.o.weight.bytes();
        recorder.time(Op::O, bytes, || linear(rt, x, &mut jobs))?;
        stream.add_delta(rt, hidden, recorder)
    }

    /// Bytes of the keys and values that the inputs see, each counted once, in the form that the last token of the input sees.
    fn cache_bytes(&self, inputs: &[Input<'_>]) -> usize {
        let window = self.params.window.unwrap_or(usize::MAX);
        let token_bytes = (self.k.weight.n() + self.v.weight.n()) * size_of::<u16>();
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

    /// Queries, keys and values of all rows, in one pass over the pool: they read the same rows.
    fn project(
        &self,
        rt: &Runtime,
        x: Rows<'_>,
        ws: &mut AttentionBuffers,
        recorder: &mut Recorder,
    ) -> Result<(), ModelError> {
        let (rows, q_width, kv_width) = (x.rows(), self.q.weight.n(), self.k.weight.n());
        let mut jobs = [
            LinearJob {
                linear: &self.q,
                y: RowsMut::new(&mut ws.q, rows, q_width),
            },
            LinearJob {
                linear: &self.k,
                y: RowsMut::new(&mut ws.k, rows, kv_width),
            },
            LinearJob {
                linear: &self.v,
                y: RowsMut::new(&mut ws.v, rows, kv_width),
            },
        ];
        let weights = [&self.q, &self.k, &self.v].map(|linear| linear.weight.bytes());
        let bytes = weights.iter().sum();
        Ok(recorder.time(Op::Qkv, bytes, || linear(rt, x, &mut jobs))?)
    }

    /// Norms and rotation of queries and keys, in place.
    fn rotate(
        &self,
        rt: &Runtime,
        rows: usize,
        angles: &Angles,
        ws: &mut AttentionBuffers,
        recorder: &mut Recorder,
    ) -> Result<(), ModelError> {
        let (q_width, kv_width) = (self.q.weight.n(), self.k.weight.n());
        // Everything is read and written.
        let bytes = 2 * (size_of_val(&ws.q[..]) + size_of_val(&ws.k[..]));
        if let Some((q_norm, k_norm)) = &self.head_norms {
            recorder.time(Op::Norm, bytes, || {
                let q = RowsMut::new(&mut ws.q, rows, q_width);
                vecops::rms_norm_heads(rt, q, &q_norm.weight, q_norm.eps)?;
                let k = RowsMut::new(&mut ws.k, rows, kv_width);
                vecops::rms_norm_heads(rt, k, &k_norm.weight, k_norm.eps)
            })?;
        }
        let head_dim = self.params.head_dim;
        recorder.time(Op::Rope, bytes, || {
            for (heads, width) in [(&mut ws.q, q_width), (&mut ws.k, kv_width)] {
                let x = RowsMut::new(heads, rows, width);
                vecops::rope(rt, x, head_dim, head_dim, &angles.cos, &angles.sin)?;
            }
            Ok::<_, ModelError>(())
        })
    }

    /// Gives every sequence the keys and values of its rows.
    fn append(
        &self,
        rt: &Runtime,
        inputs: &mut [Input<'_>],
        ws: &AttentionBuffers,
    ) -> Result<(), ModelError> {
        let (q_width, kv_width) = (self.q.weight.n(), self.k.weight.n());
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
