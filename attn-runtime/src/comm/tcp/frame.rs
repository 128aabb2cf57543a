//! Messages as bytes on a connection: a header that is always as long, then the body.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::sync::Arc;

use crate::comm::message::{Bytes, Head};
use crate::error::Error;

/// The longest body, in bytes. A header that announces more is none.
const MAX_BODY: u64 = 1 << 40;

/// What is made room for on the word of a header alone.
const FIRST: usize = 1 << 20;

/// How many times more is made room for than has come so far.
const GROWTH: usize = 64;

/// Begins each header.
const MARK: u32 = u32::from_le_bytes(*b"attn");

/// Stands for the length of the body of a message that has none.
const BODILESS: u64 = u64::MAX;

/// Bytes of a header.
const HEADER: usize = 4 + 4 + 8 + 64;

/// What goes over a connection.
#[derive(Debug)]
pub(super) enum Frame {
    /// A message.
    Message(Head, Option<Arc<Bytes>>),
    /// No message will follow.
    Leave,
    /// The other's `Leave` has been read, and so has all before it.
    Heard,
}

/// Why no frame could be read.
#[derive(Debug)]
pub(super) enum Broken {
    /// The connection.
    Connection(io::Error),
    /// What came is no frame.
    Garbage(String),
    /// There is no memory for it.
    Memory(Error),
}

/// Writes a frame.
pub(super) fn write(to: &mut impl Write, frame: &Frame) -> io::Result<()> {
    let (kind, head, body): (u32, Head, Option<&[u8]>) = match frame {
        Frame::Message(head, body) => (0, *head, body.as_ref().map(|body| &***body)),
        Frame::Leave => (1, Head::default(), None),
        Frame::Heard => (2, Head::default(), None),
    };
    let length = body.map_or(BODILESS, |body| body.len() as u64);
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&MARK.to_le_bytes());
    header[4..8].copy_from_slice(&kind.to_le_bytes());
    header[8..16].copy_from_slice(&length.to_le_bytes());
    for (bytes, number) in header[16..].chunks_exact_mut(8).zip(head.0) {
        bytes.copy_from_slice(&number.to_le_bytes());
    }
    // Together, so that a short message is one packet.
    let mut parts = [IoSlice::new(&header), IoSlice::new(body.unwrap_or_default())];
    let mut parts = &mut parts[..];
    while parts.iter().any(|part| !part.is_empty()) {
        match to.write_vectored(parts) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut parts, written),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads a frame.
pub(super) fn read(from: &mut impl Read) -> Result<Frame, Broken> {
    let mut header = [0; HEADER];
    from.read_exact(&mut header).map_err(Broken::Connection)?;
    let (words, _) = header.as_chunks::<8>();
    let [mark @ .., k0, k1, k2, k3] = words[0];
    let (mark, kind) = (u32::from_le_bytes(mark), u32::from_le_bytes([k0, k1, k2, k3]));
    let length = u64::from_le_bytes(words[1]);
    if mark != MARK || kind > 2 || (length > MAX_BODY && length != BODILESS) {
        return Err(Broken::Garbage(format!(
            "it sent what is no message (mark {mark:08x}, kind {kind}, {length} bytes)"
        )));
    }
    match kind {
        1 => return Ok(Frame::Leave),
        2 => return Ok(Frame::Heard),
        _ => {}
    }
    let mut head = Head::default();
    for (to, word) in head.0.iter_mut().zip(&words[2..]) {
        *to = u64::from_le_bytes(*word);
    }
    let body = if length == BODILESS { None } else { Some(Arc::new(read_body(from, length)?)) };
    Ok(Frame::Message(head, body))
}

/// Reads a body, with room for little more than has come: what a broken header announces is not there.
fn read_body(from: &mut impl Read, length: u64) -> Result<Bytes, Broken> {
    let length =
        usize::try_from(length).map_err(|_| Broken::Garbage(format!("it announced {length} bytes")))?;
    let room = |bytes: usize| Bytes::zeroed(bytes.min(length)).map_err(Broken::Memory);
    let mut body = room(FIRST)?;
    from.read_exact(body.as_mut_slice()).map_err(Broken::Connection)?;
    while body.len() < length {
        let mut larger = room(body.len().saturating_mul(GROWTH))?;
        let (come, rest) = larger.as_mut_slice().split_at_mut(body.len());
        come.copy_from_slice(&body);
        from.read_exact(rest).map_err(Broken::Connection)?;
        body = larger;
    }
    Ok(body)
}
