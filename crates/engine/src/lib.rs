//! Tokenizer, sampling, KV cache and generation.
