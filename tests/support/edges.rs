//! What is done to queries and keys on their way: for whole sequences, at random, cut for ranks, and in float64.

use attn::prelude::*;
use attn::{Edge, Edges, Positions, RmsNorm, Rope, RopePairs, TensorLayout};

use super::{Inputs, Problem, Random, share};

/// What is done to one tensor.
#[derive(Clone, Debug)]
pub struct WholeEdge<T: Element> {
    /// Weights and eps.
    pub norm: Option<(Option<Tensor<T>>, f32)>,
    /// `[1 or batch, seq, 1, pairs]` of cos and of sin.
    pub rope: Option<([Tensor<f32>; 2], RopePairs)>,
}

impl<T: Element> WholeEdge<T> {
    pub const NONE: Self = Self { norm: None, rope: None };

    /// Any edge of a tensor: with or without each of its parts, weights for all heads or each, some of the channels.
    pub fn random(random: &mut Random, [batch, seq, heads, head_dim]: [usize; 4]) -> Self {
        let norm = (random.below(4) > 0).then(|| {
            let heads = if random.below(2) == 0 { 1 } else { heads };
            let weight = (random.below(4) > 0).then(|| {
                Tensor::from_fn([1, 1, heads, head_dim], |_| T::from_f32(1.0 + 0.3 * random.normal()))
                    .unwrap()
            });
            (weight, [0.0, 1e-6, 1e-2][random.below(3)])
        });
        let rope = (head_dim > 1 && random.below(4) > 0).then(|| {
            let pairs = if random.below(2) == 0 { head_dim / 2 } else { 1 + random.below(head_dim / 2) };
            let order = if random.below(2) == 0 { RopePairs::Interleaved } else { RopePairs::Halves };
            let shape = [if random.below(2) == 0 { 1 } else { batch }, seq, 1, pairs];
            (angles(shape, |[b, s, _, i]| (3 * b + s) as f64 / 50_f64.powf(i as f64 / pairs as f64)), order)
        });
        Self { norm, rope }
    }

    /// That of some positions of the sequence.
    pub fn share(&self, positions: &Positions) -> attn::Result<Self> {
        let part = |table: &Tensor<f32>| share(table, positions, TensorLayout::Bshd);
        let rope = match &self.rope {
            Some(([cos, sin], order)) => Some(([part(cos)?, part(sin)?], *order)),
            None => None,
        };
        Ok(Self { norm: self.norm.clone(), rope })
    }

    pub fn view(&self) -> Edge<'_, T> {
        Edge {
            norm: self
                .norm
                .as_ref()
                .map(|(weight, eps)| RmsNorm { weight: weight.as_ref().map(Tensor::view), eps: *eps }),
            rope: self.rope.as_ref().map(|([cos, sin], pairs)| Rope {
                cos: cos.view(),
                sin: sin.view(),
                pairs: *pairs,
            }),
        }
    }

    /// It done in float64 to `[batch, seq, heads, head_dim]`, rounded once.
    pub fn done(&self, tensor: &Tensor<T>) -> Tensor<T> {
        let shape @ [batch, seq, heads, head_dim] = tensor.shape();
        let mut done = Vec::with_capacity(tensor.as_slice().len());
        for (at, row) in tensor.as_slice().chunks(head_dim.max(1)).enumerate() {
            let (b, s, h) = (at / (seq * heads), at / heads % seq, at % heads);
            assert!(b < batch);
            let mut row: Vec<f64> = row.iter().map(|x| f64::from(x.to_f32())).collect();
            if let Some((weight, eps)) = &self.norm {
                let mean = row.iter().map(|x| x * x).sum::<f64>() / head_dim as f64;
                for (i, x) in row.iter_mut().enumerate() {
                    let weight = weight.as_ref().map_or(1.0, |weight| {
                        let h = if weight.shape()[2] == 1 { 0 } else { h };
                        f64::from(weight.view().at([0, 0, h, i]).to_f32())
                    });
                    *x *= weight / (mean + f64::from(*eps)).sqrt();
                }
            }
            if let Some((tables, order)) = &self.rope {
                let pairs = tables[0].shape()[3];
                for i in 0..pairs {
                    let [cos, sin] = tables.each_ref().map(|table| {
                        let b = if table.shape()[0] == 1 { 0 } else { b };
                        f64::from(table.view().at([b, s, 0, i]))
                    });
                    let (one, other) = match order {
                        RopePairs::Interleaved => (2 * i, 2 * i + 1),
                        RopePairs::Halves => (i, i + pairs),
                    };
                    let (x, y) = (row[one], row[other]);
                    (row[one], row[other]) = (x * cos - y * sin, y * cos + x * sin);
                }
            }
            done.extend(row);
        }
        let mut done = done.into_iter();
        Tensor::from_fn(shape, |_| T::from_f32(done.next().unwrap() as f32)).unwrap()
    }
}

/// Cos and sin of angles, rounded to fp32.
pub fn angles(shape: [usize; 4], angle: impl Fn([usize; 4]) -> f64) -> [Tensor<f32>; 2] {
    [f64::cos, f64::sin].map(|f| Tensor::from_fn(shape, |index| f(angle(index)) as f32).unwrap())
}

/// What is done to all tensors of a problem.
#[derive(Clone, Debug)]
pub struct WholeEdges<T: Element> {
    pub query: WholeEdge<T>,
    pub key: WholeEdge<T>,
    pub joint_query: WholeEdge<T>,
    pub joint_key: WholeEdge<T>,
}

impl<T: Element> WholeEdges<T> {
    pub fn random(problem: &Problem, seed: u64) -> Self {
        let Problem { batch, seq_q, seq_k, heads, kv_heads, head_dim, joint, .. } = *problem;
        let mut random = Random(seed ^ 0x6564_6765);
        let query = WholeEdge::random(&mut random, [batch, seq_q, heads, head_dim]);
        let key = WholeEdge::random(&mut random, [batch, seq_k, kv_heads, head_dim]);
        let mut of_joint = |heads| match joint {
            0 => WholeEdge::NONE,
            _ => WholeEdge::random(&mut random, [batch, joint, heads, head_dim]),
        };
        Self { query, key, joint_query: of_joint(heads), joint_key: of_joint(kv_heads) }
    }

    /// Those of a rank's positions of queries and keys.
    pub fn share(&self, query: &Positions, key: &Positions) -> attn::Result<Self> {
        Ok(Self { query: self.query.share(query)?, key: self.key.share(key)?, ..self.clone() })
    }

    pub fn view(&self) -> Edges<'_, T> {
        Edges {
            query: self.query.view(),
            key: self.key.view(),
            joint_query: self.joint_query.view(),
            joint_key: self.joint_key.view(),
        }
    }

    /// Inputs to which all of it is done beforehand.
    pub fn done(&self, inputs: &Inputs<T>) -> Inputs<T> {
        let joint = inputs.joint.as_ref().map(|[query, key, value]| {
            [self.joint_query.done(query), self.joint_key.done(key), value.clone()]
        });
        Inputs {
            query: self.query.done(&inputs.query),
            key: self.key.done(&inputs.key),
            joint,
            ..inputs.clone()
        }
    }
}
