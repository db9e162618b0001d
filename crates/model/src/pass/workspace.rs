//! Buffers of a forward pass, kept from call to call: they grow to the largest call and are then reused.

use sparamx_kernels::Runtime;

use crate::Config;
use crate::pass::context::{Angles, Pass, Stream};
use crate::pass::layers::attention::AttentionBuffers;
use crate::pass::layers::ffn::FfnBuffers;
use crate::pass::profile::{Profile, Recorder};

/// Buffers of a forward pass. One serves any number of models, one call at a time.
#[derive(Default)]
pub struct Workspace {
    pub(crate) buffers: Buffers,
    /// For each rotation of the model.
    pub(crate) angles: Vec<Angles>,
    /// `[wanted rows, vocab_size]`
    pub(crate) logits: Vec<f32>,
    pub(crate) recorder: Recorder,
}

/// The buffers that all layers share.
#[derive(Default)]
pub(crate) struct Buffers {
    pub stream: Stream,
    pub attention: AttentionBuffers,
    pub ffn: FfnBuffers,
}

impl Workspace {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts to record what the operations of forward passes take.
    pub fn start_profile(&mut self) {
        self.recorder.0 = Some(Box::default());
    }

    /// What was recorded since [`Workspace::start_profile`], which ends here; nothing if it never began.
    pub fn take_profile(&mut self) -> Option<Profile> {
        self.recorder.0.take().map(|profile| *profile)
    }

    /// The context of a pass, and the buffers of its layers.
    pub(crate) fn pass<'a>(&'a mut self, rt: &'a Runtime) -> (Pass<'a>, &'a mut Buffers) {
        let pass = Pass {
            rt,
            angles: &self.angles,
            recorder: &mut self.recorder,
        };
        (pass, &mut self.buffers)
    }

    /// Gives every buffer the size for so many rows, angles for so many rotations, and logits for `wanted` of the rows.
    pub(crate) fn resize(&mut self, c: &Config, rotations: usize, rows: usize, wanted: usize) {
        let Buffers {
            stream,
            attention,
            ffn,
        } = &mut self.buffers;
        for buffer in [&mut stream.x, &mut stream.normed, &mut stream.delta] {
            buffer.resize(rows * c.hidden_size, 0.0);
        }
        attention.resize(c, rows);
        ffn.resize(c, rows);
        self.angles.resize_with(rotations, Angles::default);
        for angles in &mut self.angles {
            angles.cos.resize(rows * (c.head_dim / 2), 0.0);
            angles.sin.resize(rows * (c.head_dim / 2), 0.0);
            angles.frequencies.resize(c.head_dim / 2, 0.0);
        }
        self.logits.resize(wanted * c.vocab_size, 0.0);
    }
}
