//! Every strategy, layout, split and mask on tensors from a file, against the same in float64.

use safetensors::Dtype;
use tempfile::tempdir;

use crate::problem::{Problem, Sizes, TYPES};
use crate::tensors::{BSHD, LAYOUTS};

/// Strategies on four ranks, with the layouts that they have.
const HOW: [&str; 10] = [
    "none",
    "ulysses --ulysses 4",
    "ring --ring 4 --layout contiguous",
    "ring --ranks 4 --layout zigzag",
    "ring --ranks 4 --layout striped",
    "hybrid --ulysses 2 --ring 2 --layout contiguous",
    "hybrid --ranks 4 --ulysses 2 --layout zigzag",
    "hybrid --ranks 4 --layout striped",
    "allgather_kv --ranks 4",
    "ulysses_allgather --allgather 2 --ulysses 2",
];

const MASKS: [&str; 10] = [
    "none",
    "causal",
    "window:5,2",
    "padding",
    "segments",
    "dense",
    "causal+segments",
    "segments+padding",
    "window:9,0+padding+dense",
    "causal+padding+segments+dense",
];

/// Runs everything in one type: positions and heads that divide, and in an uneven split others that do not.
fn every_combination_is_attention(dtype: Dtype) {
    let folder = tempdir().unwrap();
    for (split, seq, heads) in [("strict", [24, 24], [4, 4]), ("uneven", [23, 23], [6, 3])] {
        let problem = Problem::new(dtype, Sizes { batch: 2, seq, heads, dim: 16, joint: 0 });
        problem.write(&folder.path().join("in.safetensors"), BSHD);
        for (number, mask) in MASKS.into_iter().enumerate() {
            let expected = problem.expected(mask, "front");
            for (other, how) in HOW.into_iter().enumerate() {
                let backend = ["flash", "sdpa"][(number + other) % 2];
                let args = format!("--split {split} --mask {mask} --backend {backend} --strategy {how}");
                let args: Vec<&str> = args.split_whitespace().collect();
                expected.check(folder.path(), dtype, BSHD, &args);
            }
        }
    }
}

#[test]
fn every_combination_is_attention_in_f32() {
    every_combination_is_attention(Dtype::F32);
}

#[test]
fn every_combination_is_attention_in_f16() {
    every_combination_is_attention(Dtype::F16);
}

#[test]
fn every_combination_is_attention_in_bf16() {
    every_combination_is_attention(Dtype::BF16);
}

/// Numbers that look random, the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }

    fn of<T: Clone>(&mut self, these: &[T]) -> T {
        these[self.below(these.len())].clone()
    }
}

/// Problems of many kinds: up to 8 ranks in all degrees, three layouts of tensors, joint tokens on both sides, shared
/// heads, more keys than queries and fewer, keys that every rank has, and in an uneven split sequences shorter than the
/// world and heads that do not divide.
#[test]
fn many_other_combinations_are_attention() {
    let folder = tempdir().unwrap();
    let mut dice = Dice(2024);
    for _ in 0..500 {
        let strategy = dice.of(&["ulysses", "ring", "hybrid", "hybrid", "allgather_kv", "ulysses_allgather"]);
        let split = dice.of(&["strict", "uneven"]);
        let ranks: usize = dice.of(&if split == "strict" { vec![1, 2, 4, 8] } else { (1..9).collect() });
        let inner = dice.of(&(1..=ranks).filter(|d| ranks.is_multiple_of(*d)).collect::<Vec<usize>>());
        let degrees = match strategy {
            "hybrid" => format!("--ulysses {inner} --ring {}", ranks / inner),
            "ulysses_allgather" => format!("--ulysses {inner} --allgather {}", ranks / inner),
            _ => String::new(),
        };
        let layout = match strategy {
            "ring" | "hybrid" => dice.of(&["contiguous", "zigzag", "striped"]),
            _ => "contiguous",
        };
        let keys = dice.of(&["sharded", "sharded", "replicated"]);
        let side = dice.of(&["", "", "front", "rear"]);
        let sizes = Sizes {
            batch: dice.of(&[1, 3]),
            seq: [0, 1].map(|_| match split {
                "strict" => dice.of(&[16, 32, 48]),
                _ => dice.of(&[1, 3, 7, 17, 30]),
            }),
            heads: match split {
                "strict" => dice.of(&[[8, 8], [8, 4], [8, 1], [16, 2]]),
                _ => dice.of(&[[5, 5], [7, 1], [6, 2], [12, 4], [3, 3]]),
            },
            dim: dice.of(&[8, 16, 20]),
            joint: if side.is_empty() { 0 } else { dice.of(&[1, 5]) },
        };
        let [seq_q, seq_k] = sizes.seq;
        let spans = if side.is_empty() { vec!["none", "causal", "window:6,3"] } else { vec!["none"] };
        let mut mask = vec![dice.of(&spans)];
        for name in ["padding", "segments", "dense"] {
            let takes = name != "segments" || side.is_empty() && seq_q == seq_k;
            if takes && dice.below(3) == 0 {
                mask.push(name);
            }
        }
        mask.retain(|name| *name != "none");
        let mask = if mask.is_empty() { String::from("none") } else { mask.join("+") };
        let (dtype, ..) = dice.of(&TYPES);
        let (scatter, gather, order) = dice.of(&LAYOUTS);
        let joint = if side.is_empty() { String::new() } else { format!("--joint {side}") };
        let backend = dice.of(&["flash", "sdpa"]);

        let problem = Problem::new(dtype, sizes);
        problem.write(&folder.path().join("in.safetensors"), order);
        let args = format!(
            "--strategy {strategy} --ranks {ranks} {degrees} --layout {layout} --split {split} --keys {keys} {joint} \
             --mask {mask} --backend {backend} --scatter {scatter} --gather {gather}"
        );
        println!("{sizes:?} {args}");
        let args: Vec<&str> = args.split_whitespace().collect();
        problem.expected(&mask, side).check(folder.path(), dtype, order, &args);
    }
}
