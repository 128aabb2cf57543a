//! What sequence-parallel attention is, as tests: which element goes where, which keys a query attends, how partial
//! results become one, how far results may be off, what is moved and who works how much. Every strategy, degree, layout,
//! split and mask; numbers written out where they are known.

#[path = "../support/mod.rs"]
mod support;

mod accuracy;
mod balance;
mod bytes;
mod cases;
mod communicator;
mod dense;
mod edges;
mod empty;
mod exchange;
mod gather;
mod groups;
mod hops;
mod joint;
mod merge;
mod nan;
mod orders;
mod probe;
mod sessions;
