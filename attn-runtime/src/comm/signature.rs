//! What ranks compare to know that they make the same call.

use core::fmt;

use attn_plan::{Mask, Sharding};

use crate::metadata::{JointStrategy, KeyPlacement};
use crate::tensor::DType;

/// The fingerprint of a collective call: who calls, for what, on which shapes. Equal on every rank of a group that
/// agrees; compared by value, printed when it differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Signature {
    /// The strategy's name.
    pub strategy: &'static str,
    /// The part of the pipeline, such as `pre_attention`.
    pub stage: &'static str,
    /// The number of the session's call, refused ones included: a rank whose call was refused does not pair its next one
    /// with another call of its peers.
    pub call: u64,
    /// The element type.
    pub dtype: DType,
    /// Shape of the query, over all ranks: `[batch, seq, heads, head_dim]`.
    pub query: [usize; 4],
    /// Shape of key and value, over all ranks.
    pub key: [usize; 4],
    /// Where these are.
    pub keys: KeyPlacement,
    /// Number of joint tokens, and where they stand.
    pub joint: (usize, JointStrategy),
    /// How positions and heads are shared.
    pub sharding: Sharding,
    /// Which masks there are.
    pub mask: Mask,
    /// A digest of key lengths and segments.
    pub digest: u64,
    /// The bits of the softmax scale.
    pub scale_bits: u32,
    /// A number of what is done to queries and keys on their way in; 0 if nothing is.
    pub edges: u64,
    /// Whether the log-sum-exp is wanted.
    pub lse: bool,
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { strategy, stage, call, dtype, query, key, keys, joint: (joint, order), .. } = self;
        write!(f, "{strategy} {stage} of call {call}, {dtype}, query {query:?}, key {key:?}")?;
        if *keys != KeyPlacement::Sharded {
            write!(f, " {}", keys.name())?;
        }
        if *joint > 0 {
            write!(f, ", {joint} joint tokens in {}", order.name())?;
        }
        let Self {
            sharding: Sharding { ulysses, outer, layout, split },
            mask,
            digest,
            scale_bits,
            edges,
            lse,
            ..
        } = self;
        write!(f, ", {ulysses} x {outer} ranks, {} {}", layout.name(), split.name())?;
        write!(f, ", mask {mask}")?;
        if mask.key_lengths || mask.segments {
            write!(f, " (digest {digest:016x})")?;
        }
        write!(f, ", scale {}", f32::from_bits(*scale_bits))?;
        if *edges != 0 {
            write!(f, ", edges (digest {edges:016x})")?;
        }
        if *lse { f.write_str(", with lse") } else { Ok(()) }
    }
}
