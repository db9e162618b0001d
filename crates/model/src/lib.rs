//! Llama-family models read from Hugging Face directories.
