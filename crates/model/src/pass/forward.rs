//! The forward pass, the same for every family: embedding, layers, last norm, output head.

use sparamx_kernels::{Rows, RowsMut, Runtime};

use crate::ModelError;
use crate::pass::cache::Input;
use crate::pass::context::{Angles, Pass};
use crate::pass::layers::projection::multiply;
use crate::pass::model::Model;
use crate::pass::profile::Op;
use crate::pass::workspace::{Buffers, Workspace};

impl Model {
    /// Runs the tokens of all inputs through the model, adds them to their caches, and returns the wanted logits: rows of
    /// `vocab_size`, in the order of the inputs and their tokens.
    ///
    /// Rows of all inputs are multiplied together; each attends to its own sequence only. The result for a sequence may
    /// differ in the last bits with what it is batched with, because the kernels are chosen by the number of rows.
    ///
    /// # Errors
    /// [`ModelError::EmptyInput`], [`ModelError::TokenOutOfRange`], and what the caches and kernels report. Caches are then
    /// as they were.
    pub fn forward<'w>(
        &self,
        rt: &Runtime,
        inputs: &mut [Input<'_>],
        ws: &'w mut Workspace,
    ) -> Result<&'w [f32], ModelError> {
        self.check(inputs)?;
        let rows = inputs.iter().map(|input| input.tokens.len()).sum();
        let wanted = inputs.iter().map(Input::wanted).sum();
        ws.resize(&self.config, self.ropes.len(), rows, wanted);
        self.embed(inputs, ws);
        let (mut pass, buffers) = ws.pass(rt);
        for layer in &self.layers {
            layer.forward(&mut pass, inputs, buffers, None)?;
        }
        self.head(rt, inputs, ws)?;
        for input in inputs {
            input.cache.advance(input.tokens.len());
        }
        Ok(&ws.logits)
    }

    fn check(&self, inputs: &[Input<'_>]) -> Result<(), ModelError> {
        let vocab_size = self.config.vocab_size;
        for (i, input) in inputs.iter().enumerate() {
            if input.tokens.is_empty() {
                return Err(ModelError::EmptyInput { input: i });
            }
            if let Some(&token) = input
                .tokens
                .iter()
                .find(|&&token| token as usize >= vocab_size)
            {
                return Err(ModelError::TokenOutOfRange { token, vocab_size });
            }
        }
        Ok(())
    }

    /// Looks up the row of each token, and the angles of its position.
    fn embed(&self, inputs: &[Input<'_>], ws: &mut Workspace) {
        let Workspace {
            buffers: Buffers { stream, .. },
            angles,
            recorder,
            ..
        } = ws;
        let bytes = stream.x.len() * (size_of::<u16>() + size_of::<f32>());
        recorder.time(Op::Embedding, bytes, || {
            let tokens = inputs.iter().flat_map(|input| input.tokens);
            for (&token, row) in tokens.zip(stream.x.chunks_exact_mut(self.config.hidden_size)) {
                self.embedding.row(token as usize, row);
            }
            self.rotations(inputs, angles);
        });
    }

    /// Cosine and sine for the position of each row: the same in every layer that has the rotation.
    fn rotations(&self, inputs: &[Input<'_>], angles: &mut [Angles]) {
        let half = self.config.head_dim / 2;
        for (rope, angles) in self.ropes.iter().zip(angles) {
            let mut first = 0;
            for input in inputs {
                let part = first..first + input.tokens.len() * half;
                let (cos, sin) = (&mut angles.cos[part.clone()], &mut angles.sin[part.clone()]);
                rope.angles(input.cache.len(), cos, sin, &mut angles.frequencies);
                first = part.end;
            }
        }
    }

    /// Normalizes the wanted rows side by side and multiplies them with the output head.
    fn head(
        &self,
        rt: &Runtime,
        inputs: &[Input<'_>],
        ws: &mut Workspace,
    ) -> Result<(), ModelError> {
        let width = self.config.hidden_size;
        let logits = &mut ws.logits;
        let mut pass = Pass {
            rt,
            angles: &ws.angles,
            recorder: &mut ws.recorder,
        };
        let stream = &mut ws.buffers.stream;
        let (mut end_row, mut wanted) = (0, 0);
        for input in inputs {
            end_row += input.tokens.len();
            let rows = input.wanted();
            let x = &stream.x[(end_row - rows) * width..end_row * width];
            let out = &mut stream.normed[wanted * width..(wanted + rows) * width];
            let bytes = size_of_val(x) + size_of_val(out);
            let (x, out) = (Rows::new(x, rows, width), RowsMut::new(out, rows, width));
            pass.time(Op::Norm, bytes, |rt| self.norm.forward(rt, x, out))?;
            wanted += rows;
        }
        if wanted == 0 {
            return Ok(());
        }
        let x = Rows::new(&stream.normed[..wanted * width], wanted, width);
        multiply(&mut pass, Op::Head, x, [(&self.lm_head, logits)])
    }
}
