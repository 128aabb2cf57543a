//! Worlds of threads in which something goes wrong.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use attn::Communicator;
use attn::prelude::*;

use super::injector::{DEADLINE, Plan};
use super::rank::{RANKS, live};
use super::row::Row;
use crate::support::Setup;

/// Tries one fault.
pub(crate) fn try_out(setup: Setup, point: &str, plan: Plan) -> Row {
    let said = Mutex::new(vec![None; RANKS]);
    let started = Instant::now();
    // What `run` returns is one rank's outcome; here every rank's own is wanted.
    let _ = World::threads(RANKS).threads_per_rank(1).deadline(DEADLINE).run(|comm| {
        let rank = comm.rank();
        let (outcome, _) = live(comm, setup, Some(plan), 2);
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        said[rank] = Some(outcome.clone().map_err(|error| error.to_string()));
        outcome
    });
    Row {
        world: super::table::THREADS,
        strategy: setup.strategy,
        point: point.to_owned(),
        fault: plan.fault,
        rank: plan.rank,
        said: said.into_inner().unwrap_or_else(PoisonError::into_inner),
        starter: None,
        took: started.elapsed().saturating_sub(slept(plan)),
    }
}

/// How long the fault itself lasts beyond the deadline.
pub(crate) fn slept(plan: Plan) -> Duration {
    if plan.fault == super::injector::Fault::Sleep { Duration::from_millis(500) } else { Duration::ZERO }
}
