//! Both kernels against attention in float64, under every conjunction of masks.

use attn_plan::Run;
use proptest::prelude::*;

use super::rows::tests::LOADED;
use crate::device::{Arena, Cpu, Scope, cpu::CpuQueue};
use crate::kernel::{
    AttentionCall, Band, BlockMask, BlockSegments, CarriesState, Flash, KeyLengths, Sdpa, SegmentIds,
};
use crate::tensor::{KeyValue, View, ViewMut, contiguous_strides};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn shuffle<V>(&mut self, values: &mut [V]) {
        for last in (1..values.len()).rev() {
            values.swap(last, self.below(last + 1));
        }
    }

    /// Of about unit variance.
    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| ((self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0) * 1.7).collect()
    }
}

/// How a tensor `[batch, seq, heads, head_dim]` lies in memory.
#[derive(Clone, Copy, Debug)]
enum Lies {
    Dense,
    /// Heads before positions.
    HeadsFirst,
    /// Every second element of a row.
    Spread,
}

impl Lies {
    fn strides(self, shape: [usize; 4]) -> [usize; 4] {
        let [_, seq, heads, width] = shape;
        match self {
            Self::Dense => contiguous_strides(shape),
            Self::HeadsFirst => [heads * seq * width, width, seq * width, 1],
            Self::Spread => contiguous_strides(shape).map(|stride| 2 * stride),
        }
    }
}

struct Held {
    elements: Vec<f32>,
    shape: [usize; 4],
    strides: [usize; 4],
}

impl Held {
    fn new(random: &mut Random, shape: [usize; 4], lies: Lies) -> Self {
        let count = 2 * shape.iter().product::<usize>();
        Self { elements: random.floats(count), shape, strides: lies.strides(shape) }
    }

    fn view(&self) -> View<'_, f32> {
        View::with_strides(&self.elements, self.shape, self.strides).unwrap()
    }

    fn set(&mut self, index: [usize; 4], value: f32) {
        ViewMut::with_strides(&mut self.elements, self.shape, self.strides).unwrap().set(index, value);
    }
}

/// One problem: tensors and every mask there is, of which some are taken.
struct Problem {
    query: Held,
    key: Held,
    value: Held,
    band: Band,
    lengths: Option<Vec<usize>>,
    /// Of queries and keys.
    ids: Option<[Vec<i32>; 2]>,
    /// `[batch, 1 or heads, seq_q, seq_k]`.
    dense: Option<(Vec<u8>, usize)>,
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    batch: usize,
    seq_q: usize,
    seq_k: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

/// Which masks, and how much they leave.
#[derive(Clone, Copy, Debug)]
struct Masks {
    /// None, causal, a window.
    band: usize,
    lengths: bool,
    /// None, in order, in any order, all the same.
    segments: usize,
    /// None, for all heads, for each head, all ones.
    dense: usize,
}

impl Problem {
    fn new(seed: u64, shape: Shape, masks: Masks, lies: Lies) -> Self {
        let Shape { batch, seq_q, seq_k, heads, kv_heads, head_dim } = shape;
        let mut random = Random(seed);
        let keys = [batch, seq_k, kv_heads, head_dim];
        let band = match masks.band {
            0 => Band::FULL,
            1 => Band::causal(seq_q, seq_k),
            _ => Band { lo: -3 - random.below(20) as i64, hi: random.below(30) as i64 },
        };
        // The first row of the batch has all its keys, the second none, others some.
        let lengths = masks.lengths.then(|| {
            (0..batch)
                .map(|b| [seq_k, 0].get(b).copied().unwrap_or_else(|| random.below(seq_k + 1)))
                .collect()
        });
        let ids = (masks.segments > 0).then(|| {
            [seq_q, seq_k].map(|seq| {
                let mut ids: Vec<i32> = (0..batch)
                    .flat_map(|b| (0..seq).map(move |i| (i * (b + 2) / seq.max(1)) as i32 - 1))
                    .collect();
                match masks.segments {
                    1 => {}
                    2 => random.shuffle(&mut ids),
                    _ => ids.fill(i32::MIN),
                }
                ids
            })
        });
        let dense = (masks.dense > 0).then(|| {
            let own = if masks.dense == 2 { heads } else { 1 };
            let mut bytes: Vec<u8> =
                (0..batch * own * seq_q * seq_k).map(|_| [0, 0, 1, 255][random.below(4)]).collect();
            if masks.dense == 3 {
                bytes.fill(2);
            } else if let Some(row) = bytes.get_mut(..seq_k) {
                // One row attends nothing.
                row.fill(0);
            }
            (bytes, own)
        });
        Self {
            query: Held::new(&mut random, [batch, seq_q, heads, head_dim], lies),
            key: Held::new(&mut random, keys, lies),
            value: Held::new(&mut random, keys, lies),
            band,
            lengths,
            ids,
            dense,
        }
    }

    fn heads_of(&self, kv_head: usize) -> core::ops::Range<usize> {
        let group = self.query.shape[2] / self.key.shape[2];
        kv_head * group..(kv_head + 1) * group
    }

    /// Whether a query attends a key: the definition.
    fn attends(&self, [b, i, h]: [usize; 3], j: usize) -> bool {
        let (seq_q, seq_k) = (self.query.shape[1], self.key.shape[1]);
        let offset = j as i64 - i as i64;
        self.band.lo <= offset
            && offset <= self.band.hi
            && self.lengths.as_ref().is_none_or(|lengths| j < lengths[b])
            && self.ids.as_ref().is_none_or(|[q, k]| q[b * seq_q + i] == k[b * seq_k + j])
            && self
                .dense
                .as_ref()
                .is_none_or(|(bytes, own)| bytes[((b * own + h % own) * seq_q + i) * seq_k + j] != 0)
    }

    /// The mask of a block of keys.
    fn mask(&self, keys: Run) -> BlockMask<'_> {
        let [batch, seq_q, ..] = self.query.shape;
        let seq_k = self.key.shape[1];
        let queries = Run { start: 0, step: 1, len: seq_q };
        BlockMask {
            band: self.band.from_block(0, keys.start),
            key_lengths: self.lengths.as_ref().map(|lengths| KeyLengths::of_block(lengths, 0, keys)),
            segments: self.ids.as_ref().map(|[q, k]| BlockSegments {
                query: SegmentIds::new(q, seq_q, queries),
                key: SegmentIds::new(k, seq_k, keys),
            }),
            dense: self.dense.as_ref().map(|(bytes, own)| {
                View::new(bytes, [batch, *own, seq_q, seq_k])
                    .unwrap()
                    .narrow(3, keys.start, keys.len)
                    .unwrap()
            }),
        }
    }

    /// Makes each key and value that no query attends a NaN.
    fn poison(&mut self) {
        let [batch, seq_k, kv_heads, head_dim] = self.key.shape;
        for b in 0..batch {
            for j in 0..seq_k {
                for kv_head in 0..kv_heads {
                    let mut rows =
                        (0..self.query.shape[1]).flat_map(|i| self.heads_of(kv_head).map(move |h| [b, i, h]));
                    if !rows.any(|row| self.attends(row, j)) {
                        for c in 0..head_dim {
                            self.key.set([b, j, kv_head, c], f32::NAN);
                            self.value.set([b, j, kv_head, c], f32::NAN);
                        }
                    }
                }
            }
        }
    }

    /// Each row in order: its output, and its log-sum-exp at the end.
    fn exact(&self) -> Vec<f64> {
        let head_dim = self.query.shape[3];
        let at = |held: &Held, index| f64::from(held.view().at(index));
        let group = self.heads_of(0).len();
        self.rows()
            .flat_map(|row @ [b, i, h]| {
                let attended: Vec<usize> = (0..self.key.shape[1]).filter(|j| self.attends(row, *j)).collect();
                let products: Vec<f64> = attended
                    .iter()
                    .map(|j| {
                        let product =
                            |c| at(&self.query, [b, i, h, c]) * at(&self.key, [b, *j, h / group, c]);
                        (0..head_dim).map(product).sum::<f64>() * f64::from(SCALE)
                    })
                    .collect();
                let max = products.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = products.iter().map(|product| (product - max).exp()).sum();
                let out = |c| {
                    let weighted = attended
                        .iter()
                        .zip(&products)
                        .map(|(j, product)| (product - max).exp() * at(&self.value, [b, *j, h / group, c]));
                    if attended.is_empty() { 0.0 } else { weighted.sum::<f64>() / sum }
                };
                let lse = if attended.is_empty() { f64::NEG_INFINITY } else { max + sum.ln() };
                (0..head_dim).map(out).chain([lse]).collect::<Vec<_>>()
            })
            .collect()
    }

    fn rows(&self) -> impl Iterator<Item = [usize; 3]> + use<> {
        let [batch, seq_q, heads, _] = self.query.shape;
        (0..batch * seq_q * heads).map(move |row| [row / (seq_q * heads), row / heads % seq_q, row % heads])
    }

    /// What a kernel computes, as [`exact`](Self::exact): at once, or in blocks of keys.
    fn run<K: CarriesState<Cpu, f32>>(&self, kernel: K, hops: Option<&[Run]>) -> Vec<f32> {
        let queue = CpuQueue::new(1).unwrap();
        let mut arena = Arena::<Cpu>::default();
        let scope: Scope<'_, Cpu> = arena.open(&queue).unwrap();
        let [batch, seq_q, heads, head_dim] = self.query.shape;
        // An output of which only the first columns are written, so that rows are strided.
        let width = head_dim + 1;
        let mut out = vec![f32::NAN; batch * seq_q * heads * width];
        let mut lse = vec![f32::NAN; batch * seq_q * heads];
        let strides = contiguous_strides([batch, seq_q, heads, width]);
        let mut out_view = ViewMut::with_strides(&mut out, self.query.shape, strides).unwrap();
        let mut lse_view = ViewMut::new(&mut lse, [batch, seq_q, heads, 1]).unwrap();
        let (query, kv) = (self.query.view(), KeyValue { key: self.key.view(), value: self.value.view() });
        match hops {
            None => {
                let mask = self.mask(Run::of(0..self.key.shape[1]));
                let (out, lse) = (out_view.reborrow(), Some(lse_view.reborrow()));
                let mut call = AttentionCall { query, kv, mask, scale: SCALE, out, lse };
                kernel.forward(scope, &mut call).unwrap();
            }
            Some(hops) => {
                let mut state = kernel.begin(scope, self.query.shape).unwrap();
                for &hop in hops {
                    let block = kv.select(1, hop).unwrap();
                    kernel.step(scope, query, block, &self.mask(hop), SCALE, &mut state).unwrap();
                }
                kernel.finish(scope, state, out_view.reborrow(), Some(lse_view.reborrow())).unwrap();
            }
        }
        let written =
            |(row, lse): (&[f32], f32)| row[..head_dim].iter().copied().chain([lse]).collect::<Vec<_>>();
        out.chunks_exact(width.max(1)).zip(lse).flat_map(written).collect()
    }

    /// Consecutive keys in blocks, in any order; some are empty.
    fn hops(&self, random: &mut Random) -> Vec<Run> {
        let seq_k = self.key.shape[1];
        let mut cuts: Vec<usize> = (0..4).map(|_| random.below(seq_k + 1)).chain([0, seq_k]).collect();
        cuts.sort_unstable();
        let mut hops: Vec<Run> = cuts.windows(2).map(|cut| Run::of(cut[0]..cut[1])).collect();
        random.shuffle(&mut hops);
        hops
    }
}

const SCALE: f32 = 0.31;

/// Both kernels, at once and in two orders of blocks.
fn every_way(problem: &Problem) -> Vec<(&'static str, Vec<f32>)> {
    let mut random = Random(99);
    let [first, second] = [problem.hops(&mut random), problem.hops(&mut random)];
    vec![
        ("sdpa", problem.run(Sdpa, None)),
        ("flash", problem.run(Flash, None)),
        ("sdpa in blocks", problem.run(Sdpa, Some(&first))),
        ("flash in blocks", problem.run(Flash, Some(&first))),
        ("sdpa in other blocks", problem.run(Sdpa, Some(&second))),
        ("flash in other blocks", problem.run(Flash, Some(&second))),
    ]
}

#[track_caller]
fn verify(mut problem: Problem, what: &str) {
    problem.poison();
    let exact = problem.exact();
    assert!(exact.iter().all(|value| !value.is_nan()), "{what}: the right result is free of NaN");
    for (way, found) in every_way(&problem) {
        assert_eq!(found.len(), exact.len());
        for (index, (found, exact)) in found.iter().zip(&exact).enumerate() {
            let near = f64::from(*found) == *exact || (f64::from(*found) - exact).abs() <= 3e-6;
            assert!(near, "{way}, {what}: number {index} is {found}, expected {exact}");
        }
    }
}

/// Every conjunction, over several tiles and blocks.
#[test]
fn every_conjunction_of_masks_is_exact() {
    let shape = Shape { batch: 3, seq_q: 70, seq_k: 150, heads: 2, kv_heads: 1, head_dim: 9 };
    for band in 0..3 {
        for lengths in [false, true] {
            for segments in 0..4 {
                for dense in 0..4 {
                    let masks = Masks { band, lengths, segments, dense };
                    let seed = (band * 16 + segments * 4 + dense) as u64;
                    verify(Problem::new(seed, shape, masks, Lies::Dense), &format!("{masks:?}"));
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_shape_under_any_masks_is_exact(
        seed in any::<u64>(),
        (batch, seq_q, seq_k) in (1_usize..4, 0_usize..80, 0_usize..140),
        (kv_heads, group, head_dim) in (1_usize..3, 1_usize..4, 1_usize..20),
        (band, lengths, segments, dense) in (0_usize..3, any::<bool>(), 0_usize..4, 0_usize..4),
        lies in prop::sample::select(vec![Lies::Dense, Lies::HeadsFirst, Lies::Spread]),
    ) {
        let shape = Shape { batch, seq_q, seq_k, heads: kv_heads * group, kv_heads, head_dim };
        let masks = Masks { band, lengths, segments, dense };
        verify(Problem::new(seed, shape, masks, lies), &format!("{shape:?} {masks:?} {lies:?}"));
    }

    #[test]
    fn what_is_not_finite_reaches_those_who_attend_it_and_nobody_else(
        seed in any::<u64>(),
        (band, segments, dense) in (0_usize..3, 0_usize..4, 0_usize..4),
        in_key in any::<bool>(),
        bad in prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY]),
    ) {
        let shape = Shape { batch: 2, seq_q: 70, seq_k: 130, heads: 4, kv_heads: 2, head_dim: 6 };
        let masks = Masks { band, lengths: false, segments, dense };
        let mut problem = Problem::new(seed, shape, masks, Lies::Dense);
        let clean = every_way(&problem);
        let mut random = Random(seed ^ 1);
        let (b, j, kv_head, c) = (random.below(2), random.below(130), random.below(2), random.below(6));
        let held = if in_key { &mut problem.key } else { &mut problem.value };
        held.set([b, j, kv_head, c], bad);
        for ((way, clean), (_, found)) in clean.iter().zip(every_way(&problem)) {
            for ((row, clean), found) in problem.rows().zip(clean.chunks(7)).zip(found.chunks(7)) {
                let reached = row[0] == b && problem.heads_of(kv_head).contains(&row[2]) && problem.attends(row, j);
                if !reached {
                    // The other elements of a row are bit by bit what they were.
                    let same = clean.iter().zip(found).all(|(a, b)| a.to_bits() == b.to_bits());
                    prop_assert!(same, "{way}: row {row:?} does not attend key {j}: {clean:?} {found:?}");
                } else if !in_key {
                    prop_assert!(!found[c].is_finite(), "{way}: row {row:?} hides {bad}: {found:?}");
                } else if bad.is_nan() {
                    prop_assert!(found.iter().all(|x| x.is_nan()), "{way}: row {row:?} hides {bad}: {found:?}");
                } else {
                    // A product of -inf weighs nothing; one of +inf leaves no number. (No query is 0.)
                    let query = problem.query.view().at([row[0], row[1], row[2], c]);
                    let infinite = query * bad > 0.0;
                    prop_assert_eq!(found[6].is_finite() || found[6] == f32::NEG_INFINITY, !infinite);
                }
            }
        }
    }
}

#[test]
fn nothing_to_do_is_done() {
    let masks = Masks { band: 1, lengths: true, segments: 2, dense: 2 };
    let full = Shape { batch: 2, seq_q: 3, seq_k: 4, heads: 2, kv_heads: 1, head_dim: 4 };
    for shape in [
        Shape { batch: 0, ..full },
        Shape { seq_q: 0, ..full },
        Shape { heads: 0, kv_heads: 0, ..full },
        Shape { head_dim: 0, ..full },
    ] {
        // Sums over nothing are nothing; what matters is that there is no panic.
        let problem = Problem::new(1, shape, Masks { dense: 0, ..masks }, Lies::Dense);
        for hops in [None, Some([Run::of(2..4), Run::of(0..2)])] {
            problem.run(Sdpa, hops.as_ref().map(|hops| &hops[..]));
            problem.run(Flash, hops.as_ref().map(|hops| &hops[..]));
        }
    }
    let problem = Problem::new(1, Shape { seq_k: 0, ..full }, masks, Lies::Dense);
    for (way, found) in every_way(&problem) {
        for row in found.chunks(5) {
            assert_eq!(row, [0.0, 0.0, 0.0, 0.0, f32::NEG_INFINITY], "{way}");
        }
    }
}

/// How many rows of queries, keys and values a kernel loads.
fn loaded(problem: &Problem, kernel: impl CarriesState<Cpu, f32>) -> usize {
    let before = LOADED.get();
    problem.run(kernel, None);
    LOADED.get() - before
}

#[test]
fn blocks_that_nobody_attends_are_not_loaded() {
    const NONE: Masks = Masks { band: 0, lengths: false, segments: 0, dense: 0 };
    let shape = Shape { batch: 1, seq_q: 256, seq_k: 256, heads: 1, kv_heads: 1, head_dim: 4 };
    let blocks = |problem: &Problem| {
        let rows = loaded(problem, Flash) - 256;
        assert_eq!(rows % 128, 0);
        rows / 128
    };
    let mut problem = Problem::new(5, shape, NONE, Lies::Dense);
    assert_eq!(blocks(&problem), 16);
    // Causal: the lower triangle of four tiles by four blocks.
    problem.band = Band::causal(256, 256);
    assert_eq!(blocks(&problem), 10);
    // Four segments of 64 positions, under any ids: the diagonal.
    let ids: Vec<i32> = (0..256).map(|i| [7, -3, 12, 0][i / 64]).collect();
    problem.ids = Some([ids.clone(), ids]);
    assert_eq!(blocks(&problem), 4);
    // Segments 0 and 2 in the queries, 1 in the keys: bounds that overlap, and nothing in common.
    problem.band = Band::FULL;
    problem.ids = Some([(0..256).map(|i| 2 * (i % 2)).collect(), vec![1; 256]]);
    assert_eq!(blocks(&problem), 0);
    problem.ids = None;
    // A dense mask of one byte in one block, of which the band leaves nothing in another.
    let mut bytes = vec![0; 256 * 256];
    bytes[70 * 256 + 130] = 1;
    bytes[3 * 256 + 3] = 1;
    problem.dense = Some((bytes, 1));
    assert_eq!(blocks(&problem), 2);
    problem.band = Band::causal(256, 256);
    assert_eq!(blocks(&problem), 1);
}

#[test]
fn padding_is_never_loaded() {
    let masks = Masks { band: 0, lengths: true, segments: 2, dense: 3 };
    let shape = Shape { batch: 3, seq_q: 70, seq_k: 200, heads: 1, kv_heads: 1, head_dim: 4 };
    let mut problem = Problem::new(5, shape, Masks { segments: 3, ..masks }, Lies::Dense);
    problem.lengths = Some(vec![1, 0, 131]);
    // Queries, then keys and values: of `sdpa` once, of `flash` for each of two tiles.
    assert_eq!(loaded(&problem, Sdpa), 3 * 70 + 2 * 132);
    assert_eq!(loaded(&problem, Flash), 3 * 70 + 2 * 2 * 132);
}
