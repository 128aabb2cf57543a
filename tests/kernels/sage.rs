//! Attention in 8 bits against float64: of what its tensors hold, closely, and of what they were made from.

use core::ops::Range;

use attn::cuda::{self, FlashSm80, FlashSm90, Half, SageSm80, SageSm90, probe};
use attn::device::Arena;
use attn::tensor::TensorLayout;
use attn::{CarriesState, DType, Tensor, View};
use half::bf16;

use crate::kernels::attend::{HostMasks, Loaded, Written, run_at_once, run_in_hops};
use crate::kernels::case::{Case, Dense, Exact, Inputs, Segments, exact, flat};
use crate::kernels::eight_bits::EightBits;
use crate::kernels::rig::{DeviceOf, Held, Place, Rig};
use crate::support::Random;

/// One of the kernels, for a head_dim.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    pub head_dim: usize,
    pub which: Which,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Hopper's: weights and values in 8 bits too.
    Sm90,
    /// Every card's since Ampere.
    Sm80,
}

fn at_once<T: Half, R: Rig>(queue: R::Queue, case: &Case, inputs: &Inputs<T>, which: Which) -> Written<T> {
    match which {
        Which::Sm90 => run_at_once::<T, R, _>(queue, case, inputs, &SageSm90, true),
        Which::Sm80 => run_at_once::<T, R, _>(queue, case, inputs, &SageSm80, true),
    }
}

fn in_hops<T: Half, R: Rig>(
    queue: R::Queue,
    case: &Case,
    inputs: &Inputs<T>,
    which: Which,
    hops: &[Range<usize>],
) -> Written<T> {
    match which {
        Which::Sm90 => run_in_hops::<T, R, _>(queue, case, inputs, &SageSm90, hops),
        Which::Sm80 => run_in_hops::<T, R, _>(queue, case, inputs, &SageSm80, hops),
    }
}

/// What the numbers are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// Of unit variance.
    Normal,
    /// Keys have 20 standard deviations in common, another 20 in each channel.
    Offset,
    /// Some channels are 30 times larger.
    Outliers,
}

use Numbers::{Normal, Offset, Outliers};

fn inputs<T: Half>(case: &Case, numbers: Numbers) -> Inputs<T> {
    let mut inputs = case.inputs::<T>();
    let mut random = Random(case.seed());
    let columns = case.kv_heads * case.head_dim;
    let signs: Vec<f32> = (0..columns).map(|_| random.normal().signum()).collect();
    let change = |values: &mut [T], columns: usize, f: &dyn Fn(usize, f32) -> f32| {
        for (i, value) in values.iter_mut().enumerate() {
            *value = T::from_f32(f(i % columns, value.to_f32()));
        }
    };
    let outlier = |column: usize, value: f32| if column % 37 == 5 { 30.0 * value } else { value };
    match numbers {
        Normal => {}
        Offset => change(&mut inputs.key, columns, &|column, value| value + 20.0 * signs[column]),
        Outliers => {
            change(&mut inputs.query, case.heads * case.head_dim, &outlier);
            change(&mut inputs.key, columns, &outlier);
            change(&mut inputs.value, columns, &outlier);
        }
    }
    inputs
}

/// How far a result is from what is right, relative to its size.
fn distance<T: Half>(out: &[T], right: &[f64]) -> f64 {
    let (mut square, mut norm) = (0.0, 0.0);
    for (out, right) in out.iter().zip(right) {
        square += (f64::from(out.to_f32()) - right).powi(2);
        norm += right.powi(2);
    }
    if norm == 0.0 { square.sqrt() } else { (square / norm).sqrt() }
}

#[track_caller]
fn check_lse(what: &str, lse: Option<&[f32]>, right: &[f64], most: f64) {
    for (i, (lse, right)) in lse.into_iter().flatten().zip(right).enumerate() {
        let near = f64::from(*lse) == *right || (f64::from(*lse) - right).abs() <= most;
        assert!(near, "{what}: log-sum-exp of row {i} is {lse}, expected {right} within {most:e}");
    }
}

/// Rounded tensors differ from what was rounded by this much at most, of the result's size, unless single channels are
/// large: queries and keys alone, and with weights and values.
const fn of_rounding(which: Which) -> f64 {
    match which {
        Which::Sm90 => 5e-2,
        Which::Sm80 => 2e-2,
    }
}
const OF_ROUNDING_LSE: f64 = 8e-2;

/// That a result is what the tensors in 8 bits give, and near what the numbers themselves give.
#[track_caller]
fn check<T: Half>(case: &Case, numbers: Numbers, which: Which, inputs: &Inputs<T>, (out, lse): &Written<T>) {
    let what = format!("{which:?}, {numbers:?}, {}; {case:?}", T::DTYPE);
    assert!(out.iter().all(|out| out.to_f32().is_finite()), "{what}");
    let same: Exact = EightBits::of(case, inputs).attend(case, which == Which::Sm90);
    let off = distance(out, &same.out);
    // Half a unit in the last place of the result, and of weights in 16 bits.
    let most = if T::DTYPE == DType::F16 { 1e-3 } else { 3e-3 };
    assert!(off <= most, "{what}: relative error {off:e} to attention in 8 bits, at most {most:e}");
    check_lse(&what, lse.as_deref(), &same.lse, 1e-4);
    if numbers != Outliers {
        let right = exact(case, inputs);
        let (off, most) = (distance(out, &right.out), of_rounding(which));
        assert!(off <= most, "{what}: relative error {off:e}, at most {most:e}");
        check_lse(&what, lse.as_deref(), &right.lse, OF_ROUNDING_LSE);
    }
}

#[track_caller]
fn verify<T: Half, R: Rig>(case: &Case, numbers: Numbers, which: Which) {
    let Some(queue) = R::queue(case.seed()) else { return };
    let inputs = inputs::<T>(case, numbers);
    check(case, numbers, which, &inputs, &at_once::<T, R>(queue, case, &inputs, which));
}

/// Each byte and each scale is what it must be.
pub fn tensors_in_8_bits_are_exact<T: Half, R: Rig>(Kernel { head_dim, .. }: Kernel) {
    let place = Place::sliced(TensorLayout::Bhsd);
    let case = Case::new(70, 300, head_dim).heads(2, 4, 2);
    for (case, numbers) in [
        (Case { lengths: Some(&[131, 300]), ..case }, Offset),
        (Case { place, ..case }, Outliers),
        (Case { lengths: Some(&[0, 7]), spread: 1e-20, ..case }, Normal),
    ] {
        let Some(queue) = R::queue(case.seed()) else { return };
        let inputs = inputs::<T>(&case, numbers);
        let right = EightBits::of(&case, &inputs);
        let loaded = Loaded::<T, R>::new(queue, &case, &inputs);
        let queue = &loaded.queue;
        let lengths = case.lengths.map(|lengths| {
            cuda::to_device(queue, View::new(lengths, [case.batch, 1, 1, 1]).unwrap()).unwrap()
        });
        let mut arena = Arena::<DeviceOf<R>>::default();
        let scope = arena.open(queue).unwrap();
        let kv = loaded.kv(&(0..case.seq_k));
        let lengths = lengths.as_ref().map(Tensor::view);
        let found = probe::quantise(scope, loaded.query.view(), kv, lengths, case.softmax_scale()).unwrap();
        let bytes = |view: View<'_, u8, DeviceOf<R>>| -> Vec<u8> {
            cuda::to_host::<u8, DeviceOf<R>>(queue, view).unwrap().as_slice().to_vec()
        };
        let floats = |view: View<'_, f32, DeviceOf<R>>| -> Vec<f32> {
            cuda::to_host::<f32, DeviceOf<R>>(queue, view).unwrap().as_slice().to_vec()
        };
        let what = format!("{numbers:?}, {}; {case:?}", T::DTYPE);
        assert_eq!(floats(found.key_mean.as_view()), right.key_mean, "mean keys: {what}");
        assert_eq!(floats(found.query_scale.as_view()), right.query_scale, "scales of queries: {what}");
        assert_eq!(floats(found.value_scale.as_view()), right.value_scale, "scales of values: {what}");
        assert_eq!(
            bytes(found.query.as_view()),
            bytemuck::cast_slice::<_, u8>(&right.query),
            "queries: {what}"
        );
        for (i, (found, right)) in
            floats(found.query_mean.as_view()).iter().zip(&right.query_mean).enumerate()
        {
            let near = (f64::from(*found) - right).abs() <= 1e-4 + 1e-5 * right.abs();
            assert!(near, "query {i} times the mean key is {found}, expected {right}: {what}");
        }
        // Of padded keys nothing is written beyond their block, and nothing read beyond the length.
        let [key, key_scale] = [bytes(found.key.as_view()), bytes_of(&floats(found.key_scale.as_view()))];
        let value = bytes(found.value.unwrap().as_view());
        let blocks = case.seq_k.div_ceil(128);
        for head in 0..case.batch * case.kv_heads {
            let length = case.length(head / case.kv_heads);
            let some = |all: &[u8], of_head: usize, kept: usize| all[head * of_head..][..kept].to_vec();
            let (of_head, kept) = (case.seq_k * head_dim, length * head_dim);
            let keys: &[u8] = bytemuck::cast_slice(&right.key);
            assert_eq!(some(&key, of_head, kept), some(keys, of_head, kept), "keys: {what}");
            let (of_head, kept) = (blocks * 16, length.div_ceil(128) * 16);
            let scales = bytes_of(&right.key_scale);
            assert_eq!(
                some(&key_scale, of_head, kept),
                some(&scales, of_head, kept),
                "scales of keys: {what}"
            );
            for channel in 0..head_dim {
                let row = (head * head_dim + channel) * blocks * 128;
                let kept = row..row + length.div_ceil(128) * 128;
                assert_eq!(value[kept.clone()], right.value[kept], "values: {what}");
            }
        }
    }
}

fn bytes_of(floats: &[f32]) -> Vec<u8> {
    bytemuck::cast_slice(floats).to_vec()
}

/// Lengths round the borders of tiles, of all numbers.
pub fn lengths_round_the_borders_of_tiles<T: Half, R: Rig>(Kernel { head_dim, which }: Kernel) {
    for (queries, keys, numbers) in [
        (1, 1, Normal),
        (63, 129, Normal),
        (128, 128, Offset),
        (129, 127, Outliers),
        (257, 256, Normal),
        (64, 1100, Offset),
        (200, 300, Outliers),
    ] {
        verify::<T, R>(&Case::new(queries, keys, head_dim), numbers, which);
    }
}

/// Every kind of band, and rows that attend nothing.
pub fn bands_of_every_kind<T: Half, R: Rig>(Kernel { head_dim, which }: Kernel) {
    const FAR: i64 = 1 << 40;
    let case = Case::new(200, 500, head_dim);
    let cases = [
        case.causal(),
        Case::new(300, 200, head_dim).causal(),
        case.band(-17, 33),
        case.band(-150, 320),
        case.band(140, FAR),
        case.band(499, FAR),
        case.band(5, 4),
        // A tile of one query, whose band begins where a block does.
        Case::new(257, 257, head_dim).band(-128, 0),
        Case::new(1, 1100, head_dim).band(1024, FAR),
    ];
    for case in cases {
        verify::<T, R>(&case, Normal, which);
    }
}

/// Queries of zeros attend all keys alike, also where a group of keys has none or is zero: no scale is too small to be
/// multiplied by another.
pub fn zeros_are_attended_alike<T: Half, R: Rig>(Kernel { head_dim, which }: Kernel) {
    for keys in [1, 129, 134] {
        verify::<T, R>(&Case { spread: 0.0, ..Case::new(70, keys, head_dim) }, Normal, which);
    }
}

/// Query heads that share key heads, several batch rows: more tiles than a block of threads takes at once.
pub fn heads_share_keys<T: Half, R: Rig>(Kernel { head_dim, which }: Kernel) {
    for (heads, kv_heads) in [(4, 4), (6, 2), (5, 1)] {
        verify::<T, R>(&Case::new(70, 150, head_dim).heads(2, heads, kv_heads), Offset, which);
    }
    verify::<T, R>(&Case::new(210, 260, head_dim).heads(2, 6, 3).causal(), Normal, which);
}

/// Padded keys hold NaN and reach nobody.
pub fn padding_reaches_nobody<T: Half, R: Rig>(Kernel { head_dim, which }: Kernel) {
    let case = Case::new(100, 300, head_dim).heads(4, 2, 1);
    for lengths in [&[0, 1, 300, 128], &[129, 257, i32::MAX, i32::MIN]] {
        let case = Case { lengths: Some(lengths), ..case };
        verify::<T, R>(&case, Offset, which);
        verify::<T, R>(&case.band(-40, 160), Normal, which);
    }
}

/// Segments and dense masks, with bands and lengths.
pub fn masks_of_every_kind<T: Half, R: Rig>(Kernel { head_dim, which }: Kernel) {
    let case = Case::new(200, 400, head_dim).heads(2, 2, 1);
    let segments = |segments| Case { segments: Some(segments), ..case };
    let dense = |dense| Case { dense: Some(dense), ..case };
    for case in [
        segments(Segments::Packed(130)),
        segments(Segments::Scattered(3)).causal(),
        segments(Segments::Apart),
        dense(Dense::Scattered),
        dense(Dense::Squares(128)),
        Case { lengths: Some(&[300, 129]), ..dense(Dense::All) },
        Case { dense: Some(Dense::Shared), ..segments(Segments::Packed(90)) }.band(-150, 200),
        // More blocks than a warp looks at at a time.
        Case { dense: Some(Dense::Squares(64)), ..Case::new(64, 4400, head_dim) },
    ] {
        verify::<T, R>(&case, Normal, which);
    }
}

/// Tensors cut out of larger ones, in every order of axes.
pub fn any_layout_will_do<T: Half, R: Rig>(Kernel { head_dim, which }: Kernel) {
    for layout in [TensorLayout::Bshd, TensorLayout::Bhsd] {
        let place = Place::sliced(layout);
        verify::<T, R>(
            &Case { place, lse: Some(place), ..Case::new(150, 140, head_dim).heads(2, 4, 2) },
            Normal,
            which,
        );
    }
    verify::<T, R>(&Case { lse: None, ..Case::new(40, 40, head_dim) }, Normal, which);
}

/// Four hops of a ring, each with a mean key and scales of its own, are as near as one call.
pub fn hops_carry_the_state<T: Half, R: Rig>(Kernel { head_dim, which }: Kernel) {
    let case = Case::new(150, 560, head_dim).heads(2, 4, 2);
    let hops = [280..420, 0..140, 420..560, 140..280];
    for (case, numbers) in [
        (case, Offset),
        (case.causal(), Normal),
        (Case { lengths: Some(&[450, 3]), spread: 4.0, ..case }, Normal),
        (Case { segments: Some(Segments::Packed(200)), ..case }, Offset),
    ] {
        let (Some(queue), Some(other)) = (R::queue(case.seed()), R::queue(1)) else { return };
        let inputs = inputs::<T>(&case, numbers);
        let right = exact(&case, &inputs);
        let (once, _) = at_once::<T, R>(queue, &case, &inputs, which);
        let (out, lse) = in_hops::<T, R>(other, &case, &inputs, which, &hops);
        let (once, off) = (distance(&once, &right.out), distance(&out, &right.out));
        let what = format!("hops, {numbers:?}, {}; {case:?}", T::DTYPE);
        assert!(off <= 1.3 * once, "{what}: relative error {off:e} in hops, {once:e} at once");
        check_lse(&what, lse.as_deref(), &right.lse, 4.0 * OF_ROUNDING_LSE);
    }
}

/// A state may go from this kernel to flash, and on to the other card's.
pub fn a_state_goes_on_in_other_kernels<T: Half, R: Rig>(Kernel { head_dim, which }: Kernel) {
    match which {
        Which::Sm90 => {
            a_state_goes_on::<T, R, _, _, _>(head_dim, &SageSm90, &FlashSm90::default(), &SageSm80)
        }
        Which::Sm80 => a_state_goes_on::<T, R, _, _, _>(head_dim, &SageSm80, &FlashSm80, &SageSm90),
    }
}

fn a_state_goes_on<T: Half, R: Rig, A, B, C>(head_dim: usize, first: &A, second: &B, third: &C)
where
    A: CarriesState<DeviceOf<R>, T>,
    B: CarriesState<DeviceOf<R>, T>,
    C: CarriesState<DeviceOf<R>, T>,
{
    let case = Case { lse: Some(Place::BSHD), ..Case::new(130, 390, head_dim).heads(1, 2, 1) };
    let Some(queue) = R::queue(5) else { return };
    let inputs = inputs::<T>(&case, Offset);
    let loaded = Loaded::<T, R>::new(queue, &case, &inputs);
    let queue = &loaded.queue;
    let (mut out, mut lse) = loaded.outputs(&case);
    let mut arena = Arena::<DeviceOf<R>>::default();
    let scope = arena.open(queue).unwrap();
    let host = HostMasks::default();
    let mut state = first.begin(scope, case.query_shape()).unwrap();
    let (query, scale) = (|| loaded.query.view(), case.softmax_scale());
    let part = |keys: Range<usize>| (loaded.kv(&keys), loaded.mask(&case, &host, &keys));
    let (kv, mask) = part(0..130);
    first.step(scope, query(), kv, &mask, scale, &mut state).unwrap();
    let (kv, mask) = part(130..260);
    second.step(scope, query(), kv, &mask, scale, &mut state).unwrap();
    let (kv, mask) = part(260..390);
    third.step(scope, query(), kv, &mask, scale, &mut state).unwrap();
    third.finish(scope, state, out.view_mut(), lse.as_mut().map(Held::view_mut)).unwrap();
    let right = exact(&case, &inputs);
    let off = distance(&out.read(queue, "out"), &right.out);
    assert!(off <= of_rounding(Which::Sm90), "relative error {off:e}");
    check_lse("mixed", Some(&lse.unwrap().read(queue, "lse")), &right.lse, OF_ROUNDING_LSE);
}

/// A number that is none is not hidden, and does not reach other heads or batch rows.
pub fn a_nan_is_not_hidden<T: Half, R: Rig>(Kernel { head_dim, which }: Kernel) {
    let case = Case::new(70, 100, head_dim).heads(2, 2, 2);
    let Some(queue) = R::queue(4) else { return };
    let [_, seq, heads, _] = case.query_shape();
    let (at_query, at_key) = ([1, 69, 0, 5], [1, 99, 0, 5]);
    for bad in [f32::NAN, f32::INFINITY] {
        for place in 0..3 {
            let mut inputs = case.inputs::<T>();
            let bad = T::from_f32(bad);
            match place {
                0 => inputs.query[flat(case.query_shape(), at_query)] = bad,
                1 => inputs.key[flat(case.key_shape(), at_key)] = bad,
                _ => inputs.value[flat(case.key_shape(), at_key)] = bad,
            }
            let (out, _) = at_once::<T, R>(queue.clone(), &case, &inputs, which);
            for (i, out) in out.iter().enumerate() {
                let (b, s, h) =
                    (i / (seq * heads * head_dim), i / (heads * head_dim) % seq, i / head_dim % heads);
                let reached = match place {
                    0 => [b, s, h] == at_query[..3],
                    1 => (b, h) == (1, 0),
                    _ => (b, h, i % head_dim) == (1, 0, 5),
                };
                assert_eq!(!out.to_f32().is_finite(), reached, "element {i}, {place}: {out:?}");
            }
        }
    }
}

/// A row that has met nothing but NaN has met something: the next hop does not start it anew.
pub fn a_nan_survives_the_next_hop<T: Half, R: Rig>(Kernel { head_dim, which }: Kernel) {
    let Some(queue) = R::queue(5) else { return };
    let case = Case::new(70, 100, head_dim);
    // The mean of infinities makes a true maximum of -inf for some queries, and the products are no numbers.
    for bad in [f32::NAN, f32::INFINITY] {
        let mut inputs = case.inputs::<T>();
        inputs.key[5] = T::from_f32(bad);
        let (out, lse) = in_hops::<T, R>(queue.clone(), &case, &inputs, which, &[0..10, 10..100]);
        assert!(out.iter().all(|out| out.to_f32().is_nan()), "{bad} that every query attends is forgotten");
        assert!(lse.iter().flatten().all(|lse| lse.is_nan()), "the log-sum-exp has forgotten {bad}");
    }
}

/// The same inputs give the same bits, whatever the order of threads.
pub fn results_do_not_depend_on_the_order_of_threads<T: Half, R: Rig>(Kernel { head_dim, which }: Kernel) {
    let case = Case::new(200, 390, head_dim).heads(1, 3, 1).causal();
    let inputs = inputs::<T>(&case, Offset);
    let queues: Vec<_> = (0..3).map_while(R::queue).collect();
    let runs: Vec<_> =
        queues.iter().map(|queue| at_once::<T, R>(queue.clone(), &case, &inputs, which)).collect();
    assert!(runs.windows(2).all(|pair| pair[0] == pair[1]));
    let hops = [200..390, 0..200];
    let runs: Vec<_> =
        queues.into_iter().map(|queue| in_hops::<T, R>(queue, &case, &inputs, which, &hops)).collect();
    assert!(runs.windows(2).all(|pair| pair[0] == pair[1]));
}

/// Much of the above in little time: what a fault planted in the kernels must not survive.
pub fn a_bit_of_everything<R: Rig>(kernel: Kernel) {
    let Kernel { head_dim, which } = kernel;
    tensors_in_8_bits_are_exact::<bf16, R>(kernel);
    let case = Case::new(200, 370, head_dim).heads(2, 4, 2);
    verify::<bf16, R>(&Case { lengths: Some(&[129, 300]), ..case }, Offset, which);
    // Enough blocks of keys for each stage of the rings to be used again within a tile.
    verify::<bf16, R>(&Case::new(130, 1200, head_dim), Outliers, which);
    verify::<bf16, R>(&case.heads(1, 6, 3).band(-150, 40), Normal, which);
    let place = Place::sliced(TensorLayout::Bhsd);
    let masked = Case { segments: Some(Segments::Packed(150)), place, lse: Some(place), ..case };
    verify::<bf16, R>(&masked, Normal, which);
    hops_carry_the_state::<bf16, R>(kernel);
}
