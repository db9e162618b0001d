//! CPU features, operating-system permission for AMX tiles, caches, cores and NUMA nodes.
//!
//! [`Cpu::detect`] looks at the running machine once and answers with a [`Cpu`]. From it come the tokens [`Avx2`],
//! [`Avx512`], [`Amx`] and [`AmxInt8`]: holding one proves that its instructions may be executed here, so a function that takes a
//! token can be safe. [`Features`] describes what a kernel needs and proves nothing.
//!
//! The macros [`avx2_fns!`], [`avx512_fns!`], [`avx512_bf16_fns!`] and [`avx512_vnni_fns!`] put the `target_feature`
//! attribute of a level on functions. Each comes from the very list that detection checks.
//!
//! On other architectures than x86-64 everything compiles and the level is [`Isa::Portable`].

mod cpu;
mod evaluate;
mod flags;
mod isa;
mod levels;
mod os;
#[cfg(test)]
mod pretend;
pub mod topology;

pub use cpu::{Amx, AmxInt8, Avx2, Avx512, Cpu, CpuError, ISA_VARIABLE};
pub use evaluate::{AmxState, Report, evaluate};
pub use isa::{Features, Isa, UnknownIsa};
pub use os::{Machine, Os};
