//! A collective under way: every rank tells every other one of its group what it calls, before or with what it moves.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::note::{Kind, Note};
use super::shared::Windows;
use super::world::{Letter, Parcel, Wait, World, unreadable};
use super::{Bytes, Link};
use crate::comm::Call;
use crate::error::{Error, Result};

/// How long ranks that differ wait for each other's words, if the deadline is not shorter.
pub(super) const QUARREL: Duration = Duration::from_secs(2);

/// Longer than any wait: what can be added to any time.
const FOREVER: Duration = Duration::from_secs(1 << 30);

/// Who belongs to a group, as one of its ranks sees it.
#[derive(Debug)]
pub(super) struct Group {
    /// The same on all its ranks. No other group of the world has it, but for one case in 2^64.
    pub(super) number: u64,
    /// The members' numbers in the world, by their number here.
    pub(super) members: Vec<usize>,
    /// This rank's number here.
    pub(super) me: usize,
}

/// One collective of a group, while this rank is in it.
pub(super) struct Round<'g, L: Link> {
    pub(super) world: &'g World<L>,
    pub(super) group: &'g Group,
    call: Call,
    sequence: u64,
    /// The fingerprints of the members' calls; none until they have come.
    calls: Vec<Option<u64>>,
    /// For how long this rank has waited since it last got on.
    waited: Cell<Duration>,
}

impl<'g, L: Link> Round<'g, L> {
    /// Begins a collective.
    ///
    /// # Errors
    /// If the world has failed or a rank was lost.
    pub(super) fn begin(world: &'g World<L>, group: &'g Group, call: Call, sequence: u64) -> Result<Self> {
        let mut calls = vec![None; group.members.len()];
        calls[group.me] = Some(call.fingerprint());
        let round = Self { world, group, call, sequence, calls, waited: Cell::new(Duration::ZERO) };
        round.world.begin(&round.wait(Duration::ZERO, &Vec::new, &[]))?;
        Ok(round)
    }

    pub(super) fn me(&self) -> usize {
        self.group.me
    }

    /// A member's number in the world, by which errors name it.
    pub(super) fn number(&self, member: usize) -> usize {
        self.group.members[member]
    }

    /// The collective's number in its group, from 1.
    pub(super) const fn sequence(&self) -> u64 {
        self.sequence
    }

    pub(super) fn size(&self) -> usize {
        self.group.members.len()
    }

    /// The other members, from the next one on, so that not all send to the same one at once.
    pub(super) fn others(&self) -> impl Iterator<Item = usize> + use<L> {
        let (me, size) = (self.me(), self.size());
        (1..size).map(move |hop| (me + hop) % size)
    }

    /// Tells a member what this rank calls, once, with what the collective wants to say at once.
    pub(super) fn call(&self, member: usize, [a, b, c, d]: [u64; 4], body: Option<Arc<Bytes>>) -> Result<()> {
        self.send(member, Kind::Call, [self.call.fingerprint(), a, b, c, d], body)
    }

    /// Sends a member part of what the collective moves. The first number counts.
    pub(super) fn data(&self, member: usize, numbers: [u64; 5], body: Option<Arc<Bytes>>) -> Result<()> {
        self.send(member, Kind::Data, numbers, body)
    }

    /// Says that what a member shows has been mapped.
    pub(super) fn mapped(&self, member: usize) -> Result<()> {
        self.send(member, Kind::Mapped, [0; 5], None)
    }

    /// Answers a member's data, so that it may send more.
    pub(super) fn taken(&self, member: usize) -> Result<()> {
        self.send(member, Kind::Taken, [0; 5], None)
    }

    /// Whether two members share memory.
    pub(super) fn share(&self, one: usize, other: usize) -> bool {
        let [one, other] = [one, other].map(|member| self.group.members[member]);
        self.world.pairs().is_some_and(|pairs| pairs.share(one, other))
    }

    /// Scratch memory that members of this host reach; none where no memory is shared.
    pub(super) fn windows(&self) -> Option<&Arc<Windows>> {
        self.world.windows()
    }

    /// Whether messages to a member go through shared memory.
    pub(super) fn reaches(&self, member: usize) -> bool {
        self.world.reaches(self.group.members[member])
    }

    /// Whether a message to a member would go out now.
    pub(super) fn has_room(&self, member: usize) -> bool {
        self.world.has_room(self.group.members[member])
    }

    /// Memory for a body of so many bytes to a member.
    pub(super) fn parcel(&self, member: usize, length: usize) -> Result<Parcel> {
        self.world.parcel(self.group.members[member], length)
    }

    /// As [`call`](Self::call), with a parcel.
    pub(super) fn call_with(&self, member: usize, [a, b, c, d]: [u64; 4], parcel: Parcel) -> Result<()> {
        let note = self.note(Kind::Call, [self.call.fingerprint(), a, b, c, d]);
        self.world.post(self.group.members[member], &note, parcel)
    }

    /// As [`data`](Self::data), with a parcel.
    pub(super) fn data_with(&self, member: usize, numbers: [u64; 5], parcel: Parcel) -> Result<()> {
        self.world.post(self.group.members[member], &self.note(Kind::Data, numbers), parcel)
    }

    /// Gives back what a letter has brought.
    pub(super) fn done(&self, letter: Letter) -> Result<()> {
        self.world.done(letter)
    }

    fn send(&self, member: usize, kind: Kind, numbers: [u64; 5], body: Option<Arc<Bytes>>) -> Result<()> {
        self.world.send(self.group.members[member], &self.note(kind, numbers), body)
    }

    const fn note(&self, kind: Kind, numbers: [u64; 5]) -> Note {
        Note { kind, group: self.group.number, sequence: self.sequence, numbers }
    }

    /// A letter of this collective, if one has come, and the member that sent it.
    pub(super) fn poll(&mut self) -> Result<Option<(usize, Letter)>> {
        match self.world.poll((self.group.number, self.sequence))? {
            Some(letter) => self.admit(letter).map(Some),
            None => Ok(None),
        }
    }

    /// The next letter of this collective and the member that sent it: its call, or data. `pending` says of members
    /// whose calls have come whether more is needed of them.
    ///
    /// # Errors
    /// If ranks call differently, the world fails, a rank is lost, a needed one has left, or the deadline passes.
    pub(super) fn next(&mut self, pending: impl Fn(usize) -> bool) -> Result<(usize, Letter)> {
        loop {
            if let Some(letter) = self.next_or_room(&pending, &[])? {
                return Ok(letter);
            }
        }
    }

    /// As [`next`](Self::next); none as soon as there is room for a message to one of the `unsent` members.
    pub(super) fn next_or_room(
        &mut self,
        pending: impl Fn(usize) -> bool,
        unsent: &[usize],
    ) -> Result<Option<(usize, Letter)>> {
        let started = Instant::now();
        let left = self.world.deadline.saturating_sub(self.waited.get());
        let needed = || self.missing(|member| pending(member) || unsent.contains(&member));
        let ranks: Vec<usize> = unsent.iter().map(|member| self.group.members[*member]).collect();
        let letter = self.world.next(&self.wait(left, &needed, &ranks))?;
        self.waited.set(match &letter {
            // Who has come is waited for from the beginning on; what is moved, from piece to piece.
            Some(Letter { kind: Kind::Call | Kind::Words, .. }) => self.waited.get() + started.elapsed(),
            _ => Duration::ZERO,
        });
        letter.map(|letter| self.admit(letter)).transpose()
    }

    /// Whether the world is well, as far as is known without waiting: for who has something to do that takes long.
    ///
    /// # Errors
    /// If it is not.
    pub(super) fn check(&self) -> Result<()> {
        self.world.check(&self.wait(Duration::ZERO, &Vec::new, &[]))
    }

    /// Makes an error the world's, unless it has one.
    pub(super) fn fail(&self, error: &Error) {
        self.world.fail(error);
    }

    /// The failure from which an error follows, if one is told soon, or else the error.
    pub(super) fn explained(&self, error: Error) -> Error {
        let until = Instant::now() + self.patience();
        while Instant::now() < until {
            if let Err(failure) = self.check() {
                return failure;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        error
    }

    /// How long this rank waits to learn more of what has gone wrong.
    fn patience(&self) -> Duration {
        QUARREL.min(self.world.deadline)
    }

    /// The failure that follows from a member's having stopped to wait for this rank, or the one that made it stop.
    pub(super) fn left(&self, member: usize) -> Error {
        self.lost(member, "it has left the collective before its tensors were read")
    }

    /// The failure of another collective of this rank which has taken back memory that this one was using.
    pub(super) fn withdrawn(&self) -> Error {
        self.lost(self.me(), "its scratch memory was taken back by another collective, which failed")
    }

    fn lost(&self, member: usize, why: &str) -> Error {
        self.explained(Error::RankLost {
            rank: self.number(member),
            operation: self.call.to_string(),
            sequence: self.sequence,
            why: why.to_owned(),
        })
    }

    /// Whether a member has come.
    pub(super) fn has_come(&self, member: usize) -> bool {
        self.calls[member].is_some()
    }

    /// Whether all have come.
    pub(super) fn all_have_come(&self) -> bool {
        self.calls.iter().all(Option::is_some)
    }

    /// Waits until all have come, and hands on what they say with their calls.
    pub(super) fn meet(&mut self, mut said: impl FnMut(usize, &Letter) -> Result<()>) -> Result<()> {
        while !self.all_have_come() {
            let (member, letter) = self.next(|_| false)?;
            if letter.kind != Kind::Call {
                return Err(self.unreadable(member, "a message"));
            }
            said(member, &letter)?;
            self.done(letter)?;
        }
        Ok(())
    }

    /// The error for a member that sends what cannot be read.
    pub(super) fn unreadable(&self, member: usize, what: &str) -> Error {
        unreadable(self.group.members[member], &format!("{what} of {}", self.call))
    }

    /// The members, numbered in the world, that have not come or of whom more is needed.
    fn missing(&self, pending: impl Fn(usize) -> bool) -> Vec<usize> {
        let members = self.others().filter(|&member| !self.has_come(member) || pending(member));
        let mut missing: Vec<usize> = members.map(|member| self.group.members[member]).collect();
        missing.sort_unstable();
        missing
    }

    fn wait<'w>(
        &'w self,
        left: Duration,
        needed: &'w dyn Fn() -> Vec<usize>,
        unsent: &'w [usize],
    ) -> Wait<'w> {
        Wait {
            collective: (self.group.number, self.sequence),
            call: &self.call,
            until: Instant::now() + left.min(FOREVER),
            needed,
            unsent,
        }
    }

    /// Looks whether a letter's sender makes the same call.
    fn admit(&mut self, letter: Letter) -> Result<(usize, Letter)> {
        let Some(member) = self.group.members.iter().position(|member| *member == letter.from) else {
            return Err(unreadable(letter.from, "a message to a group to which it does not belong,"));
        };
        match letter.kind {
            Kind::Call => {
                let theirs = letter.numbers[0];
                if self.calls[member].replace(theirs).is_some() {
                    return Err(self.unreadable(member, "a second call"));
                }
                if theirs != self.call.fingerprint() {
                    // Given back first: its sender shows nothing more, its words either, before this has been taken.
                    self.done(letter)?;
                    return Err(self.quarrel(None));
                }
            }
            Kind::Words => return Err(self.quarrel(Some((member, letter)))),
            _ if !self.has_come(member) => return Err(self.unreadable(member, "a message")),
            _ => {}
        }
        Ok((member, letter))
    }

    /// Tells all members the words of this rank's call, hears theirs, and says who differs.
    fn quarrel(&mut self, heard: Option<(usize, Letter)>) -> Error {
        let mut words: Vec<Option<String>> = vec![None; self.size()];
        words[self.me()] = Some(self.call.to_string());
        let told = Bytes::copied(self.call.to_string().as_bytes()).map(Arc::new).and_then(|body| {
            self.others().try_for_each(|member| {
                self.send(member, Kind::Words, [self.call.fingerprint(), 0, 0, 0, 0], Some(Arc::clone(&body)))
            })
        });
        if let Err(error) = told {
            return error;
        }
        let mut hear = |calls: &mut [Option<u64>], member: usize, letter: &Letter| {
            let text = letter.body.bytes();
            calls[member] = Some(letter.numbers[0]);
            if letter.kind == Kind::Words {
                words[member] = Some(String::from_utf8_lossy(text).into_owned());
            }
            words.iter().all(Option::is_some)
        };
        let mut complete = heard.is_some_and(|(member, letter)| hear(&mut self.calls, member, &letter));
        let until = Instant::now() + self.patience();
        while !complete {
            let left = until.saturating_duration_since(Instant::now());
            let letter = match self.world.next(&self.wait(left, &Vec::new, &[])) {
                Ok(Some(letter)) => letter,
                Ok(None) => continue,
                // Who has not come by now is not heard.
                Err(Error::Deadline { .. }) => break,
                Err(error) => return error,
            };
            let member = self.group.members.iter().position(|member| *member == letter.from);
            if let (Some(member), Kind::Call | Kind::Words) = (member, letter.kind) {
                complete = hear(&mut self.calls, member, &letter);
            }
            if let Err(error) = self.done(letter) {
                return error;
            }
        }
        self.verdict(&words)
    }

    /// Who differs, by the words of those who were heard.
    fn verdict(&self, words: &[Option<String>]) -> Error {
        let heard = |member: &usize| self.calls[*member].is_some();
        let members: Vec<usize> = (0..self.size()).filter(heard).collect();
        let numbers: Vec<usize> = members.iter().map(|member| self.group.members[*member]).collect();
        let number = |member: usize| format!("fingerprint {:016x}", self.calls[member].unwrap_or_default());
        let plain = members.iter().map(|&member| match &words[member] {
            Some(words) => words.clone(),
            None => format!("something else ({})", number(member)),
        });
        let plain: Vec<String> = plain.collect();
        if let Err(error) = Call::agree(&numbers, || plain.iter()) {
            return error;
        }
        // They differ in what words do not say.
        let full = members.iter().zip(&plain).map(|(&member, words)| format!("{words} ({})", number(member)));
        let full: Vec<String> = full.collect();
        match Call::agree(&numbers, || full.iter()) {
            Err(error) => error,
            Ok(()) => self.unreadable(members[0], "a quarrel over nothing"),
        }
    }
}
