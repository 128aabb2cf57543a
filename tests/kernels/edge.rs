//! Rows that are normalised and rotated while they are copied, against float64 and the host.

use attn::cuda::{self, GpuQueue, Half, Launches};
use attn::device::{Device, EdgeCopy, EdgeNorm, EdgeRope};
use attn::{DType, Edge, Element, RmsNorm, Rope, RopePairs, Tensor, TensorLayout, View};
use half::{bf16, f16};

use crate::kernels::rig::{DeviceOf, Held, Place, Rig};
use crate::support::{Random, WholeEdge, angles};

/// An edge whose weights and tables are on the device.
pub struct EdgeThere<T, D: Device> {
    norm: Option<(Option<Tensor<T, D>>, f32)>,
    rope: Option<([Tensor<f32, D>; 2], RopePairs)>,
}

impl<T: Element, D: Launches> EdgeThere<T, D> {
    pub fn new<Q: GpuQueue<Device = D>>(queue: &Q, edge: &WholeEdge<T>) -> attn::Result<Self> {
        let norm = match &edge.norm {
            Some((Some(weight), eps)) => Some((Some(cuda::to_device(queue, weight)?), *eps)),
            Some((None, eps)) => Some((None, *eps)),
            None => None,
        };
        let rope = match &edge.rope {
            Some(([cos, sin], order)) => {
                Some(([cuda::to_device(queue, cos)?, cuda::to_device(queue, sin)?], *order))
            }
            None => None,
        };
        Ok(Self { norm, rope })
    }

    pub fn view(&self) -> Edge<'_, T, D> {
        Edge {
            norm: self
                .norm
                .as_ref()
                .map(|(weight, eps)| RmsNorm { weight: weight.as_ref().map(Tensor::view), eps: *eps }),
            rope: self.rope.as_ref().map(|([cos, sin], pairs)| Rope {
                cos: cos.view(),
                sin: sin.view(),
                pairs: *pairs,
            }),
        }
    }
}

/// The copy of a tensor that an edge makes.
fn copy_of<T: Element, D: Device>(
    edge: &Edge<'_, T, D>,
    from: View<'_, T, D>,
    to: View<'_, T, D>,
) -> EdgeCopy {
    // One row of a table, or of weights, serves all.
    let steps = |view: View<'_, f32, D>| {
        let [b, s, _, i] = view.strides();
        [if view.shape()[0] == 1 { 0 } else { b }, s, i]
    };
    EdgeCopy {
        source: from.base().as_ptr().cast_const().cast(),
        destination: to.base().as_ptr().cast(),
        dtype: T::DTYPE,
        extent: from.shape(),
        source_strides: from.strides(),
        destination_strides: to.strides(),
        norm: edge.norm.map(|norm| EdgeNorm {
            weight: norm
                .weight
                .map_or(core::ptr::null(), |weight| weight.base().as_ptr().cast_const().cast()),
            weight_strides: norm.weight.map_or([0, 1], |weight| {
                [if weight.shape()[2] == 1 { 0 } else { weight.strides()[2] }, weight.strides()[3]]
            }),
            eps: norm.eps,
        }),
        rope: edge.rope.map(|rope| EdgeRope {
            cos: rope.cos.base().as_ptr().cast_const(),
            sin: rope.sin.base().as_ptr().cast_const(),
            cos_strides: steps(rope.cos),
            sin_strides: steps(rope.sin),
            pairs: rope.cos.shape()[3],
            order: rope.pairs,
        }),
    }
}

/// An edge that the kernel takes.
fn edge_of<T: Element>(random: &mut Random, shape: [usize; 4]) -> WholeEdge<T> {
    let [batch, seq, _, head_dim] = shape;
    let mut edge = WholeEdge::random(random, shape);
    if let Some((_, order)) = edge.rope.take() {
        let unit = if order == RopePairs::Halves { 8 } else { 4 };
        let pairs = unit * (1 + random.below((head_dim / 2 / unit).max(1)));
        if 2 * pairs <= head_dim {
            let batch = if random.below(2) == 0 { 1 } else { batch };
            let angle = |[b, s, _, i]: [usize; 4]| (3 * b + s) as f64 / 50_f64.powf(i as f64 / pairs as f64);
            edge.rope = Some((angles([batch, seq, 1, pairs], angle), order));
        }
    }
    edge
}

/// Does an edge on the device, and compares: no element is off by more than its last bit, and few are, as they would be if
/// results were rounded on the way.
fn verify<T: Half, R: Rig>(seed: u64, shape: [usize; 4], [from, to]: [Place; 2]) -> Option<[usize; 2]> {
    let queue = R::queue(seed)?;
    let mut random = Random(seed);
    let edge = edge_of::<T>(&mut random, shape);
    let source = Tensor::<T>::from_fn(shape, |_| T::from_f32(2.0 * random.normal())).unwrap();
    let held = Held::new(&queue, from, shape, |index| source.view().at(index));
    let mut out = Held::<T, _>::poisoned(&queue, to, shape);
    let there = EdgeThere::new(&queue, &edge).unwrap();
    let copy = copy_of(&there.view(), held.view(), out.view_mut().into_view());
    // SAFETY: the tensors live until the result is read.
    unsafe { DeviceOf::<R>::edge(&queue, &[copy]) }.unwrap();
    let what = format!("{shape:?}, seed {seed}, {edge:?}");
    let found = out.read(&queue, &what);
    let exact = edge.done(&source);
    let unit = if T::DTYPE == DType::BF16 { 1.0 / 128.0 } else { 1.0 / 1024.0 };
    let mut unlike = 0;
    for (at, (found, exact)) in found.iter().zip(exact.as_slice()).enumerate() {
        let (found, exact) = (found.to_f32(), exact.to_f32());
        assert!(
            (found - exact).abs() <= unit * exact.abs() + 2e-6,
            "{found}, not {exact}, at {at} of {what}"
        );
        unlike += usize::from(found != exact);
    }
    Some([unlike, found.len()])
}

pub fn rows_are_normalised_rotated_and_rounded_once<R: Rig>() {
    let places = [Place::BSHD, Place::dense(TensorLayout::Bhsd), Place::sliced(TensorLayout::Bshd)];
    let mut sums = [0, 0];
    for (seed, head_dim) in [8, 16, 40, 64, 96, 128, 256].into_iter().enumerate() {
        for round in 0..4 {
            let seed = (10 * seed + round) as u64;
            // Heads and tokens that fill units and tiles, and that do not.
            let shape = [1 + round % 2, [1, 3, 9, 21][round], [4, 1, 5, 6][round], head_dim];
            let places = [places[round % 3], places[(round + 1) % 3]];
            let counts = match round % 2 {
                0 => verify::<bf16, R>(seed, shape, places),
                _ => verify::<f16, R>(seed, shape, places),
            };
            let Some(counts) = counts else { return };
            sums = [sums[0] + counts[0], sums[1] + counts[1]];
        }
    }
    let [unlike, all] = sums;
    assert!(200 * unlike <= all, "{unlike} of {all} numbers are not the nearest");
}

/// Pieces of one tensor, by heads and by tokens, as many as fill launches and more; some are empty.
pub fn batches_of_every_size_are_done<R: Rig>() {
    let Some(queue) = R::queue(3) else { return };
    for pieces in [1, 8, 9, 100, 101, 133] {
        let shape = [1, pieces, 2, 16];
        let mut random = Random(pieces as u64);
        let edge = WholeEdge::<bf16> {
            norm: Some((None, 1e-3)),
            rope: Some((
                angles([1, pieces, 1, 8], |[_, s, _, i]| (s * (i + 1)) as f64 / 9.0),
                RopePairs::Halves,
            )),
        };
        let source = Tensor::<bf16>::from_fn(shape, |_| bf16::from_f32(random.normal())).unwrap();
        let there = EdgeThere::new(&queue, &edge).unwrap();
        let on_device = cuda::to_device(&queue, &source).unwrap();
        let mut out = Tensor::<bf16, DeviceOf<R>>::zeros(&queue, shape).unwrap();
        let whole = copy_of(&there.view(), on_device.view(), out.view_mut().into_view());
        let copies: Vec<EdgeCopy> = (0..pieces)
            .flat_map(|piece| {
                let rope = whole.rope.map(|rope| EdgeRope {
                    cos: rope.cos.wrapping_add(piece * 8),
                    sin: rope.sin.wrapping_add(piece * 8),
                    ..rope
                });
                let piece = EdgeCopy {
                    source: whole.source.wrapping_add(piece * 64),
                    destination: whole.destination.wrapping_add(piece * 64),
                    extent: [1, 1, 2, 16],
                    rope,
                    ..whole
                };
                [piece, EdgeCopy { extent: [1, 0, 2, 16], ..piece }]
            })
            .collect();
        // SAFETY: the tensors live until the result is read, and the pieces lie inside them.
        unsafe { DeviceOf::<R>::edge(&queue, &copies) }.unwrap();
        let found = cuda::to_host::<bf16, DeviceOf<R>>(&queue, &out).unwrap();
        for (found, exact) in found.as_slice().iter().zip(edge.done(&source).as_slice()) {
            let (found, exact) = (found.to_f32(), exact.to_f32());
            assert!((found - exact).abs() <= exact.abs() / 128.0 + 2e-6, "{found} {exact}, {pieces} pieces");
        }
    }
}

/// Also beside infinities that are rotated.
pub fn what_is_not_rotated_stays<R: Rig>() {
    let Some(queue) = R::queue(4) else { return };
    for order in [RopePairs::Interleaved, RopePairs::Halves] {
        let shape = [1, 3, 5, 64];
        let value = |[_, s, h, i]: [usize; 4]| {
            f16::from_f32(if i < 16 { f32::INFINITY } else { (s * 5 + h) as f32 + i as f32 / 64.0 })
        };
        let source = Tensor::<f16>::from_fn(shape, value).unwrap();
        let rope = Some((angles([1, 3, 1, 8], |[_, s, _, i]| (s * i) as f64), order));
        let there = EdgeThere::new(&queue, &WholeEdge::<f16> { norm: None, rope }).unwrap();
        let on_device = cuda::to_device(&queue, &source).unwrap();
        let mut out = Tensor::<f16, DeviceOf<R>>::zeros(&queue, shape).unwrap();
        let copy = copy_of(&there.view(), on_device.view(), out.view_mut().into_view());
        // SAFETY: the tensors live until the result is read.
        unsafe { DeviceOf::<R>::edge(&queue, &[copy]) }.unwrap();
        let found = cuda::to_host::<f16, DeviceOf<R>>(&queue, &out).unwrap();
        for (at, found) in found.as_slice().iter().enumerate().filter(|(at, _)| at % 64 >= 16) {
            assert_eq!(*found, source.as_slice()[at], "{order:?}, element {at}");
        }
        assert!(found.as_slice()[..16].iter().all(|x| !x.is_finite()));
    }
}

/// What does not fit is refused whole, before anything is queued.
pub fn what_is_off_16_bytes_is_refused<R: Rig>() {
    let Some(queue) = R::queue(5) else { return };
    let there = EdgeThere::new(&queue, &WholeEdge::<bf16> { norm: Some((None, 0.0)), rope: None }).unwrap();
    let shape = [1, 2, 2, 24];
    let source = Tensor::<bf16, DeviceOf<R>>::zeros(&queue, shape).unwrap();
    let mut out = cuda::to_device(&queue, &Tensor::<bf16>::from_fn(shape, |_| bf16::ONE).unwrap()).unwrap();
    let right = copy_of(&there.view(), source.view(), out.view_mut().into_view());
    for (wrong, says) in [
        (
            EdgeCopy { source: right.source.wrapping_add(2), extent: [1, 1, 2, 24], ..right },
            "`source`: its address",
        ),
        (EdgeCopy { extent: [1, 2, 2, 20], ..right }, "head_dim = 20"),
        (EdgeCopy { dtype: DType::F32, ..right }, "elements of f32"),
    ] {
        // SAFETY: it is refused before anything is read.
        let error = unsafe { DeviceOf::<R>::edge(&queue, &[right, wrong]) }.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let after = cuda::to_host::<bf16, DeviceOf<R>>(&queue, &out).unwrap();
    assert!(after.as_slice().iter().all(|x| *x == bf16::ONE));
}
