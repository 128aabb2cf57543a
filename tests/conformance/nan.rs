//! What is not attended is not read: a NaN reaches the rows that attend it, and no others.

use attn::prelude::*;
use proptest::prelude::*;

use crate::cases::{Case, Limits, cases};
use crate::support::{Inputs, Problem, Random, Setup, Token, Whole, WithFlash, WithSdpa, attend};

/// A key and value, of one head in one row of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    batch: usize,
    kv_head: usize,
    key: Token,
}

fn queries(problem: &Problem) -> impl Iterator<Item = Token> + use<> {
    (0..problem.seq_q).map(Token::At).chain((0..problem.joint).map(Token::Joint))
}

/// Whether a query of some head attends a key.
fn attends(inputs: &Inputs<f32>, head: usize, query: Token, place: Place) -> bool {
    let group = inputs.problem.heads / inputs.problem.kv_heads;
    head / group == place.kv_head && inputs.allows(place.batch, head, query, place.key)
}

/// Puts something in the place of an element of a key or a value.
fn poison(inputs: &mut Inputs<f32>, place: Place, in_key: bool, with: f32) {
    let Problem { seq_k, kv_heads, head_dim, joint, .. } = inputs.problem;
    let which = if in_key { 1 } else { 2 };
    let (tensor, seq, position) = match (place.key, &mut inputs.joint) {
        (Token::Joint(index), Some(tensors)) => (&mut tensors[which], joint, index),
        (Token::At(position), _) if in_key => (&mut inputs.key, seq_k, position),
        (Token::At(position), _) => (&mut inputs.value, seq_k, position),
        (Token::Joint(_), None) => unreachable!("there are no joint tokens"),
    };
    let row = (place.batch * seq + position) * kv_heads + place.kv_head;
    tensor.as_mut_slice()[row * head_dim] = with;
}

fn run<A>(setup: Setup, inputs: &Inputs<f32>) -> Result<Whole<f32>, TestCaseError>
where
    A: ParallelAttention<attn::ThreadComm, f32>,
{
    attend::<A, f32>(setup, inputs).map_err(|error| TestCaseError::fail(format!("{setup}: {error}")))
}

fn check<A>(case: &Case) -> Result<(), TestCaseError>
where
    A: ParallelAttention<attn::ThreadComm, f32>,
{
    let Case { setup, problem, seed } = case;
    let mut random = Random(*seed);
    let mut inputs = problem.inputs::<f32>(*seed);
    let clean = run::<A>(*setup, &inputs)?;
    let all = (0..problem.batch)
        .flat_map(|batch| (0..problem.kv_heads).flat_map(move |kv_head| places(problem, batch, kv_head)));
    let (attended, unseen): (Vec<Place>, Vec<Place>) = all.partition(|place| {
        (0..problem.heads).any(|head| queries(problem).any(|query| attends(&inputs, head, query, *place)))
    });
    // All that nobody attends, and one that somebody does.
    for place in &unseen {
        poison(&mut inputs, *place, true, f32::NAN);
        poison(&mut inputs, *place, false, f32::NAN);
    }
    let seen = (!attended.is_empty()).then(|| attended[random.below(attended.len())]);
    if let Some(place) = seen {
        let (in_key, with) = [(true, f32::NAN), (false, f32::NAN), (false, f32::INFINITY)][random.below(3)];
        poison(&mut inputs, place, in_key, with);
    }
    let whole = run::<A>(*setup, &inputs)?;
    let Problem { seq_q, heads, head_dim, joint, .. } = *problem;
    for (batch, head) in (0..problem.batch).flat_map(|batch| (0..heads).map(move |head| (batch, head))) {
        for query in queries(problem) {
            let row = |out: &[f32], seq: usize, index: usize| {
                out[((batch * seq + index) * heads + head) * head_dim..][..head_dim].to_vec()
            };
            let (before, after) = match query {
                Token::At(index) => (row(&clean.out, seq_q, index), row(&whole.out, seq_q, index)),
                Token::Joint(index) => (row(&clean.joint, joint, index), row(&whole.joint, joint, index)),
            };
            let place = seen.filter(|place| place.batch == batch && attends(&inputs, head, query, *place));
            match place {
                Some(place) => prop_assert!(
                    after.iter().any(|x| !x.is_finite()),
                    "{}: {:?} of head {} hides what it attends at {:?}",
                    setup,
                    query,
                    head,
                    place
                ),
                None => {
                    let bits = |row: &[f32]| row.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    prop_assert_eq!(bits(&before), bits(&after), "{}: {:?} of head {}", setup, query, head);
                }
            }
        }
    }
    Ok(())
}

/// All keys of a head in a row of the batch.
fn places(problem: &Problem, batch: usize, kv_head: usize) -> impl Iterator<Item = Place> + use<> {
    let keys = (0..problem.joint).map(Token::Joint).chain((0..problem.seq_k).map(Token::At));
    keys.map(move |key| Place { batch, kv_head, key })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn what_is_not_finite_reaches_those_who_attend_it_and_nobody_else(
        case in cases(Limits::KERNELS),
        plain in any::<bool>(),
    ) {
        if plain { check::<WithSdpa>(&case) } else { check::<WithFlash>(&case) }?;
    }
}

/// Keys behind the length of a row of the batch, in every block of every rank.
#[test]
fn padding_is_never_read() {
    for setup in [1, 4, 6].into_iter().flat_map(Setup::of_ranks) {
        let problem = Problem::new(3, 24, 12, 4).kv_heads(6).key_lengths();
        if !setup.takes(&problem) {
            continue;
        }
        let mut inputs = problem.inputs::<f32>(1);
        inputs.key_lengths = Some(vec![9, 0, 23]);
        let clean = attend::<WithFlash, f32>(setup, &inputs).unwrap();
        let plain = attend::<WithSdpa, f32>(setup, &inputs).unwrap();
        for (batch, length) in [(0, 9), (1, 0), (2, 23)] {
            for (kv_head, position) in (0..6).flat_map(|head| (length..24).map(move |at| (head, at))) {
                let place = Place { batch, kv_head, key: Token::At(position) };
                poison(&mut inputs, place, true, f32::NAN);
                poison(&mut inputs, place, false, f32::INFINITY);
            }
        }
        assert_eq!(attend::<WithFlash, f32>(setup, &inputs).unwrap().bits(), clean.bits(), "{setup}");
        assert_eq!(attend::<WithSdpa, f32>(setup, &inputs).unwrap().bits(), plain.bits(), "{setup}");
    }
}
