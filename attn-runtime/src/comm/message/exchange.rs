//! The exchange of boxes: each rank packs what goes to another one into messages, and unpacks what comes as it comes.

use std::sync::Arc;

use super::note::Kind;
use super::pieces::{Pieces, pack, unpack};
use super::round::Round;
use super::world::Letter;
use super::{Bytes, Link};
use crate::comm::plan::unpaired;
use crate::comm::{StridedBox, Transfer};
use crate::device::{Cpu, Device, Scope};
use crate::error::{Error, Result};

/// The tensors' part of a message, at most: small enough to stay in the cache between packing, the way, and unpacking.
const MESSAGE: usize = 512 << 10;

/// Numbers by which a call announces one box: its transfer, the bytes of an element, its extent.
const ANNOUNCED: usize = 6;

/// What tensors start at in a body behind the announcement.
const ALIGN: usize = 64;

/// An exchange, once all ranks are known to call it.
pub(super) struct Exchange<'s, 't, 'a> {
    scope: Scope<'s, Cpu>,
    transfers: &'t [Transfer<'a, Cpu>],
    outgoing: Vec<Pieces>,
    incoming: Vec<Incoming>,
    /// The message in hand.
    message: Vec<StridedBox>,
}

/// What comes from one rank.
struct Incoming {
    pieces: Pieces,
    /// How many messages have come.
    messages: u64,
}

impl<'s, 't, 'a> Exchange<'s, 't, 'a> {
    pub(super) fn new(
        scope: Scope<'s, Cpu>,
        transfers: &'t [Transfer<'a, Cpu>],
        me: usize,
        size: usize,
    ) -> Self {
        // What stays here goes no such way.
        let pieces = |peer: usize, boxes: &dyn Fn(&Transfer<'a, Cpu>) -> Vec<StridedBox>| {
            let boxes = transfers.iter().filter(|_| peer != me).flat_map(boxes);
            Pieces::new(boxes.collect(), MESSAGE)
        };
        let outgoing =
            (0..size).map(|peer| pieces(peer, &|transfer| transfer.outgoing(peer).collect())).collect();
        let incoming = (0..size).map(|peer| Incoming {
            pieces: pieces(peer, &|transfer| transfer.incoming(peer).collect()),
            messages: 0,
        });
        Self { scope, transfers, outgoing, incoming: incoming.collect(), message: Vec::new() }
    }

    /// Carries it out.
    pub(super) fn run<L: Link>(mut self, round: &mut Round<'_, L>) -> Result<()> {
        let mut messages = vec![0; round.size()];
        for peer in round.others() {
            // What comes from there is said as well, so that both find out if they do not fit.
            let mut boxes = self.outgoing_boxes(peer);
            let counts =
                [boxes.len(), self.incoming_boxes(peer).len()].map(|numbers| (numbers / ANNOUNCED) as u64);
            boxes.append(&mut self.incoming_boxes(peer));
            let body = self.packed(peer, &boxes)?;
            round.call(peer, [counts[0], counts[1], 0, 0], body)?;
        }
        self.keep(round.me())?;
        // One message to each rank in turn, and between them what has come.
        loop {
            let mut more = false;
            for peer in round.others() {
                if !self.outgoing[peer].is_done() {
                    let body = self.packed(peer, &[])?;
                    messages[peer] += 1;
                    round.data(peer, [messages[peer], 0, 0, 0, 0], body)?;
                    more = true;
                }
                while let Some((peer, letter)) = round.poll()? {
                    self.take(round, peer, &letter)?;
                }
            }
            if !more {
                break;
            }
        }
        while !round.all_have_come() || self.incoming.iter_mut().any(|from| !from.pieces.is_done()) {
            let awaited: Vec<bool> = self.incoming.iter_mut().map(|from| !from.pieces.is_done()).collect();
            let (peer, letter) = round.next(|member| awaited[member])?;
            self.take(round, peer, &letter)?;
        }
        Ok(())
    }

    fn outgoing_boxes(&self, peer: usize) -> Vec<u64> {
        announced(self.transfers.iter().map(|transfer| transfer.outgoing(peer)))
    }

    fn incoming_boxes(&self, peer: usize) -> Vec<u64> {
        announced(self.transfers.iter().map(|transfer| transfer.incoming(peer)))
    }

    /// Copies what stays on this rank.
    pub(super) fn keep(&self, me: usize) -> Result<()> {
        let mut copies = Vec::new();
        for transfer in self.transfers {
            transfer.copies_from(me, transfer, me, &mut copies)?;
        }
        // SAFETY: the boxes lie inside the transfers' own tensors, which are lent for this call, the destination
        // exclusively.
        unsafe { Cpu::copy(self.scope.queue(), &copies) }
    }

    /// The body of the next message to a rank, behind an announcement; none if it would be empty.
    fn packed(&mut self, peer: usize, announced: &[u64]) -> Result<Option<Arc<Bytes>>> {
        let bytes = self.outgoing[peer].next(&mut self.message).unwrap_or(0);
        let start = behind(announced.len());
        if start + bytes == 0 {
            return Ok(None);
        }
        let mut body = Bytes::zeroed(start + bytes)?;
        let (said, tensors) = body.as_mut_slice().split_at_mut(start);
        for (to, from) in said.chunks_exact_mut(8).zip(announced) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        let copies: Vec<_> = pack(&self.message, tensors.as_mut_ptr()).collect();
        // SAFETY: the boxes lie inside the sources of transfers, which are lent for this call; the packed ones take up
        // the `bytes` of the body that follow one another from its start on, and nobody else has it yet.
        unsafe { Cpu::copy(self.scope.queue(), &copies) }?;
        Ok(Some(Arc::new(body)))
    }

    /// Takes a letter: the call of a rank, with its first message, or a further one.
    fn take<L: Link>(&mut self, round: &Round<'_, L>, peer: usize, letter: &Letter) -> Result<()> {
        let body = letter.body.as_deref().map_or(&[][..], |body| body);
        let tensors = if letter.kind == Kind::Call {
            let Some((sent, expected)) = read(letter, body) else {
                return Err(round.unreadable(peer, "an announcement"));
            };
            let me = round.me();
            compare(&sent, &self.incoming_boxes(peer), peer, me)?;
            compare(&self.outgoing_boxes(peer), &expected, me, peer)?;
            body.get(behind(sent.len() + expected.len())..).unwrap_or_default()
        } else {
            let from = &mut self.incoming[peer];
            from.messages += 1;
            if letter.numbers[0] != from.messages {
                return Err(round.unreadable(peer, "a message out of turn"));
            }
            body
        };
        let expected = self.incoming[peer].pieces.next(&mut self.message).unwrap_or(0);
        if tensors.len() != expected {
            let (me, found) = (round.me(), tensors.len());
            return Err(Error::Plan(format!(
                "rank {peer} sends {found} bytes to rank {me}, which expects {expected}"
            )));
        }
        let copies: Vec<_> = unpack(&self.message, tensors.as_ptr()).collect();
        // SAFETY: the packed boxes follow one another and are as long as `tensors` together; the others lie inside the
        // destinations of transfers, which are lent exclusively for this call.
        unsafe { Cpu::copy(self.scope.queue(), &copies) }
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

/// The boxes that a rank says it sends and those that it says it expects, as numbers.
fn read(letter: &Letter, body: &[u8]) -> Option<(Vec<u64>, Vec<u64>)> {
    let [_, sent, expected, ..] = letter.numbers;
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
