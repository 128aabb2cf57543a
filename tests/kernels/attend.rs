//! Runs the attention kernels on a case, at once or in hops, and compares them with float64.

use core::ops::Range;

use attn::cuda::{self, DeviceMasks, FlashForm, FlashSm80, FlashSm90, Half, SageSm80, SageSm90, SdpaGpu};
use attn::device::Arena;
use attn::{
    AttentionCall, BlockMask, BlockSegments, CarriesState, Element, KeyLengths, KeyValue, Result, Run, Scope,
    SegmentIds, Tensor, View,
};

use crate::kernels::case::{Case, Inputs, check, exact, flat};
use crate::kernels::rig::{DeviceOf, Held, Rig};

/// One of the kernels, for a head_dim.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    pub head_dim: usize,
    pub which: Which,
}

/// One of the kernels.
#[derive(Clone, Copy, Debug)]
pub enum Which {
    Sm90(FlashForm),
    Sm80,
    Sdpa,
}

/// A kernel of the crate's, for elements of a type.
pub trait OnGpu<T: Element, R: Rig>: CarriesState<DeviceOf<R>, T> {
    fn forward_with(
        &self,
        scope: Scope<'_, DeviceOf<R>>,
        call: &mut AttentionCall<'_, T, DeviceOf<R>>,
        masks: &DeviceMasks<'_, DeviceOf<R>>,
    ) -> Result<()>;
}

macro_rules! on_gpu {
    ($($kernel:ident for $element:ident),*) => {$(
        impl<T: $element, R: Rig> OnGpu<T, R> for $kernel {
            fn forward_with(
                &self,
                scope: Scope<'_, DeviceOf<R>>,
                call: &mut AttentionCall<'_, T, DeviceOf<R>>,
                masks: &DeviceMasks<'_, DeviceOf<R>>,
            ) -> Result<()> {
                $kernel::forward_with(self, scope, call, masks)
            }
        }
    )*};
}

on_gpu!(FlashSm90 for Half, FlashSm80 for Half, SageSm80 for Half, SageSm90 for Half, SdpaGpu for Element);

/// Does something with the kernel that a [`Which`] names.
macro_rules! with {
    ($which:expr, $kernel:ident => $then:expr) => {
        match $which {
            Which::Sm90(form) => {
                let $kernel = attn::cuda::FlashSm90::new(form);
                $then
            }
            Which::Sm80 => {
                let $kernel = attn::cuda::FlashSm80;
                $then
            }
            Which::Sdpa => {
                let $kernel = attn::cuda::SdpaGpu;
                $then
            }
        }
    };
}

pub(crate) use with;

/// A case's tensors on the device.
pub struct Loaded<T: Element, R: Rig> {
    pub queue: R::Queue,
    pub query: Held<T, DeviceOf<R>>,
    key: Held<T, DeviceOf<R>>,
    value: Held<T, DeviceOf<R>>,
    dense: Option<Tensor<u8, DeviceOf<R>>>,
}

impl<T: Element, R: Rig> Loaded<T, R> {
    pub fn new(queue: R::Queue, case: &Case, inputs: &Inputs<T>) -> Self {
        let (queries, keys) = (case.query_shape(), case.key_shape());
        let query = Held::new(&queue, case.place, queries, |index| inputs.query[flat(queries, index)]);
        let key = Held::new(&queue, case.place, keys, |index| inputs.key[flat(keys, index)]);
        let value = Held::new(&queue, case.place, keys, |index| inputs.value[flat(keys, index)]);
        let dense = case.dense.map(|_| {
            let dense = Tensor::<u8>::from_fn(case.dense_shape(), |index| match case.dense_at(index) {
                true => 1 + (index[3] % 255) as u8,
                false => 0,
            });
            cuda::to_device(&queue, &dense.unwrap()).unwrap()
        });
        Self { queue, query, key, value, dense }
    }

    /// Keys and values of some positions.
    pub fn kv(&self, keys: &Range<usize>) -> KeyValue<'_, T, DeviceOf<R>> {
        let [key, value] =
            [&self.key, &self.value].map(|held| held.view().narrow(1, keys.start, keys.len()).unwrap());
        KeyValue { key, value }
    }

    /// The mask of some of a case's keys: what is on the host, and the dense mask.
    pub fn mask<'a>(
        &'a self,
        case: &Case,
        host: &'a HostMasks,
        keys: &Range<usize>,
    ) -> BlockMask<'a, DeviceOf<R>> {
        let key_lengths = host.lengths.as_deref();
        let segments = host.segments.as_ref().map(|[query, key]| BlockSegments {
            query: SegmentIds::new(query, case.seq_q, Run::of(0..case.seq_q)),
            key: SegmentIds::new(key, case.seq_k, Run::of(keys.clone())),
        });
        BlockMask {
            band: case.band.from_block(0, keys.start),
            key_lengths: key_lengths.map(|lengths| KeyLengths::of_block(lengths, 0, Run::of(keys.clone()))),
            segments,
            dense: self.dense.as_ref().map(|dense| dense.view().narrow(3, keys.start, keys.len()).unwrap()),
        }
    }

    /// Where a kernel writes.
    pub fn outputs(&self, case: &Case) -> (Held<T, DeviceOf<R>>, Option<Held<f32, DeviceOf<R>>>) {
        let lse = case.lse.map(|place| Held::poisoned(&self.queue, place.of_rows(), case.rows_shape()));
        (Held::poisoned(&self.queue, case.place, case.query_shape()), lse)
    }
}

/// What a mask has on the host.
#[derive(Default)]
pub struct HostMasks {
    /// How many keys of each batch row count.
    lengths: Option<Vec<usize>>,
    segments: Option<[Vec<i32>; 2]>,
}

impl HostMasks {
    pub fn of(case: &Case) -> Self {
        Self {
            lengths: case.lengths.map(|_| (0..case.batch).map(|b| case.length(b)).collect()),
            segments: case.segment_ids(),
        }
    }
}

/// What a kernel wrote: the output, and the log-sum-exp if it was wanted.
pub type Written<T> = (Vec<T>, Option<Vec<f32>>);

/// Runs a case, its key lengths and segments on the device, or in the mask.
pub fn run_at_once<T: Element, R: Rig, K: OnGpu<T, R>>(
    queue: R::Queue,
    case: &Case,
    inputs: &Inputs<T>,
    kernel: &K,
    on_device: bool,
) -> Written<T> {
    let loaded = Loaded::<T, R>::new(queue, case, inputs);
    let queue = &loaded.queue;
    let (mut out, mut lse) = loaded.outputs(case);
    let (host, nothing) = (HostMasks::of(case), HostMasks::default());
    let cross = |numbers: &[i32], shape: [usize; 4]| {
        cuda::to_device(queue, View::new(numbers, shape).unwrap()).unwrap()
    };
    let lengths = case.lengths.map(|lengths| cross(lengths, [case.batch, 1, 1, 1]));
    let segments = host.segments.as_ref().map(|[query, key]| {
        [cross(query, [case.batch, case.seq_q, 1, 1]), cross(key, [case.batch, case.seq_k, 1, 1])]
    });
    let there = DeviceMasks {
        key_lengths: lengths.as_ref().map(Tensor::view),
        segments: segments.as_ref().map(|both| both.each_ref().map(Tensor::view)),
    };
    let all = 0..case.seq_k;
    let mut call = AttentionCall {
        query: loaded.query.view(),
        kv: loaded.kv(&all),
        mask: loaded.mask(case, if on_device { &nothing } else { &host }, &all),
        scale: case.softmax_scale(),
        out: out.view_mut(),
        lse: lse.as_mut().map(Held::view_mut),
    };
    let mut arena = Arena::<DeviceOf<R>>::default();
    let scope = arena.open(queue).unwrap();
    match on_device {
        true => kernel.forward_with(scope, &mut call, &there),
        false => kernel.forward(scope, &mut call),
    }
    .unwrap_or_else(|error| panic!("{error}; {case:?}"));
    (out.read(queue, "out"), lse.map(|lse| lse.read(queue, "lse")))
}

/// Runs a case on a carried state, one block of keys after the other.
pub fn run_in_hops<T: Element, R: Rig, K: OnGpu<T, R>>(
    queue: R::Queue,
    case: &Case,
    inputs: &Inputs<T>,
    kernel: &K,
    hops: &[Range<usize>],
) -> Written<T> {
    let loaded = Loaded::<T, R>::new(queue, case, inputs);
    let queue = &loaded.queue;
    let (mut out, mut lse) = loaded.outputs(case);
    let mut arena = Arena::<DeviceOf<R>>::default();
    let scope = arena.open(queue).unwrap();
    let mut state = CarriesState::<DeviceOf<R>, T>::begin(kernel, scope, case.query_shape()).unwrap();
    let host = HostMasks::of(case);
    for hop in hops {
        let mask = loaded.mask(case, &host, hop);
        kernel
            .step(scope, loaded.query.view(), loaded.kv(hop), &mask, case.softmax_scale(), &mut state)
            .unwrap_or_else(|error| panic!("{error}; {case:?}, keys {hop:?}"));
    }
    kernel
        .finish(scope, state, out.view_mut(), lse.as_mut().map(Held::view_mut))
        .unwrap_or_else(|error| panic!("{error}; {case:?}"));
    (out.read(queue, "out"), lse.map(|lse| lse.read(queue, "lse")))
}

/// Runs a case, its key lengths and segments on the device.
pub fn run<T: Half, R: Rig>(queue: R::Queue, case: &Case, inputs: &Inputs<T>, kernel: Kernel) -> Written<T> {
    with!(kernel.which, kernel => run_at_once::<T, R, _>(queue, case, inputs, &kernel, true))
}

/// Runs a case, its key lengths and segments in the mask.
pub fn run_masked<T: Half, R: Rig>(
    queue: R::Queue,
    case: &Case,
    inputs: &Inputs<T>,
    kernel: Kernel,
) -> Written<T> {
    with!(kernel.which, kernel => run_at_once::<T, R, _>(queue, case, inputs, &kernel, false))
}

/// Runs a case on a carried state, one block of keys after the other.
pub fn run_carried<T: Half, R: Rig>(
    queue: R::Queue,
    case: &Case,
    inputs: &Inputs<T>,
    kernel: Kernel,
    hops: &[Range<usize>],
) -> Written<T> {
    with!(kernel.which, kernel => run_in_hops::<T, R, _>(queue, case, inputs, &kernel, hops))
}

/// Runs a case and compares it with float64.
#[track_caller]
pub fn verify<T: Half, R: Rig>(case: &Case, kernel: Kernel) {
    with!(kernel.which, kernel => verify_of::<T, R, _>(case, &kernel));
}

/// Runs a case in hops and compares it with float64.
#[track_caller]
pub fn verify_carried<T: Half, R: Rig>(case: &Case, kernel: Kernel, hops: &[Range<usize>]) {
    with!(kernel.which, kernel => verify_in_hops::<T, R, _>(case, &kernel, hops));
}

/// [`verify`], for one kernel.
#[track_caller]
pub fn verify_of<T: Element, R: Rig, K: OnGpu<T, R> + core::fmt::Debug>(case: &Case, kernel: &K) {
    let Some(queue) = R::queue(case.seed()) else { return };
    let inputs = case.inputs::<T>();
    let (out, lse) = run_at_once::<T, R, _>(queue, case, &inputs, kernel, true);
    check(&format!("{kernel:?}, {}", T::DTYPE), case, &exact(case, &inputs), &out, lse.as_deref());
}

/// [`verify_carried`], for one kernel.
#[track_caller]
pub fn verify_in_hops<T: Element, R: Rig, K: OnGpu<T, R> + core::fmt::Debug>(
    case: &Case,
    kernel: &K,
    hops: &[Range<usize>],
) {
    let Some(queue) = R::queue(case.seed()) else { return };
    let inputs = case.inputs::<T>();
    let (out, lse) = run_in_hops::<T, R, _>(queue, case, &inputs, kernel, hops);
    let what = format!("{kernel:?}, {}, hops {hops:?}", T::DTYPE);
    check(&what, case, &exact(case, &inputs), &out, lse.as_deref());
}
