//! Masks are fixed alone or joined, under strategies that call the kernel once and those that carry its state.

use attn::prelude::*;
use attn::{Mask, ThreadComm};

macro_rules! case {
    ($strategy:tt, $mask:literal, $expected:expr) => {{
        #[parallel_attention(strategy = $strategy, mask = $mask)]
        struct Attention;

        let mask = <Attention as ParallelAttention<ThreadComm, f32>>::SPEC.mask;
        assert_eq!(mask, Some($expected), "{}", $mask);
    }};
}

fn main() {
    let window = |left, right| Mask::from(Span::Window { left, right });
    case!("none", "none", Mask::NONE);
    case!("ring", "causal", Span::Causal.into());
    case!("ulysses", "window(512, 0)", window(512, 0));
    case!("hybrid", "window:3,4", window(3, 4));
    case!("allgather_kv", "window(7)", window(7, 0));
    case!("ulysses", "padding", Mask { key_lengths: true, ..Mask::NONE });
    case!("ring", "causal+segments", Mask { segments: true, ..Span::Causal.into() });
    case!("ulysses_allgather", "dense + padding", Mask { key_lengths: true, dense: true, ..Mask::NONE });
    case!(
        ["none", "ring", "hybrid"],
        "segments+padding+dense+window(1, 2)",
        Mask { key_lengths: true, segments: true, dense: true, ..window(1, 2) }
    );
}
