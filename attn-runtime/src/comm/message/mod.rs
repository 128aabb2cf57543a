//! Ranks that have no memory in common but what their communicator makes: one over whatever carries messages between them,
//! and through shared memory between those of one host.
//!
//! In a collective every rank sends every other one of its group a head that says what it calls, together with the first
//! of what it moves to that rank, or nothing. So all ranks learn at no extra round trip that they call the same, and whoever
//! differs is named by all in the same words. Ranks may run ahead: messages of later collectives are kept until they are
//! asked for.
//!
//! The first failure of the world counts. Who fails tells all ranks of the world, and who hears of it tells them too, before
//! it leaves. What is on its way is owned by the link, and what arrives by this module. Scratch memory that ranks of a host
//! reach in each other is taken back when a call fails: once a call has returned, however it did, nobody writes to anything of
//! the caller's, and nobody takes what it reads there for data.

mod announcement;
mod bytes;
mod channel;
mod comm;
mod credit;
mod direct;
mod exchange;
mod failure;
mod link;
mod note;
mod pieces;
mod places;
mod rotate;
mod round;
mod shared;
#[cfg(test)]
mod tests;
mod way;
mod world;

pub use bytes::Bytes;
pub use channel::ChannelLink;
pub use comm::MessageComm;
pub use link::{Event, Head, Link};
