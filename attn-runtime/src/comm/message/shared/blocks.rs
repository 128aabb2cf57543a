//! Blocks of a ring in shared memory: the owner copies its block there once, and the ranks of its host look at it in place.

use std::collections::HashMap;
use std::sync::Arc;

use super::memory::{Memory, Open, Place};
use crate::error::{Error, Result};

/// What a group's ranks show each other. There are two of everything: what is shown in one collective may be looked at until
/// its end, which a rank knows of all others when it has finished the next one.
#[derive(Debug, Default)]
pub(in crate::comm::message) struct Blocks {
    own: [Option<Arc<Memory>>; 2],
    /// By member.
    theirs: [HashMap<usize, Arc<Memory>>; 2],
    /// New memory, until all have mapped it.
    open: Option<Open>,
}

/// How a rank's block gets to the others, as its call says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::comm::message) enum Shown {
    /// From rank to rank.
    No,
    /// In memory that those who share it have mapped.
    Again,
    /// In memory that they have to map.
    New(Place),
}

impl Shown {
    /// As three numbers.
    pub(in crate::comm::message) const fn write(self) -> [u64; 3] {
        match self {
            Self::No => [0; 3],
            Self::Again => [1, 0, 0],
            Self::New(Place { process, descriptor, bytes }) => [2 | descriptor << 8, process, bytes],
        }
    }

    /// None if the numbers say nothing.
    pub(in crate::comm::message) const fn read([kind, process, bytes]: [u64; 3]) -> Option<Self> {
        match kind & 0xff {
            0 => Some(Self::No),
            1 => Some(Self::Again),
            2 => Some(Self::New(Place { process, descriptor: kind >> 8, bytes })),
            _ => None,
        }
    }
}

impl Blocks {
    /// Memory for this rank's block of a collective, and what its call says of it. No memory if the system has none to
    /// share.
    pub(in crate::comm::message) fn show(
        &mut self,
        sequence: u64,
        bytes: usize,
    ) -> (Shown, Option<Target<'_>>) {
        let own = &mut self.own[(sequence % 2) as usize];
        let mut shown = Shown::Again;
        if own.as_ref().is_none_or(|memory| memory.bytes() < bytes) {
            match Memory::create(bytes.max(1)) {
                Ok((memory, open)) => {
                    shown = Shown::New(open.place);
                    *own = Some(Arc::new(memory));
                    self.open = Some(open);
                }
                Err(error) => {
                    log::info!(
                        "no shared memory of {bytes} bytes for a block ({error}): it goes from rank to rank"
                    );
                    return (Shown::No, None);
                }
            }
        }
        match own {
            Some(memory) => (shown, Some(Target { memory, bytes })),
            None => (Shown::No, None),
        }
    }

    /// That all who shall have mapped what is new.
    pub(in crate::comm::message) fn all_have_mapped(&mut self) {
        self.open = None;
    }

    /// Maps what a member shows in a collective, if it is new. Says whether it was.
    ///
    /// # Errors
    /// If it cannot be mapped.
    pub(in crate::comm::message) fn map(
        &mut self,
        sequence: u64,
        member: usize,
        shown: Shown,
    ) -> Result<bool> {
        let Shown::New(place) = shown else { return Ok(false) };
        let memory = Memory::open(place).map_err(|error| Error::Unavailable {
            what: "the memory that another rank of this host shares",
            why: error.to_string(),
            cure: String::from("set ATTN_SHARED_MEMORY=0 to do without it"),
        })?;
        self.theirs[(sequence % 2) as usize].insert(member, Arc::new(memory));
        Ok(true)
    }

    /// What a member shows in a collective: so many bytes of it. None if there are not so many.
    pub(in crate::comm::message) fn look(&self, sequence: u64, member: usize, bytes: usize) -> Option<Look> {
        let memory = self.theirs[(sequence % 2) as usize].get(&member)?;
        memory.at(0, bytes).map(|_| Look { memory: Arc::clone(memory), bytes })
    }
}

/// Where a rank's own block goes.
pub(in crate::comm::message) struct Target<'b> {
    memory: &'b Arc<Memory>,
    bytes: usize,
}

impl Target<'_> {
    /// The bytes to be filled before the call is sent.
    pub(in crate::comm::message) fn as_mut_slice(&mut self) -> &mut [u8] {
        match self.memory.at(0, self.bytes) {
            // SAFETY: the bytes lie inside the mapping and are initialised. Whoever looked at them did so in a collective
            // before the last one, and has left it, or this rank could not have finished the last one; nobody is told of them
            // yet. In this process the group's ends are used one at a time, and the borrow is exclusive.
            Some(base) => unsafe { core::slice::from_raw_parts_mut(base, self.bytes) },
            None => &mut [],
        }
    }
}

/// A member's block, in its memory. It stays as it is until the collective's end.
#[derive(Debug)]
pub(in crate::comm::message) struct Look {
    memory: Arc<Memory>,
    bytes: usize,
}

impl Look {
    pub(in crate::comm::message) fn bytes(&self) -> &[u8] {
        match self.memory.at(0, self.bytes) {
            // SAFETY: the bytes lie inside the mapping and are initialised. Their owner writes them again two collectives
            // later, which it begins when it has finished the next one, for which every rank must have left this one.
            Some(base) => unsafe { core::slice::from_raw_parts(base, self.bytes) },
            None => &[],
        }
    }
}
