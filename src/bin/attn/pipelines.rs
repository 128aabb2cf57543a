//! The attention that the program runs on tensors which are not the bundled model's: one struct for each kernel.
//!
//! The attributes fix nothing but the kernel: strategy, degrees, shapes, masks and scale come at run time. Tensors of
//! another layout than this one, `[batch, seq, heads, head_dim]`, are brought to it by their strides.

use attn::prelude::*;

/// Attention with the kernel `flash`.
#[parallel_attention(
    strategy = ["none", "ulysses", "ring", "hybrid", "allgather_kv", "ulysses_allgather"],
    backend = "flash",
)]
pub(crate) struct FlashAttention;

/// Attention with the kernel `sdpa`.
#[parallel_attention(
    strategy = ["none", "ulysses", "ring", "hybrid", "allgather_kv", "ulysses_allgather"],
    backend = "sdpa",
)]
pub(crate) struct SdpaAttention;

/// Attention with the kernel `sage`.
#[cfg(any(feature = "cuda", all(test, feature = "sim")))]
#[parallel_attention(
    strategy = ["none", "ulysses", "ring", "hybrid", "allgather_kv", "ulysses_allgather", "ulysses_quantised"],
    backend = "sage",
)]
pub(crate) struct SageAttention;
