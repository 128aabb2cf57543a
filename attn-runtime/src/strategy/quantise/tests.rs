//! What comes through the exchange, number by number; that it is attended as if nothing had been rounded; what it costs.

mod coordinates;
#[cfg(feature = "sdpa")]
mod whole_numbers;

use attn_plan::{Split, portion};
use proptest::prelude::*;

use self::coordinates::{Coordinates, What, coordinate};
use crate::comm::{Communicator, ThreadComm, Traffic, World};
use crate::device::{Arena, Cpu};
use crate::error::{Error, Result};
use crate::kernel::{AttentionKernel, Shards};
use crate::metadata::{JointStrategy, KeyPlacement, Sequence};
use crate::spec::AttentionSpec;
use crate::strategy::{
    AttentionMask, AttentionRequest, Joint, ParallelAttentionStrategy, UlyssesQuantisedParallelAttention,
};
use crate::tensor::{KeyValue, Scalar, Tensor, View, ViewMut};

/// How many keys share their scales, in these tests.
const BLOCK_KEYS: usize = 4;
/// How many scales a block has.
const KEY_SCALES: usize = 2;

/// One call on some ranks.
#[derive(Clone, Copy, Debug)]
struct Case {
    ranks: usize,
    batch: usize,
    /// Of queries, and of keys.
    heads: [usize; 2],
    head_dim: usize,
    /// Queries and keys besides joint tokens.
    seq: [usize; 2],
    joint: usize,
    order: JointStrategy,
    lse: bool,
    split: Split,
}

/// What a rank has in the end.
struct Attended {
    out: Tensor<f32>,
    lse: Tensor<f32>,
    moved: Traffic,
}

impl Case {
    /// How ranks share queries, or keys.
    fn shards(&self, rank: usize, tokens: usize) -> Shards {
        Shards { shards: self.ranks, shard: rank, joint: self.joint, tokens }
    }

    /// Attends twice on every rank, so that what is kept for a shape is used too. Joint tokens stand at the first positions.
    fn attend<S, K>(
        &self,
        mask: AttentionMask<'_, Cpu>,
        kernel: impl Fn(usize) -> K + Sync,
        number: impl Fn(What, [usize; 4]) -> f32 + Sync,
    ) -> Result<Vec<Attended>>
    where
        S: ParallelAttentionStrategy<K, ThreadComm, f32>,
    {
        let &Self { batch, heads: [heads, kv_heads], head_dim, seq: [seq_q, seq_k], joint, .. } = self;
        World::threads(self.ranks).threads_per_rank(1).run(|comm| {
            let (rank, queue) = (comm.rank(), comm.queue()?);
            let (kernel, mut arena) = (kernel(rank), Arena::default());
            let mut strategy = S::open(comm, &AttentionSpec::new().split(self.split))?;
            let tensor = |what, heads, first: usize, rows| {
                Tensor::from_fn([batch, rows, heads, head_dim], |[b, row, h, c]| {
                    number(what, [b, h, first + row, c])
                })
            };
            let own = [seq_q, seq_k].map(|seq| portion(seq, self.ranks, rank));
            let of = |what, heads, own: &core::ops::Range<usize>| {
                Ok::<_, Error>([
                    tensor(what, heads, 0, joint)?,
                    tensor(what, heads, joint + own.start, own.len())?,
                ])
            };
            let query = of(What::Query, heads, &own[0])?;
            let (key, value) = (of(What::Key, kv_heads, &own[1])?, of(What::Value, kv_heads, &own[1])?);
            let mut out = Tensor::from_fn([batch, joint + own[0].len(), heads, head_dim], |_| f32::NAN)?;
            let mut lse = Tensor::from_fn([batch, joint + own[0].len(), heads, 1], |_| f32::NAN)?;
            let mut moved = Traffic::default();
            for call in 1..3 {
                let before = strategy.traffic();
                let scope = arena.open(&queue)?;
                let kv = |at: usize| KeyValue { key: key[at].view(), value: value[at].view() };
                let joint = Joint { query: query[0].view(), kv: kv(0), order: self.order };
                let request = AttentionRequest {
                    call,
                    query: query[1].view(),
                    kv: kv(1),
                    keys: KeyPlacement::Sharded,
                    sequence: Sequence { query: seq_q, key: seq_k },
                    joint: (self.joint > 0).then_some(joint),
                    mask,
                    edges: None,
                    scale: 0.25,
                    out: out.view_mut(),
                    lse: self.lse.then(|| lse.view_mut()),
                };
                let (mut call, context) = strategy.pre_attention(scope, request)?;
                strategy.kernel(&kernel, &context).forward(scope, &mut call)?;
                strategy.post_attention(scope, call, context)?;
                moved = strategy.traffic() - before;
            }
            Ok::<_, Error>(Attended { out, lse, moved })
        })
    }

    /// At which position a row of a rank's output stands, joint tokens first.
    fn position(&self, rank: usize, row: usize) -> usize {
        let own = portion(self.seq[0], self.ranks, rank);
        match self.order {
            JointStrategy::Front if row < self.joint => row,
            JointStrategy::Front => own.start + row,
            JointStrategy::Rear if row < own.len() => self.joint + own.start + row,
            JointStrategy::Rear => row - own.len(),
        }
    }

    /// Whether some rank would have parts of several groups of heads.
    fn splits_groups(&self) -> bool {
        let [heads, kv_heads] = self.heads;
        let layout = attn_plan::HeadLayout::new(self.split, self.ranks, heads, kv_heads).unwrap();
        (0..self.ranks).any(|rank| layout.runs(rank).len() > 1)
    }
}

/// Checks every number of a tensor.
#[track_caller]
fn check<T: Scalar + PartialEq + core::fmt::Debug>(
    what: What,
    found: View<'_, T>,
    shape: [usize; 4],
    expected: impl Fn([usize; 4]) -> T,
) {
    assert_eq!(found.shape(), shape, "{what:?}");
    for index in indices(shape) {
        assert_eq!(found.at(index), expected(index), "{what:?} at {index:?} of {shape:?}");
    }
}

/// Writes every number of a tensor.
fn fill<T: Scalar>(mut into: ViewMut<'_, T>, number: impl Fn([usize; 4]) -> T) {
    for index in indices(into.shape()) {
        into.set(index, number(index));
    }
}

fn indices([a, b, c, d]: [usize; 4]) -> impl Iterator<Item = [usize; 4]> {
    (0..a * b * c * d).map(move |at| [at / (b * c * d), at / (c * d) % b, at / d % c, at % d])
}

prop_compose! {
    /// Groups of queries, fewer heads and positions than ranks, any number of joint tokens.
    fn cases()(
        ranks in 1_usize..6, batch in 1_usize..3, kv_heads in 1_usize..5, group in 1_usize..4, head_dim in 1_usize..4,
        seq_q in 1_usize..24, seq_k in 1_usize..40, joint in prop_oneof![Just(0), 1_usize..10],
        front: bool, lse: bool,
    ) -> Case {
        let order = if front { JointStrategy::Front } else { JointStrategy::Rear };
        let heads = [kv_heads * group, kv_heads];
        Case { ranks, batch, heads, head_dim, seq: [seq_q, seq_k], joint, order, lse, split: Split::Uneven }
    }
}

proptest! {
    #[test]
    fn every_number_arrives_where_it_belongs(case in cases(), lengths in any::<Option<[u8; 2]>>()) {
        let lengths = lengths.map(|lengths| lengths.map(|length| usize::from(length) % (case.seq[1] + 1)));
        let lengths = lengths.as_ref().map(|lengths| &lengths[..case.batch]);
        let mask = AttentionMask { key_lengths: lengths, ..AttentionMask::default() };
        let kernel = |rank| Coordinates { case, rank, lengths };
        let attended = case.attend::<UlyssesQuantisedParallelAttention<_>, _>(mask, kernel, coordinate);
        if case.splits_groups() {
            let error = attended.err().map(|error| error.to_string()).unwrap_or_default();
            prop_assert!(error.contains("parts of several groups"), "{error}");
            return Ok(());
        }
        for (rank, Attended { out, lse, .. }) in attended.unwrap().iter().enumerate() {
            let at = |what, [b, row, h, c]: [usize; 4]| coordinate(what, [b, h, case.position(rank, row), c]);
            check(What::Out, out.view(), out.shape(), |index| at(What::Out, index));
            if case.lse {
                check(What::Lse, lse.view(), lse.shape(), |index| at(What::Lse, index));
            }
        }
    }
}

/// What each rank sends, in bytes, where all have as much.
fn formula(case: Case) -> u64 {
    let Case { ranks, batch, heads: [heads, kv_heads], head_dim, seq: [seq_q, seq_k], .. } = case;
    let others = |numbers: usize| batch * numbers / ranks * (ranks - 1) / ranks;
    let lse = usize::from(case.lse);
    // To each rank what this one's keys and values come to.
    let sums = batch * kv_heads * 2 * head_dim * 4 * (ranks - 1);
    let maxima =
        if (seq_k / ranks).is_multiple_of(BLOCK_KEYS) { 0 } else { batch * kv_heads * 2 * KEY_SCALES * 4 };
    // A byte for each number, a scale for each query, and with a log-sum-exp its product with the mean key.
    let query = others(heads * seq_q * (head_dim + 4 * (1 + lse)));
    // A key head goes to every rank that needs it.
    let kv_heads = kv_heads.max(ranks);
    let keys = others(kv_heads * seq_k * 2 * head_dim)
        + others(kv_heads * seq_k.div_ceil(BLOCK_KEYS) * KEY_SCALES * 4);
    let home = others(heads * seq_q * 4 * (head_dim + lse));
    (sums + maxima * (ranks - 1) + query + keys + home) as u64
}

#[test]
fn ranks_send_a_byte_for_each_number_and_what_they_must_tell_each_other() {
    let case = Case {
        ranks: 4,
        batch: 2,
        heads: [8, 4],
        head_dim: 8,
        seq: [12, 32],
        joint: 0,
        order: JointStrategy::Front,
        lse: false,
        split: Split::Strict,
    };
    // Of 3 queries 6 heads of 8 + 4 bytes, of 8 keys 3 heads of 2 x 8, of 2 blocks 3 heads of 2 scales; 3 times 4 heads of sums;
    // back, 6 heads of 3 positions: for each row of the batch.
    let bytes = 3 * 6 * (8 + 4) + 8 * 3 * 16 + 2 * 3 * 8 + 3 * 4 * 16 * 4 + 6 * 3 * 8 * 4;
    assert_eq!(formula(case), 2 * bytes);
    for (case, collectives) in [
        (case, 3),
        (Case { lse: true, ..case }, 3),
        // Fewer key heads than ranks.
        (Case { heads: [8, 2], ..case }, 3),
        (Case { ranks: 2, heads: [8, 1], lse: true, ..case }, 3),
        // Blocks on two shards, of which each rank owns as many as another.
        (Case { ranks: 2, seq: [12, 14], ..case }, 4),
        (Case { ranks: 1, ..case }, 0),
    ] {
        let kernel = |rank| Coordinates { case, rank, lengths: None };
        let attended = case.attend::<UlyssesQuantisedParallelAttention<_>, _>(
            AttentionMask::default(),
            kernel,
            coordinate,
        );
        for Attended { moved, .. } in attended.unwrap() {
            let sent = if case.ranks == 1 { 0 } else { formula(case) };
            assert_eq!(moved, Traffic { sent, collectives }, "{case:?}");
        }
    }
}
