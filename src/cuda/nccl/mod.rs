//! NCCL, NVIDIA's library that moves memory between GPUs: loaded while the program runs, and wrapped so that what NCCL
//! leaves to its callers' care is seen to.
//!
//! No build needs NCCL, and none links it. [`library`] looks for it when it is first wanted: in what the environment
//! variable ATTN_NCCL_LIBRARY names, then where the loader, pip, conda and CUDA have it. Version 2.18 is the oldest that
//! is taken.
//!
//! [`GpuComm`](crate::cuda::GpuComm) is what attention runs on; what is here is for those who need NCCL itself.

mod abi;
mod comm;
mod group;
mod library;
mod search;
#[cfg(feature = "sim")]
#[doc(hidden)]
pub mod sim;

pub use abi::UniqueId;
pub use comm::{Comm, Ending, Handle, Memory, Registration};
pub use group::Message;
pub use library::{Library, Version};

use std::path::PathBuf;
use std::sync::OnceLock;

use attn_runtime::Result;

pub(crate) use group::at;

/// NCCL, as it is installed on this machine. Looked for once.
///
/// # Errors
/// If there is none, or it is too old.
pub fn library() -> Result<&'static Library> {
    static LIBRARY: OnceLock<Result<Library>> = OnceLock::new();
    LIBRARY.get_or_init(Library::find).as_ref().map_err(Clone::clone)
}

/// Where NCCL is on this machine, and which version: for `attn doctor`. No GPU and no driver are needed.
///
/// # Errors
/// As [`library`].
pub fn probe() -> Result<(PathBuf, Version)> {
    let library = library()?;
    Ok((library.path().to_owned(), library.version()))
}
