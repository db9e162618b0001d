//! An HTTP server over the batch engine.

#![forbid(unsafe_code)]
