//! Which ranks are on one host, and who of them reads whose memory.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::cores;
use super::desk::{Layout, NONCE};
use super::memory::{Memory, Open, Place};
use crate::error::Result;

/// Switches shared memory off if it is 0.
const SWITCH: &str = "ATTN_SHARED_MEMORY";

/// What tells hosts, and worlds of processes on them, apart; empty if this process shall share no memory.
pub(in crate::comm::message) fn key() -> Vec<u8> {
    if std::env::var_os(SWITCH).is_some_and(|value| value == "0") {
        return Vec::new();
    }
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id");
    let processes = std::fs::read_link("/proc/self/ns/pid");
    match (boot, processes) {
        (Ok(boot), Ok(processes)) => {
            [boot.trim_ascii(), b" ", processes.as_os_str().as_encoded_bytes()].concat()
        }
        _ => Vec::new(),
    }
}

/// The ranks with which this one shares memory.
pub(super) struct Mates {
    pub(super) layout: Layout,
    /// This rank's place among the ranks of its host.
    pub(super) place: usize,
    pub(super) own: Arc<Memory>,
    /// By place: rank and memory of those with which it is shared.
    pub(super) mates: Vec<Option<(usize, Arc<Memory>)>>,
    /// Whether every rank of the host has a core for itself.
    pub(super) roomy: bool,
}

/// Who shares memory with whom; the same on all ranks, also on those that share none.
#[derive(Debug)]
pub(in crate::comm::message) struct Pairs(Vec<Vec<u8>>);

impl Pairs {
    /// Whether two ranks do: each can read what the other one writes.
    pub(in crate::comm::message) fn share(&self, one: usize, other: usize) -> bool {
        let reads = |one: usize, other: usize| self.0.get(one).is_some_and(|row| row.get(other) == Some(&1));
        reads(one, other) && reads(other, one)
    }
}

/// Finds out who shares memory with whom, and the ranks that can with this one: those with the same key, unless it is empty.
/// `gather` is a collective of the world.
///
/// # Errors
/// If `gather` returns one. What this host cannot give is no error: its ranks go without.
pub(super) fn meet(
    me: usize,
    key: &[u8],
    gather: &mut dyn FnMut(&'static str, &[u8]) -> Result<Vec<Vec<u8>>>,
) -> Result<(Pairs, Option<Mates>)> {
    let keys = gather("hosts", key)?;
    let own_key = keys.get(me).filter(|key| !key.is_empty());
    let ranks: Vec<usize> = (0..keys.len()).filter(|rank| keys.get(*rank) == own_key).collect();
    let layout = Layout::new(ranks.len());
    let made = if ranks.len() < 2 { None } else { make(&layout) };
    let nonce = RandomState::new().build_hasher().finish();
    let record = made.as_ref().map_or_else(Vec::new, |(own, open)| {
        own.number(NONCE).store(nonce, Ordering::Release);
        [&open.place.write()[..], &nonce.to_le_bytes(), cores::own().as_bytes()].concat()
    });
    let records = gather("shared memory", &record)?;
    let opened = |rank: usize| {
        made.as_ref()?;
        let (place, rest) = records.get(rank)?.split_first_chunk::<{ Open::RECORD }>()?;
        let memory = Memory::open(Place::read(place)?).ok()?;
        let found = memory.bytes() == layout.bytes()
            && memory.number(NONCE).load(Ordering::Acquire) == u64::from_le_bytes(*rest.first_chunk()?);
        found.then(|| Arc::new(memory))
    };
    let memories: Vec<Option<Arc<Memory>>> =
        ranks.iter().map(|&rank| opened(rank).filter(|_| rank != me)).collect();
    let lists = ranks.iter().filter_map(|&rank| records.get(rank)?.get(Open::RECORD + size_of::<u64>()..));
    let roomy = cores::together(lists.filter_map(|list| core::str::from_utf8(list).ok())) >= ranks.len();
    let mut row = vec![0; keys.len()];
    for (&rank, memory) in ranks.iter().zip(&memories) {
        row[rank] = u8::from(memory.is_some());
    }
    let pairs = Pairs(gather("who shares memory", &row)?);
    let (Some((own, _)), Some(place)) = (made, ranks.iter().position(|rank| *rank == me)) else {
        return Ok((pairs, None));
    };
    let mates = ranks.iter().zip(memories).map(|(&rank, memory)| match memory {
        Some(memory) if pairs.share(me, rank) => Some((rank, memory)),
        _ => None,
    });
    let mates: Vec<_> = mates.collect();
    Ok((pairs, Some(Mates { layout, place, own: Arc::new(own), mates, roomy })))
}

/// This rank's own memory; none if the system refuses it.
fn make(layout: &Layout) -> Option<(Memory, Open)> {
    match Memory::create(layout.bytes()) {
        Ok(made) => Some(made),
        Err(error) => {
            log::info!(
                "no shared memory of {} bytes for messages ({error}): they go over the link",
                layout.bytes()
            );
            None
        }
    }
}
