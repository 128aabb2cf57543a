//! Rows of strided tensors, widened to fp32 and narrowed back.

use core::marker::PhantomData;
use core::ptr::NonNull;

use crate::device::Cpu;
use crate::tensor::{Element, Scalar, View, ViewMut};

/// The index of a row: batch, position, head.
pub(super) type Row = [usize; 3];

/// Reads the row into `values`, which has the row's length.
#[inline(always)]
pub(super) fn load<T: Element>(tensor: &View<'_, T, Cpu>, row: Row, values: &mut [f32]) {
    #[cfg(test)]
    tests::LOADED.set(tests::LOADED.get() + 1);
    read(tensor, row, 0, values, T::to_f32);
}

/// Reads elements of the row from the `first` on into `values`.
#[inline(always)]
pub(super) fn read<T: Scalar, V>(
    tensor: &View<'_, T, Cpu>,
    row: Row,
    first: usize,
    values: &mut [V],
    convert: impl Fn(T) -> V,
) {
    if values.is_empty() {
        return;
    }
    let step = tensor.strides()[3];
    let base = start(row, first + values.len(), tensor.shape(), tensor.strides()) + first * step;
    // SAFETY: `start` checked that the row lies inside the shape, so by the view's invariant its elements can be read.
    unsafe {
        let row = tensor.base().add(base);
        if step == 1 {
            for (i, value) in values.iter_mut().enumerate() {
                *value = convert(row.add(i).read());
            }
        } else {
            for (i, value) in values.iter_mut().enumerate() {
                *value = convert(row.add(i * step).read());
            }
        }
    }
}

/// A tensor that the workers of a team write, each its own rows.
pub(super) struct Shared<'a, T> {
    base: NonNull<T>,
    shape: [usize; 4],
    strides: [usize; 4],
    lent: PhantomData<&'a mut T>,
}

// SAFETY: the only way to the elements is `store` and `load`, whose contract keeps threads apart.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T: Element> Shared<'a, T> {
    pub(super) fn new(tensor: ViewMut<'a, T, Cpu>) -> Self {
        Self { base: tensor.base(), shape: tensor.shape(), strides: tensor.strides(), lent: PhantomData }
    }

    /// Writes `values`, narrowed, to the row.
    ///
    /// # Safety
    /// No other thread reads or writes the row meanwhile.
    #[inline]
    pub(super) unsafe fn store(&self, row: Row, values: &[f32]) {
        if values.is_empty() {
            return;
        }
        let base = start(row, values.len(), self.shape, self.strides);
        let step = self.strides[3];
        for (i, value) in values.iter().enumerate() {
            // SAFETY: `start` checked that the row lies inside the shape, so by the view's invariant the element is
            // this tensor's alone; by the caller's contract no other thread touches the row.
            unsafe { self.base.add(base + i * step).write(T::from_f32(*value)) };
        }
    }

    /// Reads the row into `values`.
    ///
    /// # Safety
    /// No other thread writes the row meanwhile.
    #[inline]
    pub(super) unsafe fn load(&self, row: Row, values: &mut [f32]) {
        // SAFETY: the same elements, lent for longer than this call, and nobody writes this row; `load` reads no other.
        let view = unsafe { View::<T, Cpu>::from_raw_parts(self.base, self.shape, self.strides) };
        load(&view, row, values);
    }
}

/// Where a row of `length` starts, in elements.
///
/// # Panics
/// If it lies outside the shape: a mistake of the kernel that asks.
#[inline(always)]
fn start(row: Row, length: usize, shape: [usize; 4], strides: [usize; 4]) -> usize {
    let inside = row[0] < shape[0] && row[1] < shape[1] && row[2] < shape[2] && length <= shape[3];
    assert!(inside, "row {row:?} of length {length} lies outside shape {shape:?}");
    row[0] * strides[0] + row[1] * strides[1] + row[2] * strides[2]
}

/// Cuts the next `length` floats off a worker's memory.
pub(super) fn cut<'a>(memory: &mut &'a mut [f32], length: usize) -> &'a mut [f32] {
    let (head, tail) = core::mem::take(memory).split_at_mut(length);
    *memory = tail;
    head
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::Cell;

    thread_local! {
        /// How many rows this thread has loaded.
        pub(in crate::kernel::cpu) static LOADED: Cell<usize> = const { Cell::new(0) };
    }
}
