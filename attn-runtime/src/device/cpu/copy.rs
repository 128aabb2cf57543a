//! Strided copies on the host: axes that are dense in both tensors are joined into one run, then whole runs move.

use crate::device::StridedCopy;

/// Makes one strided copy.
///
/// # Safety
/// As [`Device::copy`](crate::device::Device::copy) asks of each copy.
pub(super) unsafe fn strided(copy: &StridedCopy) {
    if copy.extent.contains(&0) {
        return;
    }
    let axes = Axes::joined(copy);
    // The innermost axis is one run of bytes if both sides are dense along it, else single elements.
    let [a0, a1, a2, a3] = axes.0;
    let dense = a3.source == 1 && a3.destination == 1;
    let (run, steps) = if dense { (a3.extent * copy.item, 1) } else { (copy.item, a3.extent) };
    for i0 in 0..a0.extent {
        for i1 in 0..a1.extent {
            for i2 in 0..a2.extent {
                let from = i0 * a0.source + i1 * a1.source + i2 * a2.source;
                let to = i0 * a0.destination + i1 * a1.destination + i2 * a2.destination;
                for i3 in 0..steps {
                    // SAFETY: each index is inside the extents, so by the caller's contract source and destination
                    // are elements of the two tensors, which do not overlap.
                    unsafe {
                        let source = copy.source.add((from + i3 * a3.source) * copy.item);
                        let destination = copy.destination.add((to + i3 * a3.destination) * copy.item);
                        core::ptr::copy_nonoverlapping(source, destination, run);
                    }
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Axis {
    extent: usize,
    source: usize,
    destination: usize,
}

/// The axes of a copy, outermost first, with neighbours joined where both tensors step through them as one axis.
struct Axes([Axis; 4]);

impl Axes {
    fn joined(copy: &StridedCopy) -> Self {
        const UNIT: Axis = Axis { extent: 1, source: 0, destination: 0 };
        let mut axes = [UNIT; 4];
        let mut next = 4;
        for i in (0..4).rev() {
            let axis = Axis {
                extent: copy.extent[i],
                source: copy.source_strides[i],
                destination: copy.destination_strides[i],
            };
            if axis.extent == 1 && next < 4 {
                continue;
            }
            if let Some(inner) = axes.get_mut(next)
                && (inner.extent == 1
                    || (axis.source == inner.extent * inner.source
                        && axis.destination == inner.extent * inner.destination))
            {
                *inner = if inner.extent == 1 {
                    axis
                } else {
                    Axis { extent: inner.extent * axis.extent, ..*inner }
                };
                continue;
            }
            next -= 1;
            axes[next] = axis;
        }
        Self(axes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Tensor, TensorLayout};
    use proptest::prelude::*;

    fn copy_between(shape: [usize; 4], from: TensorLayout, to: TensorLayout) -> (Tensor<f32>, Tensor<f32>) {
        let source =
            Tensor::from_fn(from.permute(shape), |[a, b, c, d]| (a * 1000 + b * 100 + c * 10 + d) as f32)
                .unwrap();
        let mut target = Tensor::<f32>::from_fn(to.permute(shape), |_| -1.0).unwrap();
        {
            let (s, t) = (source.view().permuted(from), target.view_mut().permuted(to));
            let copy = StridedCopy {
                source: s.base().as_ptr().cast_const().cast(),
                destination: t.base().as_ptr().cast(),
                item: 4,
                extent: shape,
                source_strides: s.strides(),
                destination_strides: t.strides(),
            };
            // SAFETY: two tensors of the same shape, borrowed.
            unsafe { strided(&copy) };
        }
        (source, target)
    }

    proptest! {
        #[test]
        fn every_element_arrives_in_any_layout(shape in prop::array::uniform4(1_usize..6), from in 0_usize..3, to in 0_usize..3) {
            let (from, to) = (TensorLayout::ALL[from], TensorLayout::ALL[to]);
            let (source, target) = copy_between(shape, from, to);
            let (s, t) = (source.view().permuted(from), target.view().permuted(to));
            for a in 0..shape[0] { for b in 0..shape[1] { for c in 0..shape[2] { for d in 0..shape[3] {
                prop_assert_eq!(s.at([a, b, c, d]), t.at([a, b, c, d]));
            }}}}
        }
    }

    #[test]
    fn dense_tensors_move_in_one_run() {
        let dense = StridedCopy {
            source: core::ptr::null(),
            destination: core::ptr::null_mut(),
            item: 2,
            extent: [2, 3, 4, 5],
            source_strides: [60, 20, 5, 1],
            destination_strides: [60, 20, 5, 1],
        };
        assert_eq!(Axes::joined(&dense).0[3].extent, 120);
        let sliced = StridedCopy { source_strides: [120, 40, 5, 1], ..dense };
        assert_eq!(Axes::joined(&sliced).0[3].extent, 20);
    }
}
