//! What stands where in the memory of a rank.
//!
//! A rank writes to its own memory alone, and the others of its host read it. There it says how many messages it has
//! written to each of them and how many of theirs it has taken; in between stand the messages themselves, in a ring for each
//! reader, and the slots for bodies, which serve all. A slot is written again when its reader has taken the message.

use crate::comm::message::Head;

/// Tensors' part of a message through shared memory: both ranks' copies of it should find it in their caches.
pub(in crate::comm::message) const MESSAGE: usize = 256 << 10;

/// A slot has room for the tensors of a message and for what stands before them.
pub(super) const SLOT: usize = MESSAGE + (16 << 10);

/// Slots of a rank. Those that are free first are used first, so readers who keep up see few of them, which stay in the
/// cache; the others are for readers who do not get a core for a while.
pub(super) const SLOTS: usize = 64;

/// Messages on their way from one rank to one other. (Tests fill it.)
pub(super) const RING: u64 = if cfg!(test) { 4 } else { 64 };

/// A message in a ring: its head, where its body is, and room for a short one.
const ENTRY: usize = 512;

/// Bodies up to this length stand in the ring.
pub(super) const SHORT: usize = ENTRY - SHORT_AT;

/// Where they do.
const SHORT_AT: usize = 128;

/// The first number: what a rank has drawn to be known by.
pub(super) const NONCE: usize = 0;

/// How often the rank has gone to sleep and woken up: odd while it sleeps.
pub(super) const SLEEPS: usize = 8;

/// Numbers of a cache line: what different ranks read stands apart.
const LINE: usize = 8;

/// Where what stands in the memory of each of `ranks` ranks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    ranks: usize,
}

impl Layout {
    pub(super) const fn new(ranks: usize) -> Self {
        Self { ranks }
    }

    /// The number that counts messages to the rank at a place.
    pub(super) const fn written(&self, to: usize) -> usize {
        (2 + to) * LINE
    }

    /// The number that counts messages taken from the rank at a place.
    pub(super) const fn taken(&self, from: usize) -> usize {
        (2 + self.ranks + from) * LINE
    }

    /// Where a message to the rank at a place stands.
    pub(super) const fn entry(&self, to: usize, number: u64) -> usize {
        let rings = (2 + 2 * self.ranks) * LINE * size_of::<u64>();
        rings + (to * RING as usize + (number % RING) as usize) * ENTRY
    }

    /// Where its body stands, if that is short.
    pub(super) const fn short(&self, to: usize, number: u64) -> usize {
        self.entry(to, number) + SHORT_AT
    }

    pub(super) const fn slot(&self, index: usize) -> usize {
        self.entry(self.ranks, 0).next_multiple_of(4096) + index * SLOT
    }

    pub(super) const fn bytes(&self) -> usize {
        self.slot(SLOTS)
    }
}

/// A message as it stands in a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) head: Head,
    pub(super) body: Where,
}

/// Where a message's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Where {
    /// It has none.
    Nowhere,
    /// In the memory of the rank that sends it.
    Here { offset: usize, length: usize },
    /// It comes over the link.
    Link,
}

/// An entry as numbers.
pub(super) type Written = [u64; 11];

impl Entry {
    pub(super) const fn write(&self) -> Written {
        let Head([a, b, c, d, e, f, g, h]) = self.head;
        let [kind, offset, length] = match self.body {
            Where::Nowhere => [0, 0, 0],
            Where::Here { offset, length } => [1, offset as u64, length as u64],
            Where::Link => [2, 0, 0],
        };
        [a, b, c, d, e, f, g, h, kind, offset, length]
    }

    /// None if the numbers are no entry.
    pub(super) fn read([a, b, c, d, e, f, g, h, kind, offset, length]: Written) -> Option<Self> {
        let body = match kind {
            0 => Where::Nowhere,
            1 => Where::Here { offset: offset.try_into().ok()?, length: length.try_into().ok()? },
            2 => Where::Link,
            _ => return None,
        };
        Some(Self { head: Head([a, b, c, d, e, f, g, h]), body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_stands_on_anything_else() {
        for ranks in [2, 3, 8, 64] {
            let layout = Layout::new(ranks);
            let mut ranges = vec![(NONCE * 8, 8), (SLEEPS * 8, 8)];
            for rank in 0..ranks {
                ranges.extend([(layout.written(rank) * 8, 8), (layout.taken(rank) * 8, 8)]);
                for number in 3..3 + RING {
                    ranges.push((layout.entry(rank, number), size_of::<Written>()));
                    ranges.push((layout.short(rank, number), SHORT));
                }
            }
            ranges.extend((0..SLOTS).map(|slot| (layout.slot(slot), SLOT)));
            ranges.sort_unstable();
            assert!(ranges.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{ranks} ranks");
            assert!(ranges.last().is_some_and(|(start, length)| start + length <= layout.bytes()));
        }
    }

    #[test]
    fn entries_say_what_was_written() {
        for body in [Where::Nowhere, Where::Here { offset: 4096, length: 77 }, Where::Link] {
            let entry = Entry { head: Head([1, 2, 3, 4, 5, 6, 7, u64::MAX]), body };
            assert_eq!(Entry::read(entry.write()), Some(entry));
        }
        assert_eq!(Entry::read([3; 11]), None);
    }
}
