//! Strategies and layouts combine freely, also where a macro writes the attribute.

use attn::prelude::*;
use attn::{AttentionPipeline, TensorLayout, ThreadComm};

macro_rules! case {
    ($name:ident, $strategy:literal, $scatter:literal, $gather:literal, $layout:ident) => {{
        #[parallel_attention(strategy = $strategy, scatter = $scatter, gather = $gather)]
        struct $name;

        assert_eq!(offered::<$name>(), (&[$strategy][..], TensorLayout::$layout));
    }};
}

fn offered<A: ParallelAttention<ThreadComm, f32>>() -> (&'static [&'static str], TensorLayout) {
    (A::Pipeline::OFFERED, A::Pipeline::LAYOUT)
}

fn main() {
    case!(NoneBshd, "none", 2, 1, Bshd);
    case!(NoneBhsd, "none", 1, 2, Bhsd);
    case!(NoneSbhd, "none", 2, 0, Sbhd);
    case!(UlyssesBshd, "ulysses", 2, 1, Bshd);
    case!(UlyssesBhsd, "ulysses", 1, 2, Bhsd);
    case!(UlyssesSbhd, "ulysses", 2, 0, Sbhd);
    case!(RingBshd, "ring", 2, 1, Bshd);
    case!(RingBhsd, "ring", 1, 2, Bhsd);
    case!(RingSbhd, "ring", 2, 0, Sbhd);
}
