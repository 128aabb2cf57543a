//! One attention problem: its inputs, what is right in float64, and how far from it a kernel may be.

use attn::kernel::Band;
use attn::{DType, Element};

use crate::kernels::rig::Place;
use crate::support::Random;

/// Which documents queries and keys belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segments {
    /// One after the other, of so many positions each; another cut in each batch row.
    Packed(usize),
    /// So many, in no order.
    Scattered(usize),
    /// No query is of a key's.
    Apart,
}

/// Which pairs a dense mask leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dense {
    /// Some of all, others for each head.
    Scattered,
    /// The same for all heads.
    Shared,
    /// Squares of so many positions, as a checkerboard, other ones for each head: all of a square or nothing.
    Squares(usize),
    All,
    Nothing,
}

/// One problem. Fields have the names of the kernels' interface.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub batch: usize,
    pub seq_q: usize,
    pub seq_k: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub band: Band,
    /// Times `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// What queries are multiplied with: how unlike the weights are.
    pub spread: f32,
    /// How many keys count; less than none is none, more than there are is all. Keys and values beyond are NaN.
    pub lengths: Option<&'static [i32]>,
    pub segments: Option<Segments>,
    pub dense: Option<Dense>,
    /// Where query, key, value and output lie.
    pub place: Place,
    /// Where the log-sum-exp lies, if it is wanted.
    pub lse: Option<Place>,
}

impl Case {
    /// One head, everything attended, log-sum-exp wanted.
    pub const fn new(seq_q: usize, seq_k: usize, head_dim: usize) -> Self {
        Self {
            batch: 1,
            seq_q,
            seq_k,
            heads: 1,
            kv_heads: 1,
            head_dim,
            band: Band::FULL,
            scale: 1.0,
            spread: 1.0,
            lengths: None,
            segments: None,
            dense: None,
            place: Place::BSHD,
            lse: Some(Place::BSHD),
        }
    }

    pub const fn heads(self, batch: usize, heads: usize, kv_heads: usize) -> Self {
        Self { batch, heads, kv_heads, ..self }
    }

    pub const fn band(self, lo: i64, hi: i64) -> Self {
        Self { band: Band { lo, hi }, ..self }
    }

    pub const fn causal(self) -> Self {
        Self { band: Band::causal(self.seq_q, self.seq_k), ..self }
    }

    /// The softmax scale.
    pub fn softmax_scale(&self) -> f32 {
        self.scale / (self.head_dim as f32).sqrt()
    }

    pub fn query_shape(&self) -> [usize; 4] {
        [self.batch, self.seq_q, self.heads, self.head_dim]
    }

    pub fn key_shape(&self) -> [usize; 4] {
        [self.batch, self.seq_k, self.kv_heads, self.head_dim]
    }

    pub fn rows_shape(&self) -> [usize; 4] {
        [self.batch, self.seq_q, self.heads, 1]
    }

    /// How many keys of a batch row count.
    pub fn length(&self, b: usize) -> usize {
        self.lengths.map_or(self.seq_k, |lengths| (lengths[b].max(0) as usize).min(self.seq_k))
    }

    /// The segment of a query and of a key.
    pub fn segments(&self, b: usize, query: usize, key: usize) -> [i32; 2] {
        match self.segments {
            None => [0; 2],
            // The last query and the last key are of the same one.
            Some(Segments::Packed(positions)) => {
                let end = self.seq_q.max(self.seq_k) + 3 * b;
                [(end - self.seq_q + query), (end - self.seq_k + key)].map(|at| (at / positions) as i32 - 2)
            }
            Some(Segments::Scattered(count)) => {
                [hash(b, 0, query, 0), hash(b, 1, key, 0)].map(|hash| (hash % count as u64) as i32)
            }
            Some(Segments::Apart) => [2 * query as i32, 2 * key as i32 + 1],
        }
    }

    /// The segments of all queries and of all keys, `[batch, seq]` each.
    pub fn segment_ids(&self) -> Option<[Vec<i32>; 2]> {
        self.segments?;
        let ids = |seq: usize, side: usize| {
            (0..self.batch * seq).map(|at| self.segments(at / seq, at % seq, at % seq)[side]).collect()
        };
        Some([ids(self.seq_q, 0), ids(self.seq_k, 1)])
    }

    /// The dense mask's shape.
    pub fn dense_shape(&self) -> [usize; 4] {
        let heads = if self.dense == Some(Dense::Shared) { 1 } else { self.heads };
        [self.batch, heads, self.seq_q, self.seq_k]
    }

    /// What the dense mask says of a pair.
    pub fn dense_at(&self, [b, h, i, j]: [usize; 4]) -> bool {
        match self.dense {
            None | Some(Dense::All) => true,
            Some(Dense::Nothing) => false,
            Some(Dense::Scattered) => !hash(b, h + 2, i, j).is_multiple_of(3),
            Some(Dense::Shared) => hash(b, 1, i, j).is_multiple_of(3),
            Some(Dense::Squares(side)) => (i / side + j / side + h + b).is_multiple_of(2),
        }
    }

    /// Whether segments and the dense mask let a query attend a key.
    pub fn lets(&self, index @ [b, _, i, j]: [usize; 4]) -> bool {
        let [query, key] = self.segments(b, i, j);
        query == key && self.dense_at(index)
    }

    /// A number of the case's own.
    pub fn seed(&self) -> u64 {
        let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        format!("{self:?}").bytes().fold(0xCBF2_9CE4_8422_2325, fold)
    }

    /// Query, key and value, row-major, of about unit variance.
    pub fn inputs<T: Element>(&self) -> Inputs<T> {
        let mut random = Random(self.seed());
        let mut normal = |shape: [usize; 4], factor: f32| -> Vec<T> {
            (0..shape.iter().product()).map(|_| T::from_f32(factor * random.normal())).collect()
        };
        let query = normal(self.query_shape(), self.spread);
        let (mut key, mut value) = (normal(self.key_shape(), 1.0), normal(self.key_shape(), 1.0));
        let row = self.kv_heads * self.head_dim;
        for b in 0..self.batch {
            let padding = (b * self.seq_k + self.length(b)) * row..(b + 1) * self.seq_k * row;
            key[padding.clone()].fill(T::from_f32(f32::NAN));
            value[padding].fill(T::from_f32(f32::NAN));
        }
        Inputs { query, key, value }
    }
}

/// A number that follows from four.
fn hash(a: usize, b: usize, c: usize, d: usize) -> u64 {
    let mixed = [a, b, c, d].iter().fold(0x9E37_79B9_7F4A_7C15_u64, |hash, &number| {
        (hash ^ number as u64).wrapping_mul(0xBF58_476D_1CE4_E5B9).rotate_left(29)
    });
    (mixed ^ (mixed >> 31)).wrapping_mul(0x94D0_49BB_1331_11EB) >> 33
}

/// `[batch, seq, heads, head_dim]`, row-major.
pub struct Inputs<T> {
    pub query: Vec<T>,
    pub key: Vec<T>,
    pub value: Vec<T>,
}

/// What is right, and how far from it each element may be.
pub struct Exact {
    /// `[batch, seq_q, heads, head_dim]`, row-major.
    pub out: Vec<f64>,
    pub bound: Vec<f64>,
    /// `[batch, seq_q, heads]`, row-major.
    pub lse: Vec<f64>,
    pub lse_bound: Vec<f64>,
}

/// Half a unit in the last place of 1.
pub fn roundoff<T: Element>() -> f64 {
    match T::DTYPE {
        DType::F16 => 2_f64.powi(-11),
        DType::F32 => 2_f64.powi(-24),
        _ => 2_f64.powi(-8),
    }
}

/// Dense attention in float64, from the inputs' own values.
///
/// The bound of an element follows the kernel: weights are rounded to `T` before they are multiplied with values (an
/// error of one roundoff of the mean of |value|), the result is rounded once more; products of queries and keys are
/// sums in fp32, whose error the exponential turns into one relative to the weight. f16 besides has no weights below
/// 2^-25.
pub fn exact<T: Element>(case: &Case, inputs: &Inputs<T>) -> Exact {
    let &Case { batch, seq_q, seq_k, heads, kv_heads, head_dim, band, .. } = case;
    let scale = f64::from(case.softmax_scale());
    let wide = |values: &[T]| -> Vec<f64> { values.iter().map(|v| f64::from(v.to_f32())).collect() };
    let (query, key, value) = (wide(&inputs.query), wide(&inputs.key), wide(&inputs.value));
    let tiny = if T::DTYPE == DType::F16 { 2_f64.powi(-25) } else { 0.0 };
    let mut exact = Exact { out: vec![], bound: vec![], lse: vec![], lse_bound: vec![] };
    let (mut weights, mut sums) = (Vec::with_capacity(seq_k), vec![[0.0_f64; 3]; head_dim]);
    for b in 0..batch {
        let keys = case.length(b);
        for i in 0..seq_q {
            for h in 0..heads {
                let row = |seq, heads, s, h| {
                    let start = ((b * seq + s) * heads + h) * head_dim;
                    start..start + head_dim
                };
                let q = &query[row(seq_q, heads, i, h)];
                let attended: Vec<usize> =
                    band.keys_of(i, &(0..keys)).filter(|&j| case.lets([b, h, i, j])).collect();
                let kv = |j| row(seq_k, kv_heads, j, h / (heads / kv_heads));
                weights.clear();
                let mut size = 0.0_f64;
                for &j in &attended {
                    let k = &key[kv(j)];
                    let mut product = 0.0;
                    let mut sizes = 0.0;
                    for (a, b) in q.iter().zip(k) {
                        product += a * b;
                        sizes += (a * b).abs();
                    }
                    if product > f64::NEG_INFINITY {
                        size = size.max(sizes * scale);
                    }
                    weights.push(product * scale);
                }
                let max = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                if max == f64::NEG_INFINITY {
                    exact.out.extend(vec![0.0; head_dim]);
                    exact.bound.extend(vec![0.0; head_dim]);
                    exact.lse.push(f64::NEG_INFINITY);
                    exact.lse_bound.push(0.0);
                    continue;
                }
                weights.iter_mut().for_each(|weight| *weight = (*weight - max).exp());
                let sum: f64 = weights.iter().sum();
                // Each of some dozens of partial sums is off by at most a unit in the last place of fp32 of what was
                // summed; the exponential by two.
                let noise = 2_f64.powi(-22) * (4.0 + 4.0 * size);
                exact.lse.push(max + sum.ln());
                exact.lse_bound.push(noise + 2_f64.powi(-22) * (max + sum.ln()).abs());
                // The weighted sum of values, of their sizes, and the sum of their sizes.
                sums.fill([0.0; 3]);
                for (&j, weight) in attended.iter().zip(&weights) {
                    for (sums, v) in sums.iter_mut().zip(&value[kv(j)]) {
                        *sums = [sums[0] + weight * v, sums[1] + weight * v.abs(), sums[2] + v.abs()];
                    }
                }
                let u = roundoff::<T>();
                for [out, sizes, all] in &sums {
                    exact.out.push(out / sum);
                    let absolute = u * out.abs() + (1.01 * u + 2.0 * noise) * sizes + tiny * all;
                    exact.bound.push(absolute / sum + 1e-7);
                }
            }
        }
    }
    exact
}

/// That a result is right: each element within its bound, all of them together within what rounding alone explains.
#[track_caller]
pub fn check<T: Element>(what: &str, case: &Case, exact: &Exact, out: &[T], lse: Option<&[f32]>) {
    let [_, seq, heads, head_dim] = case.query_shape();
    let place = |i: usize, width: usize| {
        let row = i / width;
        [row / (seq * heads), row / heads % seq, row % heads, i % width]
    };
    assert_eq!(out.len(), exact.out.len());
    let (mut worst, mut square, mut norm) = ((0.0, 0), 0.0, 0.0);
    for (i, (out, (right, bound))) in out.iter().zip(exact.out.iter().zip(&exact.bound)).enumerate() {
        let error = (f64::from(out.to_f32()) - right).abs();
        let excess = if *bound == 0.0 && error == 0.0 { 0.0 } else { error / bound };
        if excess.is_nan() || excess > worst.0 {
            worst = (excess, i);
        }
        square += error * error;
        norm += right * right;
    }
    let (excess, i) = worst;
    assert!(
        excess <= 1.0,
        "{what}: element {:?} is {:?}, expected {:e} within {:e} ({excess:.2} times the bound); {case:?}",
        place(i, head_dim),
        out[i],
        exact.out[i],
        exact.bound[i],
    );
    // Measured errors of two roundings are half of this.
    let relative = if norm == 0.0 { square.sqrt() } else { (square / norm).sqrt() };
    let most = match T::DTYPE {
        DType::F16 => 6e-4,
        DType::F32 => 1e-5,
        _ => 4e-3,
    };
    assert!(relative <= most, "{what}: relative error {relative:e}, at most {most:e}; {case:?}");
    let Some(lse) = lse else { return };
    for (i, (lse, (right, bound))) in lse.iter().zip(exact.lse.iter().zip(&exact.lse_bound)).enumerate() {
        let right32 = *right as f32;
        let near = *lse == right32 || (f64::from(*lse) - right).abs() <= *bound;
        let [b, s, h, _] = place(i, 1);
        assert!(
            near,
            "{what}: log-sum-exp of row {:?} is {lse}, expected {right} within {bound:e}; {case:?}",
            [b, s, h]
        );
    }
}

/// How a `[batch, seq, heads, head_dim]` index counts, row-major.
pub fn flat([_, n1, n2, n3]: [usize; 4], [a, b, c, d]: [usize; 4]) -> usize {
    ((a * n1 + b) * n2 + c) * n3 + d
}
