//! Owned tensors.

use core::fmt;
use core::marker::PhantomData;

use crate::device::{Cpu, Device};
use crate::error::{Error, Result};
use crate::tensor::{Element, Scalar, View, ViewMut, contiguous_strides, volume};

/// A dense row-major tensor that owns its memory on device `D`.
///
/// ```
/// use attn_runtime::Tensor;
///
/// let tensor = Tensor::<f32>::from_fn([1, 2, 3, 4], |[_, seq, head, dim]| (seq * 100 + head * 10 + dim) as f32)?;
/// assert_eq!(tensor.view().at([0, 1, 2, 3]), 123.0);
/// assert_eq!(tensor.as_slice().len(), 24);
/// # Ok::<(), attn_runtime::Error>(())
/// ```
pub struct Tensor<T, D: Device = Cpu> {
    memory: D::Memory,
    shape: [usize; 4],
    elements: PhantomData<T>,
}

impl<T: Scalar, D: Device> Tensor<T, D> {
    /// A tensor of zeros. One allocation.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn zeros(queue: &D::Queue, shape: [usize; 4]) -> Result<Self> {
        let bytes = volume::<T>(shape)? * size_of::<T>();
        Ok(Self { memory: D::allocate(queue, bytes)?, shape, elements: PhantomData })
    }

    /// The lengths of the four axes.
    pub const fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// Lends it for reading.
    pub fn view(&self) -> View<'_, T, D> {
        // SAFETY: the memory holds `shape` elements, zeroed when allocated, and is borrowed with `self`; any bits
        // are a value, since elements are `Pod`.
        unsafe {
            View::from_raw_parts(D::base(&self.memory).cast(), self.shape, contiguous_strides(self.shape))
        }
    }

    /// Lends it for writing.
    pub fn view_mut(&mut self) -> ViewMut<'_, T, D> {
        // SAFETY: as in `view`; the borrow is exclusive.
        unsafe {
            ViewMut::from_raw_parts(D::base(&self.memory).cast(), self.shape, contiguous_strides(self.shape))
        }
    }
}

impl<T: Scalar> Tensor<T, Cpu> {
    /// Copies `elements` (row-major) into a tensor.
    ///
    /// # Errors
    /// If their number is not the shape's, or the memory cannot be had.
    pub fn from_slice(elements: &[T], shape: [usize; 4]) -> Result<Self> {
        let needed = volume::<T>(shape)?;
        if elements.len() != needed {
            let strides = contiguous_strides(shape);
            return Err(Error::Bounds { shape, strides, needed, found: elements.len() });
        }
        let memory = Cpu::allocate_bytes(size_of_val(elements))?;
        let mut tensor = Self { memory, shape, elements: PhantomData };
        tensor.as_mut_slice().copy_from_slice(elements);
        Ok(tensor)
    }

    /// Makes a tensor from a value for each index.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn from_fn(shape: [usize; 4], mut value: impl FnMut([usize; 4]) -> T) -> Result<Self> {
        let memory = Cpu::allocate_bytes(volume::<T>(shape)? * size_of::<T>())?;
        let mut tensor = Self { memory, shape, elements: PhantomData };
        let [_, n1, n2, n3] = shape;
        for (flat, element) in tensor.as_mut_slice().iter_mut().enumerate() {
            *element = value([flat / (n3 * n2 * n1), flat / (n3 * n2) % n1, flat / n3 % n2, flat % n3]);
        }
        Ok(tensor)
    }

    /// The elements, row-major.
    pub fn as_slice(&self) -> &[T] {
        bytemuck::cast_slice(self.memory.bytes())
    }

    /// The elements, row-major.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(self.memory.bytes_mut())
    }
}

impl<T: Element> Tensor<T, Cpu> {
    /// The same tensor in another element type, each element rounded to the nearest.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn cast<U: Element>(&self) -> Result<Tensor<U, Cpu>> {
        let memory = Cpu::allocate_bytes(volume::<U>(self.shape)? * size_of::<U>())?;
        let mut tensor = Tensor { memory, shape: self.shape, elements: PhantomData };
        for (to, from) in tensor.as_mut_slice().iter_mut().zip(self.as_slice()) {
            *to = U::from_f32(from.to_f32());
        }
        Ok(tensor)
    }
}

impl<T: Scalar> Clone for Tensor<T, Cpu> {
    /// # Panics
    /// If the memory cannot be had, as `Vec` does.
    fn clone(&self) -> Self {
        Self::from_slice(self.as_slice(), self.shape)
            .expect("a copy of a tensor needs as much memory as the tensor")
    }
}

impl<T: Scalar> PartialEq for Tensor<T, Cpu> {
    fn eq(&self, other: &Self) -> bool {
        self.shape == other.shape && self.as_slice() == other.as_slice()
    }
}

impl<T, D: Device> fmt::Debug for Tensor<T, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tensor").field("shape", &self.shape).field("device", &D::NAME).finish_non_exhaustive()
    }
}

impl<'a, T: Scalar, D: Device> From<&'a Tensor<T, D>> for View<'a, T, D> {
    fn from(tensor: &'a Tensor<T, D>) -> Self {
        tensor.view()
    }
}

impl<'a, T: Scalar, D: Device> From<&'a mut Tensor<T, D>> for ViewMut<'a, T, D> {
    fn from(tensor: &'a mut Tensor<T, D>) -> Self {
        tensor.view_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_fn_numbers_row_major() {
        let tensor =
            Tensor::<f32>::from_fn([2, 3, 4, 5], |[a, b, c, d]| (((a * 3 + b) * 4 + c) * 5 + d) as f32)
                .unwrap();
        assert!(tensor.as_slice().iter().enumerate().all(|(i, &x)| x == i as f32));
        assert_eq!(tensor.view().at([1, 2, 3, 4]), 119.0);
    }

    #[test]
    fn a_wrong_number_of_elements_is_an_error() {
        assert!(Tensor::<f32>::from_slice(&[0.0; 23], [1, 2, 3, 4]).is_err());
        assert!(Tensor::<f32>::from_slice(&[0.0; 25], [1, 2, 3, 4]).is_err());
    }

    #[test]
    fn an_empty_tensor_is_a_tensor() {
        let tensor = Tensor::<f32>::from_slice(&[], [0, 2, 3, 4]).unwrap();
        assert!(tensor.as_slice().is_empty());
    }
}
