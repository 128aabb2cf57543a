//! Ranks as processes: this one is one of them, and rank 0 the reporter.

use std::cell::Cell;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::{Builder, scope};
use std::time::Duration;

use attn::comm::Rendezvous;
use attn::prelude::*;

use super::collect::collect;
use super::{Ranks, Shard};
use crate::failure::Failure;
use crate::machine::Machine;
use crate::output;

/// How often the reporter says that it is at work, so that no wait of the others comes near a deadline, and it learns of
/// one that is lost. More often where the deadline is short.
const PULSE: Duration = Duration::from_millis(500);

/// How many pulses come within a deadline, at least.
const PULSES: u32 = 4;

/// How long the reporter has to end by itself when the others have failed, and word of that to go out.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A rank of a world of processes.
pub(super) struct Processes<C, H> {
    /// What moves tensors.
    comm: C,
    /// By which hosts talk; often the same.
    host: H,
    pulse: Duration,
    /// Whether the failure that this process ends with is known to all.
    agreed: Cell<bool>,
}

impl<C, H: Rendezvous> Processes<C, H> {
    /// Calls `body` for the rank that `comm` and `host` belong to, whose world has this deadline, if not the usual one, as the whole of what that does. The outer result is for the world
    /// that runs the rank: it is a failure only if it is one that the others do not know of.
    ///
    /// # Errors
    /// If `body` fails.
    pub(super) fn live<R>(
        (comm, host): (C, H),
        deadline: Option<Duration>,
        body: impl FnOnce(&Self) -> Result<R, Failure>,
    ) -> Result<Result<R, Failure>, Failure> {
        let pulse = deadline.map_or(PULSE, |deadline| PULSE.min(deadline / PULSES));
        let ranks = Self { comm, host, pulse, agreed: Cell::new(false) };
        match body(&ranks) {
            Err(failure) if !ranks.agreed.get() => Err(failure),
            outcome => Ok(outcome),
        }
    }

    /// Tells the others that the reporter is at work, or done.
    fn pulse(&self, done: bool) -> attn::Result<bool> {
        let said = self.host.gather("the reporter's pulse", &[u8::from(done)])?;
        Ok(said.first().is_some_and(|record| record.as_slice() == [1]))
    }

    fn all_agree<R>(&self, outcome: Result<R, Failure>) -> Result<R, Failure> {
        let code = outcome.as_ref().map_or_else(Failure::code, |_| 0);
        let codes = match self.host.gather("outcome", &[code]) {
            Ok(codes) => codes,
            // The world has failed: who has a failure to tell of that came before has told it.
            Err(error) => return Err(outcome.err().unwrap_or_else(|| error.into())),
        };
        let code_of = |record: &Vec<u8>| record.first().copied().unwrap_or_default();
        let Some(first) = codes.iter().position(|record| code_of(record) != 0) else { return outcome };
        self.agreed.set(true);
        match outcome {
            Err(failure) if first == self.host.me() => Err(failure),
            _ => Err(Failure::Told { code: code_of(&codes[first]) }),
        }
    }
}

/// Says why, and ends the process, which leaves no file half written.
fn give_up(failure: &Failure) -> ! {
    output::abandon();
    let _ = failure.report();
    std::process::exit(failure.code().into())
}

impl<D: Machine, C: Communicator<Device = D> + Clone, H: Rendezvous> Ranks<D> for Processes<C, H> {
    type Comm = C;

    fn world(&self) -> Option<usize> {
        Some(self.comm.size())
    }

    fn queue(&self) -> attn::Result<D::Queue> {
        self.comm.queue()
    }

    fn reports(&self) -> bool {
        self.comm.rank() == 0
    }

    fn run<T: Element>(
        &self,
        _: usize,
        _: Option<usize>,
        body: impl Fn(C) -> attn::Result<Shard<T>> + Sync,
    ) -> Result<Option<Vec<Shard<T>>>, Failure> {
        let shard = body(self.comm.clone())?;
        Ok(collect::<D, C, T>(&self.comm, &self.host, shard)?)
    }

    fn alone<R: Send>(&self, body: impl FnOnce() -> Result<R, Failure> + Send) -> Result<Option<R>, Failure> {
        if !Ranks::<D>::reports(self) {
            while !self.pulse(false)? {}
            return self.all_agree(Ok(None));
        }
        let outcome = scope(|scope| {
            let (done, outcome) = channel();
            let work = move || {
                // The other end waits for as long as this thread runs.
                let _ = done.send(body());
            };
            Builder::new()
                .name(String::from("reporter"))
                .spawn_scoped(scope, work)
                .map_err(|error| attn::Error::Thread(error.to_string()))?;
            loop {
                match outcome.recv_timeout(self.pulse) {
                    Err(RecvTimeoutError::Timeout) => match self.pulse(false) {
                        Ok(_) => continue,
                        // What the reporter still does is of no use, and may take long; only the process's end ends it.
                        Err(error) => match outcome.recv_timeout(LAST_WORDS) {
                            Err(RecvTimeoutError::Timeout) => give_up(&error.into()),
                            _ => return Err(error),
                        },
                    },
                    Err(RecvTimeoutError::Disconnected) => {
                        let panicked = Failure::Internal(String::from("what rank 0 does alone panicked"));
                        return self.pulse(true).map(|_| Err(panicked));
                    }
                    Ok(outcome) => return self.pulse(true).map(|_| outcome),
                }
            }
        })?;
        self.all_agree(outcome.map(Some))
    }

    fn agree<R>(&self, outcome: Result<R, Failure>) -> Result<R, Failure> {
        self.all_agree(outcome)
    }
}
