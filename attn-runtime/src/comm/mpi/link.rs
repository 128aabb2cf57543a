//! Messages between ranks, over MPI.
//!
//! A message is a head, with a small body in it, or a head and then its body in pieces under a tag of their own. Heads are
//! taken as they come, whoever sent them; a body is received where it is to lie, as soon as its head has said how long it is.
//! MPI keeps the order of messages between two ranks under one tag, so the pieces are told apart by it.

use core::ffi::c_int;
use core::mem::ManuallyDrop;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ffi::{self, Comm, Place, Request};
use super::wire::{self, HEAD, Kind};
use crate::comm::message::{Bytes, Event, Head, Link};
use crate::error::{Error, Result};

const HEADS: c_int = 1;
const BODIES: c_int = 2;

/// The longest body that travels with its head: so that both are within what MPIs send without asking the receiver
/// first (4 KiB at least).
const INLINE: usize = 2048;

/// The longest piece of a body: MPI counts bytes with a C `int`.
const PIECE: usize = 1 << 30;

/// How long a rank that has ended waits for the others before it says so.
const LONG: Duration = Duration::from_secs(60);

/// How often to look for what has come before it is said that nothing has: MPI moves messages on while it is called, and
/// the first call after a while may see none of those that it brings in.
const LOOKS: u32 = 3;

/// How long a rank that waits looks again and again, before it sleeps between looks.
const EAGER: Duration = Duration::from_micros(100);

/// The longest sleep between looks.
const SLEEP: Duration = Duration::from_millis(1);

/// While something is on its way, sleeps are shorter for so long.
const BUSY: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(20));

/// A rank's end of an MPI world. Made by [`world`](super::world).
///
/// MPI calls are made by whichever thread holds the link, one at a time: MPI must give `MPI_THREAD_SERIALIZED`.
pub struct MpiLink {
    /// None once it has been given back.
    comm: Option<Comm>,
    rank: usize,
    size: usize,
    /// Whether MPI was started for this world, and ends with it.
    owns_mpi: bool,
    piece: usize,
    sends: Vec<Lent<Outgoing>>,
    /// Messages on their way, by rank, in their order.
    arriving: Vec<VecDeque<Arriving>>,
    /// What has been received and not yet told.
    events: VecDeque<Event>,
    /// What each rank has said about its end; none while it has not.
    farewells: Vec<Option<Farewell>>,
    closed: bool,
    /// When something last came or went.
    active: Instant,
}

/// How a rank leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Farewell {
    Well,
    Ill,
}

/// What is kept until it is sent.
enum Outgoing {
    Head(Box<[u8]>),
    #[expect(dead_code, reason = "it is held, not read")]
    Body(Arc<Bytes>),
}

/// A message on its way here.
enum Arriving {
    Head(Lent<Box<[u8]>>),
    Body(Head, Lent<Bytes>),
    /// It waits for those before it.
    Whole(Event),
    Nothing,
}

/// Memory that MPI reads or writes. It is freed if MPI is done with it, else never: a world that is abandoned leaves it
/// behind.
struct Lent<M> {
    memory: ManuallyDrop<M>,
    requests: Vec<Request>,
}

impl<M> Lent<M> {
    fn new(memory: M) -> Self {
        Self { memory: ManuallyDrop::new(memory), requests: Vec::new() }
    }

    /// Whether MPI is done with it.
    fn returned(&mut self) -> Result<bool> {
        while let Some(request) = self.requests.last_mut() {
            if !request.test()? {
                return Ok(false);
            }
            self.requests.pop();
        }
        Ok(true)
    }

    /// The memory, which MPI has returned.
    fn take(self) -> M {
        assert!(self.requests.is_empty(), "taken back from MPI too early");
        ManuallyDrop::into_inner(self.memory)
    }
}

impl MpiLink {
    /// Collective: a link of all ranks. MPI runs.
    pub(super) fn open(owns_mpi: bool, cores: u64) -> Result<(Self, Place)> {
        let (comm, place) = Comm::open(cores)?;
        let number = |number: i32| {
            usize::try_from(number).map_err(|_| Error::Library {
                library: "MPI",
                call: "MPI_Comm_rank",
                text: format!("it gives {number}"),
            })
        };
        let (rank, size) = (number(place.rank)?, number(place.size)?);
        if owns_mpi {
            comm.watch_exit(&wire::write(Kind::Ill, 0, Head::default(), &[]), HEADS);
        }
        let link = Self {
            comm: Some(comm),
            rank,
            size,
            owns_mpi,
            piece: PIECE,
            sends: Vec::new(),
            arriving: (0..size).map(|_| VecDeque::new()).collect(),
            events: VecDeque::new(),
            farewells: vec![None; size],
            closed: false,
            active: Instant::now(),
        };
        Ok((link, place))
    }

    /// Collective: `MPI_Alltoall`, the bare collective of the library: what an exchange of equal parts is measured against.
    /// It waits without a deadline.
    ///
    /// # Errors
    /// If the lengths differ or are no multiple of the number of ranks, or MPI reports an error.
    #[doc(hidden)]
    pub fn alltoall(&self, parts: &[u8], received: &mut [u8]) -> Result<()> {
        if parts.len() != received.len() || !parts.len().is_multiple_of(self.size) {
            let (parts, received) = (parts.len(), received.len());
            return Err(Error::Plan(format!("{parts} bytes for {received} among {} ranks", self.size)));
        }
        // SAFETY: both have the same length, that of one part for each rank.
        unsafe { self.comm()?.alltoall(parts, received, parts.len() / self.size) }
    }

    fn comm(&self) -> Result<&Comm> {
        self.comm.as_ref().ok_or_else(|| Error::Library {
            library: "MPI",
            call: "MPI_Comm_free",
            text: "the link is closed".to_owned(),
        })
    }

    /// Queues a head, with what stands behind it.
    fn post(&mut self, to: usize, head: Box<[u8]>) -> Result<()> {
        let mut sent = Lent::new(Outgoing::Head(head));
        let Outgoing::Head(bytes) = &*sent.memory else { return Ok(()) };
        // SAFETY: `sent` keeps the bytes, which nobody changes, until the request is done.
        let request = unsafe { self.comm()?.send(bytes, to, HEADS) }?;
        sent.requests.push(request);
        self.keep(sent)
    }

    /// Keeps what is on its way out. What is short is mostly gone by now.
    fn keep(&mut self, mut sent: Lent<Outgoing>) -> Result<()> {
        match sent.returned()? {
            true => drop(sent.take()),
            false => self.sends.push(sent),
        }
        Ok(())
    }

    /// Goes on with everything, without waiting.
    fn progress(&mut self) -> Result<()> {
        let mut index = 0;
        while let Some(sent) = self.sends.get_mut(index) {
            if sent.returned()? {
                drop(self.sends.swap_remove(index).take());
                self.active = Instant::now();
            } else {
                index += 1;
            }
        }
        while let Some(message) = self.comm()?.probe(HEADS)? {
            let from = message.from;
            let mut head = Lent::new(vec![0; message.bytes].into_boxed_slice());
            // SAFETY: `head` keeps the bytes, as many as the message has, until the request is done.
            head.requests.push(unsafe { message.fetch(head.memory.as_mut_ptr()) }?);
            self.arriving[from].push_back(Arriving::Head(head));
            self.active = Instant::now();
        }
        for from in 0..self.size {
            self.advance(from)?;
        }
        Ok(())
    }

    /// Goes on with what comes from a rank.
    fn advance(&mut self, from: usize) -> Result<()> {
        for index in 0..self.arriving[from].len() {
            let arriving = core::mem::replace(&mut self.arriving[from][index], Arriving::Nothing);
            let (arriving, waits) = match arriving {
                Arriving::Head(mut bytes) => match bytes.returned() {
                    Ok(true) => (self.begin(from, &bytes.take())?, false),
                    // The head of the next message is not looked at before this one's: bodies come in that order.
                    Ok(false) => (Arriving::Head(bytes), true),
                    Err(error) => return Err(error),
                },
                Arriving::Body(head, mut body) => match body.returned()? {
                    true => {
                        let body = Some(Arc::new(body.take()));
                        (Arriving::Whole(Event::Message { from, head, body }), false)
                    }
                    false => (Arriving::Body(head, body), false),
                },
                come @ (Arriving::Whole(_) | Arriving::Nothing) => (come, false),
            };
            self.arriving[from][index] = arriving;
            if waits {
                break;
            }
        }
        while let Some(Arriving::Whole(_) | Arriving::Nothing) = self.arriving[from].front() {
            if let Some(Arriving::Whole(event)) = self.arriving[from].pop_front() {
                self.events.push_back(event);
            }
            self.active = Instant::now();
        }
        Ok(())
    }

    /// Reads a head, and begins to receive the body that it announces.
    fn begin(&mut self, from: usize, bytes: &[u8]) -> Result<Arriving> {
        let Some((kind, length, head)) = wire::read(bytes) else {
            return Err(Error::Library {
                library: "MPI",
                call: "MPI_Imrecv",
                text: format!("{} bytes from rank {from} that are no message of this program", bytes.len()),
            });
        };
        let farewell = match kind {
            Kind::Message => {
                let body = match &bytes[HEAD..] {
                    _ if length == 0 => None,
                    inline if inline.len() == length => Some(Arc::new(Bytes::copied(inline)?)),
                    _ => return self.begin_body(from, head, length),
                };
                return Ok(Arriving::Whole(Event::Message { from, head, body }));
            }
            Kind::Well => Farewell::Well,
            Kind::Ill => Farewell::Ill,
        };
        // Whoever gives up may say so again as it exits, which is told once.
        let told = self.farewells[from].replace(farewell).is_some();
        let why = match farewell {
            Farewell::Well => "it has ended its part in the world",
            Farewell::Ill => "it has given up",
        };
        Ok(if told {
            Arriving::Nothing
        } else {
            Arriving::Whole(Event::Lost { rank: from, why: why.to_owned() })
        })
    }

    fn begin_body(&mut self, from: usize, head: Head, length: usize) -> Result<Arriving> {
        let mut body = Lent::new(Bytes::zeroed(length)?);
        let base = body.memory.as_mut_slice().as_mut_ptr();
        for start in (0..length).step_by(self.piece) {
            let end = length.min(start + self.piece);
            // SAFETY: the piece lies inside the body, which `body` keeps until the request is done.
            let request = unsafe { self.comm()?.receive(base.add(start), end - start, from, BODIES) }?;
            body.requests.push(request);
        }
        Ok(Arriving::Body(head, body))
    }

    /// Whether anything is on its way in or out.
    fn busy(&self) -> bool {
        !self.sends.is_empty() || self.arriving.iter().any(|arriving| !arriving.is_empty())
    }

    /// Waits a moment: the shorter, the more recently this wait began or something came.
    fn pause(&self, began: Instant, until: Option<Instant>) {
        let now = Instant::now();
        let quiet = now.saturating_duration_since(self.active.max(began));
        if quiet < EAGER {
            std::thread::yield_now();
            return;
        }
        let busy = now.saturating_duration_since(self.active) < BUSY.1 && self.busy();
        let longest = if busy { BUSY.0 } else { SLEEP };
        let left = until.map_or(longest, |until| until.saturating_duration_since(now));
        std::thread::sleep((quiet / 8).min(longest).min(left));
    }

    /// Tells every rank how this one leaves, and gets out what was sent. Waits for the others' farewells while all are
    /// well, else for `grace` alone. Whether all were.
    ///
    /// A wait for farewells has no end: whoever is well still computes, and MPI must not be ended before it is done. It is
    /// told when it takes long.
    fn part(&mut self, farewell: Farewell, grace: Duration) -> Result<bool> {
        let mut told = false;
        let began = Instant::now();
        let until = began + grace;
        let kind = if farewell == Farewell::Well { Kind::Well } else { Kind::Ill };
        let me = self.rank;
        for to in (0..self.size).filter(|&to| to != me) {
            self.post(to, wire::write(kind, 0, Head::default(), &[]))?;
        }
        loop {
            self.progress()?;
            self.events.clear();
            let ill = farewell == Farewell::Ill || self.farewells.contains(&Some(Farewell::Ill));
            let mut others = self.farewells.iter().enumerate().filter(|&(rank, _)| rank != me);
            let all = others.all(|(_, farewell)| farewell.is_some());
            if !told && !ill && began.elapsed() >= LONG {
                told = true;
                let silent: Vec<_> =
                    (0..self.size).filter(|&rank| rank != me && self.farewells[rank].is_none()).collect();
                log::warn!(
                    "rank {me} has ended and waited {} s for ranks {silent:?} to end too",
                    LONG.as_secs()
                );
            }
            // A rank that has said farewell may still be sending: what it sends must be taken, or it waits for ever.
            let done = if ill { self.sends.is_empty() } else { all && !self.busy() };
            match done {
                true => return Ok(!ill),
                false if ill && Instant::now() >= until => return Ok(false),
                false => self.pause(began, ill.then_some(until)),
            }
        }
    }
}

impl Link for MpiLink {
    const NAME: &'static str = "MPI";

    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn send(&mut self, to: usize, head: Head, body: Option<Arc<Bytes>>) -> Result<()> {
        if self.closed || self.farewells[to].is_some() {
            return Ok(());
        }
        let bytes: &[u8] = body.as_deref().map_or(&[], |body| body);
        let inline = if bytes.len() <= INLINE { bytes } else { &[] };
        self.post(to, wire::write(Kind::Message, bytes.len(), head, inline))?;
        let Some(body) = body.filter(|body| body.len() > INLINE) else { return Ok(()) };
        let mut sent = Lent::new(Outgoing::Body(Arc::clone(&body)));
        for piece in body.chunks(self.piece) {
            // SAFETY: `sent` holds the body, which nobody can change while it is shared, until the request is done.
            sent.requests.push(unsafe { self.comm()?.send(piece, to, BODIES) }?);
        }
        self.active = Instant::now();
        self.keep(sent)
    }

    fn receive(&mut self, until: Instant) -> Result<Option<Event>> {
        let began = Instant::now();
        for look in 1_u32.. {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            self.progress()?;
            if self.events.is_empty() && look >= LOOKS {
                if Instant::now() >= until {
                    break;
                }
                self.pause(began, Some(until));
            }
        }
        Ok(None)
    }

    /// When all ranks close well, this waits for them, then gives back the communicator, and ends MPI if it was started for this
    /// world. Else MPI is left as it is: the process must end.
    fn close(&mut self, well: bool, grace: Duration) {
        if core::mem::replace(&mut self.closed, true) {
            return;
        }
        let farewell = if well { Farewell::Well } else { Farewell::Ill };
        let end = |link: &mut Self| {
            // A rank alone has nobody to wait for.
            if link.part(farewell, grace)? || link.size == 1 && link.sends.is_empty() {
                link.comm.take().map_or(Ok(()), Comm::free)?;
                if link.owns_mpi {
                    ffi::finalize()?;
                }
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = end(self) {
            log::warn!("rank {}: the MPI world does not end well: {error}", self.rank);
        }
    }
}

impl Drop for MpiLink {
    fn drop(&mut self) {
        if self.busy() {
            log::warn!(
                "rank {}: an MPI world was abandoned with messages on their way; their memory stays with MPI",
                self.rank
            );
        }
    }
}

impl core::fmt::Debug for MpiLink {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("MpiLink").field("rank", &self.rank).field("size", &self.size).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In one test, because a process has one MPI.
    #[test]
    fn bodies_come_whole_and_in_order_however_they_are_cut() {
        let mut link = super::super::world().unwrap().link().unwrap();
        let body = |length: usize| (0..length).map(|n| (n ^ (n >> 8)) as u8).collect::<Vec<_>>();
        for piece in [700, 5000, PIECE] {
            // As if a C `int` were so short.
            link.piece = piece;
            let lengths = [0, 1, INLINE, INLINE + 1, 4999, 5000, 5001, 100_000];
            for (n, &length) in lengths.iter().enumerate() {
                let sent = Arc::new(Bytes::copied(&body(length)).unwrap());
                link.send(0, Head([n as u64; 8]), Some(sent)).unwrap();
            }
            for (n, &length) in lengths.iter().enumerate() {
                let event = link.receive(Instant::now() + Duration::from_secs(10)).unwrap();
                let Some(Event::Message { from: 0, head, body: received }) = event else {
                    panic!("{event:?}");
                };
                assert_eq!(head, Head([n as u64; 8]));
                assert!(received.as_deref().map_or(&[][..], |bytes| bytes) == body(length), "{length}");
            }
        }
        assert!(link.receive(Instant::now() + Duration::from_millis(5)).unwrap().is_none());
        link.close(true, Duration::from_secs(1));
        let again = super::super::world().unwrap_err();
        assert!(again.to_string().contains("cannot be started again"), "{again}");
    }
}
