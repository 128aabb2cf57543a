//! `attn launch`: a program as ranks, on this machine or on several.
//!
//! On each host stands a keeper, which is this program too: it starts the host's ranks, each in a process group of its
//! own, and sends their output and ends to the launcher. It is told by its stdin what to do, and that stdin ends is how
//! it learns that the launcher has: then it ends its ranks. Keepers of other hosts are started by ssh, whose command line
//! names nothing but this program: words, variables and the token go by stdin too.

mod frame;
mod host;
mod hosts;
mod keeper;
mod line;
mod plan;
mod print;
mod rank;
mod signals;
mod watch;

use std::sync::Arc;
use std::sync::mpsc::channel;

use self::host::Connection;
pub(crate) use self::keeper::keep;
use self::plan::Plan;
use self::print::Printer;
pub(crate) use self::rank::become_rank;
use self::watch::Watch;
use crate::cli::LaunchArgs;
use crate::failure::Failure;

/// Starts the ranks, prints what they print, and waits for them.
///
/// # Errors
/// If the command line makes no sense, a host cannot be reached, or a rank fails: then with its exit code.
pub(crate) fn run(args: &LaunchArgs) -> Result<(), Failure> {
    let plan = Plan::new(args)?;
    let (events, inbox) = channel();
    signals::watch(events.clone())?;
    let printer = Arc::new(Printer::new(!args.no_prefix));
    let connections = plan
        .hosts
        .iter()
        .enumerate()
        .map(|(index, host)| Connection::open(index, host, &plan, &printer, events.clone()))
        .collect::<Result<Vec<_>, Failure>>()?;
    Watch::new(&plan, connections, inbox, args.grace).run()
}
