//! What the tests share: every strategy, a kernel that tells whether it was reached, and ranks that are all asked.

use std::cell::Cell;
use std::time::{Duration, Instant};

use attn::prelude::*;
use attn::{
    AttentionCall, AttentionKernel, BlockMask, CarriedState, CarriesState, Error, KeyValue, MaskKinds, Scope,
    ThreadComm,
};

/// Every strategy round a kernel that takes every mask.
#[parallel_attention(
    strategy = ["none", "ulysses", "ring", "hybrid", "allgather_kv", "ulysses_allgather"],
    backend = Counting
)]
pub(crate) struct Any;

/// A session of [`Any`].
pub(crate) type Open = Session<Any, ThreadComm, f32>;

thread_local! {
    /// How often this rank's kernel was called.
    static REACHED: Cell<usize> = const { Cell::new(0) };
}

/// Computes nothing; counts its calls.
#[derive(Default)]
pub(crate) struct Counting;

fn reached() -> usize {
    REACHED.get()
}

impl<T: Element> AttentionKernel<Cpu, T> for Counting {
    const MASKS: MaskKinds = MaskKinds::ALL;

    fn forward(&self, _: Scope<'_, Cpu>, _: &mut AttentionCall<'_, T, Cpu>) -> attn::Result<()> {
        REACHED.set(reached() + 1);
        Ok(())
    }
}

impl<T: Element> CarriesState<Cpu, T> for Counting {
    fn begin<'a>(&self, scope: Scope<'a, Cpu>, query: [usize; 4]) -> attn::Result<CarriedState<'a, Cpu>> {
        let [batch, seq, heads, _] = query;
        let column = [batch, seq, heads, 1];
        Ok(CarriedState { output: scope.take(query)?, max: scope.take(column)?, sum: scope.take(column)? })
    }

    fn step(
        &self,
        _: Scope<'_, Cpu>,
        _: View<'_, T>,
        _: KeyValue<'_, T, Cpu>,
        _: &BlockMask<'_>,
        _: f32,
        _: &mut CarriedState<'_, Cpu>,
    ) -> attn::Result<()> {
        REACHED.set(reached() + 1);
        Ok(())
    }

    fn finish(
        &self,
        _: Scope<'_, Cpu>,
        _: CarriedState<'_, Cpu>,
        _: ViewMut<'_, T>,
        _: Option<ViewMut<'_, f32>>,
    ) -> attn::Result<()> {
        Ok(())
    }
}

/// A number of ranks, and what they are to do.
pub(crate) type Setup = (usize, ParallelConfig);

pub(crate) fn named(strategy: &str) -> ParallelConfig {
    ParallelConfig::strategy(strategy)
}

pub(crate) fn hybrid(ulysses: usize, ring: usize) -> ParallelConfig {
    ParallelConfig { ulysses_degree: Some(ulysses), ring_degree: Some(ring), ..named("hybrid") }
}

pub(crate) fn gathering(ulysses: usize, allgather: usize) -> ParallelConfig {
    ParallelConfig {
        ulysses_degree: Some(ulysses),
        allgather_degree: Some(allgather),
        ..named("ulysses_allgather")
    }
}

pub(crate) fn laid(layout: RingLayout, config: ParallelConfig) -> ParallelConfig {
    ParallelConfig { layout: Some(layout), ..config }
}

pub(crate) fn uneven(config: ParallelConfig) -> ParallelConfig {
    ParallelConfig { split: Some(Split::Uneven), ..config }
}

/// The strategies in which a head count must divide, with the Ulysses degree of each.
pub(crate) fn exchanging() -> Vec<Setup> {
    vec![
        (2, named("ulysses")),
        (4, hybrid(2, 2)),
        (2, hybrid(2, 1)),
        (4, gathering(2, 2)),
        (2, gathering(2, 1)),
    ]
}

/// Every strategy of several ranks.
pub(crate) fn sharded() -> Vec<Setup> {
    let mut all = exchanging();
    all.extend([(4, named("ulysses")), (3, named("allgather_kv")), (3, gathering(1, 3))]);
    for layout in RingLayout::ALL {
        all.extend([(3, laid(layout, named("ring"))), (4, laid(layout, hybrid(2, 2)))]);
    }
    all
}

/// Every strategy.
pub(crate) fn every() -> Vec<Setup> {
    let mut all = sharded();
    all.push((1, named("none")));
    all
}

pub(crate) fn tensor(shape: [usize; 4]) -> Tensor<f32> {
    Tensor::from_fn(shape, |_| 1.0).unwrap()
}

/// What every rank answers, each on a thread of its own. Fails if one panics or hangs.
#[track_caller]
pub(crate) fn answers<R: Send>(ranks: usize, body: impl Fn(ThreadComm) -> R + Sync) -> Vec<R> {
    let started = Instant::now();
    let world = World::threads(ranks).threads_per_rank(1).deadline(Duration::from_secs(10));
    let comms = world.communicators().unwrap();
    let answers = std::thread::scope(|scope| {
        let ranks: Vec<_> = comms.into_iter().map(|comm| scope.spawn(|| body(comm))).collect();
        ranks.into_iter().map(|rank| rank.join().expect("no rank panics")).collect()
    });
    assert!(started.elapsed() < Duration::from_secs(9), "took {:?}", started.elapsed());
    answers
}

/// Makes a call that every rank must refuse by itself: with one kind of error, whose text has all of `says` in it, before
/// anything moves and any kernel runs; and it must leave the session as good as before.
#[track_caller]
pub(crate) fn refused(
    (ranks, config): &Setup,
    call: impl Fn(&mut Open, usize) -> attn::Result<()> + Sync,
    says: &[&str],
) -> Error {
    let errors = answers(*ranks, |comm| {
        let rank = comm.rank();
        let mut session = Open::open_with(comm, config).unwrap();
        let (traffic, before) = (session.traffic(), reached());
        let answer = call(&mut session, rank);
        let moved = (session.traffic() - traffic, reached() - before);
        (answer, moved, good(&mut session, rank))
    });
    let mut first: Option<Error> = None;
    for (rank, (answer, (traffic, kernel), afterwards)) in errors.into_iter().enumerate() {
        let Err(error) = answer else { panic!("{config:?}: rank {rank} of {ranks} answers the call") };
        let text = error.to_string();
        for part in says {
            assert!(text.contains(part), "{config:?}: rank {rank} of {ranks} does not say `{part}`: {text}");
        }
        assert_eq!((traffic.sent, traffic.collectives, kernel), (0, 0, 0), "{config:?}: rank {rank}: {text}");
        assert_eq!(afterwards, Ok(()), "{config:?}: rank {rank} after `{text}`");
        let first = &*first.get_or_insert_with(|| error.clone());
        let alike = std::mem::discriminant(first) == std::mem::discriminant(&error);
        assert!(alike, "{config:?}: rank {rank} says `{error}`, another one `{first}`");
    }
    first.expect("there are ranks")
}

/// A call as it should be.
fn good(session: &mut Open, rank: usize) -> attn::Result<()> {
    let sharding = session.sharding();
    let seq = 2 * sharding.ranks();
    let share = sharding.sequence(seq).unwrap().length(rank);
    let x = tensor([1, share, sharding.ulysses, 4]);
    session.attend(&x, &x, &x, &AttentionMetadata::default().with_sequence(seq, seq)).map(drop)
}

/// How many of `seq` positions a rank holds.
pub(crate) fn share(session: &Open, seq: usize, rank: usize) -> usize {
    session.sharding().sequence(seq).unwrap().length(rank)
}
