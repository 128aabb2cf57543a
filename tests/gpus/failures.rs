//! Ranks that fail, disagree or stay away: every other rank gets an error that says so, and what it waits for ends.

use std::time::{Duration, Instant};

use attn::comm::Rendezvous;
use attn::comm::message::{ChannelLink, MessageComm};
use attn::cuda::{self, Check, GpuComm, GpuOptions, GpuQueue, Transport};
use attn::device::Arena;
use attn::device::cpu::CpuQueue;
use attn::prelude::*;
use attn::{Device, Error, ExchangePlan, KeyValue, Transfer};

use super::moves::nth;
use crate::kernels::rig::{DeviceOf, Rig};

/// What one rank saw.
type Outcome = attn::Result<()>;

/// Runs `body` on every rank of a world of threads, and keeps every rank's own outcome; panics show as errors. Nothing may
/// take longer than `most`.
pub fn outcomes<R: Rig>(
    ranks: usize,
    options: GpuOptions,
    most: Duration,
    body: impl Fn(GpuComm<DeviceOf<R>>) -> Outcome + Sync,
) -> Option<Vec<Outcome>> {
    outcomes_over::<R>(threads(ranks), options, most, body)
}

/// What ranks of one process talk over on the host.
fn threads(ranks: usize) -> Vec<Box<dyn Rendezvous>> {
    let world = World::threads(ranks).threads_per_rank(1).deadline(Duration::from_secs(20));
    world.communicators().unwrap().into_iter().map(|host| Box::new(host) as Box<dyn Rendezvous>).collect()
}

/// What ranks of several processes talk over, as far as they can tell.
fn messages(ranks: usize) -> Vec<Box<dyn Rendezvous>> {
    let host = |link| {
        let queue = CpuQueue::new(1).unwrap();
        Box::new(MessageComm::by_link(link, queue, Duration::from_secs(20)).unwrap()) as Box<dyn Rendezvous>
    };
    ChannelLink::world(ranks).into_iter().map(host).collect()
}

/// As [`outcomes`], for ranks that talk so on the host.
fn outcomes_over<R: Rig>(
    hosts: Vec<Box<dyn Rendezvous>>,
    options: GpuOptions,
    most: Duration,
    body: impl Fn(GpuComm<DeviceOf<R>>) -> Outcome + Sync,
) -> Option<Vec<Outcome>> {
    let queues: Vec<R::Queue> = (0..hosts.len()).map_while(|rank| R::queue(rank as u64)).collect();
    if queues.is_empty() {
        return None;
    }
    let began = Instant::now();
    let body = &body;
    let outcomes = std::thread::scope(|scope| {
        let threads: Vec<_> = hosts
            .into_iter()
            .zip(queues)
            .map(|(host, queue)| scope.spawn(move || body(GpuComm::open_with(host, queue, options)?)))
            .collect();
        let panicked = Err(Error::RankPanicked { rank: 99, message: String::new() });
        threads.into_iter().map(|thread| thread.join().unwrap_or(panicked.clone())).collect()
    });
    assert!(began.elapsed() < most, "took {:?}", began.elapsed());
    Some(outcomes)
}

pub fn options(milliseconds: u64) -> GpuOptions {
    GpuOptions::default().deadline(Duration::from_millis(milliseconds)).transport(Transport::Nccl)
}

/// One ring of blocks of four positions; then waits for what it gave.
pub fn turn<D: cuda::Launches>(comm: &GpuComm<D>, call: u64) -> Outcome
where
    D::Queue: GpuQueue<Device = D>,
{
    let queue = comm.queue()?;
    let block = Tensor::<f32, D>::zeros(&queue, [1, 4, 2, 8])?;
    let mut arena = Arena::default();
    let lent = KeyValue { key: block.view(), value: block.view() };
    comm.rotate(arena.open(&queue)?, &nth(call, 0), &vec![4; comm.size()], lent, |_, _| Ok(()))?;
    D::synchronize(&queue)
}

/// An exchange of a box of `length` with every rank.
fn swap<D: cuda::Launches>(comm: &GpuComm<D>, call: u64, lengths: [usize; 2]) -> Outcome
where
    D::Queue: GpuQueue<Device = D>,
{
    let queue = comm.queue()?;
    let size = comm.size();
    let source = Tensor::<f32, D>::zeros(&queue, [size, 8, 1, 8])?;
    let mut target = Tensor::<f32, D>::zeros(&queue, [size, 8, 1, 8])?;
    let mut plan = ExchangePlan::default();
    for peer in 0..size {
        plan.send(peer, [peer, 0, 0, 0], [1, lengths[0], 1, 8]);
        plan.receive(peer, [peer, 0, 0, 0], [1, lengths[1], 1, 8]);
    }
    let mut transfers = [Transfer::new(&plan, source.view(), target.view_mut())?];
    let mut arena = Arena::default();
    comm.exchange(arena.open(&queue)?, &nth(call, 0), &mut transfers)?;
    D::synchronize(&queue)
}

/// A rank that stays away from a call like one that ranks have compared before: the GPUs wait, and no host does.
pub fn a_rank_that_stays_away_is_named<R: Rig>() {
    for hosts in [threads, messages] {
        stay_away::<R>(hosts(3));
    }
}

fn stay_away<R: Rig>(hosts: Vec<Box<dyn Rendezvous>>) {
    let outcomes = outcomes_over::<R>(hosts, options(700), Duration::from_secs(10), |comm| {
        turn(&comm, 0)?;
        if comm.rank() == 1 {
            // Long enough for the others' deadline.
            let until = Instant::now() + Duration::from_secs(8);
            while comm.check().is_ok() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(10));
            }
            return comm.check();
        }
        let error = turn(&comm, 1).unwrap_err();
        // Everything from now on is that error: nothing it gives is a result.
        let queue = comm.queue()?;
        assert_eq!(DeviceOf::<R>::synchronize(&queue), Err(error.clone()));
        assert_eq!(comm.check(), Err(error.clone()));
        assert_eq!(turn(&comm, 2), Err(error.clone()));
        Err(error)
    });
    for (rank, outcome) in outcomes.into_iter().flatten().enumerate() {
        let said = outcome.unwrap_err().to_string();
        let expected =
            ["passed its deadline of 0.7 s: ranks [1] had not arrived", "rotate (", "collective number 2"];
        assert!(expected.iter().all(|part| said.contains(part)), "rank {rank}: {said}");
    }
}

pub fn a_rank_that_leaves_is_named<R: Rig>() {
    let outcomes = outcomes::<R>(3, options(30_000), Duration::from_secs(6), |comm| {
        turn(&comm, 0)?;
        if comm.rank() == 2 {
            return Ok(());
        }
        turn(&comm, 1)
    });
    for (rank, outcome) in outcomes.into_iter().flatten().enumerate() {
        match outcome {
            Ok(()) => assert_eq!(rank, 2),
            Err(error) => {
                let said = error.to_string();
                assert!(said.contains("rank 2 has ended, but rotate (test"), "rank {rank}: {said}");
                assert!(
                    said.contains("(collective number 2 of its group) waits for it"),
                    "rank {rank}: {said}"
                );
            }
        }
    }
}

pub fn a_panic_ends_the_others_waits<R: Rig>() {
    let outcomes = outcomes::<R>(3, options(30_000), Duration::from_secs(6), |comm| {
        turn(&comm, 0)?;
        assert!(comm.rank() != 0, "rank zero gives up");
        turn(&comm, 1)
    });
    for (rank, outcome) in outcomes.into_iter().flatten().enumerate() {
        let error = outcome.unwrap_err();
        let expected = if rank == 0 { 99 } else { 0 };
        assert!(
            matches!(error, Error::RankPanicked { rank, .. } if rank == expected),
            "rank {rank}: {error}"
        );
    }
}

pub fn an_error_while_a_block_is_shown_is_everybodys<R: Rig>() {
    let outcomes = outcomes::<R>(3, options(30_000), Duration::from_secs(6), |comm| {
        let queue = comm.queue()?;
        let block = Tensor::<f32, DeviceOf<R>>::zeros(&queue, [1, 4, 2, 8])?;
        let mut arena = Arena::default();
        let lent = KeyValue { key: block.view(), value: block.view() };
        let mut shown = 0;
        let turned = comm.rotate(arena.open(&queue)?, &nth(0, 0), &[4; 3], lent, |_, _| {
            shown += 1;
            match (comm.rank(), shown) {
                (1, 2) => Err(Error::Configuration(String::from("the disk is full"))),
                _ => Ok(()),
            }
        });
        turned.and_then(|()| DeviceOf::<R>::synchronize(&queue)).and_then(|()| turn(&comm, 1))
    });
    for (rank, outcome) in outcomes.into_iter().flatten().enumerate() {
        let said = outcome.unwrap_err().to_string();
        assert!(said.contains("the disk is full"), "rank {rank}: {said}");
    }
}

pub fn calls_that_differ_are_told_on_every_rank<R: Rig>() {
    let outcomes = outcomes::<R>(3, options(30_000), Duration::from_secs(6), |comm| {
        turn(&comm, 0)?;
        if comm.rank() == 1 { swap(&comm, 1, [4, 4]) } else { swap(&comm, 2, [4, 4]) }
    });
    for (rank, outcome) in outcomes.into_iter().flatten().enumerate() {
        let said = outcome.unwrap_err().to_string();
        assert!(said.contains("rank 1 differs from its group: it called exchange"), "rank {rank}: {said}");
        assert!(said.contains("of call 1") && said.contains("of call 2"), "rank {rank}: {said}");
    }
}

/// What no first call of its kind shows, every call can be made to show.
pub fn checked_always_a_call_skipped_is_told<R: Rig>() {
    let always = options(30_000).check(Check::Always);
    let outcomes = outcomes::<R>(2, always, Duration::from_secs(6), |comm| {
        turn(&comm, 0)?;
        turn(&comm, if comm.rank() == 1 { 2 } else { 1 })
    });
    for (rank, outcome) in outcomes.into_iter().flatten().enumerate() {
        let error = outcome.unwrap_err();
        assert!(matches!(error, Error::RanksDisagree { .. }), "rank {rank}: {error}");
    }
}

pub fn boxes_that_do_not_fit_are_told_on_every_rank<R: Rig>() {
    let outcomes = outcomes::<R>(3, options(30_000), Duration::from_secs(6), |comm| {
        swap(&comm, 0, [4, 4])?;
        // Rank 1 sends more than the others expect.
        swap(&comm, 1, [if comm.rank() == 1 { 5 } else { 4 }, 4])
    });
    for (rank, outcome) in outcomes.into_iter().flatten().enumerate() {
        let said = outcome.unwrap_err().to_string();
        let expected = "rank 1 differs from its group: it called what ranks have not compared before, or moves other boxes";
        assert!(said.contains(expected), "rank {rank}: {said}");
    }
    // In a first call, each rank names what does not fit.
    let outcomes = self::outcomes::<R>(3, options(30_000), Duration::from_secs(6), |comm| {
        swap(&comm, 0, [if comm.rank() == 1 { 5 } else { 4 }, 4])
    });
    for (rank, outcome) in outcomes.into_iter().flatten().enumerate() {
        let said = outcome.unwrap_err().to_string();
        let expected = "rank 1 sends Some([1, 5, 1, 8]) to rank 0, which expects Some([1, 4, 1, 8])";
        assert!(said.contains(expected), "rank {rank}: {said}");
    }
}

pub fn options_that_differ_are_refused<R: Rig>() {
    let queues: Vec<R::Queue> = (0..2).map_while(|rank| R::queue(rank as u64)).collect();
    if queues.is_empty() {
        return;
    }
    let said = World::threads(2).threads_per_rank(1).run(|host| {
        let rank = host.rank();
        let options = options(if rank == 1 { 1000 } else { 2000 });
        GpuComm::<DeviceOf<R>>::open_with(Box::new(host), queues[rank].clone(), options).map(drop)
    });
    let said = said.unwrap_err().to_string();
    assert!(
        said.contains("rank 1 opens its communicator with another transport, deadline or check than rank 0"),
        "{said}"
    );
}

pub fn a_call_inside_another_is_refused<R: Rig>() {
    let outcomes = outcomes::<R>(2, options(30_000), Duration::from_secs(10), |comm| {
        let queue = comm.queue()?;
        let block = Tensor::<f32, DeviceOf<R>>::zeros(&queue, [1, 4, 2, 8])?;
        let mut arena = Arena::default();
        let lent = KeyValue { key: block.view(), value: block.view() };
        comm.rotate(arena.open(&queue)?, &nth(0, 0), &[4; 2], lent, |_, _| {
            assert_eq!(turn(&comm, 1), Err(Error::Reentrant));
            Ok(())
        })?;
        turn(&comm, 2)
    });
    assert!(outcomes.into_iter().flatten().all(|outcome| outcome.is_ok()));
}
