//! Strategies: each by `Communicator::exchange` alone.

mod cyclic;
mod pairwise;

pub use cyclic::CyclicUlysses;
pub use pairwise::PairwiseAllGather;

use attn::Error;

/// What both say to joint tokens.
fn no_joint_tokens(strategy: &str, tokens: usize) -> Error {
    Error::Configuration(format!(
        "strategy `{strategy}` has no joint tokens, but this call has {tokens}: put them among the others, or use a \
         strategy that has them, such as `ring`"
    ))
}
