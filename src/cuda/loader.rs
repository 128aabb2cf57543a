//! What libraries that are loaded while the program runs have in common: the driver's, and the simulator's.

use core::error::Error;

/// What the loader says: the library or the symbol, and what is the matter with it.
pub(crate) fn told(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}
