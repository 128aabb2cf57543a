//! A world: the ranks that start together, and how long they wait for each other.

use std::time::Duration;

use super::threads::Threads;

/// How long a collective waits for the last rank, unless said otherwise.
pub(super) const DEADLINE: Duration = Duration::from_secs(300);

/// The ranks that start together: threads of this process, or one of several processes of which this is one.
///
/// ```
/// use attn_runtime::{Communicator, Error, World};
///
/// let ranks = World::threads(4).run(|comm| Ok::<_, Error>(comm.rank()))?;
/// assert_eq!(ranks, [0, 1, 2, 3]);
/// # Ok::<(), Error>(())
/// ```
///
/// The same in every process that `attn launch`, mpirun, torchrun or srun starts:
///
/// ```no_run
/// use attn_runtime::{Communicator, Error, World};
///
/// let rank = World::from_env()?.run(|comm| Ok::<_, Error>(comm.rank()))?;
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct World<Q = Threads> {
    pub(super) ranks: Q,
    pub(super) deadline: Duration,
}

impl<Q> World<Q> {
    /// Sets how long a collective waits for the last rank (five minutes, unless set). When it has passed, every rank
    /// that waits gets [`Error::Deadline`](crate::Error::Deadline); a rank at work in its kernel gets the failure at its next
    /// block or call, and those whose tensors it reads return when it has let go of them.
    #[must_use]
    pub const fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }
}
