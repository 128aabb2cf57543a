//! Dense attention in float64.

use attn::prelude::*;

use super::{Inputs, Problem, Token};

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

impl<T: Copy> Whole<T> {
    /// All rows: those of the sequence, then the joint ones.
    pub fn rows(&self) -> Vec<T> {
        [&self.out[..], &self.joint].concat()
    }

    /// All log-sum-exps, in the same order.
    pub fn all_lse(&self) -> Vec<f32> {
        [&self.lse[..], &self.joint_lse].concat()
    }
}

impl<T: Element> Whole<T> {
    /// The bits of all numbers: equal if and only if the results are, zeros' signs and NaN included.
    pub fn bits(&self) -> Vec<u32> {
        let rows = self.rows().into_iter().map(Element::to_f32);
        rows.chain(self.all_lse()).map(f32::to_bits).collect()
    }
}

/// Rows of a tensor `[batch, seq, heads, head_dim]`, widened.
struct Wide {
    elements: Vec<f64>,
    shape: [usize; 4],
}

impl Wide {
    fn of<T: Element>(tensor: &Tensor<T>) -> Self {
        let elements = tensor.as_slice().iter().map(|x| f64::from(x.to_f32())).collect();
        Self { elements, shape: tensor.shape() }
    }

    fn row(&self, batch: usize, position: usize, head: usize) -> &[f64] {
        let [_, seq, heads, head_dim] = self.shape;
        &self.elements[((batch * seq + position) * heads + head) * head_dim..][..head_dim]
    }
}

/// Dense attention in float64, from the inputs' own values, over every key that the masks allow.
pub fn oracle<T: Element>(inputs: &Inputs<T>) -> Whole<f64> {
    let Problem { batch, seq_q, heads, kv_heads, head_dim, joint, .. } = inputs.problem;
    let scale = 1.0 / (head_dim as f64).sqrt();
    let sharded = [&inputs.query, &inputs.key, &inputs.value].map(Wide::of);
    let replicated = inputs.joint.as_ref().map(|tensors| tensors.each_ref().map(Wide::of));
    let row = |which: usize, batch: usize, token: Token, head: usize| match (token, &replicated) {
        (Token::At(position), _) => sharded[which].row(batch, position, head),
        (Token::Joint(index), Some(tensors)) => tensors[which].row(batch, index, head),
        (Token::Joint(_), None) => unreachable!("there are no joint tokens"),
    };
    let attend = |b: usize, h: usize, token: Token| {
        let kv = h / (heads / kv_heads);
        let query = row(0, b, token, h);
        let keys: Vec<Token> = inputs.keys().filter(|key| inputs.allows(b, h, token, *key)).collect();
        let dot =
            |key: &Token| row(1, b, *key, kv).iter().zip(query).map(|(k, q)| k * q).sum::<f64>() * scale;
        let scores: Vec<f64> = keys.iter().map(dot).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut out = vec![0.0; head_dim];
        if keys.is_empty() {
            return (out, f64::NEG_INFINITY);
        }
        let mut sum = 0.0;
        for (key, score) in keys.iter().zip(scores) {
            let weight = (score - max).exp();
            sum += weight;
            out.iter_mut().zip(row(2, b, *key, kv)).for_each(|(out, value)| *out += weight * value);
        }
        out.iter_mut().for_each(|out| *out /= sum);
        (out, max + sum.ln())
    };
    let rows = |seq: usize, token: fn(usize) -> Token| {
        let mut out = Vec::with_capacity(batch * seq * heads * head_dim);
        let mut lse = vec![0.0; batch * heads * seq];
        for (b, i, h) in
            (0..batch).flat_map(|b| (0..seq).flat_map(move |i| (0..heads).map(move |h| (b, i, h))))
        {
            let (row, row_lse) = attend(b, h, token(i));
            out.extend(row);
            lse[(b * heads + h) * seq + i] = row_lse as f32;
        }
        (out, lse)
    };
    let ((out, lse), (joint, joint_lse)) = (rows(seq_q, Token::At), rows(joint, Token::Joint));
    Whole { out, joint, lse, joint_lse }
}
