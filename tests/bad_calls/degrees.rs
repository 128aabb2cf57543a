//! Groups and configurations that a strategy cannot use: refused at the opening, before the group is split.

use attn::prelude::*;
use attn::{Error, ThreadComm};

use crate::rig::{Any, Counting, answers, gathering, hybrid, laid, named, uneven};

/// Opens a session on every rank, and none must succeed; they have told each other nothing.
#[track_caller]
fn fails<A: ParallelAttention<ThreadComm, f32>>(ranks: usize, config: &ParallelConfig, says: &str) -> Error {
    let mut errors = answers(ranks, |comm| {
        let error = Session::<A, _, f32>::open_with(comm.clone(), config).map(drop).unwrap_err();
        assert_eq!(comm.traffic().collectives, 0, "{config:?}: {error}");
        error
    });
    let error = errors.remove(0);
    assert!(errors.iter().all(|other| *other == error), "{config:?}: {error} and {errors:?}");
    assert!(error.to_string().contains(says), "{config:?} on {ranks}: {error}");
    error
}

fn degrees(ulysses: Option<usize>, ring: Option<usize>, allgather: Option<usize>) -> ParallelConfig {
    ParallelConfig {
        ulysses_degree: ulysses,
        ring_degree: ring,
        allgather_degree: allgather,
        ..ParallelConfig::default()
    }
}

#[test]
fn degrees_must_make_the_group() {
    let max = Some(usize::MAX);
    for (ranks, config, says) in [
        (2, degrees(Some(4), None, None), "ulysses_degree 4 makes 4, but the group has 2 ranks"),
        (2, degrees(None, Some(3), None), "ring_degree 3 makes 3, but the group has 2 ranks"),
        (2, degrees(None, None, Some(3)), "allgather_degree 3 makes 3, but the group has 2 ranks"),
        (4, hybrid(2, 4), "ulysses_degree 2 times ring_degree 4 is 8, but the group has 4 ranks"),
        (4, gathering(3, 2), "ulysses_degree 3 times allgather_degree 2 is 6, but the group has 4 ranks"),
        (2, degrees(max, max, None), "but the group has 2 ranks"),
        (
            4,
            ParallelConfig { ulysses_degree: Some(3), ..named("hybrid") },
            "4 ranks are no multiple of `ulysses` 3",
        ),
        (
            4,
            ParallelConfig { ring_degree: Some(3), ..named("hybrid") },
            "4 ranks are no multiple of `ring` 3",
        ),
        (
            4,
            ParallelConfig { ring_degree: max, ..named("hybrid") },
            "4 ranks are no multiple of `ring` 1844674",
        ),
        (4, named("hybrid"), "give `ulysses` or `ring`, in the attribute or as a degree"),
        (4, named("hybrid"), "pairs that would do are 1 x 4, 2 x 2, 4 x 1"),
        (6, named("ulysses_allgather"), "pairs that would do are 1 x 6, 2 x 3, 3 x 2, 6 x 1"),
        (4, degrees(Some(2), Some(2), Some(2)), "ask for all at once, which no strategy does"),
        (4, degrees(None, Some(2), Some(2)), "ask for all at once, which no strategy does"),
    ] {
        assert!(matches!(fails::<Any>(ranks, &config, says), Error::Configuration(_)));
    }
}

#[test]
fn no_degree_is_zero() {
    let zero = Some(0);
    for (config, says) in [
        (degrees(zero, None, None), "`ulysses_degree` must be at least 1"),
        (degrees(None, zero, None), "`ring_degree` must be at least 1"),
        (degrees(None, None, zero), "`allgather_degree` must be at least 1"),
        (hybrid(0, 4), "`ulysses_degree` must be at least 1"),
        (gathering(4, 0), "`allgather_degree` must be at least 1"),
    ] {
        fails::<Any>(4, &config, says);
    }
}

#[test]
fn a_strategy_has_no_degree_and_no_layout_but_its_own() {
    for layout in [RingLayout::Zigzag, RingLayout::Striped] {
        let says = format!("has no layout `{}`: strategies that have it are ring and hybrid", layout.name());
        for (ranks, config) in [
            (1, named("none")),
            (2, named("ulysses")),
            (2, degrees(Some(2), None, None)),
            (2, named("allgather_kv")),
            (4, gathering(2, 2)),
        ] {
            fails::<Any>(ranks, &laid(layout, config), &says);
        }
    }
    let config = ParallelConfig { ring_degree: Some(2), ..named("ulysses") };
    fails::<Any>(2, &config, "strategy `ulysses` has no ring_degree: 2 contradicts it");
    let config = ParallelConfig { allgather_degree: Some(2), ..named("hybrid") };
    fails::<Any>(4, &ParallelConfig { ulysses_degree: Some(2), ..config }, "has no allgather_degree");
}

#[test]
fn nothing_is_taken_for_what_was_not_said() {
    fails::<Any>(
        2,
        &ParallelConfig::default(),
        "nothing says which strategy to use: set `strategy` to one of none, ",
    );
    fails::<Any>(
        2,
        &named("rings"),
        "strategy `rings` is not offered here: expected one of none, ulysses, ring",
    );
    fails::<Any>(2, &named(""), "strategy `` is not offered here");
    fails::<Any>(2, &laid(RingLayout::Zigzag, ParallelConfig::default()), "nothing says which strategy");
    for ranks in [2, 3] {
        let says =
            format!("strategy `none` runs on one rank, this group has {ranks}: use one rank, or a strategy");
        assert_eq!(fails::<Any>(ranks, &named("none"), &says), Error::NotParallel { ranks });
    }
}

#[parallel_attention(
    strategy = "hybrid",
    ulysses = 2,
    ring = 2,
    layout = "zigzag",
    split = "uneven",
    backend = Counting
)]
struct TwoByTwo;

#[parallel_attention(strategy = "hybrid", ulysses = 2, backend = Counting)]
struct PairsInARing;

#[parallel_attention(strategy = "ring", ring = 3, backend = Counting)]
struct RingOfThree;

#[parallel_attention(strategy = "ulysses", ulysses = 3, split = "strict", backend = Counting)]
struct UlyssesOfThree;

#[parallel_attention(strategy = "allgather_kv", allgather = 3, backend = Counting)]
struct GatherOfThree;

#[parallel_attention(strategy = "ulysses_allgather", ulysses = 2, allgather = 2, backend = Counting)]
struct GatherOfPairs;

#[test]
fn the_attributes_degrees_must_make_the_group() {
    let any = ParallelConfig::default();
    let says = |key: &str| format!("the attribute says `{key} = 3`, but this call has a group of 2 ranks");
    fails::<RingOfThree>(2, &any, &says("ring"));
    fails::<UlyssesOfThree>(2, &any, &says("ulysses"));
    fails::<GatherOfThree>(2, &any, &says("allgather"));
    fails::<TwoByTwo>(6, &any, "`ulysses` 2 times `ring` 2 is 4, but the group has 6 ranks");
    fails::<GatherOfPairs>(2, &any, "`ulysses` 2 times `allgather` 2 is 4, but the group has 2 ranks");
    fails::<PairsInARing>(3, &any, "strategy `hybrid`: 3 ranks are no multiple of `ulysses` 2");
}

#[test]
fn a_configuration_must_not_contradict_the_attribute() {
    for (config, says) in [
        (hybrid(4, 1), "the attribute says `ulysses = 2`, but this call has a configuration that asks for 4"),
        (hybrid(1, 4), "the attribute says `ulysses = 2`, but this call has a configuration that asks for 1"),
        (
            laid(RingLayout::Striped, named("hybrid")),
            "`layout = \"zigzag\"`, but this call has a configuration that asks for \"striped\"",
        ),
        (
            ParallelConfig { split: Some(Split::Strict), ..ParallelConfig::default() },
            "`split = \"uneven\"`, but this call has a configuration that asks for \"strict\"",
        ),
        (named("ring"), "strategy `ring` is not offered here: expected one of hybrid"),
    ] {
        fails::<TwoByTwo>(4, &config, says);
    }
    let says = "`split = \"strict\"`, but this call has a configuration that asks for \"uneven\"";
    fails::<UlyssesOfThree>(3, &uneven(ParallelConfig::default()), says);
}

#[test]
fn a_configuration_completes_what_the_attribute_leaves_open() {
    let ring = |ring| ParallelConfig { ring_degree: Some(ring), ..ParallelConfig::default() };
    let answers = answers(4, |comm| {
        let session = Session::<PairsInARing, _, f32>::open_with(comm, &ring(2))?;
        Ok::<_, Error>((session.sharding().ulysses, session.sharding().outer))
    });
    assert_eq!(answers, vec![Ok((2, 2)); 4]);
    fails::<PairsInARing>(6, &ring(2), "`ulysses` 2 times `ring` 2 is 4, but the group has 6 ranks");
}

#[parallel_attention(strategy = ["ulysses", "hybrid"], heads = 6, kv_heads = 6, backend = Counting)]
struct SixHeads;

#[test]
fn fixed_heads_that_do_not_divide_are_refused_at_the_opening() {
    let says = "6 query heads do not divide among 4 ranks: degrees that do are 1, 2, 3 and 6";
    assert!(matches!(fails::<SixHeads>(4, &named("ulysses"), says), Error::HeadSplit(_)));
    fails::<SixHeads>(4, &hybrid(4, 1), says);
}
