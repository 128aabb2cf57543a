//! What a launcher and its keepers say to each other: a kind, a rank and bytes, of which there may be any.

use std::io::{self, Read, Write};

/// No frame is longer: what claims to be is none.
pub(super) const MAX_BODY: usize = 1 << 20;

/// What stands before the first frame of a keeper, on a line with its version. What a login shell prints before is
/// skipped.
pub(super) const GREETING: &str = "attn-keeper ";

/// Which of its two outputs a rank wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// How a rank ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// By itself, with this code.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// It did not even begin; why.
    NotStarted(String),
}

/// To a keeper. Everything before `Start` says what to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// A variable for all ranks: its name, and its value.
    Variable(Vec<u8>, Vec<u8>),
    /// Where they start.
    Folder(Vec<u8>),
    /// The program's name, then its arguments.
    Word(Vec<u8>),
    /// A rank of this host: its number in the world.
    Rank(usize),
    Start,
    /// To be sent to all ranks.
    Signal(i32),
    /// Nobody reads this output any more.
    Close(Stream),
}

/// From a keeper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// It is there; a port that is free on its host.
    Ready(u16),
    /// Lines of a rank, whole; the last may be without its end, and then is longer than a line may be, or the rank's
    /// last.
    Lines(usize, Stream, Vec<u8>),
    /// A rank has ended.
    Ended(usize, End),
}

/// One of the two, as bytes.
pub(super) trait Message: Sized {
    fn encode(&self) -> (u8, usize, Vec<u8>);

    /// None if it is none.
    fn decode(kind: u8, rank: usize, body: Vec<u8>) -> Option<Self>;

    /// Writes it, in one piece.
    fn send(&self, to: &mut impl Write) -> io::Result<()> {
        let (kind, rank, body) = self.encode();
        let (Ok(rank), Ok(length)) = (u32::try_from(rank), u32::try_from(body.len())) else {
            return Err(io::Error::other("a message is too long"));
        };
        if body.len() > MAX_BODY {
            return Err(io::Error::other("a message is too long"));
        }
        let mut frame = Vec::with_capacity(9 + body.len());
        frame.push(kind);
        frame.extend(rank.to_le_bytes());
        frame.extend(length.to_le_bytes());
        frame.extend(body);
        to.write_all(&frame)?;
        to.flush()
    }

    /// Reads one. None at the end.
    ///
    /// # Errors
    /// If it cannot be read, or is no message.
    fn receive(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut head = [0; 9];
        loop {
            match from.read(&mut head[..1]) {
                Ok(0) => return Ok(None),
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        from.read_exact(&mut head[1..])?;
        let [kind, rank @ .., l0, l1, l2, l3] = head;
        let rank = u32::from_le_bytes(rank) as usize;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if length > MAX_BODY {
            return Err(io::Error::other("what came is no message of a keeper"));
        }
        let mut body = vec![0; length];
        from.read_exact(&mut body)?;
        Self::decode(kind, rank, body)
            .map(Some)
            .ok_or_else(|| io::Error::other("what came is no message of a keeper"))
    }
}

impl Message for Order {
    fn encode(&self) -> (u8, usize, Vec<u8>) {
        match self {
            Self::Variable(name, value) => (1, name.len(), [name.as_slice(), value].concat()),
            Self::Folder(folder) => (2, 0, folder.clone()),
            Self::Word(word) => (3, 0, word.clone()),
            Self::Rank(rank) => (4, *rank, Vec::new()),
            Self::Start => (5, 0, Vec::new()),
            Self::Signal(signal) => (6, 0, signal.to_le_bytes().to_vec()),
            Self::Close(stream) => (7, stream.number(), Vec::new()),
        }
    }

    fn decode(kind: u8, number: usize, body: Vec<u8>) -> Option<Self> {
        Some(match kind {
            1 => {
                let (name, value) = body.split_at_checked(number)?;
                Self::Variable(name.to_vec(), value.to_vec())
            }
            2 => Self::Folder(body),
            3 => Self::Word(body),
            4 => Self::Rank(number),
            5 => Self::Start,
            6 => Self::Signal(i32::from_le_bytes(body.try_into().ok()?)),
            7 => Self::Close(Stream::of(number)?),
            _ => return None,
        })
    }
}

impl Message for Report {
    fn encode(&self) -> (u8, usize, Vec<u8>) {
        match self {
            Self::Ready(port) => (1, usize::from(*port), Vec::new()),
            Self::Lines(rank, stream, lines) => (2 + stream.number() as u8, *rank, lines.clone()),
            Self::Ended(rank, End::Code(code)) => (4, *rank, code.to_le_bytes().to_vec()),
            Self::Ended(rank, End::Signal(signal)) => (5, *rank, signal.to_le_bytes().to_vec()),
            Self::Ended(rank, End::NotStarted(why)) => (6, *rank, why.clone().into_bytes()),
        }
    }

    fn decode(kind: u8, rank: usize, body: Vec<u8>) -> Option<Self> {
        let number = |body: Vec<u8>| Some(i32::from_le_bytes(body.try_into().ok()?));
        Some(match kind {
            1 => Self::Ready(u16::try_from(rank).ok()?),
            2 | 3 => Self::Lines(rank, Stream::of(usize::from(kind) - 2)?, body),
            4 => Self::Ended(rank, End::Code(number(body)?)),
            5 => Self::Ended(rank, End::Signal(number(body)?)),
            6 => Self::Ended(rank, End::NotStarted(String::from_utf8_lossy(&body).into_owned())),
            _ => return None,
        })
    }
}

impl Stream {
    const fn number(self) -> usize {
        match self {
            Self::Stdout => 0,
            Self::Stderr => 1,
        }
    }

    const fn of(number: usize) -> Option<Self> {
        match number {
            0 => Some(Self::Stdout),
            1 => Some(Self::Stderr),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn round_trip<M: Message + PartialEq + std::fmt::Debug>(messages: &[M]) {
        let mut wire = Vec::new();
        messages.iter().for_each(|message| message.send(&mut wire).unwrap());
        let mut wire = wire.as_slice();
        for message in messages {
            assert_eq!(M::receive(&mut wire).unwrap().as_ref(), Some(message));
        }
        assert_eq!(M::receive(&mut wire).unwrap(), None);
    }

    #[test]
    fn what_is_sent_arrives() {
        round_trip(&[
            Order::Variable(b"A".to_vec(), b"=\xff\n".to_vec()),
            Order::Variable(b"EMPTY".to_vec(), Vec::new()),
            Order::Folder(b"/tmp".to_vec()),
            Order::Word(Vec::new()),
            Order::Rank(1023),
            Order::Start,
            Order::Signal(15),
            Order::Close(Stream::Stderr),
        ]);
        round_trip(&[
            Report::Ready(65535),
            Report::Lines(3, Stream::Stdout, b"one\ntwo\xfe".to_vec()),
            Report::Lines(0, Stream::Stderr, vec![0; MAX_BODY]),
            Report::Ended(7, End::Code(-1)),
            Report::Ended(7, End::Signal(9)),
            Report::Ended(7, End::NotStarted(String::from("no memory"))),
        ]);
    }

    #[test]
    fn what_is_no_message_is_an_error_and_takes_no_memory() {
        for wire in [&[9_u8, 0, 0, 0, 0, 0, 0, 0, 0][..], &[2, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], &[2, 0]] {
            assert!(Report::receive(&mut &wire[..]).is_err(), "{wire:?}");
        }
        assert!(Order::receive(&mut &[1, 9, 0, 0, 0, 1, 0, 0, 0, b'A'][..]).is_err());
        assert!(Report::Lines(0, Stream::Stdout, vec![0; MAX_BODY + 1]).send(&mut Vec::new()).is_err());
    }
}
