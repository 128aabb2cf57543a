//! A list is an enum, named after the struct and as visible as it, with the strategies in the order of the list.

use attn::prelude::*;
use attn::{AttentionPipeline, Sharding, ThreadComm};

mod model {
    use attn::prelude::*;

    #[parallel_attention(
        strategy = ["ulysses", "none", "ring", "hybrid", "ulysses_allgather", "allgather_kv"],
        degree = 4,
        layout = "zigzag",
        use_sync = false,
        fuse_qkv = false,
        gather = 0
    )]
    pub struct Joint<W: Clone> {
        pub weights: W,
    }

    #[parallel_attention(strategy = ["ring"], backend = "sdpa")]
    pub(crate) struct One;
}

fn choose(pipeline: &model::JointPipeline<attn::Flash, ThreadComm, f32>) -> &'static str {
    match pipeline {
        model::JointPipeline::None(_) => "none",
        model::JointPipeline::Ulysses(_) => "ulysses",
        model::JointPipeline::Ring(_) => "ring",
        model::JointPipeline::Hybrid(_) => "hybrid",
        model::JointPipeline::AllGatherKv(_) => "allgather_kv",
        model::JointPipeline::UlyssesAllGather(_) => "ulysses_allgather",
    }
}

fn offered<A: ParallelAttention<ThreadComm, f32>>() -> &'static [&'static str] {
    A::Pipeline::OFFERED
}

/// Opens one of the strategies on four ranks and attends: how they share the work, and who moved something.
fn attend(config: &ParallelConfig) -> attn::Result<(Sharding, bool)> {
    let attention = model::Joint { weights: () };
    let ranks = World::threads(4).run(|comm| {
        let mut session = Session::<model::Joint<()>, _, f32>::open_with(comm, config)?;
        assert_eq!(Some(session.strategy()), config.strategy.as_deref());
        let x = Tensor::from_fn([4, 1, 4, 8], |[s, _, h, d]| (s + h + d) as f32)?;
        let () = attention.weights;
        let out = attention.attend(&mut session, &x, &x, &x, &AttentionMetadata::default())?;
        assert_eq!(out.shape(), x.shape());
        Ok::<_, attn::Error>((session.sharding(), session.traffic().sent > 0))
    })?;
    assert!(ranks.iter().all(|rank| *rank == ranks[0]));
    Ok(ranks[0])
}

fn main() -> attn::Result<()> {
    let _ = choose;
    let all = ["ulysses", "none", "ring", "hybrid", "ulysses_allgather", "allgather_kv"];
    assert_eq!(offered::<model::Joint<u8>>(), all);
    assert_eq!(offered::<model::One>(), ["ring"]);
    for (strategy, ulysses) in
        [("ulysses", 4), ("ring", 1), ("hybrid", 2), ("allgather_kv", 1), ("ulysses_allgather", 2)]
    {
        let ulysses_degree = (ulysses > 1).then_some(ulysses);
        let (sharding, moved) =
            attend(&ParallelConfig { ulysses_degree, ..ParallelConfig::strategy(strategy) })?;
        assert_eq!((sharding.ulysses, sharding.outer, moved), (ulysses, 4 / ulysses, true), "{strategy}");
    }
    assert!(attend(&ParallelConfig::strategy("none")).is_err());
    assert!(attend(&ParallelConfig::strategy("hybrid")).is_err(), "nothing says how many share the heads");
    assert!(attend(&ParallelConfig::strategy("megatron")).is_err());
    Ok(())
}
