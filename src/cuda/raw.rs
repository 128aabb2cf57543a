//! Attention on memory that this crate knows nothing of: addresses, strides and numbers, as another library or another
//! language has them. Whoever has types rather describes the memory by [`View::from_raw_parts`] and calls
//! [`FlashSm90::forward_with`](super::FlashSm90::forward_with).

use core::ffi::c_void;
use core::ptr::NonNull;

use attn_runtime::{AttentionCall, Band, DType, Element, Error, KeyValue, Result, View, ViewMut};
use half::{bf16, f16};

use super::attention::{FlashForm, asked, flash_for};
use super::element::Half;
use super::launches::GpuQueue;

/// A tensor `[batch, seq, heads, head_dim]` at an address of the device, its rows of `head_dim` elements dense.
#[derive(Clone, Copy, Debug)]
pub struct RawTensor {
    /// The first element: a multiple of 16 bytes.
    pub base: *mut c_void,
    /// Distances between neighbours along batch, seq and heads, in elements: multiples of 16 bytes.
    pub strides: [usize; 3],
}

/// One float for each row, `[batch, seq, heads]`, at an address of the device.
#[derive(Clone, Copy, Debug)]
pub struct RawRows {
    /// The first float.
    pub base: *mut f32,
    /// Distances between neighbours along batch, seq and heads, in floats.
    pub strides: [usize; 3],
}

/// softmax(`scale` * Q Kᵀ) V over a band: everything that [`attention`] needs to know.
#[derive(Clone, Copy, Debug)]
pub struct RawAttention {
    /// `[batch, seq_q, heads, head_dim]`.
    pub query: RawTensor,
    /// `[batch, seq_k, kv_heads, head_dim]`.
    pub key: RawTensor,
    /// `[batch, seq_k, kv_heads, head_dim]`.
    pub value: RawTensor,
    /// `[batch, seq_q, heads, head_dim]`: written.
    pub out: RawTensor,
    /// The log-sum-exp of each row, natural logarithm, `[batch, seq_q, heads]`: written if given.
    pub lse: Option<RawRows>,
    /// How many keys of each batch row count: `batch` integers in memory of the device, clamped to `0..=seq_k`. Null:
    /// all do.
    pub key_lengths: *const i32,
    /// [`DType::BF16`] or [`DType::F16`], for query, key, value and out.
    pub dtype: DType,
    /// Length of the batch axis.
    pub batch: usize,
    /// How many queries.
    pub seq_q: usize,
    /// How many keys.
    pub seq_k: usize,
    /// How many query heads.
    pub heads: usize,
    /// How many key and value heads: they divide `heads`.
    pub kv_heads: usize,
    /// One that [`kernels`](super::kernels) lists for `flash` on the card.
    pub head_dim: usize,
    /// Which keys a query may attend: [`Band::FULL`], or [`Band::causal`], or any other.
    pub band: Band,
    /// The softmax scale, above 0.
    pub scale: f32,
    /// How the kernel of Hopper works.
    pub form: FlashForm,
}

/// Queues one attention call and returns; what it was given must stay until the queue has passed it.
/// `examples/foreign_memory.rs` uses it.
///
/// # Safety
/// Every index inside the shapes must name memory of the queue's own device: of query, key and value initialised and
/// written by nobody, of `out` and `lse` an element of its own that nobody else touches, `key_lengths` as said there;
/// until the queue has passed the call.
///
/// # Errors
/// If the kernel does not take a shape, an address or a stride, or the device reports an error. Nothing was queued
/// then.
pub unsafe fn attention<Q: GpuQueue>(queue: &Q, call: &RawAttention) -> Result<()> {
    match call.dtype {
        // SAFETY: the caller's contract.
        DType::BF16 => unsafe { typed::<bf16, Q>(queue, call) },
        // SAFETY: the caller's contract.
        DType::F16 => unsafe { typed::<f16, Q>(queue, call) },
        other => Err(Error::Unsupported {
            kernel: "flash",
            what: format!("elements of type {other}"),
            supported: String::from("it takes bf16 and f16"),
        }),
    }
}

/// [`attention`], its element type known.
///
/// # Safety
/// As there.
unsafe fn typed<T: Half, Q: GpuQueue>(queue: &Q, call: &RawAttention) -> Result<()> {
    let RawAttention { batch, seq_q, seq_k, heads, kv_heads, head_dim, band, scale, .. } = *call;
    let (queries, keys) = ([batch, seq_q, heads, head_dim], [batch, seq_k, kv_heads, head_dim]);
    let lse = match call.lse {
        None => None,
        // SAFETY: the caller's contract.
        Some(RawRows { base, strides }) => Some(unsafe {
            ViewMut::from_raw_parts(there("lse", base)?, [batch, seq_q, heads, 1], four(strides))
        }),
    };
    // SAFETY: the caller's contract, for this tensor and the next three.
    let query = unsafe { view("query", call.query, queries) }?;
    // SAFETY: as above.
    let key = unsafe { view("key", call.key, keys) }?;
    // SAFETY: as above.
    let value = unsafe { view("value", call.value, keys) }?;
    // SAFETY: as above; nobody else touches it.
    let out = unsafe {
        ViewMut::from_raw_parts(there("out", call.out.base.cast::<T>())?, queries, four(call.out.strides))
    };
    let lengths = NonNull::new(call.key_lengths.cast_mut())
        // SAFETY: the caller's contract.
        .map(|base| unsafe { View::from_raw_parts(base, [batch, 1, 1, 1], [1; 4]) });
    let mut call_on = AttentionCall::<T, Q::Device> {
        query,
        kv: KeyValue { key, value },
        mask: band.into(),
        scale,
        out,
        lse,
    };
    let kernel = flash_for(&asked::<Q::Device, T>(queue, &call_on), call.form)?;
    kernel.forward_banded(queue, &mut call_on, lengths)
}

/// A tensor for reading.
///
/// # Safety
/// As [`View::from_raw_parts`].
unsafe fn view<'a, T: Element, D>(
    name: &'static str,
    RawTensor { base, strides }: RawTensor,
    shape: [usize; 4],
) -> Result<View<'a, T, D>> {
    // SAFETY: the caller's contract.
    Ok(unsafe { View::from_raw_parts(there(name, base.cast())?, shape, four(strides)) })
}

fn there<T>(tensor: &'static str, base: *mut T) -> Result<NonNull<T>> {
    NonNull::new(base).ok_or_else(|| Error::Unsupported {
        kernel: "flash",
        what: format!("`{tensor}` at address 0"),
        supported: String::from("give the address of memory of the queue's device"),
    })
}

const fn four([batch, seq, heads]: [usize; 3]) -> [usize; 4] {
    [batch, seq, heads, 1]
}
