//! Borrowed strided tensors.

use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;

use attn_plan::Run;

use crate::device::{Cpu, Device};
use crate::error::{Error, Result};
use crate::tensor::shape::{reach, self_overlapping};
use crate::tensor::{Scalar, TensorLayout, contiguous_strides};

/// A tensor lent for reading: a base, a shape and strides in elements, on device `D`.
///
/// ```
/// use attn_runtime::{TensorLayout, View};
///
/// let elements: Vec<f32> = (0..24).map(|i| i as f32).collect();
/// // One batch of two positions, three heads of four.
/// let view = View::new(&elements, [1, 2, 3, 4])?;
/// assert_eq!(view.at([0, 1, 2, 3]), 23.0);
/// // The second position alone; then with heads before positions. No element moves.
/// let second = view.narrow(1, 1, 1)?;
/// assert_eq!(second.permuted(TensorLayout::Bhsd).shape(), [1, 3, 1, 4]);
/// # Ok::<(), attn_runtime::Error>(())
/// ```
///
/// Invariant: every index inside the shape names an initialised element that nothing writes during `'a`.
pub struct View<'a, T, D = Cpu> {
    base: NonNull<T>,
    shape: [usize; 4],
    strides: [usize; 4],
    lent: PhantomData<(&'a T, fn() -> D)>,
}

/// A tensor lent for writing: a base, a shape and strides in elements, on device `D`.
///
/// Invariant: every index inside the shape names an initialised element of its own, and nothing else touches
/// any of them during `'a`.
pub struct ViewMut<'a, T, D = Cpu> {
    base: NonNull<T>,
    shape: [usize; 4],
    strides: [usize; 4],
    lent: PhantomData<(&'a mut T, fn() -> D)>,
}

// SAFETY: a `View` is a shared borrow of elements, so it may go where `&T` may.
unsafe impl<T: Sync, D> Send for View<'_, T, D> {}
// SAFETY: as above.
unsafe impl<T: Sync, D> Sync for View<'_, T, D> {}
// SAFETY: a `ViewMut` is an exclusive borrow of elements, so it may go where `&mut T` may.
unsafe impl<T: Send, D> Send for ViewMut<'_, T, D> {}
// SAFETY: through `&ViewMut` elements can only be read.
unsafe impl<T: Sync, D> Sync for ViewMut<'_, T, D> {}

impl<T, D> Clone for View<'_, T, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T, D> Copy for View<'_, T, D> {}

impl<T, D> fmt::Debug for View<'_, T, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View")
            .field("shape", &self.shape)
            .field("strides", &self.strides)
            .finish_non_exhaustive()
    }
}

impl<T, D> fmt::Debug for ViewMut<'_, T, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ViewMut")
            .field("shape", &self.shape)
            .field("strides", &self.strides)
            .finish_non_exhaustive()
    }
}

impl<'a, T: Scalar> View<'a, T, Cpu> {
    /// A dense row-major tensor over `elements`.
    ///
    /// # Errors
    /// If the shape needs more elements than there are.
    pub fn new(elements: &'a [T], shape: [usize; 4]) -> Result<Self> {
        Self::with_strides(elements, shape, contiguous_strides(shape))
    }

    /// A strided tensor over `elements`; strides count elements, and may be zero to repeat.
    ///
    /// # Errors
    /// If shape and strides reach beyond `elements`.
    pub fn with_strides(elements: &'a [T], shape: [usize; 4], strides: [usize; 4]) -> Result<Self> {
        check_bounds(elements.len(), shape, strides)?;
        // SAFETY: every index reaches inside `elements`, which is borrowed for `'a`.
        Ok(unsafe { Self::from_raw_parts(non_null(elements.as_ptr().cast_mut()), shape, strides) })
    }

    /// The element at an index.
    ///
    /// # Panics
    /// If the index is outside the shape.
    #[inline]
    pub fn at(&self, index: [usize; 4]) -> T {
        let offset = offset_of(index, self.shape, self.strides);
        // SAFETY: `offset_of` checked the index, so by the type's invariant the element may be read.
        unsafe { self.base.add(offset).read() }
    }
}

impl<'a, T, D> View<'a, T, D> {
    /// A view of memory that this crate did not allocate.
    ///
    /// # Safety
    /// For the whole of `'a`, every index inside `shape` must name an initialised element in memory of device `D`
    /// that nobody writes, and `base` must be aligned.
    pub const unsafe fn from_raw_parts(base: NonNull<T>, shape: [usize; 4], strides: [usize; 4]) -> Self {
        Self { base, shape, strides, lent: PhantomData }
    }

    /// The address of index `[0, 0, 0, 0]`.
    pub const fn base(&self) -> NonNull<T> {
        self.base
    }

    /// The lengths of the four axes.
    pub const fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// The distance between neighbours of each axis, in elements.
    pub const fn strides(&self) -> [usize; 4] {
        self.strides
    }

    /// The same elements with the axes in another layout's order. Costs nothing: strides move, elements do not.
    #[must_use]
    pub const fn permuted(self, layout: TensorLayout) -> Self {
        Self {
            base: self.base,
            shape: layout.permute(self.shape),
            strides: layout.permute(self.strides),
            lent: PhantomData,
        }
    }

    /// Part of one axis: `length` positions from `start`.
    ///
    /// # Errors
    /// If the part reaches beyond the axis.
    pub fn narrow(self, axis: usize, start: usize, length: usize) -> Result<Self> {
        let (base, shape) = narrow(self.base, self.shape, self.strides, axis, start, length)?;
        Ok(Self { base, shape, ..self })
    }

    /// Positions of one axis at equal distances. No element moves.
    ///
    /// # Errors
    /// If they reach beyond the axis.
    pub fn select(self, axis: usize, Run { start, step, len }: Run) -> Result<Self> {
        let last = len.checked_sub(1).map_or(Some(0), |last| last.checked_mul(step));
        let span = last.and_then(|last| last.checked_add(usize::from(len > 0)));
        let Some(span) = span else {
            return Err(Error::Range { axis, start, length: len, shape: self.shape });
        };
        let mut part = self.narrow(axis, start, span)?;
        part.shape[axis] = len;
        part.strides[axis] = part.strides[axis].saturating_mul(step);
        Ok(part)
    }
}

impl<'a, T: Scalar> ViewMut<'a, T, Cpu> {
    /// A dense row-major tensor over `elements`.
    ///
    /// # Errors
    /// If the shape needs more elements than there are.
    pub fn new(elements: &'a mut [T], shape: [usize; 4]) -> Result<Self> {
        Self::with_strides(elements, shape, contiguous_strides(shape))
    }

    /// A strided tensor over `elements`; strides count elements.
    ///
    /// # Errors
    /// If shape and strides reach beyond `elements`, or reach one element by two indices.
    pub fn with_strides(elements: &'a mut [T], shape: [usize; 4], strides: [usize; 4]) -> Result<Self> {
        check_bounds(elements.len(), shape, strides)?;
        if self_overlapping(shape, strides) {
            return Err(Error::Overlap { shape, strides });
        }
        // SAFETY: every index reaches its own element of `elements`, which is borrowed for `'a`.
        Ok(unsafe { Self::from_raw_parts(non_null(elements.as_mut_ptr()), shape, strides) })
    }
}

impl<T: Scalar> ViewMut<'_, T, Cpu> {
    /// The element at an index.
    ///
    /// # Panics
    /// If the index is outside the shape.
    #[inline]
    pub fn at(&self, index: [usize; 4]) -> T {
        self.as_view().at(index)
    }

    /// Writes the element at an index.
    ///
    /// # Panics
    /// If the index is outside the shape.
    #[inline]
    pub fn set(&mut self, index: [usize; 4], value: T) {
        let offset = offset_of(index, self.shape, self.strides);
        // SAFETY: `offset_of` checked the index, so by the type's invariant the element is this view's alone.
        unsafe { self.base.add(offset).write(value) };
    }
}

impl<'a, T, D> ViewMut<'a, T, D> {
    /// A view of memory that this crate did not allocate.
    ///
    /// # Safety
    /// For the whole of `'a`, every index inside `shape` must name an initialised element of its own, in memory of
    /// device `D`, that nobody else reads or writes, and `base` must be aligned.
    pub const unsafe fn from_raw_parts(base: NonNull<T>, shape: [usize; 4], strides: [usize; 4]) -> Self {
        Self { base, shape, strides, lent: PhantomData }
    }

    /// The address of index `[0, 0, 0, 0]`.
    pub const fn base(&self) -> NonNull<T> {
        self.base
    }

    /// The lengths of the four axes.
    pub const fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// The distance between neighbours of each axis, in elements.
    pub const fn strides(&self) -> [usize; 4] {
        self.strides
    }

    /// The same elements, lent for a shorter time.
    pub const fn reborrow(&mut self) -> ViewMut<'_, T, D> {
        ViewMut { base: self.base, shape: self.shape, strides: self.strides, lent: PhantomData }
    }

    /// The same elements, for reading.
    pub const fn as_view(&self) -> View<'_, T, D> {
        View { base: self.base, shape: self.shape, strides: self.strides, lent: PhantomData }
    }

    /// The same elements, for reading for as long as they were lent.
    pub const fn into_view(self) -> View<'a, T, D> {
        View { base: self.base, shape: self.shape, strides: self.strides, lent: PhantomData }
    }

    /// The same elements with the axes in another layout's order. Costs nothing: strides move, elements do not.
    #[must_use]
    pub const fn permuted(self, layout: TensorLayout) -> Self {
        Self {
            base: self.base,
            shape: layout.permute(self.shape),
            strides: layout.permute(self.strides),
            lent: PhantomData,
        }
    }

    /// Part of one axis: `length` positions from `start`.
    ///
    /// # Errors
    /// If the part reaches beyond the axis.
    pub fn narrow(self, axis: usize, start: usize, length: usize) -> Result<Self> {
        let (base, shape) = narrow(self.base, self.shape, self.strides, axis, start, length)?;
        Ok(Self { base, shape, ..self })
    }
}

/// A key and a value tensor, which always go together.
pub struct KeyValue<'a, T, D> {
    /// Keys, `[batch, seq, kv_heads, head_dim]`.
    pub key: View<'a, T, D>,
    /// Values, of the keys' shape.
    pub value: View<'a, T, D>,
}

impl<T, D> Clone for KeyValue<'_, T, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T, D> Copy for KeyValue<'_, T, D> {}

impl<T, D> KeyValue<'_, T, D> {
    /// Part of one axis of both.
    ///
    /// # Errors
    /// As [`View::narrow`].
    pub fn narrow(self, axis: usize, start: usize, length: usize) -> Result<Self> {
        Ok(Self {
            key: self.key.narrow(axis, start, length)?,
            value: self.value.narrow(axis, start, length)?,
        })
    }

    /// Positions of one axis of both, at equal distances.
    ///
    /// # Errors
    /// As [`View::select`].
    pub fn select(self, axis: usize, run: Run) -> Result<Self> {
        Ok(Self { key: self.key.select(axis, run)?, value: self.value.select(axis, run)? })
    }
}

impl<T, D> fmt::Debug for KeyValue<'_, T, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyValue").field("key", &self.key).field("value", &self.value).finish()
    }
}

/// Where a kernel writes the log-sum-exp of each row: fp32, natural logarithm, `[batch, heads, seq]` in every
/// tensor layout.
pub struct LseMut<'a, D = Cpu>(ViewMut<'a, f32, D>);

impl<'a> LseMut<'a, Cpu> {
    /// A dense `[batch, heads, seq]` over `elements`.
    ///
    /// # Errors
    /// If the shape needs more elements than there are.
    pub fn new(elements: &'a mut [f32], [batch, heads, seq]: [usize; 3]) -> Result<Self> {
        ViewMut::new(elements, [batch, heads, seq, 1]).map(Self)
    }
}

impl<'a, D> LseMut<'a, D> {
    /// Takes a view of `[batch, heads, seq, 1]`.
    ///
    /// # Errors
    /// If its last axis is not 1 long.
    pub fn from_view(view: ViewMut<'a, f32, D>) -> Result<Self> {
        match view.shape() {
            [_, _, _, 1] => Ok(Self(view)),
            found => {
                Err(Error::Shape { tensor: "lse", found, expected: String::from("a last axis of length 1") })
            }
        }
    }

    /// `[batch, heads, seq]`.
    pub const fn shape(&self) -> [usize; 3] {
        let [batch, heads, seq, _] = self.0.shape();
        [batch, heads, seq]
    }

    /// As the pipeline sees it: `[batch, seq, heads, 1]`.
    pub(crate) const fn into_canonical(self) -> ViewMut<'a, f32, D> {
        self.0.permuted(TensorLayout::Bhsd)
    }
}

impl<D> fmt::Debug for LseMut<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LseMut").field(&self.shape()).finish()
    }
}

impl<'a, T, D: Device> From<ViewMut<'a, T, D>> for View<'a, T, D> {
    fn from(view: ViewMut<'a, T, D>) -> Self {
        view.into_view()
    }
}

fn check_bounds(found: usize, shape: [usize; 4], strides: [usize; 4]) -> Result<()> {
    match reach(shape, strides) {
        Some(needed) if needed <= found => Ok(()),
        needed => Err(Error::Bounds { shape, strides, needed: needed.unwrap_or(usize::MAX), found }),
    }
}

fn non_null<T>(pointer: *mut T) -> NonNull<T> {
    NonNull::new(pointer).unwrap_or(NonNull::dangling())
}

fn narrow<T>(
    base: NonNull<T>,
    mut shape: [usize; 4],
    strides: [usize; 4],
    axis: usize,
    start: usize,
    length: usize,
) -> Result<(NonNull<T>, [usize; 4])> {
    if axis >= 4 || start.checked_add(length).is_none_or(|end| end > shape[axis]) {
        return Err(Error::Range { axis, start, length, shape });
    }
    shape[axis] = length;
    if shape.contains(&0) {
        return Ok((base, shape));
    }
    // SAFETY: the part is not empty, so its first element is an element of the whole.
    Ok((unsafe { base.add(start * strides[axis]) }, shape))
}

#[inline]
fn offset_of(index: [usize; 4], shape: [usize; 4], strides: [usize; 4]) -> usize {
    let mut offset = 0;
    for axis in 0..4 {
        assert!(index[axis] < shape[axis], "index {index:?} outside shape {shape:?}");
        offset += index[axis] * strides[axis];
    }
    offset
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_permutes_strides_and_leaves_elements() {
        let elements: Vec<f32> = (0..2 * 3 * 4 * 5).map(|i| i as f32).collect();
        let view = View::new(&elements, [2, 3, 4, 5]).unwrap();
        for layout in TensorLayout::ALL {
            let other = view.permuted(layout);
            assert_eq!(other.shape(), layout.permute([2, 3, 4, 5]));
            assert_eq!(other.at(layout.permute([1, 2, 3, 4])), view.at([1, 2, 3, 4]));
            assert_eq!(other.permuted(layout).shape(), view.shape());
        }
    }

    #[test]
    fn a_view_beyond_its_buffer_is_an_error() {
        let elements = [0.0_f32; 23];
        let error = View::new(&elements, [1, 2, 3, 4]).unwrap_err();
        assert!(matches!(error, Error::Bounds { needed: 24, found: 23, .. }), "{error}");
    }

    #[test]
    fn a_writable_view_reaches_no_element_twice() {
        let mut elements = [0.0_f32; 24];
        assert!(ViewMut::with_strides(&mut elements, [2, 2, 3, 4], [0, 12, 4, 1]).is_err());
        assert!(View::with_strides(&elements, [2, 2, 3, 4], [0, 12, 4, 1]).is_ok());
    }

    #[test]
    fn narrowing_moves_the_base() {
        let elements: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let view = View::new(&elements, [1, 4, 2, 3]).unwrap().narrow(1, 1, 2).unwrap();
        assert_eq!(view.shape(), [1, 2, 2, 3]);
        assert_eq!(view.at([0, 0, 0, 0]), 6.0);
        assert!(view.narrow(1, 1, 2).is_err());
        assert!(view.narrow(1, 2, 0).is_ok());
    }

    #[test]
    fn selecting_steps_along_an_axis() {
        let elements: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let view = View::new(&elements, [1, 8, 1, 3]).unwrap();
        let every_third = view.select(1, Run { start: 1, step: 3, len: 3 }).unwrap();
        assert_eq!(every_third.shape(), [1, 3, 1, 3]);
        assert_eq!([0, 1, 2].map(|i| every_third.at([0, i, 0, 1])), [4.0, 13.0, 22.0]);
        assert!(view.select(1, Run { start: 2, step: 3, len: 3 }).is_err());
        assert_eq!(view.select(1, Run { start: 8, step: 3, len: 0 }).unwrap().shape(), [1, 0, 1, 3]);
        assert!(view.select(1, Run { start: 0, step: usize::MAX, len: 3 }).is_err());
    }
}
