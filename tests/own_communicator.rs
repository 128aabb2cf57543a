//! A communicator written outside the crate: ranks that share no memory, only channels of bytes. What MPI or sockets
//! would do: pack boxes, send, receive, unpack. Strategies and kernels run on it unchanged.

mod support;

use std::cell::Cell;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use attn::comm::StridedBox;
use attn::device::cpu::CpuQueue;
use attn::prelude::*;
use attn::{Device, Error, KeyValue, ParallelConfig, Scope, Signature, Traffic, Transfer};
use half::bf16;
use support::{Problem, WithFlash, WithSdpa, attend};

/// One rank's end: a channel to and from each rank.
struct Mailbox {
    rank: usize,
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Receiver<Vec<u8>>>,
    bytes: Cell<u64>,
}

/// The ends of a group.
fn mailboxes(size: usize) -> Vec<Mailbox> {
    let mut ends: Vec<Mailbox> = (0..size)
        .map(|rank| Mailbox { rank, to: Vec::new(), from: Vec::new(), bytes: Cell::new(0) })
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
    fn send(&self, peer: usize, bytes: Vec<u8>) -> attn::Result<()> {
        self.to[peer].send(bytes).map_err(|_| self.gone(peer))
    }

    fn receive(&self, peer: usize) -> attn::Result<Vec<u8>> {
        let bytes = self.from[peer].recv_timeout(Duration::from_secs(20)).map_err(|_| self.gone(peer))?;
        if peer != self.rank {
            self.bytes.set(self.bytes.get() + bytes.len() as u64);
        }
        Ok(bytes)
    }

    fn gone(&self, peer: usize) -> Error {
        Error::RankFailed { rank: peer, message: format!("rank {} finds its channel closed", self.rank) }
    }

    /// Sends what ranks must agree on, and compares what comes.
    fn agree(&self, signature: &Signature) -> attn::Result<()> {
        let mine = signature.to_string();
        (0..self.size()).try_for_each(|peer| self.send(peer, mine.clone().into_bytes()))?;
        for peer in 0..self.size() {
            let theirs = String::from_utf8_lossy(&self.receive(peer)?).into_owned();
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

    fn split(&self, _: usize, _: usize) -> attn::Result<Self> {
        Err(Error::Configuration(String::from("mailboxes do not split")))
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
        block: KeyValue<'_, T, Cpu>,
        mut visit: impl FnMut(usize, KeyValue<'_, T, Cpu>) -> attn::Result<()>,
    ) -> attn::Result<()> {
        self.agree(signature)?;
        let shape = block.key.shape();
        let (next, previous) = ((self.rank + 1) % self.size(), (self.rank + self.size() - 1) % self.size());
        let owned = |view: View<'_, T>| Tensor::from_fn(shape, |index| view.at(index));
        let (mut key, mut value) = (owned(block.key)?, owned(block.value)?);
        for hop in 0..self.size() {
            let last = hop + 1 == self.size();
            if !last {
                // The next hop is under way while this one computes.
                self.send(next, bytemuck::cast_slice(key.as_slice()).to_vec())?;
                self.send(next, bytemuck::cast_slice(value.as_slice()).to_vec())?;
            }
            let owner = (self.rank + self.size() - hop) % self.size();
            visit(owner, KeyValue { key: key.view(), value: value.view() })?;
            if !last {
                key = Tensor::from_slice(&bytemuck::pod_collect_to_vec(&self.receive(previous)?), shape)?;
                value = Tensor::from_slice(&bytemuck::pod_collect_to_vec(&self.receive(previous)?), shape)?;
            }
        }
        Ok(())
    }

    fn traffic(&self) -> Traffic {
        let mut traffic = Traffic::default();
        traffic.bytes = self.bytes.get();
        traffic
    }
}

/// Every rank's output, by mailboxes.
fn by_mail<A: ParallelAttention<Mailbox, bf16>>(strategy: &str, ranks: usize, problem: Problem) -> Vec<bf16> {
    let inputs = &problem.inputs::<bf16>(21);
    let shards: Vec<Tensor<bf16>> = std::thread::scope(|scope| {
        let threads: Vec<_> = mailboxes(ranks)
            .into_iter()
            .map(|comm| {
                scope.spawn(move || {
                    let rank = comm.rank;
                    let mut session =
                        Session::<A, _, bf16>::open_with(comm, &ParallelConfig::strategy(strategy))?;
                    let shard = |tensor: &Tensor<bf16>| {
                        let length = tensor.shape()[1] / ranks;
                        support::relaid(
                            tensor.view().narrow(1, rank * length, length)?,
                            attn::TensorLayout::Bshd,
                        )
                    };
                    let (query, key, value) =
                        (shard(&inputs.query)?, shard(&inputs.key)?, shard(&inputs.value)?);
                    let metadata = AttentionMetadata::default().with_mask(problem.mask);
                    session.attend(&query, &key, &value, &metadata)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect()
    });
    let row = problem.seq_q / ranks * problem.heads * problem.head_dim;
    (0..problem.batch)
        .flat_map(|b| shards.iter().flat_map(move |shard| shard.as_slice()[b * row..(b + 1) * row].to_vec()))
        .collect()
}

#[test]
fn strategies_run_unchanged_on_a_communicator_of_your_own() {
    for problem in [Problem::new(2, 24, 8, 16).kv_heads(2), Problem::new(1, 48, 4, 8).causal()] {
        let inputs = problem.inputs::<bf16>(21);
        for (strategy, ranks) in [("ulysses", 1), ("ulysses", 4), ("ring", 1), ("ring", 3), ("ring", 4)] {
            let threads = attend::<WithFlash, _>(strategy, ranks, &inputs).unwrap();
            assert_eq!(by_mail::<WithFlash>(strategy, ranks, problem), threads.out, "{strategy} on {ranks}");
        }
        let threads = attend::<WithSdpa, _>("ring", 2, &inputs).unwrap();
        assert_eq!(by_mail::<WithSdpa>("ring", 2, problem), threads.out);
    }
}
