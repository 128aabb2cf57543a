//! The exchange of boxes: each rank packs what goes to another one into messages, and unpacks what comes as it comes; or one
//! of the two copies it from where it is to where it belongs.

use super::Link;
use super::announcement::{ANNOUNCED, Announcement, announced, behind, compare, write};
use super::direct::{self, Offer, Offered};
use super::note::Kind;
use super::pieces::{Pieces, pack, unpack};
use super::round::Round;
use super::shared;
use super::way::{Course, READ, TENSORS, WRITTEN, Way};
use super::world::{Letter, Parcel};
use crate::comm::{StridedBox, Transfer};
use crate::device::{Cpu, Device, Scope, StridedCopy};
use crate::error::{Error, Result};

/// The tensors' part of a message over a link, at most: small enough to stay in the cache between packing, the way, and
/// unpacking.
pub(super) const MESSAGE: usize = if cfg!(test) { 4 << 10 } else { 512 << 10 };

/// How many of them may be on their way over a link to a rank that has not said that it has taken them.
pub(super) const WINDOW: u64 = 16;

/// What comes to a rank goes past its caches if it is as much as this: it would not be found there.
const MUCH: usize = 8 << 20;

/// One rank's part in an exchange.
pub(super) struct Exchange<'s, 't, 'a> {
    scope: Scope<'s, Cpu>,
    transfers: &'t [Transfer<'a, Cpu>],
    outgoing: Vec<Way>,
    incoming: Vec<Way>,
    /// Where in this rank's scratch memory others read or write.
    offered: Offered,
    /// The message in hand.
    message: Vec<StridedBox>,
    /// Whether so much comes that it goes past the caches.
    much: bool,
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
            Way::new(boxes.collect(), limit(peer))
        };
        let outgoing = (0..size).map(|peer| way(peer, &|transfer| transfer.outgoing(peer).collect()));
        let incoming = (0..size).map(|peer| way(peer, &|transfer| transfer.incoming(peer).collect()));
        let (outgoing, incoming) = (outgoing.collect(), incoming.collect());
        let comes = transfers.iter().flat_map(|transfer| (0..size).flat_map(|peer| transfer.incoming(peer)));
        let much = comes.fold(0, |bytes: usize, part| bytes.saturating_add(part.bytes())) >= MUCH;
        let (offered, message) = (Offered::default(), Vec::new());
        Self { scope, transfers, outgoing, incoming, offered, message, much }
    }

    /// As [`new`](Self::new), for a collective.
    pub(super) fn of<L: Link>(
        scope: Scope<'s, Cpu>,
        transfers: &'t [Transfer<'a, Cpu>],
        round: &Round<'_, L>,
    ) -> Self {
        let limit = |peer| if round.reaches(peer) { shared::MESSAGE } else { MESSAGE };
        let mut exchange = Self::new(scope, transfers, round.me(), round.size(), limit);
        for peer in round.others() {
            for way in [&mut exchange.outgoing[peer], &mut exchange.incoming[peer]] {
                if round.reaches(peer) {
                    way.open();
                } else {
                    way.bound(WINDOW);
                }
            }
        }
        exchange
    }

    /// Carries it out.
    pub(super) fn run<L: Link>(mut self, round: &mut Round<'_, L>) -> Result<()> {
        // The others hear of a failure before scratch memory is taken back, which may take long.
        self.carry_out(round).inspect_err(|error| round.fail(error))
    }

    fn carry_out<L: Link>(&mut self, round: &mut Round<'_, L>) -> Result<()> {
        for peer in round.others() {
            self.call(round, peer)?;
        }
        self.keep(round.me(), &round.group.members)?;
        loop {
            // One message to each rank in turn, or one piece copied, and between them what has come.
            for peer in round.others() {
                if self.can_send(round, peer) {
                    let parcel = self.packed(round, peer, &[])?;
                    let way = &mut self.outgoing[peer];
                    way.messages += 1;
                    round.data_with(peer, [way.messages, TENSORS, 0, 0, 0], parcel)?;
                }
                self.copy(round, peer)?;
                while let Some((peer, letter)) = round.poll()? {
                    self.take(round, peer, letter)?;
                }
            }
            let unsent: Vec<usize> = round.others().filter(|peer| self.has_work(*peer)).collect();
            // What has come may be that for which a rank was passed over.
            if unsent.iter().any(|&peer| self.can_send(round, peer) || self.can_copy(round, peer)) {
                continue;
            }
            let mut ways = self.outgoing.iter_mut().chain(&mut self.incoming);
            if round.all_have_come() && ways.all(Way::is_done) {
                return if core::mem::take(&mut self.offered).over() {
                    Ok(())
                } else {
                    Err(round.withdrawn())
                };
            }
            let ways = self.outgoing.iter_mut().zip(&mut self.incoming);
            let awaited = ways.map(|(out, into)| out.has_word() || into.has_word() || into.has_message());
            let awaited: Vec<bool> = awaited.collect();
            if let Some((peer, letter)) = round.next_or_room(|member| awaited[member], &unsent)? {
                self.take(round, peer, letter)?;
            }
        }
    }

    /// Whether there is something to send to a rank or to copy for it.
    fn has_work(&mut self, peer: usize) -> bool {
        let (out, into) = (&mut self.outgoing[peer], &mut self.incoming[peer]);
        out.has_message() || out.has_copy() || into.has_copy()
    }

    /// Whether there is a further message to a rank which could go out now.
    fn can_send<L: Link>(&mut self, round: &Round<'_, L>, peer: usize) -> bool {
        let way = &mut self.outgoing[peer];
        way.has_message() && way.credit.is_left() && round.has_room(peer)
    }

    /// Whether there is a piece to be copied, of which a rank could be told at once.
    fn can_copy<L: Link>(&mut self, round: &Round<'_, L>, peer: usize) -> bool {
        (self.outgoing[peer].has_copy() || self.incoming[peer].has_copy()) && round.has_room(peer)
    }

    /// Calls a rank, with the first message to it if there is room for one.
    fn call<L: Link>(&mut self, round: &Round<'_, L>, peer: usize) -> Result<()> {
        // What comes from there is said as well, so that both find out if they do not fit.
        let mut numbers = self.outgoing_boxes(peer);
        let mut incoming = self.incoming_boxes(peer);
        let [out, into] = [&numbers, &incoming].map(|numbers| (numbers.len() / ANNOUNCED) as u64);
        numbers.append(&mut incoming);
        let mut offer = self.offer(round, peer).write();
        let offered = offer.len() as u64;
        numbers.append(&mut offer);
        let first = self.can_send(round, peer);
        let counts = [out, into, u64::from(first), offered];
        if numbers.is_empty() {
            return round.call(peer, counts, None);
        }
        let parcel = if first {
            self.packed(round, peer, &numbers)?
        } else {
            let mut parcel = round.parcel(peer, behind(numbers.len()))?;
            write(&numbers, parcel.as_mut_slice());
            parcel
        };
        round.call_with(peer, counts, parcel)
    }

    fn outgoing_boxes(&self, peer: usize) -> Vec<u64> {
        announced(self.transfers.iter().map(|transfer| transfer.outgoing(peer)))
    }

    fn incoming_boxes(&self, peer: usize) -> Vec<u64> {
        announced(self.transfers.iter().map(|transfer| transfer.incoming(peer)))
    }

    /// Where this rank's boxes are that another one may reach.
    fn offer<L: Link>(&mut self, round: &Round<'_, L>, peer: usize) -> Offer {
        let mut offer = Offer::default();
        let Some(windows) = round.windows() else { return offer };
        let mut spots = |way: &mut Way, written| {
            let Course::Open { offered } = &mut way.course else { return None };
            let spots = offer.spots(windows, way.pieces.boxes(), written, &mut self.offered);
            *offered = spots.is_some();
            spots
        };
        let incoming = spots(&mut self.incoming[peer], true);
        let outgoing = spots(&mut self.outgoing[peer], false);
        (offer.incoming, offer.outgoing) = (incoming, outgoing);
        offer
    }

    /// Decides how what goes to a rank and what comes from it gets there, by what its call says.
    fn decide<L: Link>(&mut self, round: &Round<'_, L>, peer: usize, offer: &Offer) -> Result<()> {
        let Some(windows) = round.windows() else { return Ok(()) };
        let copied = |spots, way: &Way| -> Result<Course> {
            let found = offer.boxes(spots, windows, round.number(peer), way.pieces.boxes());
            // If the other rank is no more, that is the failure.
            let (boxes, views) = found
                .map_err(|error| round.explained(error))?
                .ok_or_else(|| round.unreadable(peer, "an offer"))?;
            Ok(Course::Copied(Pieces::new(boxes, direct::PIECE), views))
        };
        let way = &mut self.outgoing[peer];
        if let Course::Open { offered } = way.course {
            way.decide(match &offer.incoming {
                Some(spots) => copied(spots, way)?,
                None if offered => Course::Awaited,
                None => Course::Messages,
            });
        }
        let way = &mut self.incoming[peer];
        if let Course::Open { offered } = way.course {
            way.decide(match &offer.outgoing {
                _ if offered => Course::Awaited,
                Some(spots) => copied(spots, way)?,
                None => Course::Messages,
            });
        }
        Ok(())
    }

    /// Copies a piece to a rank and one from it, where this rank does that, and tells it.
    fn copy<L: Link>(&mut self, round: &Round<'_, L>, peer: usize) -> Result<()> {
        for (way, word) in [(&mut self.outgoing[peer], WRITTEN), (&mut self.incoming[peer], READ)] {
            if !way.has_copy() || !round.has_room(peer) {
                continue;
            }
            let Course::Copied(theirs, views) = &mut way.course else { continue };
            let mut others = Vec::new();
            way.pieces.next(&mut self.message);
            theirs.next(&mut others);
            let (from, to) =
                if word == WRITTEN { (&self.message, &others) } else { (&others, &self.message) };
            let copies: Vec<_> = from.iter().zip(to).map(|(from, to)| from.copy_to(to)).collect();
            // SAFETY: this rank's boxes lie inside the tensors of transfers, which are lent for this call, the destinations
            // exclusively; the others lie inside of mappings that `views` holds, and are of the same extents. Their rank has
            // offered them and waits until it is told below; it neither writes what it has offered to be read nor touches what
            // it has offered to be written. If it waits no more, what is written here is seen by nobody, and what has been
            // read here is found out to be nothing.
            unsafe { Cpu::copy_past_caches(&copies) };
            if word == READ && way.pieces.is_done() && views.iter().any(|view| view.is_withdrawn()) {
                return Err(round.left(peer));
            }
            way.messages += 1;
            round.data(peer, [way.messages, word, 0, 0, 0], None)?;
            round.check()?;
        }
        Ok(())
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
        let way = &mut self.outgoing[peer];
        let bytes = way.pieces.next(&mut self.message).unwrap_or(0);
        way.credit.spend();
        let start = behind(announced.len());
        let mut parcel = round.parcel(peer, start + bytes)?;
        let (said, tensors) = parcel.as_mut_slice().split_at_mut(start);
        write(announced, said);
        let copies: Vec<_> = pack(&self.message, tensors.as_mut_ptr()).collect();
        // SAFETY: the boxes lie inside the sources of transfers, which are lent for this call; the packed ones take up
        // the `bytes` of the parcel that follow one another from its start on, which nobody else has yet.
        unsafe {
            match parcel {
                // Whoever read the slots last has their lines in caches: to write there would ask for each of them back.
                Parcel::Slot(_) if self.much => Cpu::copy_past_caches(&copies),
                _ => Cpu::copy(self.scope.queue(), &copies)?,
            }
        }
        Ok(parcel)
    }

    /// Takes a letter: the call of a rank, perhaps with its first message, a further one, word of a piece that it has copied,
    /// or the answer to a message of this rank.
    fn take<L: Link>(&mut self, round: &Round<'_, L>, peer: usize, letter: Letter) -> Result<()> {
        match letter.kind {
            Kind::Taken if self.outgoing[peer].credit.answered() => round.done(letter),
            Kind::Call => {
                let Some(Announcement { sent, expected, offer, end }) = Announcement::read(&letter) else {
                    return Err(round.unreadable(peer, "an announcement"));
                };
                let [they, me] = [peer, round.me()].map(|member| round.number(member));
                compare(&sent, &self.incoming_boxes(peer), they, me)?;
                compare(&self.outgoing_boxes(peer), &expected, me, they)?;
                self.decide(round, peer, &offer)?;
                let first = letter.numbers[3] == 1;
                self.unpacked(round, peer, letter, end, first)
            }
            Kind::Data => {
                let [count, word, ..] = letter.numbers;
                let way = if word == READ { &mut self.outgoing[peer] } else { &mut self.incoming[peer] };
                way.messages += 1;
                let is_word = word != TENSORS;
                let fits = if is_word { way.has_word() } else { way.has_message() };
                if !fits || count != way.messages {
                    return Err(round.unreadable(peer, "a message out of turn"));
                }
                if is_word {
                    way.pieces.next(&mut self.message);
                    return round.done(letter);
                }
                self.unpacked(round, peer, letter, 0, true)
            }
            _ => Err(round.unreadable(peer, "a message out of turn")),
        }
    }

    /// Unpacks a letter's tensors, which start at `start`; of those that come with a call there may be none.
    fn unpacked<L: Link>(
        &mut self,
        round: &Round<'_, L>,
        peer: usize,
        letter: Letter,
        start: usize,
        any: bool,
    ) -> Result<()> {
        let way = &mut self.incoming[peer];
        let expected =
            if any && way.has_message() { way.pieces.next(&mut self.message).unwrap_or(0) } else { 0 };
        let tensors = letter.body.bytes().get(start..).unwrap_or_default();
        if tensors.len() != expected {
            let ([they, me], found) = ([peer, round.me()].map(|member| round.number(member)), tensors.len());
            return Err(Error::Plan(format!(
                "rank {they} sends {found} bytes to rank {me}, which expects {expected}"
            )));
        }
        if expected > 0 {
            let copies: Vec<_> = unpack(&self.message, tensors.as_ptr()).collect();
            // SAFETY: the packed boxes follow one another and are as long as `tensors` together; the others lie inside the
            // destinations of transfers, which are lent exclusively for this call.
            unsafe { self.deliver(&copies) }?;
        }
        round.done(letter)?;
        let answer = any && self.incoming[peer].answers.took();
        if answer { round.taken(peer) } else { Ok(()) }
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
