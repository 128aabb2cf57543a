//! What `--comm` names.

#[cfg(feature = "nccl")]
use attn::comm::Rendezvous;

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
    let deadline = args.deadline.or_else(|| attn::Place::from_env().ok()?.deadline);
    match (args.comm, args.device) {
        (CommName::Threads, DeviceName::Cpu) => body.on_cpu(&threads),
        #[cfg(feature = "cuda")]
        (CommName::Threads, DeviceName::Cuda) => body.on_cuda(&threads),
        (CommName::Tcp, DeviceName::Cpu) => started(args)?
            .run(|comm| Processes::live((comm.clone(), comm), deadline, |ranks| body.on_cpu(ranks)))?,
        #[cfg(feature = "nccl")]
        (CommName::Nccl, DeviceName::Cuda) => {
            let world = started(args)?;
            let gpu = gpu_of(world.local_rank())?;
            let mut options = attn::cuda::GpuOptions::from_env()?;
            if let Some(deadline) = args.deadline {
                options = options.deadline(deadline);
            }
            world.run(|host| {
                // A group of its own: what the GPUs' watchdog asks is not in the way of what hosts say.
                let ours = host.subgroup(0, host.me())?;
                let queue = attn::cuda::CudaQueue::new(gpu)?;
                let comm = attn::cuda::GpuComm::<attn::cuda::Cuda>::open_with(ours, queue, options)?;
                Processes::live((comm, host), deadline, |ranks| body.on_cuda(ranks))
            })?
        }
        #[cfg(feature = "mpi")]
        (CommName::Mpi, DeviceName::Cpu) => {
            let mut world = attn::comm::mpi::world()?;
            not_alone_by_mistake(world.size())?;
            if let Some(deadline) = args.deadline {
                world = world.deadline(deadline);
            }
            if let Some(threads) = args.threads {
                world = world.threads_per_rank(threads);
            }
            world.run(|comm| Processes::live((comm.clone(), comm), deadline, |ranks| body.on_cpu(ranks)))?
        }
        (comm, device) => Err(Failure::Internal(format!(
            "`--comm {}` on {} is not provided for",
            comm.name(),
            device.name()
        ))),
    }
}

/// The world that a launcher made, with what the command line says about it.
fn started(args: &RunArgs) -> Result<attn::World<attn::comm::Processes>, Failure> {
    let mut world = attn::World::from_env()?;
    if let Some(deadline) = args.deadline {
        world = world.deadline(deadline);
    }
    if let Some(threads) = args.threads {
        world = world.threads_per_rank(threads);
    }
    Ok(world)
}

/// That ranks which another launcher has started do not each take themselves for the only one.
#[cfg(feature = "mpi")]
fn not_alone_by_mistake(size: usize) -> Result<(), Failure> {
    match attn::Place::from_env() {
        Ok(place) if size == 1 && place.size > 1 => Err(Failure::Usage(format!(
            "{} ranks were started, but MPI sees each of them alone: start them with its own mpirun (under Slurm, with \
             `srun --mpi=` and what this MPI was built for), or use `--comm tcp`",
            place.size
        ))),
        _ => Ok(()),
    }
}

/// The GPU of a rank: of those that the kernels are for, the one of its number on this machine. A launcher may show each
/// rank its own alone, which then has the number 0.
#[cfg(feature = "nccl")]
fn gpu_of(local_rank: usize) -> Result<usize, Failure> {
    let mut supported = attn::cuda::devices()?;
    supported.retain(|device| device.supported);
    match supported.len() {
        0 => Err(Failure::System(String::from(
            "there is no GPU of compute capability 8.0 or later here, which the kernels are for",
        ))),
        count => Ok(supported[local_rank % count].ordinal),
    }
}
