//! Partial results become one: what a carried state makes of blocks of keys, whatever their sums and their order.

use attn::device::Arena;
use attn::device::cpu::CpuQueue;
use attn::prelude::*;
use attn::{Band, BlockMask, CarriesState, Flash, KeyLengths, KeyValue, Sdpa};

use crate::support::Random;

/// A block of keys: their products with each query, and their values. Row-major `[batch, keys, heads, head_dim]`.
#[derive(Clone)]
struct Block {
    key: Tensor<f32>,
    value: Tensor<f32>,
    /// What keeps queries from keys.
    band: Band,
}

impl Block {
    fn len(&self) -> usize {
        self.key.shape()[1]
    }
}

/// One state, taken through blocks: the output, and the log-sum-exp of each row.
struct Merged {
    /// `[batch, rows, heads, head_dim]`.
    out: Tensor<f32>,
    /// `[batch, rows, heads, 1]`.
    lse: Tensor<f32>,
}

/// Queries that read their row's coordinate off a key: the product of query `i` and a key is the key's element `i`,
/// exactly.
fn one_hot([batch, rows, heads, head_dim]: [usize; 4]) -> Tensor<f32> {
    assert!(rows <= head_dim);
    Tensor::from_fn([batch, rows, heads, head_dim], |[_, i, _, d]| f32::from(u8::from(i == d))).unwrap()
}

fn merge<K: CarriesState<Cpu, f32>>(kernel: &K, shape: [usize; 4], blocks: &[Block]) -> Merged {
    let [batch, rows, heads, _] = shape;
    let (queue, mut arena) = (CpuQueue::new(1).unwrap(), Arena::<Cpu>::default());
    let scope = arena.open(&queue).unwrap();
    let query = one_hot(shape);
    let mut state = kernel.begin(scope, shape).unwrap();
    for Block { key, value, band } in blocks {
        let kv = KeyValue { key: key.view(), value: value.view() };
        kernel.step(scope, query.view(), kv, &BlockMask::from(*band), 1.0, &mut state).unwrap();
    }
    let garbage = |width: usize| Tensor::from_fn([batch, rows, heads, width], |_| f32::NAN).unwrap();
    let (mut out, mut lse) = (garbage(shape[3]), garbage(1));
    kernel.finish(scope, state, out.view_mut(), Some(lse.view_mut())).unwrap();
    Merged { out, lse }
}

/// Calls a check with each kernel.
macro_rules! with_kernels {
    ($check:ident $(, $argument:expr)*) => {
        $check(&Sdpa, "sdpa" $(, $argument)*);
        $check(&Flash, "flash" $(, $argument)*);
    };
}

/// How a block comes to have a given log-sum-exp: for -inf there is more than one way.
#[derive(Clone, Copy, Debug)]
enum Made {
    /// By one key with this product.
    ByProduct(f32),
    /// There are no keys.
    Without,
    /// By a key that the mask hides, with a value that would show.
    Hidden,
}

impl Made {
    fn ways(lse: f32) -> Vec<Self> {
        let mut ways = vec![Self::ByProduct(lse)];
        if lse == f32::NEG_INFINITY {
            ways.extend([Self::Without, Self::Hidden]);
        }
        ways
    }

    fn block(self, value: [f32; 4]) -> Block {
        let (product, keys, band) = match self {
            Self::ByProduct(product) => (product, 1, Band::FULL),
            Self::Without => (0.0, 0, Band::FULL),
            Self::Hidden => (f32::NAN, 1, Band { lo: 1, hi: 1 }),
        };
        let hidden = matches!(self, Self::Hidden);
        let shape = [1, keys, 1, 4];
        Block {
            key: Tensor::from_fn(shape, |[.., d]| if d == 0 { product } else { 0.0 }).unwrap(),
            value: Tensor::from_fn(shape, |[.., d]| if hidden { f32::NAN } else { value[d] }).unwrap(),
            band,
        }
    }
}

const FIRST: [f32; 4] = [1.0, -2.0, 3.0, 0.5];
const SECOND: [f32; 4] = [5.0, 6.0, -7.0, 0.25];
const NONE: f32 = f32::NEG_INFINITY;

#[test]
fn two_blocks_merge_as_the_table_says() {
    fn check<K: CarriesState<Cpu, f32>>(kernel: &K, name: &str) {
        let mean = [0, 1, 2, 3].map(|d| (FIRST[d] + SECOND[d]) / 2.0);
        // The sums of the two blocks, then the result and its sum.
        let table = [
            (-1000.0, 1000.0, SECOND, 1000.0),
            (1000.0, -1000.0, FIRST, 1000.0),
            (-1000.0, -1000.0, mean, 2_f32.ln() - 1000.0),
            (0.0, NONE, FIRST, 0.0),
            (NONE, 0.0, SECOND, 0.0),
            (NONE, NONE, [0.0; 4], NONE),
        ];
        for (first, second, out, lse) in table {
            for one in Made::ways(first) {
                for other in Made::ways(second) {
                    let merged = merge(kernel, [1, 1, 1, 4], &[one.block(FIRST), other.block(SECOND)]);
                    let says = format!("{name}: {one:?}, then {other:?}");
                    assert_eq!(merged.out.as_slice(), out, "{says}");
                    assert_eq!(merged.lse.as_slice(), [lse], "{says}");
                    // Another block that holds nothing changes nothing.
                    for nothing in Made::ways(NONE) {
                        let blocks = [one, nothing, other, nothing].map(|made| made.block(FIRST));
                        let blocks = [&blocks[..2], &[other.block(SECOND)], &blocks[3..]].concat();
                        let merged = merge(kernel, [1, 1, 1, 4], &blocks);
                        assert_eq!(
                            (merged.out.as_slice(), merged.lse.as_slice()),
                            (&out[..], &[lse][..]),
                            "{says}"
                        );
                    }
                }
            }
        }
    }
    with_kernels!(check);
}

/// Blocks of random numbers of keys, whose products are eight times a normal number; some rows are kept from some blocks.
fn random_blocks(random: &mut Random, [batch, rows, heads, head_dim]: [usize; 4], holes: bool) -> Vec<Block> {
    let mut block = || {
        let keys = [1, 3, 5, 67][random.below(4)];
        let (keys, band) = match random.below(4) {
            0 if holes => (0, Band::FULL),
            1 if holes => {
                (keys, Band { lo: random.below(keys + rows) as i64 - rows as i64, hi: Band::FULL.hi })
            }
            2 if holes => (keys, Band { lo: 1, hi: 0 }),
            _ => (keys, Band::FULL),
        };
        let mut tensor = |scale: f32| {
            Tensor::from_fn([batch, keys, heads, head_dim], |_| scale * random.normal()).unwrap()
        };
        Block { key: tensor(8.0), value: tensor(1.0), band }
    };
    (0..8).map(|_| block()).collect()
}

/// The error of each row's output, relative to its norm, and of its sum; the worst of all rows.
fn worst_error(merged: &Merged, blocks: &[Block]) -> f64 {
    let [batch, rows, heads, head_dim] = merged.out.shape();
    let mut worst = 0.0_f64;
    for (b, i, h) in (0..batch).flat_map(|b| (0..rows).flat_map(move |i| (0..heads).map(move |h| (b, i, h))))
    {
        let attended =
            blocks.iter().flat_map(|block| block.band.keys_of(i, &(0..block.len())).map(move |j| (block, j)));
        let product = |block: &Block, j: usize| f64::from(block.key.view().at([b, j, h, i]));
        let products: Vec<f64> = attended.clone().map(|(block, j)| product(block, j)).collect();
        let max = products.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = f64::from(merged.lse.view().at([b, i, h, 0]));
        let row: Vec<f64> = (0..head_dim).map(|d| f64::from(merged.out.view().at([b, i, h, d]))).collect();
        if products.is_empty() {
            assert!(row.iter().all(|x| *x == 0.0) && lse == f64::NEG_INFINITY, "row {i} attends nothing");
            continue;
        }
        let sum: f64 = products.iter().map(|product| (product - max).exp()).sum();
        let mut exact = vec![0.0; head_dim];
        for ((block, j), product) in attended.zip(&products) {
            let weight = (product - max).exp() / sum;
            (0..head_dim).for_each(|d| exact[d] += weight * f64::from(block.value.view().at([b, j, h, d])));
        }
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let off = norm(&mut row.iter().zip(&exact).map(|(a, b)| a - b)) / norm(&mut exact.iter().copied());
        let exact_lse = max + sum.ln();
        assert!(off.is_finite(), "row {i} is {row:?}");
        worst = worst.max(off).max((lse - exact_lse).abs() / exact_lse.abs().max(1.0));
    }
    worst
}

fn permuted(random: &mut Random, blocks: &[Block]) -> Vec<Block> {
    let mut left = blocks.to_vec();
    (0..blocks.len()).map(|_| left.swap_remove(random.below(left.len()))).collect()
}

/// Odd numbers of rows and heads.
const SHAPE: [usize; 4] = [2, 19, 3, 80];

#[test]
fn eight_blocks_merge_in_any_order() {
    fn check<K: CarriesState<Cpu, f32>>(kernel: &K, name: &str, holes: bool) {
        for seed in 0..4 {
            let mut random = Random(seed);
            let mut blocks = random_blocks(&mut random, SHAPE, holes);
            for order in 0..6 {
                let error = worst_error(&merge(kernel, SHAPE, &blocks), &blocks);
                assert!(error <= 2e-6, "{name}, seed {seed}, order {order}: off by {error:e}");
                blocks = permuted(&mut random, &blocks);
            }
        }
    }
    with_kernels!(check, false);
    with_kernels!(check, true);
}

/// What lies behind the length of a row of the batch is NaN: whole blocks of one, all keys of the other.
#[test]
fn blocks_of_padding_alone_leave_the_state_as_it_was() {
    fn check<K: CarriesState<Cpu, f32>>(kernel: &K, name: &str) {
        let shape = [2, 3, 1, 4];
        let (queue, mut arena) = (CpuQueue::new(1).unwrap(), Arena::<Cpu>::default());
        let scope = arena.open(&queue).unwrap();
        let query = one_hot(shape);
        let nan = Tensor::from_fn([2, 5, 1, 4], |_| f32::NAN).unwrap();
        let ones = Tensor::from_fn([2, 5, 1, 4], |_| 1.0).unwrap();
        // Of the positions from 0 to 15, one row of the batch has five, the other none.
        let lengths = [5, 0];
        let mut state = kernel.begin(scope, shape).unwrap();
        for (tensor, start) in [(&nan, 5), (&ones, 0), (&nan, 10)] {
            let run = attn::Run::of(start..start + 5);
            let mask =
                BlockMask { key_lengths: Some(KeyLengths::of_block(&lengths, 0, run)), ..BlockMask::FULL };
            let kv = KeyValue { key: tensor.view(), value: tensor.view() };
            kernel.step(scope, query.view(), kv, &mask, 1.0, &mut state).unwrap();
        }
        let mut out = Tensor::from_fn(shape, |_| f32::NAN).unwrap();
        let mut lse = Tensor::from_fn([2, 3, 1, 1], |_| f32::NAN).unwrap();
        kernel.finish(scope, state, out.view_mut(), Some(lse.view_mut())).unwrap();
        let (out, lse) = (out.as_slice(), lse.as_slice());
        assert!(out[..12].iter().all(|x| (x - 1.0).abs() < 1e-6), "{name}: {out:?}");
        assert!(out[12..].iter().all(|x| *x == 0.0), "{name}: {out:?}");
        assert!(lse[..3].iter().all(|x| (x - 1.0 - 5_f32.ln()).abs() < 1e-6), "{name}: {lse:?}");
        assert_eq!(lse[3..], [f32::NEG_INFINITY; 3], "{name}");
    }
    with_kernels!(check);
}
