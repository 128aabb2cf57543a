//! The bundled model: a dual-stream diffusion transformer (MM-DiT) that draws digits.
//!
//! What a model has to do to run on several ranks is all here. The attribute on [`JointAttention`] gives it
//! [`attend`](ParallelAttention::attend); every rank holds a shard of the image's tokens, from the first layer to
//! the last, and all of the text's. All layers but attention work on single tokens and notice nothing; only the
//! rotary embedding must know which positions the shard's are.

use std::f64::consts::LN_10;
use std::marker::PhantomData;

use attn::Positions;
use attn::device::cpu::CpuQueue;
use attn::prelude::*;

use super::layers::{Linear, Weights, add_gated, gelu, layer_norm, rms_norm, silu, spread};
use crate::failure::Failure;

/// Width of a token in both streams.
pub(super) const DIM: usize = 128;
pub(super) const HEADS: usize = 4;
pub(super) const HEAD_DIM: usize = 64;
/// Width of all heads.
const INNER: usize = HEADS * HEAD_DIM;
const MLP: usize = 512;
const DEPTH: usize = 5;
/// Image tokens are a square of so many rows.
pub(super) const GRID: usize = 16;
/// Image tokens of a sample, over all ranks.
pub(super) const TOKENS: usize = GRID * GRID;
/// Values in a token: its 2x2 pixels.
pub(super) const CHANNELS: usize = 4;
/// Text tokens of a sample.
pub(super) const TEXT: usize = 8;
const VOCABULARY: usize = 27;
/// Euler steps from noise to image.
pub(super) const STEPS: usize = 20;

/// The attention of one block: text and image attend each other, each through projections of its own.
///
/// `K` is the kernel. A model that needs no choice of kernel names one, `backend = "flash"`, and has no `K`.
#[parallel_attention(
    strategy = ["none", "ulysses", "ring", "hybrid", "allgather_kv", "ulysses_allgather"],
    heads = 4,
    head_dim = 64,
    mask = "none",
    backend = K,
)]
pub(super) struct JointAttention<K> {
    image: Projections,
    text: Projections,
    kernel: PhantomData<fn() -> K>,
}

/// What leads one stream into the attention and out of it.
struct Projections {
    qkv: Linear,
    q_norm: Vec<f32>,
    k_norm: Vec<f32>,
    out: Linear,
}

/// Queries, keys and values of one stream: `[batch, tokens, 3, heads, head_dim]`, as the layer `qkv` writes them.
/// The attention takes strided views, so nothing is taken apart.
pub(super) struct Qkv {
    elements: Vec<f32>,
    batch: usize,
    tokens: usize,
}

impl Qkv {
    /// Queries (0), keys (1) or values (2): `[batch, tokens, heads, head_dim]`.
    pub(super) fn part(&self, part: usize) -> attn::Result<View<'_, f32>> {
        let shape = [self.batch, self.tokens, HEADS, HEAD_DIM];
        let strides = [self.tokens * 3 * INNER, 3 * INNER, HEAD_DIM, 1];
        View::with_strides(self.elements.get(part * INNER..).unwrap_or_default(), shape, strides)
    }
}

impl Projections {
    /// Queries and keys are normalised for each head, and turned by the rotary embedding if the stream has one.
    fn qkv(&self, team: &CpuQueue, x: &[f32], batch: usize, rotary: Option<&Rotary>) -> Qkv {
        let mut elements = self.qkv.forward(team, x);
        let tokens = x.len() / (batch * DIM);
        spread(team, &mut elements, 3 * INNER, |first, rows| {
            for (row, qkv) in rows.chunks_exact_mut(3 * INNER).enumerate() {
                let turn = rotary.map(|rotary| rotary.turn((first + row) % tokens));
                let (q, k) = qkv[..2 * INNER].split_at_mut(INNER);
                for (heads, norm) in [(q, &self.q_norm), (k, &self.k_norm)] {
                    for head in heads.chunks_exact_mut(HEAD_DIM) {
                        rms_norm(head, norm);
                        if let Some(turn) = turn {
                            rotate(head, turn);
                        }
                    }
                }
            }
        });
        Qkv { elements, batch, tokens }
    }

    fn load(weights: &Weights<'_>, name: &str) -> Result<Self, Failure> {
        Ok(Self {
            qkv: weights.linear(&format!("{name}.qkv"), DIM, 3 * INNER)?,
            q_norm: weights.tensor(&format!("{name}.q_norm.weight"), &[HEAD_DIM])?,
            k_norm: weights.tensor(&format!("{name}.k_norm.weight"), &[HEAD_DIM])?,
            out: weights.linear(&format!("{name}.out"), INNER, DIM)?,
        })
    }
}

impl<K> JointAttention<K> {
    /// Queries, keys and values of this rank's image tokens and of all text tokens.
    pub(super) fn project(&self, team: &CpuQueue, image: &[f32], text: &[f32], at: &Place) -> (Qkv, Qkv) {
        let image = self.image.qkv(team, image, at.batch, Some(&at.rotary));
        (image, self.text.qkv(team, text, at.batch, None))
    }

    /// The joint attention: each stream's tokens, `[batch, tokens, heads * head_dim]`, image first.
    ///
    /// This one call is where ranks meet. The text is the same on all of them, so it goes along as joint tensors.
    pub(super) fn mix<C>(
        &self,
        session: &mut Session<Self, C, f32>,
        image: &Qkv,
        text: &Qkv,
    ) -> attn::Result<(Vec<f32>, Vec<f32>)>
    where
        C: Communicator<Device = Cpu>,
        Self: ParallelAttention<C, f32>,
    {
        let joint =
            AttentionMetadata::joint(text.part(0)?, text.part(1)?, text.part(2)?, JointStrategy::Front)
                .with_sequence(TOKENS, TOKENS);
        let out = self.attend(session, image.part(0)?, image.part(1)?, image.part(2)?, &joint)?;
        let (mut image, mut text) = (Vec::new(), Vec::new());
        for sample in out.as_slice().chunks_exact(out.shape()[1] * INNER) {
            let (front, rest) = sample.split_at(TEXT * INNER);
            text.extend_from_slice(front);
            image.extend_from_slice(rest);
        }
        Ok((image, text))
    }

    /// From normalised tokens to what is added to the streams.
    fn forward<C>(
        &self,
        session: &mut Session<Self, C, f32>,
        image: &[f32],
        text: &[f32],
        at: &Place,
    ) -> attn::Result<(Vec<f32>, Vec<f32>)>
    where
        C: Communicator<Device = Cpu>,
        Self: ParallelAttention<C, f32>,
    {
        let team = session.queue().clone();
        let (image, text) = self.project(&team, image, text, at);
        let (image, text) = self.mix(session, &image, &text)?;
        Ok((self.image.out.forward(&team, &image), self.text.out.forward(&team, &text)))
    }
}

/// What one block does to one stream besides attention.
struct Stream {
    /// From the condition to shift, scale and gate, for the attention and for the MLP.
    modulation: Linear,
    mlp_in: Linear,
    mlp_out: Linear,
}

impl Stream {
    /// Adds the attention's output and the MLP's.
    fn advance(&self, team: &CpuQueue, x: &mut [f32], attended: &[f32], by: &[f32]) {
        let [_, _, gate_attention, shift, scale, gate_mlp] = chunks(by);
        add_gated(x, gate_attention, attended);
        let mut hidden = self.mlp_in.forward(team, &layer_norm(team, x, shift, scale));
        gelu(team, &mut hidden, MLP);
        add_gated(x, gate_mlp, &self.mlp_out.forward(team, &hidden));
    }

    fn load(weights: &Weights<'_>, name: &str) -> Result<Self, Failure> {
        Ok(Self {
            modulation: weights.linear(&format!("{name}.ada"), DIM, 6 * DIM)?,
            mlp_in: weights.linear(&format!("{name}.mlp_in"), DIM, MLP)?,
            mlp_out: weights.linear(&format!("{name}.mlp_out"), MLP, DIM)?,
        })
    }
}

/// One block of the transformer.
pub(super) struct Block<K> {
    pub(super) attention: JointAttention<K>,
    image: Stream,
    text: Stream,
}

impl<K> Block<K> {
    /// The tokens as the attention takes them: normalised and modulated, image first.
    pub(super) fn normalise(&self, team: &CpuQueue, tokens: &Tokens, cond: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let normalise = |stream: &Stream, x: &[f32]| {
            let by = stream.modulation.forward(team, cond);
            let [shift, scale, ..] = chunks::<6>(&by);
            layer_norm(team, x, shift, scale)
        };
        (normalise(&self.image, &tokens.image), normalise(&self.text, &tokens.text))
    }

    pub(super) fn forward<C>(
        &self,
        session: &mut Session<JointAttention<K>, C, f32>,
        tokens: &mut Tokens,
        cond: &[f32],
        at: &Place,
    ) -> attn::Result<()>
    where
        C: Communicator<Device = Cpu>,
        JointAttention<K>: ParallelAttention<C, f32>,
    {
        let team = session.queue().clone();
        let (image, text) = self.normalise(&team, tokens, cond);
        let (image, text) = self.attention.forward(session, &image, &text, at)?;
        self.image.advance(&team, &mut tokens.image, &image, &self.image.modulation.forward(&team, cond));
        self.text.advance(&team, &mut tokens.text, &text, &self.text.modulation.forward(&team, cond));
        Ok(())
    }

    fn load(weights: &Weights<'_>, name: &str) -> Result<Self, Failure> {
        let (image, text) = (format!("{name}.image"), format!("{name}.text"));
        Ok(Self {
            attention: JointAttention {
                image: Projections::load(weights, &image)?,
                text: Projections::load(weights, &text)?,
                kernel: PhantomData,
            },
            image: Stream::load(weights, &image)?,
            text: Stream::load(weights, &text)?,
        })
    }
}

/// The two streams between blocks: `[batch, tokens, DIM]` each; the image's are this rank's, the text's are all.
pub(super) struct Tokens {
    pub(super) image: Vec<f32>,
    pub(super) text: Vec<f32>,
}

/// Which part of the work a rank has.
pub(super) struct Place {
    /// Samples.
    pub(super) batch: usize,
    rotary: Rotary,
}

impl Place {
    /// These of the image's tokens, of every sample.
    pub(super) fn new(batch: usize, tokens: Positions) -> Self {
        Self { batch, rotary: Rotary::new(tokens) }
    }
}

/// The model. Every rank reads the same one.
pub(super) struct Dit<K> {
    image_in: Linear,
    text_embed: Vec<f32>,
    text_pos: Vec<f32>,
    time_in: Linear,
    time_out: Linear,
    pub(super) blocks: Vec<Block<K>>,
    final_modulation: Linear,
    final_out: Linear,
}

impl<K> Dit<K> {
    pub(super) fn load(file: &[u8]) -> Result<Self, Failure> {
        let weights = Weights::parse(file)?;
        Ok(Self {
            image_in: weights.linear("image_in", CHANNELS, DIM)?,
            text_embed: weights.tensor("text_embed.weight", &[VOCABULARY, DIM])?,
            text_pos: weights.tensor("text_pos.weight", &[TEXT, DIM])?,
            time_in: weights.linear("time_in", DIM, DIM)?,
            time_out: weights.linear("time_out", DIM, DIM)?,
            blocks: (0..DEPTH)
                .map(|i| Block::load(&weights, &format!("blocks.{i}")))
                .collect::<Result<_, _>>()?,
            final_modulation: weights.linear("final_ada", DIM, 2 * DIM)?,
            final_out: weights.linear("final", DIM, CHANNELS)?,
        })
    }

    /// From noise to image in [`STEPS`] Euler steps: `[batch, tokens, CHANNELS]` of this rank's tokens. `text` has
    /// `TEXT` ids for each sample.
    pub(super) fn sample<C>(
        &self,
        session: &mut Session<JointAttention<K>, C, f32>,
        noise: &[f32],
        text: &[usize],
        at: &Place,
        on_step: impl Fn(),
    ) -> attn::Result<Vec<f32>>
    where
        C: Communicator<Device = Cpu>,
        JointAttention<K>: ParallelAttention<C, f32>,
    {
        let mut x = noise.to_vec();
        for step in 0..STEPS {
            let time = 1.0 - step as f64 / STEPS as f64;
            let velocity = self.velocity(session, &x, text, time, at)?;
            x.iter_mut().zip(velocity).for_each(|(x, velocity)| *x -= velocity * (1.0 / STEPS as f32));
            on_step();
        }
        Ok(x)
    }

    /// Where the image moves at a time between 1 (noise) and 0 (image).
    pub(super) fn velocity<C>(
        &self,
        session: &mut Session<JointAttention<K>, C, f32>,
        x: &[f32],
        text: &[usize],
        time: f64,
        at: &Place,
    ) -> attn::Result<Vec<f32>>
    where
        C: Communicator<Device = Cpu>,
        JointAttention<K>: ParallelAttention<C, f32>,
    {
        let team = session.queue().clone();
        let cond = self.condition(&team, time);
        let mut tokens = self.embed(&team, x, text);
        for block in &self.blocks {
            block.forward(session, &mut tokens, &cond, at)?;
        }
        let by = self.final_modulation.forward(&team, &cond);
        let [shift, scale] = chunks(&by);
        Ok(self.final_out.forward(&team, &layer_norm(&team, &tokens.image, shift, scale)))
    }

    /// The first tokens of both streams.
    pub(super) fn embed(&self, team: &CpuQueue, x: &[f32], text: &[usize]) -> Tokens {
        let row =
            |table: &[f32], row: usize| table.iter().skip(row * DIM).take(DIM).copied().collect::<Vec<_>>();
        let text = text.iter().enumerate().flat_map(|(i, id)| {
            let (token, position) = (row(&self.text_embed, *id), row(&self.text_pos, i % TEXT));
            token.into_iter().zip(position).map(|(token, position)| token + position)
        });
        Tokens { image: self.image_in.forward(team, x), text: text.collect() }
    }

    /// What every modulation layer reads: one vector, since all samples stand at the same time.
    pub(super) fn condition(&self, team: &CpuQueue, time: f64) -> Vec<f32> {
        let half = DIM / 2;
        // Angles go up to a thousand radians: in f32 they would be off by more than the model's other errors.
        let angle = |i: usize| 1000.0 * time * (-4.0 * LN_10 * i as f64 / half as f64).exp();
        let cosines = (0..half).map(|i| angle(i).cos() as f32);
        let features: Vec<f32> = cosines.chain((0..half).map(|i| angle(i).sin() as f32)).collect();
        let mut hidden = self.time_in.forward(team, &features);
        silu(&mut hidden);
        let mut cond = self.time_out.forward(team, &hidden);
        silu(&mut cond);
        cond
    }
}

/// The rotary embedding of some of the image's tokens: half of the channels turn with the row, half with the column.
pub(super) struct Rotary {
    /// Cosine and sine for each pair of channels of each token.
    turns: Vec<(f32, f32)>,
}

impl Rotary {
    const PAIRS: usize = HEAD_DIM / 2;

    fn new(tokens: Positions) -> Self {
        let half = Self::PAIRS / 2;
        let turn = move |(token, pair): (usize, usize)| {
            let position = if pair < half { token / GRID } else { token % GRID };
            let angle = position as f64 * 100_f64.powf(-((pair % half) as f64) / half as f64);
            (angle.cos() as f32, angle.sin() as f32)
        };
        let pairs = tokens.iter().flat_map(|token| (0..Self::PAIRS).map(move |pair| (token, pair)));
        Self { turns: pairs.map(turn).collect() }
    }

    /// The turns of the `token`-th of them.
    fn turn(&self, token: usize) -> &[(f32, f32)] {
        &self.turns[token * Self::PAIRS..][..Self::PAIRS]
    }
}

/// Turns each pair of neighbouring channels.
fn rotate(head: &mut [f32], turn: &[(f32, f32)]) {
    for (pair, (cos, sin)) in head.chunks_exact_mut(2).zip(turn) {
        let (x, y) = (pair[0], pair[1]);
        pair[0] = x * cos - y * sin;
        pair[1] = x * sin + y * cos;
    }
}

/// `N` vectors of [`DIM`] that a modulation layer wrote side by side.
fn chunks<const N: usize>(of: &[f32]) -> [&[f32]; N] {
    std::array::from_fn(|i| &of[i * DIM..][..DIM])
}
