//! The suite of laws over the communicators that need nothing but Rust.

mod suite;
mod support;

use std::time::{Duration, Instant};

use attn::ThreadComm;
use attn::prelude::*;
use suite::{DEADLINE, Fault};

#[test]
fn threads_obey_every_law() {
    for ranks in 1..=5 {
        World::threads(ranks).threads_per_rank(1).run(|comm| suite::check_laws(&comm)).unwrap();
    }
}

#[test]
fn threads_move_more_than_an_int_can_count() {
    if suite::memory_allows(5 << 30) {
        World::threads(2).run(|comm| suite::more_than_an_int_can_count(&comm)).unwrap();
    } else {
        println!("not run: it takes 5 GiB of memory");
    }
}

#[test]
fn threads_tell_everybody_of_a_fault() {
    std::thread::scope(|scope| {
        for fault in suite::faults::<ThreadComm>() {
            scope.spawn(move || [2, 3, 5].map(|ranks| try_out(&fault, ranks)));
        }
    });
}

/// Tries a fault in a world of threads, and checks what each of them hears.
fn try_out(fault: &Fault<ThreadComm>, ranks: usize) {
    let started = Instant::now();
    let comms = World::threads(ranks).deadline(DEADLINE).communicators().unwrap();
    let rank = |comm: ThreadComm| {
        // As `World::run` does.
        (fault.body)(&comm).inspect_err(|error| attn::comm::Rendezvous::fail(&comm, error))
    };
    let outcomes: Vec<attn::Result<()>> = std::thread::scope(|scope| {
        let ranks: Vec<_> = comms.into_iter().map(|comm| scope.spawn(move || rank(comm))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    for (rank, outcome) in outcomes.iter().enumerate() {
        let told = outcome.as_ref().is_err_and(|error| (fault.heard)(rank, ranks, error));
        let left = outcome.is_ok() && rank + 1 == ranks && fault.leaves;
        assert!(told || left, "{}: rank {rank} of {ranks}: {outcome:?}", fault.name);
    }
    assert!(started.elapsed() < DEADLINE + Duration::from_secs(2), "{}: {:?}", fault.name, started.elapsed());
}
