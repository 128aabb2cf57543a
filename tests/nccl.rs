//! The communicator of GPUs over NCCL: ranks that are threads, each with a GPU, or several with one.
//!
//! Where there is no GPU, the tests say so and pass, unless ATTN_REQUIRE_GPU is 1. Several ranks on one GPU need NCCL 2.30
//! or later, and in the environment NCCL_MULTI_RANK_GPU_ENABLE=1 and NCCL_MAX_CTAS=2.

#[macro_use]
mod kernels;
#[macro_use]
mod gpus;
mod suite;
mod support;

use std::io::Write;
use std::sync::OnceLock;

use attn::cuda::{self, CudaQueue, nccl};
use kernels::rig::Rig;

/// The GPUs of this machine, by turns.
struct Gpus;

impl Rig for Gpus {
    type Queue = CudaQueue;

    fn queue(rank: u64) -> Option<CudaQueue> {
        static GPUS: OnceLock<Result<usize, String>> = OnceLock::new();
        let gpus = GPUS.get_or_init(|| {
            let gpus = match cuda::devices() {
                Ok(devices) if devices.iter().all(|device| device.supported) => Ok(devices.len()),
                Ok(devices) => Err(format!("no kernels for {devices:?}")),
                Err(error) => Err(error.to_string()),
            };
            let gpus = gpus.and_then(|gpus| nccl::probe().map(|_| gpus).map_err(|error| error.to_string()));
            let required = std::env::var("ATTN_REQUIRE_GPU").is_ok_and(|value| value == "1");
            if let Err(lacking) = &gpus {
                assert!(!required, "ATTN_REQUIRE_GPU is 1, but {lacking}");
                // Not by a macro, whose output the test harness keeps to itself.
                let _ = writeln!(std::io::stderr(), "SKIPPED all that needs a GPU and NCCL: {lacking}");
            }
            gpus
        });
        let gpus = gpus.as_ref().ok()?;
        Some(CudaQueue::new(rank as usize % gpus).unwrap())
    }
}

gpu_comm_tests!(Gpus);
