//! A communicator written outside the crate: ranks that share no memory, only channels of bytes. What MPI or sockets
//! would do: pack boxes, send, receive, unpack. Strategies and kernels run on it unchanged.

mod support;

use std::cell::Cell;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use attn::comm::StridedBox;
use attn::device::cpu::CpuQueue;
use attn::prelude::*;
use attn::{Device, Error, KeyValue, Scope, Signature, Traffic, Transfer};
use half::bf16;
use support::{Inputs, Problem, Setup, WithFlash, WithSdpa, on_each};

/// What goes through a channel.
enum Parcel {
    Bytes(Vec<u8>),
    /// The sender's end of a channel of a new group.
    Line(Sender<Parcel>),
}

/// One rank's end: a channel to and from each rank.
struct Mailbox {
    rank: usize,
    to: Vec<Sender<Parcel>>,
    from: Vec<Receiver<Parcel>>,
    traffic: Cell<Traffic>,
}

/// The ends of a group.
fn mailboxes(size: usize) -> Vec<Mailbox> {
    let mut ends: Vec<Mailbox> = (0..size)
        .map(|rank| Mailbox { rank, to: Vec::new(), from: Vec::new(), traffic: Cell::default() })
        .collect();
    for sender in 0..size {
        for receiver in 0..size {
            let (to, from) = channel();
            ends[sender].to.push(to);
            ends[receiver].from.push(from);
        }
    }
    ends
}

/// The same box, dense, over bytes of its own.
fn packed(part: &StridedBox, bytes: &mut [u8]) -> StridedBox {
    let [_, b, c, d] = part.extent;
    assert_eq!(bytes.len(), part.item * part.extent.iter().product::<usize>());
    StridedBox { base: bytes.as_mut_ptr(), strides: [b * c * d, c * d, d, 1], ..*part }
}

fn size_of_box(part: &StridedBox) -> usize {
    part.item * part.extent.iter().product::<usize>()
}

impl Mailbox {
    fn post(&self, peer: usize, parcel: Parcel) -> attn::Result<()> {
        self.to[peer].send(parcel).map_err(|_| self.gone(peer))
    }

    fn fetch(&self, peer: usize) -> attn::Result<Parcel> {
        self.from[peer].recv_timeout(Duration::from_secs(20)).map_err(|_| self.gone(peer))
    }

    fn receive(&self, peer: usize) -> attn::Result<Vec<u8>> {
        match self.fetch(peer)? {
            Parcel::Bytes(bytes) => Ok(bytes),
            Parcel::Line(_) => Err(self.gone(peer)),
        }
    }

    /// Sends part of a tensor: what counts as traffic.
    fn send(&self, peer: usize, bytes: Vec<u8>) -> attn::Result<()> {
        if peer != self.rank {
            let mut traffic = self.traffic.get();
            traffic.sent += bytes.len() as u64;
            self.traffic.set(traffic);
        }
        self.post(peer, Parcel::Bytes(bytes))
    }

    fn gone(&self, peer: usize) -> Error {
        Error::RankFailed { rank: peer, message: format!("rank {} finds its channel closed", self.rank) }
    }

    /// Tells every rank something, and learns what each says.
    fn tell(&self, words: &str) -> attn::Result<Vec<String>> {
        let mut traffic = self.traffic.get();
        traffic.collectives += 1;
        self.traffic.set(traffic);
        (0..self.size()).try_for_each(|peer| self.post(peer, Parcel::Bytes(words.into())))?;
        (0..self.size()).map(|peer| Ok(String::from_utf8_lossy(&self.receive(peer)?).into_owned())).collect()
    }

    /// Compares what ranks must agree on.
    fn agree(&self, signature: &Signature) -> attn::Result<()> {
        let mine = signature.to_string();
        for (peer, theirs) in self.tell(&mine)?.into_iter().enumerate() {
            if theirs != mine {
                let others = format!("rank {}", self.rank);
                return Err(Error::RanksDisagree { rank: peer, theirs, others, expected: mine });
            }
        }
        Ok(())
    }
}

impl Communicator for Mailbox {
    type Device = Cpu;

    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.to.len()
    }

    fn queue(&self) -> attn::Result<CpuQueue> {
        CpuQueue::new(1)
    }

    fn split(&self, color: usize, key: usize) -> attn::Result<Self> {
        let mut members: Vec<(usize, usize)> = Vec::new();
        for (peer, said) in self.tell(&format!("split {color} {key}"))?.iter().enumerate() {
            let numbers: Option<Vec<usize>> =
                said.strip_prefix("split ").map(|said| said.split(' ').flat_map(str::parse).collect());
            match numbers.as_deref() {
                Some(&[its_color, its_key]) if its_color == color => members.push((its_key, peer)),
                Some(_) => {}
                None => return Err(self.gone(peer)),
            }
        }
        members.sort_unstable();
        let mut group = Self {
            rank: members.iter().filter(|member| **member < (key, self.rank)).count(),
            to: Vec::new(),
            from: Vec::new(),
            traffic: Cell::default(),
        };
        // Each member makes the channels that it will receive from, and hands out their other ends.
        for &(_, peer) in &members {
            let (to, from) = channel();
            group.from.push(from);
            self.post(peer, Parcel::Line(to))?;
        }
        for &(_, peer) in &members {
            match self.fetch(peer)? {
                Parcel::Line(to) => group.to.push(to),
                Parcel::Bytes(_) => return Err(self.gone(peer)),
            }
        }
        Ok(group)
    }

    fn exchange(
        &self,
        scope: Scope<'_, Cpu>,
        signature: &Signature,
        transfers: &mut [Transfer<'_, Cpu>],
    ) -> attn::Result<()> {
        self.agree(signature)?;
        for transfer in transfers {
            transfer.check_peers(self.size())?;
            for peer in 0..self.size() {
                for part in transfer.outgoing(peer) {
                    let mut bytes = vec![0; size_of_box(&part)];
                    // SAFETY: the box lies in the transfer's source, which is lent for this call; the bytes are ours.
                    unsafe { Cpu::copy(scope.queue(), &[part.copy_to(&packed(&part, &mut bytes))])? };
                    self.send(peer, bytes)?;
                }
            }
            for peer in 0..self.size() {
                for part in transfer.incoming(peer) {
                    let mut bytes = self.receive(peer)?;
                    // SAFETY: the box lies in the transfer's destination, lent exclusively; the bytes are ours.
                    unsafe { Cpu::copy(scope.queue(), &[packed(&part, &mut bytes).copy_to(&part)])? };
                }
            }
        }
        Ok(())
    }

    fn rotate<T: Element>(
        &self,
        _: Scope<'_, Cpu>,
        signature: &Signature,
        lengths: &[usize],
        block: KeyValue<'_, T, Cpu>,
        mut visit: impl FnMut(usize, KeyValue<'_, T, Cpu>) -> attn::Result<()>,
    ) -> attn::Result<()> {
        self.agree(signature)?;
        let [batch, _, heads, head_dim] = block.key.shape();
        let shape = |owner: usize| [batch, lengths[owner], heads, head_dim];
        let (next, previous) = ((self.rank + 1) % self.size(), (self.rank + self.size() - 1) % self.size());
        let owned = |view: View<'_, T>| Tensor::from_fn(shape(self.rank), |index| view.at(index));
        let (mut key, mut value) = (owned(block.key)?, owned(block.value)?);
        for hop in 0..self.size() {
            let last = hop + 1 == self.size();
            if !last {
                // The next hop is under way while this one computes.
                self.send(next, bytemuck::cast_slice(key.as_slice()).to_vec())?;
                self.send(next, bytemuck::cast_slice(value.as_slice()).to_vec())?;
            }
            let owner = |hop: usize| (self.rank + self.size() - hop) % self.size();
            visit(owner(hop), KeyValue { key: key.view(), value: value.view() })?;
            if !last {
                let coming = shape(owner(hop + 1));
                key = Tensor::from_slice(&bytemuck::pod_collect_to_vec(&self.receive(previous)?), coming)?;
                value = Tensor::from_slice(&bytemuck::pod_collect_to_vec(&self.receive(previous)?), coming)?;
            }
        }
        Ok(())
    }

    fn traffic(&self) -> Traffic {
        self.traffic.get()
    }
}

#[track_caller]
fn check<A>(setup: Setup, inputs: &Inputs<bf16>)
where
    A: ParallelAttention<Mailbox, bf16> + ParallelAttention<attn::ThreadComm, bf16>,
{
    let threads = World::threads(setup.ranks()).threads_per_rank(1).communicators().unwrap();
    let (by_threads, their_traffic) = on_each::<A, _>(threads, setup, inputs);
    let (by_mail, traffic) = on_each::<A, _>(mailboxes(setup.ranks()), setup, inputs);
    assert_eq!(by_mail.bits(), by_threads.bits(), "{setup}, {:?}", inputs.problem);
    assert_eq!(traffic, their_traffic, "{setup}, {:?}", inputs.problem);
}

#[test]
fn strategies_run_unchanged_on_a_communicator_of_your_own() {
    for problem in [
        Problem::new(2, 24, 8, 16).kv_heads(2),
        Problem::new(1, 48, 4, 8).causal(),
        Problem::new(1, 24, 4, 8).joint(3, JointStrategy::Rear).key_lengths().dense(true),
        Problem::new(2, 24, 4, 8).seq_k(7).replicated_keys().window(4, 1).segments(),
    ] {
        let inputs = problem.inputs::<bf16>(21);
        for setup in Setup::SAMPLE {
            check::<WithFlash>(setup, &inputs);
        }
        check::<WithSdpa>(Setup::ring(2), &inputs);
    }
}

#[test]
fn uneven_shares_go_by_mail_too() {
    for problem in [Problem::new(2, 5, 3, 8), Problem::new(1, 23, 6, 8).kv_heads(3).causal().seq_k(3)] {
        let inputs = problem.inputs::<bf16>(22);
        for setup in Setup::SAMPLE.into_iter().filter(|setup| *setup != Setup::NONE) {
            check::<WithFlash>(setup.uneven(), &inputs);
        }
    }
}
