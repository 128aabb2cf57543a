//! What is moved arrives where it belongs, whatever its shape: collectives called by hand, compared with the communicator
//! of threads.

use attn::comm::threads::Queues;
use attn::cuda::{self, GpuQueue};
use attn::device::Arena;
use attn::prelude::*;
use attn::{
    DType, Device, Error, ExchangePlan, KeyPlacement, KeyValue, Mask, Run, Sharding, Signature, TensorLayout,
    Transfer,
};

use super::run;
use crate::kernels::rig::{DeviceOf, Rig};
use crate::support::Random;

/// For collectives that a test calls itself.
pub const SIGNATURE: Signature = Signature {
    strategy: "test",
    stage: "test",
    call: 0,
    dtype: DType::F32,
    query: [0; 4],
    key: [0; 4],
    keys: KeyPlacement::Sharded,
    joint: (0, JointStrategy::Front),
    sharding: Sharding::ONE,
    mask: Mask::NONE,
    digest: 0,
    scale_bits: 0,
    edges: 0,
    lse: false,
};

/// The n-th call of a test, of a shape.
pub const fn nth(call: u64, shape: usize) -> Signature {
    Signature { call, query: [shape; 4], ..SIGNATURE }
}

/// A tensor whose elements say whose they are and where they stand.
fn numbered<Q: GpuQueue>(queue: &Q, rank: usize, shape: [usize; 4]) -> attn::Result<Tensor<f32, Q::Device>> {
    let [_, b, c, d] = shape;
    let value = |[i, j, k, l]: [usize; 4]| (rank * 100_000 + ((i * b + j) * c + k) * d + l) as f32;
    cuda::to_device(queue, &Tensor::from_fn(shape, value)?)
}

/// Runs a body on both communicators, with a number of ranks, and compares what each rank returns.
fn as_between_threads<R: Rig>(
    ranks: usize,
    body: impl Fn(&dyn Moves<DeviceOf<R>>) -> attn::Result<Vec<Vec<f32>>> + Sync,
) {
    let Some(found) = run::<R, _>(ranks, |comm| body(&comm)) else { return };
    let queues: Vec<R::Queue> = (0..ranks).map_while(|rank| R::queue(rank as u64)).collect();
    let world = World::<Queues<DeviceOf<R>>>::on_queues(queues);
    let expected = world.run(|comm| body(&comm)).unwrap_or_else(|error: Error| panic!("threads: {error}"));
    for (rank, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(found, expected, "rank {rank} of {ranks}");
    }
}

/// What tests call of a communicator, whichever it is.
pub trait Moves<D: Device> {
    fn me(&self) -> (usize, usize);
    fn queue_here(&self) -> D::Queue;
    fn apart(&self, color: usize, key: usize) -> attn::Result<Box<dyn Moves<D>>>;
    fn swap(&self, call: [usize; 2], transfers: &mut [Transfer<'_, D>]) -> attn::Result<()>;
    fn turn(
        &self,
        call: [usize; 2],
        lengths: &[usize],
        block: KeyValue<'_, f32, D>,
        visit: &mut dyn FnMut(usize, KeyValue<'_, f32, D>) -> attn::Result<()>,
    ) -> attn::Result<()>;
}

impl<C: Communicator> Moves<C::Device> for C {
    fn me(&self) -> (usize, usize) {
        (self.rank(), self.size())
    }

    fn queue_here(&self) -> <C::Device as Device>::Queue {
        self.queue().unwrap()
    }

    fn apart(&self, color: usize, key: usize) -> attn::Result<Box<dyn Moves<C::Device>>> {
        Ok(Box::new(self.split(color, key)?))
    }

    fn swap(&self, [call, shape]: [usize; 2], transfers: &mut [Transfer<'_, C::Device>]) -> attn::Result<()> {
        let (queue, mut arena) = (self.queue()?, Arena::default());
        let scope = arena.open(&queue)?;
        self.exchange(scope, &nth(call as u64, shape), transfers)
    }

    fn turn(
        &self,
        [call, shape]: [usize; 2],
        lengths: &[usize],
        block: KeyValue<'_, f32, C::Device>,
        visit: &mut dyn FnMut(usize, KeyValue<'_, f32, C::Device>) -> attn::Result<()>,
    ) -> attn::Result<()> {
        let (queue, mut arena) = (self.queue()?, Arena::default());
        let scope = arena.open(&queue)?;
        self.rotate(scope, &nth(call as u64, shape), lengths, block, visit)
    }
}

/// Each rank's box for each other one, of random extents, some empty, at random places of random layouts.
pub fn boxes_of_every_shape_arrive<R: Rig>() {
    for ranks in [2, 3, 4] {
        as_between_threads::<R>(ranks, |comm| {
            let (me, queue) = (comm.me().0, comm.queue_here());
            let mut results = Vec::new();
            for call in 0..6 {
                // The same numbers on every rank.
                let mut random = Random((call + 10 * ranks) as u64);
                let extent: Vec<Vec<[usize; 4]>> = (0..ranks)
                    .map(|_| (0..ranks).map(|_| [1, 2, 3, 2].map(|most| random.below(most + 1))).collect())
                    .collect();
                // As dense as may be, or spread.
                let margin = random.below(2);
                let shape = [1, ranks * (2 + margin), 3 + margin, 2 + margin];
                let layouts = [TensorLayout::Bshd, TensorLayout::Bhsd];
                let (from, to) = (layouts[random.below(2)], layouts[random.below(2)]);
                let source = numbered(&queue, me, from.permute(shape))?;
                let mut target = Tensor::<f32, DeviceOf<R>>::zeros(&queue, to.permute(shape))?;
                let mut plan = ExchangePlan::default();
                for (peer, theirs) in extent.iter().enumerate() {
                    plan.send(peer, [0, peer * (2 + margin), 0, 0], extent[me][peer]);
                    plan.receive(peer, [0, peer * (2 + margin), 0, 0], theirs[me]);
                }
                let transfer =
                    Transfer::new(&plan, source.view().permuted(from), target.view_mut().permuted(to))?;
                // Twice: what ranks agreed on in the first is not compared in the second.
                let mut transfers = [transfer];
                comm.swap([2 * call, call], &mut transfers)?;
                comm.swap([2 * call + 1, call], &mut transfers)?;
                results.push(cuda::to_host::<f32, _>(&queue, &target)?.as_slice().to_vec());
            }
            Ok(results)
        });
    }
}

/// Where all boxes are alike, in place on neither, one or both sides.
pub fn even_boxes_arrive<R: Rig>() {
    for ranks in [2, 3] {
        as_between_threads::<R>(ranks, |comm| {
            let (me, queue) = (comm.me().0, comm.queue_here());
            let mut results = Vec::new();
            let axes = [[1, 1], [1, 2], [2, 1], [2, 2]];
            for (call, [from, to]) in axes.into_iter().enumerate() {
                let shape = [1, 2 * ranks, 3 * ranks, 4];
                let source = numbered(&queue, me, shape)?;
                // Boxes along one axis here become boxes along another there; both have the same extent.
                let mut plan = ExchangePlan::default();
                let extent = [1, 2, 3, 4];
                let at = |axis: usize, peer: usize| {
                    let mut offset = [0; 4];
                    offset[axis] = peer * extent[axis];
                    offset
                };
                let narrow =
                    |axis: usize| if axis == 1 { [1, 2 * ranks, 3, 4] } else { [1, 2, 3 * ranks, 4] };
                let mut target = Tensor::<f32, DeviceOf<R>>::zeros(&queue, narrow(to))?;
                for peer in 0..ranks {
                    plan.send(peer, at(from, peer), extent);
                    plan.receive(peer, at(to, peer), extent);
                }
                let view = source.view().narrow(3 - from, 0, narrow(from)[3 - from])?;
                let packed = cuda::to_device(&queue, &cuda::to_host::<f32, DeviceOf<R>>(&queue, view)?)?;
                let mut transfers = [Transfer::new(&plan, packed.view(), target.view_mut())?];
                for again in 0..3 {
                    comm.swap([3 * call + again, call], &mut transfers)?;
                }
                results.push(cuda::to_host::<f32, _>(&queue, &target)?.as_slice().to_vec());
            }
            Ok(results)
        });
    }
}

/// Blocks of different lengths, an empty one among them; dense, and cut out of larger tensors.
pub fn blocks_go_round_in_order<R: Rig>() {
    for ranks in [2, 3, 4] {
        as_between_threads::<R>(ranks, |comm| {
            let (me, queue) = (comm.me().0, comm.queue_here());
            let mut results = Vec::new();
            for call in 0..4 {
                let lengths: Vec<usize> = (0..ranks).map(|rank| (rank + call) % ranks * 2).collect();
                let shape = [2, 16, 2, 4];
                let (key, value) = (numbered(&queue, me, shape)?, numbered(&queue, me + 10, shape)?);
                let run = Run { start: 0, step: 1 + call % 2, len: lengths[me] };
                let (mut key, mut value) = (key.view().select(1, run)?, value.view().select(1, run)?);
                let (own_key, own_value);
                if call >= 2 {
                    own_key = cuda::to_device(&queue, &cuda::to_host::<f32, DeviceOf<R>>(&queue, key)?)?;
                    own_value = cuda::to_device(&queue, &cuda::to_host::<f32, DeviceOf<R>>(&queue, value)?)?;
                    (key, value) = (own_key.view(), own_value.view());
                }
                comm.turn([call, call], &lengths, KeyValue { key, value }, &mut |owner, block| {
                    results.push(vec![owner as f32]);
                    for view in [block.key, block.value] {
                        results.push(cuda::to_host::<f32, DeviceOf<R>>(&queue, view)?.as_slice().to_vec());
                    }
                    Ok(())
                })?;
            }
            Ok(results)
        });
    }
}

/// Groups split off, twice, and used by turns with the whole; also within a hop of the other's ring.
pub fn groups_are_split_and_used_by_turns<R: Rig>() {
    as_between_threads::<R>(4, |comm| {
        let (me, queue) = (comm.me().0, comm.queue_here());
        // In the contrary order; then alone, or in threes.
        let half = comm.apart(me % 2, 10 - me)?;
        let alone = comm.apart(usize::from(me == 2) * (usize::MAX - 1), 0)?;
        let again = half.apart(7, me)?;
        let mut results = vec![
            [half.me(), alone.me(), again.me()].iter().flat_map(|me| [me.0 as f32, me.1 as f32]).collect(),
        ];
        let block = numbered(&queue, me, [1, 3, 2, 4])?;
        let mut show =
            |group: &dyn Moves<DeviceOf<R>>, call: usize, inner: Option<&dyn Moves<DeviceOf<R>>>| {
                let block = KeyValue { key: block.view(), value: block.view() };
                group.turn([call, 0], &vec![3; group.me().1], block, &mut |owner, block| {
                    results.push(vec![owner as f32]);
                    results.push(cuda::to_host::<f32, DeviceOf<R>>(&queue, block.key)?.as_slice().to_vec());
                    if let Some(inner) = inner {
                        let own = KeyValue { key: block.key, value: block.value };
                        inner.turn([call, 0], &vec![3; inner.me().1], own, &mut |owner, block| {
                            results.push(vec![-(owner as f32)]);
                            results.push(
                                cuda::to_host::<f32, DeviceOf<R>>(&queue, block.value)?.as_slice().to_vec(),
                            );
                            Ok(())
                        })?;
                    }
                    Ok(())
                })
            };
        show(comm, 0, None)?;
        show(&*half, 1, None)?;
        show(&*alone, 2, None)?;
        show(&*again, 3, None)?;
        // Rings of two in which every hop holds another ring, of all four.
        show(&*half, 4, Some(comm))?;
        show(comm, 5, None)?;
        Ok(results)
    });
}
