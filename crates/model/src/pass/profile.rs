//! Where the time of forward passes goes, by operation.

use std::time::{Duration, Instant};

/// The operations of a forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Looking up the rows of the tokens, and the angles of their positions.
    Embedding,
    /// RMSNorm, of the heads too.
    Norm,
    /// The projections to queries, keys and values.
    Qkv,
    /// Rotary positions.
    Rope,
    /// Writing keys and values to the cache.
    Cache,
    /// Attention.
    Attention,
    /// The projection of what was attended to.
    O,
    /// Adding to the residual stream.
    Residual,
    /// The gate and up projections.
    GateUp,
    /// SiLU of the gate, times up.
    Silu,
    /// The down projection.
    Down,
    /// The output head.
    Head,
}

impl Op {
    /// All of them, in the order of a forward pass.
    pub const ALL: [Op; 12] = [
        Op::Embedding,
        Op::Norm,
        Op::Qkv,
        Op::Rope,
        Op::Cache,
        Op::Attention,
        Op::O,
        Op::Residual,
        Op::GateUp,
        Op::Silu,
        Op::Down,
        Op::Head,
    ];

    /// A short name, such as `gate_up`.
    pub fn name(self) -> &'static str {
        match self {
            Op::Embedding => "embedding",
            Op::Norm => "norm",
            Op::Qkv => "qkv",
            Op::Rope => "rope",
            Op::Cache => "kv_write",
            Op::Attention => "attention",
            Op::O => "o",
            Op::Residual => "residual",
            Op::GateUp => "gate_up",
            Op::Silu => "silu",
            Op::Down => "down",
            Op::Head => "lm_head",
        }
    }

    /// A multiplication by weights, or attention: what a forward pass is for.
    pub fn is_kernel(self) -> bool {
        match self {
            Op::Qkv | Op::Attention | Op::O | Op::GateUp | Op::Down | Op::Head => true,
            Op::Embedding | Op::Norm | Op::Rope | Op::Cache | Op::Residual | Op::Silu => false,
        }
    }
}

/// What an operation took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Times it was done.
    pub calls: u64,
    /// Time of all of them.
    pub time: Duration,
    /// Bytes that they read and wrote: of linear layers the weights as they are stored, of attention the keys and values.
    pub bytes: u64,
}

/// What the operations of some forward passes took. See [`crate::Workspace::start_profile`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    /// In the order of [`Op::ALL`].
    spent: [Spent; Op::ALL.len()],
}

impl Profile {
    /// What one operation took.
    pub fn of(&self, op: Op) -> Spent {
        self.spent[op as usize]
    }

    /// Time of all operations together.
    pub fn time(&self) -> Duration {
        self.spent.iter().map(|spent| spent.time).sum()
    }
}

/// Records what operations take, between [`crate::Workspace::start_profile`] and its end; otherwise it costs a comparison each.
#[derive(Default)]
pub(crate) struct Recorder(pub Option<Box<Profile>>);

impl Recorder {
    /// Does an operation that touches so many bytes.
    pub fn time<R>(&mut self, op: Op, bytes: usize, f: impl FnOnce() -> R) -> R {
        let Some(profile) = &mut self.0 else {
            return f();
        };
        let start = Instant::now();
        let result = f();
        let spent = &mut profile.spent[op as usize];
        spent.calls += 1;
        spent.time += start.elapsed();
        spent.bytes += bytes as u64;
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_in_the_order_of_their_list() {
        for (index, op) in Op::ALL.into_iter().enumerate() {
            assert_eq!(op as usize, index, "{op:?}");
        }
    }

    #[test]
    fn nothing_is_recorded_unless_asked_for() {
        let mut recorder = Recorder::default();
        assert_eq!(recorder.time(Op::Silu, 8, || 1), 1);
        assert!(recorder.0.is_none());
        recorder.0 = Some(Box::default());
        for _ in 0..2 {
            assert_eq!(recorder.time(Op::Silu, 8, || 2), 2);
        }
        let profile = recorder.0.unwrap();
        assert_eq!(
            (profile.of(Op::Silu).calls, profile.of(Op::Silu).bytes),
            (2, 16)
        );
        assert_eq!(profile.of(Op::Norm), Spent::default());
        assert_eq!(profile.time(), profile.of(Op::Silu).time);
    }
}
