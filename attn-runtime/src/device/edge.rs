//! The copy of rows that are normalised and rotated on their way.

use crate::device::{Device, Scope};
use crate::error::{Error, Result};
use crate::tensor::DType;

/// Which channels of a row are a pair, which a rotary embedding turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RopePairs {
    /// Neighbours: channel `2i` and channel `2i + 1`, as in Flux, Qwen-Image, Wan, GPT-J.
    #[default]
    Interleaved,
    /// Channel `i` and channel `i + rotary_dim / 2`, as in Llama, Qwen, GPT-NeoX ("rotate half").
    Halves,
}

impl RopePairs {
    /// The name: `interleaved` or `halves`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Interleaved => "interleaved",
            Self::Halves => "halves",
        }
    }
}

/// A [`StridedCopy`](crate::device::StridedCopy) of rows, `[batch, seq, heads, head_dim]`, each of which is normalised, then
/// rotated, in fp32, and rounded once. Plain data: strides count elements.
#[derive(Clone, Copy, Debug)]
pub struct EdgeCopy {
    /// First element read.
    pub source: *const u8,
    /// First element written.
    pub destination: *mut u8,
    /// `F32`, `F16` or `BF16`: of source, destination and weights.
    pub dtype: DType,
    /// How many elements along each axis.
    pub extent: [usize; 4],
    /// Distances between neighbours in the source.
    pub source_strides: [usize; 4],
    /// Distances between neighbours in the destination.
    pub destination_strides: [usize; 4],
    /// What is done first.
    pub norm: Option<EdgeNorm>,
    /// What is done then.
    pub rope: Option<EdgeRope>,
}

/// `x / sqrt(mean(x²) + eps) * weight`, over a row.
#[derive(Clone, Copy, Debug)]
pub struct EdgeNorm {
    /// `[heads, head_dim]`; null: all weights are 1.
    pub weight: *const u8,
    /// Distances between its neighbours; between heads 0, if all have the same weights.
    pub weight_strides: [usize; 2],
    /// At least 0.
    pub eps: f32,
}

/// `(a, b)` becomes `(a cos - b sin, b cos + a sin)` for each pair of a row's first `2 * pairs` channels.
#[derive(Clone, Copy, Debug)]
pub struct EdgeRope {
    /// `[batch, seq, pairs]`.
    pub cos: *const f32,
    /// `[batch, seq, pairs]`.
    pub sin: *const f32,
    /// Distances between neighbours of `cos`; along the batch 0, if all its rows have the same angles.
    pub cos_strides: [usize; 3],
    /// Distances between neighbours of `sin`.
    pub sin_strides: [usize; 3],
    /// How many pairs are rotated: at most `head_dim / 2`.
    pub pairs: usize,
    /// Which channels these are.
    pub order: RopePairs,
}

impl<D: Device> Scope<'_, D> {
    /// Makes a batch of such copies; an empty one asks nothing of the device.
    ///
    /// # Safety
    /// As [`Device::edge`].
    ///
    /// # Errors
    /// As there.
    pub(crate) unsafe fn edge(&self, copies: &[EdgeCopy]) -> Result<()> {
        if copies.is_empty() {
            return Ok(());
        }
        // SAFETY: the caller's contract.
        unsafe { D::edge(self.queue(), copies) }
    }
}

/// What a device answers that makes no such copies.
#[cold]
pub(super) fn none_made<D: Device>() -> Error {
    Error::Unavailable {
        what: "the fused norm and rotation of queries and keys (`AttentionMetadata::edges`)",
        why: format!("the device `{}` does not implement `Device::edge`", D::NAME),
        cure: String::from(
            "implement it there, or transform queries and keys before the call and give no edges",
        ),
    }
}

#[cfg(test)]
mod tests {
    use core::ptr::NonNull;

    use super::*;
    use crate::device::StridedCopy;
    use crate::device::cpu::CpuMemory;

    /// A device that says nothing of edges.
    struct Plain;

    // SAFETY: as `CpuMemory` is for `Cpu`.
    unsafe impl Device for Plain {
        const NAME: &'static str = "plain";
        type Queue = ();
        type Memory = CpuMemory;

        fn allocate((): &(), bytes: usize) -> Result<CpuMemory> {
            CpuMemory::zeroed(bytes)
        }

        fn base(memory: &CpuMemory) -> NonNull<u8> {
            memory.base()
        }

        unsafe fn copy((): &(), _: &[StridedCopy]) -> Result<()> {
            Ok(())
        }

        fn synchronize((): &()) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_device_that_makes_none_says_so() {
        let copy = EdgeCopy {
            source: core::ptr::null(),
            destination: core::ptr::null_mut(),
            dtype: DType::F32,
            extent: [0; 4],
            source_strides: [0; 4],
            destination_strides: [0; 4],
            norm: None,
            rope: None,
        };
        // SAFETY: nothing is copied.
        let error = unsafe { Plain::edge(&(), &[copy]) }.unwrap_err().to_string();
        assert!(error.contains("the device `plain` does not implement `Device::edge`"), "{error}");
        assert!(error.contains("transform queries and keys before the call"), "{error}");
        let mut arena = crate::device::Arena::<Plain>::default();
        // SAFETY: as above.
        assert!(unsafe { arena.open(&()).unwrap().edge(&[]) }.is_ok());
    }
}
