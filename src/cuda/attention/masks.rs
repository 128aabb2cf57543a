//! Masks, from the host to memory of the device: key lengths and segments as numbers, dense masks as they lie there.

use attn_runtime::{BlockMask, Error, KeyLengths, Result, Scope, SegmentIds, View, ViewMut};

use crate::cuda::abi;
use crate::cuda::launches::Launches;
use crate::cuda::layout;

/// How many numbers cross at a time where they do not lie side by side: there is room for them on the stack, so that
/// nothing is allocated.
const CHUNK: usize = 256;

/// The least rows and keys of a kernel's tiles, where it has a cover (`abi.h`).
const COVER_TILE: usize = 64;

/// Masks that are in memory of the device, instead of the host's: so calls can be recorded in a graph. What is not said
/// here is the call's own mask.
pub struct DeviceMasks<'a, D> {
    /// How many keys of each batch row count, `[batch, 1, 1, 1]`, dense. A length below 0 counts as 0, one above `seq_k` as
    /// `seq_k`.
    pub key_lengths: Option<View<'a, i32, D>>,
    /// The segments of queries, `[batch, seq_q, 1, 1]`, and of keys, `[batch, seq_k, 1, 1]`, dense. A query attends keys of
    /// its own segment.
    pub segments: Option<[View<'a, i32, D>; 2]>,
}

impl<D> DeviceMasks<'_, D> {
    /// None.
    pub const NONE: Self = Self { key_lengths: None, segments: None };
}

impl<D> Clone for DeviceMasks<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D> Copy for DeviceMasks<'_, D> {}

impl<D> core::fmt::Debug for DeviceMasks<'_, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let lengths = self.key_lengths.is_some();
        f.debug_struct("DeviceMasks")
            .field("key_lengths", &lengths)
            .field("segments", &self.segments.is_some())
            .finish()
    }
}

/// What kernels need of a mask, in memory of the device: what is on the host is copied there, to scratch memory, and waited
/// for. What is returned stays as long as the scope's memory does. `banded` is the mask's band.
///
/// # Errors
/// If both masks speak of the same, a shape does not fit, the memory cannot be had, something is to be copied while the
/// queue records a graph, or the device reports an error.
pub(super) fn cross<D: Launches>(
    scope: Scope<'_, D>,
    kernel: &'static str,
    mask: &BlockMask<'_, D>,
    there: &DeviceMasks<'_, D>,
    [batch, heads, seq_q, seq_k]: [usize; 4],
    banded: abi::Mask,
) -> Result<abi::Mask> {
    let twice = |name: &str| {
        let what = format!("{name} twice, on the host and on the device");
        layout::unsupported(kernel, what, "give them once")
    };
    let mut crossed = banded;
    crossed.key_lengths = match (mask.key_lengths, there.key_lengths) {
        (Some(_), Some(_)) => return Err(twice("key lengths")),
        (_, there @ Some(_)) => resident("key_lengths", there, [batch as i32, 1])?,
        (lengths, None) => {
            let there = upload_lengths(scope, lengths, [batch, seq_k])?;
            there.map_or(core::ptr::null(), |there| there.base().as_ptr().cast_const())
        }
    };
    [crossed.query_segments, crossed.key_segments] = match (mask.segments, there.segments) {
        (Some(_), Some(_)) => return Err(twice("segments")),
        (_, Some([query, key])) => [
            resident("segments of queries", Some(query), [batch as i32, seq_q as i32])?,
            resident("segments of keys", Some(key), [batch as i32, seq_k as i32])?,
        ],
        (Some(segments), None) => [
            upload_segments(scope, segments.query, [batch, seq_q])?,
            upload_segments(scope, segments.key, [batch, seq_k])?,
        ],
        (None, None) => [core::ptr::null(); 2],
    };
    if let Some(dense) = mask.dense {
        let (found, all) = (dense.shape(), [batch, heads, seq_q, seq_k]);
        if found != all && found != [batch, 1, seq_q, seq_k] {
            let expected =
                format!("{all:?}, or 1 in place of the {heads} heads (batch, heads, queries, keys)");
            return Err(Error::Shape { tensor: "dense", found, expected });
        }
        crossed.dense = dense.base().as_ptr().cast_const();
        // Strides of a view count elements of one allocation, or are never multiplied with anything but 0.
        crossed.dense_strides = dense.strides().map(|stride| stride as i64);
        crossed.dense_heads = found[1] as i32;
        if found[1] == 1 {
            crossed.dense_strides[1] = 0;
        }
    }
    if !crossed.query_segments.is_null() || !crossed.dense.is_null() {
        let planes = crossed.dense_heads.max(1) as usize;
        let tiles = [seq_q, seq_k].map(|length| length.div_ceil(COVER_TILE));
        crossed.cover = scope.take::<u8>([batch, planes, tiles[0], tiles[1]])?.base().as_ptr();
    }
    Ok(crossed)
}

/// The address of numbers that are on the device already.
///
/// # Errors
/// If they are not one for each position of each batch row, dense.
pub(super) fn resident<D>(
    name: &'static str,
    numbers: Option<View<'_, i32, D>>,
    [batch, seq]: [i32; 2],
) -> Result<*const i32> {
    let Some(numbers) = numbers else { return Ok(core::ptr::null()) };
    let (expected, found) = ([batch as usize, seq as usize, 1, 1], numbers.shape());
    let each = if seq == 1 { "one for each batch row" } else { "one for each position of each batch row" };
    layout::shape(name, found, expected, each)?;
    let strides = numbers.strides();
    let dense = (found[1] == 1 || strides[1] == 1) && (found[0] == 1 || strides[0] == found[1]);
    if !dense {
        let what = format!("`{name}` with strides {:?}", &strides[..2]);
        return Err(layout::unsupported("attention", what, "they must be dense"));
    }
    Ok(numbers.base().as_ptr().cast_const())
}

/// How many of a block's keys count, of each row of the batch, `[batch, 1, 1, 1]`; none if all keys do.
pub(super) fn upload_lengths<'a, D: Launches>(
    scope: Scope<'a, D>,
    lengths: Option<KeyLengths<'_>>,
    [batch, seq_k]: [usize; 2],
) -> Result<Option<View<'a, i32, D>>> {
    let Some(lengths) = lengths.filter(|lengths| (0..batch).any(|row| lengths.of(row) < seq_k)) else {
        return Ok(None);
    };
    let mut target = scope.take::<i32>([batch, 1, 1, 1])?;
    // The axis is no longer than an `i32` counts: that was checked before.
    upload_chunks(scope, &mut target, 0..batch, |row| lengths.of(row).min(seq_k) as i32)?;
    Ok(Some(target.into_view()))
}

/// The segments of a block's positions: as they lie where they lie side by side, else gathered.
fn upload_segments<D: Launches>(
    scope: Scope<'_, D>,
    ids: SegmentIds<'_>,
    [batch, seq]: [usize; 2],
) -> Result<*const i32> {
    if !ids.has(batch, seq) {
        let message = format!("has fewer ids than the {batch} x {seq} positions of a block");
        return Err(Error::Mask { mask: "segments", message });
    }
    let mut target = scope.take::<i32>([batch, seq, 1, 1])?;
    for row in 0..batch {
        let places = row * seq..(row + 1) * seq;
        match ids.row(row, seq) {
            Some(ids) => upload_to(scope, &mut target, places.start, ids)?,
            None => upload_chunks(scope, &mut target, places.clone(), |at| ids.at(row, at - places.start))?,
        }
    }
    Ok(target.base().as_ptr())
}

/// Copies numbers to some places of a dense tensor, some at a time.
fn upload_chunks<D: Launches>(
    scope: Scope<'_, D>,
    target: &mut ViewMut<'_, i32, D>,
    places: core::ops::Range<usize>,
    number: impl Fn(usize) -> i32,
) -> Result<()> {
    for start in places.clone().step_by(CHUNK) {
        let mut chunk = [0_i32; CHUNK];
        let count = CHUNK.min(places.end - start);
        for (index, slot) in chunk[..count].iter_mut().enumerate() {
            *slot = number(start + index);
        }
        upload_to(scope, target, start, &chunk[..count])?;
    }
    Ok(())
}

/// Copies numbers to places of a dense tensor from one on, and waits for it.
fn upload_to<D: Launches>(
    scope: Scope<'_, D>,
    target: &mut ViewMut<'_, i32, D>,
    start: usize,
    numbers: &[i32],
) -> Result<()> {
    debug_assert!(start + numbers.len() <= target.shape().iter().product());
    // SAFETY: the tensor is dense, and callers stay inside of it.
    let to = unsafe { target.base().add(start) };
    // SAFETY: as above; it is lent exclusively.
    let copied = unsafe { D::upload(scope.queue(), bytemuck::cast_slice(numbers), to.cast()) };
    copied.map_err(|error| match error {
        Error::Capturing { .. } => Error::Capturing {
            what: "copying key lengths or segments from the host",
            cure: "capture calls without them, or give them in memory of the GPU to `forward_with` of \
                   `cuda::FlashSm90`, `cuda::FlashSm80`, `cuda::SdpaGpu`, `cuda::SageSm90` or `cuda::SageSm80`",
        },
        other => other,
    })
}
