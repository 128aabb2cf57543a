//! Reshards, tested for equality: elements that carry their own global index, and kernels that look where they are.

mod support;

use attn::prelude::*;
use attn::{
    AttentionCall, AttentionKernel, BlockMask, CarriedState, CarriesState, Cpu, Error, JointStrategy,
    KeyValue, Scope, ThreadComm,
};
use support::relaid;

/// Checks that each of its tensors is a run of whole positions of consecutive heads, all with the same head numbers
/// for keys as grouped queries need, and hands the queries through: so `post` after `pre` must be the identity.
#[derive(Default)]
struct Probe;

/// Adds up the values of all keys, each once, without weights: sums of small integers are exact.
#[derive(Default)]
struct SumValues;

#[parallel_attention(strategy = ["none", "ulysses"], backend = Probe)]
struct Probed;

#[parallel_attention(strategy = ["none", "ulysses"], backend = Probe, scatter = 1, gather = 2)]
struct ProbedHeadsFirst;

#[parallel_attention(strategy = ["none", "ulysses"], backend = Probe, scatter = 2, gather = 0)]
struct ProbedSequenceFirst;

#[parallel_attention(strategy = "ring", backend = SumValues)]
struct Summed;

/// Where an element stands: batch, position (joint tokens from `JOINT` on), head, dim. Exact in f32.
fn coordinate(b: usize, s: usize, h: usize, d: usize) -> f32 {
    (((b * 256 + s) * 32 + h) * 8 + d) as f32
}

fn decode(value: f32) -> [usize; 4] {
    let n = value as usize;
    [n / (256 * 32 * 8), n / (32 * 8) % 256, n / 8 % 32, n % 8]
}

/// Joint positions count from here.
const JOINT: usize = 200;

impl AttentionKernel<Cpu, f32> for Probe {
    fn forward(&self, _: Scope<'_, Cpu>, call: &mut AttentionCall<'_, f32, Cpu>) -> attn::Result<()> {
        let wrong = |what: &str, index: [usize; 4], found: [usize; 4]| {
            Err(Error::Configuration(format!("{what} {index:?} holds {found:?}")))
        };
        let [batch, rows, heads, head_dim] = call.query.shape();
        let [_, keys, kv_heads, _] = call.kv.key.shape();
        let [_, first, query_head, _] = decode(call.query.at([0, 0, 0, 0]));
        let front = first >= JOINT;
        let joint = (0..rows).filter(|&s| decode(call.query.at([0, s, 0, 0]))[1] >= JOINT).count();
        let position = |s: usize, seq: usize| match (front, joint) {
            (true, joint) if s < joint => JOINT + s,
            (true, joint) => s - joint,
            (false, _) if s < seq - joint => s,
            (false, _) => JOINT + s - (seq - joint),
        };
        let key_head = decode(call.kv.key.at([0, 0, 0, 0]))[2];
        for (what, view, seq, n, first_head) in [
            ("query", call.query, rows, heads, query_head),
            ("key", call.kv.key, keys, kv_heads, key_head),
            ("value", call.kv.value, keys, kv_heads, key_head),
        ] {
            for b in 0..batch {
                for s in 0..seq {
                    for h in 0..n {
                        for d in 0..head_dim {
                            let found = decode(view.at([b, s, h, d]));
                            if found != [b, position(s, seq), first_head + h, d] {
                                return wrong(what, [b, s, h, d], found);
                            }
                        }
                    }
                }
            }
        }
        for b in 0..batch {
            for s in 0..rows {
                for h in 0..heads {
                    for d in 0..head_dim {
                        call.out.set([b, s, h, d], call.query.at([b, s, h, d]));
                    }
                    if let Some(lse) = &mut call.lse {
                        lse.set([b, s, h, 0], call.query.at([b, s, h, 0]));
                    }
                }
            }
        }
        Ok(())
    }
}

fn probe<A: ParallelAttention<ThreadComm, f32>>(
    ranks: usize,
    (heads, kv_heads): (usize, usize),
    (local_q, local_k): (usize, usize),
    joint: usize,
    order: JointStrategy,
) {
    use attn::AttentionPipeline;
    let layout = A::Pipeline::LAYOUT;
    let (batch, head_dim) = (2, 3);
    let strategy = if ranks == 1 && joint == 1 { "none" } else { "ulysses" };
    World::threads(ranks)
        .run(|comm| {
            let rank = comm.rank();
            let tensor = |seq: usize, start: usize, heads: usize| -> attn::Result<Tensor<f32>> {
                let canonical = Tensor::from_fn([batch, seq, heads, head_dim], |[b, s, h, d]| {
                    coordinate(b, start + s, h, d)
                })?;
                relaid(canonical.view(), layout)
            };
            let query = tensor(local_q, rank * local_q, heads)?;
            let key = tensor(local_k, rank * local_k, kv_heads)?;
            let (joint_query, joint_key) = (tensor(joint, JOINT, heads)?, tensor(joint, JOINT, kv_heads)?);
            let metadata = match joint {
                0 => AttentionMetadata::default(),
                _ => AttentionMetadata::joint(&joint_query, &joint_key, &joint_key, order),
            };
            let mut session = Session::<A, _, f32>::open_with(comm, &ParallelConfig::strategy(strategy))?;
            let rows = joint + local_q;
            let mut out = Tensor::<f32>::from_fn(layout.permute([batch, rows, heads, head_dim]), |_| -1.0)?;
            let mut lse = vec![-1.0; batch * heads * rows];
            let outputs = Outputs::new(&mut out).with_lse(LseMut::new(&mut lse, [batch, heads, rows])?);
            session.attend_into(&query, &key, &key, &metadata, outputs)?;
            let (joint_start, start) = order.starts(joint, local_q);
            for b in 0..batch {
                for h in 0..heads {
                    for i in 0..rows {
                        let is_joint = joint > 0 && (joint_start..joint_start + joint).contains(&i);
                        let position =
                            if is_joint { JOINT + i - joint_start } else { rank * local_q + i - start };
                        for d in 0..head_dim {
                            assert_eq!(
                                out.view().permuted(layout).at([b, i, h, d]),
                                coordinate(b, position, h, d)
                            );
                        }
                        assert_eq!(lse[(b * heads + h) * rows + i], coordinate(b, position, h, 0));
                    }
                }
            }
            Ok::<_, Error>(())
        })
        .unwrap_or_else(|error| panic!("{ranks} ranks, {heads}/{kv_heads} heads, joint {joint}: {error}"));
}

#[test]
fn every_element_comes_where_it_belongs_and_back() {
    for ranks in 1..=8 {
        for heads in [(ranks, ranks), (2 * ranks, ranks), (2 * ranks, 1), (3 * ranks, 3 * ranks)] {
            for (lengths, joint) in [((3, 3), 0), ((1, 4), 0), ((5, 2), 1), ((2, 2), 5)] {
                for order in [JointStrategy::Front, JointStrategy::Rear] {
                    probe::<Probed>(ranks, heads, lengths, joint, order);
                }
            }
        }
    }
}

#[test]
fn every_layout_comes_where_it_belongs_and_back() {
    for ranks in [1, 2, 3, 6] {
        for joint in [0, 4] {
            probe::<ProbedHeadsFirst>(ranks, (12, 6), (3, 2), joint, JointStrategy::Front);
            probe::<ProbedSequenceFirst>(ranks, (12, 6), (3, 2), joint, JointStrategy::Rear);
        }
    }
}

#[test]
fn a_kv_head_reaches_just_the_ranks_that_need_it() {
    // Two key heads for four and eight ranks: Hkv < P.
    probe::<Probed>(4, (8, 2), (2, 2), 0, JointStrategy::Front);
    probe::<Probed>(8, (16, 2), (2, 2), 3, JointStrategy::Rear);
    probe::<Probed>(8, (8, 4), (1, 3), 0, JointStrategy::Front);
}

impl AttentionKernel<Cpu, f32> for SumValues {
    fn forward(&self, scope: Scope<'_, Cpu>, call: &mut AttentionCall<'_, f32, Cpu>) -> attn::Result<()> {
        let mut state = CarriesState::<Cpu, f32>::begin(self, scope, call.query.shape())?;
        self.step(scope, call.query, call.kv, &call.mask, call.scale, &mut state)?;
        self.finish(scope, state, call.out.reborrow(), None)
    }
}

impl CarriesState<Cpu, f32> for SumValues {
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
        let [_, seq, kv_heads, _] = kv.value.shape();
        for b in 0..batch {
            for i in 0..rows {
                for h in 0..heads {
                    for j in mask.band.keys_of(i, &(0..seq)) {
                        for d in 0..head_dim {
                            let sum =
                                state.output.at([b, i, h, d]) + kv.value.at([b, j, h * kv_heads / heads, d]);
                            state.output.set([b, i, h, d], sum);
                        }
                    }
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
        _: Option<ViewMut<'_, f32>>,
    ) -> attn::Result<()> {
        let [batch, rows, heads, head_dim] = out.shape();
        for b in 0..batch {
            for i in 0..rows {
                for h in 0..heads {
                    for d in 0..head_dim {
                        out.set([b, i, h, d], state.output.at([b, i, h, d]));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Every query meets every key that it may attend exactly once, joint keys included: powers of two tell which.
#[test]
fn the_ring_visits_every_block_once() {
    for ranks in 1..=8 {
        for (joint, causal) in [(0, false), (0, true), (3, false)] {
            let local = 2;
            World::threads(ranks)
                .run(|comm| {
                    let rank = comm.rank();
                    let bit = |position: usize| (1_u32 << position) as f32;
                    let x = Tensor::<f32>::from_fn([1, local, 2, 1], |[_, s, _, _]| bit(rank * local + s))?;
                    let text =
                        Tensor::<f32>::from_fn([1, joint, 2, 1], |[_, s, _, _]| bit(ranks * local + s))?;
                    let mut metadata = match joint {
                        0 => AttentionMetadata::default(),
                        _ => AttentionMetadata::joint(&text, &text, &text, JointStrategy::Rear),
                    };
                    metadata.span = causal.then_some(Span::Causal);
                    let mut session = Session::<Summed, _, f32>::open(comm)?;
                    let out = session.attend(&x, &x, &x, &metadata)?;
                    for row in 0..local + joint {
                        let keys = if causal { rank * local + row + 1 } else { ranks * local + joint };
                        assert_eq!(
                            out.view().at([0, row, 1, 0]),
                            bit(keys) - 1.0,
                            "row {row} of rank {rank} of {ranks}"
                        );
                    }
                    Ok::<_, Error>(())
                })
                .unwrap();
        }
    }
}
