//! Ranks that fail, disagree or stay away: every other rank gets an error that says so, and nobody waits for ever.

mod support;

use std::time::{Duration, Instant};

use attn::prelude::*;
use attn::{
    AttentionCall, AttentionKernel, BlockMask, CarriedState, CarriesState, Cpu, Error, KeyPlacement,
    KeyValue, Mask, Scope, Sharding, ThreadComm,
};
use support::{Setup, WithFlash};

type Outcome = Vec<attn::Result<()>>;

/// Runs `body` on every rank, each on a thread of its own, and keeps every rank's own outcome; panics show as
/// errors. Fails if it takes longer than the failures it provokes may take.
fn outcomes(world: World, body: impl Fn(ThreadComm) -> attn::Result<()> + Sync) -> Outcome {
    let started = Instant::now();
    let comms = world.communicators().unwrap();
    let outcomes = std::thread::scope(|scope| {
        let ranks: Vec<_> = comms.into_iter().map(|comm| scope.spawn(|| body(comm))).collect();
        ranks
            .into_iter()
            .map(|rank| rank.join().unwrap_or(Err(Error::RankPanicked { rank: 99, message: String::new() })))
            .collect()
    });
    assert!(started.elapsed() < Duration::from_secs(20), "took {:?}", started.elapsed());
    outcomes
}

/// For collectives that a test calls itself.
const SIGNATURE: attn::Signature = attn::Signature {
    strategy: "test",
    stage: "test",
    call: 0,
    dtype: attn::DType::F32,
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

/// Every strategy, on four ranks.
const FOUR: [Setup; 5] = [
    Setup::ulysses(4),
    Setup::ring(4),
    Setup::hybrid(2, 2),
    Setup::allgather_kv(4),
    Setup::ulysses_allgather(2, 2),
];

fn open(comm: ThreadComm, setup: Setup) -> attn::Result<Session<WithFlash, ThreadComm, f32>> {
    support::open(comm, setup)
}

fn ulysses(comm: ThreadComm) -> attn::Result<Session<WithFlash, ThreadComm, f32>> {
    let ranks = comm.size();
    open(comm, Setup::ulysses(ranks))
}

fn ring(comm: ThreadComm) -> attn::Result<Session<WithFlash, ThreadComm, f32>> {
    let ranks = comm.size();
    open(comm, Setup::ring(ranks))
}

fn ones(seq: usize) -> Tensor<f32> {
    Tensor::from_fn([1, seq, 4, 8], |_| 1.0).unwrap()
}

fn attend(session: &mut Session<WithFlash, ThreadComm, f32>, seq: usize) -> attn::Result<()> {
    let x = ones(seq);
    session.attend(&x, &x, &x, &AttentionMetadata::default()).map(drop)
}

#[test]
fn an_error_in_one_rank_ends_the_waits_of_the_others() {
    for setup in FOUR {
        let error = World::threads(4)
            .run(|comm| {
                let rank = comm.rank();
                let mut session = open(comm, setup)?;
                attend(&mut session, 6)?;
                if rank == 2 {
                    return Err(Error::Configuration("the disk is full".into()));
                }
                match attend(&mut session, 6) {
                    Err(Error::RankFailed { rank: 2, message }) if message == "the disk is full" => Ok(()),
                    other => panic!("{setup}: rank {rank} got {other:?}"),
                }
            })
            .unwrap_err();
        assert_eq!(error, Error::Configuration("the disk is full".into()), "{setup}");
    }
}

#[test]
fn a_panic_in_one_rank_ends_the_waits_of_the_others() {
    for setup in FOUR {
        let error = World::threads(4)
            .run(|comm| {
                let rank = comm.rank();
                let mut session = open(comm, setup)?;
                assert!(rank != 1, "rank one gives up");
                let outcome = attend(&mut session, 6);
                assert!(matches!(outcome, Err(Error::RankPanicked { rank: 1, .. })), "{setup}: {outcome:?}");
                outcome
            })
            .unwrap_err();
        assert!(
            matches!(&error, Error::RankPanicked { rank: 1, message } if message.contains("rank one gives up")),
            "{setup}: {error}"
        );
    }
}

#[test]
fn a_rank_that_leaves_early_is_named() {
    for setup in FOUR {
        let outcomes = outcomes(World::threads(4), |comm| {
            if comm.rank() == 3 {
                return Ok(());
            }
            let mut session = open(comm, setup)?;
            attend(&mut session, 6)
        });
        for outcome in &outcomes[..3] {
            let error = outcome.clone().unwrap_err();
            assert!(matches!(error, Error::RankLeft { rank: 3, .. } | Error::RankFailed { .. }), "{error}");
            assert!(error.to_string().contains("rank 3 has ended"), "{setup}: {error}");
        }
    }
}

#[test]
fn ranks_with_different_shapes_all_learn_who_differs() {
    for setup in FOUR {
        let outcomes = outcomes(World::threads(4), |comm| {
            let seq = if comm.rank() == 1 { 5 } else { 6 };
            attend(&mut open(comm, setup)?, seq)
        });
        for outcome in outcomes {
            let error = outcome.unwrap_err().to_string();
            assert!(error.contains("rank 1 differs from its group"), "{error}");
            assert!(error.contains("[1, 20, 4, 8]") && error.contains("[1, 24, 4, 8]"), "{error}");
            assert!(error.contains("ranks 0, 2, 3"), "{error}");
        }
    }
}

#[test]
fn ranks_with_different_collectives_all_learn_who_differs() {
    let outcomes = outcomes(World::threads(3), |comm| match comm.rank() {
        2 => comm.split(0, 0).map(drop),
        _ => attend(&mut ulysses(comm)?, 6),
    });
    // Four heads on three ranks: the two ranks fail before they meet the third, which waits in vain.
    assert!(outcomes.iter().all(Result::is_err));
    let outcomes = self::outcomes(World::threads(4), |comm| match comm.rank() {
        2 => comm.split(0, 0).map(drop),
        3 => attend(&mut ring(comm)?, 6),
        _ => attend(&mut ulysses(comm)?, 6),
    });
    for outcome in outcomes {
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains("rank 2 differs from its group: it called split"), "{error}");
    }
}

#[test]
fn ranks_with_different_masks_or_scales_all_learn_it() {
    let outcomes = outcomes(World::threads(2), |comm| {
        let mut metadata = AttentionMetadata::default();
        if comm.rank() == 1 {
            metadata = metadata.with_causal();
        }
        let x = ones(4);
        ring(comm)?.attend(&x, &x, &x, &metadata).map(drop)
    });
    assert!(outcomes.iter().all(|o| o.clone().unwrap_err().to_string().contains("mask causal")));
    let outcomes = self::outcomes(World::threads(2), |comm| {
        let x = ones(4);
        let metadata = AttentionMetadata::default().with_scale(1.0 + comm.rank() as f32);
        ulysses(comm)?.attend(&x, &x, &x, &metadata).map(drop)
    });
    assert!(outcomes.iter().all(|o| o.clone().unwrap_err().to_string().contains("scale 2")));
}

#[test]
fn a_rank_that_stays_away_is_named_at_the_deadline() {
    let world = World::threads(3).deadline(Duration::from_millis(300));
    let outcomes = outcomes(world, |comm| {
        let rank = comm.rank();
        let mut session = ring(comm)?;
        if rank == 0 {
            std::thread::sleep(Duration::from_millis(1500));
        }
        attend(&mut session, 6)
    });
    for (rank, outcome) in outcomes.into_iter().enumerate() {
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains("deadline of 0.3 s") && error.contains("ranks [0]"), "rank {rank}: {error}");
        assert!(error.contains("collective number 1"), "rank {rank}: {error}");
    }
}

/// A kernel with a trouble of one kind.
#[derive(Default)]
struct Troubled<const TROUBLE: u8>;

/// On rank 0, fails in the step that meets the keys of rank 1, while other ranks read this rank's own.
const FAILS: u8 = 0;
/// The same, but panics.
const PANICS: u8 = 1;
/// Takes a while for each block.
const SLOW: u8 = 2;

impl<const TROUBLE: u8> AttentionKernel<Cpu, f32> for Troubled<TROUBLE> {
    fn forward(&self, _: Scope<'_, Cpu>, _: &mut AttentionCall<'_, f32, Cpu>) -> attn::Result<()> {
        Ok(())
    }
}

impl<const TROUBLE: u8> CarriesState<Cpu, f32> for Troubled<TROUBLE> {
    fn begin<'a>(&self, scope: Scope<'a, Cpu>, shape: [usize; 4]) -> attn::Result<CarriedState<'a, Cpu>> {
        CarriesState::<Cpu, f32>::begin(&attn::Flash, scope, shape)
    }

    fn step(
        &self,
        _: Scope<'_, Cpu>,
        query: View<'_, f32>,
        kv: KeyValue<'_, f32, Cpu>,
        _: &BlockMask<'_>,
        _: f32,
        _: &mut CarriedState<'_, Cpu>,
    ) -> attn::Result<()> {
        if TROUBLE == SLOW {
            std::thread::sleep(Duration::from_millis(200));
            return Ok(());
        }
        // Read the block for a while, so that its owner has to wait before it may leave.
        let sum: f32 = (0..2000).map(|_| kv.key.at([0, 0, 0, 0])).sum();
        assert!(sum.is_finite());
        let (mine, theirs) = (query.at([0, 0, 0, 0]), kv.key.at([0, 0, 0, 0]));
        if mine == 0.0 && theirs == 1.0 {
            assert!(TROUBLE != PANICS, "a kernel breaks");
            return Err(Error::Configuration("a kernel fails".into()));
        }
        Ok(())
    }

    fn finish(
        &self,
        _: Scope<'_, Cpu>,
        _: CarriedState<'_, Cpu>,
        _: ViewMut<'_, f32>,
        _: Option<ViewMut<'_, f32>>,
    ) -> attn::Result<()> {
        Ok(())
    }
}

#[parallel_attention(strategy = "ring", backend = Troubled<FAILS>)]
struct Failing;

#[parallel_attention(strategy = "ring", backend = Troubled<PANICS>)]
struct Panicking;

fn ring_of<A: ParallelAttention<ThreadComm, f32>>(comm: ThreadComm) -> attn::Result<()> {
    let rank = comm.rank();
    let mut session = Session::<A, _, f32>::open(comm)?;
    let x = Tensor::from_fn([1, 4, 2, 8], |_| rank as f32)?;
    session.attend(&x, &x, &x, &AttentionMetadata::default()).map(drop)
}

#[test]
fn a_kernel_that_fails_in_the_middle_of_a_ring_fails_every_rank() {
    for _ in 0..20 {
        let outcomes = outcomes(World::threads(4), ring_of::<Failing>);
        assert!(outcomes[0].clone().unwrap_err().to_string().contains("a kernel fails"));
        for outcome in outcomes {
            let error = outcome.unwrap_err().to_string();
            assert!(error.contains("a kernel fails"), "{error}");
        }
    }
}

#[test]
fn a_kernel_that_panics_in_the_middle_of_a_ring_fails_every_rank() {
    for _ in 0..20 {
        let error = World::threads(4).run(ring_of::<Panicking>).unwrap_err();
        assert!(
            matches!(&error, Error::RankPanicked { rank: 0, message } if message == "a kernel breaks"),
            "{error}"
        );
        for outcome in &outcomes(World::threads(4), ring_of::<Panicking>)[1..] {
            let error = outcome.clone().unwrap_err().to_string();
            assert!(error.contains("rank 0 panicked: inside rotate (ring rotate of call 1, f32"), "{error}");
        }
    }
}

#[test]
fn a_world_that_has_failed_stays_failed() {
    let outcomes = outcomes(World::threads(2), |comm| {
        let seq = 4 + comm.rank();
        let mut session = ring(comm)?;
        let first = attend(&mut session, seq).unwrap_err();
        let second = attend(&mut session, 4).unwrap_err();
        assert!(second.to_string().contains("differs from its group"), "{second}");
        Err(first)
    });
    assert!(outcomes.iter().all(Result::is_err));
}

#[test]
fn a_collective_inside_a_collective_is_refused() {
    let outcomes = outcomes(World::threads(2), |comm| {
        let queue = comm.queue()?;
        let mut arena = attn::device::Arena::<Cpu>::default();
        let x = ones(2);
        let kv = KeyValue { key: x.view(), value: x.view() };
        let scope = arena.open(&queue)?;
        let mut inner = Vec::new();
        comm.rotate(scope, &SIGNATURE, &[2, 2], kv, |_, _| {
            inner.push(comm.split(0, 0).err());
            Ok(())
        })?;
        assert_eq!(inner, [Some(Error::Reentrant), Some(Error::Reentrant)]);
        Ok(())
    });
    assert_eq!(outcomes, [Ok(()), Ok(())]);
}

#[test]
fn subgroups_fail_with_their_world() {
    let outcomes = outcomes(World::threads(4), |comm| {
        let rank = comm.rank();
        let pair = comm.split(rank / 2, rank)?;
        if rank == 3 {
            return Err(Error::Configuration("gone".into()));
        }
        let mut session = ring(pair)?;
        loop {
            attend(&mut session, 4)?;
        }
    });
    assert!(outcomes[2].clone().unwrap_err().to_string().contains("rank 3 has ended"));
}

#[test]
fn split_numbers_ranks_by_key_then_rank() {
    World::threads(6)
        .run(|comm| {
            let rank = comm.rank();
            // Even ranks backwards, odd ranks forwards.
            let half = comm.split(rank % 2, if rank % 2 == 0 { 10 - rank } else { 0 })?;
            assert_eq!(half.size(), 3);
            assert_eq!(half.rank(), if rank % 2 == 0 { 2 - rank / 2 } else { rank / 2 });
            let again = half.split(0, half.rank())?;
            assert_eq!((again.rank(), again.size()), (half.rank(), 3));
            let mut session = ring(again)?;
            attend(&mut session, 4)
        })
        .unwrap();
}

/// A disagreement in one group reaches the others as an error of the world, whatever their sizes.
#[test]
fn a_disagreement_in_one_subgroup_ends_the_others_with_the_same_error() {
    for _ in 0..20 {
        let outcomes = outcomes(World::threads(5), |comm| {
            let rank = comm.rank();
            let group = comm.split(rank / 3, rank)?;
            let mut session = ring(group)?;
            loop {
                attend(&mut session, if rank == 2 { 5 } else { 4 })?;
            }
        });
        for outcome in outcomes {
            let error = outcome.unwrap_err().to_string();
            assert!(error.contains("rank 2 differs from its group"), "{error}");
            assert!(error.contains("ranks 0, 1 called"), "{error}");
        }
    }
}

#[parallel_attention(strategy = "ring", backend = Troubled<SLOW>)]
struct Patient;

#[test]
fn a_deadline_counts_waiting_and_not_work() {
    let world = World::threads(3).deadline(Duration::from_millis(400));
    assert_eq!(outcomes(world, ring_of::<Patient>), [Ok(()), Ok(()), Ok(())]);
}

#[test]
fn a_rank_whose_body_has_returned_has_ended_even_if_its_handles_live_on() {
    let error = World::threads(2)
        .run(|comm| {
            if comm.rank() == 1 {
                // Forgotten, and handed out: neither keeps the other rank waiting.
                std::mem::forget(comm.clone());
                return Ok(Some(comm));
            }
            attend(&mut ring(comm)?, 4).map(|()| None)
        })
        .unwrap_err();
    assert!(error.to_string().contains("rank 1 has ended"), "{error}");
}

#[test]
fn a_plan_for_a_rank_that_does_not_exist_is_refused() {
    let outcomes = outcomes(World::threads(2), |comm| {
        let (queue, x) = (comm.queue()?, ones(2));
        let mut out = ones(2);
        let mut plan = attn::ExchangePlan::default();
        plan.receive(7, [0; 4], [1; 4]);
        let mut arena = attn::device::Arena::<Cpu>::default();
        let transfer = attn::Transfer::new(&plan, x.view(), out.view_mut())?;
        comm.exchange(arena.open(&queue)?, &SIGNATURE, &mut [transfer])
    });
    for outcome in outcomes {
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains("there is no rank 7 in a group of 2"), "{error}");
    }
}

/// A call that one rank alone was refused is no call of the others: its next one does not take the refused one's place.
#[test]
fn a_call_refused_on_one_rank_does_not_pair_with_its_next() {
    for setup in [Setup::ulysses(2), Setup::ring(2), Setup::allgather_kv(2)] {
        let ends = World::threads(2).deadline(Duration::from_secs(5)).communicators().unwrap();
        let outcomes: Vec<Vec<attn::Result<f32>>> = std::thread::scope(|scope| {
            let ranks: Vec<_> = ends
                .into_iter()
                .map(|comm| {
                    scope.spawn(move || {
                        let rank = comm.rank();
                        let mut session = support::open::<WithFlash, _, f32>(comm, setup).unwrap();
                        let mut request = |value: f32, rows: usize| {
                            let x = Tensor::<f32>::from_fn([1, 4, 2, 8], |_| value)?;
                            let mut out = Tensor::<f32>::from_fn([1, rows, 2, 8], |_| 0.0)?;
                            session.attend_into(&x, &x, &x, &AttentionMetadata::default(), &mut out)?;
                            Ok(out.as_slice()[0])
                        };
                        // Rank 1 gets its first call wrong, and goes on with the second.
                        vec![request(1.0, if rank == 1 { 5 } else { 4 }), request(2.0, 4)]
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        assert!(matches!(outcomes[1][0], Err(Error::Shape { tensor: "out", .. })), "{outcomes:?}");
        for outcome in [&outcomes[0][0], &outcomes[1][1]] {
            assert!(matches!(outcome, Err(Error::RanksDisagree { .. })), "{setup:?}: {outcomes:?}");
        }
    }
}
