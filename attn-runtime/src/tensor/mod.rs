//! Tensors of four axes: owned ([`Tensor`]) and lent ([`View`], [`ViewMut`]), strided, on any device.
//!
//! Inside the crate the axes are always `[batch, seq, heads, head_dim]`; a caller's layout is a permutation of
//! strides that the pipeline undoes at its door, so that no layout costs more than another.

mod element;
mod owned;
mod shape;
mod view;

pub use element::{DType, Element, Scalar};
pub use owned::Tensor;
pub(crate) use shape::reach;
pub use shape::{contiguous_strides, volume};
pub use view::{KeyValue, LseMut, View, ViewMut};

pub use attn_plan::TensorLayout;
