//! The simulated GPU, on which the tests try what is for a GPU.

use std::time::Instant;

use attn::cuda::{self, SimQueue, Simulated};
use attn::{Cpu, DType, Element, Scalar, Tensor};

use super::{Machine, peak};
use crate::cli::DeviceName;

impl Machine for Simulated {
    const CALLED: DeviceName = DeviceName::Cuda;
    type Moment = Instant;

    fn queue() -> attn::Result<SimQueue> {
        SimQueue::new()
    }

    fn queues(ranks: usize, _: Option<usize>) -> attn::Result<Vec<SimQueue>> {
        (0..ranks).map(|_| SimQueue::new()).collect()
    }

    fn model() -> attn::Result<String> {
        Ok(String::from("the simulator"))
    }

    fn upload<T: Scalar>(queue: &SimQueue, tensor: Tensor<T>) -> attn::Result<Tensor<T, Self>> {
        cuda::to_device(queue, &tensor)
    }

    fn download<T: Element>(queue: &SimQueue, tensor: Tensor<T, Self>) -> attn::Result<Tensor<T>> {
        cuda::to_host::<T, Self>(queue, &tensor)
    }

    fn duplicate<T: Element>(
        queue: &SimQueue,
        from: &Tensor<T, Self>,
        to: &mut Tensor<T, Self>,
    ) -> attn::Result<()> {
        cuda::duplicate::<T, Self>(queue, from, to)
    }

    fn product_tflops(dtype: DType) -> attn::Result<Option<f64>> {
        peak::tflops::<Self>(dtype, 1)
    }

    fn moment(_: &SimQueue) -> attn::Result<Instant> {
        Ok(Instant::now())
    }

    fn milliseconds(from: &Instant, to: &Instant) -> attn::Result<f64> {
        Cpu::milliseconds(from, to)
    }
}
