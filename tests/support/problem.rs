//! Attention problems over a whole sequence, and random inputs for them.

use attn::prelude::*;
use attn::{KeyPlacement, Mask};

use super::Random;

/// One attention problem, in global shapes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Problem {
    pub batch: usize,
    pub seq_q: usize,
    pub seq_k: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub joint: usize,
    pub order: JointStrategy,
    /// Which masks there are. Their numbers come with the inputs.
    pub mask: Mask,
    /// Whether a dense mask tells heads apart.
    pub dense_per_head: bool,
    pub keys: KeyPlacement,
}

impl Problem {
    pub const fn new(batch: usize, seq: usize, heads: usize, head_dim: usize) -> Self {
        Self {
            batch,
            seq_q: seq,
            seq_k: seq,
            heads,
            kv_heads: heads,
            head_dim,
            joint: 0,
            order: JointStrategy::Front,
            mask: Mask::NONE,
            dense_per_head: false,
            keys: KeyPlacement::Sharded,
        }
    }

    pub const fn span(mut self, span: Span) -> Self {
        self.mask.span = span;
        self
    }

    pub const fn causal(self) -> Self {
        self.span(Span::Causal)
    }

    pub const fn window(self, left: usize, right: usize) -> Self {
        self.span(Span::Window { left, right })
    }

    pub const fn key_lengths(mut self) -> Self {
        self.mask.key_lengths = true;
        self
    }

    pub const fn segments(mut self) -> Self {
        self.mask.segments = true;
        self
    }

    pub const fn dense(mut self, per_head: bool) -> Self {
        self.mask.dense = true;
        self.dense_per_head = per_head;
        self
    }

    pub const fn mask(mut self, mask: Mask) -> Self {
        self.mask = mask;
        self
    }

    pub const fn kv_heads(mut self, kv_heads: usize) -> Self {
        self.kv_heads = kv_heads;
        self
    }

    pub const fn seq_k(mut self, seq_k: usize) -> Self {
        self.seq_k = seq_k;
        self
    }

    pub const fn replicated_keys(mut self) -> Self {
        self.keys = KeyPlacement::Replicated;
        self
    }

    pub const fn joint(mut self, joint: usize, order: JointStrategy) -> Self {
        self.joint = joint;
        self.order = order;
        self
    }

    /// Inputs of about unit variance, the same for the same seed. Masks are random too, and now and then leave a row
    /// nothing to attend; the tensors are the same with and without them.
    pub fn inputs<T: Element>(&self, seed: u64) -> Inputs<T> {
        let Self { batch, seq_q, seq_k, heads, kv_heads, head_dim, joint, mask, .. } = *self;
        let mut random = Random(seed);
        let mut tensor = |seq: usize, heads: usize| {
            Tensor::from_fn([batch, seq, heads, head_dim], |_| T::from_f32(random.normal())).unwrap()
        };
        let (query, key, value) = (tensor(seq_q, heads), tensor(seq_k, kv_heads), tensor(seq_k, kv_heads));
        let joint =
            (joint > 0).then(|| [tensor(joint, heads), tensor(joint, kv_heads), tensor(joint, kv_heads)]);
        let mut random = Random(seed ^ 0x6d61_736b);
        Inputs {
            query,
            key,
            value,
            joint,
            key_lengths: mask.key_lengths.then(|| random_lengths(&mut random, batch, seq_k)),
            segments: mask.segments.then(|| random_segments(&mut random, batch, [seq_q, seq_k])),
            dense: mask.dense.then(|| self.random_dense(&mut random)),
            problem: *self,
        }
    }

    fn random_dense(&self, random: &mut Random) -> Tensor<u8> {
        let heads = if self.dense_per_head { self.heads } else { 1 };
        let [rows, keys] = [self.seq_q, self.seq_k].map(|seq| self.joint + seq);
        let density = [0.15, 0.5, 0.9][random.below(3)];
        let mut empty = false;
        Tensor::from_fn([self.batch, heads, rows, keys], |[.., key]| {
            if key == 0 {
                empty = random.below(8) == 0;
            }
            let attends = random.uniform() < density && !empty;
            if attends { 1 + random.below(255) as u8 } else { 0 }
        })
        .unwrap()
    }
}

/// Lengths of the rows of a batch, of which some are zero and some are whole.
fn random_lengths(random: &mut Random, batch: usize, seq: usize) -> Vec<usize> {
    let mut length = || match random.below(8) {
        0 => 0,
        1 => seq,
        _ => random.below(seq + 1),
    };
    (0..batch).map(|_| length()).collect()
}

/// Segments of queries and of keys, in stretches and in any order; mostly the same for both, if there are as many.
fn random_segments(random: &mut Random, batch: usize, [seq_q, seq_k]: [usize; 2]) -> [Vec<i32>; 2] {
    let mut ids = |seq: usize| {
        let mut ids = Vec::with_capacity(batch * seq);
        for _ in 0..batch {
            let end = ids.len() + seq;
            while ids.len() < end {
                let length = (1 + random.below(1 + seq / 3)).min(end - ids.len());
                let id = random.below(4) as i32 - 1;
                ids.extend(std::iter::repeat_n(id, length));
            }
        }
        ids
    };
    let (query, key) = (ids(seq_q), ids(seq_k));
    let same = seq_q == seq_k && random.below(4) > 0;
    [query.clone(), if same { query } else { key }]
}

/// A place in the joint sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// A joint token, by its number among them.
    Joint(usize),
    /// A position of the sharded sequence.
    At(usize),
}

/// Global tensors, `[batch, seq, heads, head_dim]`, and global masks.
#[derive(Clone)]
pub struct Inputs<T: Element> {
    pub query: Tensor<T>,
    pub key: Tensor<T>,
    pub value: Tensor<T>,
    pub joint: Option<[Tensor<T>; 3]>,
    pub key_lengths: Option<Vec<usize>>,
    /// Of queries and of keys: `[batch, seq]` each.
    pub segments: Option<[Vec<i32>; 2]>,
    /// `[batch, 1 or heads, joint + seq_q, joint + seq_k]`, in joined order.
    pub dense: Option<Tensor<u8>>,
    pub problem: Problem,
}

impl<T: Element> Inputs<T> {
    /// What a call carries besides query, key and value, with joint tensors in whatever layout.
    pub fn metadata<'a>(&'a self, joint: Option<&'a [Tensor<T>; 3]>) -> AttentionMetadata<'a, T> {
        let Problem { order, mask, keys, .. } = self.problem;
        let mut metadata = match joint {
            Some([query, key, value]) => AttentionMetadata::joint(query, key, value, order),
            None => AttentionMetadata::default(),
        };
        metadata.span = Some(mask.span);
        metadata.keys = keys;
        metadata.key_lengths = self.key_lengths.as_deref();
        metadata.segments = self
            .segments
            .as_ref()
            .map(|[query, key]| if query == key { Segments::of(query) } else { Segments { query, key } });
        metadata.dense = self.dense.as_ref().map(Tensor::view);
        metadata
    }

    /// The keys of the whole joint sequence, joint ones first.
    pub fn keys(&self) -> impl Iterator<Item = Token> + use<T> {
        let Problem { joint, seq_k, .. } = self.problem;
        (0..joint).map(Token::Joint).chain((0..seq_k).map(Token::At))
    }

    /// Whether a query may attend a key.
    pub fn allows(&self, batch: usize, head: usize, query: Token, key: Token) -> bool {
        let Problem { seq_q, seq_k, mask, .. } = self.problem;
        let by_key = match (key, &self.key_lengths) {
            (Token::At(key), Some(lengths)) => key < lengths[batch],
            _ => true,
        };
        let by_position = match (query, key) {
            (Token::At(i), Token::At(j)) => {
                // The last query stands at the last key.
                let offset = (j + seq_q) as i64 - (i + seq_k) as i64;
                let span = match mask.span {
                    Span::Full => true,
                    Span::Causal => offset <= 0,
                    Span::Window { left, right } => {
                        -(left.min(1 << 40) as i64) <= offset && offset <= right.min(1 << 40) as i64
                    }
                };
                let same_segment =
                    |[query, key]: &[Vec<i32>; 2]| query[batch * seq_q + i] == key[batch * seq_k + j];
                span && self.segments.as_ref().is_none_or(same_segment)
            }
            _ => true,
        };
        let by_entry = self.dense.as_ref().is_none_or(|dense| {
            let head = if dense.shape()[1] == 1 { 0 } else { head };
            let index = [batch, head, self.joined(query, seq_q), self.joined(key, seq_k)];
            dense.view().at(index) != 0
        });
        by_key && by_position && by_entry
    }

    /// Where a token stands in the joint sequence.
    fn joined(&self, token: Token, seq: usize) -> usize {
        let (joint, others) = self.problem.order.starts(self.problem.joint, seq);
        match token {
            Token::Joint(index) => joint + index,
            Token::At(position) => others + position,
        }
    }
}
