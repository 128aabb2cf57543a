//! What the runtime tests share: problems, a float64 oracle, and a runner that shards, attends and assembles.

#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test uses its part")]

mod compare;
pub mod counting;
mod edges;
mod oracle;
mod problem;
mod random;
mod run;
mod setup;

pub use compare::{lse_error, relative_error};
pub use edges::{WholeEdge, WholeEdges, angles};
pub use oracle::{Whole, oracle};
pub use problem::{Inputs, Problem, Token};
pub use random::Random;
pub use run::{assemble, attend, attend_on, attend_with, call, call_with, on_each, open, relaid, share};
pub use setup::Setup;

use attn::prelude::*;

/// Offers every strategy round `flash`.
#[parallel_attention(
    strategy = ["none", "ulysses", "ring", "hybrid", "allgather_kv", "ulysses_allgather"],
    backend = "flash"
)]
pub struct WithFlash;

/// Offers every strategy round `sdpa`.
#[parallel_attention(
    strategy = ["none", "ulysses", "ring", "hybrid", "allgather_kv", "ulysses_allgather"],
    backend = "sdpa"
)]
pub struct WithSdpa;
