//! The launchers that nvcc compiled, and that are linked into this program: the only place that names them.

use core::ffi::{c_char, c_int, c_void};
use std::sync::OnceLock;

use attn_runtime::Result;

use crate::cuda::abi::{
    Copy, Exchange, ExchangeGroup, FlashCall, Launchers, ProbePeak, ProbeTma, ProbeWgmma, StateCall,
};

unsafe extern "C" {
    fn attn_flash_sm90(call: *const FlashCall, stream: *mut c_void) -> c_int;
    fn attn_state_begin(call: *const StateCall, stream: *mut c_void) -> c_int;
    fn attn_state_finish(call: *const StateCall, stream: *mut c_void) -> c_int;
    fn attn_copy(copies: *const Copy, count: usize, stream: *mut c_void) -> c_int;
    fn attn_exchange(call: *const Exchange, stream: *mut c_void) -> c_int;
    fn attn_exchange_withdraw(group: *const ExchangeGroup, stream: *mut c_void) -> c_int;
    fn attn_exchange_prepare() -> c_int;
    fn attn_exchange_mailbox_bytes() -> usize;
    fn attn_probe_wgmma(call: *const ProbeWgmma, stream: *mut c_void) -> c_int;
    fn attn_probe_tma(call: *const ProbeTma, stream: *mut c_void) -> c_int;
    fn attn_probe_peak(call: *const ProbePeak, stream: *mut c_void) -> c_int;
    fn attn_multiprocessors(count: *mut c_int) -> c_int;
    fn attn_status_name(status: c_int) -> *const c_char;
    fn attn_status_text(status: c_int) -> *const c_char;
    fn attn_abi_sizes(sizes: *mut usize, room: usize) -> usize;
}

/// The table of the linked launchers.
///
/// # Errors
/// If they were built from another version of the interface.
pub(super) fn launchers() -> Result<&'static Launchers> {
    static TABLE: OnceLock<Result<Launchers>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let launchers = Launchers {
            flash_sm90: attn_flash_sm90,
            state_begin: attn_state_begin,
            state_finish: attn_state_finish,
            copy: attn_copy,
            exchange: attn_exchange,
            exchange_withdraw: attn_exchange_withdraw,
            exchange_prepare: attn_exchange_prepare,
            exchange_mailbox_bytes: attn_exchange_mailbox_bytes,
            probe_wgmma: attn_probe_wgmma,
            probe_tma: attn_probe_tma,
            probe_peak: attn_probe_peak,
            multiprocessors: attn_multiprocessors,
            status_name: attn_status_name,
            status_text: attn_status_text,
            abi_sizes: attn_abi_sizes,
        };
        // SAFETY: `abi.h` declares the functions as above.
        unsafe { launchers.checked() }
    });
    table.as_ref().map_err(Clone::clone)
}
