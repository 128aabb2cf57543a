//! The ring: a rank passes a block on before it looks at it, so that it travels while this rank computes.

use std::collections::VecDeque;
use std::sync::Arc;

use super::credit::{Answers, Credit};
use super::note::Kind;
use super::round::Round;
use super::shared::{Blocks, Look, Shown};
use super::world::Letter;
use super::{Bytes, Link};
use crate::comm::plan::unlike;
use crate::device::{Cpu, Device, Scope, StridedCopy};
use crate::error::{Error, Result};
use crate::tensor::{DType, Element, KeyValue, View, ViewMut, contiguous_strides};

/// A block's bytes in one message, at most: so that a part goes on to the next rank while the rest of the block is still coming,
/// is copied while it is in the cache, and the deadline counts from part to part. Tests have no blocks so long that they could
/// cut them otherwise.
pub(super) const PART: usize = if cfg!(test) { 1 << 10 } else { 1 << 20 };

/// How many blocks may be on their way to a rank that has not said that it has taken them. No ring waits for itself: who waits
/// to pass on what it looks at in one hop waits for a rank that has not come to that hop.
pub(super) const AHEAD: u64 = 2;

/// What the values start at behind the keys.
const ALIGN: usize = 64;

/// A block as bytes: dense keys, then dense values.
#[derive(Clone, Copy)]
struct Packed {
    shape: [usize; 4],
    /// Where the values start.
    values: usize,
    /// All bytes.
    bytes: usize,
    dtype: DType,
}

impl Packed {
    /// A block of so many positions.
    fn new<T: Element>(block: KeyValue<'_, T, Cpu>, length: usize) -> Result<Self> {
        let [batch, _, heads, head_dim] = block.key.shape();
        let shape = [batch, length, heads, head_dim];
        let too_large = Error::TooLarge { shape, dtype: T::DTYPE };
        let tensor = shape.iter().try_fold(size_of::<T>(), |bytes, axis| bytes.checked_mul(*axis));
        let values = tensor.and_then(|bytes| bytes.checked_next_multiple_of(ALIGN));
        let bytes = values.zip(tensor).and_then(|(values, tensor)| values.checked_add(tensor));
        let (Some(values), Some(bytes)) = (values, bytes) else { return Err(too_large) };
        Ok(Self { shape, values, bytes, dtype: T::DTYPE })
    }

    /// Bytes that count as moved.
    fn moved(&self) -> u64 {
        let elements = self.shape.iter().product::<usize>();
        2 * (elements * self.dtype.size()) as u64
    }

    /// The block in a body that holds it.
    fn view<'b, T: Element>(&self, body: &'b [u8]) -> KeyValue<'b, T, Cpu> {
        assert!(
            body.len() == self.bytes && body.as_ptr().addr().is_multiple_of(ALIGN) && T::DTYPE == self.dtype
        );
        let tensor = |start: usize| {
            // SAFETY: the body has `bytes` initialised bytes, and nobody writes it while it is borrowed; key and value lie
            // inside of it, by `new`; it is aligned to 64, as `start` is (an empty body lies at no address less aligned). Any bytes
            // are elements.
            unsafe {
                let base = core::ptr::NonNull::from(body).cast::<u8>().add(start);
                View::from_raw_parts(base.cast(), self.shape, contiguous_strides(self.shape))
            }
        };
        KeyValue { key: tensor(0), value: tensor(self.values) }
    }
}

/// A rank's place in the ring during one rotation.
pub(super) struct Ring<'r, 'g, L: Link> {
    round: &'r mut Round<'g, L>,
    blocks: &'r mut Blocks,
    /// A block's bytes in one message, at most.
    limit: usize,
    next: usize,
    previous: usize,
    /// How many messages have gone to the next rank, and come from the previous one.
    sent: u64,
    received: u64,
    /// How far this rank may run ahead of the next one, and what it answers the previous one, in blocks.
    credit: Credit,
    answers: Answers,
    /// Which members show their blocks in shared memory.
    shown: Vec<bool>,
    /// Messages of the previous rank that have not been looked at.
    early: VecDeque<Letter>,
    /// Members that have yet to map this rank's memory.
    unmapped: Vec<usize>,
}

/// Where a block is.
enum Body<'a> {
    /// In the message in which it came.
    Whole(Arc<Bytes>),
    /// In scratch memory, where its parts have been put together.
    Joined(&'a [u8]),
    /// Shown by its owner.
    Shown(Look),
}

impl Body<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Whole(bytes) => bytes,
            Self::Joined(bytes) => bytes,
            Self::Shown(look) => look.bytes(),
        }
    }
}

/// Scratch memory for a block in parts.
struct Scratch<'s> {
    scope: Scope<'s, Cpu>,
    /// How much the longest block of the ring takes.
    longest: usize,
    taken: Option<ViewMut<'s, u8, Cpu>>,
}

impl Scratch<'_> {
    /// So many bytes of it.
    fn bytes(&mut self, length: usize) -> Result<&mut [u8]> {
        let view = match &mut self.taken {
            Some(view) => view,
            none => none.insert(self.scope.take([1, 1, 1, self.longest])?),
        };
        assert!(length <= self.longest);
        // SAFETY: the view is dense, has at least so many elements, and is borrowed exclusively.
        Ok(unsafe { core::slice::from_raw_parts_mut(view.base().as_ptr(), length) })
    }
}

impl<'r, 'g, L: Link> Ring<'r, 'g, L> {
    pub(super) fn new(round: &'r mut Round<'g, L>, blocks: &'r mut Blocks, limit: usize) -> Self {
        let (me, size) = (round.me(), round.size());
        let (next, previous) = ((me + 1) % size, (me + size - 1) % size);
        let shown = vec![false; size];
        let (early, unmapped) = (VecDeque::new(), Vec::new());
        let (credit, answers) = (Credit::new(AHEAD), Answers::none());
        Self {
            round,
            blocks,
            limit,
            next,
            previous,
            sent: 0,
            received: 0,
            credit,
            answers,
            shown,
            early,
            unmapped,
        }
    }

    /// Carries a rotation out. `moved` is told the bytes that this rank passes on.
    pub(super) fn run<T: Element>(
        mut self,
        scope: Scope<'_, Cpu>,
        lengths: &[usize],
        block: KeyValue<'_, T, Cpu>,
        mut moved: impl FnMut(u64),
        mut visit: impl FnMut(usize, KeyValue<'_, T, Cpu>) -> Result<()>,
    ) -> Result<()> {
        let (me, size) = (self.round.me(), self.round.size());
        check_block(self.round.number(me), block, lengths[me])?;
        let own = Packed::new(block, lengths[me])?;
        moved(own.moved());
        self.call(block, &own)?;
        let longest = lengths.iter().map(|length| Ok(Packed::new(block, *length)?.bytes));
        let longest = longest.collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or_default();
        let mut scratch = Scratch { scope, longest, taken: None };
        if !self.sees(me, self.next) {
            self.send_own(block, &own, &mut scratch)?;
        }
        self.meet(lengths)?;
        let coming = self.round.others().filter(|&owner| !self.sees(owner, me)).count();
        self.answers = Answers::new(AHEAD, coming as u64);
        visit(me, block)?;
        for hop in 1..size {
            let owner = (me + size - hop) % size;
            let coming = Packed::new(block, lengths[owner])?;
            let goes_on = hop + 1 < size && !self.sees(owner, self.next);
            if hop + 1 < size {
                moved(coming.moved());
            }
            let body = if self.sees(owner, me) {
                let look = self.look(owner, &coming)?;
                if goes_on {
                    self.pass_on(owner, coming.shape[1], look.bytes())?;
                }
                Body::Shown(look)
            } else {
                self.receive(owner, &coming, lengths, goes_on, &mut scratch)?
            };
            self.round.check()?;
            visit(owner, coming.view(body.bytes()))?;
        }
        self.wait_for_mappings()
    }

    /// Sends this rank's block to the next one.
    fn send_own<T: Element>(
        &mut self,
        block: KeyValue<'_, T, Cpu>,
        own: &Packed,
        scratch: &mut Scratch<'_>,
    ) -> Result<()> {
        let (me, length, queue) = (self.round.me(), own.shape[1], scratch.scope.queue());
        if own.bytes > self.limit {
            let whole = scratch.bytes(own.bytes)?;
            let copies = pack(block, own, whole);
            // SAFETY: both tensors are lent for this call and have the packed shape (`check_block`), of which the memory, which
            // nobody else has, holds two.
            unsafe { Cpu::copy(queue, &copies) }?;
            return self.pass_on(me, length, whole);
        }
        let mut body = Bytes::zeroed(own.bytes)?;
        let copies = pack(block, own, body.as_mut_slice());
        // SAFETY: as above.
        unsafe { Cpu::copy(queue, &copies) }?;
        self.wait_for_credit()?;
        self.send(me, length, Some(Arc::new(body)))
    }

    /// Looks whether the length that comes with a member's block is what the call says.
    fn check_length(&self, member: usize, length: u64, lengths: &[usize]) -> Result<()> {
        if length == lengths[member] as u64 {
            return Ok(());
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        Err(unlike(self.round.number(member), length, lengths[member]))
    }

    /// Whether a member looks at another's block in shared memory.
    fn sees(&self, owner: usize, member: usize) -> bool {
        self.shown[owner] && self.round.share(owner, member)
    }

    /// Calls all members, and shows this rank's block to those that share memory.
    fn call<T: Element>(&mut self, block: KeyValue<'_, T, Cpu>, own: &Packed) -> Result<()> {
        let me = self.round.me();
        let mut shown = Shown::No;
        if self.round.others().any(|member| self.round.share(me, member)) {
            let sequence = self.round.sequence();
            let (said, target) = self.blocks.show(sequence, own.bytes);
            if let Some(mut target) = target {
                let copies = pack(block, own, target.as_mut_slice());
                // SAFETY: as in `run`; the target is nobody else's before the call. (Whoever looked at it last has its lines in
                // caches: to write there would ask for each of them back.)
                unsafe { Cpu::copy_past_caches(&copies) };
            }
            shown = said;
        }
        self.shown[me] = shown != Shown::No;
        if matches!(shown, Shown::New(_)) {
            self.unmapped = self.round.others().filter(|&member| self.round.share(me, member)).collect();
        }
        let [a, b, c] = shown.write();
        self.round
            .others()
            .try_for_each(|member| self.round.call(member, [a, b, c, own.shape[1] as u64], None))
    }

    /// Waits until all have called, so that whoever calls something else is found out before anything is computed.
    fn meet(&mut self, lengths: &[usize]) -> Result<()> {
        while !self.round.all_have_come() {
            let (member, letter) = self.round.next(|_| false)?;
            if letter.kind != Kind::Call {
                self.keep(member, letter)?;
                continue;
            }
            let [_, a, b, c, length] = letter.numbers;
            let Some(shown) = Shown::read([a, b, c]) else {
                return Err(self.round.unreadable(member, "a call"));
            };
            self.round.done(letter)?;
            self.check_length(member, length, lengths)?;
            self.shown[member] = shown != Shown::No;
            if self.sees(member, self.round.me()) {
                let new = self.blocks.map(self.round.sequence(), member, shown);
                // Memory that cannot be opened is more likely that of a rank that has failed.
                if new.map_err(|error| self.round.explained(error))? {
                    self.round.mapped(member)?;
                }
            }
        }
        Ok(())
    }

    /// What a member shows.
    fn look(&self, owner: usize, block: &Packed) -> Result<Look> {
        let look = self.blocks.look(self.round.sequence(), owner, block.bytes);
        look.ok_or_else(|| self.round.unreadable(owner, "a block"))
    }

    /// Keeps a letter of the previous rank, an answer of the next one, or what a member says of its mapping.
    fn keep(&mut self, member: usize, letter: Letter) -> Result<()> {
        match letter.kind {
            Kind::Mapped => {
                self.unmapped.retain(|unmapped| *unmapped != member);
                self.round.done(letter)
            }
            Kind::Taken if member == self.next && self.credit.answered() => self.round.done(letter),
            Kind::Data if member == self.previous => {
                let Letter { from, kind, numbers, body } = letter;
                self.early.push_back(Letter { from, kind, numbers, body: body.owned()? });
                Ok(())
            }
            _ => Err(self.round.unreadable(member, "a message")),
        }
    }

    /// Before new memory is closed, all must have opened it.
    fn wait_for_mappings(&mut self) -> Result<()> {
        while !self.unmapped.is_empty() {
            let (member, letter) = self.round.next(|member| self.unmapped.contains(&member))?;
            self.keep(member, letter)?;
        }
        self.blocks.all_have_mapped();
        Ok(())
    }

    /// The next message of the previous rank.
    fn next_letter(&mut self) -> Result<Letter> {
        loop {
            if let Some(letter) = self.early.pop_front() {
                return Ok(letter);
            }
            let previous = self.previous;
            let (member, letter) = self.round.next(|member| member == previous)?;
            self.keep(member, letter)?;
        }
    }

    /// The next block from the previous rank, which is told that it is here. Its parts go on to the next rank as they come, if
    /// they are to.
    fn receive<'a>(
        &mut self,
        owner: usize,
        coming: &Packed,
        lengths: &[usize],
        goes_on: bool,
        scratch: &'a mut Scratch<'_>,
    ) -> Result<Body<'a>> {
        let parts = coming.bytes.div_ceil(self.limit).max(1);
        let whole = if parts > 1 { scratch.bytes(coming.bytes)? } else { &mut [] };
        let mut only = None;
        for part in 0..parts {
            let body = self.next_part(owner, coming, lengths, part * self.limit)?;
            if goes_on {
                if part == 0 {
                    self.wait_for_credit()?;
                }
                self.send(owner, coming.shape[1], Some(Arc::clone(&body)))?;
            }
            if parts == 1 {
                only = Some(body);
            } else {
                whole[part * self.limit..][..body.len()].copy_from_slice(&body);
            }
        }
        if self.answers.took() {
            self.round.taken(self.previous)?;
        }
        Ok(only.map_or(Body::Joined(whole), Body::Whole))
    }

    /// The next part of a block from the previous rank: the bytes from `start` on.
    fn next_part(
        &mut self,
        owner: usize,
        coming: &Packed,
        lengths: &[usize],
        start: usize,
    ) -> Result<Arc<Bytes>> {
        let letter = self.next_letter()?;
        let [number, length, whose, ..] = letter.numbers;
        if number != self.received || whose != owner as u64 {
            return Err(self.round.unreadable(self.previous, "a message out of turn"));
        }
        self.received += 1;
        self.check_length(owner, length, lengths)?;
        let expected = (coming.bytes - start).min(self.limit);
        let body = match letter.body.into_bytes()? {
            Some(body) => body,
            None => Arc::new(Bytes::zeroed(0)?),
        };
        if body.len() == expected {
            return Ok(body);
        }
        let [rank, previous] = [owner, self.previous].map(|member| self.round.number(member));
        let found = body.len();
        Err(Error::Plan(format!(
            "rank {rank}'s block comes from rank {previous} in {found} bytes, where the call says {expected}"
        )))
    }

    /// Sends a block to the next rank, in parts if it is long.
    fn pass_on(&mut self, owner: usize, length: usize, block: &[u8]) -> Result<()> {
        self.wait_for_credit()?;
        for part in block.chunks(self.limit) {
            self.send(owner, length, Some(Arc::new(Bytes::copied(part)?)))?;
        }
        // Of nothing there is one part, too.
        if block.is_empty() { self.send(owner, length, None) } else { Ok(()) }
    }

    /// Waits until the next rank has taken so many blocks that one more may go, which then goes.
    fn wait_for_credit(&mut self) -> Result<()> {
        while !self.credit.is_left() {
            let next = self.next;
            let (member, letter) = self.round.next(|member| member == next)?;
            self.keep(member, letter)?;
        }
        self.credit.spend();
        Ok(())
    }

    /// Sends the next rank a message, which says whose block it belongs to.
    fn send(&mut self, owner: usize, length: usize, body: Option<Arc<Bytes>>) -> Result<()> {
        let body = body.filter(|body| !body.is_empty());
        self.round.data(self.next, [self.sent, length as u64, owner as u64, 0, 0], body)?;
        self.sent += 1;
        Ok(())
    }
}

/// Looks whether this rank's block is what the call says.
fn check_block<T: Element>(rank: usize, block: KeyValue<'_, T, Cpu>, said: usize) -> Result<()> {
    let (key, value) = (block.key.shape(), block.value.shape());
    if key != value {
        return Err(Error::Plan(format!(
            "a block of keys {key:?} and values {value:?}, which must be alike"
        )));
    }
    if key[1] == said { Ok(()) } else { Err(unlike(rank, key[1], said)) }
}

/// The copies of this rank's block into memory that is as long as it is packed.
fn pack<T: Element>(block: KeyValue<'_, T, Cpu>, packed: &Packed, memory: &mut [u8]) -> [StridedCopy; 2] {
    assert_eq!(memory.len(), packed.bytes);
    let base = memory.as_mut_ptr();
    let copy = |of: View<'_, T, Cpu>, start: usize| StridedCopy {
        source: of.base().as_ptr().cast_const().cast(),
        destination: base.wrapping_add(start),
        item: size_of::<T>(),
        extent: of.shape(),
        source_strides: of.strides(),
        destination_strides: contiguous_strides(packed.shape),
    };
    [copy(block.key, 0), copy(block.value, packed.values)]
}
