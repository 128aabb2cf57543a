//! Where a process stands among its peers, as the program that started it says in the environment.

mod launcher;
mod slurm;
#[cfg(test)]
mod tests;
mod token;
mod variables;

use std::ffi::OsString;
use std::time::Duration;

pub use token::Token;

use self::launcher::Launcher;
use self::variables::{Number, Variables};
use crate::error::{Error, Result};

/// More ranks than this are a mistake: each is a process that holds a connection to every other.
const MAX_RANKS: usize = 4096;

/// A process's place among its peers.
///
/// [`from_env`](Self::from_env) reads it from what launchers set. The first of these whose rank and number of ranks are
/// both there says it:
///
/// | launcher | rank, ranks | on this machine | where rank 0 is |
/// |---|---|---|---|
/// | `attn launch`, or by hand | `ATTN_RANK`, `ATTN_WORLD_SIZE` | `ATTN_LOCAL_RANK`, `ATTN_LOCAL_WORLD_SIZE` | `ATTN_MASTER_ADDR`, `ATTN_MASTER_PORT` |
/// | torchrun | `RANK`, `WORLD_SIZE` | `LOCAL_RANK`, `LOCAL_WORLD_SIZE` | `MASTER_ADDR`, one port above `MASTER_PORT`, which is torch's own |
/// | OpenMPI's mpirun | `OMPI_COMM_WORLD_RANK`, `_SIZE` | `OMPI_COMM_WORLD_LOCAL_RANK`, `_LOCAL_SIZE` | |
/// | MPICH's mpiexec | `PMI_RANK`, `PMI_SIZE` | `MPI_LOCALRANKID`, `MPI_LOCALNRANKS` | |
/// | Slurm's srun | `SLURM_PROCID`, `SLURM_NTASKS` | `SLURM_LOCALID`, `SLURM_TASKS_PER_NODE` | the first host of `SLURM_STEP_NODELIST` |
///
/// So mpirun inside a Slurm allocation is mpirun. A variable `ATTN_..` goes before that of another launcher:
/// `mpirun -x ATTN_MASTER_ADDR=10.0.0.1 ..` says what mpirun does not. `ATTN_TOKEN` and `ATTN_DEADLINE` (seconds) are read
/// under every launcher.
///
/// What is not said:
/// - Without the two variables about this machine, all ranks count as being on it.
/// - Ranks that are all on one machine meet at 127.0.0.1. If they are on several, somebody must say where rank 0 is.
/// - The port is 29500. Under Slurm and OpenMPI it is derived from the job's number, so that two jobs on one machine do not
///   meet.
/// - The token is derived from `TORCHELASTIC_RUN_ID`, Slurm's job and step or OpenMPI's job. That keeps jobs apart; it does
///   not keep out who can guess it.
///
/// One process that torchrun, mpirun or srun started is a world of one rank, which meets nobody. The script of `sbatch` and
/// the shell of `salloc` are not ranks, although Slurm sets some of a rank's variables there: who forgets `srun` in them gets
/// an error, not a rank 0 that waits for others.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Place {
    /// This process's number, from 0.
    pub rank: usize,
    /// How many processes there are.
    pub size: usize,
    /// Its number among those of this machine: which GPU is its own.
    pub local_rank: usize,
    /// How many are on this machine.
    pub local_size: usize,
    /// The name or address of rank 0's machine.
    pub master_addr: Option<String>,
    /// The port where rank 0 listens.
    pub master_port: Option<u16>,
    /// What all ranks of this world know.
    pub token: Option<Token>,
    /// How long a collective waits for the last rank.
    pub deadline: Option<Duration>,
}

impl Place {
    /// The port where rank 0 listens if nobody says which.
    pub const PORT: u16 = 29500;

    /// A place among ranks of this machine, for a program that knows it from elsewhere. The fields can be changed.
    ///
    /// # Errors
    /// If there is no such rank among so many.
    pub fn new(rank: usize, size: usize) -> Result<Self> {
        let place = Self {
            rank,
            size,
            local_rank: rank,
            local_size: size,
            master_addr: None,
            master_port: None,
            token: None,
            deadline: None,
        };
        place.check()?;
        Ok(place)
    }

    /// What this process's environment says.
    ///
    /// # Errors
    /// [`Error::Environment`], which names the variable, the launcher whose it is, what it says and what to do: if no launcher
    /// has set its variables, if one has set half of them, or if a value makes no sense.
    pub fn from_env() -> Result<Self> {
        Self::from(|name| std::env::var_os(name))
    }

    /// What an environment says, given by a function from names to values.
    ///
    /// # Errors
    /// As [`from_env`](Self::from_env).
    pub fn from(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let variables = Variables::new(&lookup);
        let launcher = Launcher::choose(&variables)?;
        let own = &launcher::ATTN;
        let either = |own_name, name| match variables.number(own, own_name)? {
            Some(number) => Ok(Some(number)),
            None => variables.number(launcher, name),
        };
        let (rank, size) = (either(own.rank, launcher.rank)?, either(own.size, launcher.size)?);
        let (Some(rank), Some(size)) = (rank, size) else {
            return Err(variables::nobody());
        };
        size.at_least(1)?;
        size.at_most(MAX_RANKS)?;
        rank.below(&size)?;
        let (local_rank, local_size) = local(&variables, launcher, &rank, &size)?;
        let port = variables.number(own, "ATTN_MASTER_PORT")?;
        let master_port = match port {
            Some(port) => Some(port.port(0)?),
            None => launcher.port(&variables)?,
        };
        let master_addr = match variables.text(own, "ATTN_MASTER_ADDR")? {
            Some(address) => Some(address),
            None => launcher.address(&variables)?,
        };
        let token = match variables.text(own, "ATTN_TOKEN")? {
            Some(token) => Some(Token::new(&token)?),
            None => launcher.job(&variables)?.map(|job| Token::derived(&job)),
        };
        Ok(Self {
            rank: rank.value,
            size: size.value,
            local_rank,
            local_size,
            master_addr,
            master_port,
            token,
            deadline: variables.seconds(own, "ATTN_DEADLINE")?,
        })
    }

    /// The deadline that the environment sets, for worlds whose places come from elsewhere.
    ///
    /// # Errors
    /// [`Error::Environment`] if it makes no sense.
    #[cfg(feature = "mpi")]
    pub(crate) fn deadline_from_env() -> Result<Option<Duration>> {
        Variables::new(&|name| std::env::var_os(name)).seconds(&launcher::ATTN, "ATTN_DEADLINE")
    }

    /// That the numbers fit each other, which a program may have changed.
    pub(crate) fn check(&self) -> Result<()> {
        let Self { rank, size, local_rank, local_size, .. } = *self;
        if size == 0 {
            return Err(Error::ZeroSize { what: "the number of ranks" });
        }
        if size > MAX_RANKS {
            return Err(Error::Configuration(format!(
                "{size} ranks are more than the {MAX_RANKS} of one world"
            )));
        }
        if rank >= size || local_rank >= local_size || local_size > size {
            return Err(Error::Configuration(format!(
                "there is no rank {rank} of {size}, number {local_rank} of {local_size} on its machine: ranks count from 0, \
                 and no machine has more than all"
            )));
        }
        Ok(())
    }

    /// Whether ranks are on several machines.
    pub(crate) const fn several_machines(&self) -> bool {
        self.local_size < self.size
    }

    /// The name or address and the port where rank 0 listens.
    ///
    /// # Errors
    /// If ranks are on several machines and nobody says which is rank 0's.
    pub(crate) fn meeting(&self) -> Result<(String, u16)> {
        let port = self.master_port.unwrap_or(Self::PORT);
        match &self.master_addr {
            Some(address) => Ok((address.clone(), port)),
            None if self.several_machines() => Err(Error::Environment(format!(
                "`ATTN_MASTER_ADDR` is missing: {} of {} ranks are on this machine, and nothing says where rank 0 is. Set it to \
                 the name or address of rank 0's machine, on every rank (`mpirun -x ATTN_MASTER_ADDR=..` hands it on)",
                self.local_size, self.size
            ))),
            None => Ok(("127.0.0.1".into(), port)),
        }
    }
}

/// This process's number on its machine, and how many are there.
fn local(
    variables: &Variables<'_>,
    launcher: &'static Launcher,
    rank: &Number,
    size: &Number,
) -> Result<(usize, usize)> {
    let own = &launcher::ATTN;
    let own_rank = variables.number(own, own.local_rank)?;
    let own_size = variables.number(own, own.local_size)?;
    let local_rank = match own_rank {
        Some(number) => Some(number),
        None => variables.number(launcher, launcher.local_rank)?,
    };
    let local_size = match own_size {
        Some(number) => Some(number),
        None => launcher.local_size(variables, size)?,
    };
    match (local_rank, local_size) {
        (Some(local_rank), Some(local_size)) => {
            local_size.at_least(1)?;
            local_size.at_most_of(size)?;
            local_rank.below(&local_size)?;
            Ok((local_rank.value, local_size.value))
        }
        (None, None) => Ok((rank.value, size.value)),
        (Some(there), None) => Err(launcher.half(there.variable, launcher.local_size)),
        (None, Some(there)) => Err(launcher.half(there.variable, launcher.local_rank)),
    }
}
