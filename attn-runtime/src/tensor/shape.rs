//! Arithmetic on shapes, checked.

use crate::error::{Error, Result};
use crate::tensor::Scalar;

/// Strides, in elements, of a dense row-major tensor of this shape.
pub const fn contiguous_strides(shape: [usize; 4]) -> [usize; 4] {
    let d = shape[3];
    let cd = shape[2].saturating_mul(d);
    [shape[1].saturating_mul(cd), cd, d, 1]
}

/// How many elements a shape has.
///
/// # Errors
/// If their bytes do not fit the address space.
pub fn volume<T: Scalar>(shape: [usize; 4]) -> Result<usize> {
    shape
        .iter()
        .try_fold(1_usize, |product, &extent| product.checked_mul(extent))
        .filter(|elements| {
            elements.checked_mul(size_of::<T>()).is_some_and(|bytes| bytes <= isize::MAX as usize)
        })
        .ok_or(Error::TooLarge { shape, dtype: T::DTYPE })
}

/// How many elements, counted from the base, a strided shape reaches. Zero for an empty shape.
pub(crate) fn reach(shape: [usize; 4], strides: [usize; 4]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    let mut last = 0_usize;
    for (extent, stride) in shape.iter().zip(strides) {
        last = last.checked_add((extent - 1).checked_mul(stride)?)?;
    }
    last.checked_add(1)
}

/// Whether two different indices of the shape can meet at one element: then the view must not be written.
pub(crate) fn self_overlapping(shape: [usize; 4], strides: [usize; 4]) -> bool {
    if shape.contains(&0) {
        return false;
    }
    let mut axes = [(0_usize, 1_usize); 4];
    for (axis, (extent, stride)) in axes.iter_mut().zip(shape.into_iter().zip(strides)) {
        *axis = (stride, extent);
    }
    axes.sort_unstable();
    // Sufficient and, for every layout that a tensor library makes, necessary: each axis steps past all below it.
    let mut below = 0_usize;
    for (stride, extent) in axes.into_iter().filter(|&(_, extent)| extent > 1) {
        if stride <= below {
            return true;
        }
        below = below.saturating_add(stride.saturating_mul(extent - 1));
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reach_counts_the_last_element() {
        assert_eq!(reach([2, 3, 4, 5], contiguous_strides([2, 3, 4, 5])), Some(120));
        assert_eq!(reach([2, 3, 4, 5], [0, 0, 0, 1]), Some(5));
        assert_eq!(reach([2, 0, 4, 5], [9, 9, 9, 9]), Some(0));
        assert_eq!(reach([2, 2, 2, 2], [usize::MAX, 1, 1, 1]), None);
    }

    #[test]
    fn overlap_is_seen_whatever_the_order_of_axes() {
        assert!(!self_overlapping([2, 3, 4, 5], contiguous_strides([2, 3, 4, 5])));
        assert!(!self_overlapping([2, 4, 3, 5], [60, 5, 20, 1]));
        assert!(self_overlapping([2, 3, 4, 5], [60, 20, 5, 0]));
        assert!(self_overlapping([2, 3, 4, 5], [60, 19, 5, 1]));
        assert!(!self_overlapping([1, 3, 4, 5], [0, 20, 5, 1]));
    }

    #[test]
    fn volumes_that_overflow_are_errors() {
        assert_eq!(volume::<f32>([1, 2, 3, 4]), Ok(24));
        assert!(volume::<f32>([usize::MAX, 2, 1, 1]).is_err());
        assert!(volume::<f32>([isize::MAX as usize, 1, 1, 1]).is_err());
    }
}
