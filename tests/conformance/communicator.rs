//! A communicator round another: it writes down what is asked of it, and may show a ring's blocks in another order.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use attn::device::cpu::CpuQueue;
use attn::prelude::*;
use attn::tensor::contiguous_strides;
use attn::{KeyValue, Scope, Signature, ThreadComm, Traffic, Transfer};

use crate::support::Random;

/// A collective that a session called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Split {
        color: usize,
        key: usize,
    },
    Exchange {
        stage: &'static str,
        tensors: usize,
        /// The ranks that this one sends something to, itself included.
        peers: Vec<usize>,
        /// For each tensor, whether all that goes to others could be sent from where it is: each box is one run of memory.
        runs: Vec<bool>,
    },
    Rotate,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Split { .. } => f.write_str("split"),
            Self::Exchange { stage, tensors, .. } => write!(f, "{stage} of {tensors}"),
            Self::Rotate => f.write_str("rotate"),
        }
    }
}

/// What the ranks of a world called, each in its own order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<Vec<Event>>>>);

impl Log {
    fn add(&self, rank: usize, event: Event) {
        let mut ranks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let needed = ranks.len().max(rank + 1);
        ranks.resize(needed, Vec::new());
        ranks[rank].push(event);
    }

    /// Each rank's calls.
    pub(crate) fn by_rank(&self) -> Vec<Vec<Event>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One rank's end.
pub(crate) struct Witness {
    inner: ThreadComm,
    /// The rank's number in the world.
    rank: usize,
    log: Log,
    /// The seed of the order in which a ring's blocks are shown; if absent, it is the ring's own.
    order: Option<u64>,
}

impl Witness {
    pub(crate) fn new(inner: ThreadComm, log: &Log) -> Self {
        let rank = inner.rank();
        Self { inner, rank, log: log.clone(), order: None }
    }

    /// Shows the blocks of a ring in an order that is as good as any.
    pub(crate) fn shuffled(inner: ThreadComm, seed: u64) -> Self {
        let order = Some(seed ^ (inner.rank() as u64) << 32);
        Self { order, ..Self::new(inner, &Log::default()) }
    }
}

impl Communicator for Witness {
    type Device = Cpu;

    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn queue(&self) -> attn::Result<CpuQueue> {
        self.inner.queue()
    }

    fn split(&self, color: usize, key: usize) -> attn::Result<Self> {
        self.log.add(self.rank, Event::Split { color, key });
        let inner = self.inner.split(color, key)?;
        Ok(Self { inner, rank: self.rank, log: self.log.clone(), order: self.order })
    }

    fn exchange(
        &self,
        scope: Scope<'_, Cpu>,
        signature: &Signature,
        transfers: &mut [Transfer<'_, Cpu>],
    ) -> attn::Result<()> {
        let something = |peer: usize, transfer: &Transfer<'_, Cpu>| {
            transfer.outgoing(peer).any(|part| !part.extent.contains(&0))
        };
        let peers = 0..self.size();
        let peers =
            peers.filter(|&peer| transfers.iter().any(|transfer| something(peer, transfer))).collect();
        let is_run = |part: attn::comm::StridedBox| {
            let dense = contiguous_strides(part.extent);
            (0..4).all(|axis| part.extent[axis] <= 1 || part.strides[axis] == dense[axis])
        };
        let others = || (0..self.size()).filter(|&peer| peer != self.rank());
        let all_runs =
            |transfer: &Transfer<'_, Cpu>| others().all(|peer| transfer.outgoing(peer).all(is_run));
        let runs = transfers.iter().map(all_runs).collect();
        let stage = signature.stage;
        self.log.add(self.rank, Event::Exchange { stage, tensors: transfers.len(), peers, runs });
        self.inner.exchange(scope, signature, transfers)
    }

    fn rotate<T: Element>(
        &self,
        scope: Scope<'_, Cpu>,
        signature: &Signature,
        lengths: &[usize],
        block: KeyValue<'_, T, Cpu>,
        mut visit: impl FnMut(usize, KeyValue<'_, T, Cpu>) -> attn::Result<()>,
    ) -> attn::Result<()> {
        self.log.add(self.rank, Event::Rotate);
        let Some(seed) = self.order else {
            return self.inner.rotate(scope, signature, lengths, block, visit);
        };
        let mut blocks = Vec::new();
        self.inner.rotate(scope, signature, lengths, block, |owner, block| {
            let copy = |view: View<'_, T>| Tensor::from_fn(view.shape(), |index| view.at(index));
            blocks.push((owner, copy(block.key)?, copy(block.value)?));
            Ok(())
        })?;
        let mut random = Random(seed);
        while !blocks.is_empty() {
            let (owner, key, value) = blocks.swap_remove(random.below(blocks.len()));
            visit(owner, KeyValue { key: key.view(), value: value.view() })?;
        }
        Ok(())
    }

    fn traffic(&self) -> Traffic {
        self.inner.traffic()
    }
}
