//! A list is an enum, named after the struct and as visible as it, with the strategies in the order of the list.

use attn::prelude::*;
use attn::{AttentionPipeline, ThreadComm};

mod model {
    use attn::prelude::*;

    #[parallel_attention(strategy = ["ulysses", "none", "ring"], degree = 2, use_sync = false, gather = 0)]
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
    }
}

fn offered<A: ParallelAttention<ThreadComm, f32>>() -> &'static [&'static str] {
    A::Pipeline::OFFERED
}

/// Opens one of the strategies on two ranks and attends.
fn attend(strategy: &str) -> attn::Result<Vec<usize>> {
    let attention = model::Joint { weights: () };
    World::threads(2).run(|comm| {
        let mut session =
            Session::<model::Joint<()>, _, f32>::open_with(comm, &ParallelConfig::strategy(strategy))?;
        assert_eq!(session.strategy(), strategy);
        let x = Tensor::from_fn([3, 1, 2, 8], |[s, _, h, d]| (s + h + d) as f32)?;
        let () = attention.weights;
        let out = attention.attend(&mut session, &x, &x, &x, &AttentionMetadata::default())?;
        assert_eq!(out.shape(), x.shape());
        Ok(session.communicator().size())
    })
}

fn main() -> attn::Result<()> {
    let _ = choose;
    assert_eq!(offered::<model::Joint<u8>>(), ["ulysses", "none", "ring"]);
    assert_eq!(offered::<model::One>(), ["ring"]);
    assert_eq!(attend("ulysses")?, [2, 2]);
    assert_eq!(attend("ring")?, [2, 2]);
    assert!(attend("none").is_err());
    assert!(attend("megatron").is_err());
    Ok(())
}
