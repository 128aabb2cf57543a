//! The flash kernel against dense attention in float64.

use core::ops::Range;

use attn::cuda::{self, FlashForm, FlashSm90, Half};
use attn::device::{Arena, Device, StridedCopy};
use attn::tensor::TensorLayout;
use attn::{
    AttentionCall, AttentionKernel, BlockMask, CarriesState, KeyLengths, KeyValue, Run, Tensor, View,
};
use half::bf16;

use crate::kernels::case::{Case, Inputs, check, exact, flat};
use crate::kernels::rig::{DeviceOf, Held, Place, Rig};

/// One of the kernels: a head_dim and a form.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    pub head_dim: usize,
    pub form: FlashForm,
}

/// A case's tensors on the device.
struct Loaded<T: Half, R: Rig> {
    queue: R::Queue,
    query: Held<T, DeviceOf<R>>,
    key: Held<T, DeviceOf<R>>,
    value: Held<T, DeviceOf<R>>,
}

impl<T: Half, R: Rig> Loaded<T, R> {
    fn new(queue: R::Queue, case: &Case, inputs: &Inputs<T>) -> Self {
        let (queries, keys) = (case.query_shape(), case.key_shape());
        let query = Held::new(&queue, case.place, queries, |index| inputs.query[flat(queries, index)]);
        let key = Held::new(&queue, case.place, keys, |index| inputs.key[flat(keys, index)]);
        let value = Held::new(&queue, case.place, keys, |index| inputs.value[flat(keys, index)]);
        Self { queue, query, key, value }
    }

    /// Keys and values of some positions.
    fn kv(&self, keys: &Range<usize>) -> KeyValue<'_, T, DeviceOf<R>> {
        let [key, value] =
            [&self.key, &self.value].map(|held| held.view().narrow(1, keys.start, keys.len()).unwrap());
        KeyValue { key, value }
    }

    /// How many keys count, as a case says it, on the device.
    fn lengths(&self, case: &Case) -> Option<Tensor<i32, DeviceOf<R>>> {
        let shape = [case.batch, 1, 1, 1];
        case.lengths.map(|lengths| cuda::to_device(&self.queue, View::new(lengths, shape).unwrap()).unwrap())
    }

    /// Where a kernel writes.
    fn outputs(&self, case: &Case) -> (Held<T, DeviceOf<R>>, Option<Held<f32, DeviceOf<R>>>) {
        let lse = case.lse.map(|place| Held::poisoned(&self.queue, place.of_rows(), case.rows_shape()));
        (Held::poisoned(&self.queue, case.place, case.query_shape()), lse)
    }
}

/// How many keys of each batch row count, as a mask says it, if it says anything.
fn masked(case: &Case) -> Option<Vec<usize>> {
    case.lengths.map(|_| (0..case.batch).map(|b| case.length(b)).collect())
}

/// The mask of some of a case's keys.
fn mask<'a, D: Device>(case: &Case, lengths: Option<&'a [usize]>, keys: &Range<usize>) -> BlockMask<'a, D> {
    let key_lengths = lengths.map(|lengths| KeyLengths::of_block(lengths, 0, Run::of(keys.clone())));
    BlockMask { key_lengths, ..case.band.from_block(0, keys.start).into() }
}

/// What a kernel wrote: the output, and the log-sum-exp if it was wanted.
pub type Written<T> = (Vec<T>, Option<Vec<f32>>);

/// Runs a case, its key lengths on the device.
pub fn run<T: Half, R: Rig>(queue: R::Queue, case: &Case, inputs: &Inputs<T>, form: FlashForm) -> Written<T> {
    let loaded = Loaded::<T, R>::new(queue, case, inputs);
    let queue = &loaded.queue;
    let (mut out, mut lse) = loaded.outputs(case);
    let lengths = loaded.lengths(case);
    let mut call = AttentionCall {
        query: loaded.query.view(),
        kv: loaded.kv(&(0..case.seq_k)),
        mask: case.band.into(),
        scale: case.softmax_scale(),
        out: out.view_mut(),
        lse: lse.as_mut().map(Held::view_mut),
    };
    FlashSm90::new(form)
        .forward_with(queue, &mut call, lengths.as_ref().map(Tensor::view))
        .unwrap_or_else(|error| panic!("{error}; {case:?}"));
    (out.read(queue, "out"), lse.map(|lse| lse.read(queue, "lse")))
}

/// Runs a case, its key lengths in the mask.
pub fn run_masked<T: Half, R: Rig>(
    queue: R::Queue,
    case: &Case,
    inputs: &Inputs<T>,
    form: FlashForm,
) -> Written<T> {
    let loaded = Loaded::<T, R>::new(queue, case, inputs);
    let queue = &loaded.queue;
    let (mut out, mut lse) = loaded.outputs(case);
    let lengths = masked(case);
    let mut call = AttentionCall {
        query: loaded.query.view(),
        kv: loaded.kv(&(0..case.seq_k)),
        mask: mask(case, lengths.as_deref(), &(0..case.seq_k)),
        scale: case.softmax_scale(),
        out: out.view_mut(),
        lse: lse.as_mut().map(Held::view_mut),
    };
    let mut arena = Arena::<DeviceOf<R>>::default();
    FlashSm90::new(form)
        .forward(arena.open(queue).unwrap(), &mut call)
        .unwrap_or_else(|error| panic!("{error}; {case:?}"));
    (out.read(queue, "out"), lse.map(|lse| lse.read(queue, "lse")))
}

/// Runs a case on a carried state, one block of keys after the other.
pub fn run_carried<T: Half, R: Rig>(
    queue: R::Queue,
    case: &Case,
    inputs: &Inputs<T>,
    form: FlashForm,
    hops: &[Range<usize>],
) -> Written<T> {
    let loaded = Loaded::<T, R>::new(queue, case, inputs);
    let queue = &loaded.queue;
    let (mut out, mut lse) = loaded.outputs(case);
    let mut arena = Arena::<DeviceOf<R>>::default();
    let scope = arena.open(queue).unwrap();
    let kernel = FlashSm90::new(form);
    let mut state = CarriesState::<DeviceOf<R>, T>::begin(&kernel, scope, case.query_shape()).unwrap();
    let lengths = masked(case);
    for hop in hops {
        let mask = mask(case, lengths.as_deref(), hop);
        kernel
            .step(scope, loaded.query.view(), loaded.kv(hop), &mask, case.softmax_scale(), &mut state)
            .unwrap_or_else(|error| panic!("{error}; {case:?}, keys {hop:?}"));
    }
    kernel
        .finish(scope, state, out.view_mut(), lse.as_mut().map(Held::view_mut))
        .unwrap_or_else(|error| panic!("{error}; {case:?}"));
    (out.read(queue, "out"), lse.map(|lse| lse.read(queue, "lse")))
}

/// Runs a case and compares it with float64.
#[track_caller]
pub fn verify<T: Half, R: Rig>(case: &Case, form: FlashForm) {
    let Some(queue) = R::queue(case.seed()) else { return };
    let inputs = case.inputs::<T>();
    let (out, lse) = run::<T, R>(queue, case, &inputs, form);
    check(&format!("{form:?}, {}", T::DTYPE), case, &exact(case, &inputs), &out, lse.as_deref());
}

/// Runs a case in hops and compares it with float64.
#[track_caller]
pub fn verify_carried<T: Half, R: Rig>(case: &Case, form: FlashForm, hops: &[Range<usize>]) {
    let Some(queue) = R::queue(case.seed()) else { return };
    let inputs = case.inputs::<T>();
    let (out, lse) = run_carried::<T, R>(queue, case, &inputs, form, hops);
    let what = format!("{form:?}, {}, hops {hops:?}", T::DTYPE);
    check(&what, case, &exact(case, &inputs), &out, lse.as_deref());
}

/// Lengths round the borders of every kernel's tiles: 64 to 192 queries, 80 to 176 keys.
pub fn lengths_round_the_borders_of_tiles<T: Half, R: Rig>(kernel: Kernel) {
    const QUERIES: [usize; 12] = [1, 63, 64, 65, 127, 128, 129, 191, 192, 193, 200, 257];
    const KEYS: [usize; 19] =
        [1, 79, 80, 81, 96, 97, 111, 112, 113, 127, 128, 129, 160, 175, 176, 177, 255, 300, 353];
    for (i, keys) in KEYS.into_iter().enumerate() {
        verify::<T, R>(&Case::new(QUERIES[i % QUERIES.len()], keys, kernel.head_dim), kernel.form);
    }
    for (queries, keys) in [(1, 353), (257, 1), (193, 177), (129, 113)] {
        verify::<T, R>(&Case::new(queries, keys, kernel.head_dim), kernel.form);
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
            verify::<T, R>(&case, kernel.form);
        }
    }
}

/// Query heads that share key heads, several batch rows: more tiles than a block of threads takes at once.
pub fn heads_share_keys<T: Half, R: Rig>(kernel: Kernel) {
    let case = Case::new(70, 150, kernel.head_dim);
    for (heads, kv_heads) in [(6, 6), (6, 2), (5, 1)] {
        verify::<T, R>(&case.heads(2, heads, kv_heads), kernel.form);
        verify::<T, R>(&Case { seq_q: 210, ..case }.causal().heads(2, heads, kv_heads), kernel.form);
    }
}

/// Padded keys hold NaN and reach nobody.
pub fn padding_reaches_nobody<T: Half, R: Rig>(kernel: Kernel) {
    for lengths in [&[0, 1, 300, 128], &[80, 176, 175, 7], &[299, 112, i32::MAX, i32::MIN]] {
        let case = Case { lengths: Some(lengths), ..Case::new(100, 300, kernel.head_dim).heads(4, 2, 1) };
        verify::<T, R>(&case, kernel.form);
        verify::<T, R>(&case.causal(), kernel.form);
        verify::<T, R>(&case.band(-40, 60), kernel.form);
        verify_carried::<T, R>(&case, kernel.form, &[0..100, 100..300]);
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
        let there = run::<T, R>(queue, &case, &inputs, kernel.form);
        assert_eq!(run_masked::<T, R>(other, &case, &inputs, kernel.form), there, "{case:?}");
    }
}

/// Every order of axes, slices of larger tensors; nothing is written outside.
pub fn any_layout_will_do<T: Half, R: Rig>(kernel: Kernel) {
    let case = Case::new(70, 90, kernel.head_dim).heads(2, 2, 1);
    for layout in TensorLayout::ALL {
        for place in [Place::dense(layout), Place::sliced(layout)] {
            for lse in [None, Some(place), Some(Place::dense(TensorLayout::Bhsd))] {
                verify::<T, R>(&Case { place, lse, ..case }, kernel.form);
            }
            let hops = [0..50, 50..90];
            verify_carried::<T, R>(&Case { place, lse: Some(place), ..case }, kernel.form, &hops);
        }
    }
}

/// Two to four hops are as good as one; so are hops in which nobody attends anything, first, last or in between.
pub fn hops_carry_the_state<T: Half, R: Rig>(kernel: Kernel) {
    let case = Case::new(200, 300, kernel.head_dim).heads(1, 2, 1);
    verify_carried::<T, R>(&case, kernel.form, &[0..150, 150..300]);
    verify_carried::<T, R>(&case, kernel.form, &[200..300, 0..1, 1..129, 129..200]);
    // The blocks of a causal ring, as the last rank and the first one see them.
    let ring = [0..75, 75..150, 150..225, 225..300];
    verify_carried::<T, R>(&Case { seq_q: 75, ..case }.band(-1000, 225), kernel.form, &ring);
    verify_carried::<T, R>(&Case { seq_q: 75, ..case }.band(-1000, 0), kernel.form, &ring);
    let backwards = [225..300, 150..225, 75..150, 0..75];
    verify_carried::<T, R>(&Case { seq_q: 75, ..case }.band(-1000, 75), kernel.form, &backwards);
    // More queries than keys: some rows never attend anything.
    let tall = Case::new(300, 130, kernel.head_dim).heads(2, 3, 3).causal();
    verify_carried::<T, R>(&tall, kernel.form, &[100..130, 0..100]);
    verify_carried::<T, R>(&case.band(-30, 31), kernel.form, &[150..300, 0..150]);
    verify_carried::<T, R>(&case.band(7, 6), kernel.form, &[0..150, 150..300]);
}

/// One hop on a fresh state is the kernel without a state, to the rounding of the last bit.
pub fn one_hop_is_one_call<T: Half, R: Rig>(kernel: Kernel) {
    let case = Case::new(130, 170, kernel.head_dim).heads(1, 2, 2).causal();
    let (Some(queue), Some(other)) = (R::queue(1), R::queue(2)) else { return };
    let inputs = case.inputs::<T>();
    let exact = exact(&case, &inputs);
    let whole = 0..case.seq_k;
    let (out, lse) = run_carried::<T, R>(queue, &case, &inputs, kernel.form, &[whole]);
    check("one hop", &case, &exact, &out, lse.as_deref());
    let (once, once_lse) = run::<T, R>(other, &case, &inputs, kernel.form);
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
        verify::<T, R>(&Case { scale, ..case }, kernel.form);
    }
    for spread in [1e-3, 20.0, 100.0] {
        verify::<T, R>(&Case { spread, ..case }, kernel.form);
        verify_carried::<T, R>(&Case { spread, ..case }.causal(), kernel.form, &[100..200, 0..100]);
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
        let (out, lse) = run::<T, R>(queue.clone(), &case, &inputs, kernel.form);
        check("products of -inf", &case, &exact, &out, lse.as_deref());
        let hops = [0..64, 64..150, 150..200];
        let (out, lse) = run_carried::<T, R>(queue.clone(), &case, &inputs, kernel.form, &hops);
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
    let (out, _) = run::<T, R>(queue.clone(), &case, &inputs, kernel.form);
    let (fine, _) = run::<T, R>(queue, &case, &clean, kernel.form);
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

/// The same inputs give the same bits, whatever the order of threads.
pub fn results_do_not_depend_on_the_order_of_threads<T: Half, R: Rig>(kernel: Kernel) {
    let case = Case::new(200, 190, kernel.head_dim).heads(1, 3, 1).causal();
    let inputs = case.inputs::<T>();
    let queues = (0..3).map_while(R::queue);
    let runs: Vec<_> = queues.map(|queue| run::<T, R>(queue, &case, &inputs, kernel.form)).collect();
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
    FlashSm90::new(kernel.form).forward_with(queue, &mut call, None).unwrap();
    check("sections", &case, &exact(&case, &inputs), &out.read(queue, "out"), None);
}

/// Much of the above in little time: what a fault planted in the kernel must not survive.
pub fn a_bit_of_everything<R: Rig>(kernel: Kernel) {
    let Kernel { head_dim, form } = kernel;
    let case = Case::new(200, 370, head_dim).heads(2, 4, 2);
    verify::<bf16, R>(&case, form);
    // Enough blocks of keys for each stage of the rings to be used again within a tile.
    verify::<bf16, R>(&Case::new(130, 720, head_dim), form);
    verify::<bf16, R>(&case.heads(1, 6, 3).causal(), form);
    // More heads than the (simulated) cache holds, in sections of unlike size.
    verify::<bf16, R>(&Case { seq_k: 150, ..case }.heads(1, 10, 5).causal(), form);
    let place = Place::sliced(TensorLayout::Bhsd);
    verify::<bf16, R>(&Case { place, lse: Some(place), ..case }.band(-70, 40), form);
    verify::<bf16, R>(&Case { lengths: Some(&[0, 100]), spread: 4.0, ..case }, form);
    verify::<bf16, R>(&Case { lengths: Some(&[81, 300]), ..case }.band(-150, 40), form);
    verify_carried::<bf16, R>(&case.causal(), form, &[0..185, 185..370]);
    // As many rows as fill no whole number of tiles.
    let ragged = Case { place: Place::sliced(TensorLayout::Bhsd), ..case }.heads(1, 3, 1);
    verify_carried::<bf16, R>(&Case { seq_k: 300, spread: 4.0, ..ragged }, form, &[150..300, 0..150]);
}
