//! Numbers that nobody means: what can be made of them is made, the rest is refused, and nothing overflows.

use std::time::Duration;

use attn::prelude::*;
use attn::{
    Band, BlockMask, CarriedState, Cpu, Error, ExchangePlan, HeadLayout, KeyLengths, KeyValue, LseMut, Mask,
    Positions, Run, SegmentIds, Sharding, Transfer,
};

use crate::rig::{Open, every, tensor};

/// Small numbers, and those at which something turns over.
const NUMBERS: [usize; 11] =
    [0, 1, 2, 3, 7, 1 << 31, 1 << 62, (1 << 63) - 1, 1 << 63, usize::MAX - 1, usize::MAX];

fn pairs() -> impl Iterator<Item = (usize, usize)> {
    NUMBERS.into_iter().flat_map(|a| NUMBERS.into_iter().map(move |b| (a, b)))
}

fn triples() -> impl Iterator<Item = (usize, usize, usize)> {
    pairs().flat_map(|(a, b)| NUMBERS.into_iter().map(move |c| (a, b, c)))
}

fn runs() -> impl Iterator<Item = Run> {
    triples().map(|(start, step, len)| Run { start, step, len })
}

#[test]
fn parts_of_views_lie_inside_of_them_or_are_refused() {
    let one = [1.0_f32; 30];
    let views = [
        View::new(&one, [1, 5, 3, 2]).unwrap(),
        View::new(&one, [1, 0, 3, 2]).unwrap(),
        View::with_strides(&one, [1, usize::MAX, 3, 2], [0, 0, 2, 1]).unwrap(),
    ];
    for view in views {
        for (axis, start, length) in triples() {
            let end = start.checked_add(length);
            let fits = axis < 4 && end.is_some_and(|end| end <= view.shape()[axis]);
            assert_eq!(view.narrow(axis, start, length).is_ok(), fits);
        }
        for (axis, run) in NUMBERS.into_iter().flat_map(|axis| runs().map(move |run| (axis, run))) {
            let Run { start, step, len } = run;
            let last = len.checked_sub(1).and_then(|last| last.checked_mul(step)?.checked_add(start));
            let fits = axis < 4
                && match len {
                    0 => start <= view.shape()[axis],
                    _ => last.is_some_and(|last| last < view.shape()[axis]),
                };
            let part = view.select(axis, run);
            assert_eq!(part.is_ok(), fits, "{view:?}, axis {axis}, {run:?}");
            if let Ok(part) = part
                && !part.shape().contains(&0)
            {
                let last = part.shape().map(|extent| extent - 1);
                assert_eq!([part.at([0; 4]), part.at(last)], [1.0; 2]);
            }
            let kv = KeyValue { key: view, value: view };
            assert_eq!(kv.select(axis, run).is_ok(), fits);
        }
    }
}

#[test]
fn views_and_tensors_beyond_memory_are_refused() {
    let mut one = [1.0_f32; 30];
    for (a, b, c) in triples() {
        let shape = [a, 2, b, c];
        let fits = shape.iter().try_fold(1_usize, |product, axis| product.checked_mul(*axis));
        let empty = shape.contains(&0);
        let small = empty || fits.is_some_and(|elements| elements <= 30);
        assert_eq!(View::new(&one, shape).is_ok(), small, "{shape:?}");
        assert_eq!(ViewMut::new(&mut one, shape).is_ok(), small, "{shape:?}");
        let rows = a.checked_mul(b).and_then(|rows| rows.checked_mul(c));
        let few = [a, b, c].contains(&0) || rows.is_some_and(|rows| rows <= 30);
        assert_eq!(LseMut::new(&mut one, [a, b, c]).is_ok(), few);
        let _ = View::with_strides(&one, [2, 2, 2, 2], [a, b, c, 1]);
        let _ = ViewMut::with_strides(&mut one, [2, 2, 2, 2], [a, b, c, 1]);
        // Never memory that is not there; and none at all is no error.
        if !small && fits.is_none_or(|elements| elements > 1 << 50) {
            assert!(Tensor::<f32>::from_fn(shape, |_| 1.0).is_err());
            assert!(Tensor::<f32>::from_slice(&one, shape).is_err());
        }
    }
}

#[test]
fn positions_count_without_overflow() {
    for run in runs() {
        for number in NUMBERS {
            assert!(run.before(number) <= run.len);
            let part = run.slice(number..number.saturating_add(3));
            assert!(part.len <= 3);
            let lengths = [number];
            assert!(KeyLengths::of_block(&lengths, number, run).of(0) >= number);
            assert_eq!(KeyLengths::of_block(&lengths, 0, run).of(number.max(1)), 0);
        }
        let both = Positions::of(run, run);
        assert_eq!(both.is_empty(), run.len == 0);
        assert!(both.len() >= run.len);
        assert_eq!(both.iter().take(2).count(), both.len().min(2));
        assert_eq!(both.slice(0..0).len(), 0);
    }
    #[expect(clippy::reversed_empty_ranges, reason = "what is asked")]
    let reversed = [Run::of(5..3), Run::of(0..9).slice(4..2)];
    assert_eq!(reversed.map(|run| run.len), [0, 0]);
}

#[test]
fn shardings_of_no_ranks_or_too_many_share_nothing() {
    for (ulysses, outer, seq) in triples() {
        for layout in RingLayout::ALL {
            for split in Split::ALL {
                let sharding = Sharding { ulysses, outer, layout, split };
                let ranks = ulysses.checked_mul(outer);
                assert_eq!(sharding.ranks(), ranks.unwrap_or(usize::MAX));
                let Ok(shared) = sharding.sequence(seq) else { continue };
                let ranks = ranks.expect("what cannot be counted shares nothing");
                assert!(ranks > 0, "{sharding:?}");
                for rank in [0, ranks / 2, ranks - 1] {
                    assert_eq!(shared.positions(rank).len(), shared.length(rank));
                    assert!(shared.positions(rank).iter().take(3).all(|position| position < seq));
                }
            }
        }
    }
    let none = Sharding { ulysses: 0, outer: 3, ..Sharding::ONE };
    for split in Split::ALL {
        let error = Sharding { split, ..none }.sequence(6).unwrap_err().to_string();
        assert!(error.contains("0 x 3 ranks"), "{error}");
    }
}

#[test]
fn heads_that_cannot_be_shared_are_refused() {
    for (ranks, heads, kv_heads) in triples() {
        for split in Split::ALL {
            let Ok(layout) = HeadLayout::new(split, ranks, heads, kv_heads) else { continue };
            for rank in [0, ranks / 2, ranks.saturating_sub(1)].into_iter().filter(|rank| *rank < ranks) {
                let (own, own_kv) = (layout.heads(rank), layout.kv_heads(rank));
                assert!(own.end <= heads && own_kv.end <= kv_heads);
                assert!(layout.runs(rank).len() <= 3);
            }
        }
    }
}

#[test]
fn bands_of_any_numbers_keep_to_the_keys() {
    let offsets = NUMBERS.into_iter().flat_map(|number| [number as i64, (number as i64).wrapping_neg()]);
    let offsets: Vec<i64> = offsets.collect();
    for (lo, hi) in offsets.iter().flat_map(|lo| offsets.iter().map(move |hi| (*lo, *hi))) {
        let band = Band { lo, hi };
        for (query, key) in pairs() {
            for band in [band, band.from_block(query, key)] {
                let keys = key.min(1 << 62)..key.saturating_add(query).min(1 << 62);
                let attended = band.keys_of(query, &keys);
                assert!(attended.start >= keys.start && attended.end <= keys.end.max(keys.start));
                let _ = band.keys_of(query, &(key..usize::MAX));
                let _ = band.cover(&(query..usize::MAX), &(0..key));
                let _ = BlockMask::<Cpu>::from(band).cover(query, &(0..key), &(key..query));
                let (rows, columns) =
                    (Run { start: query, step: key, len: 3 }, Run { start: key, step: key, len: 3 });
                let _ = band.between(rows, columns);
            }
        }
    }
    for (left, right, seq) in triples() {
        let band = Band::of_span(Span::Window { left, right }, seq, seq);
        assert!(band.keys_of(2, &(0..5)).contains(&2), "{left} {right} {seq}");
        let _ = Band::causal(left, right);
    }
    // Positions beyond those that an offset can tell apart are far, not near.
    assert_eq!(Band::causal(4, usize::MAX).keys_of(0, &(0..9)), 0..9);
    assert_eq!(Band::causal(usize::MAX, 4).keys_of(0, &(0..9)), 0..0);
}

#[test]
fn segments_are_those_of_the_position_that_is_asked_for() {
    let ids = [1, 2, 3, 4, 5, 6];
    let segments = SegmentIds::new(&ids, 3, Run { start: 1, step: 1, len: 2 });
    assert_eq!([segments.at(0, 0), segments.at(1, 1)], [2, 6]);
    let beyond =
        |(batch, index): &(usize, usize)| (*batch > 1 || *index > 4) && (*batch).max(*index) <= 1 << 62;
    for (batch, index) in pairs().filter(beyond) {
        let asked = std::panic::catch_unwind(|| segments.at(batch, index));
        assert!(asked.is_err(), "batch {batch}, index {index}");
    }
}

#[test]
fn parts_of_a_state_lie_inside_of_it() {
    let mut tensors = [tensor([1, 4, 2, 8]), tensor([1, 4, 2, 1]), tensor([1, 4, 2, 1])];
    let [output, max, sum] = tensors.each_mut().map(Tensor::view_mut);
    let mut state: CarriedState<'_, Cpu> = CarriedState { output, max, sum };
    for (axis, start, length) in triples() {
        let fits = axis < 3 && start.checked_add(length).is_some_and(|end| end <= [1, 4, 2][axis]);
        assert_eq!(state.narrow(axis, start, length).is_ok(), fits);
    }
}

#[test]
fn boxes_of_any_size_are_counted_without_overflow() {
    let one = [1.0_f32; 8];
    let max = usize::MAX;
    for shape in [[max, max, 0, 1], [max, max, 1, 8], [1 << 40, 1 << 40, 1, 1]] {
        let source = View::with_strides(&one, shape, [0, 0, 0, 1]).unwrap();
        let mut plan = ExchangePlan::default();
        plan.send(1, [0; 4], shape);
        let mut to = [0.0_f32; 8];
        let transfer =
            Transfer::<Cpu>::new(&plan, source, ViewMut::new(&mut to, [1, 1, 1, 8]).unwrap()).unwrap();
        let bytes = if shape.contains(&0) { 0 } else { u64::MAX };
        assert_eq!((transfer.bytes_sent_by(0), transfer.bytes_sent_by(1)), (bytes, 0));
        for (peer, extent) in pairs() {
            let mut plan = ExchangePlan::default();
            plan.receive(peer, [extent, 0, 0, 0], [1, 1, 1, 8]);
            let to = ViewMut::new(&mut to, [1, 1, 1, 8]).unwrap();
            let transfer = Transfer::<Cpu>::new(&plan, source, to);
            assert_eq!(transfer.is_ok(), extent == 0);
            assert!(transfer.is_err() || transfer.unwrap().check_peers(peer).is_err());
        }
    }
}

#[test]
fn masks_are_read_from_any_text() {
    let pieces =
        ["window", "causal", "none", "dense", "segments", "padding", "(", ")", ":", ",", "+", " ", "-", "1"];
    let more = ["18446744073709551615", "18446744073709551616", "\u{a0}", "ß", "\u{0}", "WINDOW", ""];
    let pieces: Vec<&str> = pieces.into_iter().chain(more).collect();
    for (a, b) in pieces.iter().flat_map(|a| pieces.iter().map(move |b| (a, b))) {
        for (c, d) in pieces.iter().flat_map(|c| pieces.iter().map(move |d| (c, d))) {
            let text = format!("{a}{b}{c}{d}");
            match text.parse::<Mask>() {
                Ok(mask) => assert_eq!(mask.to_string().parse(), Ok(mask), "{text}"),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
    }
    let huge = "window:18446744073709551615,18446744073709551615".parse::<Mask>();
    assert_eq!(huge, Ok(Mask::from(Span::Window { left: usize::MAX, right: usize::MAX })));
    assert!("window:18446744073709551616".parse::<Mask>().is_err());
}

#[test]
fn configurations_of_any_numbers_choose_or_are_refused() {
    let offered = ["none", "ulysses", "ring", "hybrid", "allgather_kv", "ulysses_allgather"];
    for (ulysses, ring, ranks) in triples().filter(|(.., ranks)| *ranks < usize::MAX) {
        for strategy in [None, Some("hybrid"), Some("ring"), Some(""), Some("mine")] {
            let config = ParallelConfig {
                strategy: strategy.map(str::to_owned),
                ulysses_degree: Some(ulysses),
                ring_degree: Some(ring),
                ..ParallelConfig::default()
            };
            if let Ok(choice) = config.choose(&offered, ranks) {
                assert_eq!(ulysses.checked_mul(ring), Some(ranks));
                assert!(choice < offered.len());
            }
            assert!(config.choose(&[], ranks).is_err());
        }
    }
    assert!(ParallelConfig::default().choose(&[], 1).is_err());
}

#[test]
fn worlds_of_no_ranks_or_too_many_are_refused() {
    let error = World::threads(0).run(|_| Ok::<_, Error>(())).unwrap_err().to_string();
    assert_eq!(error, "the number of ranks must be at least 1");
    for ranks in [5000, usize::MAX] {
        let error = World::threads(ranks).run(|_| Ok::<_, Error>(())).unwrap_err().to_string();
        assert!(error.contains("more than the 4096"), "{error}");
    }
    let world = World::threads(1).threads_per_rank(usize::MAX);
    let error = world.run(|_| Ok::<_, Error>(())).unwrap_err().to_string();
    assert!(error.contains("more than the 4096"), "{error}");
    let mut wide = [0.0_f32; 30];
    let error = LseMut::from_view(ViewMut::new(&mut wide, [1, 2, 5, 3]).unwrap()).unwrap_err().to_string();
    assert!(error.contains("a last axis of length 1"), "{error}");
}

#[test]
fn a_deadline_may_be_no_time_or_all_of_it() {
    let attend = |deadline| {
        World::threads(2).threads_per_rank(1).deadline(deadline).run(|comm| {
            let mut session = Open::open_with(comm, &ParallelConfig::strategy("ring"))?;
            let x = tensor([1, 2, 2, 4]);
            session.attend(&x, &x, &x, &AttentionMetadata::default()).map(drop)
        })
    };
    assert_eq!(attend(Duration::MAX), Ok(vec![(), ()]));
    let error = attend(Duration::ZERO).unwrap_err();
    assert!(matches!(error, Error::Deadline { .. } | Error::RankFailed { .. }), "{error}");
}

#[test]
fn views_that_repeat_an_element_may_be_longer_than_any_memory() {
    for (ranks, config) in every() {
        let answers = crate::rig::answers(ranks, |comm| {
            let mut session = Open::open_with(comm, &config).unwrap();
            let one = [1.0_f32; 8];
            let mut out = tensor([1, 1, 1, 1]);
            for seq in [usize::MAX, usize::MAX / 8, 1 << 59] {
                let x = View::with_strides(&one, [1, seq, 4, 8], [0, 0, 0, 1]).unwrap();
                let plain = AttentionMetadata::default();
                let error = session.attend_into(x, x, x, &plain, &mut out).unwrap_err();
                assert!(matches!(error, Error::TooLarge { .. } | Error::SeqSplit { .. }), "{error}");
                assert!(session.attend(x, x, x, &plain).is_err());
                let joint = AttentionMetadata::joint(x, x, x, JointStrategy::Rear);
                assert!(session.attend(x, x, x, &joint).is_err());
            }
            // The queries' heads and the keys' do not divide, and nobody waits for a list of divisors without end.
            let many = View::with_strides(&one, [1, 1, 1 << 60, 1], [0; 4]).unwrap();
            let seven = View::with_strides(&one, [1, 1, 7, 1], [0; 4]).unwrap();
            session.attend_into(many, seven, seven, &AttentionMetadata::default(), &mut out).unwrap_err()
        });
        for error in answers {
            let divides = error.to_string().contains("7 key/value heads do not divide");
            assert!(divides || matches!(error, Error::SeqSplit { .. }), "{error}");
        }
    }
}
