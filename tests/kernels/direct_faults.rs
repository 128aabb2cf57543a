//! The direct exchange when a rank does not come, leaves, or sends something else: every rank's waits end, with an error that
//! says why. As in `direct`, nothing that waits for all of a GPU happens while a rank waits there.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use attn::comm::Rendezvous;
use attn::comm::threads::Queues;
use attn::cuda::Direct;
use attn::device::Arena;
use attn::prelude::*;
use attn::{Error, KeyValue};
use half::bf16;

use crate::kernels::copy::Move;
use crate::kernels::direct::{ALONE, Bytes, LONG, Rank, all_to_all, on_ranks, places};
use crate::kernels::rig::{DeviceOf, Rig};

/// Long enough for a rank to come, and short enough for a test to wait for one that does not.
const SHORT: Duration = Duration::from_millis(300);

/// Whoever waits for a rank that does not come says so, and when it comes at last it writes nothing.
pub fn a_rank_that_does_not_come_is_named<R: Rig>() {
    let outcomes = on_ranks::<R, _>(3, 0, |rank| {
        let (me, bytes) = (rank.direct.rank(), 64);
        let (source, mut destination) = places(rank, bytes);
        let moves = all_to_all(3, bytes);
        rank.direct.set_deadline(SHORT);
        rank.meet();
        let began = Instant::now();
        let attempt = |destination: &mut Bytes<R>| {
            rank.exchange(&moves, &source, destination).and_then(|()| rank.settle())
        };
        let mut outcome = if me == 2 { Ok(()) } else { attempt(&mut destination) };
        let took = began.elapsed();
        rank.meet();
        if me == 2 {
            outcome = attempt(&mut destination);
        }
        rank.meet();
        assert!(rank.download(&destination).iter().all(|byte| *byte == 0), "rank {me} was written to");
        // It stays so.
        assert_eq!(attempt(&mut destination), outcome);
        (outcome.unwrap_err(), took)
    });
    for (error, took) in outcomes.into_iter().flatten() {
        let Error::Deadline { operation, sequence, missing, seconds } = &error else { panic!("{error}") };
        // The first call was the test of the opening.
        assert_eq!((operation.as_str(), *sequence, missing.as_slice()), ("direct exchange", 2, &[2][..]));
        assert!((*seconds - SHORT.as_secs_f64()).abs() < 1e-9 && took < SHORT * 20, "{error} after {took:?}");
    }
}

/// The same of a pair of ranks in the middle of a call: others of the group have written by then.
pub fn boxes_that_do_not_fit_are_an_error_for_all<R: Rig>() {
    let unlike: [(&str, fn(&mut Move)); 3] = [
        ("rank 0 sends [1, 1, 1, 64] to rank 1, which expects [1, 1, 1, 63]", |part| part.extent[3] = 63),
        ("of 1 bytes to rank 1, which expects [1, 1, 1, 64] of 2", |part| part.item = 2),
        ("rank 0 sends 1 boxes to rank 1, which expects 0", |part| part.extent[0] = 0),
    ];
    for (says, change) in unlike {
        let outcomes = on_ranks::<R, _>(3, 0, |rank| {
            let (me, bytes) = (rank.direct.rank(), 64);
            let (source, mut destination) = places(rank, bytes);
            let mut moves = all_to_all(3, bytes);
            if me == 1 {
                let other = moves.iter_mut().find(|each| each.sender == 0 && each.receiver == 1);
                change(&mut other.unwrap().part);
            }
            rank.meet();
            let began = Instant::now();
            let outcome = rank.exchange(&moves, &source, &mut destination).and_then(|()| rank.settle());
            assert!(began.elapsed() < LONG / 2);
            outcome.unwrap_err().to_string()
        });
        let Some(outcomes) = outcomes else { return };
        assert!(outcomes[0].contains(says), "{outcomes:?}");
        for other in &outcomes[1..] {
            let told = ["rank 0 sends other boxes than rank 1 expects", "has withdrawn"];
            assert!(told.iter().any(|words| other.contains(words)), "{outcomes:?}");
        }
    }
}

pub fn an_abort_ends_all_waits<R: Rig>() {
    let outcomes = on_ranks::<R, _>(3, 0, |rank| {
        let (me, bytes) = (rank.direct.rank(), 64);
        let (source, mut destination) = places(rank, bytes);
        let moves = all_to_all(3, bytes);
        rank.meet();
        let began = Instant::now();
        let outcome = std::thread::scope(|scope| {
            if me == 0 {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(50));
                    rank.direct.abort();
                });
            }
            match me {
                2 => Ok(()),
                _ => rank.exchange(&moves, &source, &mut destination).and_then(|()| rank.settle()),
            }
        });
        assert!(began.elapsed() < LONG / 2);
        rank.meet();
        outcome
    });
    for outcome in outcomes.into_iter().flatten().take(2) {
        let error = outcome.unwrap_err();
        assert!(matches!(error, Error::RankFailed { rank: 0, .. }), "{error}");
    }
}

/// Nobody waits for a rank that has no direct exchange any more.
pub fn a_rank_that_leaves_ends_the_others_waits<R: Rig>() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let queues: Vec<R::Queue> = (0..3).map_while(R::queue).collect();
    if queues.is_empty() {
        return;
    }
    let outcome = World::<Queues<DeviceOf<R>>>::on_queues(queues).run(|comm| {
        let queue = comm.queue()?;
        let direct = Direct::open_or_why(&comm, &queue)?.unwrap_or_else(|why| panic!("{why}"));
        direct.set_deadline(LONG);
        if comm.rank() == 2 {
            std::thread::sleep(Duration::from_millis(50));
            drop(direct);
            comm.gather("the ranks of a test", &[])?;
            return Ok::<_, Error>(None);
        }
        let rank = Rank::<R> { comm, queue, direct };
        let (source, mut destination) = places(&rank, 64);
        let began = Instant::now();
        let outcome =
            rank.exchange(&all_to_all(3, 64), &source, &mut destination).and_then(|()| rank.settle());
        assert!(began.elapsed() < LONG / 2);
        rank.meet();
        Ok(Some(outcome.unwrap_err()))
    });
    for error in outcome.unwrap().into_iter().flatten() {
        assert!(matches!(error, Error::RankFailed { rank: 2, .. }), "{error}");
    }
}

/// A rank whose visit fails takes the others' waits with it.
pub fn an_error_on_the_way_round_reaches_all<R: Rig>() {
    let outcomes = on_ranks::<R, _>(3, 0, |rank| {
        let queue = &rank.queue;
        let x = Tensor::<bf16, DeviceOf<R>>::zeros(queue, [1, 4, 1, 8]).unwrap();
        let mut arena = Arena::<DeviceOf<R>>::default();
        rank.meet();
        let began = Instant::now();
        let kv = KeyValue { key: x.view(), value: x.view() };
        let fail = rank.direct.rank() == 1;
        let outcome = rank.direct.rotate(arena.open(queue).unwrap(), &[4; 3], kv, |_, _| match fail {
            true => Err(Error::Scale(f32::NAN)),
            false => Ok(()),
        });
        let outcome = outcome.and_then(|()| rank.settle());
        assert!(began.elapsed() < LONG / 2);
        rank.meet();
        outcome.unwrap_err()
    });
    let Some(outcomes) = outcomes else { return };
    assert!(matches!(outcomes[1], Error::Scale(_)), "{outcomes:?}");
    for rank in [0, 2] {
        assert!(matches!(outcomes[rank], Error::RankFailed { rank: 1, .. }), "{outcomes:?}");
    }
}

/// Why there is no direct exchange is said, by all ranks alike.
pub fn more_ranks_than_a_group_takes_are_told_so<R: Rig>() {
    let queues: Vec<R::Queue> = (0..17).map_while(R::queue).collect();
    if queues.is_empty() {
        return;
    }
    let outcome = World::<Queues<DeviceOf<R>>>::on_queues(queues).run(|comm| {
        let why = Direct::<DeviceOf<R>>::open_or_why(&comm, &comm.queue()?)?.err().unwrap_or_default();
        assert!(why.contains("17 ranks are more than 16"), "{why}");
        assert!(Direct::<DeviceOf<R>>::open(&comm, &comm.queue()?)?.is_none());
        Ok::<_, Error>(())
    });
    outcome.unwrap();
}
