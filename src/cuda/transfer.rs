//! Tensors from the host to a GPU and back.

use attn_runtime::device::StridedCopy;
use attn_runtime::tensor::contiguous_strides;
use attn_runtime::{Cpu, Error, Result, Scalar, Tensor, View, ViewMut};

use super::copy;
use super::launches::{GpuQueue, Launches, here};

/// A dense copy on the device of a tensor on the host. Waits until it is there.
///
/// ```no_run
/// # #[cfg(feature = "cuda")] fn main() -> attn::Result<()> {
/// use attn::Tensor;
/// use attn::cuda::{self, CudaQueue};
/// use half::bf16;
///
/// let queue = CudaQueue::new(0)?;
/// let here = Tensor::<bf16>::from_fn([1, 128, 8, 64], |[_, s, h, d]| bf16::from_f32((s + h + d) as f32))?;
/// let there = cuda::to_device(&queue, &here)?;
/// assert_eq!(cuda::to_host(&queue, &there)?, here);
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "cuda"))] fn main() {}
/// ```
///
/// # Errors
/// If the memory cannot be had, or the device reports an error.
pub fn to_device<'a, T: Scalar, Q: GpuQueue>(
    queue: &Q,
    source: impl Into<View<'a, T, Cpu>>,
) -> Result<Tensor<T, Q::Device>> {
    let source = source.into();
    let mut tensor = Tensor::zeros(queue, source.shape())?;
    upload(queue, source, &mut tensor)?;
    Ok(tensor)
}

/// A dense copy on the host of a tensor on the device, of any strides. Waits for what is queued.
///
/// # Errors
/// If the memory cannot be had, or the device reports an error.
pub fn to_host<'a, T: Scalar, D: Launches>(
    queue: &D::Queue,
    source: impl Into<View<'a, T, D>>,
) -> Result<Tensor<T, Cpu>> {
    let source = source.into();
    let mut host = Tensor::<T, Cpu>::from_fn(source.shape(), |_| bytemuck::Zeroable::zeroed())?;
    let bytes = bytemuck::cast_slice_mut(host.as_mut_slice());
    if bytes.is_empty() {
        return Ok(host);
    }
    if source.strides() == contiguous_strides(source.shape()) {
        // SAFETY: the view lends this many dense elements, which nobody writes.
        unsafe { D::download(queue, source.base().cast(), bytes) }?;
        return Ok(host);
    }
    let mut packed = Tensor::<T, D>::zeros(queue, source.shape())?;
    let target = packed.view_mut();
    let pack = StridedCopy {
        source: source.base().as_ptr().cast_const().cast(),
        destination: target.base().as_ptr().cast(),
        item: size_of::<T>(),
        extent: source.shape(),
        source_strides: source.strides(),
        destination_strides: target.strides(),
    };
    // SAFETY: by the views' invariants the source can be read and the target, which was just made, written.
    unsafe { copy::batch::<D>(queue, &[pack]) }?;
    // SAFETY: a dense tensor of the source's shape, lent for this call.
    unsafe { D::download(queue, target.base().cast(), bytes) }?;
    Ok(host)
}

/// Copies a tensor from the host into a dense one on the device. Waits until it is there.
///
/// # Errors
/// If the shapes differ, the target is not dense, or the device reports an error.
pub fn upload<'a, 'b, T: Scalar, D: Launches>(
    queue: &D::Queue,
    source: impl Into<View<'a, T, Cpu>>,
    target: impl Into<ViewMut<'b, T, D>>,
) -> Result<()> {
    let (source, target) = (source.into(), target.into());
    let (shape, strides) = (source.shape(), contiguous_strides(source.shape()));
    if target.shape() != shape || target.strides() != strides {
        let expected =
            format!("{shape:?}, dense, with strides {strides:?} instead of {:?}", target.strides());
        return Err(Error::Shape { tensor: "target", found: target.shape(), expected });
    }
    if shape.contains(&0) {
        return Ok(());
    }
    let packed;
    let elements = if source.strides() == strides {
        // SAFETY: the view lends this many dense elements of the host's memory, which nobody writes.
        unsafe { core::slice::from_raw_parts(source.base().as_ptr().cast_const(), shape.iter().product()) }
    } else {
        packed = Tensor::<T, Cpu>::from_fn(shape, |index| source.at(index))?;
        packed.as_slice()
    };
    // SAFETY: the target is dense, of this shape, and lent exclusively.
    unsafe { D::upload(queue, bytemuck::cast_slice(elements), target.base().cast()) }
}

/// Queues a copy of a dense tensor into another one as large, in the plainest way that the device has: for a GPU, the
/// driver's own.
///
/// # Errors
/// If one of the tensors is not dense or of another GPU, they differ in size, or the device reports an error.
pub fn duplicate<'a, 'b, T: Scalar, D: Launches>(
    queue: &D::Queue,
    source: impl Into<View<'a, T, D>>,
    target: impl Into<ViewMut<'b, T, D>>,
) -> Result<()> {
    let (source, target) = (source.into(), target.into());
    let elements = dense("source", source.shape(), source.strides())?;
    if dense("target", target.shape(), target.strides())? != elements {
        let expected = format!("the {elements} elements of the source's {:?}", source.shape());
        return Err(Error::Shape { tensor: "target", found: target.shape(), expected });
    }
    if elements == 0 {
        return Ok(());
    }
    let (from, to) = (source.base().cast::<u8>(), target.base().cast::<u8>());
    here::<D>(queue, "copy", &[("source", from.as_ptr().cast()), ("target", to.as_ptr().cast())])?;
    // SAFETY: both views lend this many dense elements of the device's memory, the target exclusively; and memory of a
    // device stays until its queues have passed what uses it.
    unsafe { D::duplicate(queue, from, to, elements * size_of::<T>()) }
}

/// How many elements a dense tensor has.
fn dense(tensor: &'static str, found: [usize; 4], strides: [usize; 4]) -> Result<usize> {
    let needed = contiguous_strides(found);
    if strides == needed {
        return Ok(found.iter().product());
    }
    let expected = format!("dense, with strides {needed:?} instead of {strides:?}");
    Err(Error::Shape { tensor, found, expected })
}
