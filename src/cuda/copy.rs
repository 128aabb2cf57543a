//! Batches of strided copies on a GPU: what packs, unpacks, slices and reorders there.

use attn_runtime::device::StridedCopy;
use attn_runtime::{Error, Result};

use super::architecture::{Architecture, supports};
use super::launches::{Launches, queue_on};

/// The kernel's name, in messages.
const NAME: &str = "copy";

/// Queues a batch. [`StridedCopy`] is the kernels' own struct (`abi.rs` sees to it), so nothing is converted or
/// allocated.
///
/// # Safety
/// As [`Device::copy`](attn_runtime::Device::copy).
pub(crate) unsafe fn batch<D: Launches>(queue: &D::Queue, copies: &[StridedCopy]) -> Result<()> {
    let Some(moves) = checked(copies)? else { return Ok(()) };
    supports::<D>(queue, NAME, Architecture::Ampere)?;
    queue_on::<D>(queue, NAME, |launchers, stream| {
        // SAFETY: the pointer and the length are those of a slice of the kernels' own structs; the tensors that they
        // describe are the caller's contract.
        unsafe { (launchers.copy)(moves.as_ptr(), moves.len(), stream) }
    })
}

/// The batch, if it moves anything.
fn checked(copies: &[StridedCopy]) -> Result<Option<&[StridedCopy]>> {
    let bad = copies.iter().find(|copy| !matches!(copy.item, 1 | 2 | 4 | 8 | 16));
    if let Some(copy) = bad {
        return Err(Error::Unsupported {
            kernel: NAME,
            what: format!("elements of {} bytes", copy.item),
            supported: String::from("it takes 1, 2, 4, 8 and 16"),
        });
    }
    Ok(copies.iter().any(|copy| !copy.extent.contains(&0)).then_some(copies))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COPY: StridedCopy = StridedCopy {
        source: core::ptr::null(),
        destination: core::ptr::null_mut(),
        item: 2,
        extent: [1, 2, 3, 4],
        source_strides: [24, 12, 4, 1],
        destination_strides: [24, 12, 4, 1],
    };

    #[test]
    fn a_batch_crosses_whole() {
        let batch = [COPY, StridedCopy { extent: [0, 1, 1, 1], ..COPY }];
        assert_eq!(checked(&batch).unwrap().map(<[_]>::len), Some(2));
    }

    #[test]
    fn a_batch_of_nothing_is_not_launched() {
        assert!(checked(&[]).unwrap().is_none());
        assert!(checked(&[StridedCopy { extent: [1, 0, 1, 1], ..COPY }]).unwrap().is_none());
    }

    #[test]
    fn elements_of_odd_sizes_are_refused_with_their_number() {
        for item in [0, 3, 12, 32] {
            let said = checked(&[StridedCopy { item, ..COPY }]).unwrap_err().to_string();
            assert!(said.contains(&format!("elements of {item} bytes")) && said.contains("16"), "{said}");
        }
    }
}
