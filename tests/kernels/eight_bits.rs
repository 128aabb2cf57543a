//! What tensors in 8 bits must hold, bit for bit, and what attention makes of them, in float64.

use attn::cuda::Half;

use crate::kernels::case::{Case, Exact, Inputs};

/// Queries and keys of a tile: blocks come in an order, and weights are rounded relative to the largest so far.
const TILE: usize = 128;
const PIECE: usize = 256;

/// e4m3: to the nearest, ties to even, at most 448.
pub fn to_e4m3(value: f32) -> u8 {
    let (sign, rest) = ((value.to_bits() >> 24 & 0x80) as u8, value.to_bits() & 0x7fff_ffff);
    if value.is_nan() {
        return 0x7f;
    }
    let magnitude = f32::from_bits(rest);
    if magnitude >= 448.0 {
        return sign | 0x7e;
    }
    // What the last place is worth: 2^-9 below 2^-6, and three places below the first one above.
    let exponent = ((rest >> 23) as i32 - 127).max(-6);
    let places = (magnitude / 2_f32.powi(exponent - 3)).round_ties_even() as i32;
    // A number rounded up to the next power of two has the next exponent by this very addition.
    sign | (8 * (exponent + 6) + places) as u8
}

pub fn from_e4m3(byte: u8) -> f64 {
    let (exponent, places) = (i32::from(byte >> 3 & 15), f64::from(byte & 7));
    let magnitude = match exponent {
        0 => places * 2_f64.powi(-9),
        _ => (8.0 + places) * 2_f64.powi(exponent - 10),
    };
    let magnitude = if byte & 0x7f == 0x7f { f64::NAN } else { magnitude };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

fn to_s8(value: f32) -> i8 {
    value.round_ties_even() as i8
}

fn larger(a: f32, b: f32) -> f32 {
    if a.abs().to_bits() > b.abs().to_bits() { a.abs() } else { b.abs() }
}

fn scale_of(largest: f32, most: f32) -> f32 {
    largest.max(2_f32.powi(-50)) / most
}

/// The token whose value stands at a place of 16.
pub fn token_at(place: usize) -> usize {
    [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15][place]
}

/// A case's tensors in 8 bits, as kernels/include/attn/abi.h has them. What stands for padded keys is zero.
pub struct EightBits {
    pub query: Vec<i8>,
    pub key: Vec<i8>,
    pub value: Vec<u8>,
    /// The values as they were, `[batch, kv_heads, seq_k, head_dim]`.
    whole_value: Vec<f64>,
    pub query_scale: Vec<f32>,
    pub key_scale: Vec<f32>,
    pub value_scale: Vec<f32>,
    pub key_mean: Vec<f32>,
    /// In float64: a sum whose order is the kernel's own.
    pub query_mean: Vec<f64>,
}

impl EightBits {
    pub fn of<T: Half>(case: &Case, inputs: &Inputs<T>) -> Self {
        let &Case { batch, seq_q, seq_k, heads, kv_heads, head_dim, .. } = case;
        let scale_log2 = case.softmax_scale() * core::f32::consts::LOG2_E;
        let blocks = seq_k.div_ceil(TILE);
        let mut all = Self {
            query: vec![],
            key: vec![0; batch * kv_heads * seq_k * head_dim],
            value: vec![0; batch * kv_heads * head_dim * blocks * TILE],
            whole_value: vec![],
            query_scale: vec![],
            key_scale: vec![1.0; batch * kv_heads * blocks * 4],
            value_scale: vec![],
            key_mean: vec![],
            query_mean: vec![],
        };
        let at = |values: &[T], [seq, heads]: [usize; 2], b: usize, s: usize, h: usize, d: usize| {
            values[((b * seq + s) * heads + h) * head_dim + d].to_f32()
        };
        for (b, h) in (0..batch).flat_map(|b| (0..kv_heads).map(move |h| (b, h))) {
            let (number, length) = (b * kv_heads + h, case.length(b));
            let key = |s: usize, d: usize| at(&inputs.key, [seq_k, kv_heads], b, s, h, d);
            let value = |s: usize, d: usize| at(&inputs.value, [seq_k, kv_heads], b, s, h, d);
            let means: Vec<f32> = (0..head_dim).map(|d| mean(length, head_dim, |s| key(s, d))).collect();
            let largest = |d| (0..length).map(|s| value(s, d)).fold(0.0, larger);
            let scales: Vec<f32> = (0..head_dim).map(|d| scale_of(largest(d), 448.0)).collect();
            for block in 0..blocks {
                let tokens = || block * TILE..((block + 1) * TILE).min(length);
                for group in (0..4).filter(|_| !tokens().is_empty()) {
                    let of_group = || tokens().filter(move |s| s % 8 / 2 == group);
                    let differences = || of_group().flat_map(|s| (0..head_dim).map(move |d| (s, d)));
                    let largest = differences().map(|(s, d)| key(s, d) - means[d]).fold(0.0, larger);
                    let scale = scale_of(largest, 127.0);
                    all.key_scale[(number * blocks + block) * 4 + group] = scale;
                    for (s, d) in differences() {
                        let rounded = to_s8((key(s, d) - means[d]) * (1.0 / scale));
                        all.key[(number * seq_k + s) * head_dim + d] = rounded;
                    }
                }
            }
            for (d, place) in (0..head_dim).flat_map(|d| (0..blocks * TILE).map(move |place| (d, place))) {
                let token = place / 16 * 16 + token_at(place % 16);
                if token < length {
                    let to = (number * head_dim + d) * blocks * TILE + place;
                    all.value[to] = to_e4m3(value(token, d) * (1.0 / scales[d]));
                }
            }
            all.whole_value.extend(
                (0..seq_k)
                    .flat_map(|s| (0..head_dim).map(move |d| (s, d)))
                    .map(|(s, d)| f64::from(value(s, d))),
            );
            all.key_mean.extend(means);
            all.value_scale.extend(scales);
        }
        for (b, h, s) in
            (0..batch).flat_map(|b| (0..heads).flat_map(move |h| (0..seq_q).map(move |s| (b, h, s))))
        {
            let row: Vec<f32> =
                (0..head_dim).map(|d| at(&inputs.query, [seq_q, heads], b, s, h, d)).collect();
            let scale = scale_of(row.iter().copied().fold(0.0, larger), 127.0);
            all.query.extend(row.iter().map(|q| to_s8(q * (1.0 / scale))));
            all.query_scale.push((scale * scale_log2).max(2_f32.powi(-63)));
            let mean = (b * kv_heads + h / (heads / kv_heads)) * head_dim;
            let products = row.iter().zip(&all.key_mean[mean..]).map(|(q, k)| f64::from(*q) * f64::from(*k));
            all.query_mean.push(products.sum::<f64>() * f64::from(scale_log2));
        }
        all
    }

    /// Attention on them: online softmax over blocks of keys, those first of which not all pairs are attended; the sums of a
    /// block exact. The bounds are not used. `values_too`: weights and values in 8 bits, or neither rounded.
    pub fn attend(&self, case: &Case, values_too: bool) -> Exact {
        let &Case { batch, seq_q, heads, head_dim, .. } = case;
        let mut exact = Exact { out: vec![], bound: vec![], lse: vec![], lse_bound: vec![] };
        exact.out.resize(batch * seq_q * heads * head_dim, 0.0);
        exact.lse.resize(batch * seq_q * heads, f64::NEG_INFINITY);
        for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
            for tile in (0..seq_q).step_by(TILE) {
                let order = blocks_in_order(case, b, h, tile);
                for i in tile..(tile + TILE).min(seq_q) {
                    self.attend_row(case, [b, h, i], &order, values_too, &mut exact);
                }
            }
        }
        exact
    }

    fn attend_row(
        &self,
        case: &Case,
        [b, h, i]: [usize; 3],
        order: &[usize],
        values_too: bool,
        exact: &mut Exact,
    ) {
        let &Case { seq_q, seq_k, heads, kv_heads, head_dim, .. } = case;
        let (blocks, length) = (seq_k.div_ceil(TILE), case.length(b));
        let (row, kv) = ((b * heads + h) * seq_q + i, b * kv_heads + h / (heads / kv_heads));
        let query = &self.query[row * head_dim..][..head_dim];
        let (mut max, mut sum, mut out) = (f32::NEG_INFINITY, 0.0_f64, vec![0.0_f64; head_dim]);
        for &block in order {
            let keys = block * TILE..((block + 1) * TILE).min(length);
            let products: Vec<(usize, f32, f32)> = keys
                .filter(|&j| attends(case, [b, h, i, j]))
                .map(|j| {
                    let key = &self.key[(kv * seq_k + j) * head_dim..][..head_dim];
                    let product: i32 =
                        query.iter().zip(key).map(|(q, k)| i32::from(*q) * i32::from(*k)).sum();
                    let scale = self.key_scale[(kv * blocks + block) * 4 + j % 8 / 2];
                    (j, product as f32, self.query_scale[row] * scale)
                })
                .collect();
            let top = products.iter().map(|(_, product, factor)| product * factor).fold(max, f32::max);
            if top == f32::NEG_INFINITY {
                continue;
            }
            let correction = (f64::from(max) - f64::from(top)).exp2();
            max = top;
            sum *= correction;
            out.iter_mut().for_each(|out| *out *= correction);
            for (j, product, factor) in products {
                let weight = f64::from(product.mul_add(factor, 8.0 - max)).exp2();
                sum += weight;
                if !values_too {
                    let value = &self.whole_value[(kv * seq_k + j) * head_dim..][..head_dim];
                    out.iter_mut().zip(value).for_each(|(out, value)| *out += weight * value);
                    continue;
                }
                let rounded = from_e4m3(to_e4m3(weight as f32));
                let place = j / 16 * 16 + (0..16).find(|&place| token_at(place) == j % 16).unwrap();
                for (d, out) in out.iter_mut().enumerate() {
                    *out += rounded * from_e4m3(self.value[(kv * head_dim + d) * blocks * TILE + place]);
                }
            }
        }
        if sum == 0.0 {
            return;
        }
        let place = (b * seq_q + i) * heads + h;
        for (d, out) in out.iter().enumerate() {
            let scale = if values_too { f64::from(self.value_scale[kv * head_dim + d]) } else { 1.0 };
            exact.out[place * head_dim + d] = out / sum * scale;
        }
        let shift = f64::from(max) + self.query_mean[row];
        exact.lse[place] = shift * core::f64::consts::LN_2 + (sum / 256.0).ln();
    }
}

/// The mean of a channel's keys, summed up as kernels/sage/survey.h does.
fn mean(length: usize, head_dim: usize, key: impl Fn(usize) -> f32) -> f32 {
    let lanes = head_dim / 8;
    let (rows, rows_of_warp) = (256 / lanes, 32 / lanes);
    let mut sum = 0.0_f32;
    for piece in (0..length).step_by(PIECE) {
        let mut of_rows = vec![0.0_f32; rows];
        for token in piece..(piece + PIECE).min(length) {
            of_rows[(token - piece) % rows] += key(token);
        }
        let warps = of_rows.chunks(rows_of_warp).map(|rows| match *rows {
            [a, b] => a + b,
            [a, b, c, d] => (a + b) + (c + d),
            _ => unreachable!("two or four rows a warp"),
        });
        sum += warps.reduce(|a, b| a + b).unwrap();
    }
    if length == 0 { 0.0 } else { sum / length as f32 }
}

fn attends(case: &Case, index @ [b, _, i, j]: [usize; 4]) -> bool {
    j < case.length(b) && case.band.keys_of(i, &(j..j + 1)).next().is_some() && case.lets(index)
}

/// The blocks of keys of a tile: those of which some pairs are attended, then those of which all are.
fn blocks_in_order(case: &Case, b: usize, h: usize, tile: usize) -> Vec<usize> {
    let (mut some, mut all) = (vec![], vec![]);
    for block in 0..case.seq_k.div_ceil(TILE) {
        let rows = tile..(tile + TILE).min(case.seq_q);
        let pairs = rows.clone().flat_map(|i| (block * TILE..(block + 1) * TILE).map(move |j| (i, j)));
        let attended = pairs.filter(|&(i, j)| attends(case, [b, h, i, j])).count();
        match attended {
            0 => {}
            _ if attended == rows.len() * TILE => all.push(block),
            _ => some.push(block),
        }
    }
    some.extend(all);
    some
}
