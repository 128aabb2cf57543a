//! The launchers that nvcc compiled, and that are linked into this program: the only place that names them.

use core::ffi::{c_char, c_int, c_void};
use std::sync::OnceLock;

use attn_runtime::Result;

use crate::cuda::abi::{
    Attention, Copy, Edge, Exchange, ExchangeGroup, Launchers, ProbePeak, ProbeTma, ProbeWgmma, Sage,
    SageShard, StateCall, for_each_launcher,
};

macro_rules! linked {
    ($($field:ident = $symbol:ident: fn($($name:ident: $type:ty),*) -> $result:ty;)*) => {
        unsafe extern "C" {
            $(fn $symbol($($name: $type),*) -> $result;)*
        }

        const LINKED: Launchers = Launchers { $($field: $symbol,)* };
    };
}
for_each_launcher!(linked);

/// The table of the linked launchers.
///
/// # Errors
/// If they were built from another version of the interface.
pub(super) fn launchers() -> Result<&'static Launchers> {
    static TABLE: OnceLock<Result<Launchers>> = OnceLock::new();
    // SAFETY: `abi.h` declares the functions as they are declared above.
    let table = TABLE.get_or_init(|| unsafe { LINKED.checked() });
    table.as_ref().map_err(Clone::clone)
}
