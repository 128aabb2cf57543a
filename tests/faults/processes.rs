//! Worlds of processes in which something goes wrong: this program starts itself as each rank.

use std::cell::Cell;
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use attn::prelude::*;
use attn::{Communicator, Cpu, Error};

use super::injector::{DEADLINE, Fault, Plan};
#[cfg(feature = "mpi")]
use super::mpirun::{Kind, arguments, mpirun, naming};
use super::rank::{RANKS, SETUPS, live};
use super::row::Row;
use super::table;
use super::threads::slept;
use crate::support::Setup;

/// How long a world of processes may take in all: to start, to fail, to be ended.
const LIMIT: Duration = Duration::from_secs(30);

/// Who starts the ranks.
#[derive(Clone, Debug)]
pub(crate) struct Starter {
    /// The section of the table.
    pub(crate) world: &'static str,
    /// What ranks talk over: `tcp`, `mpi`.
    pub(crate) link: &'static str,
    /// What can go wrong there.
    pub(crate) faults: &'static [Fault],
    /// The program that starts them, and what comes before the ranks' own.
    program: String,
    arguments: Vec<String>,
    environment: Vec<(&'static str, &'static str)>,
}

impl Starter {
    /// Those that this build has.
    pub(crate) fn all() -> Vec<Self> {
        [Some(Self::launch()), Self::mpirun()].into_iter().flatten().collect()
    }

    /// The `mpirun` of the MPI that this was built with.
    #[cfg(feature = "mpi")]
    fn mpirun() -> Option<Self> {
        let kind = Kind::linked();
        let (arguments, environment) = arguments(kind);
        Some(Self {
            world: if kind == Kind::OpenMpi { table::OPEN_MPI } else { table::MPICH },
            link: "mpi",
            faults: &Fault::OF_PROCESSES,
            program: mpirun().display().to_string(),
            arguments: [arguments, &["-n", "4"], naming(kind)]
                .concat()
                .into_iter()
                .map(str::to_owned)
                .collect(),
            environment: environment.to_vec(),
        })
    }

    #[cfg(not(feature = "mpi"))]
    const fn mpirun() -> Option<Self> {
        None
    }

    /// `attn launch`, over sockets.
    fn launch() -> Self {
        Self {
            world: table::TCP,
            link: "tcp",
            faults: &Fault::OVER_SOCKETS,
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
            String::from(self.link),
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
            took: if ended.is_some() { longest.saturating_sub(slept(plan)) } else { LIMIT },
        }
    }
}

/// What a program says on both streams until it ends, and its status; none if it had to be ended.
pub(crate) fn run(mut command: Command) -> (String, Option<ExitStatus>) {
    let started = Instant::now();
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return (format!("cannot run {}: {error}", command.get_program().display()), None),
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
    let status = loop {
        match child.try_wait() {
            Ok(None) if started.elapsed() < LIMIT => std::thread::sleep(Duration::from_millis(10)),
            Ok(Some(status)) => break Some(status),
            _ => {
                end_all(&mut child);
                break None;
            }
        }
    };
    let [out, err] = [out, err].map(|thread| thread.join().unwrap_or_default());
    (out + &err, status)
}

/// Ends a program and what it has started, which may hold its streams.
fn end_all(child: &mut Child) {
    #[cfg(target_os = "linux")]
    if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// One rank of such a world: `rank WORLD STRATEGY RANK POINT FAULT`.
pub(crate) fn rank(arguments: &[String]) -> Option<()> {
    let [_, world, setup, rank, point, fault] = arguments else { return None };
    let setup = *SETUPS.get(setup.parse::<usize>().ok()?)?;
    let plan = Plan { rank: rank.parse().ok()?, point: point.parse().ok()?, fault: fault.parse().ok()? };
    let started = Instant::now();
    match world.as_str() {
        "tcp" => {
            let world = World::from_env().ok()?.deadline(DEADLINE).threads_per_rank(1);
            let (me, lived) = (world.rank(), Cell::new(false));
            let outcome = world.run(|comm| report(comm, setup, plan, &lived));
            end(me, started, outcome, &lived)
        }
        #[cfg(feature = "mpi")]
        "mpi" => {
            let world = attn::comm::mpi::world().ok()?.deadline(DEADLINE).threads_per_rank(1);
            let (me, lived) = (world.rank(), Cell::new(false));
            let outcome = world.run(|comm| report(comm, setup, plan, &lived));
            end(me, started, outcome, &lived)
        }
        _ => return None,
    }
    Some(())
}

/// Ends a rank, after a word on why it has not come to live.
fn end(rank: usize, started: Instant, outcome: attn::Result<()>, lived: &Cell<bool>) {
    if outcome.is_err() {
        if !lived.get() {
            say(rank, started, &outcome);
        }
        std::process::exit(1);
    }
}

/// Lives, and says on one line how it ended.
fn report<C: Communicator<Device = Cpu>>(
    comm: C,
    setup: Setup,
    plan: Plan,
    lived: &Cell<bool>,
) -> attn::Result<()> {
    let (rank, started) = (comm.rank(), Instant::now());
    lived.set(true);
    let (outcome, _) = live(comm, setup, Some(plan), 2);
    say(rank, started, &outcome);
    outcome
}

fn say(rank: usize, started: Instant, outcome: &attn::Result<()>) {
    let what = outcome.as_ref().map_or_else(Error::to_string, |()| String::from("well"));
    let line = format!(
        "outcome of rank {rank} {:.3} {}\n",
        started.elapsed().as_secs_f64(),
        what.replace('\n', " ")
    );
    let _ = std::io::stdout().write_all(line.as_bytes());
}
