//! One file per command.

pub mod bench;
pub mod bench_kernels;
pub mod compress;
pub mod doctor;
pub mod eval;
pub mod export;
pub mod inspect;
pub mod kv_report;
pub mod perplexity;
pub mod report;
pub mod run;
pub mod serve;
