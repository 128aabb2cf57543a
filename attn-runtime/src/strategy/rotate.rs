//! Ring: queries stay, keys and values go round.
//!
//! H. Liu, M. Zaharia, P. Abbeel, "Ring Attention with Blockwise Transformers for Near-Infinite Context", 2023,
//! arXiv:2310.01889, section 3. The layouts that balance causal masks: zigzag as in Megatron-LM's context parallelism and
//! zhuzilin/ring-flash-attention; striped after W. Brandon et al., "Striped Attention", 2023, arXiv:2311.09431.

use core::cell::Cell;

use attn_plan::{MaskKinds, Run, Span};

use crate::comm::{Communicator, Signature};
use crate::device::{Device, Scope};
use crate::error::Result;
use crate::kernel::{AttentionCall, AttentionKernel, BlockMask, CarriedState, CarriesState, Cover};
use crate::metadata::KeyPlacement;
use crate::pipeline::Work;
use crate::strategy::frame::{Frame, Piece, Pieces};
use crate::strategy::reshard::ReshardContext;
use crate::tensor::{Element, KeyValue, View, ViewMut};

/// A kernel driven round the ring: a [`step`](CarriesState::step) for each stretch of each rank's block, or for each
/// stretch of queries that attends some of it.
///
/// Partial results are carried in fp32, not merged. Queries and blocks stand in stretches of positions; each pair of them
/// is masked by where it stands in the whole sequence, and pairs of which no query may attend a key cost nothing. Keys
/// that every rank has are walked over in the same way, without communication.
pub struct Rotate<'a, K, C: Communicator, T> {
    pub(super) kernel: K,
    /// The ranks of the ring.
    pub(super) group: &'a C,
    pub(super) context: &'a ReshardContext<'a, T, C::Device>,
    pub(super) work: &'a Cell<Work>,
}

impl<K, C: Communicator, T> core::fmt::Debug for Rotate<'_, K, C, T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Rotate").field("signature", &self.context.signature).finish_non_exhaustive()
    }
}

impl<K, C, T> AttentionKernel<C::Device, T> for Rotate<'_, K, C, T>
where
    K: CarriesState<C::Device, T>,
    C: Communicator,
    T: Element,
{
    const MASKS: MaskKinds = K::MASKS;

    fn forward(&self, scope: Scope<'_, C::Device>, call: &mut AttentionCall<'_, T, C::Device>) -> Result<()> {
        let &mut AttentionCall { query, kv, scale, .. } = call;
        let ReshardContext { plans, frame, joint, .. } = self.context;
        let signature = Signature { stage: "rotate", ..self.context.signature };
        let mut state = match query.shape().contains(&0) {
            true => None,
            false => Some(self.kernel.begin(scope, query.shape())?),
        };
        let mut attend =
            |block: KeyValue<'_, T, C::Device>, runs: &mut dyn Iterator<Item = Piece>| match &mut state {
                Some(state) => {
                    Walk { frame, scope, query, scale }.block(&self.kernel, self.work, block, runs, state)
                }
                // This rank has no queries: it only passes keys on.
                None => Ok(()),
            };
        if let Some(joint) = *joint {
            let tokens = Run::of(0..joint.key.shape()[1]);
            attend(joint, &mut core::iter::once(Piece::joint(0, tokens)))?;
        }
        match frame.keys {
            KeyPlacement::Sharded => {
                self.group.rotate(scope, &signature, &plans.part_lengths, kv, |owner, block| {
                    attend(block, &mut frame.key.part(owner).runs().map(|(at, run)| Piece::tokens(at, run)))
                })?
            }
            KeyPlacement::Replicated => {
                let stripes = frame.stripes();
                for stripe in 0..stripes {
                    let len = frame.key.seq().saturating_sub(stripe).div_ceil(stripes);
                    let run = Run { start: stripe, step: stripes, len };
                    attend(kv.select(1, run)?, &mut core::iter::once(Piece::tokens(0, run)))?;
                }
            }
        }
        match state {
            Some(state) => self.kernel.finish(
                scope,
                state,
                call.out.reborrow(),
                call.lse.as_mut().map(ViewMut::reborrow),
            ),
            None => Ok(()),
        }
    }
}

impl<D: Device> Frame<'_, D> {
    /// In how many stripes replicated keys are walked over: masks by position see queries and keys at equal distances.
    fn stripes(&self) -> usize {
        let steps = self.rows.iter().map(|piece| piece.run.step);
        if self.mask.span == Span::Full { 1 } else { steps.max().unwrap_or(1).min(self.key.seq()).max(1) }
    }
}

/// This rank's queries, on their way past a block.
struct Walk<'f, 's, 'q, T, D: Device> {
    frame: &'f Frame<'f, D>,
    scope: Scope<'s, D>,
    query: View<'q, T, D>,
    scale: f32,
}

impl<T: Element, D: Device> Walk<'_, '_, '_, T, D> {
    /// Counts a stretch of keys against each stretch of this rank's positions. (Joint tokens are no block of a ring: every
    /// rank has them.)
    fn count(&self, work: &Cell<Work>, rows: &Pieces, covers: &[Cover]) {
        let stretches = self.frame.rows.iter().filter(|piece| !piece.joint).count() as u64;
        let apart = self.frame.mask.tells_rows_apart();
        let mut done = work.get();
        for (piece, cover) in rows.iter().zip(covers) {
            let blocks = if apart { u64::from(!piece.joint) } else { stretches };
            match cover {
                Cover::Skip => done.skipped += blocks,
                Cover::Full | Cover::Partial => done.computed += blocks,
            }
        }
        work.set(done);
    }

    /// Takes a block of keys, given by its stretches, into the state.
    fn block<K: CarriesState<D, T>>(
        &self,
        kernel: &K,
        work: &Cell<Work>,
        block: KeyValue<'_, T, D>,
        stretches: &mut dyn Iterator<Item = Piece>,
        state: &mut CarriedState<'_, D>,
    ) -> Result<()> {
        let Self { frame, scope, query, scale } = *self;
        let rows = frame.row_pieces();
        for keys in stretches {
            let block = block.narrow(1, keys.at, keys.run.len)?;
            let mut covers = [Cover::Skip; 3];
            for (cover, piece) in covers.iter_mut().zip(rows.iter()) {
                *cover = frame.cover(&frame.block(piece, keys)?, piece.run.len, keys.run.len);
            }
            let covers = &covers[..rows.iter().count()];
            if !keys.joint {
                self.count(work, &rows, covers);
            }
            if covers.iter().all(|cover| *cover == Cover::Full) {
                let step =
                    |scope: Scope<'_, D>| kernel.step(scope, query, block, &BlockMask::FULL, scale, state);
                // SAFETY: only the kernel takes memory meanwhile, from the scope that it is given.
                unsafe { scope.step(step) }?;
                continue;
            }
            for (piece, cover) in rows.iter().zip(covers) {
                let mask = match cover {
                    Cover::Skip => continue,
                    Cover::Full => BlockMask::FULL,
                    Cover::Partial => frame.block(piece, keys)?,
                };
                let query = query.narrow(1, piece.at, piece.run.len)?;
                let mut state = state.narrow(1, piece.at, piece.run.len)?;
                let step = |scope: Scope<'_, D>| kernel.step(scope, query, block, &mask, scale, &mut state);
                // SAFETY: as above.
                unsafe { scope.step(step) }?;
            }
        }
        Ok(())
    }
}
