//! The communicator of GPUs among simulated ones, whose NCCL is kernels/sim/nccl: ranks that are threads, messages that
//! are over when both of their ends have come, and every fault that can be planted.

#[macro_use]
mod kernels;
#[macro_use]
mod gpus;
mod suite;
mod support;

use attn::cuda::nccl::{self, sim::Fault};
use attn::cuda::{GpuComm, SimQueue, Simulated};
use attn::prelude::*;
use gpus::failures::{options, turn};
use kernels::rig::Rig;

/// The simulated GPU.
struct Simulator;

impl Rig for Simulator {
    type Queue = SimQueue;

    fn queue(seed: u64) -> Option<SimQueue> {
        let base = std::env::var("ATTN_SIM_SEED").ok().map_or(1, |seed| seed.parse().expect("a number"));
        Some(SimQueue::seeded(seed.wrapping_add(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(base))).unwrap())
    }
}

gpu_comm_tests!(Simulator);

/// Plants a fault on one rank before its communicator is opened.
fn with_fault(
    ranks: usize,
    milliseconds: u64,
    on: usize,
    fault: Fault,
    at: usize,
    body: fn(GpuComm<Simulated>) -> attn::Result<()>,
) -> Vec<attn::Result<()>> {
    let queues: Vec<SimQueue> = (0..ranks).map_while(|rank| Simulator::queue(rank as u64)).collect();
    let hosts = World::threads(ranks).threads_per_rank(1).communicators().unwrap();
    std::thread::scope(|scope| {
        let threads: Vec<_> = hosts
            .into_iter()
            .zip(queues)
            .map(|(host, queue)| {
                scope.spawn(move || {
                    if host.rank() == on {
                        nccl::sim::plant(fault, at)?;
                    }
                    body(GpuComm::open_with(Box::new(host), queue, options(milliseconds))?)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn three_turns(comm: GpuComm<Simulated>) -> attn::Result<()> {
    (0..3).try_for_each(|call| turn(&comm, call))
}

#[test]
fn a_lost_connection_is_told_as_nccl_tells_it() {
    for outcome in with_fault(3, 30_000, 1, Fault::AsyncError, 3, three_turns) {
        let said = outcome.unwrap_err().to_string();
        assert!(said.contains("NCCL reported an error from ncclCommGetAsyncError"), "{said}");
        assert!(said.contains("remote process exited or there was a network error (code 6)"), "{said}");
        assert!(said.contains("NCCL_DEBUG=WARN"), "{said}");
    }
}

#[test]
fn a_call_that_fails_is_named() {
    for (rank, outcome) in with_fault(3, 30_000, 2, Fault::Call, 4, three_turns).into_iter().enumerate() {
        let said = outcome.unwrap_err().to_string();
        assert!(
            said.contains("NCCL reported an error from ncclGroupEnd: unhandled system error"),
            "{rank}: {said}"
        );
        assert!(said.contains("planted: the call fails"), "{rank}: {said}");
    }
}

/// All ranks have come, but what they put on their streams does not end.
#[test]
fn a_stream_that_hangs_passes_the_deadline() {
    for outcome in with_fault(2, 500, 0, Fault::Hang, 2, three_turns) {
        let said = outcome.unwrap_err().to_string();
        assert!(said.contains("passed its deadline of 0.5 s, though all ranks had come to it"), "{said}");
        assert!(said.contains("collective number 2"), "{said}");
    }
}

#[test]
fn a_communicator_that_is_never_made_passes_the_deadline() {
    for outcome in with_fault(2, 500, 0, Fault::Absent, 0, three_turns) {
        let said = outcome.unwrap_err().to_string();
        assert!(said.contains("ncclCommInitRankConfig") && said.contains("deadline"), "{said}");
    }
}

/// A process of its own is told where NCCL is; here nowhere.
#[test]
fn a_program_without_nccl_says_what_was_tried() {
    // A process of its own: the library is looked for once.
    let program = std::env::current_exe().unwrap();
    let said = std::process::Command::new(program)
        .args(["--exact", "probed", "--nocapture", "--include-ignored"])
        .env("ATTN_NCCL_LIBRARY", "/nonexistent/libnccl.so.2")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let expected = [
        "NCCL is not available: tried /nonexistent/libnccl.so.2: cannot open shared object file",
        "ATTN_NCCL_LIBRARY names it and nothing else was tried",
        "`pip install nvidia-nccl-cu13`",
    ];
    assert!(expected.iter().all(|part| said.contains(part)), "{said}");
}

/// Prints what is known of NCCL here; with a library that can be loaded, its version.
#[test]
fn probed() {
    match nccl::probe() {
        Ok((path, version)) => println!("{} {version}", path.display()),
        Err(error) => println!("{error}"),
    }
}

/// The stand-in is a library like NCCL's own as far as looking for it goes.
#[test]
fn a_library_that_is_named_is_loaded() {
    let program = std::env::current_exe().unwrap();
    let said = std::process::Command::new(program)
        .args(["--exact", "probed", "--nocapture"])
        .env("ATTN_NCCL_LIBRARY", env!("ATTN_NCCL_SIM_LIBRARY"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("libnccl_sim.so 2.28.0"), "{said}");
}
