//! The first GPU. The variable CUDA_VISIBLE_DEVICES decides which one that is.

use attn::cuda::{self, Cuda, CudaEvent, CudaQueue};
use attn::{DType, Element, Scalar, Tensor};

use super::{Machine, peak};
use crate::cli::DeviceName;

impl Machine for Cuda {
    const CALLED: DeviceName = DeviceName::Cuda;
    type Moment = CudaEvent;

    fn queue() -> attn::Result<CudaQueue> {
        CudaQueue::new(0)
    }

    fn queues(ranks: usize, _: Option<usize>) -> attn::Result<Vec<CudaQueue>> {
        (0..ranks).map(|_| CudaQueue::new(0)).collect()
    }

    fn model() -> attn::Result<String> {
        Ok(CudaQueue::new(0)?.name().to_owned())
    }

    fn upload<T: Scalar>(queue: &CudaQueue, tensor: Tensor<T>) -> attn::Result<Tensor<T, Self>> {
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
        cuda::duplicate::<T, Self>(queue, from, to)
    }

    fn product_tflops(dtype: DType) -> attn::Result<Option<f64>> {
        // Some milliseconds: long enough for the clock to settle where the power lets it.
        peak::tflops::<Self>(dtype, 4000)
    }

    fn moment(queue: &CudaQueue) -> attn::Result<CudaEvent> {
        queue.record()
    }

    fn milliseconds(from: &CudaEvent, to: &CudaEvent) -> attn::Result<f64> {
        Ok(to.since(from)?.as_secs_f64() * 1e3)
    }
}
