//! The parts that a process plays as a rank.

use core::ffi::{c_char, c_int};
use std::time::{Duration, Instant};

use attn::comm::mpi::{self, MpiComm};
use attn::prelude::*;

use crate::launcher::PART;
use crate::suite;

/// Plays the part that the environment gives, if it gives one.
pub(crate) fn play() {
    let Ok(part) = std::env::var(PART) else { return };
    match &*part {
        "laws" => laws(),
        "large" => large(),
        "faults" => faults(),
        "host" => host(),
        other => crate::ends::play(other),
    }
}

fn world() -> mpi::MpiWorld {
    mpi::world().unwrap().threads_per_rank(1)
}

fn laws() {
    world()
        .run(|comm| {
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            println!("rank {} of {} plays its part on host {}", comm.rank(), comm.size(), host.trim());
            suite::check_laws(&comm)?;
            suite::strategies_agree_with_threads(&comm)
        })
        .unwrap();
}

fn large() {
    world()
        .run(|comm| {
            println!("rank {} plays its part", comm.rank());
            suite::more_than_an_int_can_count(&comm)
        })
        .unwrap();
}

unsafe extern "C" {
    fn MPI_Init_thread(
        count: *mut c_int,
        arguments: *mut *mut *mut c_char,
        level: c_int,
        given: *mut c_int,
    ) -> c_int;
    fn MPI_Finalize() -> c_int;
}

/// As a program does that uses MPI for itself: Open MPI and MPICH call the highest level of threads 3.
fn start_mpi() {
    let mut given = 0;
    // SAFETY: MPI has not been started; it takes null for the arguments of main.
    let code = unsafe { MPI_Init_thread(core::ptr::null_mut(), core::ptr::null_mut(), 3, &mut given) };
    assert_eq!((code, given), (0, 3));
}

fn end_mpi() {
    // SAFETY: this process has started it, and has nothing under way.
    assert_eq!(unsafe { MPI_Finalize() }, 0);
}

/// Worlds come and go, side by side and one after another.
fn host() {
    start_mpi();
    for _ in 0..3 {
        let (one, other) = (world().communicator().unwrap(), world().communicator().unwrap());
        suite::check_laws(&other).unwrap();
        suite::check_laws(&one).unwrap();
    }
    println!("worlds came and went; this rank plays its part");
    end_mpi();
}

/// Every fault, each in a world of its own. MPI outlives them.
fn faults() {
    start_mpi();
    for fault in suite::faults::<MpiComm>() {
        let world = world().deadline(suite::DEADLINE);
        let (rank, ranks) = (world.rank(), world.size());
        let started = Instant::now();
        let outcome = world.run(|comm| (fault.body)(&comm));
        let told = outcome.as_ref().is_err_and(|error| (fault.heard)(rank, ranks, error));
        let left = outcome.is_ok() && rank + 1 == ranks && fault.leaves;
        assert!(told || left, "{}: rank {rank} of {ranks}: {outcome:?}", fault.name);
        let took = started.elapsed();
        assert!(took < suite::DEADLINE + Duration::from_secs(2), "{}: {took:?}", fault.name);
    }
    println!("all faults were heard of; this rank plays its part");
    end_mpi();
}
