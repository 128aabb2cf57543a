//! Ranks that `mpirun` starts. Each test starts this very program under the `mpirun` of the MPI that it was linked with, and
//! tells it by a variable of the environment which part to play (`ranks.rs`).
//!
//! `ATTN_MPIRUN` names another `mpirun`.

#[path = "../suite/mod.rs"]
mod suite;
#[path = "../support/mod.rs"]
mod support;

mod ends;
mod hosts;
mod launcher;
mod mpirun;
mod ranks;

use std::time::Duration;

use launcher::Job;

/// Not a test by itself: what the others start. Without a part it has nothing to do.
#[test]
fn rank() {
    ranks::play();
}

#[test]
fn two_ranks_obey_every_law() {
    Job::new(2, "laws").run().succeeds();
}

#[test]
fn three_ranks_obey_every_law() {
    Job::new(3, "laws").run().succeeds();
}

#[test]
fn four_ranks_obey_every_law() {
    Job::new(4, "laws").run().succeeds();
}

#[test]
fn eight_ranks_obey_every_law() {
    Job::new(8, "laws").run().succeeds();
}

#[test]
fn two_ranks_move_more_than_an_int_can_count() {
    if suite::memory_allows(5 << 30) {
        // By MPI itself.
        Job::new(2, "large").with("ATTN_SHARED_MEMORY", "0").run().succeeds();
    } else {
        println!("not run: it takes 5 GiB of memory");
    }
}

#[test]
fn a_program_without_mpirun_is_a_world_of_one() {
    Job::alone("laws").run().succeeds();
}

#[test]
fn every_rank_hears_of_a_fault() {
    for ranks in [2, 3] {
        let job = Job::new(ranks, "faults").run();
        job.succeeds();
        assert_eq!(job.count("all faults were heard of"), ranks, "{job}");
    }
}

#[test]
fn a_program_that_started_mpi_keeps_it() {
    let job = Job::new(2, "host").run();
    job.succeeds();
    assert_eq!(job.count("worlds came and went"), 2, "{job}");
}

#[test]
fn another_mpis_mpirun_is_found_out() {
    let Some(other) = mpirun::mpirun_of_another() else {
        println!("not run: no other MPI is installed here");
        return;
    };
    let job = Job::new(2, "laws").under(other).run();
    assert!(!job.succeeded, "{job}");
    assert!(job.count("that mpirun belongs to another MPI") > 0, "{job}");
    assert!(job.took < Duration::from_secs(10), "{job}");
}
