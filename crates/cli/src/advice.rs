//! Which option helps where a library fails: libraries know none.

use std::error::Error;

use sparamx_compress::CompressError;
use sparamx_kernels::KernelError;

/// What is said after an error that has this cause; nothing if no option helps.
pub fn after(cause: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = cause.downcast_ref() {
        return after_kernels(error).map(str::to_owned);
    }
    cause.downcast_ref().and_then(after_compress)
}

fn after_kernels(error: &KernelError) -> Option<&'static str> {
    match error {
        KernelError::UnknownKernel { .. } => Some(": `sparamx inspect --kernels` lists them"),
        KernelError::Thread { .. } => Some("; ask for fewer with -t"),
        _ => None,
    }
}

fn after_compress(error: &CompressError) -> Option<String> {
    match error {
        CompressError::TiedHead => Some("; leave out --include-lm-head".to_owned()),
        CompressError::Unfinished { .. } => {
            Some("; go on from it with the same command and --resume, or remove it".to_owned())
        }
        CompressError::DiskFull {
            kept: Some(kept), ..
        } => Some(format!(
            ", then go on with the same command and --resume, or remove {}",
            kept.partial.display()
        )),
        CompressError::Interrupted { kept: Some(kept) } => Some(format!(
            "; go on with the same command and --resume, or remove {}",
            kept.partial.display()
        )),
        _ => None,
    }
}
