//! Calls that the kernels do not take: each is refused before anything is queued, with what is wrong and what would do.

use core::ptr::NonNull;

use attn::cuda::raw::{self, RawAttention, RawRows, RawTensor};
use attn::cuda::{DeviceMasks, FlashForm, FlashSm90};
use attn::device::Arena;
use attn::kernel::Band;
use attn::tensor::TensorLayout;
use attn::{
    AttentionCall, AttentionKernel, BlockMask, BlockSegments, CarriedState, CarriesState, DType, Error,
    KeyLengths, KeyValue, Run, SegmentIds, Tensor, View, ViewMut,
};
use half::bf16;

use crate::kernels::rig::{DeviceOf, Rig};

/// Elements of every buffer: more than any call below reaches.
const ELEMENTS: usize = 1 << 17;

/// How one tensor of a call lies in a buffer of its own.
#[derive(Clone, Copy, Debug)]
struct Laid {
    offset: usize,
    shape: [usize; 4],
    strides: [usize; 4],
}

impl Laid {
    const fn dense(shape: [usize; 4]) -> Self {
        Self { offset: 0, shape, strides: attn::tensor::contiguous_strides(shape) }
    }
}

/// A call that is right until a test changes it.
#[derive(Clone, Copy, Debug)]
struct Call {
    query: Laid,
    key: Laid,
    value: Laid,
    out: Laid,
    lse: Laid,
    lengths: Option<usize>,
    scale: f32,
}

const CALL: Call = Call {
    query: Laid::dense([2, 10, 4, 64]),
    key: Laid::dense([2, 12, 2, 64]),
    value: Laid::dense([2, 12, 2, 64]),
    out: Laid::dense([2, 10, 4, 64]),
    lse: Laid::dense([2, 10, 4, 1]),
    lengths: None,
    scale: 0.125,
};

/// The error of a call, or none if it ran. No result if there is no device.
fn outcome<R: Rig>(call: Call) -> Option<Result<(), String>> {
    let queue = R::queue(0)?;
    let buffer = || Tensor::<bf16, DeviceOf<R>>::zeros(&queue, [1, 1, 1, ELEMENTS]).unwrap();
    let (query, key, value, mut out) = (buffer(), buffer(), buffer(), buffer());
    let mut lse = Tensor::<f32, DeviceOf<R>>::zeros(&queue, [1, 1, 1, ELEMENTS]).unwrap();
    let lengths = Tensor::<i32, DeviceOf<R>>::zeros(&queue, [1, 1, 1, ELEMENTS]).unwrap();
    let [query, key, value] = [(&query, call.query), (&key, call.key), (&value, call.value)].map(
        // SAFETY: zeroed memory that lives for the call, of which the kernel reads nothing where it refuses.
        |(tensor, laid)| unsafe { reach(tensor.view(), laid) },
    );
    let mut attention = AttentionCall {
        query,
        kv: KeyValue { key, value },
        mask: BlockMask::FULL,
        scale: call.scale,
        // SAFETY: as above, and the buffer is lent exclusively.
        out: unsafe { reach_mut(out.view_mut(), call.out) },
        // SAFETY: as above.
        lse: Some(unsafe { reach_mut(lse.view_mut(), call.lse) }),
    };
    let lengths = call.lengths.map(|count| {
        // SAFETY: as above.
        unsafe { View::from_raw_parts(lengths.view().base(), [count, 1, 1, 1], [1; 4]) }
    });
    let masks = DeviceMasks { key_lengths: lengths, segments: None };
    let mut arena = Arena::<DeviceOf<R>>::default();
    let outcome = FlashSm90::AUTO.forward_with(arena.open(&queue).unwrap(), &mut attention, &masks);
    Some(outcome.map_err(|error| error.to_string()))
}

/// # Safety
/// As `View::from_raw_parts`.
unsafe fn reach<'a, T, D>(view: View<'a, T, D>, laid: Laid) -> View<'a, T, D> {
    // SAFETY: the caller's contract.
    unsafe { View::from_raw_parts(moved(view.base(), laid.offset), laid.shape, laid.strides) }
}

/// # Safety
/// As `ViewMut::from_raw_parts`.
unsafe fn reach_mut<'a, T, D>(view: ViewMut<'a, T, D>, laid: Laid) -> ViewMut<'a, T, D> {
    // SAFETY: the caller's contract.
    unsafe { ViewMut::from_raw_parts(moved(view.base(), laid.offset), laid.shape, laid.strides) }
}

fn moved<T>(base: NonNull<T>, elements: usize) -> NonNull<T> {
    NonNull::new(base.as_ptr().wrapping_add(elements)).unwrap()
}

#[track_caller]
fn refused<R: Rig>(change: impl FnOnce(&mut Call), parts: &[&str]) {
    let mut call = CALL;
    change(&mut call);
    match outcome::<R>(call) {
        None => {}
        Some(Ok(())) => panic!("{call:?} was taken"),
        Some(Err(said)) => {
            for part in parts {
                assert!(said.contains(part), "`{said}` does not contain `{part}`");
            }
        }
    }
}

pub fn a_call_in_order_is_taken<R: Rig>() {
    if let Some(outcome) = outcome::<R>(CALL) {
        outcome.unwrap();
    }
}

pub fn head_dims_without_a_kernel<R: Rig>() {
    for head_dim in [1, 16, 80, 160, 512] {
        let all = |call: &mut Call| {
            call.query = Laid::dense([2, 10, 4, head_dim]);
            call.key = Laid::dense([2, 12, 2, head_dim]);
            (call.value, call.out) = (call.key, call.query);
        };
        refused::<R>(all, &[&format!("head_dim = {head_dim}"), "it takes 32, 64, 96, 128, 192 and 256"]);
    }
}

pub fn shapes_that_disagree<R: Rig>() {
    refused::<R>(|call| call.key.shape[0] = 1, &["`key`", "[1, 12, 2, 64]", "the query's batch"]);
    refused::<R>(|call| call.key.shape[3] = 128, &["`key`", "[2, 12, 2, 64]"]);
    refused::<R>(|call| call.value.shape[1] = 11, &["`value`", "[2, 12, 2, 64] (the key's shape"]);
    refused::<R>(|call| call.out.shape[1] = 11, &["`out`", "[2, 10, 4, 64] (the query's shape"]);
    refused::<R>(|call| call.lse.shape[2] = 2, &["`lse`", "one for each row"]);
    refused::<R>(|call| call.lengths = Some(3), &["`key_lengths`", "[2, 1, 1, 1]"]);
    let three = |call: &mut Call| {
        call.key = Laid::dense([2, 12, 3, 64]);
        call.value = call.key;
    };
    refused::<R>(three, &["`key`", "heads that divide the query's 4"]);
    let none = |call: &mut Call| {
        call.key = Laid::dense([2, 0, 2, 64]);
        call.value = call.key;
    };
    refused::<R>(none, &["`key`", "an axis of length 0"]);
}

pub fn addresses_and_strides_off_16_bytes<R: Rig>() {
    refused::<R>(|call| call.query.offset = 1, &["`query`", "address 0x", "multiple of the 16 bytes"]);
    refused::<R>(|call| call.value.offset = 4, &["`value`", "address 0x"]);
    refused::<R>(|call| call.out.offset = 7, &["`out`", "address 0x"]);
    refused::<R>(
        |call| call.key.strides[1] = 130,
        &["`key`", "seq stride of 130 elements (260 bytes)", "slice it at such multiples"],
    );
    refused::<R>(|call| call.query.strides[2] = 65, &["`query`", "heads stride of 65 elements"]);
    refused::<R>(|call| call.out.strides[0] = 2562, &["`out`", "batch stride of 2562 elements"]);
}

pub fn strides_that_the_copy_engine_has_no_room_for<R: Rig>() {
    refused::<R>(|call| call.query.strides[0] = 1 << 39, &["`query`", "1099511627776 bytes", "2^40"]);
}

pub fn repeated_and_scattered_elements<R: Rig>() {
    refused::<R>(
        |call| call.key.strides[2] = 0,
        &["`key` with heads repeated by a stride of 0", "give fewer `kv_heads`"],
    );
    refused::<R>(|call| call.value.strides[0] = 0, &["`value` with batch repeated", "copy it"]);
    refused::<R>(|call| call.query.strides = [2560, 256, 1, 4], &["elements of a row 4 apart", "dense"]);
}

pub fn scales_that_are_not_above_zero<R: Rig>() {
    for scale in [0.0, -0.125] {
        refused::<R>(|call| call.scale = scale, &["softmax scale", "negate the query"]);
    }
    refused::<R>(|call| call.scale = f32::NAN, &["NaN is not a finite number"]);
}

/// Masks that do not fit the call, or are given twice.
pub fn masks_that_do_not_fit<R: Rig>() {
    let Some(queue) = R::queue(0) else { return };
    let mut arena = Arena::<DeviceOf<R>>::default();
    let scope = arena.open(&queue).unwrap();
    let (shape, ids, lengths) = ([1, 10, 4, 64], [0; 10], [3]);
    let query = Tensor::<bf16, DeviceOf<R>>::zeros(&queue, shape).unwrap();
    let dense = Tensor::<u8, DeviceOf<R>>::zeros(&queue, [1, 2, 10, 10]).unwrap();
    let there = Tensor::<i32, DeviceOf<R>>::zeros(&queue, [1, 10, 1, 1]).unwrap();
    let mut out = Tensor::<bf16, DeviceOf<R>>::zeros(&queue, shape).unwrap();
    let kv = KeyValue { key: query.view(), value: query.view() };
    let side = |seq| SegmentIds::new(&ids[..seq], seq, Run::of(0..seq));
    let segments = |key| Some(BlockSegments { query: side(10), key: side(key) });
    let key_lengths = Some(KeyLengths::new(&lengths));
    let (full, none) = (BlockMask::FULL, DeviceMasks::NONE);
    let one = there.view().narrow(1, 0, 1).unwrap();
    for (mask, masks, parts) in [
        (BlockMask { segments: segments(9), ..full }, none, ["segments", "1 x 10 positions"]),
        (
            BlockMask { dense: Some(dense.view()), ..full },
            none,
            ["`dense`", "[1, 4, 10, 10], or 1 in place of the 4"],
        ),
        (
            BlockMask { key_lengths, ..full },
            DeviceMasks { key_lengths: Some(one), ..none },
            ["key lengths twice", "give them once"],
        ),
        (
            BlockMask { segments: segments(10), ..full },
            DeviceMasks { segments: Some([there.view(); 2]), ..none },
            ["segments twice", "give them once"],
        ),
        (
            full,
            DeviceMasks { segments: Some([there.view(), one]), ..none },
            ["segments of keys", "[1, 10, 1, 1]"],
        ),
    ] {
        let mut call =
            AttentionCall { query: query.view(), kv, mask, scale: 1.0, out: out.view_mut(), lse: None };
        let said = FlashSm90::AUTO.forward_with(scope, &mut call, &masks).unwrap_err().to_string();
        for part in parts {
            assert!(said.contains(part), "`{said}` does not contain `{part}`");
        }
    }
}

/// A state that the caller made, of the wrong shape.
pub fn a_state_of_another_shape<R: Rig>() {
    let Some(queue) = R::queue(0) else { return };
    let mut arena = Arena::<DeviceOf<R>>::default();
    let scope = arena.open(&queue).unwrap();
    let query = Tensor::<bf16, _>::zeros(&queue, [1, 10, 4, 64]).unwrap();
    let kv = KeyValue { key: query.view(), value: query.view() };
    let begin = |shape| CarriesState::<DeviceOf<R>, bf16>::begin(&FlashSm90::AUTO, scope, shape).unwrap();
    let CarriedState { output, max, .. } = begin([1, 10, 4, 64]);
    let mut state = CarriedState { output, max, sum: begin([1, 10, 2, 64]).sum };
    let error = FlashSm90::AUTO.step(scope, query.view(), kv, &BlockMask::FULL, 1.0, &mut state).unwrap_err();
    assert!(error.to_string().contains("`state.sum` has shape [1, 10, 2, 1]"), "{error}");
    let mut state = begin([1, 9, 4, 64]);
    let error = FlashSm90::AUTO.step(scope, query.view(), kv, &BlockMask::FULL, 1.0, &mut state).unwrap_err();
    assert!(error.to_string().contains("`state.output` has shape [1, 9, 4, 64]"), "{error}");
}

/// Copies take dense tensors of one size; what is wrong with others is said.
pub fn copies_between_unlike_tensors<R: Rig>() {
    let Some(queue) = R::queue(0) else { return };
    let host = Tensor::<f32>::from_fn([1, 2, 3, 4], |[_, s, h, d]| (s * 12 + h * 4 + d) as f32).unwrap();
    let on = attn::cuda::to_device(&queue, &host).unwrap();
    let tensor = |shape| Tensor::<f32, DeviceOf<R>>::zeros(&queue, shape).unwrap();
    let (mut same, mut reshaped, mut smaller) =
        (tensor([1, 2, 3, 4]), tensor([2, 1, 4, 3]), tensor([1, 2, 3, 3]));
    let upload = |target: ViewMut<'_, f32, DeviceOf<R>>| {
        attn::cuda::upload::<f32, DeviceOf<R>>(&queue, &host, target).unwrap_err()
    };
    let error = upload(reshaped.view_mut());
    assert!(matches!(error, Error::Shape { tensor: "target", found: [2, 1, 4, 3], .. }), "{error}");
    let error = upload(tensor([1, 3, 2, 4]).view_mut().permuted(TensorLayout::Bhsd));
    assert!(matches!(error, Error::Shape { tensor: "target", found: [1, 2, 3, 4], .. }), "{error}");
    assert!(error.to_string().contains("strides [24, 12, 4, 1] instead of [24, 4, 8, 1]"), "{error}");

    let duplicate = |source: View<'_, f32, DeviceOf<R>>, target: ViewMut<'_, f32, DeviceOf<R>>| {
        attn::cuda::duplicate::<f32, DeviceOf<R>>(&queue, source, target)
    };
    duplicate(on.view(), same.view_mut()).unwrap();
    assert_eq!(attn::cuda::to_host::<f32, DeviceOf<R>>(&queue, &same).unwrap(), host);
    duplicate(on.view(), reshaped.view_mut()).unwrap();
    let copied = attn::cuda::to_host::<f32, DeviceOf<R>>(&queue, &reshaped).unwrap();
    assert_eq!(copied.as_slice(), host.as_slice());
    let said = duplicate(on.view(), smaller.view_mut()).unwrap_err().to_string();
    assert!(said.contains("`target`") && said.contains("24 elements of the source's [1, 2, 3, 4]"), "{said}");
    let turned = on.view().permuted(TensorLayout::Bhsd);
    let said = duplicate(turned, same.view_mut()).unwrap_err().to_string();
    assert!(said.contains("`source`") && said.contains("dense"), "{said}");
}

/// The raw layer: what it cannot take, and that what it can take is the same as through views.
pub fn foreign_memory<R: Rig>() {
    let Some(queue) = R::queue(0) else { return };
    let host = Tensor::<bf16>::from_fn([1, 40, 2, 64], |[_, s, h, d]| {
        bf16::from_f32(((s * 13 + h * 7 + d * 3) % 29) as f32 / 29.0)
    })
    .unwrap();
    let tensor = attn::cuda::to_device(&queue, &host).unwrap();
    let mut out = Tensor::<bf16, _>::zeros(&queue, [1, 40, 2, 64]).unwrap();
    let mut lse = Tensor::<f32, _>::zeros(&queue, [1, 2, 40, 1]).unwrap();
    let raw = RawTensor { base: tensor.view().base().as_ptr().cast(), strides: [40 * 128, 128, 64] };
    let call = RawAttention {
        query: raw,
        key: raw,
        value: raw,
        out: RawTensor { base: out.view_mut().base().as_ptr().cast(), ..raw },
        lse: Some(RawRows { base: lse.view_mut().base().as_ptr(), strides: [80, 1, 40] }),
        key_lengths: core::ptr::null(),
        dtype: DType::BF16,
        batch: 1,
        seq_q: 40,
        seq_k: 40,
        heads: 2,
        kv_heads: 2,
        head_dim: 64,
        band: Band::causal(40, 40),
        scale: 0.125,
        form: FlashForm::Auto,
    };
    // SAFETY: the tensors live to the end of this function, and `read` waits.
    unsafe { raw::attention(&queue, &call) }.unwrap();
    let read = |tensor: &Tensor<bf16, DeviceOf<R>>| attn::cuda::to_host(&queue, tensor).unwrap();
    let by_address = read(&out);
    let mut again = Tensor::<bf16, _>::zeros(&queue, [1, 40, 2, 64]).unwrap();
    let kv = KeyValue { key: tensor.view(), value: tensor.view() };
    let (query, mask, scale) = (tensor.view(), call.band.into(), call.scale);
    let mut typed = AttentionCall { query, kv, mask, scale, out: again.view_mut(), lse: None };
    let mut arena = Arena::<DeviceOf<R>>::default();
    FlashSm90::AUTO.forward(arena.open(&queue).unwrap(), &mut typed).unwrap();
    assert_eq!(by_address, read(&again));
    let lse = attn::cuda::to_host::<f32, DeviceOf<R>>(&queue, &lse).unwrap();
    assert!(lse.as_slice().iter().all(|lse| lse.is_finite() && *lse != 0.0));

    let error = |call: RawAttention| {
        // SAFETY: it is refused before anything is read.
        unsafe { raw::attention(&queue, &call) }.unwrap_err().to_string()
    };
    let null = RawTensor { base: core::ptr::null_mut(), ..raw };
    assert!(error(RawAttention { key: null, ..call }).contains("`key` at address 0"));
    assert!(error(RawAttention { dtype: DType::F32, ..call }).contains("elements of type f32"));
    assert!(error(RawAttention { head_dim: 80, ..call }).contains("head_dim = 80"));
}
