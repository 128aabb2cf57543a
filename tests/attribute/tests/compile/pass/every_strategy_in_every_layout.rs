//! Strategies and layouts combine freely, also where a macro writes the attribute.

use attn::prelude::*;
use attn::{AttentionPipeline, TensorLayout, ThreadComm};

macro_rules! case {
    ($strategy:literal, $scatter:literal, $gather:literal, $layout:ident) => {{
        #[parallel_attention(strategy = $strategy, scatter = $scatter, gather = $gather)]
        struct Attention;

        assert_eq!(offered::<Attention>(), (&[$strategy][..], TensorLayout::$layout));
    }};
}

macro_rules! every_layout {
    ($($strategy:literal)*) => {$(
        case!($strategy, 2, 1, Bshd);
        case!($strategy, 1, 2, Bhsd);
        case!($strategy, 2, 0, Sbhd);
    )*};
}

fn offered<A: ParallelAttention<ThreadComm, f32>>() -> (&'static [&'static str], TensorLayout) {
    (A::Pipeline::OFFERED, A::Pipeline::LAYOUT)
}

fn main() {
    every_layout!("none" "ulysses" "ring" "hybrid" "allgather_kv" "ulysses_allgather");
}
