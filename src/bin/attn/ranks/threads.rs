//! Ranks as threads of this process.

use std::time::Duration;

use attn::ThreadComm;
use attn::prelude::*;

use super::{Ranks, Shard};
use crate::failure::Failure;
use crate::machine::{Machine, world};

/// As many as a run asks for.
pub(crate) struct Threads {
    /// How long a collective waits, if not as long as the program has it.
    pub(crate) deadline: Option<Duration>,
}

impl<D: Machine> Ranks<D> for Threads {
    type Comm = ThreadComm<D>;

    fn world(&self) -> Option<usize> {
        None
    }

    fn queue(&self) -> attn::Result<D::Queue> {
        D::queue()
    }

    fn reports(&self) -> bool {
        true
    }

    fn run<T: Element>(
        &self,
        ranks: usize,
        threads: Option<usize>,
        body: impl Fn(ThreadComm<D>) -> attn::Result<Shard<T>> + Sync,
    ) -> Result<Option<Vec<Shard<T>>>, Failure> {
        let mut world = world::<D>(D::queues(ranks, threads)?);
        if let Some(deadline) = self.deadline {
            world = world.deadline(deadline);
        }
        Ok(Some(world.run(body)?))
    }

    fn alone<R: Send>(&self, body: impl FnOnce() -> Result<R, Failure> + Send) -> Result<Option<R>, Failure> {
        body().map(Some)
    }

    fn agree<R>(&self, outcome: Result<R, Failure>) -> Result<R, Failure> {
        outcome
    }
}
