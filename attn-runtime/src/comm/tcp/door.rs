//! Where others come in: a port that is listened on, and what keeps strangers from filling the house.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle, sleep};
use std::time::{Duration, Instant};

use super::hello::{Answer, Question};
use crate::error::{Error, Result};

/// How long who has connected may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many may be on the way to say it. One more, and the first of them has to go; who belongs here comes again.
const STRANGERS: usize = 64;

/// How many who were turned away are remembered for messages.
const NOTES: usize = 4;

/// Who lives behind a door.
pub(super) trait Host: Send + Sync + 'static {
    /// Whether who asks may come in: [`Answer::Welcome`] if so, and then one of the next two is called.
    fn judge(&self, question: &Question) -> Answer;

    /// It has come in. Called on a thread of the connection's own.
    fn enter(&self, question: &Question, stream: TcpStream);

    /// It was welcome, but has gone before it heard so.
    fn missed(&self, question: &Question);
}

/// A port that is listened on, by a thread of its own, until this is dropped.
pub(super) struct Door {
    address: SocketAddr,
    hall: Arc<Hall>,
    thread: Option<JoinHandle<()>>,
}

/// What a door's threads share.
struct Hall {
    closing: AtomicBool,
    /// Those who have not said yet who they are, in the order in which they came.
    strangers: Mutex<VecDeque<(u64, TcpStream)>>,
    /// Who was turned away, and why.
    notes: Mutex<Vec<String>>,
}

impl Door {
    /// Lets in who `host` welcomes.
    pub(super) fn open(listener: TcpListener, host: Arc<impl Host>) -> Result<Self> {
        let failed = |error: std::io::Error| Error::Library {
            library: "TCP",
            call: "getsockname",
            text: error.to_string(),
        };
        let address = listener.local_addr().map_err(failed)?;
        let hall = Arc::new(Hall {
            closing: AtomicBool::new(false),
            strangers: Mutex::default(),
            notes: Mutex::default(),
        });
        let inside = Arc::clone(&hall);
        let thread = Builder::new()
            .name("attn-door".into())
            .spawn(move || inside.listen(&listener, &host))
            .map_err(|error| Error::Thread(error.to_string()))?;
        Ok(Self { address, hall, thread: Some(thread) })
    }

    /// Where it is.
    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Who was turned away, in words for a message; empty if nobody was.
    pub(super) fn notes(&self) -> String {
        let notes = self.hall.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.is_empty() { String::new() } else { format!(" (turned away: {})", notes.join("; ")) }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.hall.closing.store(true, Ordering::Release);
        for (_, stream) in self.hall.strangers().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // The listener waits for somebody to come.
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(match address.ip() {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            });
        }
        let woken = TcpStream::connect_timeout(&address, Duration::from_secs(1));
        if let (Ok(_), Some(thread)) = (woken, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

impl Hall {
    fn strangers(&self) -> MutexGuard<'_, VecDeque<(u64, TcpStream)>> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listen(self: &Arc<Self>, listener: &TcpListener, host: &Arc<impl Host>) {
        for number in 0.. {
            let accepted = listener.accept();
            if self.closing.load(Ordering::Acquire) {
                return;
            }
            let Ok((stream, from)) = accepted else {
                // Out of descriptors, say: some will be free again.
                sleep(Duration::from_millis(5));
                continue;
            };
            let Ok(handle) = stream.try_clone() else { continue };
            let mut strangers = self.strangers();
            strangers.push_back((number, handle));
            let first = if strangers.len() > STRANGERS { strangers.pop_front() } else { None };
            drop(strangers);
            if let Some((_, first)) = first {
                let _ = first.shutdown(Shutdown::Both);
            }
            let (hall, host) = (Arc::clone(self), Arc::clone(host));
            let greeting = move || hall.greet(number, stream, from, &*host);
            if Builder::new().name("attn-visitor".into()).spawn(greeting).is_err() {
                self.forget(number);
            }
        }
    }

    fn forget(&self, number: u64) {
        self.strangers().retain(|(other, _)| *other != number);
    }

    fn greet(&self, number: u64, stream: TcpStream, from: SocketAddr, host: &impl Host) {
        let until = Instant::now() + PATIENCE;
        // Who has said nothing sensible is told nothing.
        let question = Question::receive(&stream, until);
        // From here on it is not in the way of others, and must not be sent off to make room for them.
        self.forget(number);
        let Ok(question) = question else { return };
        let answer = host.judge(&question);
        let heard = answer.send(&stream, until).and_then(|()| {
            stream.set_read_timeout(None)?;
            stream.set_write_timeout(None)?;
            stream.set_nodelay(true)
        });
        match (answer, heard) {
            (Answer::Welcome(_), Ok(())) => host.enter(&question, stream),
            (Answer::Welcome(_), Err(_)) => host.missed(&question),
            (answer, _) => self.note(format!("a process at {from}: {}", answer.why(&question))),
        }
    }

    fn note(&self, note: String) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() < NOTES {
            log::warn!("turned away {note}");
            notes.push(note);
        }
    }
}
