//! What stands in for NCCL among simulated GPUs, `kernels/sim/nccl`: ranks that are threads of one process. For tests.

use std::path::PathBuf;
use std::sync::OnceLock;

use attn_runtime::{Error, Result};
use libloading::os::unix::{Library as Loaded, RTLD_LOCAL, RTLD_NOW};

use super::Library;
use crate::cuda::loader::told;

/// A fault that the library can be made to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This rank never comes to the first meeting.
    Absent = 1,
    /// The n-th group never ends, and the communicator has an asynchronous error.
    AsyncError = 2,
    /// The call that ends the n-th group fails.
    Call = 3,
    /// The n-th group never ends.
    Hang = 4,
}

struct Simulated {
    library: Library,
    fault: unsafe extern "C" fn(i32, usize),
    live: unsafe extern "C" fn() -> usize,
}

fn simulated() -> Result<&'static Simulated> {
    static LIBRARY: OnceLock<Result<Simulated>> = OnceLock::new();
    let load = || {
        let asked = std::env::var_os("ATTN_NCCL_SIM_LIBRARY").filter(|path| !path.is_empty());
        let path = PathBuf::from(asked.unwrap_or_else(|| env!("ATTN_NCCL_SIM_LIBRARY").into()));
        let unavailable = |error| Error::Unavailable {
            what: "what stands in for NCCL among simulated GPUs",
            why: told(&error),
            cure: String::from("build with the feature `sim`, and leave its build folder where it is"),
        };
        // SAFETY: the library is the one that this package's build script made, or one that the user vouches for.
        let loaded = unsafe { Loaded::open(Some(&path), RTLD_NOW | RTLD_LOCAL) }.map_err(unavailable)?;
        // SAFETY: `kernels/sim/nccl/nccl.h` declares the functions with the types of the fields that they are put into.
        let (fault, live) = unsafe {
            let fault = *loaded.get("attn_nccl_sim_fault").map_err(unavailable)?;
            (fault, *loaded.get("attn_nccl_sim_live").map_err(unavailable)?)
        };
        Ok(Simulated { library: Library::of(path, loaded)?, fault, live })
    };
    LIBRARY.get_or_init(load).as_ref().map_err(Clone::clone)
}

/// The library.
///
/// # Errors
/// If it cannot be loaded.
pub fn library() -> Result<&'static Library> {
    simulated().map(|simulated| &simulated.library)
}

/// Plants a fault in the next communicator that the calling thread opens, and in those split off it. `at` counts the
/// rank's groups of sends and receives, from 1.
///
/// # Errors
/// If the library cannot be loaded.
pub fn plant(fault: Fault, at: usize) -> Result<()> {
    let simulated = simulated()?;
    // SAFETY: the function takes any of these numbers.
    unsafe { (simulated.fault)(fault as i32, at) };
    Ok(())
}

/// How many communicators of this process were neither destroyed nor aborted.
///
/// # Errors
/// If the library cannot be loaded.
pub fn live() -> Result<usize> {
    let simulated = simulated()?;
    // SAFETY: the function takes nothing.
    Ok(unsafe { (simulated.live)() })
}
