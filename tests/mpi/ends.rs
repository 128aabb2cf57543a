//! Ranks that end badly under `mpirun`: the others are told, the job ends soon, and it fails.

use std::time::Duration;

use attn::comm::mpi::{self, MpiComm};
use attn::prelude::*;
use attn::{Error, Signature};

use crate::launcher::{Job, Outcome};
use crate::suite;

/// How a rank ends: a part, and what it does instead of its second collective.
const ENDS: [(&str, fn()); 5] = [
    ("an error", || ()),
    ("a panic", || panic!("on purpose")),
    ("an exit", || std::process::exit(3)),
    ("a kill", || kill()),
    ("a rank that ends well", || ()),
];

/// Plays the part of a rank of a job in which the last one ends badly.
pub(crate) fn play(part: &str) {
    let (name, end) = ENDS.into_iter().find(|(name, _)| *name == part).unwrap();
    let world = mpi::world().unwrap().deadline(Duration::from_secs(30)).threads_per_rank(1);
    let (rank, at_fault) = (world.rank(), world.rank() + 1 == world.size());
    println!("rank {rank} plays its part");
    let outcome = world.run(|comm| {
        meet(&comm, 0)?;
        if at_fault {
            end();
            return if name == "an error" { Err(Error::Scale(f32::NAN)) } else { Ok(()) };
        }
        meet(&comm, 1)
    });
    match outcome {
        // The test's own exit, with status 0, is what a program does that swallows its errors.
        Err(error) => println!("rank {rank} heard: {error}"),
        Ok(()) => println!("rank {rank} ended well"),
    }
}

fn kill() {
    let me = std::process::id().to_string();
    std::process::Command::new("kill").args(["-9", &me]).status().unwrap();
}

/// An exchange of nothing.
fn meet(comm: &MpiComm, call: usize) -> attn::Result<()> {
    let signature: Signature = suite::signature("ends", call);
    suite::scoped(comm, |scope| comm.exchange(scope, &signature, &mut []))
}

/// Runs it, and checks what all of them have in common.
fn run(part: &'static str) -> Outcome {
    check(Job::new(3, part))
}

fn check(job: Job) -> Outcome {
    let job = job.run();
    assert_eq!(job.count("plays its part"), 3, "{job}");
    // A job in which a rank has failed must not look well, whatever its processes do with their errors.
    assert!(!job.succeeded, "{job}");
    assert!(job.took < Duration::from_secs(12), "{job}");
    job
}

/// That both survivors have said what they heard about the rank at fault.
fn both_heard(job: &Outcome, what: &str) {
    for rank in 0..2 {
        assert_eq!(job.count(&format!("rank {rank} heard: {what}")), 1, "{job}");
    }
}

#[test]
fn an_error_is_heard_by_all_and_ends_the_job() {
    let job = run("an error");
    both_heard(&job, "rank 2 failed: softmax scale NaN");
    assert_eq!(job.count("rank 2 heard: softmax scale NaN"), 1, "{job}");
}

#[test]
fn a_panic_is_heard_by_all_and_ends_the_job() {
    both_heard(&run("a panic"), "rank 2 panicked: on purpose");
}

#[test]
fn a_rank_that_exits_is_named() {
    both_heard(&run("an exit"), "rank 2 is lost, and exchange");
}

#[test]
fn a_rank_that_ends_well_but_early_is_named() {
    both_heard(&run("a rank that ends well"), "rank 2 has ended, but exchange");
}

#[test]
fn a_rank_that_is_killed_is_named() {
    // By the others, or by whoever has ended them at once.
    let job = check(Job::naming(3, "a kill"));
    let heard = (0..2).all(|rank| job.count(&format!("rank {rank} heard: rank 2")) == 1);
    let told = job.count("process rank 2 with PID") + job.count("rank 2 ended with exit code 137");
    assert!(heard || told > 0, "{job}");
}
