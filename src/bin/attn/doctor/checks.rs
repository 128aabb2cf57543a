//! What is tried out.

use attn::ThreadComm;
use attn::prelude::*;
#[cfg(any(feature = "cuda", all(test, feature = "sim")))]
use half::bf16;

use super::ranks;
use crate::digits;
use crate::failure::Failure;
use crate::machine::{Machine, world};
use crate::pipelines::{FlashAttention, SdpaAttention};
use crate::random::positions;

/// How far a strategy may be from one rank on values of about 1.
const TOLERANCE: f32 = 1e-5;

/// The same in bf16, where a last place of 1 is 8e-3.
#[cfg(any(feature = "cuda", all(test, feature = "sim")))]
const GPU_TOLERANCE: f32 = 2e-2;

/// Something tried out.
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) outcome: Result<String, Failure>,
}

pub(super) fn checks() -> Vec<Check> {
    let mut checks = vec![Check { name: "bundled model", outcome: digits::check() }];
    checks.extend([
        Check { name: "ulysses with flash", outcome: agrees(&FlashAttention, "ulysses") },
        Check { name: "ulysses with sdpa", outcome: agrees(&SdpaAttention, "ulysses") },
        Check { name: "ring with flash", outcome: agrees(&FlashAttention, "ring") },
        Check { name: "ring with sdpa", outcome: agrees(&SdpaAttention, "ring") },
    ]);
    checks.push(Check { name: "ring over tcp", outcome: ranks::agrees_over_tcp() });
    #[cfg(feature = "cuda")]
    if super::gpu::ask().is_some_and(|gpus| gpus.missing().is_none()) {
        checks.push(Check { name: "flash on cuda", outcome: agrees_on::<attn::cuda::Cuda>() });
    }
    checks
}

/// Runs a strategy on two ranks, and compares with one.
fn agrees<A>(attention: &A, strategy: &str) -> Result<String, Failure>
where
    A: ParallelAttention<ThreadComm<Cpu>, f32> + Sync,
{
    let [two, one] = [(strategy, 2), ("none", 1)]
        .map(|(strategy, ranks)| attend::<A, Cpu, f32>(attention, strategy, ranks, [1, 32, 4, 16]));
    let difference = largest_difference(&two?, &one?);
    verdict(difference <= TOLERANCE, format!("two ranks differ from one by {difference:.1e}"))
}

/// Runs one rank and both strategies on two queues of a GPU, and compares all with the host.
#[cfg(any(feature = "cuda", all(test, feature = "sim")))]
pub(super) fn agrees_on<D>() -> Result<String, Failure>
where
    D: Machine,
    FlashAttention: ParallelAttention<ThreadComm<D>, bf16>,
{
    const SHAPE: [usize; 4] = [1, 256, 4, 64];
    let host = attend::<_, Cpu, bf16>(&FlashAttention, "none", 1, SHAPE)?;
    let on_gpu = |strategy, ranks| attend::<_, D, bf16>(&FlashAttention, strategy, ranks, SHAPE);
    let (one, ulysses, ring) = (on_gpu("none", 1)?, on_gpu("ulysses", 2)?, on_gpu("ring", 2)?);
    let [from_host, from_ulysses, from_ring] =
        [&host, &ulysses, &ring].map(|other| largest_difference(other, &one));
    let well = [from_host, from_ulysses, from_ring].iter().all(|difference| *difference <= GPU_TOLERANCE);
    let said = format!(
        "one rank differs from the cpu by {from_host:.1e}, from two ranks of ulysses by {from_ulysses:.1e} and of \
         ring by {from_ring:.1e}"
    );
    verdict(well, said)
}

pub(super) fn verdict(well: bool, said: String) -> Result<String, Failure> {
    if well { Ok(said) } else { Err(Failure::Internal(said)) }
}

/// Not a number if one of them is; infinite if there are more of one than of the other.
pub(super) fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    let start = if a.len() == b.len() { 0.0 } else { f32::INFINITY };
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(start, |most, d| if most.is_nan() || d.is_nan() { f32::NAN } else { d.max(most) })
}

/// Attention over values that look random, the same whatever the number of ranks, strategy and device.
fn attend<A, D, T>(
    attention: &A,
    strategy: &str,
    ranks: usize,
    shape: [usize; 4],
) -> Result<Vec<f32>, Failure>
where
    A: ParallelAttention<ThreadComm<D>, T> + Sync,
    D: Machine,
    T: Element,
{
    let world = world::<D>(D::queues(ranks, None)?);
    Ok(world.run(|comm| shard::<A, _, D, T>(attention, comm, strategy, shape))?.concat())
}

/// A rank's part of that.
pub(super) fn shard<A, C, D, T>(
    attention: &A,
    comm: C,
    strategy: &str,
    shape: [usize; 4],
) -> Result<Vec<f32>, Failure>
where
    A: ParallelAttention<C, T>,
    C: Communicator<Device = D>,
    D: Machine,
    T: Element,
{
    let share = shape[1] / comm.size();
    let first = comm.rank() * share;
    let mut session = Session::open_with(comm, &ParallelConfig::strategy(strategy))?;
    let queue = session.queue().clone();
    let random = |stream| D::upload(&queue, positions::<T>(stream, shape, first, share)?);
    let (q, k, v) = (random(1)?, random(2)?, random(3)?);
    let out = attention.attend(&mut session, &q, &k, &v, &AttentionMetadata::default())?;
    let out = D::download(&queue, out)?;
    Ok(out.as_slice().iter().map(|x| x.to_f32()).collect())
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_agrees_with_the_host() {
        agrees_on::<attn::cuda::Simulated>().unwrap();
    }
}
