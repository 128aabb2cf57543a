//! The host processor.

use std::fs;
use std::thread::available_parallelism;
use std::time::Instant;

use attn::device::cpu::CpuQueue;
use attn::{Cpu, Element, Scalar, Tensor};

use super::Machine;
use crate::cli::DeviceName;

impl Machine for Cpu {
    const CALLED: DeviceName = DeviceName::Cpu;
    type Moment = Instant;

    fn queue() -> attn::Result<CpuQueue> {
        CpuQueue::new(1)
    }

    fn queues(ranks: usize, asked: Option<usize>) -> attn::Result<Vec<CpuQueue>> {
        (0..ranks).map(|_| CpuQueue::new(threads(ranks, asked))).collect()
    }

    fn model() -> attn::Result<String> {
        Ok(model().unwrap_or_else(|| String::from("unknown")))
    }

    fn upload<T: Scalar>(_: &CpuQueue, tensor: Tensor<T>) -> attn::Result<Tensor<T>> {
        Ok(tensor)
    }

    fn download<T: Element>(_: &CpuQueue, tensor: Tensor<T>) -> attn::Result<Tensor<T>> {
        Ok(tensor)
    }

    fn duplicate<T: Element>(_: &CpuQueue, from: &Tensor<T>, to: &mut Tensor<T>) -> attn::Result<()> {
        to.as_mut_slice().copy_from_slice(from.as_slice());
        Ok(())
    }

    fn moment(_: &CpuQueue) -> attn::Result<Instant> {
        Ok(Instant::now())
    }

    fn milliseconds(from: &Instant, to: &Instant) -> attn::Result<f64> {
        Ok(to.saturating_duration_since(*from).as_secs_f64() * 1e3)
    }
}

/// How many threads a rank's kernel has: those asked for, or its share of the cores.
pub(crate) fn threads(ranks: usize, asked: Option<usize>) -> usize {
    let cores = available_parallelism().map_or(1, |cores| cores.get());
    asked.unwrap_or_else(|| (cores / ranks).max(1))
}

/// The processor's name, where the system tells it.
pub(crate) fn model() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
