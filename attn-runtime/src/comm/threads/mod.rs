//! Ranks as threads of one process: the embedded default, with nothing to install.
//!
//! A collective has two meetings. Before the first, each rank publishes the addresses of what it lends; between the
//! two, every rank reads straight out of the others' tensors, once, with any permutation folded into the copy; after
//! the second, nobody reads any more and everybody may go. Ranks park while they wait.
//!
//! A rank that leaves early (an error, a panic, the deadline) first revokes what it published and waits for those who
//! are reading it, so no memory is read after its borrow has ended. It also tells the world, which ends the waits of
//! all others.

mod comm;
mod group;
mod health;
mod world;

pub use comm::ThreadComm;
pub use world::{QueueSource, Queues, Threads};
