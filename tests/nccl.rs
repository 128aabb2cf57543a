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

/// What is recorded in graphs, by every rank.
mod graphs {
    use attn::cuda::{self, Cuda, GpuComm};
    use attn::prelude::*;
    use half::bf16;

    use super::*;
    use crate::support::Random;

    #[parallel_attention(strategy = ["ulysses", "ring"], backend = "flash", mask = "causal")]
    struct Causal;

    fn random(seed: u64) -> Tensor<bf16> {
        let mut random = Random(seed);
        Tensor::from_fn([1, 128, 4, 64], |_| bf16::from_f32(random.normal())).unwrap()
    }

    /// Calls are recorded once on each rank, and replayed with other numbers in the same tensors.
    #[test]
    fn collectives_are_replayed() {
        for strategy in ["ulysses", "ring"] {
            crate::gpus::run::<Gpus, _>(2, |comm: GpuComm<Cuda>| {
                let (queue, rank) = (comm.queue()?, comm.rank() as u64);
                let mut x = cuda::to_device(&queue, &random(1 + rank))?;
                let mut out = Tensor::<bf16, Cuda>::zeros(&queue, x.shape())?;
                let metadata = AttentionMetadata::default();
                let config = ParallelConfig::strategy(strategy);
                let mut session = Session::<Causal, _, bf16>::open_with(comm, &config)?;
                for _ in 0..2 {
                    session.attend_into(&x, &x, &x, &metadata, Outputs::new(&mut out))?;
                }
                <Cuda as attn::Device>::synchronize(&queue)?;
                let (graph, ()) =
                    queue.capture(|| session.attend_into(&x, &x, &x, &metadata, Outputs::new(&mut out)))?;
                cuda::upload(&queue, &random(11 + rank), &mut x)?;
                // SAFETY: session and tensors live, and nobody else uses them.
                unsafe { graph.launch() }?;
                let replayed = cuda::to_host(&queue, &out)?;
                session.attend_into(&x, &x, &x, &metadata, Outputs::new(&mut out))?;
                assert_eq!(replayed, cuda::to_host(&queue, &out)?, "{strategy}");
                Ok(())
            });
        }
    }
}

/// How fast it is, printed.
mod figures {
    use std::time::Instant;

    use attn::cuda::{Cuda, GpuComm};
    use attn::device::Arena;
    use attn::prelude::*;
    use attn::{Device, ExchangePlan, KeyValue, Transfer};

    use super::*;
    use crate::gpus::moves::nth;

    /// How often each is measured.
    const TIMES: usize = 20;

    fn report(what: &str, ranks: usize, bytes: usize, seconds: f64) {
        let line = format!(
            "over NCCL, {ranks} ranks on this machine's GPUs, {what}: {:.2} ms, {:.1} GB/s sent by each rank\n",
            seconds * 1e3,
            bytes as f64 / seconds / 1e9
        );
        let _ = std::io::stdout().write_all(line.as_bytes());
    }

    /// 64 MiB to each rank, in place on both sides.
    #[test]
    fn an_exchange() {
        for ranks in [2, 4] {
            let times = crate::gpus::run::<Gpus, _>(ranks, |comm: GpuComm<Cuda>| {
                let (queue, rows) = (comm.queue()?, 1 << 14);
                let source = Tensor::<f32, Cuda>::zeros(&queue, [1, ranks * rows, 8, 128])?;
                let mut target = Tensor::<f32, Cuda>::zeros(&queue, [1, ranks * rows, 8, 128])?;
                let mut plan = ExchangePlan::default();
                for peer in 0..ranks {
                    plan.send(peer, [0, peer * rows, 0, 0], [1, rows, 8, 128]);
                    plan.receive(peer, [0, peer * rows, 0, 0], [1, rows, 8, 128]);
                }
                let mut transfers = [Transfer::new(&plan, source.view(), target.view_mut())?];
                let mut arena = Arena::default();
                comm.exchange(arena.open(&queue)?, &nth(0, 0), &mut transfers)?;
                Cuda::synchronize(&queue)?;
                let began = Instant::now();
                for call in 0..TIMES {
                    comm.exchange(arena.open(&queue)?, &nth(1 + call as u64, 0), &mut transfers)?;
                }
                Cuda::synchronize(&queue)?;
                Ok(began.elapsed().as_secs_f64() / TIMES as f64)
            });
            if let Some(times) = times {
                let slowest = times.into_iter().fold(0.0, f64::max);
                report("an exchange of 64 MiB with each", ranks, (ranks - 1) * (64 << 20), slowest);
            }
        }
    }

    /// Blocks of 64 MiB, nothing computed on them.
    #[test]
    fn a_ring() {
        for ranks in [2, 4] {
            let times = crate::gpus::run::<Gpus, _>(ranks, |comm: GpuComm<Cuda>| {
                let queue = comm.queue()?;
                let block = Tensor::<f32, Cuda>::zeros(&queue, [1, 1 << 13, 8, 128])?;
                let block = KeyValue { key: block.view(), value: block.view() };
                let lengths = vec![1 << 13; ranks];
                let mut arena = Arena::default();
                let mut turn =
                    |call| comm.rotate(arena.open(&queue)?, &nth(call, 0), &lengths, block, |_, _| Ok(()));
                turn(0)?;
                Cuda::synchronize(&queue)?;
                let began = Instant::now();
                for call in 0..TIMES {
                    turn(1 + call as u64)?;
                }
                Cuda::synchronize(&queue)?;
                Ok(began.elapsed().as_secs_f64() / TIMES as f64)
            });
            if let Some(times) = times {
                let slowest = times.into_iter().fold(0.0, f64::max);
                report("a ring of blocks of 64 MiB", ranks, (ranks - 1) * (64 << 20), slowest);
            }
        }
    }
}
