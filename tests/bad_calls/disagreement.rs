//! Ranks that call differently: every one of them learns of it, before anything moves.

use attn::prelude::*;
use attn::{Edge, Edges, Error, RmsNorm, ThreadComm};

use crate::rig::{Open, Setup, answers, gathering, hybrid, laid, named, sharded, tensor, uneven};

const SEQ: usize = 24;

/// Every rank's answer, and what it has sent.
type Answers = Vec<(attn::Result<()>, u64)>;

/// Opens with each rank's own configuration, and calls.
fn ask(
    ranks: usize,
    config: impl Fn(usize) -> ParallelConfig + Sync,
    call: impl Fn(&mut Open, usize) -> attn::Result<()> + Sync,
) -> Answers {
    answers(ranks, |comm: ThreadComm| {
        let rank = comm.rank();
        match Open::open_with(comm.clone(), &config(rank)) {
            Ok(mut session) => (call(&mut session, rank), session.traffic().sent),
            Err(error) => (Err(error), comm.traffic().sent),
        }
    })
}

#[track_caller]
fn all_disagree(answers: Answers, who: &str, says: &[&str]) {
    for (rank, (answer, sent)) in answers.into_iter().enumerate() {
        let Err(error) = answer else { panic!("{who}: rank {rank} answers the call") };
        assert!(matches!(error, Error::RanksDisagree { .. }), "{who}: rank {rank}: {error}");
        let text = error.to_string();
        assert!(says.iter().all(|part| text.contains(part)), "{who}: rank {rank}: {text}");
        assert_eq!(sent, 0, "{who}: rank {rank} has sent something: {text}");
    }
}

/// Lets one rank call with `theirs` and the others with `ours`, each rank in turn, under every strategy.
#[track_caller]
fn differ(ours: &AttentionMetadata<'_, f32>, theirs: &AttentionMetadata<'_, f32>, says: &[&str]) {
    for (ranks, config) in sharded() {
        for odd in [0, ranks - 1] {
            let call = |session: &mut Open, rank: usize| {
                let n = session.sharding().sequence(SEQ).unwrap().length(rank);
                let metadata = if rank == odd { theirs } else { ours };
                let query = tensor([1, n, 4, 8]);
                let keys = match metadata.keys {
                    attn::KeyPlacement::Sharded => n,
                    attn::KeyPlacement::Replicated => SEQ,
                };
                let key = tensor([1, keys, 4, 8]);
                session.attend(&query, &key, &key, metadata).map(drop)
            };
            all_disagree(
                ask(ranks, |_| config.clone(), call),
                &format!("{config:?}, rank {odd} of {ranks}"),
                says,
            );
        }
    }
}

fn plain() -> AttentionMetadata<'static, f32> {
    AttentionMetadata::default()
}

#[test]
fn in_the_masks_that_they_have() {
    let ids = [0; SEQ];
    let dense = &Tensor::<u8>::from_fn([1, 1, SEQ, SEQ], |_| 1).unwrap();
    let window = |left| plain().with_span(Span::Window { left, right: 0 });
    differ(&plain(), &plain().with_causal(), &["mask none", "mask causal"]);
    differ(&window(3), &window(4), &["mask window(3, 0)", "mask window(4, 0)"]);
    differ(&plain(), &plain().with_key_lengths(&[SEQ]), &["mask none", "mask padding"]);
    differ(
        &plain().with_causal(),
        &plain().with_causal().with_segments(Segments::of(&ids)),
        &["causal+segments"],
    );
    differ(&plain(), &plain().with_dense(dense), &["mask none", "mask dense"]);
}

#[test]
fn in_the_values_of_key_lengths() {
    differ(&plain().with_key_lengths(&[20]), &plain().with_key_lengths(&[19]), &["mask padding (digest "]);
}

#[test]
fn in_the_values_of_segments() {
    let (ours, mut theirs) = ([3; SEQ], [3; SEQ]);
    theirs[SEQ - 1] = 4;
    let of = |ids| plain().with_segments(Segments::of(ids));
    differ(&of(&ours), &of(&theirs), &["mask segments (digest "]);
    let crossed = |query, key| plain().with_segments(Segments { query, key });
    differ(&crossed(&ours, &theirs), &crossed(&theirs, &ours), &["mask segments (digest "]);
}

#[test]
fn but_not_in_where_equal_segments_stand() {
    let (ids, copy) = ([3; SEQ], [3; SEQ]);
    for (ranks, config) in sharded() {
        let call = |session: &mut Open, rank: usize| {
            let x = tensor([1, session.sharding().sequence(SEQ).unwrap().length(rank), 4, 8]);
            let segments = if rank == 0 { Segments::of(&ids) } else { Segments { query: &ids, key: &copy } };
            session.attend(&x, &x, &x, &plain().with_segments(segments)).map(drop)
        };
        for (answer, _) in ask(ranks, |_| config.clone(), call) {
            assert_eq!(answer, Ok(()), "{config:?}");
        }
    }
}

#[test]
fn in_where_keys_are() {
    let replicated = || plain().with_replicated_keys();
    differ(&plain(), &replicated(), &["replicated"]);
    differ(&replicated(), &plain(), &["replicated"]);
    // Nothing is moved at all, but what ranks compute must be of one piece.
    differ(&replicated(), &replicated().with_causal(), &["replicated", "mask causal"]);
    let lengths = |lengths| replicated().with_key_lengths(lengths);
    differ(&lengths(&[20]), &lengths(&[19]), &["replicated", "digest"]);
}

#[test]
fn in_scale_and_joint_tokens() {
    differ(&plain(), &plain().with_scale(0.25), &["scale 0.25"]);
    let (three, two) = (&tensor([1, 3, 4, 8]), &tensor([1, 2, 4, 8]));
    let joint = |text, order| AttentionMetadata::joint(text, text, text, order);
    let (front, rear) = (JointStrategy::Front, JointStrategy::Rear);
    differ(&plain(), &joint(three, front), &["3 joint tokens in front"]);
    differ(&joint(three, front), &joint(two, front), &["3 joint tokens", "2 joint tokens"]);
    differ(&joint(three, front), &joint(three, rear), &["in front", "in rear"]);
}

#[test]
fn in_what_is_done_to_queries_and_keys() {
    let of = |eps: f32| Edge { norm: Some(RmsNorm { weight: None, eps }), rope: None };
    let query = &Edges { query: of(0.0), ..Edges::default() };
    let key = &Edges { key: of(0.0), ..Edges::default() };
    let other = &Edges { key: of(0.5), ..Edges::default() };
    differ(&plain(), &plain().with_edges(query), &["edges (digest"]);
    differ(&plain().with_edges(key), &plain().with_edges(query), &["edges (digest"]);
    differ(&plain().with_edges(key), &plain().with_edges(other), &["edges (digest"]);
}

#[test]
fn in_the_length_of_the_whole_sequence() {
    for (ranks, config) in sharded() {
        // One position more, which only the first rank would hold.
        let call = |session: &mut Open, rank: usize| {
            let layout = session.sharding().sequence(SEQ).unwrap();
            let odd = (1..ranks).find(|rank| {
                session.sharding().sequence(SEQ + 1).unwrap().length(*rank) == layout.length(*rank)
            });
            let whole = if Some(rank) == odd { SEQ + 1 } else { SEQ };
            let x = tensor([1, layout.length(rank), 4, 8]);
            session.attend(&x, &x, &x, &plain().with_sequence(whole, whole)).map(drop)
        };
        all_disagree(
            ask(ranks, |_| uneven(config.clone()), call),
            &format!("{config:?}"),
            &["[1, 24,", "[1, 25,"],
        );
    }
}

#[test]
fn in_heads_batch_and_length() {
    for (shape, other) in
        [([1, 4, 4, 8], [1, 4, 8, 8]), ([1, 4, 4, 8], [2, 4, 4, 8]), ([1, 4, 4, 8], [1, 6, 4, 8])]
    {
        for (ranks, config) in sharded() {
            let call = |_: &mut Open, rank: usize| (rank, tensor(if rank == 1 { other } else { shape }));
            let call = |session: &mut Open, rank: usize| {
                let (_, x) = call(session, rank);
                session.attend(&x, &x, &x, &plain()).map(drop)
            };
            all_disagree(
                ask(ranks, |_| config.clone(), call),
                &format!("{config:?}, {other:?}"),
                &["rank 1"],
            );
        }
    }
}

/// Lets the last rank open with another configuration.
#[track_caller]
fn open_differently((ranks, ours): Setup, theirs: ParallelConfig, says: &[&str]) {
    let config = |rank| if rank == ranks - 1 { theirs.clone() } else { ours.clone() };
    let call = |session: &mut Open, rank: usize| {
        let x = tensor([1, session.sharding().sequence(SEQ).unwrap().length(rank), 4, 8]);
        session.attend(&x, &x, &x, &plain().with_sequence(SEQ, SEQ)).map(drop)
    };
    all_disagree(ask(ranks, config, call), &format!("{ours:?} and {theirs:?}"), says);
}

#[test]
fn in_the_layout() {
    let (zigzag, striped) = (RingLayout::Zigzag, RingLayout::Striped);
    open_differently(
        (3, named("ring")),
        laid(zigzag, named("ring")),
        &["3 ranks, contiguous", "3 ranks, zigzag"],
    );
    let (ours, theirs) = (laid(zigzag, hybrid(2, 2)), laid(striped, hybrid(2, 2)));
    open_differently((4, ours), theirs, &["2 x 2 ranks, zigzag", "2 x 2 ranks, striped"]);
}

#[test]
fn in_the_split() {
    for (ranks, config) in sharded() {
        open_differently((ranks, config.clone()), uneven(config), &["strict", "uneven"]);
    }
}

#[test]
fn in_the_strategy() {
    for (ours, theirs) in [
        ((2, named("ring")), named("ulysses")),
        ((4, named("ulysses")), named("allgather_kv")),
        ((4, named("ring")), hybrid(2, 2)),
        ((4, hybrid(2, 2)), named("ulysses")),
        ((4, hybrid(2, 2)), gathering(2, 2)),
        ((4, hybrid(4, 1)), hybrid(2, 2)),
        ((4, hybrid(2, 2)), hybrid(1, 4)),
        ((8, hybrid(2, 4)), hybrid(4, 2)),
    ] {
        open_differently(ours, theirs, &[]);
    }
}
