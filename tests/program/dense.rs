//! Attention in float64, written out from its definition.

use crate::tensors::Values;

/// `softmax(q k^T * scale) v` over the keys that `attends(batch, head, query, key)`, and the log-sum-exp of the scores,
/// `[batch, heads, seq]`. Axes of the others are `[batch, seq, heads, head_dim]`.
pub(crate) fn attention(
    [q, k, v]: [&Values; 3],
    scale: Option<f64>,
    attends: impl Fn(usize, usize, usize, usize) -> bool,
) -> (Values, Values) {
    let [batch, queries, heads, dim] = q.shape[..] else { panic!("q has four axes") };
    let [_, keys, kv_heads, _] = k.shape[..] else { panic!("k has four axes") };
    let scale = scale.unwrap_or(1.0 / (dim as f64).sqrt());
    let row = |tensor: &Values, b: usize, s: usize, h: usize| {
        ((b * tensor.shape[1] + s) * tensor.shape[2] + h) * dim..
    };
    let mut out = Values { shape: q.shape.clone(), values: vec![0.0; q.values.len()] };
    let mut lse = Values {
        shape: vec![batch, heads, queries],
        values: vec![f64::NEG_INFINITY; batch * heads * queries],
    };
    for b in 0..batch {
        for h in 0..heads {
            let kv = h / (heads / kv_heads);
            for s in 0..queries {
                let query = &q.values[row(q, b, s, h)][..dim];
                let score = |j: usize| {
                    query.iter().zip(&k.values[row(k, b, j, kv)]).map(|(x, y)| x * y).sum::<f64>() * scale
                };
                let attended: Vec<usize> = (0..keys).filter(|j| attends(b, h, s, *j)).collect();
                let scores: Vec<f64> = attended.iter().map(|j| score(*j)).collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|score| (score - most).exp()).sum();
                let start = row(q, b, s, h).start;
                for (j, score) in attended.iter().zip(&scores) {
                    let values = &v.values[row(v, b, *j, kv)];
                    for (o, x) in out.values[start..start + dim].iter_mut().zip(values) {
                        *o += (score - most).exp() / sum * x;
                    }
                }
                if !attended.is_empty() {
                    lse.values[(b * heads + h) * queries + s] = most + sum.ln();
                }
            }
        }
    }
    (out, lse)
}

/// Two tensors, one behind the other along an axis.
pub(crate) fn concat(a: &Values, b: &Values, axis: usize) -> Values {
    let inner = |tensor: &Values| tensor.shape[axis..].iter().product::<usize>();
    let (left, right) = (a.values.chunks(inner(a)), b.values.chunks(inner(b)));
    let values = left.zip(right).flat_map(|(left, right)| left.iter().chain(right)).copied().collect();
    let mut shape = a.shape.clone();
    shape[axis] += b.shape[axis];
    Values { shape, values }
}

/// The positions `start..start + length` of an axis.
pub(crate) fn narrow(tensor: &Values, axis: usize, start: usize, length: usize) -> Values {
    let inner: usize = tensor.shape[axis + 1..].iter().product();
    let chunks = tensor.values.chunks(inner * tensor.shape[axis]);
    let values = chunks.flat_map(|chunk| &chunk[start * inner..(start + length) * inner]).copied().collect();
    let mut shape = tensor.shape.clone();
    shape[axis] = length;
    Values { shape, values }
}
