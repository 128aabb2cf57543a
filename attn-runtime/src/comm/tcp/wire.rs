//! Reading from sockets and writing to them, until a time.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Reads as many bytes as the buffer has.
pub(super) fn read_by(mut stream: &TcpStream, mut buffer: &mut [u8], until: Instant) -> io::Result<()> {
    while !buffer.is_empty() {
        stream.set_read_timeout(Some(left(until)?))?;
        match stream.read(buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(read) => buffer = &mut buffer[read..],
            Err(error) => again(error)?,
        }
    }
    Ok(())
}

/// Writes all bytes.
pub(super) fn write_by(mut stream: &TcpStream, mut bytes: &[u8], until: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(left(until)?))?;
        match stream.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) => again(error)?,
        }
    }
    Ok(())
}

/// Connects.
pub(super) fn connect_by(address: SocketAddr, until: Instant) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, left(until)?)?;
    // A port from which the system takes those of outgoing connections may be connected to itself.
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(ErrorKind::ConnectionRefused.into());
    }
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// What is left until a time.
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Whether to go on after an error: how long is asked anew.
fn again(error: io::Error) -> io::Result<()> {
    match error.kind() {
        ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut => Ok(()),
        _ => Err(error),
    }
}

/// An error in few words: `connection refused`.
pub(super) fn words(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => "connection refused".into(),
        ErrorKind::ConnectionReset => "the connection was reset".into(),
        ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => "the connection was closed".into(),
        ErrorKind::TimedOut | ErrorKind::WouldBlock => "no answer".into(),
        _ => error.to_string(),
    }
}

/// So long from now, also if that is for ever.
pub(super) fn after(time: Duration) -> Instant {
    let now = Instant::now();
    // A century is as good as for ever, and fits.
    now.checked_add(time).unwrap_or(now + Duration::from_secs(3_155_760_000))
}
