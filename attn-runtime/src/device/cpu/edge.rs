//! Rows that are normalised and rotated while they are copied, on the host: RMSNorm (B. Zhang, R. Sennrich, "Root Mean
//! Square Layer Normalization", 2019, arXiv:1910.07467) and rotary embedding (J. Su et al., "RoFormer: Enhanced Transformer
//! with Rotary Position Embedding", 2021, arXiv:2104.09864).
//!
//! A task is a few tokens of one copy, each with all its heads, which share its angles. A row is widened into a worker's own
//! memory, changed there by loops that compilers vectorise, and narrowed where it belongs.

use core::ops::Range;

use half::{bf16, f16};

use super::CpuQueue;
use super::simd::{self, Vectorised, multiply_add};
use crate::device::{EdgeCopy, EdgeNorm, RopePairs};
use crate::error::{Error, Result};
use crate::tensor::{DType, Element};

/// Tokens of a task.
const TOKENS: usize = 16;

/// Sums that are kept side by side: the order of additions is the same whatever the processor.
const LANES: usize = 16;

/// Makes a batch of copies.
///
/// # Safety
/// As [`Device::edge`](crate::device::Device::edge).
pub(super) unsafe fn batch(queue: &CpuQueue, copies: &[EdgeCopy]) -> Result<()> {
    let known = |dtype| matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
    if let Some(copy) = copies.iter().find(|copy| !known(copy.dtype)) {
        return Err(Error::Plan(format!("rows of {} are neither normalised nor rotated", copy.dtype)));
    }
    let tasks = copies.iter().map(tasks_of).sum();
    // A row, its weights, its angles.
    let floats = copies.iter().map(|copy| 3 * copy.extent[3]).max().unwrap_or(0);
    let batch = Batch(copies);
    queue.for_each_with(tasks, floats, |memory, task| {
        let (copy, tokens) = batch.task(task);
        let rows = Rows { copy, tokens, memory };
        match copy.dtype {
            DType::F16 => simd::run(Typed::<f16>::of(rows)),
            DType::BF16 => simd::run(Typed::<bf16>::of(rows)),
            _ => simd::run(Typed::<f32>::of(rows)),
        }
    })
}

/// In how many tasks a copy is made.
fn tasks_of(copy: &EdgeCopy) -> usize {
    if copy.extent.contains(&0) { 0 } else { (copy.extent[0] * copy.extent[1]).div_ceil(TOKENS) }
}

struct Batch<'a>(&'a [EdgeCopy]);

// SAFETY: each row is read and written by one task alone; weights and tables are only read.
unsafe impl Sync for Batch<'_> {}

impl<'a> Batch<'a> {
    /// The copy that a task belongs to, and the tokens of its batch rows, counted through, that are the task's.
    fn task(&self, mut task: usize) -> (&'a EdgeCopy, Range<usize>) {
        for copy in self.0 {
            let tasks = tasks_of(copy);
            if task < tasks {
                let [batch, seq, ..] = copy.extent;
                return (copy, task * TOKENS..(batch * seq).min((task + 1) * TOKENS));
            }
            task -= tasks;
        }
        unreachable!("there are as many tasks as copies need");
    }
}

/// A task.
struct Rows<'a> {
    copy: &'a EdgeCopy,
    tokens: Range<usize>,
    /// Three times `head_dim` floats.
    memory: &'a mut [f32],
}

/// A task whose element type is known.
struct Typed<'a, T> {
    rows: Rows<'a>,
    element: core::marker::PhantomData<T>,
}

impl<'a, T> Typed<'a, T> {
    const fn of(rows: Rows<'a>) -> Self {
        Self { rows, element: core::marker::PhantomData }
    }
}

impl<T: Element> Vectorised for Typed<'_, T> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Rows { copy, tokens, memory } = self.rows;
        let [_, seq, heads, head_dim] = copy.extent;
        let (row, rest) = memory.split_at_mut(head_dim);
        let (weight, angles) = rest.split_at_mut(head_dim);
        let pairs = copy.rope.map_or(0, |rope| rope.pairs);
        let (cos, sin) = angles.split_at_mut(pairs);
        let sin = &mut sin[..pairs];
        if let Some(norm) = &copy.norm {
            // SAFETY: the copy has heads, and weights of the first one.
            unsafe { load_weight::<T>(norm, 0, weight) };
        }
        for token in tokens {
            let (b, s) = (token / seq, token % seq);
            if let Some(rope) = &copy.rope {
                let at = |strides: [usize; 3]| b * strides[0] + s * strides[1];
                // SAFETY: the tables have a row of angles for each token of the copy.
                unsafe {
                    load(rope.cos.add(at(rope.cos_strides)), rope.cos_strides[2], cos);
                    load(rope.sin.add(at(rope.sin_strides)), rope.sin_strides[2], sin);
                }
            }
            for head in 0..heads {
                let at = |[batch, seq, heads, _]: [usize; 4]| b * batch + s * seq + head * heads;
                let source = copy.source.cast::<T>();
                // SAFETY: the row is one of the copy's, which can be read.
                unsafe { load(source.add(at(copy.source_strides)), copy.source_strides[3], row) };
                if let Some(norm) = &copy.norm {
                    if norm.weight_strides[0] != 0 {
                        // SAFETY: there are weights of each head of the copy.
                        unsafe { load_weight::<T>(norm, head, weight) };
                    }
                    normalise::<FUSED>(row, weight, norm.eps);
                }
                if let Some(rope) = &copy.rope {
                    let turned = &mut row[..2 * pairs];
                    match rope.order {
                        RopePairs::Interleaved => rotate_neighbours::<FUSED>(turned, cos, sin),
                        RopePairs::Halves => rotate_halves::<FUSED>(turned, cos, sin),
                    }
                }
                let destination = copy.destination.cast::<T>();
                // SAFETY: the row is one of the copy's, which can be written, and is this task's alone.
                unsafe {
                    store(row, destination.add(at(copy.destination_strides)), copy.destination_strides[3]);
                }
            }
        }
    }
}

/// Reads elements that stand `step` apart.
///
/// # Safety
/// They can be read.
#[inline(always)]
unsafe fn load<T: Element>(from: *const T, step: usize, values: &mut [f32]) {
    // SAFETY: the caller's contract. (Two loops: the compiler vectorises the first.)
    unsafe {
        if step == 1 {
            for (i, value) in values.iter_mut().enumerate() {
                *value = from.add(i).read().to_f32();
            }
        } else {
            for (i, value) in values.iter_mut().enumerate() {
                *value = from.add(i * step).read().to_f32();
            }
        }
    }
}

/// Writes elements `step` apart.
///
/// # Safety
/// They can be written, and nobody else touches them.
#[inline(always)]
unsafe fn store<T: Element>(values: &[f32], to: *mut T, step: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        if step == 1 {
            for (i, value) in values.iter().enumerate() {
                to.add(i).write(T::from_f32(*value));
            }
        } else {
            for (i, value) in values.iter().enumerate() {
                to.add(i * step).write(T::from_f32(*value));
            }
        }
    }
}

/// Reads the weights of a head.
///
/// # Safety
/// If there are weights, there are some of this head.
#[inline(always)]
unsafe fn load_weight<T: Element>(norm: &EdgeNorm, head: usize, weight: &mut [f32]) {
    if norm.weight.is_null() {
        weight.fill(1.0);
        return;
    }
    let [of_head, step] = norm.weight_strides;
    // SAFETY: the caller's contract.
    unsafe { load(norm.weight.cast::<T>().add(head * of_head), step, weight) };
}

#[inline(always)]
fn normalise<const FUSED: bool>(row: &mut [f32], weight: &[f32], eps: f32) {
    let mut sums = [0.0_f32; LANES];
    let (whole, rest) = row.as_chunks::<LANES>();
    for values in whole {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum = multiply_add::<FUSED>(*value, *value, *sum);
        }
    }
    for (sum, value) in sums.iter_mut().zip(rest) {
        *sum = multiply_add::<FUSED>(*value, *value, *sum);
    }
    let mean = sums.iter().sum::<f32>() / row.len() as f32;
    let factor = 1.0 / (mean + eps).sqrt();
    for (value, weight) in row.iter_mut().zip(weight) {
        *value = *value * factor * weight;
    }
}

#[inline(always)]
fn rotate_neighbours<const FUSED: bool>(row: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (pairs, _) = row.as_chunks_mut::<2>();
    for ([a, b], (cos, sin)) in pairs.iter_mut().zip(cos.iter().zip(sin)) {
        (*a, *b) = turned::<FUSED>(*a, *b, *cos, *sin);
    }
}

#[inline(always)]
fn rotate_halves<const FUSED: bool>(row: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = row.split_at_mut(cos.len());
    for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
        (*a, *b) = turned::<FUSED>(*a, *b, *cos, *sin);
    }
}

#[inline(always)]
fn turned<const FUSED: bool>(a: f32, b: f32, cos: f32, sin: f32) -> (f32, f32) {
    (multiply_add::<FUSED>(a, cos, -(b * sin)), multiply_add::<FUSED>(b, cos, a * sin))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::EdgeRope;

    /// Numbers of about unit size.
    fn number(index: usize) -> f32 {
        ((index * 7919 + 13) % 1009) as f32 / 400.0 - 1.25
    }

    struct Problem<T> {
        extent: [usize; 4],
        strides: [usize; 4],
        source: Vec<T>,
        /// `[heads, head_dim]`.
        weight: Vec<T>,
        /// `[batch, seq, pairs]`, every second number of these.
        tables: [Vec<f32>; 2],
        pairs: usize,
        order: RopePairs,
    }

    const EPS: f32 = 0.25;

    impl<T: Element> Problem<T> {
        fn new([batch, seq, heads, head_dim]: [usize; 4], pairs: usize, order: RopePairs) -> Self {
            // Heads first, and rows longer than needed.
            let strides = [heads * seq * (head_dim + 3), head_dim + 3, seq * (head_dim + 3), 1];
            let fill = |length: usize, salt: usize| (0..length).map(move |i| number(i + salt));
            let narrowed = |length, salt| fill(length, salt).map(T::from_f32).collect();
            Self {
                extent: [batch, seq, heads, head_dim],
                strides,
                source: narrowed(batch * strides[0], 0),
                weight: narrowed(heads * head_dim, 5),
                tables: [11, 17].map(|salt| fill(2 * batch * seq * pairs, salt).collect()),
                pairs,
                order,
            }
        }

        fn angle(&self, table: usize, [b, s, i]: [usize; 3]) -> f32 {
            self.tables[table][2 * ((b * self.extent[1] + s) * self.pairs + i)]
        }

        /// What the row of a token and a head is to become, exactly.
        fn exact(&self, b: usize, s: usize, h: usize) -> Vec<f64> {
            let [_, _, _, head_dim] = self.extent;
            let at = b * self.strides[0] + s * self.strides[1] + h * self.strides[2];
            let mut row: Vec<f64> =
                self.source[at..][..head_dim].iter().map(|x| f64::from(x.to_f32())).collect();
            let mean = row.iter().map(|x| x * x).sum::<f64>() / head_dim as f64;
            for (x, w) in row.iter_mut().zip(&self.weight[h * head_dim..]) {
                *x *= f64::from(w.to_f32()) / (mean + f64::from(EPS)).sqrt();
            }
            for i in 0..self.pairs {
                let (first, second) = match self.order {
                    RopePairs::Interleaved => (2 * i, 2 * i + 1),
                    RopePairs::Halves => (i, i + self.pairs),
                };
                let [cos, sin] = [0, 1].map(|table| f64::from(self.angle(table, [b, s, i])));
                let (x, y) = (row[first], row[second]);
                (row[first], row[second]) = (x * cos - y * sin, y * cos + x * sin);
            }
            row
        }

        fn run(&self, threads: usize) -> Vec<T> {
            let [batch, seq, heads, head_dim] = self.extent;
            let mut out = vec![T::from_f32(77.0); batch * seq * heads * head_dim];
            let table_strides = [seq * self.pairs * 2, self.pairs * 2, 2];
            let copy = EdgeCopy {
                source: self.source.as_ptr().cast(),
                destination: out.as_mut_ptr().cast(),
                dtype: T::DTYPE,
                extent: self.extent,
                source_strides: self.strides,
                destination_strides: [seq * heads * head_dim, heads * head_dim, head_dim, 1],
                norm: Some(EdgeNorm {
                    weight: self.weight.as_ptr().cast(),
                    weight_strides: [head_dim, 1],
                    eps: EPS,
                }),
                rope: Some(EdgeRope {
                    cos: self.tables[0].as_ptr(),
                    sin: self.tables[1].as_ptr(),
                    cos_strides: table_strides,
                    sin_strides: table_strides,
                    pairs: self.pairs,
                    order: self.order,
                }),
            };
            // SAFETY: all lies inside the vectors above.
            unsafe { batch_on(threads, &[copy, EdgeCopy { extent: [0, seq, heads, head_dim], ..copy }]) };
            out
        }

        fn check(&self) {
            let [batch, seq, heads, head_dim] = self.extent;
            let ulp = match T::DTYPE {
                DType::F32 => f64::from(f32::EPSILON),
                DType::F16 => 1.0 / 1024.0,
                _ => 1.0 / 128.0,
            };
            let out = self.run(3);
            let mut at = 0;
            for token in 0..batch * seq {
                for head in 0..heads {
                    let exact = self.exact(token / seq, token % seq, head);
                    let size = exact.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
                    for (i, exact) in exact.into_iter().enumerate() {
                        let found = f64::from(out[at].to_f32());
                        // Once to the nearest; before that some roundings of fp32 of numbers as large as the row's.
                        let bound = 0.5 * ulp * exact.abs() + 8.0 * f64::from(f32::EPSILON) * size.max(1.0);
                        assert!(
                            (found - exact).abs() <= bound,
                            "{:?} {token} {head} {i}: {found} {exact}",
                            self.extent
                        );
                        at += 1;
                    }
                }
            }
            assert_eq!(at, batch * seq * heads * head_dim);
        }
    }

    /// # Safety
    /// As [`batch`].
    unsafe fn batch_on(threads: usize, copies: &[EdgeCopy]) {
        let queue = CpuQueue::new(threads).unwrap();
        // SAFETY: the caller's contract.
        unsafe { batch(&queue, copies) }.unwrap();
    }

    const ORDERS: [RopePairs; 2] = [RopePairs::Interleaved, RopePairs::Halves];

    #[test]
    fn rows_are_normalised_rotated_and_rounded_once() {
        for order in ORDERS {
            for (extent, pairs) in [
                ([1, 1, 1, 2], 1),
                ([2, 17, 3, 19], 9),
                ([1, 40, 2, 64], 32),
                ([2, 3, 5, 72], 10),
                ([1, 5, 1, 7], 1),
            ] {
                Problem::<f32>::new(extent, pairs, order).check();
                Problem::<f16>::new(extent, pairs, order).check();
                Problem::<bf16>::new(extent, pairs, order).check();
            }
        }
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        for order in ORDERS {
            let problem = Problem::<f32>::new([3, 50, 2, 24], 10, order);
            assert_eq!(problem.run(1), problem.run(4));
        }
    }

    #[test]
    fn code_for_any_processor_computes_the_same_up_to_rounding() {
        for order in ORDERS {
            let problem = Problem::<f32>::new([1, 30, 2, 80], 33, order);
            let here = problem.run(1);
            simd::PORTABLE.set(true);
            let anywhere = problem.run(1);
            problem.check();
            simd::PORTABLE.set(false);
            for (a, b) in here.iter().zip(&anywhere) {
                assert!((a - b).abs() <= 1e-6, "{a} {b}");
            }
        }
    }

    #[test]
    fn masks_are_not_normalised() {
        let problem = Problem::<f32>::new([1, 1, 1, 2], 1, RopePairs::Halves);
        let copy = EdgeCopy {
            source: problem.source.as_ptr().cast(),
            destination: core::ptr::null_mut(),
            dtype: DType::U8,
            extent: problem.extent,
            source_strides: problem.strides,
            destination_strides: problem.strides,
            norm: None,
            rope: None,
        };
        // SAFETY: it is refused before anything is read.
        let error = unsafe { batch(&CpuQueue::new(1).unwrap(), &[copy]) }.unwrap_err().to_string();
        assert!(error.contains("rows of u8"), "{error}");
    }
}
