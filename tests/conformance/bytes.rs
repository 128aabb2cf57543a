//! What each rank sends to others in a call, by formula, and in how many collective calls.

use attn::prelude::*;
use attn::{Error, KeyPlacement, Run, Sharding, TensorLayout, Traffic};
use half::f16;

use crate::communicator::{Event, Log, Witness};
use crate::support::{Problem, Setup, WithFlash, call, open, share};

#[parallel_attention(strategy = ["ulysses", "hybrid", "ulysses_allgather"], fuse_qkv = false)]
struct OneByOne;

/// What each rank moves in one call, without joint tokens and masks.
fn moved<A, T>(setup: Setup, problem: Problem, with_lse: bool) -> Vec<Traffic>
where
    A: ParallelAttention<attn::ThreadComm, T>,
    T: Element,
{
    let inputs = problem.inputs::<T>(0);
    let world = World::threads(setup.ranks()).threads_per_rank(1);
    let moved = world.run(|comm| {
        let rank = comm.rank();
        let mut session = open::<A, _, T>(comm, setup)?;
        let shard = |tensor: &Tensor<T>, sharded: bool| {
            let seq = tensor.shape()[1];
            let positions = match sharded {
                true => setup.sharding.sequence(seq).unwrap().positions(rank),
                false => Run::of(0..seq).into(),
            };
            share(tensor, &positions, TensorLayout::Bshd)
        };
        let sharded = problem.keys == KeyPlacement::Sharded;
        let query = shard(&inputs.query, true)?;
        let (key, value) = (shard(&inputs.key, sharded)?, shard(&inputs.value, sharded)?);
        let [batch, rows, heads, _] = query.shape();
        let mut out = query.clone();
        let mut lse = vec![0.0; batch * heads * rows];
        let before = session.traffic();
        let mut outputs = Outputs::new(&mut out);
        if with_lse {
            outputs = outputs.with_lse(LseMut::new(&mut lse, [batch, heads, rows])?);
        }
        session.attend_into(&query, &key, &value, &inputs.metadata(None), outputs)?;
        Ok::<_, Error>(session.traffic() - before)
    });
    moved.unwrap_or_else(|error| panic!("{setup}, {problem:?}: {error}"))
}

/// What each rank sends under a strict split, in bytes, with `e` bytes an element. A key head that several ranks need
/// goes to each of them and to no other, so there are as many as Ulysses ranks at least.
fn formula(setup: Setup, problem: Problem, e: usize, with_lse: bool) -> u64 {
    let Problem { batch, seq_q, seq_k, heads, kv_heads, head_dim, keys, .. } = problem;
    let Sharding { ulysses, outer, .. } = setup.sharding;
    let (ranks, kv_heads) = (ulysses * outer, kv_heads.max(ulysses));
    let seq_k = if keys == KeyPlacement::Sharded { seq_k } else { 0 };
    // Query and output, key and value: all but this rank's heads of its positions.
    let others = |bytes: usize| bytes / ranks * (ulysses - 1) / ulysses;
    let exchanged = others((2 * heads * seq_q + 2 * kv_heads * seq_k) * batch * head_dim * e);
    let sums = if with_lse { others(heads * seq_q * batch * 4) } else { 0 };
    // Keys and values of this rank's heads: each of the ring's ranks gets each block but its own.
    let shared = 2 * (kv_heads / ulysses) * batch * head_dim * e * (seq_k / outer) * (outer - 1);
    (exchanged + sums + shared) as u64
}

#[track_caller]
fn check<T: Element>(setup: Setup, problem: Problem, with_lse: bool)
where
    WithFlash: ParallelAttention<attn::ThreadComm, T>,
{
    let sent: Vec<u64> =
        moved::<WithFlash, T>(setup, problem, with_lse).iter().map(|moved| moved.sent).collect();
    let expected = formula(setup, problem, size_of::<T>(), with_lse);
    assert_eq!(sent, vec![expected; setup.ranks()], "{setup}, {problem:?}, with LSE: {with_lse}");
}

#[test]
fn ranks_send_the_bytes_that_the_formulas_say() {
    for ranks in [1, 2, 4, 8] {
        for setup in Setup::of_ranks(ranks) {
            // As many key heads as ranks and more, fewer, and one.
            for kv_heads in [8, 4, 2, 1] {
                let problem = Problem::new(2, 32, 8, 3).kv_heads(kv_heads);
                check::<f16>(setup, problem, false);
                check::<f32>(setup, problem.seq_k(48), true);
                check::<f16>(setup, problem.seq_k(7).replicated_keys(), false);
            }
        }
    }
    // Sixteen key heads on fewer ranks; three and six ranks.
    for setup in [Setup::ulysses(4), Setup::hybrid(2, 2), Setup::ulysses_allgather(4, 2)] {
        check::<f16>(setup, Problem::new(1, 16, 16, 3), true);
    }
    for setup in [Setup::ulysses(3), Setup::hybrid(3, 2), Setup::ring(6), Setup::ulysses_allgather(2, 3)] {
        check::<f32>(setup, Problem::new(1, 36, 12, 3).kv_heads(6), false);
    }
}

/// Four ranks, eight positions, four heads of four halves each, keys of two heads.
#[test]
fn the_bytes_of_a_small_call_are_these() {
    let problem = Problem::new(1, 8, 4, 4).kv_heads(2);
    for (setup, bytes) in [
        // Of 2 positions: 3 heads of q and 3 of k and v each go away, 3 heads of out come from elsewhere; 8 bytes a head.
        (Setup::ulysses(4), 2 * (3 + 3 + 3 + 3) * 8),
        // Blocks of 2 positions and 2 heads of k and v, three times.
        (Setup::ring(4), 3 * 2 * (2 + 2) * 8),
        (Setup::allgather_kv(4), 3 * 2 * (2 + 2) * 8),
        // Of 2 positions: 2 heads of q, 1 of k and v each, 2 of out. Then a block of 4 positions and 1 head of k and v.
        (Setup::hybrid(2, 2), 2 * (2 + 1 + 1 + 2) * 8 + 4 * (1 + 1) * 8),
        (Setup::ulysses_allgather(2, 2), 2 * (2 + 1 + 1 + 2) * 8 + 4 * (1 + 1) * 8),
    ] {
        let moved = moved::<WithFlash, f16>(setup, problem, false);
        assert!(moved.iter().all(|moved| moved.sent == bytes), "{setup}: {moved:?}, not {bytes}");
        assert_eq!(formula(setup, problem, 2, false), bytes);
    }
}

/// What a mask hides goes round the ring all the same, but is not gathered.
#[test]
fn masks_save_bytes_where_keys_are_gathered() {
    let problem = Problem::new(1, 16, 4, 4);
    let sent = |setup, problem| -> Vec<u64> {
        moved::<WithFlash, f16>(setup, problem, false).iter().map(|moved| moved.sent).collect()
    };
    assert_eq!(sent(Setup::ring(4), problem.causal()), sent(Setup::ring(4), problem));
    let whole = formula(Setup::allgather_kv(4), problem, 2, false);
    assert_eq!(sent(Setup::allgather_kv(4), problem.causal()), [whole, whole / 3 * 2, whole / 3, 0]);
    let (exchanged, gathered) = (2 * 4 * 4 * 4 * 2, 2 * 2 * 8 * 4 * 2);
    let causal = sent(Setup::ulysses_allgather(2, 2), problem.causal());
    assert_eq!(causal, [exchanged + gathered, exchanged + gathered, exchanged, exchanged]);
}

/// What one call asks of the communicator, which is the same on every rank.
fn calls<A: ParallelAttention<Witness, f32>>(setup: Setup) -> Vec<String> {
    let log = Log::default();
    let inputs = Problem::new(1, 16, 8, 4).inputs::<f32>(0);
    World::threads(setup.ranks())
        .run(|comm| call(&mut open::<A, _, f32>(Witness::new(comm, &log), setup)?, &inputs))
        .unwrap_or_else(|error| panic!("{setup}: {error}"));
    let mut by_rank = log.by_rank().into_iter().map(|events| {
        let calls = events.into_iter().filter(|event| !matches!(event, Event::Split { .. }));
        calls.map(|event| event.to_string()).collect::<Vec<_>>()
    });
    let first = by_rank.next().unwrap();
    assert!(by_rank.all(|calls| calls == first), "{setup}");
    first
}

#[test]
fn query_key_and_value_go_in_one_exchange() {
    let (fused, gather, home) = ("pre_attention of 3", "gather of 2", "post_attention of 2");
    assert_eq!(calls::<WithFlash>(Setup::ulysses(4)), [fused, home]);
    assert_eq!(calls::<WithFlash>(Setup::hybrid(2, 2)), [fused, "rotate", home]);
    assert_eq!(calls::<WithFlash>(Setup::ulysses_allgather(2, 2)), [fused, gather, home]);
    assert_eq!(calls::<WithFlash>(Setup::ring(4)), ["rotate"]);
    assert_eq!(calls::<WithFlash>(Setup::allgather_kv(4)), [gather]);
    let one = "pre_attention of 1";
    assert_eq!(calls::<OneByOne>(Setup::ulysses(4)), [one, one, one, home]);
    assert_eq!(calls::<OneByOne>(Setup::hybrid(2, 2)), [one, one, one, "rotate", home]);
    assert_eq!(calls::<OneByOne>(Setup::ulysses_allgather(2, 2)), [one, one, one, gather, home]);
}

#[test]
fn one_exchange_sends_as_much_as_three() {
    for setup in [Setup::ulysses(4), Setup::hybrid(2, 4), Setup::ulysses_allgather(4, 2)] {
        let problem = Problem::new(2, 32, 8, 3).kv_heads(2);
        let (one, three) =
            (moved::<WithFlash, f32>(setup, problem, false), moved::<OneByOne, f32>(setup, problem, false));
        for (one, three) in one.iter().zip(&three) {
            assert_eq!((one.sent, one.collectives + 2), (three.sent, three.collectives), "{setup}");
        }
    }
}
