//! Every strategy on the device: as one rank, and as float64.

use attn::comm::threads::Queues;
use attn::cuda::{self, GpuQueue, Half};
use attn::prelude::*;
use attn::{JointStrategy, ThreadComm};

use crate::kernels::case::roundoff;
use crate::kernels::rig::{DeviceOf, Rig};
use crate::support::{Inputs, Problem, Whole, WithFlash, assemble, lse_error, oracle, relative_error};

/// Shards the inputs over the ranks, attends on the device, and puts the parts together. None if there is no device.
fn attend<R: Rig, T: Half>(strategy: &str, ranks: usize, inputs: &Inputs<T>) -> Option<Whole<T>>
where
    WithFlash: ParallelAttention<ThreadComm<DeviceOf<R>>, T>,
{
    let queues: Vec<R::Queue> = (0..ranks).map_while(|rank| R::queue(rank as u64)).collect();
    if queues.is_empty() {
        return None;
    }
    let Problem { batch, seq_q, heads, head_dim, joint, order, mask, .. } = inputs.problem;
    let shards = World::<Queues<DeviceOf<R>>>::on_queues(queues).run(|comm| {
        let queue = comm.queue()?;
        let config = ParallelConfig::strategy(strategy);
        let mut session = Session::<WithFlash, _, T>::open_with(comm.clone(), &config)?;
        let shard = |tensor: &Tensor<T>| {
            let length = tensor.shape()[1] / ranks;
            cuda::to_device(&queue, tensor.view().narrow(1, comm.rank() * length, length)?)
        };
        let (query, key, value) = (shard(&inputs.query)?, shard(&inputs.key)?, shard(&inputs.value)?);
        let joint_tensors = match &inputs.joint {
            Some([q, k, v]) => {
                Some([cuda::to_device(&queue, q)?, cuda::to_device(&queue, k)?, cuda::to_device(&queue, v)?])
            }
            None => None,
        };
        let mut metadata = match &joint_tensors {
            Some([query, key, value]) => AttentionMetadata::joint(query, key, value, order),
            None => AttentionMetadata::default(),
        };
        metadata.mask = Some(mask);
        let rows = joint + seq_q / ranks;
        let mut out = poisoned::<T, R>(&queue, [batch, rows, heads, head_dim])?;
        let mut lse = poisoned::<f32, R>(&queue, [batch, heads, rows, 1])?;
        // Twice, so that scratch memory is used again.
        for _ in 0..2 {
            let outputs = Outputs::new(&mut out).with_lse(LseMut::from_view(lse.view_mut())?);
            session.attend_into(&query, &key, &value, &metadata, outputs)?;
        }
        let (out, lse) = (cuda::to_host(&queue, &out)?, cuda::to_host(&queue, &lse)?);
        Ok::<_, attn::Error>((out, lse.as_slice().to_vec()))
    });
    Some(assemble(&inputs.problem, ranks, &shards.unwrap_or_else(|error| panic!("{strategy}: {error}"))))
}

fn poisoned<T: Element, R: Rig>(
    queue: &R::Queue,
    shape: [usize; 4],
) -> attn::Result<Tensor<T, <R::Queue as GpuQueue>::Device>> {
    cuda::to_device(queue, &Tensor::<T>::from_fn(shape, |_| T::from_f32(f32::NAN))?)
}

fn bits<T: Half>(values: &[T]) -> Vec<u32> {
    values.iter().map(|value| value.to_f32().to_bits()).collect()
}

/// Every strategy against float64 and against one rank: Ulysses bit by bit, since it computes the same rows of the same
/// heads; ring within rounding, since it cuts the keys elsewhere.
#[track_caller]
fn verify<R: Rig, T: Half>(problem: Problem, seeds: u64, ranks: &[usize])
where
    WithFlash: ParallelAttention<ThreadComm<DeviceOf<R>>, T>,
{
    for seed in 0..seeds {
        let inputs = problem.inputs::<T>(seed);
        let exact = oracle(&inputs);
        let all: Vec<f64> = exact.out.iter().chain(&exact.joint).copied().collect();
        let Some(one) = attend::<R, T>("none", 1, &inputs) else { return };
        let near = |what: &str, whole: &Whole<T>| {
            let rows: Vec<T> = whole.out.iter().chain(&whole.joint).copied().collect();
            let error = relative_error(&rows, &all);
            // Weights and results are rounded, each by at most half a unit; on the whole that is far less.
            assert!(error <= 1.1 * roundoff::<T>(), "{what}, {problem:?}: relative error {error:e}");
            let lse = lse_error(&whole.lse, &exact.lse).max(lse_error(&whole.joint_lse, &exact.joint_lse));
            assert!(lse <= 2e-5, "{what}, {problem:?}: log-sum-exp is off by {lse:e}");
        };
        near("none", &one);
        for &ranks in ranks {
            let ulysses = attend::<R, T>("ulysses", ranks, &inputs).unwrap();
            near(&format!("ulysses on {ranks}"), &ulysses);
            assert_eq!(bits(&ulysses.out), bits(&one.out), "ulysses on {ranks}, {problem:?}");
            assert_eq!(bits(&ulysses.joint), bits(&one.joint), "joint, ulysses on {ranks}, {problem:?}");
            assert_eq!((ulysses.lse, ulysses.joint_lse), (one.lse.clone(), one.joint_lse.clone()));
            let ring = attend::<R, T>("ring", ranks, &inputs).unwrap();
            near(&format!("ring on {ranks}"), &ring);
        }
    }
}

pub fn two_and_four_ranks_are_one<R: Rig, T: Half>()
where
    WithFlash: ParallelAttention<ThreadComm<DeviceOf<R>>, T>,
{
    verify::<R, T>(Problem::new(1, 136, 4, 64), 3, &[1, 2, 4]);
    verify::<R, T>(Problem::new(2, 72, 4, 128).kv_heads(2), 1, &[2]);
}

pub fn causal_masks_cross_ranks<R: Rig, T: Half>()
where
    WithFlash: ParallelAttention<ThreadComm<DeviceOf<R>>, T>,
{
    verify::<R, T>(Problem::new(1, 264, 4, 64).kv_heads(2).causal(), 1, &[2, 4]);
    // Fewer keys than queries: the first rows attend nothing.
    verify::<R, T>(Problem::new(1, 160, 4, 64).seq_k(96).causal(), 1, &[2]);
    verify::<R, T>(Problem::new(1, 96, 4, 64).seq_k(160).causal(), 1, &[4]);
}

pub fn joint_tokens_are_attended_once<R: Rig, T: Half>()
where
    WithFlash: ParallelAttention<ThreadComm<DeviceOf<R>>, T>,
{
    verify::<R, T>(Problem::new(1, 128, 4, 64).joint(13, JointStrategy::Front), 1, &[2, 4]);
    verify::<R, T>(Problem::new(2, 64, 4, 64).kv_heads(2).joint(70, JointStrategy::Rear), 1, &[2]);
    // Fewer joint rows than ranks.
    verify::<R, T>(Problem::new(1, 64, 4, 64).joint(3, JointStrategy::Rear), 1, &[4]);
}
