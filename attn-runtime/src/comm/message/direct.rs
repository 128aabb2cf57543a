//! What goes from rank to rank of a host in one copy, without a message in between: where this rank's boxes are, said to
//! another one, and where that one's are.
//!
//! If the boxes in which tensors arrive are in windows of their rank, the rank that sends copies to them. If not, and the boxes
//! from which they go are, the rank that receives copies from them. The one of the two that has nothing to do waits to be told.

use std::sync::Arc;

use super::shared::{Address, View, Window, Windows};
use crate::comm::StridedBox;
use crate::error::Result;
use crate::tensor::reach;

/// Less than this from one rank to another goes by messages: it arrives with the call, where a copy would wait for the other
/// rank's call. (Less in tests, whose tensors are short.)
const LEAST: usize = if cfg!(test) { 1 << 10 } else { 256 << 10 };

/// How many bytes are copied between two looks at what else has come.
pub(super) const PIECE: usize = if cfg!(test) { 3 << 10 } else { 4 << 20 };

/// Whether boxes are worth to be copied so.
pub(super) fn is_worth(boxes: &[StridedBox]) -> bool {
    boxes.iter().fold(0, |bytes: usize, part| bytes.saturating_add(part.bytes())) >= LEAST
}

/// How many bytes a box reaches over, in these strides; none if they cannot be counted.
fn span(part: &StridedBox, strides: [usize; 4]) -> Option<usize> {
    reach(part.extent, strides)?.checked_mul(part.item)
}

/// The windows in which another rank is asked to read or write. Withdrawn if this is dropped before that is over.
#[derive(Default)]
pub(super) struct Offered {
    /// Each with whether others write to it.
    windows: Vec<(Arc<Window>, bool)>,
}

impl Offered {
    /// That nobody reads or writes there any more. Says whether all of it was there all the while: another collective of this
    /// rank may have failed and withdrawn it.
    pub(super) fn over(mut self) -> bool {
        self.windows.drain(..).all(|(window, _)| !window.is_withdrawn())
    }

    fn add(&mut self, window: Arc<Window>, written: bool) {
        match self.windows.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &window)) {
            Some((_, writes)) => *writes |= written,
            None => self.windows.push((window, written)),
        }
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        for (window, written) in &self.windows {
            window.withdraw(*written);
        }
    }
}

/// Where boxes are in windows of their rank, in order: the window's number in the offer, the offset there, and the strides.
type Spots = Vec<[u64; 6]>;

/// What a rank says to another one of where its boxes are.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Offer {
    windows: Vec<Address>,
    /// Where what comes may be written; none if it is to be sent.
    pub(super) incoming: Option<Spots>,
    /// Where what goes may be read.
    pub(super) outgoing: Option<Spots>,
}

impl Offer {
    /// Where boxes are in this rank's windows, if all of them are in some.
    pub(super) fn spots(
        &mut self,
        windows: &Windows,
        boxes: &[StridedBox],
        written: bool,
        offered: &mut Offered,
    ) -> Option<Spots> {
        let find = |part: &StridedBox| {
            let bytes = span(part, part.strides)?;
            // An empty box is anywhere.
            let found = if bytes == 0 { None } else { Some(windows.find(part.base, bytes)?) };
            Some((*part, found))
        };
        let found: Vec<_> = boxes.iter().map(find).collect::<Option<_>>()?;
        let spots = found.into_iter().map(|(part, found)| {
            let Some((window, offset)) = found else { return [0; 6] };
            let address = window.address();
            let known = self.windows.iter().position(|known| *known == address);
            let index = known.unwrap_or_else(|| {
                self.windows.push(address);
                self.windows.len() - 1
            });
            offered.add(window, written);
            let [a, b, c, d] = part.strides.map(|stride| stride as u64);
            [index as u64, offset as u64, a, b, c, d]
        });
        Some(spots.collect())
    }

    /// As numbers; none if it says nothing.
    pub(super) fn write(&self) -> Vec<u64> {
        if *self == Self::default() {
            return Vec::new();
        }
        let mut numbers = vec![self.windows.len() as u64];
        numbers.extend(self.windows.as_flattened());
        for spots in [&self.incoming, &self.outgoing] {
            numbers.push(spots.as_ref().map_or(u64::MAX, |spots| spots.len() as u64));
            numbers.extend(spots.iter().flatten().flatten());
        }
        numbers
    }

    /// None if the numbers are no offer.
    pub(super) fn read(numbers: &[u64]) -> Option<Self> {
        if numbers.is_empty() {
            return Some(Self::default());
        }
        let mut rest = numbers;
        let mut take = |each: usize| {
            let (&count, behind) = rest.split_first()?;
            if count == u64::MAX {
                rest = behind;
                return Some(None);
            }
            let length = usize::try_from(count).ok()?.checked_mul(each)?;
            let (taken, behind) = behind.split_at_checked(length)?;
            rest = behind;
            Some(Some(taken))
        };
        let windows = take(4)??.as_chunks().0.to_vec();
        let mut spots = || Some(take(6)?.map(|numbers| numbers.as_chunks().0.to_vec()));
        let (incoming, outgoing) = (spots()?, spots()?);
        rest.is_empty().then_some(Self { windows, incoming, outgoing })
    }

    /// The boxes of another rank that pair with these of this one: as long as these, in the other's strides, with the mappings
    /// in which they are. None if they are not where they are said to be.
    ///
    /// # Errors
    /// If a window cannot be mapped.
    pub(super) fn boxes(
        &self,
        spots: &Spots,
        windows: &Windows,
        rank: usize,
        own: &[StridedBox],
    ) -> Result<Option<(Vec<StridedBox>, Vec<Arc<View>>)>> {
        let mut views = vec![None; self.windows.len()];
        let mut boxes = Vec::with_capacity(own.len());
        if own.len() != spots.len() {
            return Ok(None);
        }
        for (part, &[window, offset, strides @ ..]) in own.iter().zip(spots) {
            // Along an axis of one index nobody steps.
            let axes = part.extent.iter().zip(strides);
            let strides = axes.map(|(&n, stride)| if n == 1 { Some(0) } else { stride.try_into().ok() });
            let strides: Option<Vec<usize>> = strides.collect();
            let Some(Ok(strides)) = strides.map(<[usize; 4]>::try_from) else { return Ok(None) };
            let Some(bytes) = span(part, strides) else { return Ok(None) };
            if bytes == 0 {
                boxes.push(*part);
                continue;
            }
            let index = usize::try_from(window).unwrap_or(usize::MAX);
            let (Some(view), Some(address)) = (views.get_mut(index), self.windows.get(index)) else {
                return Ok(None);
            };
            let view = match view {
                Some(view) => view,
                None => view.insert(windows.look(rank, *address)?),
            };
            let Some(base) = usize::try_from(offset).ok().and_then(|offset| view.at(offset, bytes)) else {
                return Ok(None);
            };
            boxes.push(StridedBox { base, strides, ..*part });
        }
        Ok(Some((boxes, views.into_iter().flatten().collect())))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spots() -> impl Strategy<Value = Option<Spots>> {
        prop::option::of(prop::collection::vec(any::<[u64; 6]>(), 0..4))
    }

    proptest! {
        #[test]
        fn offers_say_what_was_written(
            windows in prop::collection::vec(any::<Address>(), 0..4),
            incoming in spots(),
            outgoing in spots(),
        ) {
            let offer = Offer { windows, incoming, outgoing };
            let numbers = offer.write();
            prop_assert_eq!(Offer::read(&numbers), Some(offer));
            if let Some((_, less)) = numbers.split_last() {
                prop_assert!(less.is_empty() || Offer::read(less).is_none());
            }
        }

        #[test]
        fn no_numbers_break_the_reader(numbers in prop::collection::vec(prop_oneof![0_u64..5, any::<u64>()], 0..20)) {
            Offer::read(&numbers);
        }
    }
}
