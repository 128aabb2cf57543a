//! What is to be started, where.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::frame::{MAX_BODY, Order};
use super::hosts::{Host, distribute};
use crate::cli::LaunchArgs;
use crate::failure::Failure;

/// How a shell on another host is reached, unless told otherwise. Nobody is there to type a password.
const RSH: &str = "ssh -o BatchMode=yes";

/// Variables that other hosts get too: those that begin so.
const CARRIED: [&str; 2] = ["ATTN_", "NCCL_"];

/// Everything that is decided before a process is started.
pub(super) struct Plan {
    pub(super) hosts: Vec<Host>,
    /// The command that reaches another host, and its first arguments.
    pub(super) rsh: Vec<String>,
    /// Where this program is on other hosts.
    pub(super) attn: PathBuf,
    /// Where the ranks start.
    folder: PathBuf,
    words: Vec<OsString>,
    /// What `--env` names.
    variables: Vec<(OsString, OsString)>,
    master_addr: String,
    master_port: Option<u16>,
    token: String,
}

impl Plan {
    /// What the command line asks for.
    ///
    /// # Errors
    /// If it makes no sense, or the system has no random numbers, or no name.
    pub(super) fn new(args: &LaunchArgs) -> Result<Self, Failure> {
        let hosts = distribute(args.ranks, args.hosts.as_deref())?;
        let rsh = args.rsh.clone().or_else(|| env::var("ATTN_RSH").ok());
        let rsh: Vec<String> = rsh.as_deref().unwrap_or(RSH).split_whitespace().map(str::to_owned).collect();
        if rsh.is_empty() {
            return Err(Failure::Usage(format!(
                "`--rsh` and `ATTN_RSH` take a command that reaches another host, such as `{RSH}`"
            )));
        }
        let here = |error: std::io::Error| Failure::System(format!("where is this program? {error}"));
        let master_addr = match (&args.master_addr, hosts.as_slice()) {
            (Some(given), _) => given.clone(),
            (None, [only]) if only.is_here() => String::from("127.0.0.1"),
            (None, [first, ..]) if first.is_here() => {
                rustix::system::uname().nodename().to_string_lossy().into_owned()
            }
            (None, hosts) => hosts.first().map_or_else(String::new, |host| host.address().to_owned()),
        };
        Ok(Self {
            rsh,
            attn: args.attn.clone().map_or_else(env::current_exe, Ok).map_err(here)?,
            folder: env::current_dir().map_err(here)?,
            words: args.command.clone(),
            variables: args.env.iter().map(|text| variable(text)).collect::<Result<_, Failure>>()?,
            master_addr,
            master_port: args.master_port,
            token: token()?,
            hosts,
        })
    }

    /// How many ranks there are.
    pub(super) fn ranks(&self) -> usize {
        self.hosts.iter().map(|host| host.ranks.len()).sum()
    }

    /// Everything that the keeper of a host must know. `free_port` is one that was free on the first host.
    ///
    /// # Errors
    /// If a word or variable is too long.
    pub(super) fn orders(&self, host: &Host, free_port: u16) -> Result<Vec<Order>, Failure> {
        let bytes = |text: &OsStr| text.as_bytes().to_vec();
        let mut orders = vec![Order::Folder(bytes(self.folder.as_os_str()))];
        if !host.is_here() {
            let carried = env::vars_os().filter(|(name, _)| {
                CARRIED.iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes()))
            });
            orders.extend(carried.map(|(name, value)| Order::Variable(bytes(&name), bytes(&value))));
        }
        orders.extend(self.variables.iter().map(|(name, value)| Order::Variable(bytes(name), bytes(value))));
        let port = self.master_port.unwrap_or(free_port);
        for (name, value) in [
            ("ATTN_WORLD_SIZE", self.ranks().to_string()),
            ("ATTN_LOCAL_WORLD_SIZE", host.ranks.len().to_string()),
            ("ATTN_MASTER_ADDR", self.master_addr.clone()),
            ("ATTN_MASTER_PORT", port.to_string()),
            ("ATTN_TOKEN", self.token.clone()),
        ] {
            orders.push(Order::Variable(name.into(), value.into_bytes()));
        }
        orders.extend(self.words.iter().map(|word| Order::Word(bytes(word))));
        orders.extend(host.ranks.iter().map(|rank| Order::Rank(*rank)));
        orders.push(Order::Start);
        let too_long = orders.iter().any(|order| match order {
            Order::Variable(name, value) => name.len() + value.len() > MAX_BODY,
            Order::Word(word) => word.len() > MAX_BODY,
            _ => false,
        });
        if too_long {
            return Err(Failure::Usage(format!("a word or variable is longer than {MAX_BODY} bytes")));
        }
        Ok(orders)
    }
}

/// `NAME=VALUE`, or `NAME` for the value that it has here.
fn variable(text: &OsStr) -> Result<(OsString, OsString), Failure> {
    let bytes = text.as_bytes();
    let named = |name: &[u8]| !name.is_empty() && !name.contains(&0);
    if let Some(at) = bytes.iter().position(|byte| *byte == b'=').filter(|at| named(&bytes[..*at])) {
        return Ok((
            OsStr::from_bytes(&bytes[..at]).to_owned(),
            OsStr::from_bytes(&bytes[at + 1..]).to_owned(),
        ));
    }
    let value = if named(bytes) && !bytes.contains(&b'=') { env::var_os(text) } else { None };
    let value = value.ok_or_else(|| {
        let text = text.to_string_lossy();
        Failure::Usage(format!("`--env {text}`: there is no such variable here: expected NAME or NAME=VALUE"))
    })?;
    Ok((text.to_owned(), value))
}

/// By which the ranks of this run know each other: 128 random bits.
fn token() -> Result<String, Failure> {
    let mut bits = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bits))
        .map_err(|error| Failure::System(format!("cannot read random numbers: {error}")))?;
    Ok(bits.iter().map(|byte| format!("{byte:02x}")).collect())
}
