//! The direct exchange: ranks write into each other's tensors and wait for each other on the device.
//!
//! On a GPU the ranks are streams of one card. So between an exchange of one rank and that of the last one nothing is
//! freed and no kernel is called for the first time: ranks meet on the host before and after.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use attn::comm::threads::Queues;
use attn::comm::{ExchangePlan, Rendezvous, StridedBox, Transfer};
use attn::cuda::{self, Direct};
use attn::device::{Arena, Device, StridedCopy};
use attn::prelude::*;
use attn::{Error, KeyValue, TensorLayout, ThreadComm, View};
use half::bf16;

use crate::kernels::copy::{Move, strides};
use crate::kernels::rig::{DeviceOf, Rig};
use crate::support::Random;

/// So long that a test which waits for it has failed.
pub const LONG: Duration = Duration::from_secs(12);

/// One test at a time: those that wait for each other must have the processor's cores.
pub static ALONE: Mutex<()> = Mutex::new(());

/// One rank of a test.
pub struct Rank<R: Rig> {
    pub comm: ThreadComm<DeviceOf<R>>,
    pub queue: R::Queue,
    pub direct: Direct<DeviceOf<R>>,
}

pub type Bytes<R> = Tensor<u8, DeviceOf<R>>;

impl<R: Rig> Rank<R> {
    /// Waits for all ranks on the host.
    pub fn meet(&self) {
        self.comm.gather("the ranks of a test", &[]).unwrap();
    }

    fn upload(&self, bytes: &[u8]) -> Bytes<R> {
        let host = Tensor::<u8>::from_slice(bytes, [1, 1, 1, bytes.len()]).unwrap();
        cuda::to_device(&self.queue, &host).unwrap()
    }

    /// Waits for this rank's kernels, and tells what they have reported.
    pub fn settle(&self) -> attn::Result<()> {
        DeviceOf::<R>::synchronize(&self.queue)?;
        self.direct.check()
    }

    pub fn download(&self, bytes: &Bytes<R>) -> Vec<u8> {
        cuda::to_host::<u8, DeviceOf<R>>(&self.queue, bytes).unwrap().as_slice().to_vec()
    }

    /// Queues an exchange of what `moves` has from and to this rank.
    pub fn exchange(
        &self,
        moves: &[Passed],
        source: &Bytes<R>,
        destination: &mut Bytes<R>,
    ) -> attn::Result<()> {
        let (me, from) = (self.direct.rank(), source.view().base().as_ptr());
        let to = destination.view_mut().base().as_ptr();
        let part = |at: usize, base: *mut u8, strides: [usize; 4], each: &Move| StridedBox {
            base: base.wrapping_add(at),
            item: each.item,
            extent: each.extent,
            strides,
        };
        let outgoing: Vec<_> = moves
            .iter()
            .filter(|each| each.sender == me)
            .map(|each| (each.receiver, part(each.part.from, from, each.part.from_strides, &each.part)))
            .collect();
        let incoming: Vec<_> = moves
            .iter()
            .filter(|each| each.receiver == me)
            .map(|each| (each.sender, part(each.part.to, to, each.part.to_strides, &each.part)))
            .collect();
        // SAFETY: every move stays inside the buffers of both of its ranks, which outlive the queues' work.
        unsafe { self.direct.exchange_boxes(&self.queue, &outgoing, &incoming) }
    }
}

/// A box on its way from one rank's source to another's destination.
#[derive(Clone, Copy, Debug)]
pub struct Passed {
    pub sender: usize,
    pub receiver: usize,
    pub part: Move,
}

/// Runs `body` on ranks with a direct exchange, whose messages are counted from `first`. Not at all where there is no
/// device.
#[track_caller]
pub fn on_ranks<R: Rig, T: Send>(
    ranks: usize,
    first: u32,
    body: impl Fn(&Rank<R>) -> T + Sync,
) -> Option<Vec<T>> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let queues: Vec<R::Queue> = (0..ranks).map_while(|rank| R::queue(rank as u64)).collect();
    if queues.is_empty() {
        return None;
    }
    let outcome = World::<Queues<DeviceOf<R>>>::on_queues(queues).run(|comm| {
        let queue = comm.queue()?;
        let direct = Direct::open_from(&comm, &queue, first)?;
        let direct = direct.unwrap_or_else(|why| panic!("no direct exchange: {why}"));
        direct.set_deadline(LONG);
        let rank = Rank { comm, queue, direct };
        let value = body(&rank);
        rank.meet();
        Ok::<_, Error>(value)
    });
    Some(outcome.unwrap_or_else(|error| panic!("{ranks} ranks: {error}")))
}

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = Random(seed);
    (0..bytes).map(|_| random.next() as u8).collect()
}

/// Random boxes between all pairs of ranks, and how long the ranks' sources and destinations are.
fn plan(random: &mut Random, ranks: usize, most: usize) -> (Vec<Passed>, usize, usize) {
    let (mut moves, mut source_bytes, mut ends) = (Vec::new(), 16, vec![0; ranks]);
    for sender in 0..ranks {
        for (receiver, end) in ends.iter_mut().enumerate() {
            for _ in 0..random.below(most + 1) {
                let item = 1 << random.below(5);
                let mut extent = [0; 4].map(|_: usize| 1 + random.below(5));
                match random.below(6) {
                    0 => extent[random.below(4)] = 0,
                    1 => extent = [1, 1, 1, 40 + random.below(200)],
                    _ => {}
                }
                let room = random.below(2) as u64 * 3;
                let (from_strides, reach) = strides(random, extent, room);
                let (to_strides, to_reach) = strides(random, extent, room);
                let from = random.below(40) / item * item;
                let to = (*end + random.below(24)).next_multiple_of(item);
                source_bytes = source_bytes.max(from + reach * item);
                *end = to + to_reach * item;
                let part = Move { from, to, item, extent, from_strides, to_strides };
                moves.push(Passed { sender, receiver, part });
            }
        }
    }
    (moves, source_bytes, ends.into_iter().max().unwrap_or_default() + 16)
}

/// Makes an exchange of random boxes, and compares whole destinations: nothing else was written.
fn verify<R: Rig>(rank: &Rank<R>, seed: u64, most: usize) {
    let (me, ranks) = (rank.direct.rank(), rank.direct.size());
    let (moves, source_bytes, destination_bytes) = plan(&mut Random(seed), ranks, most);
    let source = rank.upload(&noise(seed * 100 + me as u64, source_bytes));
    let mut expected = noise(seed * 1000 + me as u64, destination_bytes);
    let mut destination = rank.upload(&expected);
    rank.meet();
    rank.exchange(&moves, &source, &mut destination).unwrap();
    rank.settle().unwrap();
    rank.meet();
    for each in moves.iter().filter(|each| each.receiver == me) {
        each.part.on_host(&noise(seed * 100 + each.sender as u64, source_bytes), &mut expected);
    }
    let found = rank.download(&destination);
    if let Some(at) = (0..expected.len()).find(|&at| found[at] != expected[at]) {
        panic!("rank {me} of {ranks}, seed {seed}: byte {at} is {}, expected {}", found[at], expected[at]);
    }
}

pub fn every_element_of_random_boxes_arrives<R: Rig>() {
    for ranks in 1..=4 {
        on_ranks::<R, _>(ranks, 0, |rank| {
            for round in 0..8 {
                verify(rank, (ranks * 50 + round) as u64, 3);
            }
        });
    }
}

pub fn more_boxes_than_one_message_takes<R: Rig>() {
    on_ranks::<R, _>(5, 0, |rank| {
        for round in 0..3 {
            // Also such that some pairs have more messages than others.
            verify(rank, 700 + round, 21);
        }
    });
}

/// Nothing is done on the host between the exchanges: what one brings, the next one sends on.
pub fn a_hundred_exchanges_follow_each_other<R: Rig>() {
    const ROUNDS: usize = 100;
    const BYTES: usize = 96;
    on_ranks::<R, _>(3, u32::MAX - 60, |rank| {
        let (me, ranks) = (rank.direct.rank(), rank.direct.size());
        let start = |rank: usize| noise(rank as u64, BYTES);
        let mut places = [rank.upload(&start(me)), rank.upload(&[0; BYTES])];
        // To the next rank, the halves of the bytes in two boxes that change places.
        let half = |sender: usize, from: usize| Passed {
            sender,
            receiver: (sender + 1) % ranks,
            part: Move {
                from,
                to: BYTES / 2 - from,
                item: 16,
                extent: [1, 1, 1, BYTES / 32],
                from_strides: [1; 4],
                to_strides: [1; 4],
            },
        };
        let moves: Vec<_> =
            (0..ranks).flat_map(|sender| [half(sender, 0), half(sender, BYTES / 2)]).collect();
        rank.meet();
        for round in 0..ROUNDS {
            let [even, odd] = &mut places;
            let (from, to) = if round % 2 == 0 { (even, odd) } else { (odd, even) };
            rank.exchange(&moves, from, to).unwrap();
        }
        rank.settle().unwrap();
        rank.meet();
        // An even number of times.
        let expected = start((me + ranks * ROUNDS - ROUNDS) % ranks);
        assert_eq!(rank.download(&places[0]), expected, "rank {me}");
    });
}

/// Sequence for heads, as Ulysses exchanges them, between tensors of unlike strides.
pub fn plans_of_tensors_are_carried_out<R: Rig>() {
    const RANKS: usize = 2;
    let value = |s: usize, h: usize, d: usize| bf16::from_f32((s * 100 + h * 10 + d) as f32);
    on_ranks::<R, _>(RANKS, 0, |rank| {
        let (me, queue) = (rank.direct.rank(), &rank.queue);
        let (seq, heads, head_dim) = (3, 2, 5);
        // [batch, heads, seq, head_dim] in memory.
        let here = Tensor::<bf16>::from_fn([1, RANKS * heads, seq, head_dim], |[_, h, s, d]| {
            value(me * seq + s, h, d)
        });
        let source = cuda::to_device(queue, &here.unwrap()).unwrap();
        let mut destination =
            Tensor::<bf16, DeviceOf<R>>::zeros(queue, [1, RANKS * seq, heads, head_dim]).unwrap();
        let mut plan = ExchangePlan::default();
        for peer in 0..RANKS {
            plan.send(peer, [0, 0, peer * heads, 0], [1, seq, heads, head_dim]);
            plan.receive(peer, [0, peer * seq, 0, 0], [1, seq, heads, head_dim]);
        }
        rank.meet();
        let mut arena = Arena::<DeviceOf<R>>::default();
        let from = source.view().permuted(TensorLayout::Bhsd);
        let transfer = Transfer::new(&plan, from, destination.view_mut()).unwrap();
        rank.direct.exchange(arena.open(queue).unwrap(), &[transfer]).unwrap();
        rank.settle().unwrap();
        rank.meet();
        let found = cuda::to_host::<bf16, DeviceOf<R>>(queue, &destination).unwrap();
        let right = Tensor::<bf16>::from_fn(found.shape(), |[_, s, h, d]| value(s, me * heads + h, d));
        assert_eq!(found, right.unwrap(), "rank {me}");
    });
}

/// One box of so many bytes, from each rank to each.
pub fn all_to_all(ranks: usize, bytes: usize) -> Vec<Passed> {
    let pairs = (0..ranks).flat_map(|sender| (0..ranks).map(move |receiver| (sender, receiver)));
    pairs
        .map(|(sender, receiver)| Passed {
            sender,
            receiver,
            part: Move {
                from: receiver * bytes,
                to: sender * bytes,
                item: 1,
                extent: [1, 1, 1, bytes],
                from_strides: [1; 4],
                to_strides: [1; 4],
            },
        })
        .collect()
}

/// Places for [`all_to_all`]: what rank `me` sends, and nothing.
pub fn places<R: Rig>(rank: &Rank<R>, bytes: usize) -> (Bytes<R>, Bytes<R>) {
    let all = rank.direct.size() * bytes;
    (rank.upload(&vec![rank.direct.rank() as u8 + 1; all]), rank.upload(&vec![0; all]))
}

pub fn a_late_rank_is_waited_for<R: Rig>() {
    on_ranks::<R, _>(3, 0, |rank| {
        let (me, bytes) = (rank.direct.rank(), 64);
        let (source, mut destination) = places(rank, bytes);
        let moves = all_to_all(3, bytes);
        for late in 0..3 {
            rank.meet();
            if me == late {
                std::thread::sleep(Duration::from_millis(40));
            }
            rank.exchange(&moves, &source, &mut destination).unwrap();
        }
        rank.settle().unwrap();
        rank.meet();
        let expected: Vec<u8> = (0..3).flat_map(|sender| [sender as u8 + 1; 64]).collect();
        assert_eq!(rank.download(&destination), expected, "rank {me}");
    });
}

/// A rank that has nothing to send does not take its tensor for complete before the others have written it.
pub fn nobody_leaves_before_all_is_written<R: Rig>() {
    on_ranks::<R, _>(2, 0, |rank| {
        // Bytes two apart, so that they move one by one.
        let (me, count) = (rank.direct.rank(), 600_000);
        let part = Move {
            from: 0,
            to: 0,
            item: 1,
            extent: [1, 1, 1, count],
            from_strides: [2; 4],
            to_strides: [2; 4],
        };
        let source = rank.upload(&vec![7; 2 * count]);
        let mut destination = rank.upload(&vec![0; 2 * count]);
        rank.meet();
        rank.exchange(&[Passed { sender: 1, receiver: 0, part }], &source, &mut destination).unwrap();
        rank.settle().unwrap();
        let found = (me == 0).then(|| rank.download(&destination));
        rank.meet();
        if let Some(found) = found {
            assert_eq!(found.iter().filter(|byte| **byte == 7).count(), count);
        }
    });
}

/// A block whose elements know their owner and place.
fn element(owner: usize, which: usize, [b, s, h, d]: [usize; 4]) -> bf16 {
    bf16::from_f32((owner * 64 + which * 32 + ((b * 5 + s) * 3 + h) * 2 + d % 2) as f32)
}

pub fn blocks_go_round_in_the_order_of_a_ring<R: Rig>() {
    let cases: [&[usize]; 5] = [&[3], &[2, 4], &[4, 4, 4], &[3, 0, 2, 1], &[0, 1]];
    for lengths in cases {
        on_ranks::<R, _>(lengths.len(), 0, |rank| {
            let (me, ranks, queue) = (rank.direct.rank(), rank.direct.size(), &rank.queue);
            let longest = *lengths.iter().max().unwrap();
            let shape = |length: usize| [2, length, 3, 8];
            // Heads before positions in memory.
            let block = |which: usize| {
                let [b, s, h, d] = shape(lengths[me]);
                let host =
                    Tensor::<bf16>::from_fn([b, h, s, d], |[b, h, s, d]| element(me, which, [b, s, h, d]));
                cuda::to_device(queue, &host.unwrap()).unwrap()
            };
            let (key, value) = (block(0), block(1));
            // What is visited is copied, to be looked at in the end.
            let mut logs: Vec<_> = (0..2 * ranks)
                .map(|_| Tensor::<bf16, DeviceOf<R>>::zeros(queue, shape(longest)).unwrap())
                .collect();
            let note = |from: View<'_, bf16, DeviceOf<R>>, log: &mut Tensor<bf16, DeviceOf<R>>| {
                let to = log.view_mut();
                let copy = StridedCopy {
                    source: from.base().as_ptr().cast_const().cast(),
                    destination: to.base().as_ptr().cast(),
                    item: 2,
                    extent: from.shape(),
                    source_strides: from.strides(),
                    destination_strides: to.strides(),
                };
                // SAFETY: a block that is lent, into a tensor that has room for the longest.
                unsafe { DeviceOf::<R>::copy(queue, &[copy]) }.unwrap();
            };
            note(key.view().permuted(TensorLayout::Bhsd), &mut logs[2 * me]);
            let mut arena = Arena::<DeviceOf<R>>::default();
            for round in 0..3 {
                rank.meet();
                let (mut owners, scope) = (Vec::new(), arena.open(queue).unwrap());
                let kv = KeyValue {
                    key: key.view().permuted(TensorLayout::Bhsd),
                    value: value.view().permuted(TensorLayout::Bhsd),
                };
                let visit = |owner: usize, kv: KeyValue<'_, bf16, DeviceOf<R>>| {
                    owners.push(owner);
                    note(kv.key, &mut logs[2 * owner]);
                    note(kv.value, &mut logs[2 * owner + 1]);
                    Ok(())
                };
                rank.direct.rotate(scope, lengths, kv, visit).unwrap();
                rank.settle().unwrap();
                let ring: Vec<_> = (0..ranks).map(|hop| (me + ranks - hop) % ranks).collect();
                assert_eq!(owners, ring, "{lengths:?}, round {round}");
            }
            rank.meet();
            for (number, log) in logs.iter().enumerate() {
                let found = cuda::to_host::<bf16, DeviceOf<R>>(queue, log).unwrap();
                let (owner, which) = (number / 2, number % 2);
                let right = Tensor::<bf16>::from_fn(found.shape(), |index| match index[1] < lengths[owner] {
                    true => element(owner, which, index),
                    false => bf16::ZERO,
                });
                assert_eq!(found, right.unwrap(), "{lengths:?}: rank {me}, block of {owner}");
            }
        });
    }
}
