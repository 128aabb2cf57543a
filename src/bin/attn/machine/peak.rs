//! The rate of a GPU's tensor cores, measured.

use attn::cuda::{Half, Launches, probe};
use attn::{DType, Tensor};
use half::{bf16, f16};

use super::Machine;

/// The median rate of several runs of `iterations` each, for elements of a type.
///
/// # Errors
/// If the memory cannot be had, or the device reports an error.
pub(super) fn tflops<D: Machine + Launches>(dtype: DType, iterations: usize) -> attn::Result<Option<f64>> {
    match dtype {
        DType::BF16 => measure::<D, bf16>(iterations).map(Some),
        DType::F16 => measure::<D, f16>(iterations).map(Some),
        _ => Ok(None),
    }
}

fn measure<D: Machine + Launches, T: Half>(iterations: usize) -> attn::Result<f64> {
    const RUNS: usize = 7;
    let queue = D::queue()?;
    let blocks = probe::multiprocessors::<D>(&queue)?;
    let mut sums = Tensor::<f32, D>::zeros(&queue, [1, 1, blocks, probe::PEAK_THREADS])?;
    let mut rates = Vec::with_capacity(RUNS);
    // The first run, which loads the kernel, does not count.
    for run in 0..=RUNS {
        let began = D::moment(&queue)?;
        let operations = probe::peak::<D, T>(&queue, iterations, sums.view_mut())?;
        let ended = D::moment(&queue)?;
        let milliseconds = D::milliseconds(&began, &ended)?;
        if run > 0 {
            rates.push(operations / milliseconds.max(1e-6) / 1e9);
        }
    }
    rates.sort_by(f64::total_cmp);
    Ok(rates[RUNS / 2])
}
