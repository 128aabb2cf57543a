//! What attention kernels compute, against dense attention in float64.

use core::ops::Range;

use attn::cuda::{DeviceMasks, Half};
use attn::device::{Arena, Device, StridedCopy};
use attn::tensor::TensorLayout;
use attn::{AttentionCall, KeyValue, Tensor};
use half::bf16;

use crate::kernels::attend::{
    Kernel, Loaded, Which, run, run_carried, run_masked, verify, verify_carried, with,
};
use crate::kernels::case::{Case, Dense, Inputs, Segments, check, exact, flat};
use crate::kernels::rig::{DeviceOf, Held, Place, Rig};

/// Lengths round the borders of every kernel's tiles: 64 to 192 queries, 80 to 176 keys.
pub fn lengths_round_the_borders_of_tiles<T: Half, R: Rig>(kernel: Kernel) {
    const QUERIES: [usize; 12] = [1, 63, 64, 65, 127, 128, 129, 191, 192, 193, 200, 257];
    const KEYS: [usize; 19] =
        [1, 79, 80, 81, 96, 97, 111, 112, 113, 127, 128, 129, 160, 175, 176, 177, 255, 300, 353];
    for (i, keys) in KEYS.into_iter().enumerate() {
        verify::<T, R>(&Case::new(QUERIES[i % QUERIES.len()], keys, kernel.head_dim), kernel);
    }
    for (queries, keys) in [(1, 353), (257, 1), (193, 177), (129, 113)] {
        verify::<T, R>(&Case::new(queries, keys, kernel.head_dim), kernel);
    }
}

/// Every kind of band, and rows that attend nothing.
pub fn bands_of_every_kind<T: Half, R: Rig>(kernel: Kernel) {
    const FAR: i64 = 1 << 40;
    for (queries, keys) in [(200, 300), (300, 200), (130, 130)] {
        let case = Case::new(queries, keys, kernel.head_dim);
        let (all_below, all_above) = (-(queries as i64), keys as i64);
        for case in [
            // Rows before the first key attend nothing where there are more queries.
            case.causal(),
            case.band(-FAR, 0),
            // Windows: narrower than a block of keys, wider, to one side; some leave the last rows without a key.
            case.band(-17, 33),
            case.band(-150, 20),
            case.band(0, 0),
            case.band(40, 90),
            case.band(-90, -40),
            // Cut off below only.
            case.band(0, FAR),
            case.band(all_above - 1, FAR),
            // One key for one row.
            case.band(-FAR, all_below + 1),
            // Nothing for anybody.
            case.band(5, 4),
            case.band(all_above, FAR),
            case.band(-FAR, all_below),
            case.band(-FAR, -FAR),
            case.band(FAR, FAR),
        ] {
            verify::<T, R>(&case, kernel);
        }
    }
}

/// Query heads that share key heads, several batch rows: more tiles than a block of threads takes at once.
pub fn heads_share_keys<T: Half, R: Rig>(kernel: Kernel) {
    let case = Case::new(70, 150, kernel.head_dim);
    for (heads, kv_heads) in [(6, 6), (6, 2), (5, 1)] {
        verify::<T, R>(&case.heads(2, heads, kv_heads), kernel);
        verify::<T, R>(&Case { seq_q: 210, ..case }.causal().heads(2, heads, kv_heads), kernel);
    }
}

/// Few queries, whose heads stand in one tile where they fit: groups that fill it, that end inside a warpgroup's rows or just
/// behind them, and one row more than there is room for. Rows of a tile are then queries and heads in turn: each has its own
/// band, its own place in the output, the log-sum-exp and the state.
pub fn few_queries_share_a_tile<T: Half, R: Rig>(kernel: Kernel) {
    for (queries, heads, kv_heads) in
        [(1, 8, 1), (1, 12, 4), (5, 6, 2), (13, 5, 1), (64, 2, 1), (16, 16, 2), (43, 3, 1), (2, 64, 1)]
    {
        let case = Case::new(queries, 300, kernel.head_dim).heads(2, heads, kv_heads);
        verify::<T, R>(&case, kernel);
        verify::<T, R>(&case.causal(), kernel);
    }
    let case = Case::new(7, 390, kernel.head_dim).heads(2, 10, 2);
    verify::<T, R>(&Case { lengths: Some(&[0, 130]), ..case }, kernel);
    verify::<T, R>(&Case { lengths: Some(&[385, 390]), ..case }.band(-3, 380), kernel);
    // The first queries attend nothing.
    verify::<T, R>(&Case { seq_k: 3, ..case }.causal(), kernel);
    for layout in TensorLayout::ALL {
        let place = Place::sliced(layout);
        verify::<T, R>(&Case { place, lse: Some(place), ..case }.band(-200, 300), kernel);
    }
    verify_carried::<T, R>(&case.band(-1000, 290), kernel, &[0..150, 150..300, 300..390]);
    let place = Place::sliced(TensorLayout::Bhsd);
    verify_carried::<T, R>(&Case { place, lse: Some(place), ..case }, kernel, &[190..390, 0..190]);
}

/// Padded keys hold NaN and reach nobody.
pub fn padding_reaches_nobody<T: Half, R: Rig>(kernel: Kernel) {
    for lengths in [&[0, 1, 300, 128], &[80, 176, 175, 7], &[299, 112, i32::MAX, i32::MIN]] {
        let case = Case { lengths: Some(lengths), ..Case::new(100, 300, kernel.head_dim).heads(4, 2, 1) };
        verify::<T, R>(&case, kernel);
        verify::<T, R>(&case.causal(), kernel);
        verify::<T, R>(&case.band(-40, 60), kernel);
        verify_carried::<T, R>(&case, kernel, &[0..100, 100..300]);
    }
}

/// Lengths on the host are those on the device; more rows than cross at a time.
pub fn lengths_cross_to_the_device<T: Half, R: Rig>(kernel: Kernel) {
    const MANY: [i32; 70] = {
        let mut lengths = [0; 70];
        let mut row = 0;
        while row < 70 {
            lengths[row] = (row as i32 * 37 + 1) % 7;
            row += 1;
        }
        lengths
    };
    let few =
        Case { lengths: Some(&[90, 3, -1]), ..Case::new(40, 90, kernel.head_dim).heads(3, 2, 1).causal() };
    let many = Case { lengths: Some(&MANY), ..Case::new(1, 6, kernel.head_dim).heads(70, 1, 1) };
    let whole = Case { lengths: Some(&[90, 90, 91]), ..few };
    for case in [few, many, whole] {
        let (Some(queue), Some(other)) = (R::queue(1), R::queue(1)) else { return };
        let inputs = case.inputs::<T>();
        let there = run::<T, R>(queue, &case, &inputs, kernel);
        assert_eq!(run_masked::<T, R>(other, &case, &inputs, kernel), there, "{case:?}");
    }
}

/// Segments: packed documents as long as some tiles, shorter, longer; in no order; none in common. Alone, with a band, with
/// lengths, on a state; on the host as on the device.
pub fn segments_of_every_kind<T: Half, R: Rig>(kernel: Kernel) {
    let case = Case::new(200, 300, kernel.head_dim).heads(2, 2, 1);
    for segments in [
        Segments::Packed(50),
        Segments::Packed(128),
        Segments::Packed(1000),
        Segments::Scattered(3),
        Segments::Apart,
    ] {
        let case = Case { segments: Some(segments), ..case };
        verify::<T, R>(&case, kernel);
        verify::<T, R>(&case.causal(), kernel);
        verify_carried::<T, R>(&case, kernel, &[100..300, 0..100]);
    }
    let case = Case { segments: Some(Segments::Packed(130)), ..case };
    verify::<T, R>(&Case { lengths: Some(&[1, 290]), ..case }, kernel);
    verify::<T, R>(&Case { lengths: Some(&[170, 0]), ..case }.band(-40, 60), kernel);
    let (Some(queue), Some(other)) = (R::queue(1), R::queue(1)) else { return };
    let inputs = case.inputs::<T>();
    let there = run::<T, R>(queue, &case, &inputs, kernel);
    assert_eq!(run_masked::<T, R>(other, &case, &inputs, kernel), there, "{case:?}");
}

/// Dense masks: all, nothing, some, whole tiles; one for each head, one for all. Alone and with everything else.
pub fn dense_masks_of_every_kind<T: Half, R: Rig>(kernel: Kernel) {
    let case = Case::new(200, 300, kernel.head_dim).heads(2, 2, 1);
    for dense in
        [Dense::Scattered, Dense::Shared, Dense::Squares(64), Dense::Squares(192), Dense::All, Dense::Nothing]
    {
        let case = Case { dense: Some(dense), ..case };
        verify::<T, R>(&case, kernel);
        verify_carried::<T, R>(&case.causal(), kernel, &[0..130, 130..300]);
    }
    let case = Case { dense: Some(Dense::Squares(100)), ..case };
    verify::<T, R>(&Case { lengths: Some(&[130, 300]), ..case }.band(-90, 100), kernel);
    verify::<T, R>(&Case { segments: Some(Segments::Scattered(2)), ..case }, kernel);
    let all = Case { segments: Some(Segments::Packed(90)), lengths: Some(&[300, 77]), ..case }.causal();
    verify::<T, R>(&all, kernel);
    verify_carried::<T, R>(&all, kernel, &[0..64, 64..300]);
}

/// Documents in a sequence of more blocks of keys than a warp looks at together, most of them nobody's.
pub fn documents_are_found_in_long_sequences<T: Half, R: Rig>(kernel: Kernel) {
    for (segments, heads) in [(Segments::Packed(700), 1), (Segments::Packed(5000), 2)] {
        let case = Case::new(70, 4500, kernel.head_dim).heads(1, heads, 1);
        let case = Case { segments: Some(segments), ..case };
        verify::<T, R>(&case.band(-5000, 4400), kernel);
        verify_carried::<T, R>(&case, kernel, &[0..4100, 4100..4500]);
    }
}

/// Every order of axes, slices of larger tensors; nothing is written outside.
pub fn any_layout_will_do<T: Half, R: Rig>(kernel: Kernel) {
    let case = Case::new(70, 90, kernel.head_dim).heads(2, 2, 1);
    for layout in TensorLayout::ALL {
        for place in [Place::dense(layout), Place::sliced(layout)] {
            for lse in [None, Some(place), Some(Place::dense(TensorLayout::Bhsd))] {
                verify::<T, R>(&Case { place, lse, ..case }, kernel);
            }
            let hops = [0..50, 50..90];
            verify_carried::<T, R>(&Case { place, lse: Some(place), ..case }, kernel, &hops);
        }
    }
}

/// Two to four hops are as good as one; so are hops in which nobody attends anything, first, last or in between.
pub fn hops_carry_the_state<T: Half, R: Rig>(kernel: Kernel) {
    let case = Case::new(200, 300, kernel.head_dim).heads(1, 2, 1);
    verify_carried::<T, R>(&case, kernel, &[0..150, 150..300]);
    verify_carried::<T, R>(&case, kernel, &[200..300, 0..1, 1..129, 129..200]);
    // The blocks of a causal ring, as the last rank and the first one see them.
    let ring = [0..75, 75..150, 150..225, 225..300];
    verify_carried::<T, R>(&Case { seq_q: 75, ..case }.band(-1000, 225), kernel, &ring);
    verify_carried::<T, R>(&Case { seq_q: 75, ..case }.band(-1000, 0), kernel, &ring);
    let backwards = [225..300, 150..225, 75..150, 0..75];
    verify_carried::<T, R>(&Case { seq_q: 75, ..case }.band(-1000, 75), kernel, &backwards);
    // More queries than keys: some rows never attend anything.
    let tall = Case::new(300, 130, kernel.head_dim).heads(2, 3, 3).causal();
    verify_carried::<T, R>(&tall, kernel, &[100..130, 0..100]);
    verify_carried::<T, R>(&case.band(-30, 31), kernel, &[150..300, 0..150]);
    verify_carried::<T, R>(&case.band(7, 6), kernel, &[0..150, 150..300]);
}

/// One hop on a fresh state is the kernel without a state, to the rounding of the last bit.
pub fn one_hop_is_one_call<T: Half, R: Rig>(kernel: Kernel) {
    let case = Case::new(130, 170, kernel.head_dim).heads(1, 2, 2).causal();
    let (Some(queue), Some(other)) = (R::queue(1), R::queue(2)) else { return };
    let inputs = case.inputs::<T>();
    let exact = exact(&case, &inputs);
    let whole = 0..case.seq_k;
    let (out, lse) = run_carried::<T, R>(queue, &case, &inputs, kernel, &[whole]);
    check("one hop", &case, &exact, &out, lse.as_deref());
    let (once, once_lse) = run::<T, R>(other, &case, &inputs, kernel);
    for (i, (a, b)) in out.iter().zip(&once).enumerate() {
        let difference = f64::from(a.to_f32()) - f64::from(b.to_f32());
        assert!(difference.abs() <= exact.bound[i], "element {i}: {a:?} in one hop, {b:?} in one call");
    }
    for (i, (a, b)) in lse.iter().flatten().zip(once_lse.iter().flatten()).enumerate() {
        let near = a == b || f64::from((a - b).abs()) <= exact.lse_bound[i];
        assert!(near, "log-sum-exp {i}: {a} in one hop, {b} in one call");
    }
}

/// Softmax scales from nearly uniform to nearly one-hot; products in the hundreds.
pub fn numbers_of_every_size<T: Half, R: Rig>(kernel: Kernel) {
    let case = Case::new(130, 200, kernel.head_dim);
    for scale in [1e-6, 0.1, 3.0, 50.0] {
        verify::<T, R>(&Case { scale, ..case }, kernel);
    }
    for spread in [1e-3, 20.0, 100.0] {
        verify::<T, R>(&Case { spread, ..case }, kernel);
        verify_carried::<T, R>(&Case { spread, ..case }.causal(), kernel, &[100..200, 0..100]);
    }
}

/// A product of -inf weighs nothing, and a row of nothing else has attended nothing.
pub fn products_of_minus_infinity_weigh_nothing<T: Half, R: Rig>(kernel: Kernel) {
    let Some(queue) = R::queue(3) else { return };
    let case = Case::new(70, 200, kernel.head_dim);
    let mut inputs = case.inputs::<T>();
    // Every query is above zero along the first axis; keys that are -inf there have products of -inf.
    for query in inputs.query.chunks_exact_mut(case.head_dim) {
        query[0] = T::from_f32(1.0);
    }
    let mut dead = |keys: Range<usize>| {
        for j in keys {
            inputs.key[j * case.head_dim] = T::from_f32(f32::NEG_INFINITY);
        }
        inputs_of(&inputs)
    };
    let some = dead(0..130);
    let all = dead(130..200);
    for inputs in [some, all] {
        let exact = exact(&case, &inputs);
        let (out, lse) = run::<T, R>(queue.clone(), &case, &inputs, kernel);
        check("products of -inf", &case, &exact, &out, lse.as_deref());
        let hops = [0..64, 64..150, 150..200];
        let (out, lse) = run_carried::<T, R>(queue.clone(), &case, &inputs, kernel, &hops);
        check("products of -inf in hops", &case, &exact, &out, lse.as_deref());
    }
}

fn inputs_of<T: Half>(inputs: &Inputs<T>) -> Inputs<T> {
    let Inputs { query, key, value } = inputs;
    Inputs { query: query.clone(), key: key.clone(), value: value.clone() }
}

/// A NaN that is attended is not hidden, and does not reach other heads or batch rows.
pub fn a_nan_reaches_who_attends_it<T: Half, R: Rig>(kernel: Kernel) {
    let Some(queue) = R::queue(4) else { return };
    let case = Case::new(70, 100, kernel.head_dim).heads(2, 2, 2);
    let mut inputs = case.inputs::<T>();
    let clean = inputs_of(&inputs);
    inputs.value[flat(case.key_shape(), [1, 99, 0, 5])] = T::from_f32(f32::NAN);
    let (out, _) = run::<T, R>(queue.clone(), &case, &inputs, kernel);
    let (fine, _) = run::<T, R>(queue, &case, &clean, kernel);
    let [_, seq, heads, head_dim] = case.query_shape();
    for (i, (out, fine)) in out.iter().zip(&fine).enumerate() {
        let (b, h, c) = (i / (seq * heads * head_dim), i / head_dim % heads, i % head_dim);
        if (b, h, c) == (1, 0, 5) {
            assert!(out.to_f32().is_nan(), "element {i} hides the NaN");
        } else {
            assert_eq!(out, fine, "element {i}, which does not attend the NaN");
        }
    }
}

/// A row that has met nothing but NaN has met something: the next hop does not start it anew.
pub fn a_nan_survives_the_next_hop<T: Half, R: Rig>(kernel: Kernel) {
    let Some(queue) = R::queue(5) else { return };
    let case = Case::new(70, 100, kernel.head_dim);
    let mut inputs = case.inputs::<T>();
    inputs.key[..case.head_dim].fill(T::from_f32(f32::NAN));
    let (out, lse) = run_carried::<T, R>(queue, &case, &inputs, kernel, &[0..1, 1..100]);
    assert!(out.iter().all(|out| out.to_f32().is_nan()), "a NaN that every query attends is forgotten");
    assert!(lse.iter().flatten().all(|lse| lse.is_nan()), "the log-sum-exp has forgotten a NaN");
}

/// The same inputs give the same bits, whatever the order of threads.
pub fn results_do_not_depend_on_the_order_of_threads<T: Half, R: Rig>(kernel: Kernel) {
    let case = Case::new(200, 190, kernel.head_dim).heads(1, 3, 1).causal();
    let inputs = case.inputs::<T>();
    let queues = (0..3).map_while(R::queue);
    let runs: Vec<_> = queues.map(|queue| run::<T, R>(queue, &case, &inputs, kernel)).collect();
    for pair in runs.windows(2) {
        assert_eq!(pair[0], pair[1]);
    }
}

/// So long a sequence that the keys and values of not all heads fit the GPU's cache: tiles are then taken in sections
/// of heads, the last of them smaller. A band keeps all but the first keys out, so that the rest need not be there
/// for long.
pub fn heads_come_in_sections<T: Half, R: Rig>(kernel: Kernel) {
    let Some(queue) = R::queue(6) else { return };
    let case = Case { lse: None, ..Case::new(200, 300, kernel.head_dim).heads(1, 6, 3) }.band(-1000, 90);
    let inputs = case.inputs::<T>();
    let loaded = Loaded::<T, R>::new(queue, &case, &inputs);
    let queue = &loaded.queue;
    // Two of the three heads fit.
    let long = [1, (1 << 22) / case.head_dim, 3, case.head_dim];
    let KeyValue { key, value } = loaded.kv(&(0..300));
    let [key, value] = [key, value].map(|short| {
        let mut tensor = Tensor::<T, DeviceOf<R>>::zeros(queue, long).unwrap();
        let copy = StridedCopy {
            source: short.base().as_ptr().cast_const().cast(),
            destination: tensor.view_mut().base().as_ptr().cast(),
            item: size_of::<T>(),
            extent: short.shape(),
            source_strides: short.strides(),
            destination_strides: tensor.view_mut().strides(),
        };
        // SAFETY: the first positions of a longer tensor that was just made.
        unsafe { DeviceOf::<R>::copy(queue, &[copy]) }.unwrap();
        tensor
    });
    let mut out = Held::<T, _>::poisoned(queue, case.place, case.query_shape());
    let kv = KeyValue { key: key.view(), value: value.view() };
    let (query, mask, scale) = (loaded.query.view(), case.band.into(), case.softmax_scale());
    let mut call = AttentionCall { query, kv, mask, scale, out: out.view_mut(), lse: None };
    let mut arena = Arena::<DeviceOf<R>>::default();
    let scope = arena.open(queue).unwrap();
    with!(kernel.which, kernel => kernel.forward_with(scope, &mut call, &DeviceMasks::NONE)).unwrap();
    check("sections", &case, &exact(&case, &inputs), &out.read(queue, "out"), None);
}

/// Much of the above in little time: what a fault planted in the kernel must not survive.
pub fn a_bit_of_everything<R: Rig>(kernel: Kernel) {
    let head_dim = kernel.head_dim;
    let case = Case::new(200, 370, head_dim).heads(2, 4, 2);
    verify::<bf16, R>(&case, kernel);
    // Enough blocks of keys for each stage of the rings to be used again within a tile.
    verify::<bf16, R>(&Case::new(130, 720, head_dim), kernel);
    verify::<bf16, R>(&case.heads(1, 6, 3).causal(), kernel);
    // More heads than the (simulated) cache holds, in sections of unlike size.
    verify::<bf16, R>(&Case { seq_k: 150, ..case }.heads(1, 10, 5).causal(), kernel);
    let place = Place::sliced(TensorLayout::Bhsd);
    verify::<bf16, R>(&Case { place, lse: Some(place), ..case }.band(-70, 40), kernel);
    verify::<bf16, R>(&Case { lengths: Some(&[0, 100]), spread: 4.0, ..case }, kernel);
    verify::<bf16, R>(&Case { lengths: Some(&[81, 300]), ..case }.band(-150, 40), kernel);
    verify_carried::<bf16, R>(&case.causal(), kernel, &[0..185, 185..370]);
    // As many rows as fill no whole number of tiles.
    let ragged = Case { place: Place::sliced(TensorLayout::Bhsd), ..case }.heads(1, 3, 1);
    verify_carried::<bf16, R>(&Case { seq_k: 300, spread: 4.0, ..ragged }, kernel, &[150..300, 0..150]);
}

/// The same for masks that follow a cover.
pub fn a_bit_of_irregular_masks<R: Rig>(kernel: Kernel) {
    let case = Case::new(200, 370, kernel.head_dim).heads(2, 4, 2);
    let packed = Case { segments: Some(Segments::Packed(140)), ..case };
    verify::<bf16, R>(&packed, kernel);
    verify::<bf16, R>(&Case { lengths: Some(&[150, 301]), ..packed }.causal(), kernel);
    let squares = Case { dense: Some(Dense::Squares(130)), ..case };
    verify::<bf16, R>(&squares, kernel);
    verify::<bf16, R>(&Case { segments: Some(Segments::Scattered(2)), ..squares }.band(-150, 90), kernel);
    let place = Place::sliced(TensorLayout::Bhsd);
    verify::<bf16, R>(&Case { dense: Some(Dense::Scattered), place, lse: Some(place), ..case }, kernel);
    verify::<bf16, R>(&Case { segments: Some(Segments::Apart), ..case }, kernel);
    // Enough blocks of either kind for each stage of the rings to be used again within a tile.
    let long = Case::new(130, 720, kernel.head_dim);
    verify::<bf16, R>(&Case { segments: Some(Segments::Packed(1000)), ..long }, kernel);
    verify::<bf16, R>(&Case { dense: Some(Dense::Shared), spread: 4.0, ..long }, kernel);
    let longer = Case::new(66, 4400, kernel.head_dim);
    verify::<bf16, R>(&Case { segments: Some(Segments::Packed(600)), ..longer }.band(-4400, 4300), kernel);
    verify_carried::<bf16, R>(&Case { spread: 4.0, ..packed }, kernel, &[0..185, 185..370]);
    verify_carried::<bf16, R>(&squares.heads(1, 4, 2).causal(), kernel, &[150..370, 0..150]);
}

/// The same for query heads that share a tile.
pub fn a_bit_of_shared_tiles<R: Rig>(kernel: Kernel) {
    let case = Case::new(7, 390, kernel.head_dim).heads(3, 20, 2);
    verify::<bf16, R>(&case, kernel);
    verify::<bf16, R>(&Case::new(1, 200, kernel.head_dim).heads(2, 8, 4), kernel);
    verify::<bf16, R>(&Case::new(13, 300, kernel.head_dim).heads(1, 9, 1).causal(), kernel);
    // A row more than a tile has.
    verify::<bf16, R>(&Case::new(43, 90, kernel.head_dim).heads(1, 3, 1), kernel);
    let place = Place::sliced(TensorLayout::Bhsd);
    let banded = case.band(-100, 290);
    verify::<bf16, R>(&Case { place, lse: Some(place), lengths: Some(&[0, 130, 390]), ..banded }, kernel);
    verify_carried::<bf16, R>(&Case { place, lse: Some(place), ..banded }, kernel, &[190..390, 0..190]);
}
