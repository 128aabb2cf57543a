//! Which calls ranks have agreed on: the first of each kind and shape is compared, those like it are not.

use core::hash::{Hash, Hasher};
use std::collections::HashMap;
use std::hash::DefaultHasher;

use attn_runtime::comm::{Call, Rendezvous};
use attn_runtime::{Error, Result, Signature};

/// Calls of one session that are alike are told apart by their order, up to so many.
const ALIKE: usize = 64;

/// A kind and shape of call.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    call: Call,
    /// How many calls with the same signature came before it.
    nth: usize,
    /// A number that differs where what this rank moves does.
    moves: u64,
}

/// What ranks know to be the same on all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    /// Whether every rank sends as many bytes to every rank, and can use one function for it.
    pub(super) even: bool,
    /// Whether they have compared it just now.
    pub(super) fresh: bool,
}

/// What a group's ranks have agreed on so far.
#[derive(Default)]
pub(super) struct Known {
    kinds: HashMap<Kind, Agreed>,
    last: Option<Call>,
    nth: usize,
}

/// What one rank says it moves: numbers, the same ones on every rank that agrees, and what concerns each of the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Moves {
    /// Equal on all ranks.
    pub(super) shape: Vec<u64>,
    /// Boxes that go to each rank, and that come from each: item and extent of every one.
    pub(super) boxes: [Vec<Vec<[u64; 5]>>; 2],
    /// Bytes to and from each rank, if they are the same for all; else zero.
    pub(super) even: u64,
}

impl Known {
    /// The number of like calls that came before this one.
    pub(super) fn count(&mut self, call: Call) {
        self.nth = if self.last == Some(call) { (self.nth + 1).min(ALIKE) } else { 0 };
        self.last = Some(call);
    }

    /// What is known of a call, counted before, that moves what `moves` stands for.
    pub(super) fn look_up(&self, call: &Call, moves: u64) -> Option<Agreed> {
        self.kinds.get(&self.kind(call, moves)).copied()
    }

    /// Collective: compares a call and what it moves.
    ///
    /// # Errors
    /// If ranks differ, a rank fails, or the deadline passes.
    pub(super) fn agree(
        &mut self,
        host: &dyn Rendezvous,
        call: &Call,
        digest: u64,
        moves: &Moves,
    ) -> Result<Agreed> {
        host.agree(call)?;
        let records = host.gather("what is moved", &moves.to_bytes())?;
        let ranks: Option<Vec<Moves>> = records.iter().map(|record| Moves::from_bytes(record)).collect();
        let ranks =
            ranks.ok_or_else(|| Error::Plan(String::from("a rank says what it moves in other words")))?;
        compare(&ranks, host.members())?;
        let even = moves.even > 0 && ranks.iter().all(|rank| rank.even == moves.even);
        self.kinds.insert(self.kind(call, digest), Agreed { even, fresh: false });
        Ok(Agreed { even, fresh: true })
    }

    /// Calls that differ only in their number, or in numbers that move nothing, are of one kind.
    fn kind(&self, call: &Call, moves: u64) -> Kind {
        let like = |signature: &Signature| Signature { call: 0, digest: 0, scale_bits: 0, ..*signature };
        let call = match call {
            Call::Exchange(signature, tensors) => Call::Exchange(like(signature), *tensors),
            Call::Rotate(signature) => Call::Rotate(like(signature)),
            other => *other,
        };
        Kind { call, nth: self.nth, moves }
    }
}

/// That what each rank sends is what the other wants, and that their shapes are one. `members` are the ranks' numbers in the
/// world, for the error.
fn compare(ranks: &[Moves], members: &[usize]) -> Result<()> {
    let Some(first) = ranks.first() else { return Ok(()) };
    if let Some(rank) = ranks.iter().position(|rank| rank.shape != first.shape) {
        let (theirs, ours) = (&ranks[rank].shape, &first.shape);
        let [rank, first] = [members[rank], members[0]];
        return Err(Error::Plan(format!(
            "rank {rank}'s blocks have lengths {theirs:?}, rank {first}'s {ours:?}"
        )));
    }
    for (from, sender) in ranks.iter().enumerate() {
        for (to, receiver) in ranks.iter().enumerate() {
            let none = Vec::new();
            let sent = sender.boxes[0].get(to).unwrap_or(&none);
            let wanted = receiver.boxes[1].get(from).unwrap_or(&none);
            for n in 0..sent.len().max(wanted.len()) {
                let (sent, wanted) = (sent.get(n), wanted.get(n));
                if sent != wanted {
                    let extent =
                        |part: Option<&[u64; 5]>| part.map(|part| [part[1], part[2], part[3], part[4]]);
                    let [from, to] = [members[from], members[to]];
                    return Err(Error::Plan(format!(
                        "rank {from} sends {:?} to rank {to}, which expects {:?}",
                        extent(sent),
                        extent(wanted)
                    )));
                }
            }
        }
    }
    Ok(())
}

impl Moves {
    /// Numbers, each list after its length.
    fn to_bytes(&self) -> Vec<u8> {
        let mut numbers = vec![self.even, self.shape.len() as u64];
        numbers.extend(&self.shape);
        for boxes in &self.boxes {
            numbers.push(boxes.len() as u64);
            for part in boxes {
                numbers.push(part.len() as u64);
                numbers.extend(part.iter().flatten());
            }
        }
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut numbers = bytes
            .chunks_exact(8)
            .map(|chunk| chunk.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)));
        let even = numbers.next()?;
        let length = numbers.next()?;
        let shape = (0..length).map(|_| numbers.next()).collect::<Option<_>>()?;
        let mut boxes = [Vec::new(), Vec::new()];
        for boxes in &mut boxes {
            for _ in 0..numbers.next()? {
                let mut part = Vec::new();
                for _ in 0..numbers.next()? {
                    let mut numbers = || numbers.next();
                    part.push([numbers()?, numbers()?, numbers()?, numbers()?, numbers()?]);
                }
                boxes.push(part);
            }
        }
        Some(Self { shape, boxes, even })
    }
}

/// A number for what is moved, for comparing within this process.
pub(super) fn digest(body: impl FnOnce(&mut DefaultHasher)) -> u64 {
    let mut hasher = DefaultHasher::new();
    body(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moves(to: &[u64], from: &[u64]) -> Moves {
        let boxes = |lengths: &[u64]| lengths.iter().map(|length| vec![[2, 1, *length, 1, 8]]).collect();
        Moves { shape: vec![7], boxes: [boxes(to), boxes(from)], even: 3 }
    }

    #[test]
    fn what_is_moved_survives_the_way_over() {
        let moves = moves(&[1, 2, 3], &[]);
        assert_eq!(Moves::from_bytes(&moves.to_bytes()), Some(moves.clone()));
        assert_eq!(Moves::from_bytes(&moves.to_bytes()[..24]), None);
    }

    #[test]
    fn a_box_that_is_not_expected_is_named_with_both_ranks() {
        assert!(compare(&[moves(&[1, 2], &[1, 3]), moves(&[3, 4], &[2, 4])], &[0, 1]).is_ok());
        let said =
            compare(&[moves(&[1, 2], &[1, 3]), moves(&[3, 4], &[5, 4])], &[6, 2]).unwrap_err().to_string();
        assert!(
            said.ends_with("rank 6 sends Some([1, 2, 1, 8]) to rank 2, which expects Some([1, 5, 1, 8])"),
            "{said}"
        );
        let mut other = moves(&[3, 4], &[2, 4]);
        other.shape = vec![8];
        assert!(compare(&[moves(&[1, 2], &[1, 3]), other], &[0, 1]).is_err());
    }
}
