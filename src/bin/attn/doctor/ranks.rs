//! What ranks that are processes need: libraries, a launcher, memory that processes share; and whether two ranks find each
//! other over TCP.

use std::env;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::thread::scope;
use std::time::Duration;

use attn::comm::{Place, Token};
use attn::prelude::*;
use serde_json::{Map, Value, json};

use super::checks::{largest_difference, shard, verdict};
use super::facts::Fact;
use crate::failure::Failure;
use crate::pipelines::FlashAttention;
use crate::report::bytes;

/// How long the two ranks of the check wait for each other.
const DEADLINE: Duration = Duration::from_secs(20);

/// Programs that start ranks.
const LAUNCHERS: [&str; 4] = ["mpirun", "mpiexec", "srun", "torchrun"];

/// Variables by which launchers tell a process its place, and others that ranks read: all, or those that begin so.
const VARIABLES: [&str; 21] = [
    "ATTN_*",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "OMPI_COMM_WORLD_*",
    "PMIX_RANK",
    "PMIX_NAMESPACE",
    "PMI_RANK",
    "PMI_SIZE",
    "MPI_LOCALRANKID",
    "MPI_LOCALNRANKS",
    "SLURM_PROCID",
    "SLURM_NTASKS",
    "SLURM_LOCALID",
    "SLURM_STEP_NODELIST",
    "CUDA_VISIBLE_DEVICES",
    "NCCL_*",
];

pub(super) fn facts() -> [Fact; 6] {
    let found: Vec<PathBuf> = LAUNCHERS.into_iter().filter_map(in_path).collect();
    let launchers = found.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
    let said =
        if launchers.is_empty() { String::from("none but `attn launch`") } else { launchers.join(", ") };
    let (environment, nothing) = environment();
    [mpi(), nccl(), Fact::said("launchers", launchers, said), environment, place(nothing), shared_memory()]
}

/// The MPI that this build has.
fn mpi() -> Fact {
    #[cfg(feature = "mpi")]
    return Fact::new("mpi", attn::comm::mpi::library());
    #[cfg(not(feature = "mpi"))]
    {
        let text = match in_path("mpicc") {
            None => String::from("none in this build; needs `mpicc` and a build with `--features mpi`"),
            Some(mpicc) => format!("none in this build; `--features mpi` would take {}", mpicc.display()),
        };
        Fact::said("mpi", Value::Null, text)
    }
}

/// The NCCL that is on this machine, if this build can ask.
fn nccl() -> Fact {
    #[cfg(feature = "nccl")]
    return match attn::cuda::nccl::probe() {
        Ok((path, version)) => {
            let (path, version) = (path.display().to_string(), version.to_string());
            let text = format!("{version} ({path})");
            Fact::said("nccl", json!({ "path": path, "version": version }), text)
        }
        Err(error) => Fact::said("nccl", Value::Null, error.to_string()),
    };
    #[cfg(not(feature = "nccl"))]
    Fact::said("nccl", Value::Null, "none in this build; needs `--features nccl`")
}

/// What of the environment ranks look at. Tokens are secrets.
fn environment() -> (Fact, bool) {
    let named = |name: &str| {
        VARIABLES.iter().any(|known| match known.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == *known,
        })
    };
    let mut set: Vec<(String, String)> = env::vars_os()
        .map(|(name, value)| [name, value].map(|text| text.to_string_lossy().into_owned()))
        .filter(|[name, _]| named(name))
        .map(|[name, value]| if name == "ATTN_TOKEN" { (name, String::from("(set)")) } else { (name, value) })
        .collect();
    set.sort();
    let words: Vec<String> = set.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let text = if words.is_empty() { String::from("no variable of a launcher") } else { words.join(" ") };
    let set: Map<String, Value> = set.into_iter().map(|(name, value)| (name, value.into())).collect();
    let nothing = set.is_empty();
    (Fact::said("environment", set, text), nothing)
}

/// What that comes to: this process's place, or why it has none, such as that the environment says nothing.
fn place(nothing: bool) -> Fact {
    match Place::from_env() {
        Ok(Place { rank, size, local_rank, local_size, master_addr, master_port, .. }) => {
            let mut text = format!("rank {rank} of {size}, {local_rank} of {local_size} on this machine");
            if let Some((address, port)) = master_addr.as_ref().zip(master_port) {
                text.push_str(&format!("; rank 0 is at {address}, port {port}"));
            }
            let value = json!({
                "rank": rank, "size": size, "local_rank": local_rank, "local_size": local_size,
                "master_addr": master_addr, "master_port": master_port,
            });
            Fact::said("place", value, text)
        }
        Err(_) if nothing => Fact::said("place", Value::Null, "none: no launcher has started this process"),
        Err(error) => Fact::said("place", Value::Null, format!("none: {error}")),
    }
}

/// What processes of this machine can share, as MPI and NCCL do.
fn shared_memory() -> Fact {
    #[cfg(target_os = "linux")]
    if let Ok(found) = rustix::fs::statvfs("/dev/shm") {
        let [free, all] =
            [found.f_bavail, found.f_blocks].map(|blocks| blocks.saturating_mul(found.f_frsize));
        let text = format!("{} free of {} in /dev/shm", bytes(free), bytes(all));
        return Fact::said("shared_memory", json!({ "free": free, "all": all }), text);
    }
    Fact::said("shared_memory", Value::Null, "no /dev/shm")
}

/// Two ranks that know each other by nothing but an address, a port and a token attend as threads do.
pub(super) fn agrees_over_tcp() -> Result<String, Failure> {
    const SHAPE: [usize; 4] = [1, 32, 4, 16];
    let refused =
        |error: std::io::Error| Failure::System(format!("no port of the loopback address is free: {error}"));
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    let port = port.map_err(refused)?.port();
    let token = Token::new(&format!("attn doctor {}", std::process::id()))?;
    let rank = |rank: usize| {
        let mut place = Place::new(rank, 2)?;
        (place.master_addr, place.master_port) = (Some(Ipv4Addr::LOCALHOST.to_string()), Some(port));
        place.token = Some(token.clone());
        let world = World::at(place).deadline(DEADLINE).threads_per_rank(1);
        world.run(|comm| shard::<_, _, Cpu, f32>(&FlashAttention, comm, "ring", SHAPE))
    };
    let over_tcp = scope(|scope| {
        let other = scope.spawn(|| rank(1));
        let mine = rank(0);
        let other = other.join().map_err(|_| Failure::Internal(String::from("a rank panicked")))?;
        Ok::<_, Failure>([mine?, other?].concat())
    })?;
    let threads =
        World::threads(2).run(|comm| shard::<_, _, Cpu, f32>(&FlashAttention, comm, "ring", SHAPE))?;
    let difference = largest_difference(&over_tcp, &threads.concat());
    verdict(difference == 0.0, format!("two ranks on 127.0.0.1 differ from two threads by {difference}"))
}

/// Where a program is.
fn in_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file())
}
