//! The communicator of ranks that have no memory in common but what it makes, over channels: it moves what the threads
//! communicator moves, and no failure leaves a rank waiting.

mod suite;
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use attn::Error;
use attn::comm::message::{Bytes, ChannelLink, Event, Head, Link, MessageComm};
use attn::device::cpu::CpuQueue;
use attn::prelude::*;
use half::bf16;
use suite::{DEADLINE, Fault};
use support::{Inputs, Problem, Setup, WithFlash, WithSdpa, call, on_each, open};

type Comm = MessageComm<ChannelLink>;

/// How tensors get from rank to rank.
#[derive(Clone, Copy, Debug)]
enum By {
    Link,
    Memory,
}

/// Every rank's communicator.
fn communicators(ranks: usize, deadline: Duration, by: By) -> Vec<Comm> {
    let open = match by {
        By::Link => Comm::by_link,
        By::Memory => Comm::new,
    };
    std::thread::scope(|scope| {
        let ranks: Vec<_> = ChannelLink::world(ranks)
            .into_iter()
            .map(|link| scope.spawn(move || open(link, CpuQueue::new(1)?, deadline)))
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap().unwrap()).collect()
    })
}

#[track_caller]
fn check<A>(setup: Setup, inputs: &Inputs<bf16>)
where
    A: ParallelAttention<Comm, bf16> + ParallelAttention<attn::ThreadComm, bf16>,
{
    let threads = World::threads(setup.ranks()).threads_per_rank(1).communicators().unwrap();
    let (by_threads, their_traffic) = on_each::<A, _>(threads, setup, inputs);
    for by in [By::Link, By::Memory] {
        let comms = communicators(setup.ranks(), Duration::from_secs(20), by);
        let (by_message, traffic) = on_each::<A, _>(comms, setup, inputs);
        assert_eq!(by_message.bits(), by_threads.bits(), "{setup}, {by:?}, {:?}", inputs.problem);
        assert_eq!(traffic, their_traffic, "{setup}, {by:?}, {:?}", inputs.problem);
    }
}

#[test]
fn strategies_give_the_same_bits_and_move_the_same_bytes_as_on_threads() {
    for problem in [
        Problem::new(2, 24, 8, 16).kv_heads(2),
        Problem::new(1, 48, 4, 8).causal(),
        Problem::new(1, 24, 4, 8).joint(3, JointStrategy::Rear).key_lengths().dense(true),
        Problem::new(2, 24, 4, 8).seq_k(7).replicated_keys().window(4, 1).segments(),
    ] {
        let inputs = problem.inputs::<bf16>(21);
        for setup in Setup::SAMPLE {
            check::<WithFlash>(setup, &inputs);
        }
        check::<WithSdpa>(Setup::ring(2), &inputs);
    }
}

#[test]
fn so_do_uneven_shares() {
    for problem in [Problem::new(2, 5, 3, 8), Problem::new(1, 23, 6, 8).kv_heads(3).causal().seq_k(3)] {
        let inputs = problem.inputs::<bf16>(22);
        for setup in Setup::SAMPLE.into_iter().filter(|setup| *setup != Setup::NONE) {
            check::<WithFlash>(setup.uneven(), &inputs);
        }
    }
}

#[test]
fn every_law_of_communicators_is_obeyed() {
    for (ranks, by) in (1..=5).flat_map(|ranks| [(ranks, By::Link), (ranks, By::Memory)]) {
        let comms = communicators(ranks, Duration::from_secs(20), by);
        std::thread::scope(|scope| {
            for comm in comms {
                scope.spawn(move || comm.run(|comm| suite::check_laws(&comm)).unwrap());
            }
        });
    }
}

#[test]
fn everybody_is_told_of_a_fault() {
    std::thread::scope(|scope| {
        for fault in suite::faults::<Comm>() {
            scope.spawn(move || {
                [2, 3, 5].map(|ranks| try_out(&fault, ranks, if ranks == 3 { By::Link } else { By::Memory }))
            });
        }
    });
}

/// Tries a fault, and checks what each rank hears.
fn try_out(fault: &Fault<Comm>, ranks: usize, by: By) {
    let comms = communicators(ranks, DEADLINE, by);
    let started = Instant::now();
    let outcomes: Vec<attn::Result<()>> = std::thread::scope(|scope| {
        let ranks: Vec<_> =
            comms.into_iter().map(|comm| scope.spawn(|| comm.run(|comm| (fault.body)(&comm)))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    for (rank, outcome) in outcomes.iter().enumerate() {
        let told = outcome.as_ref().is_err_and(|error| (fault.heard)(rank, ranks, error));
        let left = outcome.is_ok() && rank + 1 == ranks && fault.leaves;
        assert!(told || left, "{}: rank {rank} of {ranks}: {outcome:?}", fault.name);
    }
    assert!(started.elapsed() < DEADLINE + Duration::from_secs(2), "{}: {:?}", fault.name, started.elapsed());
}

/// A link of which the rank vanishes at its n-th message, as if its process were killed.
struct Vanishing {
    inner: Option<ChannelLink>,
    place: [usize; 2],
    left: usize,
}

impl Link for Vanishing {
    const NAME: &'static str = "vanishing";

    fn rank(&self) -> usize {
        self.place[0]
    }

    fn size(&self) -> usize {
        self.place[1]
    }

    fn send(&mut self, to: usize, head: Head, body: Option<Arc<Bytes>>) -> attn::Result<()> {
        if self.left == 0 {
            self.inner = None;
        }
        self.left = self.left.saturating_sub(1);
        match &mut self.inner {
            Some(link) => link.send(to, head, body),
            None => Err(gone()),
        }
    }

    fn receive(&mut self, until: Instant) -> attn::Result<Option<Event>> {
        self.inner.as_mut().map_or_else(|| Err(gone()), |link| link.receive(until))
    }

    fn close(&mut self, well: bool, grace: Duration) {
        if let Some(link) = &mut self.inner {
            link.close(well, grace);
        }
    }
}

fn gone() -> Error {
    Error::Library { library: "vanishing", call: "send", text: "this rank is no more".into() }
}

/// What each rank of a world hears of which rank 1 vanishes at its n-th message.
fn vanish(setup: Setup, n: usize, by: By) -> Vec<attn::Result<()>> {
    let inputs = &Problem::new(1, 24, 6, 8).inputs::<f32>(3);
    std::thread::scope(|scope| {
        let ranks: Vec<_> = ChannelLink::world(setup.ranks())
            .into_iter()
            .map(|link| {
                let left = if link.rank() == 1 { n } else { usize::MAX };
                let place = [link.rank(), link.size()];
                let link = Vanishing { inner: Some(link), place, left };
                let open = if matches!(by, By::Link) { MessageComm::by_link } else { MessageComm::new };
                scope.spawn(move || {
                    let comm = open(link, CpuQueue::new(1)?, DEADLINE)?;
                    comm.run(|comm| {
                        call(&mut open_session(comm, setup)?, inputs)?;
                        Ok(())
                    })
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn open_session<C: Communicator<Device = Cpu>>(
    comm: C,
    setup: Setup,
) -> attn::Result<Session<WithFlash, C, f32>> {
    open(comm, setup)
}

#[test]
fn whenever_a_rank_vanishes_every_survivor_ends() {
    for setup in [Setup::ulysses(3), Setup::ring(3), Setup::hybrid(2, 2), Setup::allgather_kv(3)] {
        for by in [By::Link, By::Memory] {
            let mut whole = 0;
            for n in 0.. {
                let started = Instant::now();
                let outcomes = vanish(setup, n, by);
                assert!(
                    started.elapsed() < DEADLINE,
                    "{setup} {by:?}: {:?} at message {n}",
                    started.elapsed()
                );
                // From its last messages on, a rank that vanishes is missed by nobody.
                whole += usize::from(outcomes.iter().all(Result::is_ok));
                if whole > 0 {
                    assert!(n > 1, "{setup} {by:?}: {n} messages");
                    break;
                }
                let errors = outcomes
                    .into_iter()
                    .enumerate()
                    .filter_map(|(rank, outcome)| Some((rank, outcome.err()?)));
                for (rank, error) in errors {
                    let lost = matches!(&error, Error::RankLost { rank: 1, .. });
                    assert!(lost || rank == 1, "{setup} {by:?}: rank {rank} at message {n}: {error}");
                }
            }
        }
    }
}
