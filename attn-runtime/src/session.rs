//! A rank's door: checks a call, brings it to the crate's own order of axes, and runs the pipeline.

use attn_plan::{MaskKinds, Sharding, Split};

use crate::comm::{Communicator, Traffic};
use crate::device::{Arena, Device};
use crate::edges::{EdgeOf, Edges};
use crate::error::{Error, Result};
use crate::masks;
use crate::metadata::{AttentionMetadata, KeyPlacement, Outputs, Sequence};
use crate::pipeline::{AttentionPipeline, Clock, Phases, Work, build_parallel_attention_strategy};
use crate::spec::AttentionSpec;
use crate::strategy::{AttentionRequest, Joint, ParallelConfig};
use crate::tensor::{DType, Element, KeyValue, Tensor, TensorLayout, View, volume};

/// Attention with a pipeline round it: what `#[parallel_attention(..)]` implements for a struct.
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no parallel attention for communicator `{C}` and elements `{T}`",
    note = "put `#[parallel_attention(strategy = \"..\")]` on the struct"
)]
pub trait ParallelAttention<C: Communicator, T: Element>: Sized {
    /// The generated pipeline.
    type Pipeline: AttentionPipeline<C, T>;

    /// What the attribute fixed.
    const SPEC: AttentionSpec;

    /// [`Session::attend_into`], written so that it reads as the struct's own.
    ///
    /// # Errors
    /// As there.
    fn attend_into<'a>(
        &self,
        session: &'a mut Session<Self, C, T>,
        query: impl Into<View<'a, T, C::Device>>,
        key: impl Into<View<'a, T, C::Device>>,
        value: impl Into<View<'a, T, C::Device>>,
        metadata: &AttentionMetadata<'a, T, C::Device>,
        outputs: impl Into<Outputs<'a, T, C::Device>>,
    ) -> Result<()> {
        session.attend_into(query, key, value, metadata, outputs)
    }

    /// [`Session::attend`], written so that it reads as the struct's own.
    ///
    /// # Errors
    /// As there.
    fn attend<'a>(
        &self,
        session: &'a mut Session<Self, C, T>,
        query: impl Into<View<'a, T, C::Device>>,
        key: impl Into<View<'a, T, C::Device>>,
        value: impl Into<View<'a, T, C::Device>>,
        metadata: &AttentionMetadata<'a, T, C::Device>,
    ) -> Result<Tensor<T, C::Device>> {
        session.attend(query, key, value, metadata)
    }
}

/// One rank's session of an attention struct `A`: its group, its workspace, its queue. Opened once, at start-up; the
/// struct itself may be shared between ranks.
pub struct Session<A: ParallelAttention<C, T>, C: Communicator, T: Element> {
    pipeline: A::Pipeline,
    queue: <C::Device as Device>::Queue,
    arena: Arena<C::Device>,
    clock: Clock,
    /// How many calls there were, refused ones included.
    calls: u64,
}

impl<A: ParallelAttention<C, T>, C: Communicator, T: Element> Session<A, C, T> {
    /// Opens a session on a group. Collective.
    ///
    /// # Errors
    /// If the attribute offers several strategies (use [`open_with`](Self::open_with)), or its strategy cannot run on
    /// this group.
    pub fn open(group: C) -> Result<Self> {
        Self::open_with(group, &ParallelConfig::default())
    }

    /// Opens a session with the strategy that a configuration asks for. Collective.
    ///
    /// # Errors
    /// If it asks for what the attribute does not offer or the group cannot give.
    pub fn open_with(group: C, config: &ParallelConfig) -> Result<Self> {
        let queue = group.queue()?;
        let pipeline = build_parallel_attention_strategy::<A::Pipeline, C, T>(config, group, &A::SPEC)?;
        Ok(Self { pipeline, queue, arena: Arena::default(), clock: Clock::default(), calls: 0 })
    }

    /// The strategy's name.
    pub fn strategy(&self) -> &'static str {
        self.pipeline.name()
    }

    /// The group.
    pub fn communicator(&self) -> &C {
        self.pipeline.communicator()
    }

    /// The queue on which this rank works.
    pub const fn queue(&self) -> &<C::Device as Device>::Queue {
        &self.queue
    }

    /// Starts or stops measuring the phases of calls. While it measures, each phase waits for the queue.
    pub const fn measure_phases(&mut self, measure: bool) {
        self.clock.enable(measure);
    }

    /// What was measured so far.
    pub const fn phases(&self) -> Phases {
        self.clock.phases()
    }

    /// What this rank has moved through the session's group so far, by this session or any other handle of it, and
    /// through the session's own subgroups.
    pub fn traffic(&self) -> Traffic {
        self.pipeline.traffic()
    }

    /// How many blocks of queries and keys this rank has computed and skipped so far. Rings count them, others none.
    pub fn work(&self) -> Work {
        self.pipeline.work()
    }

    /// How the group shares positions and heads: with it, shard tensors and tables of rotary angles.
    pub fn sharding(&self) -> Sharding {
        self.pipeline.sharding()
    }

    /// Bytes of workspace held for reshards and carried state. What kernels use besides belongs to the queue, which all
    /// sessions of a rank share.
    pub fn workspace_bytes(&mut self) -> usize {
        self.arena.bytes()
    }

    /// Attention of this rank's queries to every rank's keys, written into `outputs`. Collective. Allocates nothing
    /// once a shape has been seen (of the last 32).
    ///
    /// Shapes, in the attribute's layout (here `[batch, seq, heads, head_dim]`), with `P` ranks: query
    /// `[b, s_q/P, h, d]`, key and value `[b, s_k/P, h_kv, d]`, output as the query, or `[b, joint + s_q/P, h, d]`
    /// with joint tokens. Which positions a rank's are, and in an uneven split how many, tells
    /// [`sharding`](Self::sharding). Keys that are [replicated](crate::KeyPlacement) are `[b, s_k, h_kv, d]`.
    ///
    /// # Errors
    /// If shapes or masks disagree with each other, the attribute or the strategy; if ranks call differently, fail, or
    /// pass the communicator's deadline.
    #[inline]
    pub fn attend_into<'a>(
        &'a mut self,
        query: impl Into<View<'a, T, C::Device>>,
        key: impl Into<View<'a, T, C::Device>>,
        value: impl Into<View<'a, T, C::Device>>,
        metadata: &AttentionMetadata<'a, T, C::Device>,
        outputs: impl Into<Outputs<'a, T, C::Device>>,
    ) -> Result<()> {
        let (query, key, value) = (query.into(), key.into(), value.into());
        let Self { pipeline, queue, arena, clock, calls } = self;
        *calls += 1;
        let group = pipeline.communicator();
        let check = Check {
            layout: A::Pipeline::LAYOUT,
            masks: A::Pipeline::MASKS,
            joint: A::Pipeline::JOINT,
            replicated_keys: pipeline.replicated_keys(),
            rank: group.rank(),
            ranks: group.size(),
            sharding: pipeline.sharding(),
            call: *calls,
        };
        admit(check, &A::SPEC, query, key, value, metadata, outputs.into(), |request| {
            pipeline.run(arena.open(queue)?, request, clock)
        })
    }

    /// [`attend_into`](Self::attend_into) a tensor that it allocates, and nothing else once a shape has been seen.
    ///
    /// # Errors
    /// As `attend_into`.
    pub fn attend<'a>(
        &'a mut self,
        query: impl Into<View<'a, T, C::Device>>,
        key: impl Into<View<'a, T, C::Device>>,
        value: impl Into<View<'a, T, C::Device>>,
        metadata: &AttentionMetadata<'a, T, C::Device>,
    ) -> Result<Tensor<T, C::Device>> {
        let (query, key, value) = (query.into(), key.into(), value.into());
        let mut shape = query.shape();
        if let Some(joint) = metadata.joint_query {
            let seq = A::Pipeline::LAYOUT.order()[1];
            shape[seq] = shape[seq].saturating_add(joint.shape()[seq]);
        }
        let mut out = Tensor::zeros(&self.queue, shape)?;
        self.attend_into(query, key, value, metadata, Outputs::from(&mut out))?;
        Ok(out)
    }
}

impl<A: ParallelAttention<C, T>, C: Communicator, T: Element> core::fmt::Debug for Session<A, C, T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Session").field("strategy", &self.strategy()).finish_non_exhaustive()
    }
}

/// Checks a call against itself and the attribute, brings it to `[batch, seq, heads, head_dim]` order, and goes on with it.
/// (A request is large: what is not returned is not copied.)
#[inline(always)]
fn admit<'a, T: Element, D: Device>(
    check: Check,
    spec: &AttentionSpec,
    query: View<'a, T, D>,
    key: View<'a, T, D>,
    value: View<'a, T, D>,
    metadata: &AttentionMetadata<'a, T, D>,
    outputs: Outputs<'a, T, D>,
    run: impl FnOnce(AttentionRequest<'a, T, D>) -> Result<()>,
) -> Result<()> {
    let layout = check.layout;
    let (query, key, value) = (query.permuted(layout), key.permuted(layout), value.permuted(layout));
    let [batch, tokens, heads, head_dim] = query.shape();
    let [_, keys, kv_heads, _] = key.shape();
    check.not_empty("query", query.shape())?;
    check.not_empty("key", key.shape())?;
    check.is("key", key.shape(), [batch, keys, kv_heads, head_dim], "the query's batch and head_dim")?;
    check.is("value", value.shape(), key.shape(), "the key's shape")?;
    if metadata.keys == KeyPlacement::Replicated && !check.replicated_keys {
        let (what, constant) = ("keys that every rank has", "REPLICATED_KEYS");
        return Err(Error::NotTaken { what, constant });
    }
    let sequence = check.sequence(query.shape(), key.shape(), metadata)?;
    attn_plan::check_kv_group(heads, kv_heads)?;
    for (key, declared, found) in [
        ("heads", spec.heads, heads),
        ("kv_heads", spec.kv_heads, kv_heads),
        ("head_dim", spec.head_dim, head_dim),
    ] {
        if let Some(declared) = declared.filter(|declared| *declared != found) {
            return Err(Error::Declared { key, declared: declared.to_string(), found: found.to_string() });
        }
    }
    let scale = match (spec.scale, metadata.scale) {
        (Some(fixed), Some(asked)) if fixed != asked => {
            let found = format!("metadata that asks for {asked}");
            return Err(Error::Declared { key: "scale", declared: fixed.to_string(), found });
        }
        (fixed, asked) => fixed.or(asked).unwrap_or_else(|| 1.0 / (head_dim as f32).sqrt()),
    };
    if !scale.is_finite() {
        return Err(Error::Scale(scale));
    }
    let has_joint =
        metadata.joint_query.is_some() || metadata.joint_key.is_some() || metadata.joint_value.is_some();
    let joint_tokens = if has_joint { check.joint(metadata, query.shape(), key.shape())? } else { 0 };
    check.whole_fits::<T>(query.shape(), sequence.query, joint_tokens)?;
    check.whole_fits::<T>(key.shape(), sequence.key, joint_tokens)?;
    if let Some(edges) = metadata.edges {
        check.edges(edges, [query.shape(), key.shape()], has_joint.then_some(joint_tokens))?;
    }
    let mask = masks::admit(check.masks, spec.mask, metadata, [batch, heads], sequence, joint_tokens)?;
    let rows = joint_tokens + tokens;
    let out = outputs.out.permuted(layout);
    let what = if has_joint { "the query's shape, longer by the joint tokens" } else { "the query's shape" };
    check.is("out", out.shape(), [batch, rows, heads, head_dim], what)?;
    let lse = match outputs.lse {
        None => None,
        Some(lse) if lse.shape() == [batch, heads, rows] => Some(lse.into_canonical()),
        Some(lse) => {
            let [b, h, s] = lse.shape();
            let expected = format!("{:?} (batch, heads, seq of the output)", [batch, heads, rows, 1]);
            return Err(Error::Shape { tensor: "lse", found: [b, h, s, 1], expected });
        }
    };
    let keys = metadata.keys;
    let kv = KeyValue { key, value };
    let call = check.call;
    let edges = metadata.edges;
    let mut request =
        AttentionRequest { call, query, kv, keys, sequence, joint: None, mask, edges, scale, out, lse };
    if let (Some(query), Some(key), Some(value), 1..) =
        (metadata.joint_query, metadata.joint_key, metadata.joint_value, joint_tokens)
    {
        let kv = KeyValue { key: key.permuted(layout), value: value.permuted(layout) };
        request.joint = Some(Joint { query: query.permuted(layout), kv, order: metadata.joint_strategy });
    }
    run(request)
}

/// Speaks of shapes in the caller's layout.
#[derive(Clone, Copy)]
struct Check {
    layout: TensorLayout,
    masks: MaskKinds,
    joint: bool,
    replicated_keys: bool,
    rank: usize,
    ranks: usize,
    sharding: Sharding,
    call: u64,
}

impl Check {
    /// An uneven split may leave a rank without positions; nothing else may be empty.
    #[inline]
    fn not_empty(self, tensor: &'static str, shape: [usize; 4]) -> Result<()> {
        let [batch, seq, heads, head_dim] = shape;
        let empty =
            batch == 0 || heads == 0 || head_dim == 0 || (seq == 0 && self.sharding.split == Split::Strict);
        if empty { Err(self.empty(tensor, shape)) } else { Ok(()) }
    }

    /// That the joint tensors of a call fit the others; how many joint tokens there are.
    #[inline(never)]
    fn joint<T: Element, D: Device>(
        self,
        metadata: &AttentionMetadata<'_, T, D>,
        query: [usize; 4],
        key: [usize; 4],
    ) -> Result<usize> {
        let shapes = [metadata.joint_query, metadata.joint_key, metadata.joint_value]
            .map(|tensor| tensor.map(|tensor| self.layout.permute(tensor.shape())));
        let [Some(joint_query), Some(joint_key), Some(joint_value)] = shapes else {
            let [query, key, value] = shapes.map(|shape| if shape.is_some() { "given" } else { "missing" });
            return Err(Error::JointIncomplete { query, key, value });
        };
        let tokens = joint_query[1];
        if !self.joint && tokens > 0 {
            let (what, constant) = ("joint tensors", "JOINT");
            return Err(Error::NotTaken { what, constant });
        }
        self.is("joint_query", joint_query, replaced(query, tokens), "the query's shape in all but seq")?;
        let expected = [query[0], tokens, key[2], query[3]];
        self.is("joint_key", joint_key, expected, "joint_query's seq, the key's shape in all else")?;
        self.is("joint_value", joint_value, expected, "joint_key's shape")?;
        Ok(tokens)
    }

    /// That what is done to queries and keys on their way fits them.
    #[inline(never)]
    fn edges<T: Element, D: Device>(
        self,
        edges: &Edges<'_, T, D>,
        [query, key]: [[usize; 4]; 2],
        joint: Option<usize>,
    ) -> Result<()> {
        let Edges { query: of_query, key: of_key, joint_query, joint_key } = edges;
        of_query.check(EdgeOf { name: "query", shape: query })?;
        of_key.check(EdgeOf { name: "key", shape: key })?;
        for (edge, name, shape) in [(joint_query, "joint_query", query), (joint_key, "joint_key", key)] {
            match joint {
                Some(tokens) => edge.check(EdgeOf { name, shape: replaced(shape, tokens) })?,
                None if edge.is_none() => {}
                None => {
                    let message =
                        String::from("the call has no joint tensors: give them, or no edge for them");
                    return Err(Error::Edge { edge: name, message });
                }
            }
        }
        Ok(())
    }

    #[cold]
    fn empty(self, tensor: &'static str, shape: [usize; 4]) -> Error {
        Error::Empty { tensor, found: self.layout.permute(shape) }
    }

    /// The lengths of the whole sequences, of which query and key are this rank's share.
    #[inline]
    fn sequence<T: Element, D: Device>(
        self,
        query: [usize; 4],
        key: [usize; 4],
        metadata: &AttentionMetadata<'_, T, D>,
    ) -> Result<Sequence> {
        if self.ranks == 1 && metadata.sequence.is_none() {
            return match (query[1], key[1]) {
                (0, _) => Err(self.empty("query", query)),
                (_, 0) => Err(self.empty("key", key)),
                (query, key) => Ok(Sequence { query, key }),
            };
        }
        self.sequence_of_ranks(query, key, metadata.sequence, metadata.keys)
    }

    #[inline(never)]
    fn sequence_of_ranks(
        self,
        query: [usize; 4],
        key: [usize; 4],
        sequence: Option<Sequence>,
        keys: KeyPlacement,
    ) -> Result<Sequence> {
        let whole = |shape: [usize; 4], keys: KeyPlacement| {
            let ranks = if keys == KeyPlacement::Sharded { self.ranks } else { 1 };
            let shape_outside = self.layout.permute(shape);
            shape[1].checked_mul(ranks).ok_or(Error::TooLarge { shape: shape_outside, dtype: DType::U8 })
        };
        let sequence = match sequence {
            Some(sequence) => sequence,
            None if self.sharding.split == Split::Uneven => {
                return Err(Error::SequenceNeeded { positions: query[1] });
            }
            None => Sequence { query: whole(query, KeyPlacement::Sharded)?, key: whole(key, keys)? },
        };
        if sequence.query == 0 || sequence.key == 0 {
            return Err(Error::EmptySequence { query: sequence.query, key: sequence.key });
        }
        self.share("query", query, sequence.query, KeyPlacement::Sharded)?;
        self.share("key", key, sequence.key, keys)?;
        Ok(sequence)
    }

    /// That a tensor has this rank's share of positions.
    fn share(self, tensor: &'static str, shape: [usize; 4], seq: usize, keys: KeyPlacement) -> Result<()> {
        if keys == KeyPlacement::Replicated {
            return self.is(tensor, shape, replaced(shape, seq), "the whole sequence: it is replicated");
        }
        let layout = self.sharding.sequence(seq).map_err(|error| Error::SeqSplit { tensor, error })?;
        let length = layout.length(self.rank);
        if shape[1] == length {
            return Ok(());
        }
        let what = format!("rank {}'s share of {seq} positions among {} ranks", self.rank, self.ranks);
        self.is(tensor, shape, replaced(shape, length), &what)
    }

    /// That the whole joint sequence of a tensor could be addressed: what any strategy computes of lengths then fits.
    /// (A view may repeat elements, and so be longer than any memory.)
    #[inline]
    fn whole_fits<T: Element>(self, shape: [usize; 4], seq: usize, joint: usize) -> Result<()> {
        let [batch, _, heads, head_dim] = shape;
        let whole = seq.checked_add(joint);
        let fits = whole.is_some_and(|whole| volume::<T>([batch, whole, heads, head_dim]).is_ok());
        if fits {
            Ok(())
        } else {
            Err(Error::TooLarge { shape: self.layout.permute(shape), dtype: T::DTYPE })
        }
    }

    #[inline]
    fn is(self, tensor: &'static str, found: [usize; 4], expected: [usize; 4], what: &str) -> Result<()> {
        if found == expected { Ok(()) } else { Err(self.mismatch(tensor, found, expected, what)) }
    }

    /// Kept out of the way of calls that are right.
    #[cold]
    fn mismatch(self, tensor: &'static str, found: [usize; 4], expected: [usize; 4], what: &str) -> Error {
        let (layout, expected) = (self.layout, self.layout.permute(expected));
        let expected = format!("{expected:?} ({what}; axes are {layout})");
        Error::Shape { tensor, found: layout.permute(found), expected }
    }
}

/// The shape with another length.
const fn replaced([batch, _, heads, head_dim]: [usize; 4], seq: usize) -> [usize; 4] {
    [batch, seq, heads, head_dim]
}
