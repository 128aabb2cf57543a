//! One rank's connection to another: a thread that reads and a thread that writes.

use std::io::{self, BufReader, ErrorKind, IoSlice, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::frame::{self, Broken, Frame};
use super::inbox::Inbox;
use crate::comm::message::Event;
use crate::error::{Error, Result};

/// The longest silence of a machine that the system is asked to wait for: it takes no number of seconds.
const LONGEST: Duration = Duration::from_secs(3600);

/// What is written at once: what has gone out is counted that often.
const WRITE: usize = 256 << 10;

/// What is read at once of small frames.
const READ: usize = 16 << 10;

/// The connection to a rank.
pub(super) struct Peer {
    stream: TcpStream,
    /// None once nothing more goes out.
    outbox: Option<Sender<Frame>>,
    threads: Vec<JoinHandle<()>>,
}

impl Peer {
    /// Starts the threads. What comes from rank `peer` goes to the inbox. `patience`: how long its machine may be silent.
    pub(super) fn start(
        peer: usize,
        stream: TcpStream,
        inbox: &Arc<Inbox>,
        patience: Duration,
    ) -> Result<Self> {
        let failed =
            |error: io::Error| Error::Library { library: "TCP", call: "setsockopt", text: error.to_string() };
        stream.set_nodelay(true).map_err(failed)?;
        watch(&stream, patience).map_err(failed)?;
        let (outbox, sent) = channel();
        let mut started = Self { stream, outbox: None, threads: Vec::new() };
        let clone = || started.stream.try_clone().map_err(failed);
        let reader = Reader { peer, stream: clone()?, inbox: Arc::clone(inbox), outbox: outbox.clone() };
        let writer = Writer { stream: clone()?, inbox: Arc::clone(inbox) };
        let start = |name: String, body: Box<dyn FnOnce() + Send>| {
            Builder::new().name(name).spawn(body).map_err(|error| Error::Thread(error.to_string()))
        };
        started.threads.push(start(format!("attn-to-{peer}"), Box::new(move || writer.run(&sent)))?);
        started.threads.push(start(format!("attn-from-{peer}"), Box::new(move || reader.run()))?);
        started.outbox = Some(outbox);
        Ok(started)
    }

    /// Queues a frame. If the writer has ended, the rank is lost, and there is nobody to send it to.
    pub(super) fn send(&self, frame: Frame) {
        let _ = self.outbox.as_ref().map(|outbox| outbox.send(frame));
    }

    /// Cuts the connection, which ends the threads.
    pub(super) fn cut(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Waits for the threads of a connection that was cut.
    pub(super) fn join(mut self) {
        self.outbox = None;
        for thread in self.threads.drain(..) {
            // They do not panic; if one did, it has ended.
            let _ = thread.join();
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.cut();
    }
}

/// Writes what is queued.
struct Writer {
    stream: TcpStream,
    inbox: Arc<Inbox>,
}

impl Writer {
    /// Until nobody queues any more, or the connection has ended.
    fn run(mut self, sent: &Receiver<Frame>) {
        for frame in sent {
            // Of a rank that ends ill, only why is of use to the others.
            if self.inbox.is_ill() && matches!(&frame, Frame::Message(head, _) if !head.tells_of_an_end()) {
                continue;
            }
            if frame::write(&mut self, &frame).is_err() {
                // The reader learns why: it may still have messages that came before.
                return;
            }
        }
    }
}

/// A little at a time, so that it shows whether anything goes out.
impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = (&self.stream).write(&bytes[..bytes.len().min(WRITE)])?;
        self.inbox.moved();
        Ok(written)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        if length > WRITE {
            // The header, then the body piece by piece.
            return self.write(parts.iter().find(|part| !part.is_empty()).map_or(&[], |part| &**part));
        }
        let written = (&self.stream).write_vectored(parts)?;
        self.inbox.moved();
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads what comes.
struct Reader {
    peer: usize,
    stream: TcpStream,
    inbox: Arc<Inbox>,
    outbox: Sender<Frame>,
}

impl Reader {
    fn run(self) {
        let mut from = BufReader::with_capacity(READ, &self.stream);
        let why = loop {
            match frame::read(&mut from) {
                Ok(Frame::Message(head, body)) => {
                    self.inbox.push(Event::Message { from: self.peer, head, body });
                }
                Ok(Frame::Leave) => {
                    self.inbox.lose(self.peer, "it has ended and closed its connection".into());
                    let _ = self.outbox.send(Frame::Heard);
                }
                Ok(Frame::Heard) => self.inbox.part(self.peer),
                Err(Broken::Connection(error)) => break ending(&error),
                Err(Broken::Garbage(why)) => break why,
                Err(Broken::Memory(error)) => {
                    self.inbox.fail(error);
                    break "this rank has no memory for its message".into();
                }
            }
        };
        self.inbox.lose(self.peer, why);
        self.inbox.part(self.peer);
        // Ends the writer too.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// What the end of a connection says of the rank at its other end.
fn ending(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
            "its process has ended or was killed: its connection was closed without a good-bye".into()
        }
        ErrorKind::TimedOut
        | ErrorKind::HostUnreachable
        | ErrorKind::NetworkUnreachable
        | ErrorKind::NetworkDown => "its machine does not answer: it is down, or the network between".into(),
        _ => format!("its connection has failed: {error}"),
    }
}

/// Has the system look whether the other machine is still there, when nothing is sent and when nothing arrives.
#[cfg(target_os = "linux")]
fn watch(stream: &TcpStream, patience: Duration) -> io::Result<()> {
    use rustix::net::sockopt;
    let patience = patience.min(LONGEST);
    let third = (patience / 3).max(Duration::from_secs(1));
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, third)?;
    sockopt::set_tcp_keepintvl(stream, third)?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    let millis = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(stream, millis)?;
    Ok(())
}

/// The deadline alone tells where the system cannot be told how often to look.
#[cfg(not(target_os = "linux"))]
fn watch(_: &TcpStream, _: Duration) -> io::Result<()> {
    Ok(())
}
