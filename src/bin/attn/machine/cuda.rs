//! The first GPU. The variable CUDA_VISIBLE_DEVICES decides which one that is.

use attn::cuda::{self, Cuda, CudaEvent, CudaQueue};
use attn::{DType, Element, Error, Tensor};
use cudarc::driver::{DriverError, result, sys};

use super::{Machine, peak};
use crate::cli::DeviceName;

impl Machine for Cuda {
    const CALLED: DeviceName = DeviceName::Cuda;
    type Mark = CudaEvent;

    fn queue() -> attn::Result<CudaQueue> {
        CudaQueue::new(0)
    }

    fn queues(ranks: usize, _: Option<usize>) -> attn::Result<Vec<CudaQueue>> {
        (0..ranks).map(|_| CudaQueue::new(0)).collect()
    }

    fn model() -> attn::Result<String> {
        Ok(CudaQueue::new(0)?.name().to_owned())
    }

    fn upload<T: Element>(queue: &CudaQueue, tensor: Tensor<T>) -> attn::Result<Tensor<T, Self>> {
        cuda::to_device(queue, &tensor)
    }

    fn download<T: Element>(queue: &CudaQueue, tensor: Tensor<T, Self>) -> attn::Result<Tensor<T>> {
        cuda::to_host::<T, Self>(queue, &tensor)
    }

    fn duplicate<T: Element>(
        queue: &CudaQueue,
        from: &Tensor<T, Self>,
        to: &mut Tensor<T, Self>,
    ) -> attn::Result<()> {
        let elements = |shape: [usize; 4]| shape.iter().product::<usize>();
        assert_eq!(elements(from.shape()), elements(to.shape()), "tensors of one size");
        let bytes = elements(from.shape()) * size_of::<T>();
        let address = |pointer: *mut T| pointer.addr() as sys::CUdeviceptr;
        let (source, target) = (address(from.view().base().as_ptr()), address(to.view_mut().base().as_ptr()));
        let stream = queue.stream();
        let copied = stream.context().bind_to_thread().and_then(|()| {
            // SAFETY: both tensors are as large as that, the target lent exclusively, and the GPU's memory is freed
            // when no work uses it any more. The stream lives as long as the queue, in the context made current above.
            unsafe { result::memcpy_dtod_async(target, source, bytes, stream.cu_stream()) }
        });
        copied.map_err(|error| failed(queue, error))
    }

    fn product_tflops(dtype: DType) -> attn::Result<Option<f64>> {
        // Some milliseconds: long enough for the clock to settle where the power lets it.
        peak::tflops::<Self>(dtype, 4000)
    }

    fn mark(queue: &CudaQueue) -> attn::Result<CudaEvent> {
        queue.record()
    }

    fn milliseconds(from: &CudaEvent, to: &CudaEvent) -> attn::Result<f64> {
        Ok(to.since(from)?.as_secs_f64() * 1e3)
    }
}

fn failed(queue: &CudaQueue, error: DriverError) -> Error {
    let said = |text: Result<&std::ffi::CStr, DriverError>| {
        text.map_or_else(|_| error.to_string(), |text| text.to_string_lossy().into_owned())
    };
    Error::Device {
        device: format!("cuda:{}", queue.ordinal()),
        launch: "cuMemcpyDtoDAsync",
        name: said(error.error_name()),
        text: said(error.error_string()),
    }
}
