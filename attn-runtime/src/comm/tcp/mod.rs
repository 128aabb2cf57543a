//! Ranks as processes that talk over TCP: a store where they find each other, and a connection between every two.
//!
//! Nothing has to be installed, and any network will do. What is said goes over it as it is, neither encrypted nor signed,
//! so it should be one that others have no access to; the token keeps apart jobs, not enemies.

mod address;
mod door;
mod frame;
mod hello;
mod inbox;
mod keeper;
mod link;
mod mesh;
mod peer;
mod request;
mod shelf;
mod store;
#[cfg(test)]
mod tests;
mod wire;

pub use link::TcpLink;
pub use store::Store;

use super::message::MessageComm;

/// A rank among processes that talk over TCP. Made by [`World::from_env`](crate::World::from_env).
pub type TcpComm = MessageComm<TcpLink>;
