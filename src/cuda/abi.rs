//! The C interface of the GPU kernels, as `kernels/include/attn/abi.h` declares it: structs of parameters, codes, and a
//! table of the functions. Whoever changes one file changes the other; sizes are compared when a table is made.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::sync::atomic::AtomicU32;

use attn_runtime::device::StridedCopy;

use crate::{Error, Result};

#[cfg(not(target_pointer_width = "64"))]
compile_error!("the GPU kernels' interface counts sizes in 64 bits: build for a 64-bit target");

/// `ATTN_OK`.
pub(crate) const OK: c_int = 0;
/// `ATTN_SIM_FAULT`.
#[cfg(feature = "sim")]
pub(crate) const SIM_FAULT: c_int = -4;

/// `AttnType`: `ATTN_BF16`.
pub(crate) const BF16: i32 = 0;
/// `AttnType`: `ATTN_F16`.
pub(crate) const F16: i32 = 1;
/// `AttnType`: `ATTN_F32`.
pub(crate) const F32: i32 = 2;

/// `AttnType`: `ATTN_S8`, of probes.
pub(crate) const S8: i32 = 3;
/// `AttnType`: `ATTN_E4M3`, of probes.
pub(crate) const E4M3: i32 = 4;

/// `AttnTensor`: `[batch, seq, heads, head_dim]`, `head_dim` dense, strides in elements.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Tensor {
    pub base: *mut c_void,
    pub batch_stride: i64,
    pub seq_stride: i64,
    pub head_stride: i64,
}

impl Tensor {
    /// No tensor.
    pub const NONE: Self =
        Self { base: core::ptr::null_mut(), batch_stride: 0, seq_stride: 0, head_stride: 0 };
}

/// `AttnRows`: one float for each row, `[batch, seq, heads]`, strides in elements.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Rows {
    pub base: *mut f32,
    pub batch_stride: i64,
    pub seq_stride: i64,
    pub head_stride: i64,
}

impl Rows {
    /// No rows.
    pub const NONE: Self =
        Self { base: core::ptr::null_mut(), batch_stride: 0, seq_stride: 0, head_stride: 0 };
}

/// `AttnMask`: all fields of device memory may be null.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Mask {
    pub key_lengths: *const i32,
    pub query_segments: *const i32,
    pub key_segments: *const i32,
    pub dense: *const u8,
    pub dense_strides: [i64; 4],
    pub cover: *mut u8,
    pub dense_heads: i32,
    pub band_lo: i32,
    pub band_hi: i32,
    pub reserved: i32,
}

impl Mask {
    /// Every query attends the key of its own number, and none else: a band is still to be set.
    pub const NONE: Self = Self {
        key_lengths: core::ptr::null(),
        query_segments: core::ptr::null(),
        key_segments: core::ptr::null(),
        dense: core::ptr::null(),
        dense_strides: [0; 4],
        cover: core::ptr::null_mut(),
        dense_heads: 0,
        band_lo: 0,
        band_hi: 0,
        reserved: 0,
    };
}

/// `AttnAttention`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Attention {
    pub query: Tensor,
    pub key: Tensor,
    pub value: Tensor,
    pub out: Tensor,
    pub state_output: Tensor,
    pub lse: Rows,
    pub state_max: Rows,
    pub state_sum: Rows,
    pub mask: Mask,
    pub batch: i32,
    pub seq_q: i32,
    pub seq_k: i32,
    pub heads: i32,
    pub kv_heads: i32,
    pub head_dim: i32,
    pub element: i32,
    pub form: i32,
    pub scale: f32,
    pub reserved: i32,
}

/// `AttnSageTensors`: memory of the device, dense. `value` may be null.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SageTensors {
    pub query: *mut i8,
    pub key: *mut i8,
    pub value: *mut u8,
    pub query_scale: *mut f32,
    pub query_mean: *mut f32,
    pub key_scale: *mut f32,
    pub value_scale: *mut f32,
    pub key_mean: *mut f32,
    pub partial: *mut f32,
}

/// `AttnSage`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Sage {
    pub attention: Attention,
    pub tensors: SageTensors,
}

/// `ATTN_SHARD_SURVEY` and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum ShardStep {
    Survey = 0,
    Settle = 1,
    EdgeMaxima = 2,
    Round = 3,
    Arrange = 4,
}

/// `AttnSageShard`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SageShard {
    pub sage: Sage,
    pub value_rows: *mut u8,
    pub sums: *mut f32,
    pub maxima: *mut f32,
    pub shards: i32,
    pub shard: i32,
    pub joint: i32,
    pub tokens: i32,
    pub step: ShardStep,
    pub reserved: i32,
}

/// `AttnStateCall`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct StateCall {
    pub state_output: Tensor,
    pub out: Tensor,
    pub state_max: Rows,
    pub state_sum: Rows,
    pub lse: Rows,
    pub batch: i32,
    pub seq: i32,
    pub heads: i32,
    pub head_dim: i32,
    pub element: i32,
    pub reserved: i32,
}

/// `AttnCopy` is [`StridedCopy`], field by field: batches cross as they are.
pub(crate) type Copy = StridedCopy;

/// `ATTN_PAIRS_INTERLEAVED`.
pub(crate) const PAIRS_INTERLEAVED: i32 = 0;
/// `ATTN_PAIRS_HALVES`.
pub(crate) const PAIRS_HALVES: i32 = 1;

/// `AttnEdge`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Edge {
    pub source: *const c_void,
    pub destination: *mut c_void,
    pub weight: *const c_void,
    pub cos: *const f32,
    pub sin: *const f32,
    pub source_strides: [i64; 3],
    pub destination_strides: [i64; 3],
    pub weight_stride: i64,
    pub cos_strides: [i64; 2],
    pub sin_strides: [i64; 2],
    pub batch: i32,
    pub seq: i32,
    pub heads: i32,
    pub head_dim: i32,
    pub rotary_dim: i32,
    pub pairs: i32,
    pub element: i32,
    pub norm: i32,
    pub eps: f32,
    pub reserved: i32,
}

impl Edge {
    /// No rows.
    pub const NONE: Self = Self {
        source: core::ptr::null(),
        destination: core::ptr::null_mut(),
        weight: core::ptr::null(),
        cos: core::ptr::null(),
        sin: core::ptr::null(),
        source_strides: [0; 3],
        destination_strides: [0; 3],
        weight_stride: 0,
        cos_strides: [0; 2],
        sin_strides: [0; 2],
        batch: 0,
        seq: 0,
        heads: 0,
        head_dim: 0,
        rotary_dim: 0,
        pairs: PAIRS_INTERLEAVED,
        element: BF16,
        norm: 0,
        eps: 0.0,
        reserved: 0,
    };
}

/// `ATTN_EXCHANGE_RANKS`.
pub(crate) const EXCHANGE_RANKS: usize = 16;

/// `AttnExchangeBox`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ExchangeBox {
    pub base: *mut c_void,
    pub strides: [u64; 4],
    pub extent: [u32; 4],
    pub item: u32,
    pub reserved: u32,
}

/// `AttnExchangeReport`, which host and GPU share.
#[derive(Debug, Default)]
#[repr(C)]
pub struct ExchangeReport {
    pub abort: AtomicU32,
    pub gone: AtomicU32,
    pub set: AtomicU32,
    pub reason: AtomicU32,
    pub operation: AtomicU32,
    pub calls: AtomicU32,
    pub phase: AtomicU32,
    pub ranks: AtomicU32,
    pub sender: AtomicU32,
    pub receiver: AtomicU32,
    pub which: AtomicU32,
    pub sent: AtomicU32,
    pub expected: AtomicU32,
    pub sent_extent: [AtomicU32; 4],
    pub expected_extent: [AtomicU32; 4],
    pub sent_item: AtomicU32,
    pub expected_item: AtomicU32,
}

/// `AttnExchangeReason`.
pub(crate) const EXCHANGE_LATE: u32 = 1;
/// As above.
pub(crate) const EXCHANGE_UNLIKE: u32 = 2;
/// As above.
pub(crate) const EXCHANGE_WITHDRAWN: u32 = 3;

/// `AttnExchangeGroup`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ExchangeGroup {
    pub mailbox: [*mut c_void; EXCHANGE_RANKS],
    pub report: *const ExchangeReport,
    pub limit_nanoseconds: u64,
    pub me: u32,
    pub size: u32,
    pub first: u32,
    pub reserved: u32,
}

/// `AttnExchange`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Exchange {
    pub group: ExchangeGroup,
    pub outgoing: *const ExchangeBox,
    pub incoming: *const ExchangeBox,
    pub sends: [u32; EXCHANGE_RANKS],
    pub receives: [u32; EXCHANGE_RANKS],
    pub peers: u32,
    pub operation: u32,
}

/// `AttnProbeWgmma`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ProbeWgmma {
    pub a: *const c_void,
    pub b: *const c_void,
    pub d: *mut f32,
    pub n: i32,
    pub swizzle: i32,
    pub element: i32,
    pub a_from_registers: i32,
    pub b_mn_major: i32,
    pub reserved: i32,
}

/// `AttnProbeTma`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ProbeTma {
    pub source: *const c_void,
    pub copy: *mut c_void,
    pub image: *mut c_void,
    pub seq: i32,
    pub slabs: i32,
    pub rows: i32,
    pub row: i32,
    pub slab: i32,
    pub swizzle: i32,
    pub box_slabs: i32,
    pub reserved: i32,
}

/// `AttnProbePeak`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ProbePeak {
    pub sums: *mut f32,
    pub operations: *mut f64,
    pub blocks: i32,
    pub iterations: i32,
    pub element: i32,
    pub reserved: i32,
}

/// The size of each struct, in the order of `attn_abi_sizes`.
const SIZES: [usize; 17] = [
    size_of::<Tensor>(),
    size_of::<Rows>(),
    size_of::<Mask>(),
    size_of::<Attention>(),
    size_of::<SageTensors>(),
    size_of::<Sage>(),
    size_of::<SageShard>(),
    size_of::<StateCall>(),
    size_of::<Copy>(),
    size_of::<Edge>(),
    size_of::<ExchangeBox>(),
    size_of::<ExchangeReport>(),
    size_of::<ExchangeGroup>(),
    size_of::<Exchange>(),
    size_of::<ProbeWgmma>(),
    size_of::<ProbeTma>(),
    size_of::<ProbePeak>(),
];

// What the C side would compute, so that a field in the wrong place does not wait for a GPU to be found.
const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Tensor>() == 32 && size_of::<Rows>() == 32);
    assert!(offset_of!(Tensor, batch_stride) == 8 && offset_of!(Tensor, head_stride) == 24);
    assert!(offset_of!(Rows, batch_stride) == 8 && offset_of!(Rows, head_stride) == 24);
    assert!(offset_of!(Mask, dense_strides) == 32 && offset_of!(Mask, cover) == 64);
    assert!(offset_of!(Mask, band_lo) == 76 && size_of::<Mask>() == 88 && align_of::<Mask>() == 8);
    assert!(offset_of!(Attention, state_output) == 128 && offset_of!(Attention, lse) == 160);
    assert!(offset_of!(Attention, mask) == 256 && offset_of!(Attention, batch) == 344);
    assert!(offset_of!(Attention, element) == 368 && offset_of!(Attention, scale) == 376);
    assert!(size_of::<Attention>() == 384 && align_of::<Attention>() == 8);
    assert!(offset_of!(SageTensors, query_scale) == 24 && offset_of!(SageTensors, partial) == 64);
    assert!(size_of::<SageTensors>() == 72 && offset_of!(Sage, tensors) == 384 && size_of::<Sage>() == 456);
    assert!(offset_of!(SageShard, value_rows) == 456 && offset_of!(SageShard, shards) == 480);
    assert!(offset_of!(SageShard, step) == 496 && size_of::<SageShard>() == 504);
    assert!(offset_of!(StateCall, state_max) == 64 && offset_of!(StateCall, batch) == 160);
    assert!(size_of::<StateCall>() == 184 && align_of::<StateCall>() == 8);
    assert!(offset_of!(Copy, destination) == 8 && offset_of!(Copy, item) == 16);
    assert!(offset_of!(Copy, extent) == 24 && offset_of!(Copy, source_strides) == 56);
    assert!(offset_of!(Copy, destination_strides) == 88 && size_of::<Copy>() == 120);
    assert!(offset_of!(Edge, source_strides) == 40 && offset_of!(Edge, weight_stride) == 88);
    assert!(offset_of!(Edge, cos_strides) == 96 && offset_of!(Edge, batch) == 128);
    assert!(offset_of!(Edge, element) == 152 && offset_of!(Edge, eps) == 160);
    assert!(size_of::<Edge>() == 168 && align_of::<Edge>() == 8);
    assert!(offset_of!(ExchangeBox, strides) == 8 && offset_of!(ExchangeBox, extent) == 40);
    assert!(offset_of!(ExchangeBox, item) == 56 && size_of::<ExchangeBox>() == 64);
    assert!(offset_of!(ExchangeReport, which) == 40 && offset_of!(ExchangeReport, sent_extent) == 52);
    assert!(offset_of!(ExchangeReport, sent_item) == 84 && size_of::<ExchangeReport>() == 92);
    assert!(offset_of!(ExchangeGroup, report) == 128 && offset_of!(ExchangeGroup, me) == 144);
    assert!(size_of::<ExchangeGroup>() == 160 && align_of::<ExchangeGroup>() == 8);
    assert!(offset_of!(Exchange, outgoing) == 160 && offset_of!(Exchange, sends) == 176);
    assert!(offset_of!(Exchange, peers) == 304 && size_of::<Exchange>() == 312);
    assert!(offset_of!(ProbeWgmma, n) == 24 && size_of::<ProbeWgmma>() == 48);
    assert!(offset_of!(ProbeTma, seq) == 24 && size_of::<ProbeTma>() == 56);
    assert!(offset_of!(ProbePeak, blocks) == 16 && size_of::<ProbePeak>() == 32);
};

/// A function that queues one call on a stream and returns a status.
pub(crate) type Launch<P> = unsafe extern "C" fn(call: *const P, stream: *mut c_void) -> c_int;

/// Hands the list of all functions of the kernels' library to a macro: each as the field of [`Launchers`] that holds it, its
/// name and its signature. A new one is one row here, besides its declaration in `abi.h`.
macro_rules! for_each_launcher {
    ($then:ident) => {
        $then! {
            flash_sm90 = attn_flash_sm90: fn(call: *const Attention, stream: *mut c_void) -> c_int;
            flash_sm80 = attn_flash_sm80: fn(call: *const Attention, stream: *mut c_void) -> c_int;
            sdpa = attn_sdpa: fn(call: *const Attention, stream: *mut c_void) -> c_int;
            sage_quantise = attn_sage_quantise: fn(call: *const Sage, stream: *mut c_void) -> c_int;
            sage_sm80 = attn_sage_sm80: fn(call: *const Sage, stream: *mut c_void) -> c_int;
            sage_shard = attn_sage_shard: fn(call: *const SageShard, stream: *mut c_void) -> c_int;
            sage_sm90 = attn_sage_sm90: fn(call: *const Sage, stream: *mut c_void) -> c_int;
            state_begin = attn_state_begin: fn(call: *const StateCall, stream: *mut c_void) -> c_int;
            state_finish = attn_state_finish: fn(call: *const StateCall, stream: *mut c_void) -> c_int;
            copy = attn_copy: fn(copies: *const Copy, count: usize, stream: *mut c_void) -> c_int;
            edge = attn_edge: fn(edges: *const Edge, count: usize, stream: *mut c_void) -> c_int;
            exchange = attn_exchange: fn(call: *const Exchange, stream: *mut c_void) -> c_int;
            exchange_withdraw = attn_exchange_withdraw: fn(group: *const ExchangeGroup, stream: *mut c_void) -> c_int;
            exchange_prepare = attn_exchange_prepare: fn() -> c_int;
            exchange_mailbox_bytes = attn_exchange_mailbox_bytes: fn() -> usize;
            probe_wgmma = attn_probe_wgmma: fn(call: *const ProbeWgmma, stream: *mut c_void) -> c_int;
            probe_wgmma8 = attn_probe_wgmma8: fn(call: *const ProbeWgmma, stream: *mut c_void) -> c_int;
            probe_tma = attn_probe_tma: fn(call: *const ProbeTma, stream: *mut c_void) -> c_int;
            probe_peak = attn_probe_peak: fn(call: *const ProbePeak, stream: *mut c_void) -> c_int;
            multiprocessors = attn_multiprocessors: fn(count: *mut c_int) -> c_int;
            status_name = attn_status_name: fn(status: c_int) -> *const c_char;
            status_text = attn_status_text: fn(status: c_int) -> *const c_char;
            abi_sizes = attn_abi_sizes: fn(sizes: *mut usize, room: usize) -> usize;
        }
    };
}
#[cfg(any(feature = "cuda", feature = "sim"))]
pub(crate) use for_each_launcher;

macro_rules! table {
    ($($field:ident = $symbol:ident: fn($($name:ident: $type:ty),*) -> $result:ty;)*) => {
        /// The functions of one build of the kernels: linked for a GPU, or loaded from the simulator's library.
        #[derive(Clone, Copy, Debug)]
        pub struct Launchers {
            $(pub $field: unsafe extern "C" fn($($name: $type),*) -> $result,)*
        }

        /// Tables for tests: functions that nobody is to call.
        #[cfg(test)]
        pub(crate) mod uncalled {
            use super::*;

            $(unsafe extern "C" fn $field($(_: $type),*) -> $result {
                unreachable!(stringify!($symbol))
            })*

            pub(crate) const TABLE: Launchers = Launchers { $($field,)* };
        }
    };
}
for_each_launcher!(table);

impl Launchers {
    /// This table, if its kernels were built from the header that this file mirrors.
    ///
    /// # Errors
    /// If there are more or fewer structs, or a struct's size differs.
    ///
    /// # Safety
    /// The functions must have the signatures of `abi.h`, and `abi_sizes` must write no more than there is room for.
    pub unsafe fn checked(self) -> Result<Self> {
        let mut theirs = [0_usize; SIZES.len()];
        // SAFETY: the caller's contract.
        let count = unsafe { (self.abi_sizes)(theirs.as_mut_ptr(), theirs.len()) };
        if count == SIZES.len() && theirs == SIZES {
            return Ok(self);
        }
        let theirs = &theirs[..count.min(SIZES.len())];
        Err(Error::Unavailable {
            what: "the library of GPU kernels",
            why: format!(
                "its {count} structs have the sizes {theirs:?}{}, the {} of this program {SIZES:?}: it was built \
                 from another version",
                if count > SIZES.len() { " and more" } else { "" },
                SIZES.len()
            ),
            cure: String::from("build the kernels and the program from one source tree"),
        })
    }

    /// A status' name and what it means.
    pub fn describe(&self, status: c_int) -> (String, String) {
        let text = |function: unsafe extern "C" fn(c_int) -> *const c_char| {
            // SAFETY: by `abi.h` the functions take any status and never return null; their strings are static.
            unsafe { CStr::from_ptr(function(status)) }.to_string_lossy().into_owned()
        };
        (text(self.status_name), text(self.status_text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes that abi.h has on every 64-bit machine.
    const OF_HEADER: [usize; 17] =
        [32, 32, 88, 384, 72, 456, 504, 184, 120, 168, 64, 92, 160, 312, 48, 56, 32];

    /// What `attn_abi_sizes` does with the sizes of a header.
    ///
    /// # Safety
    /// As there.
    unsafe fn write(own: &[usize], sizes: *mut usize, room: usize) -> usize {
        let written = own.len().min(room);
        // SAFETY: the caller gives that much room.
        unsafe { core::ptr::copy_nonoverlapping(own.as_ptr(), sizes, written) };
        own.len()
    }

    unsafe extern "C" fn right(sizes: *mut usize, room: usize) -> usize {
        // SAFETY: the caller's contract, for this function and the next three.
        unsafe { write(&OF_HEADER, sizes, room) }
    }

    unsafe extern "C" fn wrong(sizes: *mut usize, room: usize) -> usize {
        // SAFETY: as above.
        unsafe {
            write(&[32, 32, 88, 376, 72, 456, 504, 184, 120, 168, 64, 92, 160, 312, 48, 56, 32], sizes, room)
        }
    }

    unsafe extern "C" fn fewer(sizes: *mut usize, room: usize) -> usize {
        // SAFETY: as above.
        unsafe { write(&OF_HEADER[..16], sizes, room) }
    }

    unsafe extern "C" fn more(sizes: *mut usize, room: usize) -> usize {
        // SAFETY: as above.
        unsafe {
            write(
                &[32, 32, 88, 384, 72, 456, 504, 184, 120, 168, 64, 92, 160, 312, 48, 56, 32, 64],
                sizes,
                room,
            )
        }
    }

    fn table(abi_sizes: unsafe extern "C" fn(*mut usize, usize) -> usize) -> Launchers {
        Launchers { abi_sizes, ..uncalled::TABLE }
    }

    #[test]
    fn kernels_of_another_header_are_refused() {
        // SAFETY: the functions above have the signatures of `abi.h`.
        let checked = |sizes| unsafe { table(sizes).checked() };
        assert!(checked(right).is_ok());
        let message = checked(wrong).unwrap_err().to_string();
        assert!(message.contains("376") && message.contains("384"), "{message}");
        assert!(message.contains("one source tree"), "{message}");
        let message = checked(fewer).unwrap_err().to_string();
        assert!(message.contains("its 16 structs") && message.contains("48, 56], the 17 of"), "{message}");
        let message = checked(more).unwrap_err().to_string();
        assert!(message.contains("its 18 structs") && message.contains("56, 32] and more"), "{message}");
    }
}
