//! Heads as bytes.

use crate::comm::message::Head;

/// Bytes of a head: its kind, the length of the body, and eight words of the communicator's.
pub(super) const HEAD: usize = 80;

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It is the communicator's.
    Message,
    /// Its sender sends nothing more, and all is well.
    Well,
    /// Its sender sends nothing more: a rank has failed.
    Ill,
}

/// A head, and a body that travels with it.
pub(super) fn write(kind: Kind, length: usize, head: Head, inline: &[u8]) -> Box<[u8]> {
    let mut bytes = Vec::with_capacity(HEAD + inline.len());
    for word in [kind as u64, length as u64].into_iter().chain(head.0) {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(inline);
    bytes.into_boxed_slice()
}

/// What a message is for, the length of its body, and its head; none if it is nothing that [`write`] makes.
pub(super) fn read(bytes: &[u8]) -> Option<(Kind, usize, Head)> {
    let word = |index: usize| {
        let word = bytes.get(index * 8..index * 8 + 8)?;
        Some(u64::from_le_bytes(word.try_into().ok()?))
    };
    let kind = match word(0)? {
        0 => Kind::Message,
        1 => Kind::Well,
        2 => Kind::Ill,
        _ => return None,
    };
    let mut head = Head::default();
    for (index, value) in head.0.iter_mut().enumerate() {
        *value = word(index + 2)?;
    }
    Some((kind, usize::try_from(word(1)?).ok()?, head))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_was_written() {
        let head = Head([1, u64::MAX, 3, 4, 5, 6, 7, 1 << 63]);
        for kind in [Kind::Message, Kind::Well, Kind::Ill] {
            let bytes = write(kind, 3, head, b"abc");
            assert_eq!(bytes.len(), HEAD + 3);
            assert_eq!(read(&bytes), Some((kind, 3, head)));
        }
    }

    #[test]
    fn what_is_no_head_is_not_taken_for_one() {
        assert_eq!(read(&[0; HEAD - 1]), None);
        assert_eq!(read(&[9; HEAD]), None);
    }
}
