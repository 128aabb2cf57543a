//! The exchange of boxes: each rank packs what goes to another one into messages, and unpacks what comes as it comes.

use std::sync::Arc;

use super::credit::{Answers, Credit};
use super::note::Kind;
use super::pieces::{Pieces, pack, unpack};
use super::round::Round;
use super::shared;
use super::world::{Letter, Parcel};
use super::{Bytes, Link};
use crate::comm::plan::unpaired;
use crate::comm::{StridedBox, Transfer};
use crate::device::{Cpu, Device, Scope, StridedCopy};
use crate::error::{Error, Result};

/// The tensors' part of a message over a link, at most: small enough to stay in the cache between packing, the way, and
/// unpacking.
pub(super) const MESSAGE: usize = if cfg!(test) { 4 << 10 } else { 512 << 10 };

/// How many of them may be on their way over a link to a rank that has not said that it has taken them.
pub(super) const WINDOW: u64 = 16;

/// Numbers by which a call announces one box: its transfer, the bytes of an element, its extent.
const ANNOUNCED: usize = 6;

/// What tensors start at in a body behind the announcement.
const ALIGN: usize = 64;

/// What comes to a rank goes past its caches if it is as much as this: it would not be found there.
const MUCH: usize = 8 << 20;

/// One rank's part in an exchange.
pub(super) struct Exchange<'s, 't, 'a> {
    scope: Scope<'s, Cpu>,
    transfers: &'t [Transfer<'a, Cpu>],
    outgoing: Vec<Way>,
    incoming: Vec<Way>,
    /// How far this rank may run ahead of each other one, and what it answers each. Shared memory has slots for that.
    credits: Vec<Credit>,
    answers: Vec<Answers>,
    /// The message in hand.
    message: Vec<StridedBox>,
    /// Whether so much comes that it goes past the caches.
    much: bool,
}

/// What goes to one rank, or comes from it.
struct Way {
    pieces: Pieces,
    /// How many messages have gone or come after the call.
    messages: u64,
}

impl<'s, 't, 'a> Exchange<'s, 't, 'a> {
    /// `limit` says how many bytes of tensors a message to or from a rank has at most.
    pub(super) fn new(
        scope: Scope<'s, Cpu>,
        transfers: &'t [Transfer<'a, Cpu>],
        me: usize,
        size: usize,
        limit: impl Fn(usize) -> usize,
    ) -> Self {
        let way = |peer: usize, boxes: &dyn Fn(&Transfer<'a, Cpu>) -> Vec<StridedBox>| {
            // What stays here goes no such way.
            let boxes = transfers.iter().filter(|_| peer != me).flat_map(boxes);
            Way { pieces: Pieces::new(boxes.collect(), limit(peer)), messages: 0 }
        };
        let outgoing = (0..size).map(|peer| way(peer, &|transfer| transfer.outgoing(peer).collect()));
        let incoming = (0..size).map(|peer| way(peer, &|transfer| transfer.incoming(peer).collect()));
        let (outgoing, incoming) = (outgoing.collect(), incoming.collect());
        let comes = |transfer: &Transfer<'a, Cpu>| {
            let boxes = (0..size).flat_map(|peer| transfer.incoming(peer));
            boxes.fold(0, |bytes: usize, part| {
                part.extent.iter().fold(part.item, |n, &axis| n.saturating_mul(axis)).saturating_add(bytes)
            })
        };
        let much =
            transfers.iter().fold(0, |bytes: usize, transfer| bytes.saturating_add(comes(transfer))) >= MUCH;
        let credits = (0..size).map(|_| Credit::unbounded()).collect();
        let answers = (0..size).map(|_| Answers::none()).collect();
        Self { scope, transfers, outgoing, incoming, credits, answers, message: Vec::new(), much }
    }

    /// As [`new`](Self::new), for a collective.
    pub(super) fn of<L: Link>(
        scope: Scope<'s, Cpu>,
        transfers: &'t [Transfer<'a, Cpu>],
        round: &Round<'_, L>,
    ) -> Self {
        let limit = |peer| if round.reaches(peer) { shared::MESSAGE } else { MESSAGE };
        let mut exchange = Self::new(scope, transfers, round.me(), round.size(), limit);
        for peer in round.others().filter(|peer| !round.reaches(*peer)) {
            exchange.credits[peer] = Credit::new(WINDOW);
            exchange.answers[peer] = Answers::new(WINDOW, exchange.incoming[peer].pieces.messages());
        }
        exchange
    }

    /// Carries it out.
    pub(super) fn run<L: Link>(mut self, round: &mut Round<'_, L>) -> Result<()> {
        for peer in round.others() {
            self.call(round, peer)?;
        }
        self.keep(round.me(), &round.group.members)?;
        loop {
            // One message to each rank in turn, and between them what has come.
            for peer in round.others() {
                if self.can_send(round, peer) {
                    let parcel = self.packed(round, peer, &[])?;
                    self.outgoing[peer].messages += 1;
                    round.data_with(peer, [self.outgoing[peer].messages, 0, 0, 0, 0], parcel)?;
                }
                while let Some((peer, letter)) = round.poll()? {
                    self.take(round, peer, letter)?;
                }
            }
            let unsent = round.others().filter(|peer| !self.outgoing[*peer].pieces.is_done());
            let unsent: Vec<usize> = unsent.collect();
            // What has come may be the answer for which a rank was passed over.
            if unsent.iter().any(|peer| self.can_send(round, *peer)) {
                continue;
            }
            let awaited: Vec<bool> = self.incoming.iter_mut().map(|way| !way.pieces.is_done()).collect();
            if unsent.is_empty() && round.all_have_come() && !awaited.contains(&true) {
                return Ok(());
            }
            if let Some((peer, letter)) = round.next_or_room(|member| awaited[member], &unsent)? {
                self.take(round, peer, letter)?;
            }
        }
    }

    /// Whether there is a further message to a rank which could go out now.
    fn can_send<L: Link>(&mut self, round: &Round<'_, L>, peer: usize) -> bool {
        !self.outgoing[peer].pieces.is_done() && self.credits[peer].is_left() && round.has_room(peer)
    }

    /// Calls a rank, with the first message to it if there is room for one.
    fn call<L: Link>(&mut self, round: &Round<'_, L>, peer: usize) -> Result<()> {
        // What comes from there is said as well, so that both find out if they do not fit.
        let mut boxes = self.outgoing_boxes(peer);
        let mut incoming = self.incoming_boxes(peer);
        let [out, into] = [&boxes, &incoming].map(|numbers| (numbers.len() / ANNOUNCED) as u64);
        boxes.append(&mut incoming);
        let first = self.can_send(round, peer);
        let numbers = [out, into, u64::from(first), 0];
        if first {
            let parcel = self.packed(round, peer, &boxes)?;
            return round.call_with(peer, numbers, parcel);
        }
        if boxes.is_empty() {
            return round.call(peer, numbers, None);
        }
        let mut body = Bytes::zeroed(behind(boxes.len()))?;
        write(&boxes, body.as_mut_slice());
        round.call(peer, numbers, Some(Arc::new(body)))
    }

    fn outgoing_boxes(&self, peer: usize) -> Vec<u64> {
        announced(self.transfers.iter().map(|transfer| transfer.outgoing(peer)))
    }

    fn incoming_boxes(&self, peer: usize) -> Vec<u64> {
        announced(self.transfers.iter().map(|transfer| transfer.incoming(peer)))
    }

    /// Copies what stays on this rank.
    pub(super) fn keep(&self, me: usize, members: &[usize]) -> Result<()> {
        let mut copies = Vec::new();
        for transfer in self.transfers {
            transfer.copies_from(me, transfer, me, members, &mut copies)?;
        }
        // SAFETY: the boxes lie inside the transfers' own tensors, which are lent for this call, the destination
        // exclusively.
        unsafe { self.deliver(&copies) }
    }

    /// The next message to a rank, behind an announcement.
    fn packed<L: Link>(&mut self, round: &Round<'_, L>, peer: usize, announced: &[u64]) -> Result<Parcel> {
        let bytes = self.outgoing[peer].pieces.next(&mut self.message).unwrap_or(0);
        self.credits[peer].spend();
        let start = behind(announced.len());
        let mut parcel = round.parcel(peer, start + bytes)?;
        let (said, tensors) = parcel.as_mut_slice().split_at_mut(start);
        write(announced, said);
        let copies: Vec<_> = pack(&self.message, tensors.as_mut_ptr()).collect();
        // SAFETY: the boxes lie inside the sources of transfers, which are lent for this call; the packed ones take up
        // the `bytes` of the parcel that follow one another from its start on, which nobody else has yet.
        unsafe {
            match parcel {
                Parcel::Bytes(_) => Cpu::copy(self.scope.queue(), &copies)?,
                // Whoever read the slot last has its lines in caches: to write there would ask for each of them back.
                Parcel::Slot(_) => Cpu::copy_past_caches(&copies),
            }
        }
        Ok(parcel)
    }

    /// Takes a letter: the call of a rank, perhaps with its first message, a further one, or the answer to one of this rank.
    fn take<L: Link>(&mut self, round: &Round<'_, L>, peer: usize, letter: Letter) -> Result<()> {
        if letter.kind == Kind::Taken && self.credits[peer].answered() {
            return round.done(letter);
        }
        let body = letter.body.bytes();
        let (tensors, message) = if letter.kind == Kind::Call {
            let Some((sent, expected)) = read(&letter) else {
                return Err(round.unreadable(peer, "an announcement"));
            };
            let [they, me] = [peer, round.me()].map(|member| round.number(member));
            compare(&sent, &self.incoming_boxes(peer), they, me)?;
            compare(&self.outgoing_boxes(peer), &expected, me, they)?;
            (body.get(behind(sent.len() + expected.len())..).unwrap_or_default(), letter.numbers[3] == 1)
        } else {
            let way = &mut self.incoming[peer];
            way.messages += 1;
            if letter.kind != Kind::Data || letter.numbers[0] != way.messages {
                return Err(round.unreadable(peer, "a message out of turn"));
            }
            (body, true)
        };
        let expected = match message {
            true => self.incoming[peer].pieces.next(&mut self.message).unwrap_or(0),
            false => 0,
        };
        if tensors.len() != expected {
            let ([they, me], found) = ([peer, round.me()].map(|member| round.number(member)), tensors.len());
            return Err(Error::Plan(format!(
                "rank {they} sends {found} bytes to rank {me}, which expects {expected}"
            )));
        }
        if message {
            let copies: Vec<_> = unpack(&self.message, tensors.as_ptr()).collect();
            // SAFETY: the packed boxes follow one another and are as long as `tensors` together; the others lie inside the
            // destinations of transfers, which are lent exclusively for this call.
            unsafe { self.deliver(&copies) }?;
        }
        round.done(letter)?;
        if message && self.answers[peer].took() { round.taken(peer) } else { Ok(()) }
    }

    /// Copies to destinations.
    ///
    /// # Safety
    /// As [`Device::copy`].
    unsafe fn deliver(&self, copies: &[StridedCopy]) -> Result<()> {
        if self.much {
            // SAFETY: the caller's contract.
            unsafe { Cpu::copy_past_caches(copies) };
            return Ok(());
        }
        // SAFETY: the caller's contract.
        unsafe { Cpu::copy(self.scope.queue(), copies) }
    }
}

/// The boxes that go to a rank, or come from one, as numbers. `boxes` are those of each transfer.
fn announced(boxes: impl Iterator<Item = impl Iterator<Item = StridedBox>>) -> Vec<u64> {
    let numbers = |(transfer, part): (u64, StridedBox)| {
        let [a, b, c, d] = part.extent.map(|axis| axis as u64);
        [transfer, part.item as u64, a, b, c, d]
    };
    let boxes = boxes.zip(0..).flat_map(|(boxes, transfer)| boxes.map(move |part| (transfer, part)));
    boxes.flat_map(numbers).collect()
}

/// Writes an announcement.
fn write(announced: &[u64], bytes: &mut [u8]) {
    for (to, from) in bytes.chunks_exact_mut(8).zip(announced) {
        to.copy_from_slice(&from.to_le_bytes());
    }
}

/// The boxes that a rank says it sends and those that it says it expects, as numbers.
fn read(letter: &Letter) -> Option<(Vec<u64>, Vec<u64>)> {
    let ([_, sent, expected, ..], body) = (letter.numbers, letter.body.bytes());
    let bytes = |count: u64| usize::try_from(count).ok()?.checked_mul(ANNOUNCED * 8);
    let (sent, rest) = body.split_at_checked(bytes(sent)?)?;
    let expected = rest.get(..bytes(expected)?)?;
    let numbers =
        |bytes: &[u8]| bytes.as_chunks().0.iter().map(|number| u64::from_le_bytes(*number)).collect();
    Some((numbers(sent), numbers(expected)))
}

/// Where the tensors start behind an announcement of so many numbers.
const fn behind(numbers: usize) -> usize {
    (numbers * 8).next_multiple_of(ALIGN)
}

/// Compares what rank `from` sends with what rank `to` expects.
fn compare(said: &[u64], expected: &[u64], from: usize, to: usize) -> Result<()> {
    if said == expected {
        return Ok(());
    }
    let (said, expected) = (said.as_chunks::<ANNOUNCED>().0, expected.as_chunks::<ANNOUNCED>().0);
    let differs = (0..).find(|&n| said.get(n) != expected.get(n)).unwrap_or(0);
    // A box of a later transfer is none of this one's.
    let transfer = |of: &[[u64; ANNOUNCED]]| of.get(differs).map_or(u64::MAX, |part| part[0]);
    let first = transfer(said).min(transfer(expected));
    let extent = |of: &[[u64; ANNOUNCED]]| {
        let part = of.get(differs).filter(|part| part[0] == first);
        part.map(|&[_, _, a, b, c, d]| [a, b, c, d].map(|axis| axis as usize))
    };
    Err(unpaired(from, to, extent(said), extent(expected)))
}
