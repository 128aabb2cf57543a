//! Worlds of processes in which something goes wrong: this program starts itself as each rank.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use attn::prelude::*;
use attn::{Communicator, Cpu, Error};

use super::injector::{DEADLINE, Plan};
#[cfg(feature = "mpi")]
use super::mpirun::{Kind, arguments, mpirun};
use super::rank::{RANKS, SETUPS, live};
use super::row::Row;
use super::threads::slept;
use crate::support::Setup;

/// How long a world of processes may take in all: to start, to fail, to be ended.
const LIMIT: Duration = Duration::from_secs(30);

/// Who starts the ranks.
#[derive(Clone, Debug)]
pub(crate) struct Starter {
    /// What the table calls the world: `tcp`, `MPI`.
    pub(crate) world: &'static str,
    /// The program that starts them, and what comes before the ranks' own.
    pub(crate) program: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(&'static str, &'static str)>,
}

impl Starter {
    /// Those that this build has.
    pub(crate) fn all() -> Vec<Self> {
        [Some(Self::launch()), Self::mpirun()].into_iter().flatten().collect()
    }

    /// Open MPI's `mpirun`. (MPICH's does not say which rank was killed; `tests/mpi` tries that.)
    #[cfg(feature = "mpi")]
    fn mpirun() -> Option<Self> {
        let kind = Kind::linked();
        let (arguments, environment) = arguments(kind);
        (kind == Kind::OpenMpi).then(|| Self {
            world: "MPI",
            program: mpirun().display().to_string(),
            arguments: arguments.iter().chain(&["-n", "4"]).map(|&word| word.to_owned()).collect(),
            environment: environment.to_vec(),
        })
    }

    #[cfg(not(feature = "mpi"))]
    const fn mpirun() -> Option<Self> {
        None
    }

    /// `attn launch`, over sockets.
    pub(crate) fn launch() -> Self {
        Self {
            world: "tcp",
            program: String::from(env!("CARGO_BIN_EXE_attn")),
            arguments: ["launch", "-n", "4", "--"].map(String::from).into(),
            environment: Vec::new(),
        }
    }

    /// Tries one fault.
    pub(crate) fn try_out(&self, setup: Setup, point: &str, plan: Plan) -> Row {
        let number = SETUPS.iter().position(|other| *other == setup).unwrap_or_default();
        let Plan { rank, point: at, fault } = plan;
        let this = std::env::current_exe().map(|path| path.display().to_string()).unwrap_or_default();
        let child = [
            this,
            String::from("rank"),
            String::from(self.world),
            number.to_string(),
            rank.to_string(),
            at.to_string(),
            format!("{fault:?}"),
        ];
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).args(child).envs(self.environment.iter().copied());
        let (text, ended) = run(command);
        let mut said = vec![None; RANKS];
        let mut longest = Duration::ZERO;
        for line in text.lines() {
            let Some((_, report)) = line.split_once("outcome of rank ") else { continue };
            let mut words = report.splitn(3, ' ');
            let (Some(Ok(from)), Some(Ok(seconds)), Some(what)) =
                (words.next().map(str::parse::<usize>), words.next().map(str::parse::<f64>), words.next())
            else {
                continue;
            };
            if from < RANKS {
                said[from] = Some(if what == "well" { Ok(()) } else { Err(what.to_owned()) });
            }
            if from != rank {
                longest = longest.max(Duration::from_secs_f64(seconds));
            }
        }
        let told = format!("rank {rank}");
        let starter = text.lines().find(|line| !line.contains("outcome of") && line.contains(&told));
        Row {
            world: self.world,
            strategy: setup.strategy,
            point: point.to_owned(),
            fault,
            rank,
            said,
            starter: starter.map(str::to_owned),
            took: if ended { longest.saturating_sub(slept(plan)) } else { LIMIT },
        }
    }
}

/// What a program says on both streams until it ends; whether it did.
fn run(mut command: Command) -> (String, bool) {
    let started = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return (format!("cannot run {}: {error}", command.get_program().display()), false),
    };
    let read = |stream: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = stream.map(|mut stream| stream.read_to_end(&mut bytes));
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let out = read(child.stdout.take().map(|stream| Box::new(stream) as _));
    let err = read(child.stderr.take().map(|stream| Box::new(stream) as _));
    let ended = loop {
        match child.try_wait() {
            Ok(None) if started.elapsed() < LIMIT => std::thread::sleep(Duration::from_millis(10)),
            Ok(Some(_)) => break true,
            _ => {
                let _ = child.kill();
                break false;
            }
        }
    };
    let [out, err] = [out, err].map(|thread| thread.join().unwrap_or_default());
    (out + &err, ended)
}

/// One rank of such a world: `rank WORLD STRATEGY RANK POINT FAULT`.
pub(crate) fn rank(arguments: &[String]) -> Option<()> {
    let [_, world, setup, rank, point, fault] = arguments else { return None };
    let setup = *SETUPS.get(setup.parse::<usize>().ok()?)?;
    let plan = Plan { rank: rank.parse().ok()?, point: point.parse().ok()?, fault: fault.parse().ok()? };
    let outcome = match world.as_str() {
        "tcp" => World::from_env().and_then(|world| {
            world.deadline(DEADLINE).threads_per_rank(1).run(|comm| report(comm, setup, plan))
        }),
        #[cfg(feature = "mpi")]
        "MPI" => attn::comm::mpi::world().and_then(|world| {
            world.deadline(DEADLINE).threads_per_rank(1).run(|comm| report(comm, setup, plan))
        }),
        _ => return None,
    };
    if outcome.is_err() {
        std::process::exit(1);
    }
    Some(())
}

/// Lives, and says on one line how it ended.
fn report<C: Communicator<Device = Cpu>>(comm: C, setup: Setup, plan: Plan) -> attn::Result<()> {
    let (rank, started) = (comm.rank(), Instant::now());
    let (outcome, _) = live(comm, setup, Some(plan), 2);
    let what = outcome.as_ref().map_or_else(Error::to_string, |()| String::from("well"));
    let line = format!(
        "outcome of rank {rank} {:.3} {}\n",
        started.elapsed().as_secs_f64(),
        what.replace('\n', " ")
    );
    let _ = std::io::stdout().write_all(line.as_bytes());
    outcome
}
