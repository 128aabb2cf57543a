//! Random problems, each with a setup that takes it.

use attn::prelude::*;
use attn::{KeyPlacement, Mask};
use proptest::prelude::*;

use crate::support::{Problem, Setup};

/// A problem, how to run it, and what its numbers are made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) setup: Setup,
    pub(crate) problem: Problem,
    pub(crate) seed: u64,
}

/// How large problems may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) seq: usize,
    pub(crate) joint: usize,
    pub(crate) head_dim: usize,
}

impl Limits {
    /// What the probe can tell apart.
    pub(crate) const PROBE: Self = Self { seq: 16, joint: 8, head_dim: 4 };

    /// Enough for a kernel to cut keys and queries into several blocks now and then.
    pub(crate) const KERNELS: Self = Self { seq: 80, joint: 12, head_dim: 24 };
}

/// The next multiple, unless it is too long: then the last.
fn fit(length: usize, unit: usize, most: usize) -> usize {
    let fitting = length.next_multiple_of(unit);
    if fitting <= most { fitting } else { (most / unit).max(1) * unit }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Every strategy on up to eight ranks, with degrees, layouts and splits; all masks that go together; joint tokens;
/// groups of heads; queries and keys of unlike lengths; keys sharded or replicated.
pub(crate) fn cases(limits: Limits) -> impl Strategy<Value = Case> {
    let setup =
        (1_usize..=8, any::<prop::sample::Index>(), any::<bool>()).prop_map(|(ranks, index, uneven)| {
            let setup = *index.get(&Setup::of_ranks(ranks));
            if uneven && setup != Setup::NONE { setup.uneven() } else { setup }
        });
    let shape = (1_usize..3, 1..=limits.seq, 1..=limits.seq, 1_usize..=limits.head_dim, any::<bool>());
    let heads = (1_usize..=6, 1_usize..=3);
    let joint = (prop_oneof![Just(0), 1..=limits.joint], any::<bool>());
    let span = prop_oneof![
        2 => Just(Span::Full),
        1 => Just(Span::Causal),
        1 => (0..=limits.seq, 0..=limits.seq).prop_map(|(left, right)| Span::Window { left, right }),
    ];
    let mask = (span, any::<[bool; 4]>(), 0_u8..4);
    (setup, shape, heads, joint, mask, any::<u64>()).prop_map(
        move |(setup, shape, heads, joint, mask, seed)| {
            let (batch, seq_q, seq_k, head_dim, cross) = shape;
            let ((kv_heads, group), (joint, rear)) = (heads, joint);
            let (span, [key_lengths, segments, dense, per_head], replicated) = mask;
            let mut mask = Mask { span, key_lengths, segments, dense };
            if joint > 0 {
                mask = Mask { span: Span::Full, segments: false, ..mask };
            }
            let sharding = setup.sharding;
            let (mut heads, mut kv_heads, mut unit) = (kv_heads * group, kv_heads, 1);
            if sharding.split == Split::Strict {
                // Key heads that divide the Ulysses degree, or that it divides.
                let ulysses = sharding.ulysses;
                kv_heads = match seed % 2 {
                    0 => greatest_common_divisor(kv_heads, ulysses),
                    _ => ulysses * if ulysses < 4 { 1 + kv_heads % 2 } else { 1 },
                };
                heads = kv_heads.max(ulysses) * group;
                let zigzag = sharding.layout == RingLayout::Zigzag && sharding.ulysses % 2 == 1;
                unit = sharding.ranks() * if zigzag { 2 } else { 1 };
            }
            let keys = if replicated == 0 { KeyPlacement::Replicated } else { KeyPlacement::Sharded };
            let seq_q = fit(seq_q, unit, limits.seq);
            let seq_k = match (cross, keys) {
                (false, _) => seq_q,
                (true, KeyPlacement::Sharded) => fit(seq_k, unit, limits.seq),
                (true, KeyPlacement::Replicated) => seq_k,
            };
            let order = if rear { JointStrategy::Rear } else { JointStrategy::Front };
            let problem = Problem {
                mask,
                dense_per_head: per_head,
                keys,
                ..Problem::new(batch, seq_q, heads, head_dim)
                    .seq_k(seq_k)
                    .kv_heads(kv_heads)
                    .joint(joint, order)
            };
            assert!(setup.takes(&problem), "{setup} does not take {problem:?}");
            Case { setup, problem, seed }
        },
    )
}
