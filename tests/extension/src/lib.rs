//! What a user of `attn` may add from outside, on its public API alone: strategies and kernels, put together by the
//! attribute with each other and with those of the crate. The tests hold all of them to dense attention in float64.

pub mod kernels;
pub mod problem;
pub mod strategies;
