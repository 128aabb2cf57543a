//! One attention problem over the whole sequence: its inputs, its dense result in float64, and its result on ranks.

use attn::prelude::*;
use attn::{Error, Mask, Positions, Run, Segments, Sharding, ThreadComm};

/// Shapes and masks of a call.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Rows of the batch.
    pub batch: usize,
    /// Queries.
    pub seq_q: usize,
    /// Keys.
    pub seq_k: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Length of a head.
    pub head_dim: usize,
    /// The mask by position.
    pub span: Span,
    /// Keys of each row of the batch.
    pub key_lengths: Option<Vec<usize>>,
    /// Of queries and of keys.
    pub segments: Option<[Vec<i32>; 2]>,
    /// `[batch, 1 or heads, joint + seq_q, joint + seq_k]`.
    pub dense: Option<Tensor<u8>>,
    /// Whether every rank holds all keys.
    pub replicated: bool,
    /// Joint tokens, and where they stand.
    pub joint: (usize, JointStrategy),
    /// Tell the lengths of the whole sequences, as an uneven split needs.
    pub tell: bool,
}

impl Problem {
    /// Self-attention without a mask, in two rows of the batch.
    pub const fn new(seq: usize, heads: usize, kv_heads: usize) -> Self {
        Self {
            batch: 2,
            seq_q: seq,
            seq_k: seq,
            heads,
            kv_heads,
            head_dim: 8,
            span: Span::Full,
            key_lengths: None,
            segments: None,
            dense: None,
            replicated: false,
            joint: (0, JointStrategy::Front),
            tell: false,
        }
    }

    /// One problem for each mask that there is, and for two that are put together; of those that joint tokens may have,
    /// if there are any.
    pub fn with_each_mask(&self) -> Vec<(&'static str, Self)> {
        let Self { batch, seq_q, seq_k, heads, joint: (joint, _), .. } = *self;
        let lengths: Vec<usize> = (0..batch).map(|b| seq_k / (b + 1)).collect();
        // Documents of uneven lengths, which do not stand in order.
        let ids =
            |seq: usize| (0..batch * seq).map(|i| [7, 3, 7, 5][i % seq * 4 / seq]).collect::<Vec<i32>>();
        let segments = Some([ids(seq_q), ids(seq_k)]);
        let dense = |heads: usize| {
            let shape = [batch, heads, joint + seq_q, joint + seq_k];
            Tensor::from_fn(shape, |[b, h, i, j]| u8::from((b + 2 * h + 3 * i + j) % 4 < 2)).ok()
        };
        let window = Span::Window { left: 3, right: 1 };
        let mut masks = vec![
            ("none", self.clone()),
            ("causal", Self { span: Span::Causal, ..self.clone() }),
            ("window", Self { span: window, ..self.clone() }),
            ("padding", Self { key_lengths: Some(lengths.clone()), ..self.clone() }),
            ("segments", Self { segments: segments.clone(), ..self.clone() }),
            ("dense", Self { dense: dense(1), ..self.clone() }),
            ("dense of each head", Self { dense: dense(heads), ..self.clone() }),
            ("padding+dense", Self { key_lengths: Some(lengths.clone()), dense: dense(1), ..self.clone() }),
            ("causal+segments", Self { span: Span::Causal, segments, ..self.clone() }),
            (
                "window+padding+dense",
                Self { span: window, key_lengths: Some(lengths), dense: dense(heads), ..self.clone() },
            ),
        ];
        masks.retain(|(_, problem)| joint == 0 || (problem.span == Span::Full && problem.segments.is_none()));
        masks
    }

    /// Query, key and value of the whole sequence, joint tokens in their place.
    fn inputs(&self) -> attn::Result<[Tensor<f32>; 3]> {
        let Self { batch, seq_q, seq_k, heads, kv_heads, head_dim, joint: (joint, _), .. } = *self;
        let tensor = |salt: usize, seq: usize, heads: usize| {
            Tensor::from_fn([batch, joint + seq, heads, head_dim], |[b, s, h, d]| {
                let mixed = (salt + 31 * b + 101 * s + 17 * h + 7 * d).wrapping_mul(2_654_435_761) >> 7;
                (mixed % 2003) as f32 / 500.0 - 2.0
            })
        };
        Ok([tensor(1, seq_q, heads)?, tensor(2, seq_k, kv_heads)?, tensor(3, seq_k, kv_heads)?])
    }

    /// What a rank holds, and what the call carries besides.
    pub fn shard(&self, sharding: Sharding, rank: usize) -> attn::Result<Shard> {
        let (joint, order) = self.joint;
        let [query, key, value] = self.inputs()?;
        let positions = |seq: usize| Ok::<_, Error>(sharding.sequence(seq)?.positions(rank));
        let queries = positions(self.seq_q)?;
        let keys = match self.replicated {
            true => Positions::from(Run::of(0..self.seq_k)),
            false => positions(self.seq_k)?,
        };
        let tokens = |whole: &Tensor<f32>, seq: usize, positions: &Positions| {
            let (_, start) = order.starts(joint, seq);
            taken(whole, positions.iter().map(|position| start + position).collect())
        };
        let text = |whole: &Tensor<f32>, seq: usize| {
            let (start, _) = order.starts(joint, seq);
            taken(whole, (start..start + joint).collect())
        };
        Ok(Shard {
            tensors: [
                tokens(&query, self.seq_q, &queries)?,
                tokens(&key, self.seq_k, &keys)?,
                tokens(&value, self.seq_k, &keys)?,
            ],
            joint: [text(&query, self.seq_q)?, text(&key, self.seq_k)?, text(&value, self.seq_k)?],
            queries,
        })
    }

    /// Whether a query attends a key, by the masks' definitions. Indices count joint tokens too.
    fn attends(&self, [b, h, i, j]: [usize; 4]) -> bool {
        let dense = self.dense.as_ref().is_none_or(|dense| {
            let heads = dense.shape()[1];
            dense.view().at([b, h % heads, i, j]) != 0
        });
        // Of the masks but the dense one, joint tokens know nothing.
        let (joint, order) = self.joint;
        let position =
            |index: usize, seq: usize| index.checked_sub(order.starts(joint, seq).1).filter(|at| *at < seq);
        let Some(j) = position(j, self.seq_k) else { return dense };
        let length = self.key_lengths.as_ref().is_none_or(|lengths| j < lengths[b]);
        let Some(i) = position(i, self.seq_q) else { return dense && length };
        let segments = self
            .segments
            .as_ref()
            .is_none_or(|[query, key]| query[b * self.seq_q + i] == key[b * self.seq_k + j]);
        // Where the query stands among the keys: the last at the last.
        let (i_at, j_at) = (i as i64 + self.seq_k as i64 - self.seq_q as i64, j as i64);
        let span = match self.span {
            Span::Full => true,
            Span::Causal => j_at <= i_at,
            Span::Window { left, right } => i_at - left as i64 <= j_at && j_at <= i_at + right as i64,
        };
        dense && length && segments && span
    }

    /// Output and LSE of every row, in float64.
    pub fn dense_result(&self) -> attn::Result<Whole> {
        let Self { batch, seq_k, heads, kv_heads, head_dim, joint: (joint, _), .. } = *self;
        let [query, key, value] = self.inputs()?;
        let at = |tensor: &Tensor<f32>, index| f64::from(tensor.view().at(index));
        let mut whole = Whole::unwritten(self);
        for [b, h, i] in indices([batch, heads, whole.rows]) {
            let kv = h / (heads / kv_heads);
            let weight = |j: usize| {
                let products = (0..head_dim).map(|c| at(&query, [b, i, h, c]) * at(&key, [b, j, kv, c]));
                (products.sum::<f64>() / (head_dim as f64).sqrt()).exp()
            };
            let keys = (0..joint + seq_k).filter(|j| self.attends([b, h, i, *j]));
            let weights: Vec<(usize, f64)> = keys.map(|j| (j, weight(j))).collect();
            let sum: f64 = weights.iter().map(|(_, weight)| weight).sum();
            *whole.lse(b, h, i) = sum.ln();
            for c in 0..head_dim {
                let product: f64 =
                    weights.iter().map(|(j, weight)| weight * at(&value, [b, *j, kv, c])).sum();
                *whole.out([b, h, i, c]) = if weights.is_empty() { 0.0 } else { product / sum };
            }
        }
        Ok(whole)
    }

    /// The same on ranks that are threads. Each rank's bytes sent come with it.
    ///
    /// # Panics
    /// If ranks differ in the rows of joint tokens.
    pub fn on_ranks<A>(&self, ranks: usize, config: &ParallelConfig) -> attn::Result<(Whole, Vec<u64>)>
    where
        A: ParallelAttention<ThreadComm, f32>,
    {
        let Self { batch, seq_q, heads, head_dim, joint: (joint, order), .. } = *self;
        let parts = World::threads(ranks).threads_per_rank(1).run(|comm| {
            let rank = comm.rank();
            let mut session = Session::<A, _, f32>::open_with(comm, config)?;
            let shard = self.shard(session.sharding(), rank)?;
            let rows = joint + shard.queries.len();
            let mut out = Tensor::from_fn([batch, rows, heads, head_dim], |_| f32::NAN)?;
            let mut lse = vec![f32::NAN; batch * heads * rows];
            let outputs = Outputs::new(&mut out).with_lse(LseMut::new(&mut lse, [batch, heads, rows])?);
            let [query, key, value] = &shard.tensors;
            session.attend_into(query, key, value, &self.metadata(&shard), outputs)?;
            Ok::<_, Error>((shard.queries, out, lse, session.traffic().sent))
        })?;
        let mut whole = Whole::unwritten(self);
        for (queries, out, lse, _) in &parts {
            let (joint_here, tokens_here) = order.starts(joint, queries.len());
            let (joint_there, tokens_there) = order.starts(joint, seq_q);
            let tokens = queries.iter().enumerate().map(|(at, to)| (tokens_here + at, tokens_there + to));
            let rows = tokens.chain((0..joint).map(|at| (joint_here + at, joint_there + at)));
            let local = joint + queries.len();
            for (from, to) in rows {
                for [b, h, c] in indices([batch, heads, head_dim]) {
                    let found = f64::from(out.view().at([b, from, h, c]));
                    whole.write([b, h, to, c], found, f64::from(lse[(b * heads + h) * local + from]));
                }
            }
        }
        Ok((whole, parts.into_iter().map(|(.., sent)| sent).collect()))
    }

    /// Every rank's answer to a call that is refused.
    ///
    /// # Panics
    /// If one of them answers it, or moves anything.
    pub fn refused_on<A>(&self, ranks: usize, config: &ParallelConfig) -> attn::Result<Vec<Error>>
    where
        A: ParallelAttention<ThreadComm, f32>,
    {
        World::threads(ranks).run(|comm| {
            let rank = comm.rank();
            let mut session = Session::<A, _, f32>::open_with(comm, config)?;
            let shard = self.shard(session.sharding(), rank)?;
            let before = session.traffic();
            let [query, key, value] = &shard.tensors;
            let answer = session.attend(query, key, value, &self.metadata(&shard));
            assert_eq!(session.traffic(), before, "something has moved");
            Ok(answer.err().unwrap_or_else(|| panic!("rank {rank} answers the call")))
        })
    }

    /// Its masks.
    pub fn mask(&self) -> Mask {
        Mask {
            span: self.span,
            key_lengths: self.key_lengths.is_some(),
            segments: self.segments.is_some(),
            dense: self.dense.is_some(),
        }
    }

    /// What the call carries.
    pub fn metadata<'a>(&'a self, shard: &'a Shard) -> AttentionMetadata<'a, f32> {
        let mut metadata = match (self.joint, &shard.joint) {
            ((0, _), _) => AttentionMetadata::default(),
            ((_, order), [query, key, value]) => AttentionMetadata::joint(query, key, value, order),
        };
        metadata.span = Some(self.span);
        metadata.key_lengths = self.key_lengths.as_deref();
        metadata.segments = self.segments.as_ref().map(|[query, key]| Segments { query, key });
        metadata.dense = self.dense.as_ref().map(Tensor::view);
        if self.replicated {
            metadata = metadata.with_replicated_keys();
        }
        if self.tell {
            metadata = metadata.with_sequence(self.seq_q, self.seq_k);
        }
        metadata
    }
}

/// One rank's tensors.
#[derive(Debug)]
pub struct Shard {
    /// Query, key and value.
    pub tensors: [Tensor<f32>; 3],
    /// Those of the joint tokens.
    pub joint: [Tensor<f32>; 3],
    /// The positions of its queries.
    pub queries: Positions,
}

/// A result over the whole sequence, joint tokens in their place.
#[derive(Clone, Debug)]
pub struct Whole {
    heads: usize,
    rows: usize,
    head_dim: usize,
    /// `[batch, heads, joint + seq_q, head_dim]`.
    out: Vec<f64>,
    /// `[batch, heads, joint + seq_q]`.
    lse: Vec<f64>,
}

impl Whole {
    fn unwritten(problem: &Problem) -> Self {
        let Problem { batch, heads, head_dim, .. } = *problem;
        let rows = problem.joint.0 + problem.seq_q;
        let all = batch * heads * rows;
        Self { heads, rows, head_dim, out: vec![f64::NAN; all * head_dim], lse: vec![f64::NAN; all] }
    }

    fn lse(&mut self, batch: usize, head: usize, row: usize) -> &mut f64 {
        &mut self.lse[(batch * self.heads + head) * self.rows + row]
    }

    fn out(&mut self, [batch, head, row, channel]: [usize; 4]) -> &mut f64 {
        &mut self.out[((batch * self.heads + head) * self.rows + row) * self.head_dim + channel]
    }

    /// Writes what a rank has found; what several ranks find must be the same.
    fn write(&mut self, at: [usize; 4], out: f64, lse: f64) {
        let [batch, head, row, _] = at;
        same_or_new(self.out(at), out);
        same_or_new(self.lse(batch, head, row), lse);
    }

    /// The largest distance of two results, output and LSE. Infinite where one has a row that the other has not.
    pub fn distance(&self, other: &Self) -> f64 {
        let pairs = self.out.iter().zip(&other.out).chain(self.lse.iter().zip(&other.lse));
        pairs
            .map(|(a, b)| if a == b { 0.0 } else { (a - b).abs() })
            .fold(0.0, |worst, distance| if distance.is_nan() || distance > worst { distance } else { worst })
    }
}

fn same_or_new(to: &mut f64, found: f64) {
    assert!(to.is_nan() || *to == found, "ranks differ: {to} and {found}");
    *to = found;
}

/// Some rows of a tensor.
fn taken(whole: &Tensor<f32>, rows: Vec<usize>) -> attn::Result<Tensor<f32>> {
    let [batch, _, heads, head_dim] = whole.shape();
    Tensor::from_fn([batch, rows.len(), heads, head_dim], |[b, s, h, d]| whole.view().at([b, rows[s], h, d]))
}

fn indices([a, b, c]: [usize; 3]) -> impl Iterator<Item = [usize; 3]> {
    (0..a).flat_map(move |i| (0..b).flat_map(move |j| (0..c).map(move |k| [i, j, k])))
}
