//! A kernel that looks where it is. Elements carry their own coordinates, so that it sees which it is given; what it
//! writes tells the caller which keys each query attended. Nothing is rounded: all comparisons are for equality.

use attn::prelude::*;
use attn::{
    AttentionCall, AttentionKernel, BlockMask, CarriedState, CarriesState, Error, KeyValue, MaskKinds, Scope,
};

use crate::support::{Inputs, Problem, Setup, Token, attend};

/// Joint tokens' positions count from here.
const JOINT: usize = 200;

/// Sums of distinct powers of two below this one are exact in fp32.
const BITS: usize = 24;

/// A coordinate `[batch, position, head, dim]` as a number: less than `1 << BITS`.
fn encode([b, s, h, d]: [usize; 4]) -> f32 {
    assert!(b < 4 && s < 256 && h < 32 && d < 8);
    (((b * 256 + s) * 32 + h) * 8 + d) as f32
}

fn decode(value: f32) -> [usize; 4] {
    let n = value as usize;
    [n / (256 * 32 * 8), n / (32 * 8) % 256, n / 8 % 32, n % 8]
}

/// The bit that stands for a key.
fn bit(position: usize) -> u32 {
    1 << if position >= JOINT { BITS - 1 - (position - JOINT) } else { position }
}

/// Checks that it is not called for nothing, that queries are whole rows of consecutive heads, and that each meets the
/// keys and values of its own group of heads, each of them but once. Its output is the query, its log-sum-exp the sum of
/// the bits of the keys that it attended; both are zero if it attended none.
#[derive(Default)]
pub(crate) struct Probe;

#[parallel_attention(
    strategy = ["none", "ulysses", "ring", "hybrid", "allgather_kv", "ulysses_allgather"],
    backend = Probe
)]
pub(crate) struct Probed;

#[parallel_attention(
    strategy = ["none", "ulysses", "ring", "hybrid", "allgather_kv", "ulysses_allgather"],
    backend = Probe,
    scatter = 1,
    gather = 2
)]
pub(crate) struct ProbedHeadsFirst;

#[parallel_attention(
    strategy = ["none", "ulysses", "ring", "hybrid", "allgather_kv", "ulysses_allgather"],
    backend = Probe,
    scatter = 2,
    gather = 0
)]
pub(crate) struct ProbedSequenceFirst;

/// The position that a row of one head holds, if it is one row of that batch and those heads throughout.
fn position(
    what: &str,
    view: &View<'_, f32>,
    [b, row, h]: [usize; 3],
    head: impl Fn(usize) -> bool,
) -> attn::Result<usize> {
    let [_, position, found_head, _] = decode(view.at([b, row, h, 0]));
    for d in 0..view.shape()[3] {
        let found = decode(view.at([b, row, h, d]));
        if found != [b, position, found_head, d] || !head(found_head) {
            return Err(Error::Configuration(format!("{what} {:?} holds {found:?}", [b, row, h, d])));
        }
    }
    Ok(position)
}

impl AttentionKernel<Cpu, f32> for Probe {
    const MASKS: MaskKinds = MaskKinds::ALL;

    fn forward(&self, scope: Scope<'_, Cpu>, call: &mut AttentionCall<'_, f32, Cpu>) -> attn::Result<()> {
        let mut state = CarriesState::<Cpu, f32>::begin(self, scope, call.query.shape())?;
        self.step(scope, call.query, call.kv, &call.mask, call.scale, &mut state)?;
        self.finish(scope, state, call.out.reborrow(), call.lse.as_mut().map(ViewMut::reborrow))
    }
}

impl CarriesState<Cpu, f32> for Probe {
    fn begin<'a>(&self, scope: Scope<'a, Cpu>, shape: [usize; 4]) -> attn::Result<CarriedState<'a, Cpu>> {
        CarriesState::<Cpu, f32>::begin(&attn::Sdpa, scope, shape)
    }

    fn step(
        &self,
        _: Scope<'_, Cpu>,
        query: View<'_, f32>,
        kv: KeyValue<'_, f32, Cpu>,
        mask: &BlockMask<'_>,
        _: f32,
        state: &mut CarriedState<'_, Cpu>,
    ) -> attn::Result<()> {
        let [batch, rows, heads, head_dim] = query.shape();
        let [_, keys, kv_heads, _] = kv.key.shape();
        let wrong = |what: String| Err(Error::Configuration(what));
        if query.shape().contains(&0) || kv.key.shape().contains(&0) {
            return wrong(format!("there is nothing to do for {:?} and {:?}", query.shape(), kv.key.shape()));
        }
        if kv.value.shape() != kv.key.shape() || !heads.is_multiple_of(kv_heads) {
            return wrong(format!("{heads} heads with {:?} and {:?}", kv.key.shape(), kv.value.shape()));
        }
        for (b, i) in (0..batch).flat_map(|b| (0..rows).map(move |i| (b, i))) {
            let [_, row, first_head, _] = decode(query.at([b, i, 0, 0]));
            for h in 0..heads {
                let head = first_head + h;
                if position("query", &query, [b, i, h], |found| found == head)? != row {
                    return wrong(format!("query {:?} is not of position {row}", [b, i, h]));
                }
                let mut bits = state.sum.at([b, i, h, 0]) as u32;
                for j in mask.band.keys_of(i, &(0..mask.keys(b, keys))) {
                    let dense_head = |heads: usize| if heads == 1 { 0 } else { h };
                    let allowed = mask.segments.is_none_or(|segments| segments.allow(b, i, j))
                        && mask
                            .dense
                            .is_none_or(|dense| dense.at([b, dense_head(dense.shape()[1]), i, j]) != 0);
                    if !allowed {
                        continue;
                    }
                    let place = [b, j, h / (heads / kv_heads)];
                    let key = position("key", &kv.key, place, |first| first <= head)?;
                    let value = position("value", &kv.value, place, |last| head <= last)?;
                    if key != value || bits & bit(key) != 0 {
                        return wrong(format!(
                            "row {row} of head {head} meets key {key} and value {value}, has {bits:b}"
                        ));
                    }
                    bits |= bit(key);
                }
                if bits != 0 {
                    state.sum.set([b, i, h, 0], bits as f32);
                    (0..head_dim).for_each(|d| state.output.set([b, i, h, d], query.at([b, i, h, d])));
                }
            }
        }
        Ok(())
    }

    fn finish(
        &self,
        _: Scope<'_, Cpu>,
        state: CarriedState<'_, Cpu>,
        mut out: ViewMut<'_, f32>,
        mut lse: Option<ViewMut<'_, f32>>,
    ) -> attn::Result<()> {
        let [batch, rows, heads, head_dim] = out.shape();
        for (b, i) in (0..batch).flat_map(|b| (0..rows).map(move |i| (b, i))) {
            for h in 0..heads {
                (0..head_dim).for_each(|d| out.set([b, i, h, d], state.output.at([b, i, h, d])));
                if let Some(lse) = &mut lse {
                    lse.set([b, i, h, 0], state.sum.at([b, i, h, 0]));
                }
            }
        }
        Ok(())
    }
}

/// Inputs whose elements say where they stand. Keys say which query head is the first of their group, values which is
/// the last. Masks are random.
pub(crate) fn coordinates(problem: &Problem, seed: u64) -> Inputs<f32> {
    let Problem { batch, seq_q, seq_k, heads, kv_heads, head_dim, joint, .. } = *problem;
    assert!(seq_k + joint <= BITS && seq_q.max(seq_k) <= JOINT, "{problem:?} has too many positions");
    let group = heads / kv_heads;
    let tensor = |start: usize, seq: usize, heads: usize, name: &dyn Fn(usize) -> usize| {
        let element = |[b, s, h, d]: [usize; 4]| encode([b, start + s, name(h), d]);
        Tensor::from_fn([batch, seq, heads, head_dim], element).unwrap()
    };
    let tensors = |start: usize, seq_q: usize, seq_k: usize| {
        [
            tensor(start, seq_q, heads, &|head| head),
            tensor(start, seq_k, kv_heads, &|head| head * group),
            tensor(start, seq_k, kv_heads, &|head| head * group + group - 1),
        ]
    };
    let [query, key, value] = tensors(0, seq_q, seq_k);
    let joint = (joint > 0).then(|| tensors(JOINT, joint, joint));
    Inputs { query, key, value, joint, ..problem.inputs(seed) }
}

/// Runs the probe, and checks that every query came back to where it was, and attended the keys that the masks allow.
#[track_caller]
pub(crate) fn check<A: ParallelAttention<attn::ThreadComm, f32>>(setup: Setup, problem: &Problem, seed: u64) {
    let inputs = coordinates(problem, seed);
    let whole =
        attend::<A, f32>(setup, &inputs).unwrap_or_else(|error| panic!("{setup}, {problem:?}: {error}"));
    let Problem { batch, seq_q, heads, head_dim, joint, .. } = *problem;
    for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
        let queries = (0..seq_q).map(Token::At).chain((0..joint).map(Token::Joint));
        for query in queries {
            let place = |token: Token| match token {
                Token::At(position) => position,
                Token::Joint(index) => JOINT + index,
            };
            let allowed = inputs.keys().filter(|key| inputs.allows(b, h, query, *key));
            let bits: u32 = allowed.map(|key| bit(place(key))).sum();
            let (out, lse, seq, index) = match query {
                Token::At(position) => (&whole.out, &whole.lse, seq_q, position),
                Token::Joint(index) => (&whole.joint, &whole.joint_lse, joint, index),
            };
            let row = &out[((b * seq + index) * heads + h) * head_dim..][..head_dim];
            let found = lse[(b * heads + h) * seq + index];
            let says = || format!("{setup}, {problem:?}, seed {seed}: batch {b}, head {h}, {query:?}");
            assert_eq!(found as u32, bits, "{}: attends {:b}, not {bits:b}", says(), found as u32);
            for (d, element) in row.iter().enumerate() {
                let expected = if bits == 0 { 0.0 } else { encode([b, place(query), h, d]) };
                assert_eq!(*element, expected, "{}", says());
            }
        }
    }
}
