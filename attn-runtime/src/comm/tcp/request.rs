//! What a rank asks of the store, and what it is answered, as bytes.

use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::shelf::{End, MAX_KEY, MAX_VALUE, Waited};
use super::wire::{read_by, write_by};

/// How long the rest of a message may take whose beginning has come.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest that is waited on the store's side: so often it looks whether who waits is still there.
pub(super) const SLICE: Duration = Duration::from_millis(200);

/// What a rank asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Wish {
    /// Put the value under the key.
    Set = 1,
    /// The key's value, as soon as there is one.
    Wait = 2,
    /// This rank needs the store no more, and waits until that is so of all.
    Finish = 3,
    /// This rank waits no longer: the value has the ranks that it waited for.
    GiveUp = 4,
}

/// A question to the store.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) wish: Wish,
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
    pub(super) wait: Duration,
}

impl Request {
    pub(super) fn send(&self, stream: &TcpStream, until: Instant) -> io::Result<()> {
        let Self { wish, key, value, wait } = self;
        let millis = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(16 + key.len() + value.len());
        for number in [*wish as u32, length(key)?, length(value)?, millis] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(key);
        bytes.extend(value);
        write_by(stream, &bytes, until)
    }

    /// The next request, whenever it comes; none if the connection has ended. What is announced is checked before there is
    /// memory for it.
    pub(super) fn receive(stream: &TcpStream) -> Option<Self> {
        let mut bytes = [0; 16];
        stream.set_read_timeout(None).ok()?;
        // The first byte may take as long as it will.
        while stream.peek(&mut bytes[..1]).is_err_and(|error| error.kind() == ErrorKind::Interrupted) {}
        let until = Instant::now() + PATIENCE;
        read_by(stream, &mut bytes, until).ok()?;
        let [wish, key, value, millis] = numbers(&bytes);
        let wish = match wish {
            1 => Wish::Set,
            2 => Wish::Wait,
            3 => Wish::Finish,
            4 => Wish::GiveUp,
            _ => return None,
        };
        let (key, value) = (key as usize, value as usize);
        if key > MAX_KEY || value > MAX_VALUE {
            return None;
        }
        let (mut key, mut value) = (vec![0; key], vec![0; value]);
        read_by(stream, &mut key, until).ok()?;
        read_by(stream, &mut value, until).ok()?;
        Some(Self { wish, key, value, wait: Duration::from_millis(u64::from(millis)).min(SLICE) })
    }
}

/// What the store says.
pub(super) enum Reply {
    Waited(Waited),
    /// It cannot be done: why.
    Refused(String),
}

impl Reply {
    pub(super) fn send(&self, stream: &TcpStream) -> io::Result<()> {
        let (kind, body): (u32, Vec<u8>) = match self {
            Self::Waited(Waited::Value(value)) => (0, value.clone()),
            Self::Waited(Waited::NotYet(absent)) => (1, listed(absent)),
            Self::Waited(Waited::Ended(End::Well)) => (2, Vec::new()),
            Self::Waited(Waited::Ended(End::Lost(rank))) => (3, listed(&[*rank])),
            Self::Waited(Waited::Ended(End::GaveUp(missing))) => (4, listed(missing)),
            Self::Refused(why) => (5, why.clone().into_bytes()),
        };
        let mut bytes = Vec::with_capacity(8 + body.len());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(length(&body)?.to_le_bytes());
        bytes.extend(body);
        write_by(stream, &bytes, Instant::now() + PATIENCE)
    }

    pub(super) fn receive(stream: &TcpStream, until: Instant) -> io::Result<Self> {
        let mut bytes = [0; 8];
        read_by(stream, &mut bytes, until)?;
        let [kind, length] = numbers(&bytes);
        if length as usize > MAX_VALUE {
            return Err(ErrorKind::InvalidData.into());
        }
        let mut body = vec![0; length as usize];
        read_by(stream, &mut body, until)?;
        let waited = match kind {
            0 => Waited::Value(body),
            1 => Waited::NotYet(ranks(&body)),
            2 => Waited::Ended(End::Well),
            3 => Waited::Ended(End::Lost(ranks(&body).first().copied().unwrap_or(0))),
            4 => Waited::Ended(End::GaveUp(ranks(&body))),
            5 => return Ok(Self::Refused(String::from_utf8_lossy(&body).into_owned())),
            _ => return Err(ErrorKind::InvalidData.into()),
        };
        Ok(Self::Waited(waited))
    }
}

/// Ranks, as a value.
pub(super) fn listed(ranks: &[usize]) -> Vec<u8> {
    ranks.iter().flat_map(|rank| (*rank as u32).to_le_bytes()).collect()
}

/// The ranks of a value.
pub(super) fn ranks(value: &[u8]) -> Vec<usize> {
    value.as_chunks().0.iter().map(|rank| u32::from_le_bytes(*rank) as usize).collect()
}

fn numbers<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let mut numbers = [0; N];
    for (number, bytes) in numbers.iter_mut().zip(bytes.as_chunks().0) {
        *number = u32::from_le_bytes(*bytes);
    }
    numbers
}

fn length(bytes: &[u8]) -> io::Result<u32> {
    u32::try_from(bytes.len()).map_err(|_| ErrorKind::InvalidInput.into())
}
