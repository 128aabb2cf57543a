//! The programs that start ranks, and the variables by which they tell each its place.

use super::slurm;
use super::variables::{Number, Variables, nobody};
use crate::comm::call::hash;
use crate::error::{Error, Result};

/// A program that starts ranks.
#[derive(Debug)]
pub(super) struct Launcher {
    /// As messages call it.
    name: &'static str,
    pub(super) rank: &'static str,
    pub(super) size: &'static str,
    pub(super) local_rank: &'static str,
    pub(super) local_size: &'static str,
    /// The name or address of rank 0's machine, and a port there.
    address: &'static str,
    port: &'static str,
    /// How many ports above that one is free for us.
    above: usize,
    /// What tells one job from another, the same on all of its ranks.
    job: &'static [&'static str],
    /// How to start a program with it.
    usage: &'static str,
}

/// Stands for a variable that a launcher does not have: a name that none can have.
const NONE: &str = "";

/// `attn launch`, or whoever sets these by hand.
pub(super) static ATTN: Launcher = Launcher {
    name: "`attn launch`, or set by hand",
    rank: "ATTN_RANK",
    size: "ATTN_WORLD_SIZE",
    local_rank: "ATTN_LOCAL_RANK",
    local_size: "ATTN_LOCAL_WORLD_SIZE",
    address: NONE,
    port: NONE,
    above: 0,
    job: &[],
    usage: "`attn launch -n 4 -- PROGRAM`",
};

static TORCHRUN: Launcher = Launcher {
    name: "torchrun",
    rank: "RANK",
    size: "WORLD_SIZE",
    local_rank: "LOCAL_RANK",
    local_size: "LOCAL_WORLD_SIZE",
    address: "MASTER_ADDR",
    port: "MASTER_PORT",
    // Torch's own store listens there.
    above: 1,
    job: &["TORCHELASTIC_RUN_ID"],
    usage: "`torchrun --nproc-per-node 4 --no-python PROGRAM`",
};

static OPEN_MPI: Launcher = Launcher {
    name: "OpenMPI's mpirun",
    rank: "OMPI_COMM_WORLD_RANK",
    size: "OMPI_COMM_WORLD_SIZE",
    local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
    local_size: "OMPI_COMM_WORLD_LOCAL_SIZE",
    address: NONE,
    port: NONE,
    above: 0,
    job: &["PMIX_NAMESPACE"],
    usage: "`mpirun -n 4 PROGRAM`",
};

static MPICH: Launcher = Launcher {
    name: "MPICH's mpiexec",
    rank: "PMI_RANK",
    size: "PMI_SIZE",
    local_rank: "MPI_LOCALRANKID",
    local_size: "MPI_LOCALNRANKS",
    address: NONE,
    port: NONE,
    above: 0,
    job: &[],
    usage: "`mpiexec -n 4 PROGRAM`",
};

pub(super) static SLURM: Launcher = Launcher {
    name: "Slurm",
    rank: "SLURM_PROCID",
    size: "SLURM_NTASKS",
    local_rank: "SLURM_LOCALID",
    local_size: "SLURM_TASKS_PER_NODE",
    address: NONE,
    port: NONE,
    above: 0,
    job: &["SLURM_JOB_ID", "SLURM_STEP_ID"],
    usage: "`srun -n 4 PROGRAM`",
};

/// In the order in which they are asked.
static LAUNCHERS: [&Launcher; 5] = [&ATTN, &TORCHRUN, &OPEN_MPI, &MPICH, &SLURM];

impl Launcher {
    /// The first one that says both the rank and the number of ranks.
    pub(super) fn choose(variables: &Variables<'_>) -> Result<&'static Self> {
        let full = |launcher: &Self| variables.has(launcher.rank) && variables.has(launcher.size);
        let chosen = LAUNCHERS.into_iter().find(|launcher| full(launcher));
        let chosen = match chosen {
            // With `--mpi=pmi2`, srun speaks MPICH's language too, but says less in it.
            Some(launcher)
                if launcher.rank == MPICH.rank && !variables.has(MPICH.local_rank) && full(&SLURM) =>
            {
                Some(&SLURM)
            }
            chosen => chosen,
        };
        if let Some(launcher) = chosen {
            if launcher.rank == SLURM.rank {
                slurm::check_is_a_rank(variables)?;
            }
            return Ok(launcher);
        }
        for launcher in LAUNCHERS {
            let (rank, size) = (launcher.rank, launcher.size);
            match (variables.has(rank), variables.has(size)) {
                (true, false) => return Err(launcher.half(rank, size)),
                (false, true) => return Err(launcher.half(size, rank)),
                _ => {}
            }
        }
        Err(nobody())
    }

    /// How many ranks are on this machine.
    pub(super) fn local_size(
        &'static self,
        variables: &Variables<'_>,
        size: &Number,
    ) -> Result<Option<Number>> {
        if self.rank == SLURM.rank {
            return slurm::local_size(variables, size);
        }
        variables.number(self, self.local_size)
    }

    /// The name or address of rank 0's machine.
    pub(super) fn address(&'static self, variables: &Variables<'_>) -> Result<Option<String>> {
        if self.rank == SLURM.rank {
            return slurm::first_host(variables);
        }
        variables.text(self, self.address)
    }

    /// The port where rank 0 listens.
    pub(super) fn port(&'static self, variables: &Variables<'_>) -> Result<Option<u16>> {
        if let Some(port) = variables.number(self, self.port)? {
            return port.port(self.above).map(Some);
        }
        // A port of torchrun's is only missing where the variables were set by hand.
        if self.port != NONE {
            return Ok(None);
        }
        Ok(self.job(variables)?.map(|job| port_of(&job)))
    }

    /// What tells this job from another one.
    pub(super) fn job(&'static self, variables: &Variables<'_>) -> Result<Option<String>> {
        let mut job = String::new();
        for variable in self.job {
            if let Some(value) = variables.text(self, variable)? {
                job = format!("{job}{variable}={value} ");
            }
        }
        Ok(Some(job).filter(|job| !job.is_empty()))
    }

    /// A variable is there, and another one that belongs to it is not.
    pub(super) fn half(&self, there: &str, missing: &str) -> Error {
        let Self { name, usage, .. } = self;
        let more = if [SLURM.rank, SLURM.size].contains(&missing) { slurm::NOT_A_RANK } else { "" };
        Error::Environment(format!(
            "`{missing}` is missing: `{there}` is set ({name}), and the two come together{more}. Start every rank with {usage}, \
             set `{missing}` too, or unset `{there}`"
        ))
    }

    /// A variable that makes no sense.
    pub(super) fn wrong(&self, variable: &str, value: &str, why: &str) -> Error {
        let Self { name, usage, .. } = self;
        // What was meant as a number or a name is short.
        let value: String = value.chars().take(80).collect();
        Error::Environment(format!(
            "`{variable}` ({name}) is `{value}`: {why}. Start every rank with {usage}, or set `{variable}` right"
        ))
    }
}

/// A port for a job: one of 10,000 below those that systems hand out by themselves.
fn port_of(job: &str) -> u16 {
    20_000 + (hash(&job) % 10_000) as u16
}
