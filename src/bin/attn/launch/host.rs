//! The launcher's end of a keeper.

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::{Builder, sleep};
use std::time::{Duration, Instant};

use super::frame::{GREETING, Message, Order, Report};
use super::hosts::Host;
use super::keeper::myself;
use super::plan::Plan;
use super::print::Printer;
use super::watch::Event;
use crate::failure::Failure;

/// How long a keeper without ranks may take to end.
const FAREWELL: Duration = Duration::from_millis(500);

/// How much may stand before the greeting: what login shells have to say.
const MAX_PREAMBLE: u64 = 1 << 20;

/// A keeper, and the pipe to it.
pub(super) struct Connection {
    child: Child,
    orders: Option<ChildStdin>,
}

impl Connection {
    /// Starts the keeper of a host. What it reports, and what happens to it, are events.
    ///
    /// # Errors
    /// If there is no process or thread.
    pub(super) fn open(
        index: usize,
        host: &Host,
        plan: &Plan,
        printer: &Arc<Printer>,
        events: Sender<Event>,
    ) -> Result<Self, Failure> {
        let fail = |what: &str, error: &io::Error| {
            Failure::System(format!("cannot start ranks on {}: `{what}`: {error}", host.name))
        };
        let (mut command, called) = keeper_of(host, plan);
        // A group of its own, so that a terminal's signals come through the launcher alone.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|error| fail(&called, &error))?;
        let orders = child.stdin.take();
        let reports = child.stdout.take();
        let printer = Arc::clone(printer);
        let read = move || {
            let why = reports.and_then(|reports| listen(index, reports, &printer, &events).err());
            // That nobody listens any more is no matter: the launcher is about to end.
            let _ = events.send(Event::Gone { host: index, why });
        };
        let connection = Self { child, orders };
        Builder::new()
            .name(format!("host {}", host.name))
            .spawn(read)
            .map_err(|error| fail("a thread", &error))?;
        Ok(connection)
    }

    /// Sends orders. To one that is gone nothing is sent; that it is gone is an event.
    pub(super) fn send(&mut self, orders: &[Order]) {
        if let Some(pipe) = &mut self.orders
            && orders.iter().any(|order| order.send(pipe).is_err())
        {
            self.orders = None;
        }
    }

    /// Tells the keeper that there is no launcher any more: it ends its ranks.
    pub(super) fn hang_up(&mut self) {
        self.orders = None;
    }

    /// Ends the process, if it has not ended by itself after so long.
    pub(super) fn end(&mut self, patience: Duration) {
        if self.status(patience).is_none() {
            // It may have ended just now.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    /// How it ended, if it has or does soon.
    pub(super) fn status(&mut self, patience: Duration) -> Option<String> {
        let until = Instant::now() + patience;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status.to_string()),
                Ok(None) if Instant::now() < until => sleep(Duration::from_millis(5)),
                _ => return None,
            }
        }
    }
}

/// Leaves no process behind, above all no ssh to a host that does not answer.
impl Drop for Connection {
    fn drop(&mut self) {
        self.hang_up();
        self.end(FAREWELL);
    }
}

/// The command that starts a keeper, and what it is called in messages.
fn keeper_of(host: &Host, plan: &Plan) -> (Command, String) {
    if host.is_here() {
        let mut command = myself();
        command.arg("launch-keeper");
        return (command, String::from("attn launch-keeper"));
    }
    let [program, first @ ..] = plan.rsh.as_slice() else {
        return (myself(), String::new());
    };
    let mut command = Command::new(program);
    let remote = format!("exec {} launch-keeper", quoted(&plan.attn.to_string_lossy()));
    command.args(first).arg(&host.name).arg(remote);
    (command, format!("{} {}", plan.rsh.join(" "), host.name))
}

/// A word as a shell reads it, whatever is in it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Prints what a keeper reports, and makes the rest events.
fn listen(index: usize, reports: ChildStdout, printer: &Printer, events: &Sender<Event>) -> io::Result<()> {
    let mut reports = BufReader::with_capacity(128 << 10, reports);
    await_greeting(&mut reports)?;
    while let Some(report) = Report::receive(&mut reports)? {
        let event = match report {
            Report::Ready(free_port) => Event::Ready { host: index, free_port },
            Report::Ended(rank, end) => Event::Ended { host: index, rank, end },
            Report::Lines(rank, stream, lines) => match printer.print(rank, stream, &lines) {
                Ok(()) => continue,
                Err(error) => Event::Unread { stream, error },
            },
        };
        if events.send(event).is_err() {
            break;
        }
    }
    Ok(())
}

/// Skips what login shells print.
fn await_greeting(reports: &mut impl BufRead) -> io::Result<()> {
    let mut preamble = reports.take(MAX_PREAMBLE);
    let mut line = Vec::new();
    loop {
        line.clear();
        if preamble.read_until(b'\n', &mut line)? == 0 {
            return Err(io::Error::other("it did not say that it is there"));
        }
        let Some(version) = line.strip_prefix(GREETING.as_bytes()) else { continue };
        let (theirs, ours) = (String::from_utf8_lossy(version), env!("CARGO_PKG_VERSION"));
        if theirs.trim() != ours {
            return Err(io::Error::other(format!("`attn` there is version {}, here {ours}", theirs.trim())));
        }
        return Ok(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_other_side_of_a_shell_as_they_are() {
        for word in ["/usr/bin/attn", "/a b/it's $HOME`x`\"\\\n*", "", "'"] {
            let said =
                Command::new("sh").arg("-c").arg(format!("printf %s {}", quoted(word))).output().unwrap();
            assert_eq!(said.stdout, word.as_bytes());
        }
    }

    #[test]
    fn what_a_login_shell_prints_is_skipped() {
        let version = env!("CARGO_PKG_VERSION");
        let said = format!("Welcome!\nno end\n{GREETING}{version}\nrest");
        let mut reports = said.as_bytes();
        await_greeting(&mut reports).unwrap();
        assert_eq!(reports, b"rest");
        let other = format!("{GREETING}0.0.0\n");
        assert!(await_greeting(&mut other.as_bytes()).unwrap_err().to_string().contains("version 0.0.0"));
        assert!(await_greeting(&mut &b"Permission denied\n"[..]).is_err());
    }
}
