//! Masks by content: tensors of a file, in the same shapes whatever the layout of the others.

use attn::{Cpu, Mask, Tensor};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::input::Sizes;
use super::source::Source;
use crate::failure::Failure;
use crate::machine::Machine;

/// What narrows a mask by position; each is there if the mask names it.
#[derive(Debug)]
pub(super) struct Masks<D: Machine = Cpu> {
    /// For each row of the batch.
    pub(super) key_lengths: Option<Vec<usize>>,
    /// `[batch, seq]`.
    pub(super) segments: Option<Vec<i32>>,
    /// `[batch, 1 or heads, query positions, key positions]`, joint tokens included.
    pub(super) dense: Option<Tensor<u8, D>>,
}

impl Masks {
    /// No masks by content.
    pub(super) const NONE: Self = Self { key_lengths: None, segments: None, dense: None };

    /// Loads what a mask names. Other tensors are not looked at.
    ///
    /// # Errors
    /// If a tensor is missing, of another type or shape, or says what cannot be.
    pub(super) fn load(source: &Source<'_>, mask: Mask, sizes: Sizes) -> Result<Self, Failure> {
        Ok(Self {
            key_lengths: mask.key_lengths.then(|| key_lengths(source, sizes)).transpose()?,
            segments: mask.segments.then(|| segments(source, sizes)).transpose()?,
            dense: mask.dense.then(|| dense(source, sizes)).transpose()?,
        })
    }

    /// The same on a device.
    ///
    /// # Errors
    /// If the memory cannot be had, or the device reports an error.
    pub(super) fn upload<D: Machine>(self, queue: &D::Queue) -> attn::Result<Masks<D>> {
        let Self { key_lengths, segments, dense } = self;
        let dense = dense.map(|dense| D::upload(queue, dense)).transpose()?;
        Ok(Masks { key_lengths, segments, dense })
    }
}

/// A tensor that a mask reads: `key_lengths` of `padding`, for example.
struct Wanted {
    /// The mask's name on the command line.
    mask: &'static str,
    tensor: &'static str,
    dtypes: &'static [Dtype],
    shapes: Vec<Vec<usize>>,
    /// What the axes are.
    axes: &'static str,
}

impl Wanted {
    /// The tensor, which is of the type and shape that it should be.
    fn find<'a>(&self, source: &Source<'a>) -> Result<TensorView<'a>, Failure> {
        let Self { mask, tensor: name, dtypes, shapes, axes } = self;
        let types: Vec<String> = dtypes.iter().map(Dtype::to_string).collect();
        let types = types.join(" or ");
        let expected: Vec<String> = shapes.iter().map(|shape| format!("{shape:?}")).collect();
        let expected = format!("{} ({axes})", expected.join(" or "));
        let Some(found) = source.find(name) else {
            return Err(Failure::Input(format!(
                "`--mask {mask}` needs the tensor `{name}`, {types} of shape {expected}; `{}` has {}",
                source.path().display(),
                source.names()
            )));
        };
        if !dtypes.contains(&found.dtype()) {
            let dtype = found.dtype();
            return Err(Failure::Input(format!(
                "tensor `{name}` has elements of type {dtype}: expected {types}"
            )));
        }
        if !shapes.iter().any(|shape| shape == found.shape()) {
            let found = found.shape();
            return Err(Failure::Input(format!("tensor `{name}` has shape {found:?}, expected {expected}")));
        }
        Ok(found)
    }
}

fn key_lengths(source: &Source<'_>, Sizes { batch, key, .. }: Sizes) -> Result<Vec<usize>, Failure> {
    let wanted = Wanted {
        mask: "padding",
        tensor: "key_lengths",
        dtypes: &[Dtype::I64],
        shapes: vec![vec![batch]],
        axes: "how many keys each row of the batch has",
    };
    let found = wanted.find(source)?;
    let lengths = found.data().as_chunks().0.iter().map(|word| i64::from_le_bytes(*word)).enumerate();
    lengths
        .map(|(row, length)| {
            usize::try_from(length).ok().filter(|length| *length <= key).ok_or_else(|| {
                Failure::Input(format!(
                    "tensor `key_lengths` says {length} for row {row} of the batch: expected 0 to {key}, the positions \
                     of `k`"
                ))
            })
        })
        .collect()
}

fn segments(source: &Source<'_>, Sizes { batch, query, key, .. }: Sizes) -> Result<Vec<i32>, Failure> {
    if query != key {
        return Err(Failure::Input(format!(
            "`--mask segments` is for queries and keys of one sequence, but `q` has {query} positions and `k` has \
             {key}: use `dense`, with a tensor `mask`"
        )));
    }
    let wanted = Wanted {
        mask: "segments",
        tensor: "segments",
        dtypes: &[Dtype::I32],
        shapes: vec![vec![batch, query]],
        axes: "batch, positions",
    };
    let found = wanted.find(source)?;
    Ok(found.data().as_chunks().0.iter().map(|word| i32::from_le_bytes(*word)).collect())
}

fn dense(source: &Source<'_>, sizes: Sizes) -> Result<Tensor<u8>, Failure> {
    let Sizes { batch, heads, query, key, joint } = sizes;
    let shape = |heads| [batch, heads, joint + query, joint + key];
    let mut shapes = vec![shape(1).to_vec(), shape(heads).to_vec()];
    shapes.dedup();
    let wanted = Wanted {
        mask: "dense",
        tensor: "mask",
        dtypes: &[Dtype::U8, Dtype::BOOL],
        shapes,
        axes: "batch, 1 or heads, positions of queries, positions of keys, with joint tokens where they stand",
    };
    let found = wanted.find(source)?;
    let heads = found.shape().get(1).copied().unwrap_or(1);
    Ok(Tensor::from_slice(found.data(), shape(heads))?)
}
