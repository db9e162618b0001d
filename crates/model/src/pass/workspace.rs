//! Buffers of a forward pass, kept from call to call: they grow to the largest call and are then reused.

use crate::Config;
use crate::pass::profile::{Profile, Recorder};

/// Buffers of a forward pass. One serves any number of models, one call at a time.
#[derive(Default)]
pub struct Workspace {
    pub(crate) stream: Stream,
    pub(crate) attention: AttentionBuffers,
    pub(crate) mlp: MlpBuffers,
    pub(crate) angles: Angles,
    /// `[wanted rows, vocab_size]`
    pub(crate) logits: Vec<f32>,
    /// One row of the embedding, as it is stored.
    pub(crate) bf16_row: Vec<u16>,
    pub(crate) recorder: Recorder,
}

/// The residual stream and what is computed from it and added to it, `[rows, hidden_size]` each.
#[derive(Default)]
pub(crate) struct Stream {
    pub x: Vec<f32>,
    pub normed: Vec<f32>,
    pub delta: Vec<f32>,
}

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

/// Buffers of a feed-forward layer, `[rows, intermediate_size]` each.
#[derive(Default)]
pub(crate) struct MlpBuffers {
    pub gate: Vec<f32>,
    pub up: Vec<f32>,
}

/// Cosine and sine of the rotation of each row, `[rows, head_dim / 2]` each.
#[derive(Default)]
pub(crate) struct Angles {
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
    /// Frequencies that hold for one call only, `[head_dim / 2]`.
    pub frequencies: Vec<f32>,
}

impl Workspace {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes down from now on what the operations of forward passes take, starting from nothing.
    pub fn start_profile(&mut self) {
        self.recorder.0 = Some(Box::default());
    }

    /// What they took since [`Workspace::start_profile`], which ends here; nothing if it never began.
    pub fn take_profile(&mut self) -> Option<Profile> {
        self.recorder.0.take().map(|profile| *profile)
    }

    /// Gives every buffer the size for so many rows, and logits for some of them.
    pub(crate) fn resize(&mut self, c: &Config, rows: usize, wanted: usize) {
        let Self {
            stream,
            attention,
            mlp,
            angles,
            logits,
            bf16_row,
            recorder: _,
        } = self;
        for buffer in [&mut stream.x, &mut stream.normed, &mut stream.delta] {
            buffer.resize(rows * c.hidden_size, 0.0);
        }
        for buffer in [&mut attention.q, &mut attention.attended] {
            buffer.resize(rows * c.q_width(), 0.0);
        }
        for buffer in [&mut attention.k, &mut attention.v] {
            buffer.resize(rows * c.kv_width(), 0.0);
        }
        for buffer in [&mut mlp.gate, &mut mlp.up] {
            buffer.resize(rows * c.intermediate_size, 0.0);
        }
        for buffer in [&mut angles.cos, &mut angles.sin] {
            buffer.resize(rows * (c.head_dim / 2), 0.0);
        }
        angles.frequencies.resize(c.head_dim / 2, 0.0);
        logits.resize(wanted * c.vocab_size, 0.0);
        bf16_row.resize(c.hidden_size, 0);
    }
}
