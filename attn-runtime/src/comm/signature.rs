//! What ranks compare to know that they make the same call.

use core::fmt;

use crate::metadata::{JointStrategy, Mask};
use crate::tensor::DType;

/// The fingerprint of a collective call: who calls, for what, on which shapes. Equal on every rank of a group that
/// agrees; compared by value, printed when it differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Signature {
    /// The strategy's name.
    pub strategy: &'static str,
    /// The part of the pipeline, such as `pre_attention`.
    pub stage: &'static str,
    /// The element type.
    pub dtype: DType,
    /// Shape of the rank's query: `[batch, seq, heads, head_dim]`.
    pub query: [usize; 4],
    /// Shape of the rank's key and value.
    pub key: [usize; 4],
    /// Number of joint tokens, and where they stand.
    pub joint: (usize, JointStrategy),
    /// The mask.
    pub mask: Mask,
    /// The bits of the softmax scale.
    pub scale_bits: u32,
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { strategy, stage, dtype, query, key, joint: (joint, order), mask, scale_bits } = self;
        write!(f, "{strategy} {stage}, {dtype}, query {query:?}, key {key:?}")?;
        if *joint > 0 {
            write!(f, ", {joint} joint tokens in {}", order.name())?;
        }
        write!(f, ", mask {}, scale {}", mask.name(), f32::from_bits(*scale_bits))
    }
}
