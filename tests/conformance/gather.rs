//! All-gather under masks by position: which keys the queries of each rank need, and that no others are sent.

use attn::prelude::*;
use attn::{Error, Mask};

use crate::probe::{Probed, check, coordinates};
use crate::support::{Problem, Setup, WithFlash, attend, call, open};

/// Of three packed sequences of 7, 7 and 2 tokens on eight ranks: where the parts of each rank's two queries end, where
/// the keys of each part end, and at which token these keys start.
const PREPARED: [(&[usize], &[usize], usize); 8] = [
    (&[2], &[2], 0),
    (&[2], &[4], 0),
    (&[2], &[6], 0),
    (&[1, 2], &[7, 8], 0),
    (&[2], &[3], 7),
    (&[2], &[5], 7),
    (&[2], &[7], 7),
    (&[2], &[2], 14),
];

/// The keys that each of 16 queries attends under the table: its part's, aligned at the last ones.
fn prepared() -> Vec<u32> {
    let mut attended = Vec::new();
    for (query_ends, key_ends, start) in PREPARED {
        let (mut query, mut key) = (0, 0);
        for (&query_end, &key_end) in query_ends.iter().zip(key_ends) {
            for i in query..query_end {
                let behind = query_end - 1 - i;
                attended.push((start + key..start + key_end - behind).map(|j| 1 << j).sum());
            }
            (query, key) = (query_end, key_end);
        }
    }
    attended
}

#[test]
fn packed_causal_queries_attend_what_the_table_says() {
    let segments: Vec<i32> = [(0, 7), (1, 7), (2, 2)].iter().flat_map(|&(id, n)| [id].repeat(n)).collect();
    let problem = Problem::new(1, 16, 1, 3).mask(Mask { segments: true, ..Span::Causal.into() });
    let mut inputs = coordinates(&problem, 0);
    inputs.segments = Some([segments.clone(), segments]);
    let expected = prepared();
    assert_eq!(
        expected[6..8],
        [0b111_1111, 0b1000_0000],
        "rank 3 has the end of one and the start of another"
    );
    for setup in [
        Setup::NONE,
        Setup::allgather_kv(8),
        Setup::ulysses_allgather(1, 8),
        Setup::ring(8),
        Setup::ring(8).layout(RingLayout::Zigzag),
        Setup::ring(8).layout(RingLayout::Striped),
    ] {
        let whole = attend::<Probed, _>(setup, &inputs).unwrap();
        let attended: Vec<u32> = whole.lse.iter().map(|bits| *bits as u32).collect();
        assert_eq!(attended, expected, "{setup}");
    }
}

/// How many positions each of eight ranks sends to others, on the way in.
fn positions_sent(setup: Setup, problem: Problem) -> Vec<u64> {
    check::<Probed>(setup, &problem, 0);
    let inputs = problem.inputs::<f32>(0);
    // Keys and values, four bytes an element.
    let each = (2 * problem.batch * problem.kv_heads / setup.sharding.ulysses * problem.head_dim * 4) as u64;
    World::threads(setup.ranks())
        .run(|comm| {
            let mut session = open::<WithFlash, _, f32>(comm, setup)?;
            call(&mut session, &inputs)?;
            let sent = session.traffic().sent;
            assert_eq!(sent % each, 0);
            Ok::<_, Error>(sent / each)
        })
        .unwrap()
}

#[test]
fn under_a_causal_mask_keys_go_to_later_ranks_alone() {
    let setup = Setup::allgather_kv(8);
    let problem = Problem::new(2, 16, 4, 3).kv_heads(2);
    assert_eq!(positions_sent(setup, problem), [14; 8]);
    assert_eq!(positions_sent(setup, problem.causal()), [14, 12, 10, 8, 6, 4, 2, 0]);
    // Each rank needs the whole share before its own, and one position of the share before that.
    assert_eq!(positions_sent(setup, problem.window(3, 0)), [3, 3, 3, 3, 3, 3, 2, 0]);
    // One key to either side.
    assert_eq!(positions_sent(setup, problem.window(1, 1)), [1, 2, 2, 2, 2, 2, 2, 1]);
    // One query a rank, which stands eight keys further: query r attends keys 0 to r + 8.
    let cross = Problem::new(2, 8, 4, 3).seq_k(16).causal();
    assert_eq!(positions_sent(setup, cross), [14, 14, 14, 14, 13, 9, 5, 1]);
    // Nothing is gathered that every rank has.
    assert_eq!(positions_sent(setup, problem.replicated_keys()), [0; 8]);
}

#[test]
fn uneven_shares_are_gathered_as_they_are() {
    // Shares of 2, 2, 1, 1: everything goes to three others, or under a causal mask to those behind.
    let setup = Setup::allgather_kv(4).uneven();
    let problem = Problem::new(1, 6, 3, 3);
    assert_eq!(positions_sent(setup, problem), [6, 6, 3, 3]);
    assert_eq!(positions_sent(setup, problem.causal()), [6, 4, 1, 0]);
    // Shares of 1, 1, 0, 0, of queries and keys: who has no queries gets no keys.
    assert_eq!(positions_sent(setup, Problem::new(1, 2, 3, 3)), [1, 1, 0, 0]);
}
