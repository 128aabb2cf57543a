//! The ring: a rank passes a block on before it looks at it, so that it travels while this rank computes.

use std::sync::Arc;

use super::note::Kind;
use super::round::Round;
use super::{Bytes, Link};
use crate::comm::plan::check_length;
use crate::device::{Cpu, Device, Scope, StridedCopy};
use crate::error::{Error, Result};
use crate::tensor::{DType, Element, KeyValue, View, contiguous_strides};

/// A block's bytes in one message, at most. Longer blocks are put together again where they arrive.
pub(super) const PART: usize = 1 << 30;

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

    fn parts(&self, limit: usize) -> usize {
        self.bytes.div_ceil(limit).max(1)
    }

    /// Bytes that count as moved.
    fn moved(&self) -> u64 {
        let elements = self.shape.iter().product::<usize>();
        2 * (elements * self.dtype.size()) as u64
    }

    /// The block in a body that holds it.
    fn view<'b, T: Element>(&self, body: &'b Bytes) -> KeyValue<'b, T, Cpu> {
        debug_assert!(body.len() == self.bytes && T::DTYPE == self.dtype);
        let tensor = |start: usize| {
            // SAFETY: the body has `bytes` initialised bytes, and nobody writes it while it is borrowed; key and value lie
            // inside of it, by `new`; it is aligned to 64, as `start` is. Any bytes are elements.
            unsafe {
                let base = core::ptr::NonNull::from(&**body).cast::<u8>().add(start);
                View::from_raw_parts(base.cast(), self.shape, contiguous_strides(self.shape))
            }
        };
        KeyValue { key: tensor(0), value: tensor(self.values) }
    }
}

/// A rank's place in the ring during one rotation.
pub(super) struct Ring<'r, 'g, L: Link> {
    round: &'r mut Round<'g, L>,
    limit: usize,
    next: usize,
    previous: usize,
    /// How many messages have gone to the next rank, and come from the previous one.
    sent: u64,
    received: u64,
}

impl<'r, 'g, L: Link> Ring<'r, 'g, L> {
    pub(super) fn new(round: &'r mut Round<'g, L>, limit: usize) -> Self {
        let (me, size) = (round.me(), round.size());
        let (next, previous) = ((me + 1) % size, (me + size - 1) % size);
        Self { round, limit, next, previous, sent: 0, received: 0 }
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
        check_length(me, block.key.shape()[1], lengths)?;
        self.round.others().try_for_each(|member| self.round.call(member, [0; 4], None))?;
        let own = Packed::new(block, lengths[me])?;
        moved(own.moved());
        let body = Arc::new(pack(scope, block, &own)?);
        self.pass_on(own.shape[1], &body)?;
        drop(body);
        // Whoever calls something else is found out before anything is computed.
        let mut early = Vec::new();
        while !self.round.all_have_come() {
            let (member, letter) = self.round.next(|_| false)?;
            if letter.kind == Kind::Data {
                early.push((member, letter));
            }
        }
        let mut early = early.into_iter();
        visit(me, block)?;
        for hop in 1..size {
            let owner = (me + size - hop) % size;
            let coming = Packed::new(block, lengths[owner])?;
            let last = hop + 1 == size;
            let parts = coming.parts(self.limit);
            let mut whole = if parts > 1 { Some(Bytes::zeroed(coming.bytes)?) } else { None };
            let mut body = None;
            for part in 0..parts {
                let (member, letter) = match early.next() {
                    Some(letter) => letter,
                    None => self.round.next(|member| member == self.previous)?,
                };
                let [number, length, ..] = letter.numbers;
                if member != self.previous || number != self.received {
                    return Err(self.round.unreadable(member, "a message out of turn"));
                }
                self.received += 1;
                check_length(owner, usize::try_from(length).unwrap_or(usize::MAX), lengths)?;
                let start = part * self.limit;
                let expected = (coming.bytes - start).min(self.limit);
                let found = letter.body.as_deref().map_or(0, |body| body.len());
                if found != expected {
                    return Err(Error::Plan(format!(
                        "rank {owner}'s block comes in {found} bytes, where the call says {expected}"
                    )));
                }
                if !last {
                    self.send(length, letter.body.clone())?;
                }
                match (&mut whole, &letter.body) {
                    (Some(whole), Some(body)) => {
                        whole.as_mut_slice()[start..start + found].copy_from_slice(body);
                    }
                    _ => body = letter.body,
                }
            }
            if !last {
                moved(coming.moved());
            }
            let body = match (whole, body) {
                (Some(whole), _) => Arc::new(whole),
                (None, Some(body)) => body,
                (None, None) => Arc::new(Bytes::zeroed(0)?),
            };
            self.round.check()?;
            visit(owner, coming.view(&body))?;
        }
        Ok(())
    }

    /// Sends a block to the next rank, in parts if it is long.
    fn pass_on(&mut self, length: usize, body: &Arc<Bytes>) -> Result<()> {
        if body.len() <= self.limit {
            let body = (!body.is_empty()).then(|| Arc::clone(body));
            return self.send(length as u64, body);
        }
        for part in body.chunks(self.limit) {
            self.send(length as u64, Some(Arc::new(Bytes::copied(part)?)))?;
        }
        Ok(())
    }

    fn send(&mut self, length: u64, body: Option<Arc<Bytes>>) -> Result<()> {
        self.round.data(self.next, [self.sent, length, 0, 0, 0], body)?;
        self.sent += 1;
        Ok(())
    }
}

/// A copy of this rank's block, to be passed on.
fn pack<T: Element>(scope: Scope<'_, Cpu>, block: KeyValue<'_, T, Cpu>, packed: &Packed) -> Result<Bytes> {
    if block.value.shape() != block.key.shape() {
        return Err(Error::Plan(format!(
            "a block of keys {:?} and values {:?}, which must be alike",
            block.key.shape(),
            block.value.shape()
        )));
    }
    let mut body = Bytes::zeroed(packed.bytes)?;
    let base = body.as_mut_slice().as_mut_ptr();
    let copy = |of: View<'_, T, Cpu>, start: usize| StridedCopy {
        source: of.base().as_ptr().cast_const().cast(),
        destination: base.wrapping_add(start),
        item: size_of::<T>(),
        extent: of.shape(),
        source_strides: of.strides(),
        destination_strides: contiguous_strides(packed.shape),
    };
    // SAFETY: both tensors are lent for this call and have the packed shape, of which the body holds two.
    unsafe { Cpu::copy(scope.queue(), &[copy(block.key, 0), copy(block.value, packed.values)]) }?;
    Ok(body)
}
