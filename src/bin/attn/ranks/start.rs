//! What `--comm` names.

use super::Ranks;
use super::processes::Processes;
use super::threads::Threads;
use crate::cli::{CommName, DeviceName, RunArgs};
use crate::failure::Failure;

/// Something to be done on ranks, whoever carries them.
pub(crate) trait OnRanks {
    /// On the host.
    ///
    /// # Errors
    /// Its own.
    fn on_cpu<R: Ranks<attn::Cpu>>(&self, ranks: &R) -> Result<(), Failure>;

    /// On a GPU.
    ///
    /// # Errors
    /// Its own.
    #[cfg(feature = "cuda")]
    fn on_cuda<R: Ranks<attn::cuda::Cuda>>(&self, ranks: &R) -> Result<(), Failure>;
}

/// Checks that what carries the ranks is in this build, and goes with the rest.
///
/// # Errors
/// If not.
pub(crate) fn check(args: &RunArgs) -> Result<(), Failure> {
    let (comm, device) = (args.comm, args.device);
    let refused = match comm {
        CommName::Threads => return Ok(()),
        CommName::Mpi if !cfg!(feature = "mpi") => String::from(
            "this build has no MPI: build with `--features mpi` (needs an MPI and its compiler wrapper `mpicc`)",
        ),
        CommName::Nccl if !cfg!(feature = "nccl") => String::from(
            "this build has no NCCL: build with `--features nccl` (needs what `cuda` needs; NCCL is looked for when the \
             program runs)",
        ),
        CommName::Nccl if device != DeviceName::Cuda => {
            String::from("`--comm nccl` moves the memory of GPUs: say `--device cuda` too")
        }
        CommName::Tcp | CommName::Mpi if device == DeviceName::Cuda => format!(
            "`--comm {}` moves the host's memory: with `--device cuda` use `--comm nccl`, or `threads` on one GPU",
            comm.name()
        ),
        _ if args.input.is_none() && device == DeviceName::Cpu => format!(
            "`--comm {}` is for tensors from a file: give one with `--input` (the bundled model's ranks are threads)",
            comm.name()
        ),
        _ => return Ok(()),
    };
    Err(Failure::Usage(refused))
}

/// Does it on ranks as the command line asks for them: threads that a run starts, or, if another program has started this
/// process as one of several ranks, on the world of those.
///
/// # Errors
/// Its own; if the processes do not find each other.
pub(crate) fn start(args: &RunArgs, body: &impl OnRanks) -> Result<(), Failure> {
    check(args)?;
    let threads = Threads { deadline: args.deadline };
    match (args.comm, args.device) {
        (CommName::Threads, DeviceName::Cpu) => body.on_cpu(&threads),
        #[cfg(feature = "cuda")]
        (CommName::Threads, DeviceName::Cuda) => body.on_cuda(&threads),
        (CommName::Tcp, _) => {
            let mut world = attn::World::from_env()?;
            if let Some(deadline) = args.deadline {
                world = world.deadline(deadline);
            }
            if let Some(threads) = args.threads {
                world = world.threads_per_rank(threads);
            }
            world.run(|comm| Processes::live(comm, |ranks| body.on_cpu(ranks)))?
        }
        #[cfg(feature = "mpi")]
        (CommName::Mpi, _) => {
            let mut world = attn::comm::mpi::world()?;
            if let Some(deadline) = args.deadline {
                world = world.deadline(deadline);
            }
            if let Some(threads) = args.threads {
                world = world.threads_per_rank(threads);
            }
            world.run(|comm| Processes::live(comm, |ranks| body.on_cpu(ranks)))?
        }
        (comm, device) => Err(Failure::Internal(format!(
            "`--comm {}` on {} is not provided for",
            comm.name(),
            device.name()
        ))),
    }
}
