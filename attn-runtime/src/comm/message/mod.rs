//! Ranks that share no memory: a communicator over whatever carries messages between them.

mod bytes;
mod link;

pub use bytes::Bytes;
pub use link::{Event, Head, Link};
