//! Sequences that do not divide, and shards that are not a rank's share.

use attn::Error;
use attn::prelude::*;

use crate::rig::{Open, Setup, every, hybrid, laid, named, refused, sharded, share, tensor, uneven};

/// Calls with shards of `query` and `key` positions, and says that the sequences are `whole` long.
fn call(
    lengths: impl Fn(&Open, usize) -> [usize; 2] + Sync,
    whole: Option<(usize, usize)>,
) -> impl Fn(&mut Open, usize) -> attn::Result<()> + Sync {
    move |session, rank| {
        let [query, key] = lengths(session, rank);
        let (query, key) = (tensor([1, query, 4, 8]), tensor([1, key, 4, 8]));
        let mut metadata = AttentionMetadata::default();
        if let Some((query, key)) = whole {
            metadata = metadata.with_sequence(query, key);
        }
        session.attend(&query, &key, &key, &metadata).map(drop)
    }
}

#[test]
fn a_sequence_must_divide_among_the_ranks() {
    for setup in sharded().into_iter().filter(|(ranks, _)| *ranks == 4) {
        let says = "`query`: 10 positions do not divide among 4 ranks: numbers of ranks that would do are 1, 2, 5 and \
                    10; or use `split = \"uneven\"`";
        refused(&setup, call(|_, _| [2, 2], Some((10, 8))), &[says]);
        refused(
            &setup,
            call(|_, _| [2, 2], Some((8, 10))),
            &["`key`: 10 positions do not divide among 4 ranks"],
        );
    }
}

#[test]
fn a_zigzag_sequence_must_divide_into_twice_as_many_stretches_as_ranks() {
    for (setup, share, seq, stretches) in [
        ((2, laid(RingLayout::Zigzag, named("ring"))), 3, 6, "4 stretches of a zigzag ring of 2: rings"),
        ((3, laid(RingLayout::Zigzag, named("ring"))), 3, 9, "6 stretches of a zigzag ring of 3: rings"),
        ((3, laid(RingLayout::Zigzag, hybrid(1, 3))), 3, 9, "6 stretches of a zigzag ring of 3: rings"),
    ] {
        let says =
            [format!("{seq} positions do not divide into the {stretches}"), "would do are of".to_owned()];
        let says: Vec<&str> = says.iter().map(String::as_str).collect();
        for whole in [None, Some((seq, seq))] {
            let error = refused(&setup, call(|_, _| [share; 2], whole), &says);
            assert!(matches!(error, Error::SeqSplit { tensor: "query", .. }), "{error}");
        }
    }
}

#[test]
fn a_shard_must_be_its_ranks_share() {
    for (ranks, config) in sharded() {
        let seq = 24;
        let says = format!("share of {seq} positions among {ranks} ranks");
        for setup in [(ranks, config.clone()), (ranks, uneven(config))] {
            let more = |more: [usize; 2]| {
                move |session: &Open, rank| more.map(|more| share(session, seq, rank) + more)
            };
            let told = Some((seq, seq));
            refused(&setup, call(more([1, 0]), told), &["`query` has shape [1,", "rank ", &says]);
            refused(&setup, call(more([0, 1]), told), &["`key` has shape [1,", "rank ", &says]);
        }
    }
}

#[test]
fn shares_of_an_uneven_split_are_not_alike() {
    let setup: Setup = (4, uneven(named("ring")));
    // 10 positions are 3, 3, 2 and 2.
    let twos = |_: &Open, _| [2, 2];
    let answers = crate::rig::answers(4, |comm| {
        let mut session = Open::open_with(comm.clone(), &setup.1)?;
        let answer = call(twos, Some((10, 10)))(&mut session, comm.rank());
        assert_eq!(session.traffic().sent, 0);
        answer
    });
    for (rank, answer) in answers.into_iter().enumerate() {
        let error = answer.unwrap_err().to_string();
        // Ranks whose share it is wait for the others, who have refused.
        let own = format!("expected [1, 3, 4, 8] (rank {rank}'s share of 10 positions among 4 ranks;");
        assert!(if rank < 2 { error.contains(&own) } else { error.contains("has ended") }, "{error}");
    }
}

#[test]
fn an_uneven_split_must_be_told_the_lengths() {
    for (ranks, config) in sharded() {
        let error = refused(
            &(ranks, uneven(config)),
            call(|_, rank| [rank + 1; 2], None),
            &[
                "`split = \"uneven\"` needs the lengths of the whole sequences",
                "`AttentionMetadata::with_sequence`",
            ],
        );
        assert!(matches!(error, Error::SequenceNeeded { .. }), "{error}");
    }
}

#[test]
fn a_sequence_of_no_positions_is_refused() {
    for (ranks, config) in every() {
        for setup in [(ranks, config.clone()), (ranks, uneven(config))] {
            for whole in [(0, 0), (0, 24), (24, 0)] {
                let says = format!("said to have {} queries and {} keys", whole.0, whole.1);
                refused(&setup, call(|_, _| [1, 1], Some(whole)), &[&says, "each at least 1"]);
            }
        }
    }
}

#[test]
fn replicated_keys_must_be_the_whole_sequence() {
    for setup in every() {
        let wrong = |session: &mut Open, rank: usize| {
            let n = share(session, 24, rank);
            let (query, key) = (tensor([1, n, 4, 8]), tensor([1, 6, 4, 8]));
            let metadata = AttentionMetadata::default().with_replicated_keys().with_sequence(24, 7);
            session.attend(&query, &key, &key, &metadata).map(drop)
        };
        let says =
            "`key` has shape [1, 6, 4, 8], expected [1, 7, 4, 8] (the whole sequence: it is replicated;";
        refused(&setup, wrong, &[says]);
    }
}

#[test]
fn lengths_without_end_are_errors() {
    for (ranks, config) in every() {
        for setup in [(ranks, config.clone()), (ranks, uneven(config))] {
            for whole in
                [(usize::MAX, usize::MAX), (usize::MAX, 24), (24, usize::MAX), (1 << 63, 24), (24, 1 << 62)]
            {
                let short = |session: &Open, rank| [share(session, 24, rank); 2];
                refused(&setup, call(short, Some(whole)), &[]);
                // A view that repeats one element may have such a share.
                let endless = |session: &mut Open, rank: usize| {
                    let length = |seq: usize| {
                        session.sharding().sequence(seq).map_or(seq, |layout| layout.length(rank))
                    };
                    let one = [1.0_f32; 8];
                    let view = |seq| View::with_strides(&one, [1, length(seq), 4, 8], [0, 0, 0, 1]);
                    let (query, key) = (view(whole.0)?, view(whole.1)?);
                    let mut out = tensor([1, 1, 4, 8]);
                    let metadata = AttentionMetadata::default().with_sequence(whole.0, whole.1);
                    session.attend_into(query, key, key, &metadata, &mut out)
                };
                refused(&setup, endless, &[]);
            }
        }
    }
}
