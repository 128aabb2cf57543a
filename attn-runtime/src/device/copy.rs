//! The strided 4-D copy: pack, unpack, slice, concatenate and reorder are all batches of it.

use crate::device::{Device, Scope};
use crate::error::{Error, Result};
use crate::tensor::{Scalar, View, ViewMut};

/// One copy of a 4-D box between two strided tensors. Plain data: strides count elements of `item` bytes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct StridedCopy {
    /// First element read.
    pub source: *const u8,
    /// First element written.
    pub destination: *mut u8,
    /// Bytes of one element.
    pub item: usize,
    /// How many elements along each axis.
    pub extent: [usize; 4],
    /// Distances between neighbours in the source, in elements.
    pub source_strides: [usize; 4],
    /// Distances between neighbours in the destination, in elements.
    pub destination_strides: [usize; 4],
}

impl StridedCopy {
    /// Bytes that the copy moves.
    pub fn bytes(&self) -> usize {
        if self.extent.contains(&0) {
            return 0;
        }
        self.extent.iter().fold(self.item, |bytes, &axis| bytes.saturating_mul(axis))
    }
}

impl<D: Device> Scope<'_, D> {
    /// Copies one tensor into another of the same shape: concatenating, packing and slicing are such copies between views.
    ///
    /// # Errors
    /// If the shapes differ, or the device reports an error.
    pub fn copy<T: Scalar>(&self, source: View<'_, T, D>, destination: ViewMut<'_, T, D>) -> Result<()> {
        if source.shape() != destination.shape() {
            return Err(Error::Plan(format!(
                "cannot copy shape {:?} into {:?}",
                source.shape(),
                destination.shape()
            )));
        }
        let copy = StridedCopy {
            source: source.base().as_ptr().cast_const().cast(),
            destination: destination.base().as_ptr().cast(),
            item: size_of::<T>(),
            extent: source.shape(),
            source_strides: source.strides(),
            destination_strides: destination.strides(),
        };
        // SAFETY: by the views' invariants the source can be read and the destination, which is lent exclusively and so
        // does not overlap it, can be written; both stay until the queue has passed, by the contract of `Device`, and later
        // work on them is queued behind.
        unsafe { D::copy(self.queue(), &[copy]) }
    }
}
