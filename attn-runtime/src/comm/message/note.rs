//! What the heads of messages say.

use super::Head;

/// The first half of each head: what has come from elsewhere is told from what has not. Its last byte counts versions.
const PROTOCOL: u64 = 0x6174_6e02 << 32;

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A rank has come to a collective. The first number is the fingerprint of its call.
    Call,
    /// Part of what a collective moves, or word of it. The first number counts these messages; in an exchange, the second says
    /// what it is.
    Data,
    /// The words of a call that differs from others; the body.
    Words,
    /// A failure; the body.
    Failure,
    /// A rank makes no further call.
    Farewell,
    /// A rank has mapped the memory in which a block is shown.
    Mapped,
    /// A rank has taken data: the answer for which who sends more may have to wait.
    Taken,
    /// A rank wants to know where another is, as that has left word of it in a group.
    Where,
    /// That. The first number is the place.
    Place,
    /// There is something to read in shared memory.
    Bell,
    /// The body of a message in shared memory.
    Body,
}

impl Kind {
    pub(super) const ALL: [Self; 11] = [
        Self::Call,
        Self::Data,
        Self::Words,
        Self::Failure,
        Self::Farewell,
        Self::Mapped,
        Self::Taken,
        Self::Where,
        Self::Place,
        Self::Bell,
        Self::Body,
    ];
}

/// A head, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) kind: Kind,
    /// The group's number; zero where it is no group's matter.
    pub(super) group: u64,
    /// The collective's number in its group, from 1; zero where it is no collective's matter.
    pub(super) sequence: u64,
    /// What it says beyond that, by kind.
    pub(super) numbers: [u64; 5],
}

impl Note {
    /// What concerns the world.
    pub(super) const fn of_the_world(kind: Kind) -> Self {
        Self { kind, group: 0, sequence: 0, numbers: [0; 5] }
    }

    pub(super) const fn head(&self) -> Head {
        let [a, b, c, d, e] = self.numbers;
        Head([PROTOCOL | self.kind as u64, self.group, self.sequence, a, b, c, d, e])
    }

    /// None if the head is none of this protocol.
    pub(super) fn read(Head([first, group, sequence, numbers @ ..]): Head) -> Option<Self> {
        let kind = Kind::ALL.into_iter().find(|kind| first == PROTOCOL | *kind as u64)?;
        Some(Self { kind, group, sequence, numbers })
    }
}

impl Head {
    /// Whether it says that its rank ends, or why: what is worth sending when nothing else is.
    pub(crate) fn tells_of_an_end(self) -> bool {
        Note::read(self).is_some_and(|note| matches!(note.kind, Kind::Failure | Kind::Farewell))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_say_what_was_written() {
        for kind in Kind::ALL {
            let note = Note { kind, group: u64::MAX, sequence: 3, numbers: [1, 2, 3, 4, u64::MAX] };
            assert_eq!(Note::read(note.head()), Some(note));
        }
    }

    #[test]
    fn what_is_no_head_is_told() {
        let Head(mut words) = Note::of_the_world(Kind::Data).head();
        assert_eq!(Note::read(Head([0; 8])), None);
        words[0] += 100;
        assert_eq!(Note::read(Head(words)), None);
        words[0] += 1 << 32;
        assert_eq!(Note::read(Head(words)), None);
    }
}
