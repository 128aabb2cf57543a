//! Strategies: each by `Communicator::exchange` alone.

mod cyclic;
mod pairwise;

pub use cyclic::CyclicUlysses;
pub use pairwise::PairwiseAllGather;
