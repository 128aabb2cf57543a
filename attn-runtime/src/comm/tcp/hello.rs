//! What is said first on every connection: who comes, and whether it may.

use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::time::Instant;

use super::wire::{read_by, write_by};
use crate::comm::place::Token;

/// Counts what is said between processes: both must be of the same program anyway.
const VERSION: u32 = 1;

const QUESTION: [u8; 8] = *b"attn-ask";
const ANSWER: [u8; 8] = *b"attn-ans";

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Room {
    /// Rank 0's store.
    Store = 1,
    /// Messages of the rank that is asked.
    Link = 2,
}

/// What who comes says of itself. Always as long, so that nothing is read that a stranger announces.
pub(super) struct Question {
    pub(super) version: u32,
    pub(super) room: u32,
    pub(super) rank: u64,
    pub(super) size: u64,
    /// The world's number, zero while it is not known.
    pub(super) world: u64,
    pub(super) token: [u8; Token::LONGEST],
}

/// What it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It may come in; the number of the world.
    Welcome(u64),
    /// Its token differs.
    OtherToken,
    /// It speaks another version than this one.
    OtherVersion(u64),
    /// It counts other than so many ranks.
    OtherSize(u64),
    /// It comes from an earlier or another world, or for something else.
    OtherWorld,
    /// It is a rank that is here already, or cannot come here.
    Taken,
    /// The ranks that it comes for wait no longer.
    Over,
}

impl Question {
    const BYTES: usize = 8 + 4 + 4 + 3 * 8 + Token::LONGEST;

    pub(super) const fn new(room: Room, rank: usize, size: usize, world: u64, token: &Token) -> Self {
        Self {
            version: VERSION,
            room: room as u32,
            rank: rank as u64,
            size: size as u64,
            world,
            token: *token.bytes(),
        }
    }

    fn write(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::BYTES);
        bytes.extend(QUESTION);
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.room.to_le_bytes());
        bytes.extend(self.rank.to_le_bytes());
        bytes.extend(self.size.to_le_bytes());
        bytes.extend(self.world.to_le_bytes());
        bytes.extend(self.token);
        bytes
    }

    fn read(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let mut rest = Rest(bytes);
        if rest.take::<8>() != QUESTION {
            return None;
        }
        Some(Self {
            version: u32::from_le_bytes(rest.take()),
            room: u32::from_le_bytes(rest.take()),
            rank: u64::from_le_bytes(rest.take()),
            size: u64::from_le_bytes(rest.take()),
            world: u64::from_le_bytes(rest.take()),
            token: rest.take(),
        })
    }

    /// What must be so, whatever the room: the same version, then the same token. Nobody is told more who does not know it.
    pub(super) fn check(&self, room: Room, size: usize, token: &Token) -> Result<(), Answer> {
        if self.version != VERSION {
            return Err(Answer::OtherVersion(u64::from(VERSION)));
        }
        if !token.is(&self.token) {
            return Err(Answer::OtherToken);
        }
        if self.size != size as u64 {
            return Err(Answer::OtherSize(size as u64));
        }
        if self.room != room as u32 {
            return Err(Answer::OtherWorld);
        }
        Ok(())
    }

    /// Asks, and waits for the answer.
    pub(super) fn ask(&self, stream: &TcpStream, until: Instant) -> io::Result<Answer> {
        write_by(stream, &self.write(), until)?;
        let mut bytes = [0; Answer::BYTES];
        read_by(stream, &mut bytes, until)?;
        Answer::read(&bytes).ok_or_else(|| ErrorKind::InvalidData.into())
    }

    /// Waits for what somebody says who has connected: an error if it is not a question.
    pub(super) fn receive(stream: &TcpStream, until: Instant) -> io::Result<Self> {
        // Who does not even begin like one of ours need not be waited for.
        let mut bytes = [0; Self::BYTES];
        read_by(stream, &mut bytes[..QUESTION.len()], until)?;
        if bytes[..QUESTION.len()] != QUESTION {
            return Err(ErrorKind::InvalidData.into());
        }
        read_by(stream, &mut bytes[QUESTION.len()..], until)?;
        Self::read(&bytes).ok_or_else(|| ErrorKind::InvalidData.into())
    }
}

impl Answer {
    const BYTES: usize = 8 + 8 + 8;

    pub(super) fn send(self, stream: &TcpStream, until: Instant) -> io::Result<()> {
        let (kind, number) = match self {
            Self::Welcome(world) => (0_u64, world),
            Self::OtherToken => (1, 0),
            Self::OtherVersion(version) => (2, version),
            Self::OtherSize(size) => (3, size),
            Self::OtherWorld => (4, 0),
            Self::Taken => (5, 0),
            Self::Over => (6, 0),
        };
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&ANSWER);
        bytes[8..16].copy_from_slice(&kind.to_le_bytes());
        bytes[16..].copy_from_slice(&number.to_le_bytes());
        write_by(stream, &bytes, until)
    }

    fn read(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let mut rest = Rest(bytes);
        if rest.take::<8>() != ANSWER {
            return None;
        }
        let (kind, number) = (u64::from_le_bytes(rest.take()), u64::from_le_bytes(rest.take()));
        match kind {
            0 => Some(Self::Welcome(number)),
            1 => Some(Self::OtherToken),
            2 => Some(Self::OtherVersion(number)),
            3 => Some(Self::OtherSize(number)),
            4 => Some(Self::OtherWorld),
            5 => Some(Self::Taken),
            6 => Some(Self::Over),
            _ => None,
        }
    }

    /// Why who asked was not let in: what to tell the one, and what the other notes of it.
    pub(super) fn why(self, question: &Question) -> String {
        let Question { rank, size, version, .. } = question;
        match self {
            Self::Welcome(_) => "nothing is wrong".into(),
            Self::OtherToken => {
                "its token differs: it belongs to another job, or `ATTN_TOKEN` is not the same on every rank"
                    .into()
            }
            Self::OtherVersion(other) => {
                format!("it speaks version {version} and the other {other}: start one program on every rank")
            }
            Self::OtherSize(other) => {
                format!("it takes itself for rank {rank} of {size}, where the other counts {other} ranks")
            }
            Self::OtherWorld => "it comes for another world, or a former one".into(),
            Self::Taken => {
                format!("there is a rank {rank} already: two processes were given the same rank")
            }
            Self::Over => "the others wait no longer: a rank was lost, or the deadline had passed".into(),
        }
    }
}

/// Bytes that are taken off the front.
struct Rest<'b>(&'b [u8]);

impl Rest<'_> {
    /// The next so many; zeros where there are no more.
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut taken = [0; N];
        let (front, back) = self.0.split_at(N.min(self.0.len()));
        taken[..front.len()].copy_from_slice(front);
        self.0 = back;
        taken
    }
}
