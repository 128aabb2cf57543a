//! The body of a message, wherever it is.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::memory::Memory;
use crate::comm::message::Bytes;
use crate::error::Result;

/// The body of a message.
#[derive(Debug)]
pub(in crate::comm::message) enum Body {
    /// None.
    None,
    /// It came over the link.
    Owned(Arc<Bytes>),
    /// In the memory of the rank that sent it.
    Lent(Lent),
}

/// Bytes in the memory of another rank, which are given back when this is dropped.
#[derive(Debug)]
pub(in crate::comm::message) struct Lent {
    theirs: Arc<Memory>,
    offset: usize,
    length: usize,
    /// Where this rank counts what it has taken, and which message this is.
    own: Arc<Memory>,
    taken: usize,
    number: u64,
}

impl Lent {
    /// The body of the message `number` of another rank; none if its memory does not reach so far.
    pub(super) fn new(
        theirs: &Arc<Memory>,
        offset: usize,
        length: usize,
        own: &Arc<Memory>,
        taken: usize,
        number: u64,
    ) -> Option<Self> {
        let (theirs, own) = (Arc::clone(theirs), Arc::clone(own));
        // Made first: whatever it is, it counts as taken when it goes.
        let lent = Self { theirs, offset, length, own, taken, number };
        lent.theirs.at(offset, length).is_some().then_some(lent)
    }

    fn bytes(&self) -> &[u8] {
        match self.theirs.at(self.offset, self.length) {
            // SAFETY: the bytes lie inside the mapping, are initialised, and their rank writes them again only when they
            // have been given back, which happens after the borrow of `self`.
            Some(base) => unsafe { core::slice::from_raw_parts(base, self.length) },
            None => &[],
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.own.number(self.taken).store(self.number + 1, Ordering::Release);
    }
}

impl Body {
    pub(in crate::comm::message) fn bytes(&self) -> &[u8] {
        match self {
            Self::None => &[],
            Self::Owned(body) => body,
            Self::Lent(lent) => lent.bytes(),
        }
    }

    /// The body in memory of this rank, to be kept.
    pub(in crate::comm::message) fn owned(self) -> Result<Self> {
        match self {
            Self::Lent(lent) => Ok(Self::Owned(Arc::new(Bytes::copied(lent.bytes())?))),
            body => Ok(body),
        }
    }

    /// The same, as what a link sends.
    pub(in crate::comm::message) fn into_bytes(self) -> Result<Option<Arc<Bytes>>> {
        match self.owned()? {
            Self::Owned(body) => Ok(Some(body)),
            _ => Ok(None),
        }
    }
}
