//! Exchanges between scratch tensors, which ranks of one host reach in each other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{Bytes, ChannelLink, Comm, Event, Head, Link, MessageComm, SIGNATURE, world};
use crate::comm::{Communicator, ExchangePlan, Transfer};
use crate::device::cpu::CpuQueue;
use crate::device::{Arena, Cpu};
use crate::error::{Error, Result};
use crate::tensor::{Tensor, TensorLayout, ViewMut};

/// What a rank does in one of several exchanges.
#[derive(Clone, Debug)]
struct Part {
    /// Whether its source and its destination are scratch tensors.
    scratch: [bool; 2],
    layout: TensorLayout,
    /// How many positions it sends to each rank.
    lengths: Vec<usize>,
}

/// Heads and elements of a position: not all copies start at cache lines.
const POSITION: [usize; 2] = [3, 7];

/// An exchange in which each rank takes the part that it is given. Every position tells where it comes from.
fn exchange<L: Link>(comm: &MessageComm<L>, arena: &mut Arena<Cpu>, parts: &[Part]) -> Result<()> {
    let (me, size, queue) = (comm.rank(), comm.size(), comm.queue()?);
    let Part { scratch: [from, to], layout, lengths } = &parts[me];
    let [heads, dim] = POSITION;
    let mut plan = ExchangePlan::default();
    let (mut sent, mut received) = (0, 0);
    for (peer, part) in parts.iter().enumerate() {
        plan.send(peer, [0, sent, 0, 0], [1, lengths[peer], heads, dim]);
        plan.receive(peer, [0, received, 0, 0], [1, part.lengths[me], heads, dim]);
        sent += lengths[peer];
        received += part.lengths[me];
    }
    let scope = arena.open(&queue)?;
    let shape = |seq| layout.permute([1, seq, heads, dim]);
    let heap = |seq| Tensor::<f32>::from_fn(shape(seq), |_| -1.0);
    let (mut source, mut destination) = (heap(sent)?, heap(received)?);
    let in_scratch = |seq| Ok::<_, Error>(scope.take::<f32>(shape(seq))?.permuted(*layout));
    let mut source: ViewMut<'_, f32, Cpu> =
        if *from { in_scratch(sent)? } else { source.view_mut().permuted(*layout) };
    let mut destination = if *to { in_scratch(received)? } else { destination.view_mut().permuted(*layout) };
    let number = |from: usize, to: usize, seq: usize, head: usize, d: usize| {
        (((from * size + to) * 1000 + seq) * heads * dim + head * dim + d) as f32
    };
    let mut seq = 0;
    for (peer, &length) in lengths.iter().enumerate() {
        for (n, head, d) in each(length) {
            source.set([0, seq + n, head, d], number(me, peer, n, head, d));
        }
        seq += length;
    }
    comm.exchange(scope, &SIGNATURE, &mut [Transfer::new(&plan, source.as_view(), destination.reborrow())?])?;
    let mut seq = 0;
    for (peer, part) in parts.iter().enumerate() {
        for (n, head, d) in each(part.lengths[me]) {
            assert_eq!(destination.at([0, seq + n, head, d]), number(peer, me, n, head, d), "{peer} to {me}");
        }
        seq += part.lengths[me];
    }
    Ok(())
}

/// The indices of so many positions.
fn each(length: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    let [heads, dim] = POSITION;
    (0..length * heads * dim).map(move |n| (n / (heads * dim), n / dim % heads, n % dim))
}

fn part(ranks: usize) -> impl Strategy<Value = Part> {
    let length = prop_oneof![Just(0), 1..20_usize, 100..200_usize];
    let layout = prop::sample::select(&TensorLayout::ALL[..]);
    (any::<[bool; 2]>(), layout, prop::collection::vec(length, ranks))
        .prop_map(|(scratch, layout, lengths)| Part { scratch, layout, lengths })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn tensors_arrive_from_any_memory_in_any_other(
        (keys, exchanges) in (2..5_usize).prop_flat_map(|ranks| {
            let key = prop::sample::select(&["a", "a", "a", "b", ""][..]);
            let parts = prop::collection::vec(part(ranks), ranks);
            (prop::collection::vec(key, ranks), prop::collection::vec(parts, 1..6))
        }),
    ) {
        let outcomes: Vec<Result<()>> = std::thread::scope(|scope| {
            let ranks: Vec<_> = ChannelLink::world(keys.len())
                .into_iter()
                .zip(&keys)
                .map(|(link, key)| {
                    scope.spawn(|| {
                        let queue = CpuQueue::new(1)?;
                        let comm = Comm::on_host(link, queue, Duration::from_secs(20), key.as_bytes())?;
                        // It grows from exchange to exchange: windows come and go.
                        let mut arena = Arena::default();
                        comm.run(|comm| exchanges.iter().try_for_each(|parts| exchange(&comm, &mut arena, parts)))
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        prop_assert_eq!(outcomes, vec![Ok(()); keys.len()]);
    }
}

#[test]
fn scratch_of_an_exchange_that_failed_is_lent_no_more() {
    let parts = vec![Part { scratch: [true; 2], layout: TensorLayout::ALL[0], lengths: vec![100; 3] }; 3];
    let open = |link, queue, _| Comm::new(link, queue, Duration::from_millis(300));
    let outcomes = world(3, open, |comm| {
        let mut arena = Arena::default();
        exchange(comm, &mut arena, &parts)?;
        exchange(comm, &mut arena, &parts)?;
        if comm.rank() == 2 {
            // The others have offered their scratch memory to this rank, which does not come.
            std::thread::sleep(Duration::from_millis(900));
        }
        let error = exchange(comm, &mut arena, &parts).unwrap_err();
        let queue = comm.queue()?;
        let scope = arena.open(&queue)?;
        let mut view = scope.take::<f32>([1, 100, 3, 7])?;
        view.set([0, 99, 2, 6], 5.0);
        let windows = comm.world().windows().unwrap();
        let lent = windows.find(view.base().as_ptr().cast(), 4).is_some();
        Ok((error, lent, view.at([0, 99, 2, 6])))
    });
    for (rank, outcome) in outcomes.into_iter().enumerate() {
        let (error, lent, value) = outcome.unwrap();
        assert!(matches!(&error, Error::Deadline { missing, .. } if missing[..] == [2]), "{error}");
        // It can be used; but others reach it no more, unless they never could: the world had failed before the last rank came.
        assert_eq!((lent, value), (rank == 2, 5.0), "{rank}");
    }
}

/// A link that hears nothing of failures and farewells: as if they were still on their way.
struct Deaf(ChannelLink);

impl Link for Deaf {
    const NAME: &'static str = "deaf channels";

    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn size(&self) -> usize {
        self.0.size()
    }

    fn send(&mut self, to: usize, head: Head, body: Option<Arc<Bytes>>) -> Result<()> {
        self.0.send(to, head, body)
    }

    fn receive(&mut self, until: Instant) -> Result<Option<Event>> {
        Ok(self.0.receive(until)?.filter(|event| match event {
            Event::Message { head, .. } => !head.tells_of_an_end(),
            Event::Lost { .. } => false,
        }))
    }

    fn close(&mut self, well: bool, grace: Duration) {
        self.0.close(well, grace);
    }
}

#[test]
fn who_reads_what_was_taken_back_finds_out() {
    // Rank 0 offers what it sends, gives up, and writes there again; rank 1 comes later and does not know; rank 2 never comes.
    // (What is sent to rank 0, which takes nothing, has room.)
    let part = |scratch| Part { scratch, layout: TensorLayout::ALL[0], lengths: vec![30; 3] };
    let parts = &[part([true, false]), part([false; 2]), part([false; 2])];
    let (given_up, waits) = std::sync::mpsc::channel();
    let (read, is_read) = std::sync::mpsc::channel();
    let open = |link, deadline| MessageComm::new(Deaf(link), CpuQueue::new(1)?, deadline);
    let mut links = ChannelLink::world(3).into_iter();
    let mut link = || links.next().unwrap();
    let (link0, link1, link2) = (link(), link(), link());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let comm = open(link0, Duration::from_millis(300)).unwrap();
            let mut arena = Arena::default();
            let error = exchange(&comm, &mut arena, parts).unwrap_err();
            assert!(matches!(error, Error::Deadline { .. }), "{error}");
            given_up.send(()).unwrap();
            is_read.recv().unwrap();
        });
        scope.spawn(move || {
            let comm = open(link1, Duration::from_secs(1)).unwrap();
            waits.recv().unwrap();
            let error = exchange(&comm, &mut Arena::default(), parts).unwrap_err().to_string();
            read.send(()).unwrap();
            assert!(error.contains("rank 0") && error.contains("before its tensors were read"), "{error}");
        });
        let comm = open(link2, Duration::from_secs(20)).unwrap();
        assert_eq!(comm.size(), 3);
    });
}
