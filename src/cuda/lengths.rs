//! Key lengths, from a mask on the host to memory of the device.

use attn_runtime::{Error, KeyLengths, Result, Scope};

use super::launches::Launches;

/// How many lengths cross at a time: there is room for them on the stack, so that nothing is allocated.
const CHUNK: usize = 64;

/// Copies how many of a block's keys count, of each row of the batch, to scratch memory of the device, and waits for
/// it. What is returned stays as long as the scope's memory does; it is null if all keys count.
///
/// # Errors
/// If the memory cannot be had, the queue records a graph, or the device reports an error.
pub(crate) fn upload_lengths<D: Launches>(
    scope: Scope<'_, D>,
    lengths: Option<KeyLengths<'_>>,
    [batch, seq_k]: [usize; 2],
) -> Result<*const i32> {
    let Some(lengths) = lengths.filter(|lengths| (0..batch).any(|row| lengths.of(row) < seq_k)) else {
        return Ok(core::ptr::null());
    };
    let target = scope.take::<i32>([batch, 1, 1, 1])?;
    for start in (0..batch).step_by(CHUNK) {
        let mut chunk = [0_i32; CHUNK];
        let count = CHUNK.min(batch - start);
        for (index, slot) in chunk[..count].iter_mut().enumerate() {
            // The axis is no longer than an `i32` counts: that was checked before.
            *slot = lengths.of(start + index).min(seq_k) as i32;
        }
        // SAFETY: the tensor was just taken, dense, with `batch` elements, of which these are inside.
        let to = unsafe { target.base().add(start) };
        // SAFETY: as above; it is lent exclusively.
        let copied = unsafe { D::upload(scope.queue(), bytemuck::cast_slice(&chunk[..count]), to.cast()) };
        copied.map_err(|error| match error {
            Error::Capturing { .. } => Error::Capturing {
                what: "copying key lengths from the host",
                cure: "capture calls without them, or give lengths in memory of the GPU to \
                       `FlashSm90::forward_with`",
            },
            other => other,
        })?;
    }
    Ok(target.base().as_ptr())
}
