//! What the runtime tests share: problems, a float64 oracle, and a runner that shards, attends and assembles.

#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

pub mod counting;

use attn::prelude::*;
use attn::{AttentionPipeline, Error, JointStrategy, Mask, TensorLayout, ThreadComm, kernel::Band};

/// Offers every strategy round `flash`.
#[parallel_attention(strategy = ["none", "ulysses", "ring"], backend = "flash")]
pub struct WithFlash;

/// Offers every strategy round `sdpa`.
#[parallel_attention(strategy = ["none", "ulysses", "ring"], backend = "sdpa")]
pub struct WithSdpa;

/// One attention problem, in global shapes.
#[derive(Clone, Copy, Debug)]
pub struct Problem {
    pub batch: usize,
    pub seq_q: usize,
    pub seq_k: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub joint: usize,
    pub order: JointStrategy,
    pub mask: Mask,
}

impl Problem {
    pub const fn new(batch: usize, seq: usize, heads: usize, head_dim: usize) -> Self {
        Self {
            batch,
            seq_q: seq,
            seq_k: seq,
            heads,
            kv_heads: heads,
            head_dim,
            joint: 0,
            order: JointStrategy::Front,
            mask: Mask::None,
        }
    }

    pub const fn causal(mut self) -> Self {
        self.mask = Mask::Causal;
        self
    }

    pub const fn kv_heads(mut self, kv_heads: usize) -> Self {
        self.kv_heads = kv_heads;
        self
    }

    pub const fn seq_k(mut self, seq_k: usize) -> Self {
        self.seq_k = seq_k;
        self
    }

    pub const fn joint(mut self, joint: usize, order: JointStrategy) -> Self {
        self.joint = joint;
        self.order = order;
        self
    }

    /// Inputs of about unit variance, the same for the same seed.
    pub fn inputs<T: Element>(&self, seed: u64) -> Inputs<T> {
        let Self { batch, seq_q, seq_k, heads, kv_heads, head_dim, joint, .. } = *self;
        let mut random = Random(seed);
        let mut tensor = |seq: usize, heads: usize| {
            Tensor::from_fn([batch, seq, heads, head_dim], |_| T::from_f32(random.normal())).unwrap()
        };
        Inputs {
            query: tensor(seq_q, heads),
            key: tensor(seq_k, kv_heads),
            value: tensor(seq_k, kv_heads),
            joint: (joint > 0)
                .then(|| [tensor(joint, heads), tensor(joint, kv_heads), tensor(joint, kv_heads)]),
            problem: *self,
        }
    }
}

/// Global tensors, `[batch, seq, heads, head_dim]`.
pub struct Inputs<T: Element> {
    pub query: Tensor<T>,
    pub key: Tensor<T>,
    pub value: Tensor<T>,
    pub joint: Option<[Tensor<T>; 3]>,
    pub problem: Problem,
}

/// A result over the whole sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Whole<T> {
    /// `[batch, seq_q, heads, head_dim]`, row-major.
    pub out: Vec<T>,
    /// `[batch, joint, heads, head_dim]`, row-major.
    pub joint: Vec<T>,
    /// `[batch, heads, seq_q]`.
    pub lse: Vec<f32>,
    /// `[batch, heads, joint]`.
    pub joint_lse: Vec<f32>,
}

/// Dense attention in float64, from the inputs' own values.
pub fn oracle<T: Element>(inputs: &Inputs<T>) -> Whole<f64> {
    let Problem { batch, seq_q, seq_k, heads, kv_heads, head_dim, joint, mask, .. } = inputs.problem;
    let band = match mask {
        Mask::Causal => Band::causal(seq_q, seq_k),
        _ => Band::FULL,
    };
    let scale = 1.0 / (head_dim as f64).sqrt();
    let wide = |tensor: &Tensor<T>, index: [usize; 4]| f64::from(tensor.view().at(index).to_f32());
    let mut whole = Whole { out: Vec::new(), joint: Vec::new(), lse: Vec::new(), joint_lse: Vec::new() };
    let row = |query: &dyn Fn(usize) -> f64, b: usize, h: usize, local: std::ops::Range<usize>| {
        let kv = h / (heads / kv_heads);
        let mut keys: Vec<(&Tensor<T>, &Tensor<T>, usize)> = Vec::new();
        if let Some([_, key, value]) = &inputs.joint {
            keys.extend((0..joint).map(|j| (key, value, j)));
        }
        keys.extend(local.map(|j| (&inputs.key, &inputs.value, j)));
        let scores: Vec<f64> = keys
            .iter()
            .map(|(key, _, j)| {
                (0..head_dim).map(|c| query(c) * wide(key, [b, *j, kv, c])).sum::<f64>() * scale
            })
            .collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        if keys.is_empty() {
            return (vec![0.0; head_dim], f64::NEG_INFINITY);
        }
        let out = (0..head_dim)
            .map(|c| {
                keys.iter().zip(&weights).map(|((_, v, j), w)| w * wide(v, [b, *j, kv, c])).sum::<f64>() / sum
            })
            .collect();
        (out, max + sum.ln())
    };
    whole.lse = vec![0.0; batch * heads * seq_q];
    whole.joint_lse = vec![0.0; batch * heads * joint];
    for b in 0..batch {
        for i in 0..seq_q {
            for h in 0..heads {
                let (out, lse) =
                    row(&|c| wide(&inputs.query, [b, i, h, c]), b, h, band.keys_of(i, &(0..seq_k)));
                whole.out.extend(out);
                whole.lse[(b * heads + h) * seq_q + i] = lse as f32;
            }
        }
        if let Some([query, ..]) = &inputs.joint {
            for i in 0..joint {
                for h in 0..heads {
                    let (out, lse) = row(&|c| wide(query, [b, i, h, c]), b, h, 0..seq_k);
                    whole.joint.extend(out);
                    whole.joint_lse[(b * heads + h) * joint + i] = lse as f32;
                }
            }
        }
    }
    whole
}

/// Shards the inputs over `ranks` threads, attends, and puts the parts together. Joint rows must be bit-equal on all
/// ranks.
pub fn attend<A, T>(strategy: &str, ranks: usize, inputs: &Inputs<T>) -> attn::Result<Whole<T>>
where
    A: ParallelAttention<ThreadComm, T>,
    T: Element,
{
    attend_on::<A, T>(World::threads(ranks).threads_per_rank(1), strategy, ranks, inputs)
}

/// [`attend`] in a world of the caller's.
pub fn attend_on<A, T>(
    world: World,
    strategy: &str,
    ranks: usize,
    inputs: &Inputs<T>,
) -> attn::Result<Whole<T>>
where
    A: ParallelAttention<ThreadComm, T>,
    T: Element,
{
    let Problem { batch, seq_q, heads, head_dim, joint, order, .. } = inputs.problem;
    let layout = A::Pipeline::LAYOUT;
    let shards = world.run(|comm| {
        let mut session = Session::<A, _, T>::open_with(comm.clone(), &ParallelConfig::strategy(strategy))?;
        let shard = |tensor: &Tensor<T>| -> attn::Result<Tensor<T>> {
            let length = tensor.shape()[1] / ranks;
            relaid(tensor.view().narrow(1, comm.rank() * length, length)?, layout)
        };
        let (query, key, value) = (shard(&inputs.query)?, shard(&inputs.key)?, shard(&inputs.value)?);
        let joint_tensors = match &inputs.joint {
            Some(tensors) => Some([
                relaid(tensors[0].view(), layout)?,
                relaid(tensors[1].view(), layout)?,
                relaid(tensors[2].view(), layout)?,
            ]),
            None => None,
        };
        let mut metadata = match &joint_tensors {
            Some([query, key, value]) => AttentionMetadata::joint(query, key, value, order),
            None => AttentionMetadata::default(),
        };
        metadata.mask = Some(inputs.problem.mask);
        let rows = joint + seq_q / ranks;
        let mut out =
            Tensor::<T>::from_fn(layout.permute([batch, rows, heads, head_dim]), |_| T::from_f32(77.0))?;
        let mut lse = vec![77.0; batch * heads * rows];
        let outputs = Outputs::new(&mut out).with_lse(LseMut::new(&mut lse, [batch, heads, rows])?);
        session.attend_into(&query, &key, &value, &metadata, outputs)?;
        Ok::<_, Error>((relaid(out.view().permuted(layout), TensorLayout::Bshd)?, lse))
    })?;
    Ok(assemble(&inputs.problem, ranks, &shards))
}

/// A dense copy of `[batch, seq, heads, head_dim]` in another layout.
pub fn relaid<T: Element>(view: View<'_, T>, layout: TensorLayout) -> attn::Result<Tensor<T>> {
    let view = view.permuted(layout);
    Tensor::from_fn(view.shape(), |index| view.at(index))
}

pub fn assemble<T: Element>(problem: &Problem, ranks: usize, shards: &[(Tensor<T>, Vec<f32>)]) -> Whole<T> {
    let Problem { batch, seq_q, heads, head_dim, joint, order, .. } = *problem;
    let local = seq_q / ranks;
    let (joint_start, start) = order.starts(joint, local);
    let mut whole = Whole { out: Vec::new(), joint: Vec::new(), lse: Vec::new(), joint_lse: Vec::new() };
    let rows = |rank: usize, b: usize, range: std::ops::Range<usize>| -> Vec<T> {
        let view = shards[rank].0.view();
        range
            .flat_map(|i| (0..heads).flat_map(move |h| (0..head_dim).map(move |c| [b, i, h, c])))
            .map(|index| view.at(index))
            .collect()
    };
    let lse = |rank: usize, b: usize, h: usize, range: std::ops::Range<usize>| -> Vec<f32> {
        let base = (b * heads + h) * (joint + local);
        shards[rank].1[base + range.start..base + range.end].to_vec()
    };
    for b in 0..batch {
        for rank in 0..ranks {
            whole.out.extend(rows(rank, b, start..start + local));
            let bits = |values: Vec<T>| values.into_iter().map(|v| v.to_f32().to_bits()).collect::<Vec<_>>();
            let (first, this) = (
                rows(0, b, joint_start..joint_start + joint),
                rows(rank, b, joint_start..joint_start + joint),
            );
            assert_eq!(bits(first), bits(this), "joint rows of rank {rank} differ from those of rank 0");
        }
        whole.joint.extend(rows(0, b, joint_start..joint_start + joint));
        for h in 0..heads {
            for rank in 0..ranks {
                whole.lse.extend(lse(rank, b, h, start..start + local));
                let joint_rows = joint_start..joint_start + joint;
                assert_eq!(
                    lse(0, b, h, joint_rows.clone()),
                    lse(rank, b, h, joint_rows),
                    "joint LSE of rank {rank}"
                );
            }
            whole.joint_lse.extend(lse(0, b, h, joint_start..joint_start + joint));
        }
    }
    whole
}

/// `||a - b|| / ||b||` in the 2-norm.
pub fn relative_error<T: Element>(result: &[T], exact: &[f64]) -> f64 {
    assert_eq!(result.len(), exact.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let difference = square(&mut result.iter().zip(exact).map(|(a, b)| f64::from(a.to_f32()) - b));
    let norm = square(&mut exact.iter().copied());
    if norm == 0.0 { difference.sqrt() } else { (difference / norm).sqrt() }
}

/// The largest difference of two LSEs; infinities must stand in the same places.
pub fn lse_error(result: &[f32], exact: &[f32]) -> f32 {
    assert_eq!(result.len(), exact.len());
    let difference = |(a, b): (&f32, &f32)| if a == b { 0.0 } else { (a - b).abs() };
    result
        .iter()
        .zip(exact)
        .map(difference)
        .fold(0.0, |worst, x| if x > worst || x.is_nan() { x } else { worst })
}

/// A small generator of normal numbers (SplitMix64, Box-Muller), so that tests need no seed from outside.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    pub fn normal(&mut self) -> f32 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        (radius * (std::f64::consts::TAU * self.uniform()).cos()) as f32
    }
}
