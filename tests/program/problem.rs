//! What a file holds, and what attention on it must give.

use std::path::Path;

use safetensors::Dtype;

use crate::dense::{attention, concat, narrow};
use crate::succeed;
use crate::tensors::{Values, read, relative_error, write};

/// Types, their names, and how far a result may be from float64.
pub(crate) const TYPES: [(Dtype, &str, f64); 3] =
    [(Dtype::F32, "f32", 1e-5), (Dtype::F16, "f16", 8e-4), (Dtype::BF16, "bf16", 4e-3)];

/// Lengths of all axes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) batch: usize,
    /// Positions of queries and of keys.
    pub(crate) seq: [usize; 2],
    /// Heads of queries, and of keys and values.
    pub(crate) heads: [usize; 2],
    pub(crate) dim: usize,
    pub(crate) joint: usize,
}

/// The tensors of a file: all that a mask may read among them.
pub(crate) struct Problem {
    pub(crate) sizes: Sizes,
    dtype: Dtype,
    plain: [Values; 3],
    joint: Option<[Values; 3]>,
    /// `[batch]`.
    key_lengths: Values,
    /// `[batch, seq of the queries]`.
    segments: Values,
    /// `[batch, 1 or heads, queries, keys]`, joint tokens included.
    mask: Values,
}

/// What must come out: of the tokens and of the joint ones, the output and the log-sum-exp.
pub(crate) struct Expected {
    out: [Values; 2],
    lse: [Values; 2],
}

impl Problem {
    /// Tensors that look random. The first row of the batch has two thirds of the keys, the second has fewer, the third
    /// none; segments are not in order; the mask leaves some queries nothing.
    pub(crate) fn new(dtype: Dtype, sizes: Sizes) -> Self {
        let Sizes { batch, seq: [seq_q, seq_k], heads: [heads, kv_heads], dim, joint } = sizes;
        let three = |seed: u64, [queries, keys]: [usize; 2]| {
            [(0, queries, heads), (1, keys, kv_heads), (2, keys, kv_heads)].map(|(number, seq, heads)| {
                Values::random(seed + number, [batch, seq, heads, dim]).rounded(dtype)
            })
        };
        let of = |shape: Vec<usize>, value: &dyn Fn(usize) -> usize| {
            let values = (0..shape.iter().product()).map(|flat| value(flat) as f64).collect();
            Values { shape, values }
        };
        let (queries, keys) = (joint + seq_q, joint + seq_k);
        let mask_heads = if (heads + seq_k) % 2 == 0 { heads } else { 1 };
        Self {
            sizes,
            dtype,
            plain: three(1, [seq_q, seq_k]),
            joint: (joint > 0).then(|| three(4, [joint, joint])),
            key_lengths: of(vec![batch], &|row| {
                if row == 2 { 0 } else { (2 * seq_k).div_ceil(3 * (row + 1)) }
            }),
            segments: of(vec![batch, seq_q], &|flat| (flat * flat / 7 + flat / seq_q) % 3),
            mask: of(vec![batch, mask_heads, queries, keys], &|flat| {
                let nothing = flat / keys % 7 == 3;
                if nothing || flat % 11 % 3 == 1 { 0 } else { 1 + flat % 255 }
            }),
        }
    }

    /// Writes the file, with axes of tensors (and of none but those) in an order.
    pub(crate) fn write(&self, path: &Path, order: [usize; 4]) {
        let ordered = |tensors: &[Values; 3]| tensors.each_ref().map(|tensor| tensor.permuted(order));
        let plain = ordered(&self.plain);
        let joint = self.joint.as_ref().map(ordered);
        let mut tensors = vec![
            ("key_lengths", &self.key_lengths, Dtype::I64),
            ("segments", &self.segments, Dtype::I32),
            ("mask", &self.mask, Dtype::U8),
        ];
        tensors
            .extend(["q", "k", "v"].into_iter().zip(&plain).map(|(name, values)| (name, values, self.dtype)));
        if let Some(joint) = &joint {
            let names = ["joint_q", "joint_k", "joint_v"];
            tensors.extend(names.into_iter().zip(joint).map(|(name, values)| (name, values, self.dtype)));
        }
        write(path, &tensors);
    }

    /// What must come out under a mask, with joint tokens (if there are any) on a side.
    pub(crate) fn expected(&self, mask: &str, side: &str) -> Expected {
        let Sizes { seq: [seq_q, seq_k], joint: tokens, .. } = self.sizes;
        let front = side == "front";
        let (joint_q, rest_q) = if front { (0, tokens) } else { (seq_q, 0) };
        let rest_k = if front { tokens } else { 0 };
        let whole: [Values; 3] = match &self.joint {
            None => self.plain.clone(),
            Some(joint) => std::array::from_fn(|i| {
                let (joint, plain) = (&joint[i], &self.plain[i]);
                if front { concat(joint, plain, 1) } else { concat(plain, joint, 1) }
            }),
        };
        let image_key = |j: usize| j.checked_sub(rest_k).filter(|j| *j < seq_k);
        let attends = |b: usize, h: usize, i: usize, j: usize| {
            let (query, key) = (i as i64 - rest_q as i64, j as i64 - rest_k as i64);
            // The position of the key that the query stands at.
            let own = query + seq_k as i64 - seq_q as i64;
            mask.split('+').all(|term| match term {
                "none" => true,
                "causal" => key <= own,
                "padding" => image_key(j).is_none_or(|key| (key as f64) < self.key_lengths.values[b]),
                "segments" => {
                    let id = |position: i64| self.segments.values[b * seq_q + position as usize];
                    id(query) == id(key)
                }
                "dense" => {
                    let [_, heads, queries, keys] = self.mask.shape[..] else { panic!("four axes") };
                    self.mask.values[((b * heads + h % heads) * queries + i) * keys + j] != 0.0
                }
                window => {
                    let numbers = window.strip_prefix("window:").expect("a window");
                    let numbers: Vec<i64> = numbers.split(',').map(|text| text.parse().unwrap()).collect();
                    (own - numbers[0]..=own + numbers[1]).contains(&key)
                }
            })
        };
        let (out, lse) = attention(whole.each_ref(), None, attends);
        Expected {
            out: [narrow(&out, 1, rest_q, seq_q), narrow(&out, 1, joint_q, tokens)],
            lse: [narrow(&lse, 2, rest_q, seq_q), narrow(&lse, 2, joint_q, tokens)],
        }
    }
}

impl Expected {
    /// Runs the program on `in.safetensors`, and compares what it writes.
    #[track_caller]
    pub(crate) fn check(&self, folder: &Path, dtype: Dtype, order: [usize; 4], args: &[&str]) {
        let io = ["--input", "in.safetensors", "--output", "out.safetensors", "--lse", "--no-check"];
        succeed(folder, &[&io[..], &["--threads", "1"], args].concat());
        let bound = TYPES.iter().find(|(known, ..)| *known == dtype).expect("a type to compute in").2;
        let output = folder.join("out.safetensors");
        for (number, (out, lse)) in [("out", "lse"), ("joint_out", "joint_lse")].into_iter().enumerate() {
            if self.out[number].values.is_empty() {
                continue;
            }
            let (found, found_dtype) = read(&output, out);
            let error = relative_error(&found.permuted(order), &self.out[number]);
            assert!(error <= bound && found_dtype == dtype, "{out}, {args:?}, {dtype}: {error:e}");
            let (found, found_dtype) = read(&output, lse);
            let error = relative_error(&found, &self.lse[number]);
            assert!(error <= bound && found_dtype == Dtype::F32, "{lse}, {args:?}, {dtype}: {error:e}");
        }
    }
}
