//! Ranks that are processes, on one machine or several: each learns from its launcher which rank it is.
//!
//! `cargo build --release --example processes`, and then one of
//! `attn launch -n 4 -- target/release/examples/processes`, `mpirun -n 4 target/release/examples/processes`,
//! `torchrun --nproc-per-node 4 --no-python target/release/examples/processes`, `srun -n 4 target/release/examples/processes`

use attn::prelude::*;

#[parallel_attention(strategy = ["none", "ulysses", "ring"], heads = 8, head_dim = 64, mask = "causal", backend = "flash")]
struct SelfAttention;

fn main() -> attn::Result<()> {
    let world = World::from_env()?;
    let (rank, ranks) = (world.rank(), world.size());
    world.run(|comm| {
        let strategy = if ranks == 1 { "none" } else { "ring" };
        let mut session = Session::open_with(comm, &ParallelConfig::strategy(strategy))?;
        // This rank's 64 positions of a sequence of 64 for each rank.
        let x = Tensor::<f32>::from_fn([1, 64, 8, 64], |[_, s, h, d]| ((rank * 64 + s + h + d) % 7) as f32)?;
        let out = SelfAttention.attend(&mut session, &x, &x, &x, &AttentionMetadata::default())?;
        let sent = session.traffic().sent;
        println!("rank {rank} of {ranks}: {:?}, {sent} bytes sent", out.shape());
        Ok(())
    })
}
