//! Calls put together by chance, some right and most wrong: every rank answers, all well or all with an error, and none
//! panics.

use attn::prelude::*;
use attn::{LseMut, ThreadComm};

use crate::rig::{answers, every, uneven};

#[parallel_attention(
    strategy = ["none", "ulysses", "ring", "hybrid", "allgather_kv", "ulysses_allgather"],
    backend = "sdpa"
)]
struct WithSdpa;

#[parallel_attention(
    strategy = ["none", "ulysses", "ring", "hybrid", "allgather_kv", "ulysses_allgather"],
    backend = "flash"
)]
struct WithFlash;

/// The same numbers for the same seed, on every rank.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }

    fn once_in(&mut self, sides: usize) -> bool {
        self.roll(sides) == 0
    }

    fn of(&mut self, numbers: &[usize]) -> usize {
        numbers[self.roll(numbers.len())]
    }

    /// A number, or now and then another one.
    fn about(&mut self, number: usize) -> usize {
        match self.roll(40) {
            0 => self.of(&[0, 1, number + 1, number.saturating_sub(1), 2 * number]),
            _ => number,
        }
    }

    /// A shape, or now and then one that is not quite it.
    fn shape(&mut self, shape: [usize; 4]) -> [usize; 4] {
        shape.map(|extent| self.about(extent))
    }
}

fn tensor<T: attn::Scalar>(dice: &mut Dice, shape: [usize; 4], value: impl Fn(usize) -> T) -> Tensor<T> {
    let salt = dice.roll(7);
    Tensor::from_fn(shape, |[a, b, c, d]| value(salt + a + 3 * b + 5 * c + 7 * d)).unwrap()
}

/// One rank's call. What differs between ranks is what they hold.
fn call<A: ParallelAttention<ThreadComm, f32>>(
    session: &mut Session<A, ThreadComm, f32>,
    rank: usize,
    seed: u64,
) -> attn::Result<()> {
    let dice = &mut Dice(seed);
    let sharding = session.sharding();
    let (batch, group, head_dim) = (dice.of(&[1, 2]), dice.of(&[1, 1, 2]), dice.of(&[1, 4, 8]));
    let kv_heads = dice.of(&[1, 2, 2, 4, 4, 3, 5]);
    let heads = kv_heads * group;
    let divides = 2 * sharding.ranks();
    let lengths = [divides, divides, divides, 2 * divides, 5, 1];
    let (seq_q, seq_k) = (dice.of(&lengths), dice.of(&lengths));
    let length =
        |seq: usize| sharding.sequence(seq).map_or(seq / sharding.ranks(), |layout| layout.length(rank));
    let replicated = dice.once_in(4);
    let keys = if replicated { seq_k } else { length(seq_k) };

    let float = |number: usize| number as f32 % 11.0 / 4.0 - 1.0;
    let shapes = [
        [batch, length(seq_q), heads, head_dim],
        [batch, keys, kv_heads, head_dim],
        [batch, keys, kv_heads, head_dim],
    ];
    let [query, key, value] = shapes.map(|shape| {
        let shape = dice.shape(shape);
        tensor(dice, shape, float)
    });
    let joint = if dice.once_in(3) { dice.of(&[1, 2, 5]) } else { 0 };
    let text = [
        [batch, joint, heads, head_dim],
        [batch, joint, kv_heads, head_dim],
        [batch, joint, kv_heads, head_dim],
    ];
    let text = text.map(|shape| {
        let shape = if joint > 0 { dice.shape(shape) } else { shape };
        tensor(dice, shape, float)
    });
    let dense_heads = dice.of(&[1, heads]);
    let dense = dice.shape([batch, dense_heads, joint + seq_q, joint + seq_k]);
    let dense = tensor(dice, dense, |number| u8::from(!number.is_multiple_of(3)));
    let lengths: Vec<usize> = (0..dice.about(batch)).map(|_| dice.roll(seq_k + 1)).collect();
    let rows = [dice.about(batch * seq_q), dice.about(batch * seq_k)];
    let [query_ids, key_ids] = rows.map(|rows| (0..rows).map(|_| dice.roll(3) as i32).collect::<Vec<_>>());

    let order = if dice.once_in(2) { JointStrategy::Front } else { JointStrategy::Rear };
    let mut metadata = match &text {
        [query, key, value] if joint > 0 => AttentionMetadata::joint(query, key, value, order),
        _ => AttentionMetadata::default(),
    };
    if joint == 0 || dice.once_in(8) {
        let far = [0, 1, 3, usize::MAX];
        let window = Span::Window { left: dice.of(&far), right: dice.of(&far) };
        metadata.span = [None, Some(Span::Full), Some(Span::Causal), Some(window)][dice.roll(4)];
        metadata.segments = dice.once_in(3).then_some(Segments { query: &query_ids, key: &key_ids });
    }
    metadata.key_lengths = dice.once_in(3).then_some(&lengths[..]);
    metadata.dense = dice.once_in(3).then(|| dense.view());
    if replicated {
        metadata = metadata.with_replicated_keys();
    }
    if !dice.once_in(4) {
        metadata = metadata.with_sequence(dice.about(seq_q), dice.about(seq_k));
    }
    metadata.scale = [None, None, None, Some(0.5), Some(0.0), Some(-1.0), Some(f32::NAN)][dice.roll(7)];

    let local = joint + length(seq_q);
    let out = dice.shape([batch, local, heads, head_dim]);
    let mut out = tensor(dice, out, float);
    let mut logarithms = vec![0.0; 4096];
    let lse = [dice.about(batch), dice.about(heads), dice.about(local)];
    let outputs = Outputs::new(&mut out);
    let outputs =
        if dice.once_in(2) { outputs.with_lse(LseMut::new(&mut logarithms, lse)?) } else { outputs };
    session.attend_into(&query, &key, &value, &metadata, outputs)
}

fn alike<A: ParallelAttention<ThreadComm, f32>>(seeds: std::ops::Range<u64>) {
    let mut answered = 0;
    for seed in seeds {
        let mut all = every();
        let (ranks, config) = all.swap_remove(seed as usize % all.len());
        let config = if seed / 20 % 2 == 0 { config } else { uneven(config) };
        let outcomes = answers(ranks, |comm| {
            let rank = comm.rank();
            let mut session = Session::<A, _, f32>::open_with(comm, &config)?;
            call(&mut session, rank, seed)
        });
        let well = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        assert!(well == 0 || well == ranks, "seed {seed}, {config:?}: {outcomes:?}");
        answered += usize::from(well == ranks);
    }
    assert!(answered > 100, "of all calls {answered} were right: that tells little");
}

#[test]
fn whatever_is_called_all_ranks_answer_alike() {
    alike::<WithSdpa>(0..2000);
    alike::<WithFlash>(2000..4000);
}
