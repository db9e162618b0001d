//! Reads tokens and adds up how likely the model takes them to be.

use sparamx_engine::{
    EngineError, KvOptions, Loaded, PagePool, PagedCache, negative_log_likelihood,
};
use sparamx_model::{Input, KvCache, Want, Workspace};

/// Tokens that go through the model at a time.
const CHUNK_TOKENS: usize = 512;
/// Logits that are computed at a time, at most: 64 MiB of them. The vocabulary decides how many tokens that is.
const CHUNK_LOGITS: usize = 1 << 24;

/// A model and one sequence that grows, is cut back, and grows again.
pub(crate) struct Scorer<'a> {
    loaded: &'a Loaded,
    cache: PagedCache,
    workspace: Workspace,
}

impl<'a> Scorer<'a> {
    /// A scorer whose keys and values are kept as `kv` says.
    pub fn new(loaded: &'a Loaded, kv: &KvOptions) -> Result<Self, EngineError> {
        Ok(Self {
            loaded,
            cache: PagePool::new(loaded.model.config(), kv)?.sequence(),
            workspace: Workspace::new(),
        })
    }

    /// Forgets all tokens of the sequence but the first `tokens`.
    pub fn rewind(&mut self, tokens: usize) {
        self.cache.truncate(tokens);
    }

    /// Appends `tokens`, at least one, and copies the logits after the last of them.
    pub fn read(&mut self, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        self.cache.reserve(tokens.len())?;
        let last = tokens.len().div_ceil(CHUNK_TOKENS) - 1;
        let mut logits = Vec::new();
        for (index, chunk) in tokens.chunks(CHUNK_TOKENS).enumerate() {
            let want = if index == last {
                Want::Last
            } else {
                Want::None
            };
            logits = self.forward(chunk, want)?.to_vec();
        }
        Ok(logits)
    }

    /// Appends `tokens`, for nothing but what comes after them.
    pub fn skip(&mut self, tokens: &[u32]) -> Result<(), EngineError> {
        for chunk in tokens.chunks(CHUNK_TOKENS) {
            self.cache.reserve(chunk.len())?;
            self.forward(chunk, Want::None)?;
        }
        Ok(())
    }

    /// Appends `inputs` and adds up the negative log likelihoods, in nats, of the `targets`: each after the input of the same
    /// index. `progress` gets the number of those that are done.
    pub fn score(
        &mut self,
        inputs: &[u32],
        targets: &[u32],
        progress: &mut dyn FnMut(usize),
    ) -> Result<f64, EngineError> {
        let vocab_size = self.loaded.model.config().vocab_size;
        let chunk = (CHUNK_LOGITS / vocab_size).clamp(1, CHUNK_TOKENS);
        self.cache.reserve(inputs.len())?;
        let (mut nll, mut done) = (0.0, 0);
        for (tokens, targets) in inputs.chunks(chunk).zip(targets.chunks(chunk)) {
            let logits = self.forward(tokens, Want::All)?;
            for (row, &target) in logits.chunks_exact(vocab_size).zip(targets) {
                nll += negative_log_likelihood(row, target)?;
            }
            done += targets.len();
            progress(done);
        }
        Ok(nll)
    }

    fn forward(&mut self, tokens: &[u32], logits: Want) -> Result<&[f32], EngineError> {
        let cache: &mut dyn KvCache = &mut self.cache;
        let input = Input {
            tokens,
            cache,
            logits,
        };
        let Loaded { runtime, model, .. } = self.loaded;
        Ok(model.forward(runtime, &mut [input], &mut self.workspace)?)
    }
}
