//! What the launcher does about what happens.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::frame::{End, Order, Stream};
use super::host::Connection;
use super::plan::Plan;
use super::signals::called;
use crate::failure::Failure;

/// How long a host may take to answer.
const ANSWER: Duration = Duration::from_secs(60);

/// How long the ends of several ranks count as one moment: who was killed failed before who noticed it.
const MOMENT: Duration = Duration::from_millis(200);

/// How long ranks have between SIGTERM and SIGKILL, and to be gone after that.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the others may go on after one has failed, at least, if a signal to the launcher has asked all to end.
const AFTER_SIGNAL: Duration = Duration::from_secs(10);

/// How long keepers have to end their ranks and themselves when the launcher is done with them.
const FAREWELL: Duration = Duration::from_secs(3);

/// What happens.
pub(super) enum Event {
    /// A keeper is there.
    Ready { host: usize, free_port: u16 },
    /// A rank has ended.
    Ended { host: usize, rank: usize, end: End },
    /// A keeper has ended, or makes no sense.
    Gone { host: usize, why: Option<io::Error> },
    /// The launcher got a signal.
    Signal(i32),
    /// What ranks write cannot be printed any more.
    Unread { stream: Stream, error: io::Error },
}

/// What is done next, and when.
#[derive(Clone, Copy)]
enum Next {
    Terminate(Instant),
    Kill(Instant),
    GiveUp(Instant),
}

impl Next {
    const fn when(self) -> Instant {
        match self {
            Self::Terminate(when) | Self::Kill(when) | Self::GiveUp(when) => when,
        }
    }
}

/// The first failure.
struct First {
    message: String,
    code: u8,
    /// Whether a signal ended it.
    killed: bool,
    when: Instant,
}

/// All ranks, from their start to their end.
pub(super) struct Watch<'a> {
    plan: &'a Plan,
    connections: Vec<Connection>,
    inbox: Receiver<Event>,
    grace: Duration,
    /// Ranks that have not ended, by host.
    running: Vec<Vec<usize>>,
    first: Option<First>,
    /// Ranks that were told to end, when they were, and how long after the first failure.
    ended_by_us: Vec<usize>,
    waited: Duration,
    signals: usize,
    next: Option<Next>,
    /// An output of the launcher that could not be written.
    unwritten: Option<String>,
}

impl<'a> Watch<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        connections: Vec<Connection>,
        inbox: Receiver<Event>,
        grace: Duration,
    ) -> Self {
        let running = plan.hosts.iter().map(|host| host.ranks.clone()).collect();
        Self {
            plan,
            connections,
            inbox,
            grace,
            running,
            first: None,
            ended_by_us: Vec::new(),
            waited: grace,
            signals: 0,
            next: None,
            unwritten: None,
        }
    }

    /// Starts all ranks once every host is there, and waits for them.
    ///
    /// # Errors
    /// If a host is not reached; if a rank fails, with its exit code; if what they write cannot be.
    pub(super) fn run(mut self) -> Result<(), Failure> {
        let free_port = self.await_hosts()?;
        for (connection, host) in self.connections.iter_mut().zip(&self.plan.hosts) {
            connection.send(&self.plan.orders(host, free_port)?);
        }
        while self.running.iter().any(|ranks| !ranks.is_empty()) {
            let event = match self.next {
                None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(next) => self.inbox.recv_timeout(next.when().saturating_duration_since(Instant::now())),
            };
            match (event, self.next) {
                (Ok(event), _) => self.on(event),
                (Err(_), Some(next)) => {
                    if !self.act(next) {
                        break;
                    }
                }
                (Err(_), None) => break,
            }
        }
        self.conclude()
    }

    /// Waits for every keeper; gives a port that is free on the first host.
    fn await_hosts(&mut self) -> Result<u16, Failure> {
        let until = Instant::now() + ANSWER;
        let mut ports = vec![None; self.plan.hosts.len()];
        while ports.contains(&None) {
            match self.inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Event::Ready { host, free_port }) => ports[host] = Some(free_port),
                Ok(Event::Gone { host, why }) => return Err(self.unreached(host, why)),
                Ok(Event::Signal(number)) => {
                    let message = format!("{} came before the ranks were started", called(number));
                    return Err(Failure::Rank { message, code: code_of_signal(number) });
                }
                Ok(_) => {}
                Err(_) => {
                    let silent: Vec<&str> = self
                        .plan
                        .hosts
                        .iter()
                        .zip(&ports)
                        .filter(|(_, port)| port.is_none())
                        .map(|(host, _)| host.name.as_str())
                        .collect();
                    return Err(Failure::System(format!(
                        "no answer from {} within {} s: nothing was started",
                        silent.join(", "),
                        ANSWER.as_secs()
                    )));
                }
            }
        }
        Ok(ports.first().copied().flatten().unwrap_or_default())
    }

    fn unreached(&mut self, host: usize, why: Option<io::Error>) -> Failure {
        let name = &self.plan.hosts[host].name;
        let why = why.map_or_else(|| String::from("it ended"), |why| why.to_string());
        let status = self.connections[host].status(Duration::from_secs(1));
        let status = status.map_or_else(String::new, |status| format!(" ({status})"));
        Failure::System(format!(
            "cannot start ranks on {name}: {why}{status}; is `{}` there, and does `{} {name} true` work?",
            self.plan.attn.display(),
            self.plan.rsh.join(" "),
        ))
    }

    fn on(&mut self, event: Event) {
        match event {
            Event::Ready { .. } => {}
            Event::Ended { host, rank, end } => {
                self.running[host].retain(|running| *running != rank);
                self.on_end(host, rank, &end);
            }
            Event::Gone { host, why } => self.on_gone(host, why),
            Event::Signal(number) => self.on_signal(number),
            Event::Unread { stream, error } => {
                self.tell_all(&Order::Close(stream));
                // That nobody reads is the ranks' matter, as if they wrote there themselves.
                if error.kind() != io::ErrorKind::BrokenPipe {
                    let what = if stream == Stream::Stdout { "stdout" } else { "stderr" };
                    self.unwritten.get_or_insert_with(|| format!("cannot write to {what}: {error}"));
                }
            }
        }
    }

    fn on_end(&mut self, host: usize, rank: usize, end: &End) {
        let place = format!("rank {rank} on {}", self.plan.hosts[host].name);
        match end {
            End::Code(0) => {}
            End::Code(code) => {
                let code = u8::try_from(*code).unwrap_or(1);
                self.fail(format!("{place} ended with exit code {code}"), code, false);
            }
            End::Signal(number) => {
                self.fail(format!("{place} was ended by {}", called(*number)), code_of_signal(*number), true);
            }
            End::NotStarted(why) => self.fail(format!("{place} could not be started: {why}"), 126, true),
        }
    }

    fn on_gone(&mut self, host: usize, why: Option<io::Error>) {
        let ranks = std::mem::take(&mut self.running[host]);
        if ranks.is_empty() {
            return;
        }
        let status = self.connections[host].status(Duration::from_millis(500));
        let why = why.map(|why| why.to_string()).or(status);
        let why = why.map_or_else(String::new, |why| format!(": {why}"));
        let message = format!(
            "the connection to {} is lost, and with it {}{why}",
            self.plan.hosts[host].name,
            named(&ranks)
        );
        self.fail(message, 4, true);
    }

    fn on_signal(&mut self, number: i32) {
        self.signals += 1;
        self.tell_all(&Order::Signal(number));
        if self.signals > 1 && !matches!(self.next, Some(Next::GiveUp(_))) {
            // Who asks again does not want to wait.
            let soon = Instant::now() + PATIENCE;
            if self.next.is_none_or(|next| next.when() > soon || matches!(next, Next::Terminate(_))) {
                self.next = Some(Next::Kill(soon));
            }
        }
    }

    /// Notes a failure. The first is the one that counts, but one by a signal, at the same moment, comes before one that
    /// may have noticed it.
    fn fail(&mut self, message: String, code: u8, killed: bool) {
        let now = Instant::now();
        match &self.first {
            None => {
                self.waited = if self.signals > 0 { self.grace.max(AFTER_SIGNAL) } else { self.grace };
                self.next.get_or_insert(Next::Terminate(now + self.waited));
                self.first = Some(First { message, code, killed, when: now });
            }
            Some(first) => {
                let unprompted = self.ended_by_us.is_empty() && self.signals == 0;
                if killed && !first.killed && unprompted && now < first.when + MOMENT {
                    self.first = Some(First { message, code, killed, when: first.when });
                }
            }
        }
    }

    /// Does what is next. False if there is nothing left to wait for.
    fn act(&mut self, next: Next) -> bool {
        let soon = Instant::now() + PATIENCE;
        match next {
            Next::Terminate(_) => {
                self.ended_by_us = self.running.concat();
                self.tell_all(&Order::Signal(Signal::TERM.as_raw()));
                self.next = Some(Next::Kill(soon));
            }
            Next::Kill(_) => {
                self.tell_all(&Order::Signal(Signal::KILL.as_raw()));
                self.next = Some(Next::GiveUp(soon));
            }
            Next::GiveUp(_) => return false,
        }
        true
    }

    fn tell_all(&mut self, order: &Order) {
        self.connections.iter_mut().for_each(|connection| connection.send(std::slice::from_ref(order)));
    }

    fn conclude(mut self) -> Result<(), Failure> {
        let left = self.running.concat();
        let (mut message, code) = match (self.first.take(), self.unwritten.take()) {
            (Some(First { message, code, .. }), None) => (message, code),
            (Some(First { message, code, .. }), Some(unwritten)) => (format!("{message}; {unwritten}"), code),
            (None, Some(unwritten)) => return Err(Failure::System(unwritten)),
            (None, None) if left.is_empty() => return Ok(()),
            (None, None) => (String::from("all were told to end"), code_of_signal(Signal::KILL.as_raw())),
        };
        self.ended_by_us.sort_unstable();
        if !self.ended_by_us.is_empty() {
            message.push_str(&format!(
                "; {}, still running {} s later, had to be ended",
                named(&self.ended_by_us),
                self.waited.as_secs_f64()
            ));
        }
        if !left.is_empty() {
            message.push_str(&format!("; {} did not end when killed", named(&left)));
        }
        Err(Failure::Rank { message, code })
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.connections.iter_mut().for_each(Connection::hang_up);
        let until = Instant::now() + FAREWELL;
        for connection in &mut self.connections {
            connection.end(until.saturating_duration_since(Instant::now()));
        }
    }
}

/// As shells have it.
fn code_of_signal(number: i32) -> u8 {
    u8::try_from(128 + number).unwrap_or(u8::MAX)
}

/// `rank 3`, or `ranks 0, 1 and 3`.
fn named(ranks: &[usize]) -> String {
    let numbers: Vec<String> = ranks.iter().map(usize::to_string).collect();
    match numbers.split_last() {
        Some((last, rest @ [_, ..])) => format!("ranks {} and {last}", rest.join(", ")),
        _ => format!("rank {}", numbers.concat()),
    }
}
