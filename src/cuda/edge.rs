//! Batches of copies of rows that are normalised and rotated on their way, on a GPU.

use core::ffi::c_void;

use attn_runtime::device::{EdgeCopy, EdgeRope};
use attn_runtime::{DType, Error, Result, RopePairs};

use super::abi;
use super::architecture::{Architecture, supports};
use super::launches::{Launches, here, queue_on};
use super::layout::{self, ALIGN, unsupported};

/// The kernel's name, in messages.
const NAME: &str = "edge";

/// Elements that the kernel has of a row at a time.
const CHUNK: usize = 8;

/// The longest row: a chunk for each lane of a warp.
const HEAD_DIM_MAX: usize = 32 * CHUNK;

/// How many copies are converted at a time, without memory of the heap's.
const AT_ONCE: usize = 32;

/// Queues a batch, all of it or nothing.
///
/// # Safety
/// As [`Device::edge`](attn_runtime::Device::edge).
pub(crate) unsafe fn batch<D: Launches>(queue: &D::Queue, copies: &[EdgeCopy]) -> Result<()> {
    for copy in copies {
        described(copy)?;
        let [cos, sin] = copy.rope.map_or([core::ptr::null(); 2], |rope| [rope.cos.cast(), rope.sin.cast()]);
        let weight = copy.norm.map_or(core::ptr::null(), |norm| norm.weight.cast());
        let source = copy.source.cast::<c_void>();
        let read = [("source", source), ("norm.weight", weight), ("rope.cos", cos), ("rope.sin", sin)];
        if !copy.extent.contains(&0) {
            for named in read.into_iter().filter(|(_, base)| !base.is_null()) {
                here::<D>(queue, NAME, &[named])?;
            }
        }
    }
    if copies.iter().all(|copy| copy.extent.contains(&0)) {
        return Ok(());
    }
    supports::<D>(queue, NAME, Architecture::Ampere)?;
    for copies in copies.chunks(AT_ONCE) {
        let mut edges = [abi::Edge::NONE; AT_ONCE];
        for (edge, copy) in edges.iter_mut().zip(copies) {
            *edge = described(copy)?;
        }
        queue_on::<D>(queue, NAME, |launchers, stream| {
            // SAFETY: the pointer and the length are those of an array of the kernels' own structs; the tensors that they
            // describe are the caller's contract.
            unsafe { (launchers.edge)(edges.as_ptr(), copies.len(), stream) }
        })?;
    }
    Ok(())
}

/// A copy as the kernel takes it.
///
/// # Errors
/// If it takes no such copy, which follows from types, lengths and strides alone but for addresses.
fn described(copy: &EdgeCopy) -> Result<abi::Edge> {
    let [batch, seq, heads, head_dim] = copy.extent;
    let element = match copy.dtype {
        DType::BF16 => abi::BF16,
        DType::F16 => abi::F16,
        other => return Err(unsupported(NAME, format!("elements of {other}"), "it takes bf16 and f16")),
    };
    if head_dim == 0 || !head_dim.is_multiple_of(CHUNK) || head_dim > HEAD_DIM_MAX {
        let supported = format!("it takes multiples of {CHUNK} up to {HEAD_DIM_MAX}");
        return Err(unsupported(NAME, format!("head_dim = {head_dim}"), supported));
    }
    layout::count_rows(NAME, copy.extent)?;
    let extent = [batch, seq, heads];
    let strided = |name, base: *const u8, [b, s, h, d]: [usize; 4]| {
        dense(name, d, head_dim)?;
        strides::<3>(name, base, [b, s, h], extent, 2)
    };
    let mut edge = abi::Edge {
        source: copy.source.cast(),
        destination: copy.destination.cast(),
        source_strides: strided("source", copy.source, copy.source_strides)?,
        destination_strides: strided("destination", copy.destination, copy.destination_strides)?,
        batch: layout::length(NAME, "batch", batch)?,
        seq: layout::length(NAME, "seq", seq)?,
        heads: layout::length(NAME, "heads", heads)?,
        head_dim: layout::length(NAME, "head_dim", head_dim)?,
        element,
        ..abi::Edge::NONE
    };
    if let Some(norm) = copy.norm {
        (edge.norm, edge.eps) = (1, norm.eps);
        if !norm.weight.is_null() {
            dense("norm.weight", norm.weight_strides[1], head_dim)?;
            let [of_head, _] = norm.weight_strides;
            [edge.weight_stride] = strides("norm.weight", norm.weight, [of_head], [heads], 2)?;
            edge.weight = norm.weight.cast();
        }
    }
    if let Some(rope) = copy.rope {
        rotate(&mut edge, rope, [batch, seq])?;
    }
    Ok(edge)
}

/// Adds the rotation.
fn rotate(edge: &mut abi::Edge, rope: EdgeRope, tokens: [usize; 2]) -> Result<()> {
    let EdgeRope { cos, sin, cos_strides, sin_strides, pairs, order } = rope;
    let rotary_dim = pairs.saturating_mul(2);
    let (number, unit, cure) = match order {
        RopePairs::Interleaved => (abi::PAIRS_INTERLEAVED, CHUNK, "fill the tables up by angles of 0"),
        RopePairs::Halves => (abi::PAIRS_HALVES, 2 * CHUNK, "rotate before the call"),
    };
    if !rotary_dim.is_multiple_of(unit) {
        let what = format!("{rotary_dim} rotated channels in {} pairs", order.name());
        return Err(unsupported(NAME, what, format!("it takes multiples of {unit}: {cure}")));
    }
    let table = |name, base: *const f32, [b, s, i]: [usize; 3]| {
        dense(name, i, pairs)?;
        strides::<2>(name, base.cast(), [b, s], tokens, 4)
    };
    edge.cos_strides = table("rope.cos", cos, cos_strides)?;
    edge.sin_strides = table("rope.sin", sin, sin_strides)?;
    (edge.cos, edge.sin, edge.pairs) = (cos, sin, number);
    edge.rotary_dim = layout::length(NAME, "rotary_dim", rotary_dim)?;
    Ok(())
}

/// That neighbours of the last axis are neighbours in memory.
fn dense(name: &'static str, stride: usize, length: usize) -> Result<()> {
    if stride == 1 || length <= 1 {
        return Ok(());
    }
    let what = format!("`{name}` with elements of a row {stride} apart");
    Err(unsupported(
        NAME,
        what,
        "rows must be dense (stride 1): copy the tensor into a layout whose last axis they are",
    ))
}

/// Strides of axes, given that all that is read lies at multiples of 16 bytes.
fn strides<const N: usize>(
    tensor: &'static str,
    base: *const u8,
    strides: [usize; N],
    extent: [usize; N],
    bytes: usize,
) -> Result<[i64; N]> {
    let misaligned = |what| Err(Error::Misaligned { tensor, what, needed: ALIGN });
    if !extent.contains(&0) && !base.addr().is_multiple_of(ALIGN) {
        return misaligned(format!("address {:#x}", base.addr()));
    }
    let mut steps = [0_i64; N];
    for ((step, stride), extent) in steps.iter_mut().zip(strides).zip(extent) {
        // Along an axis of one index nobody steps.
        if extent <= 1 {
            continue;
        }
        let reach = stride.saturating_mul(bytes);
        if !reach.is_multiple_of(ALIGN) {
            return misaligned(format!("stride of {stride} elements ({reach} bytes)"));
        }
        *step = i64::try_from(stride).unwrap_or(i64::MAX);
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use core::ptr::without_provenance;

    use attn_runtime::device::EdgeNorm;

    use super::*;

    const ROPE: EdgeRope = EdgeRope {
        cos: without_provenance(4096),
        sin: without_provenance(4096),
        cos_strides: [0, 32, 1],
        sin_strides: [0, 32, 1],
        pairs: 32,
        order: RopePairs::Halves,
    };

    fn copy() -> EdgeCopy {
        EdgeCopy {
            source: without_provenance(4096),
            destination: core::ptr::without_provenance_mut(8192),
            dtype: DType::BF16,
            extent: [2, 100, 6, 128],
            source_strides: [76800, 768, 128, 1],
            destination_strides: [76800, 768, 128, 1],
            norm: Some(EdgeNorm { weight: without_provenance(4096), weight_strides: [0, 1], eps: 1e-6 }),
            rope: Some(ROPE),
        }
    }

    #[test]
    fn copies_cross_as_they_are() {
        let edge = described(&copy()).unwrap();
        assert_eq!((edge.source_strides, edge.weight_stride), ([76800, 768, 128], 0));
        assert_eq!((edge.cos_strides, edge.rotary_dim, edge.pairs), ([0, 32], 64, abi::PAIRS_HALVES));
        assert_eq!((edge.norm, edge.eps, edge.heads, edge.head_dim), (1, 1e-6, 6, 128));
    }

    #[track_caller]
    fn refused(copy: &EdgeCopy, says: &[&str]) {
        let said = described(copy).unwrap_err().to_string();
        assert!(says.iter().all(|part| said.contains(part)), "{said}");
        // The same where a rank has no rows.
        if !said.contains("address") && !said.contains("apart") && !said.contains("rows") {
            let [_, seq, heads, head_dim] = copy.extent;
            assert_eq!(
                described(&EdgeCopy { extent: [0, seq, heads, head_dim], ..*copy }).unwrap_err().to_string(),
                said
            );
        }
    }

    #[test]
    fn what_the_kernel_does_not_take_is_refused_with_its_numbers() {
        refused(&EdgeCopy { dtype: DType::F32, ..copy() }, &["`edge`", "elements of f32", "bf16 and f16"]);
        for head_dim in [100, 264] {
            let copy = EdgeCopy { extent: [2, 100, 6, head_dim], ..copy() };
            refused(&copy, &[&format!("head_dim = {head_dim}"), "multiples of 8 up to 256"]);
        }
        let rope = |rope| EdgeCopy { rope: Some(rope), ..copy() };
        refused(
            &rope(EdgeRope { pairs: 20, ..ROPE }),
            &["40 rotated channels in halves pairs", "multiples of 16"],
        );
        let neighbours = EdgeRope { pairs: 30, order: RopePairs::Interleaved, ..ROPE };
        refused(
            &rope(neighbours),
            &["60 rotated channels in interleaved pairs", "multiples of 8", "angles of 0"],
        );
        refused(&EdgeCopy { extent: [1 << 20, 1 << 20, 6, 128], ..copy() }, &["rows"]);
    }

    #[test]
    fn addresses_and_strides_off_16_bytes_are_refused() {
        refused(&EdgeCopy { source: without_provenance(4104), ..copy() }, &["`source`", "address 0x1008"]);
        let strides = [76800, 770, 128, 1];
        refused(
            &EdgeCopy { destination_strides: strides, ..copy() },
            &["`destination`", "770 elements (1540 bytes)"],
        );
        let rope = EdgeRope { sin: without_provenance(4100), ..ROPE };
        refused(&EdgeCopy { rope: Some(rope), ..copy() }, &["`rope.sin`", "address 0x1004"]);
        let rope = EdgeRope { cos_strides: [0, 33, 1], ..ROPE };
        refused(&EdgeCopy { rope: Some(rope), ..copy() }, &["`rope.cos`", "33 elements (132 bytes)"]);
        let rope = EdgeRope { cos_strides: [0, 32, 2], ..ROPE };
        refused(&EdgeCopy { rope: Some(rope), ..copy() }, &["`rope.cos` with elements of a row 2 apart"]);
        let norm = EdgeNorm { weight: without_provenance(4096), weight_strides: [130, 1], eps: 0.0 };
        refused(&EdgeCopy { norm: Some(norm), ..copy() }, &["`norm.weight`", "130 elements (260 bytes)"]);
    }
}
