//! What no peer may do to a rank, and what only shows from the inside.

mod ahead;
mod direct;
mod places;

use std::sync::Arc;
use std::time::{Duration, Instant};

use attn_plan::{Mask, Sharding};
use proptest::prelude::*;

use super::note::{Kind, Note};
use super::round::QUARREL;
use super::{Bytes, ChannelLink, Event, Head, Link, MessageComm};
use crate::comm::{Call, Communicator, ExchangePlan, Rendezvous, Signature, Transfer};
use crate::device::cpu::CpuQueue;
use crate::device::{Arena, Cpu};
use crate::error::{Error, Result};
use crate::metadata::{JointStrategy, KeyPlacement};
use crate::tensor::{DType, KeyValue, Tensor};

type Comm<L = ChannelLink> = MessageComm<L>;

const SIGNATURE: Signature = Signature {
    strategy: "test",
    stage: "test",
    call: 0,
    dtype: DType::F32,
    query: [0; 4],
    key: [0; 4],
    keys: KeyPlacement::Sharded,
    joint: (0, JointStrategy::Front),
    sharding: Sharding::ONE,
    mask: Mask::NONE,
    digest: 0,
    scale_bits: 0,
    edges: 0,
    lse: false,
};

/// Runs `body` on every rank of a world, and returns what each of them got.
fn world<R: Send>(
    ranks: usize,
    open: fn(ChannelLink, CpuQueue, Duration) -> Result<Comm>,
    body: impl Fn(&Comm) -> Result<R> + Sync,
) -> Vec<Result<R>> {
    std::thread::scope(|scope| {
        let body = &body;
        let ranks: Vec<_> = ChannelLink::world(ranks)
            .into_iter()
            .map(|link| {
                scope.spawn(move || {
                    open(link, CpuQueue::new(1)?, Duration::from_secs(20))?.run(|comm| body(&comm))
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Shows a block of as many positions as `lengths` says, and checks those that are seen.
fn turn<L: Link>(comm: &Comm<L>, lengths: &[usize]) -> Result<()> {
    turn_with(comm, lengths, || ())
}

/// As [`turn`], with something to do at each block.
fn turn_with<L: Link>(comm: &Comm<L>, lengths: &[usize], mut work: impl FnMut()) -> Result<()> {
    let number = |owner: usize, seq: usize, d: usize| (owner * 10_000 + seq * 10 + d) as f32;
    let me = comm.rank();
    let key = Tensor::from_fn([1, lengths[me], 2, 5], |[_, seq, head, d]| number(me, seq, d + head * 5))?;
    let value = Tensor::from_fn([1, lengths[me], 2, 5], |[_, seq, head, d]| -number(me, seq, d + head * 5))?;
    let block = KeyValue { key: key.view(), value: value.view() };
    let mut arena = Arena::<Cpu>::default();
    let queue = comm.queue()?;
    let mut seen = Vec::new();
    comm.rotate(arena.open(&queue)?, &SIGNATURE, lengths, block, |owner, block| {
        assert_eq!(block.key.shape(), [1, lengths[owner], 2, 5]);
        for seq in 0..lengths[owner] {
            for (head, d) in (0..10).map(|n| (n / 5, n % 5)) {
                assert_eq!(block.key.at([0, seq, head, d]), number(owner, seq, d + head * 5));
                assert_eq!(block.value.at([0, seq, head, d]), -number(owner, seq, d + head * 5));
            }
        }
        seen.push(owner);
        work();
        Ok(())
    })?;
    let size = comm.size();
    assert_eq!(seen, (0..size).map(|hop| (me + size - hop) % size).collect::<Vec<_>>());
    Ok(())
}

/// An exchange of `seq` positions from each rank to each.
fn all_to_all<L: Link>(comm: &Comm<L>, signature: &Signature, seq: usize) -> Result<()> {
    let size = comm.size();
    let mut plan = ExchangePlan::default();
    for peer in 0..size {
        plan.send(peer, [0, 0, peer, 0], [1, seq, 1, 3]);
        plan.receive(peer, [0, seq * peer, 0, 0], [1, seq, 1, 3]);
    }
    let from = Tensor::from_fn([1, seq, size, 3], |[_, n, head, d]| (n * 100 + head * 10 + d) as f32)?;
    let mut to = Tensor::from_fn([1, seq * size, 1, 3], |_| -1.0)?;
    let mut arena = Arena::<Cpu>::default();
    let queue = comm.queue()?;
    let transfer = Transfer::new(&plan, from.view(), to.view_mut())?;
    comm.exchange(arena.open(&queue)?, signature, &mut [transfer])?;
    for (n, d) in (0..seq * size).flat_map(|n| [0, 1, 2].map(|d| (n, d))) {
        assert_eq!(to.view().at([0, n, 0, d]), (n % seq * 100 + comm.rank() * 10 + d) as f32);
    }
    Ok(())
}

#[test]
fn long_blocks_are_put_together_from_their_parts() {
    for open in [Comm::by_link, Comm::new] {
        for lengths in [&[100, 7, 0][..], &[0, 0, 31], &[1, 500, 60, 26]] {
            let outcomes = world(lengths.len(), open, |comm| {
                // In two buffers by turns, which grow, and are used again.
                let shorter: Vec<usize> = lengths.iter().map(|length| length / 2).collect();
                for lengths in [&shorter, lengths, lengths, &shorter, lengths] {
                    turn(comm, lengths)?;
                }
                Ok(())
            });
            assert_eq!(outcomes, vec![Ok(()); lengths.len()]);
        }
    }
}

#[test]
fn blocks_and_boxes_find_their_way_over_any_hosts() {
    for keys in [
        &["c", "a", "b", "a"][..],
        &["a", "b", "a", "b"],
        &["a", "a", "b"],
        &["a", "", "a"],
        &["", "a", "a", "", "a"],
        &["a", "a", "b", "b", "a", "c"],
        &["", ""],
    ] {
        let outcomes: Vec<Result<()>> = std::thread::scope(|scope| {
            let ranks: Vec<_> = ChannelLink::world(keys.len())
                .into_iter()
                .zip(keys)
                .map(|(link, key)| scope.spawn(|| on_host(link, key)))
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        assert_eq!(outcomes, vec![Ok(()); keys.len()], "{keys:?}");
    }
}

/// Rings and exchanges on a rank of some host, in its world and in groups that leave ranks out or turn them round.
fn on_host(link: ChannelLink, key: &str) -> Result<()> {
    let comm = Comm::on_host(link, CpuQueue::new(1)?, Duration::from_secs(20), key.as_bytes())?;
    comm.run(|comm| {
        let me = comm.rank();
        for group in
            [comm.clone(), comm.split(me % 2, me)?, comm.split(usize::from(me > 0), comm.size() - me)?]
        {
            for length in [3, 3, 60, 0, 7] {
                turn(&group, &vec![length; group.size()])?;
                turn(&group, &(0..group.size()).map(|rank| length * rank).collect::<Vec<_>>())?;
                all_to_all(&group, &SIGNATURE, length)?;
            }
            all_to_all(&group, &SIGNATURE, 20_000)?;
        }
        Ok(())
    })
}

#[test]
fn ranks_that_differ_in_what_words_do_not_say_are_told_by_numbers() {
    let outcomes = world(3, Comm::by_link, |comm| {
        let digest = u64::from(comm.me() == 1);
        comm.agree(&Call::Rotate(Signature { digest, ..SIGNATURE }))
    });
    for outcome in &outcomes {
        assert_eq!(outcome, &outcomes[0]);
        let error = outcome.clone().unwrap_err().to_string();
        assert!(
            error.starts_with("rank 1 differs from its group: it called rotate (test test of call 0"),
            "{error}"
        );
        assert!(error.contains("(fingerprint ") && error.contains("ranks 0, 2 called"), "{error}");
    }
}

#[test]
fn ranks_that_differ_do_not_quarrel_beyond_the_deadline() {
    let mut links = ChannelLink::world(3);
    // It neither comes nor goes.
    let _silent = links.pop();
    let started = Instant::now();
    let outcomes: Vec<Result<()>> = std::thread::scope(|scope| {
        let rank = |link| {
            let comm = Comm::by_link(link, CpuQueue::new(1)?, Duration::from_millis(500))?;
            comm.run(|comm| comm.agree(&Call::Rotate(Signature { digest: comm.me() as u64, ..SIGNATURE })))
        };
        let ranks: Vec<_> = links.into_iter().map(|link| scope.spawn(move || rank(link))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    assert!(started.elapsed() < QUARREL, "{:?}", started.elapsed());
    for outcome in outcomes {
        assert!(matches!(outcome, Err(Error::RanksDisagree { .. })), "{outcome:?}");
    }
}

#[test]
fn ranks_that_differ_hear_each_others_words_behind_what_their_calls_bring() {
    // Tensors come with a call, in memory that its rank gets back before it can say more. Several times: a call that comes
    // early is kept elsewhere.
    for _ in 0..5 {
        let outcomes = world(2, Comm::new, |comm| {
            all_to_all(comm, &SIGNATURE, 500)?;
            all_to_all(comm, &Signature { call: 1 + comm.me() as u64, ..SIGNATURE }, 500)
        });
        for outcome in outcomes {
            let error = outcome.unwrap_err().to_string();
            assert!(error.contains("of call 1") && error.contains("of call 2"), "{error}");
        }
    }
}

#[test]
fn what_is_swallowed_is_a_value_and_what_follows_is_the_first_failure() {
    // Over links alone: whoever is still looking for memory to share hears of the failure there, and never gets to `body`.
    let outcomes = world(3, Comm::by_link, |comm| {
        if comm.me() == 2 {
            return Err(Error::Configuration("the disk is full".into()));
        }
        let told = comm.gather("names", &[]).unwrap_err();
        if comm.me() == 1 { Err(Error::Configuration("gives up".into())) } else { Ok(told) }
    });
    let failed = Error::RankFailed { rank: 2, message: "the disk is full".into() };
    assert_eq!(
        outcomes,
        [Ok(failed.clone()), Err(failed), Err(Error::Configuration("the disk is full".into()))]
    );
}

#[test]
fn groups_of_one_rank_wait_on_threads_of_their_own() {
    let outcomes = world(2, Comm::new, |comm| {
        let (one, other) = (comm.split(0, 0)?, comm.split(0, 0)?);
        std::thread::scope(|scope| {
            let late = comm.me() == 1;
            let slow = scope.spawn(move || {
                // The first group's rank waits all the while that the other group's works.
                if late {
                    std::thread::sleep(Duration::from_millis(300));
                }
                one.gather("slow", &[])
            });
            let started = Instant::now();
            for _ in 0..10 {
                other.gather("quick", &[1, 2, 3])?;
                all_to_all(&other, &SIGNATURE, 100_000)?;
            }
            let took = started.elapsed();
            slow.join().unwrap()?;
            Ok(took)
        })
    });
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
}

/// A message that a rank might send, with the right fingerprint as often as not.
fn message() -> impl Strategy<Value = (Head, usize)> {
    let number = || prop_oneof![0_u64..4, any::<u64>()];
    let fingerprint = prop_oneof![
        Just(Call::Exchange(SIGNATURE, 1).fingerprint()),
        Just(Call::Rotate(SIGNATURE).fingerprint()),
        0_u64..3,
    ];
    let note = (
        prop::sample::select(&Kind::ALL[..]),
        prop_oneof![4 => Just(1_u64), 1 => any::<u64>()],
        0_u64..3,
        (fingerprint, number(), number(), number(), number()),
    );
    let note = note.prop_map(|(kind, group, sequence, (a, b, c, d, e))| {
        Note { kind, group, sequence, numbers: [a, b, c, d, e] }.head()
    });
    let anything = prop::array::uniform8(any::<u64>()).prop_map(Head);
    (prop_oneof![9 => note, 1 => anything], prop_oneof![Just(0), 1_usize..300])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn whatever_a_peer_sends_is_an_error_at_most(
        messages in prop::collection::vec(message(), 0..12),
        ring in any::<bool>(),
        fill in any::<u8>(),
    ) {
        let mut links = ChannelLink::world(2);
        let (mut peer, link) = (links.remove(1), links.remove(0));
        for (head, length) in messages {
            let mut body = Bytes::zeroed(length).unwrap();
            body.as_mut_slice().fill(fill);
            peer.send(0, head, (length > 0).then(|| Arc::new(body))).unwrap();
        }
        peer.close(false, Duration::ZERO);
        let started = Instant::now();
        let comm = Comm::by_link(link, CpuQueue::new(1).unwrap(), Duration::from_millis(200)).unwrap();
        let outcome = comm.run(|comm| if ring { turn_of_any(&comm) } else { all_to_all(&comm, &SIGNATURE, 3) });
        prop_assert!(started.elapsed() < Duration::from_millis(2500));
        // A ring of nothing may be answered by chance.
        prop_assert!(outcome.is_err() || ring);
        while let Some(event) = peer.receive(Instant::now()).unwrap() {
            if let Event::Message { head, .. } = event {
                prop_assert!(Note::read(head).is_some());
            }
        }
    }
}

/// Shows a block of three positions, and looks at nothing.
fn turn_of_any(comm: &Comm) -> Result<()> {
    let tensor = Tensor::<f32>::from_fn([1, 3, 1, 4], |_| 1.0)?;
    let block = KeyValue { key: tensor.view(), value: tensor.view() };
    let mut arena = Arena::<Cpu>::default();
    let queue = comm.queue()?;
    comm.rotate(arena.open(&queue)?, &SIGNATURE, &[3, 3], block, |_, _| Ok(()))
}
