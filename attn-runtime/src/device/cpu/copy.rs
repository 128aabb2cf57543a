//! Strided copies on the host: axes that are dense in both tensors are joined into one run, then whole runs move.

use crate::device::StridedCopy;

/// Makes one strided copy.
///
/// # Safety
/// As [`Device::copy`](crate::device::Device::copy) asks of each copy.
pub(super) unsafe fn strided(copy: &StridedCopy) {
    // SAFETY: the caller's contract is that of `by_runs`, whose runs do not overlap.
    unsafe {
        by_runs(copy, |source, destination, run, _| core::ptr::copy_nonoverlapping(source, destination, run))
    };
}

/// Makes strided copies whose destinations are more than the caches hold: what is written goes to memory, and the lines
/// that it fills are not read first.
///
/// # Safety
/// As [`strided`], for each copy.
pub(super) unsafe fn past_caches(copies: &[StridedCopy]) {
    #[cfg(target_arch = "x86_64")]
    let lines = if is_x86_feature_detected!("avx") { stream::by_halves } else { stream::by_quarters };
    for copy in copies {
        // SAFETY: the caller's contract is that of `by_runs`, whose runs do not overlap; the processor has what `lines` takes.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            by_runs(copy, |source, destination, run, step| {
                stream::run(lines, source, destination, run, step)
            });
            #[cfg(not(target_arch = "x86_64"))]
            strided(copy);
        }
    }
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has it.
    unsafe {
        core::arch::x86_64::_mm_sfence();
    }
}

/// Copies past the caches. Other threads may see them after a fence.
#[cfg(target_arch = "x86_64")]
mod stream {
    use core::arch::x86_64::{
        _MM_HINT_NTA, _mm_loadu_si128, _mm_prefetch, _mm_stream_si128, _mm256_loadu_si256,
        _mm256_stream_si256,
    };

    /// Bytes of a cache line.
    const LINE: usize = 64;

    /// A run as long as this is found by the processor itself; of shorter ones the next but one is fetched ahead.
    const LONG: usize = 4096;

    /// Streams whole cache lines: source, destination, number, and how far ahead to fetch, which is a hint.
    ///
    /// # Safety
    /// Both ends are so many lines long and do not overlap; the destination is aligned to a line.
    type Lines = unsafe fn(*const u8, *mut u8, usize, usize);

    /// Copies bytes. The next ones to be copied are `step` bytes behind them, as far as is known.
    ///
    /// # Safety
    /// Both ends are so many bytes long, and do not overlap; the processor has what `lines` takes.
    pub(super) unsafe fn run(
        lines: Lines,
        source: *const u8,
        destination: *mut u8,
        bytes: usize,
        step: usize,
    ) {
        let before = destination.align_offset(LINE).min(bytes);
        let whole = (bytes - before) / LINE;
        let after = before + whole * LINE;
        let ahead = if bytes < LONG { step.wrapping_mul(2) } else { LONG / 4 };
        // SAFETY: all offsets are at most `bytes`; what is streamed starts at a multiple of a line.
        unsafe {
            core::ptr::copy_nonoverlapping(source, destination, before);
            if whole > 0 {
                lines(source.add(before), destination.add(before), whole, ahead);
            }
            core::ptr::copy_nonoverlapping(source.add(after), destination.add(after), bytes - after);
        }
    }

    /// As [`Lines`], a quarter of a line at a time.
    pub(super) unsafe fn by_quarters(source: *const u8, destination: *mut u8, lines: usize, ahead: usize) {
        for at in (0..lines * LINE).step_by(LINE) {
            // SAFETY: the line lies inside both ends; to fetch ahead is harmless whatever is there.
            unsafe {
                _mm_prefetch(source.wrapping_add(at).wrapping_add(ahead).cast(), _MM_HINT_NTA);
                let line = [0, 16, 32, 48].map(|part| _mm_loadu_si128(source.add(at + part).cast()));
                for (part, value) in line.into_iter().enumerate() {
                    _mm_stream_si128(destination.add(at + part * 16).cast(), value);
                }
            }
        }
    }

    /// As [`Lines`], half a line at a time and two of them in flight. The processor has AVX.
    #[target_feature(enable = "avx")]
    pub(super) unsafe fn by_halves(source: *const u8, destination: *mut u8, lines: usize, ahead: usize) {
        let pairs = lines / 2 * 2 * LINE;
        for at in (0..pairs).step_by(2 * LINE) {
            // SAFETY: both lines lie inside both ends; to fetch ahead is harmless whatever is there.
            unsafe {
                let next = source.wrapping_add(at).wrapping_add(ahead);
                _mm_prefetch(next.cast(), _MM_HINT_NTA);
                _mm_prefetch(next.wrapping_add(LINE).cast(), _MM_HINT_NTA);
                let lines = [0, 32, 64, 96].map(|part| _mm256_loadu_si256(source.add(at + part).cast()));
                for (part, value) in lines.into_iter().enumerate() {
                    _mm256_stream_si256(destination.add(at + part * 32).cast(), value);
                }
            }
        }
        // SAFETY: as above, for the line that is left.
        unsafe { by_quarters(source.add(pairs), destination.add(pairs), lines % 2, ahead) };
    }
}

/// Cuts a strided copy into runs of bytes: source, destination, length, and how far the source of the next one is.
///
/// # Safety
/// As [`Device::copy`](crate::device::Device::copy) asks of the copy.
unsafe fn by_runs(copy: &StridedCopy, mut body: impl FnMut(*const u8, *mut u8, usize, usize)) {
    if copy.extent.contains(&0) {
        return;
    }
    let axes = Axes::joined(copy);
    // The innermost axis is one run of bytes if both sides are dense along it, else single elements.
    let [a0, a1, a2, a3] = axes.0;
    let dense = a3.source == 1 && a3.destination == 1;
    let (run, steps, step) =
        if dense { (a3.extent * copy.item, 1, a2.source) } else { (copy.item, a3.extent, a3.source) };
    let step = step.wrapping_mul(copy.item);
    for i0 in 0..a0.extent {
        for i1 in 0..a1.extent {
            for i2 in 0..a2.extent {
                let from = i0 * a0.source + i1 * a1.source + i2 * a2.source;
                let to = i0 * a0.destination + i1 * a1.destination + i2 * a2.destination;
                for i3 in 0..steps {
                    // SAFETY: each index is inside the extents, so by the caller's contract source and destination
                    // are elements of the two tensors.
                    let (source, destination) = unsafe {
                        (
                            copy.source.add((from + i3 * a3.source) * copy.item),
                            copy.destination.add((to + i3 * a3.destination) * copy.item),
                        )
                    };
                    body(source, destination, run, step);
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

    fn copy_between(
        shape: [usize; 4],
        from: TensorLayout,
        to: TensorLayout,
        past: bool,
    ) -> (Tensor<f32>, Tensor<f32>) {
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
            unsafe { if past { past_caches(&[copy]) } else { strided(&copy) } };
        }
        (source, target)
    }

    proptest! {
        #[test]
        fn every_element_arrives_in_any_layout(
            mut shape in prop::array::uniform4(1_usize..6), wide in 1_usize..60, from in 0_usize..3, to in 0_usize..3, past: bool,
        ) {
            // Runs of several cache lines, that begin anywhere in one.
            shape[3] *= wide;
            let (from, to) = (TensorLayout::ALL[from], TensorLayout::ALL[to]);
            let (source, target) = copy_between(shape, from, to, past);
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
