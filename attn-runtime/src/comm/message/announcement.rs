//! What a rank says with its call to an exchange, as numbers before the first tensors: the boxes that go and come, and where
//! they are.

use super::direct::Offer;
use super::world::Letter;
use crate::comm::StridedBox;
use crate::comm::plan::unpaired;
use crate::error::Result;

/// Numbers by which one box is announced: its transfer, the bytes of an element, its extent.
pub(super) const ANNOUNCED: usize = 6;

/// What tensors start at in a body behind the announcement.
const ALIGN: usize = 64;

/// What a rank says to another one.
pub(super) struct Announcement {
    /// The boxes that it sends, and those that it expects, as numbers.
    pub(super) sent: Vec<u64>,
    pub(super) expected: Vec<u64>,
    pub(super) offer: Offer,
    /// Where the tensors start behind it.
    pub(super) end: usize,
}

impl Announcement {
    /// What a rank's call says; none if that is nothing of the kind.
    pub(super) fn read(letter: &Letter) -> Option<Self> {
        let ([_, sent, expected, _, offer], body) = (letter.numbers, letter.body.bytes());
        let bytes = |count: u64, each: usize| usize::try_from(count).ok()?.checked_mul(each * 8);
        let (sent, rest) = body.split_at_checked(bytes(sent, ANNOUNCED)?)?;
        let (expected, rest) = rest.split_at_checked(bytes(expected, ANNOUNCED)?)?;
        let offer = rest.get(..bytes(offer, 1)?)?;
        let end = behind((sent.len() + expected.len() + offer.len()) / 8);
        let numbers = |bytes: &[u8]| -> Vec<u64> {
            bytes.as_chunks().0.iter().map(|number| u64::from_le_bytes(*number)).collect()
        };
        let offer = Offer::read(&numbers(offer))?;
        Some(Self { sent: numbers(sent), expected: numbers(expected), offer, end })
    }
}

/// The boxes that go to a rank, or come from one, as numbers. `boxes` are those of each transfer.
pub(super) fn announced(boxes: impl Iterator<Item = impl Iterator<Item = StridedBox>>) -> Vec<u64> {
    let numbers = |(transfer, part): (u64, StridedBox)| {
        let [a, b, c, d] = part.extent.map(|axis| axis as u64);
        [transfer, part.item as u64, a, b, c, d]
    };
    let boxes = boxes.zip(0..).flat_map(|(boxes, transfer)| boxes.map(move |part| (transfer, part)));
    boxes.flat_map(numbers).collect()
}

/// Writes numbers of an announcement.
pub(super) fn write(numbers: &[u64], bytes: &mut [u8]) {
    for (to, from) in bytes.chunks_exact_mut(8).zip(numbers) {
        to.copy_from_slice(&from.to_le_bytes());
    }
}

/// Where tensors start behind an announcement of so many numbers.
pub(super) const fn behind(numbers: usize) -> usize {
    (numbers * 8).next_multiple_of(ALIGN)
}

/// Compares what rank `from` sends with what rank `to` expects.
pub(super) fn compare(said: &[u64], expected: &[u64], from: usize, to: usize) -> Result<()> {
    if said == expected {
        return Ok(());
    }
    let (said, expected) = (said.as_chunks::<ANNOUNCED>().0, expected.as_chunks::<ANNOUNCED>().0);
    let differs = (0..).find(|&n| said.get(n) != expected.get(n)).unwrap_or(0);
    // A box of a later transfer is none of this one's.
    let transfer = |of: &[[u64; ANNOUNCED]]| of.get(differs).map_or(u64::MAX, |part| part[0]);
    let first = transfer(said).min(transfer(expected));
    let extent = |of: &[[u64; ANNOUNCED]]| {
        let part = of.get(differs).filter(|part| part[0] == first);
        part.map(|&[_, _, a, b, c, d]| [a, b, c, d].map(|axis| axis as usize))
    };
    Err(unpaired(from, to, extent(said), extent(expected)))
}
