//! Whole numbers lose nothing in 8 bits: so what comes of them is what comes under [`UlyssesParallelAttention`], to the bit.

use attn_plan::{MaskKinds, Span};
use proptest::prelude::*;

use super::coordinates::coordinate;
use super::{Attended, BLOCK_KEYS, KEY_SCALES, What, cases, fill};
use crate::device::{Cpu, Scope};
use crate::error::Result;
use crate::kernel::{
    AttentionCall, AttentionKernel, QuantisedAttention, QuantisedShard, QuantisedTensors, Sdpa,
};
use crate::metadata::Segments;
use crate::strategy::{AttentionMask, UlyssesParallelAttention, UlyssesQuantisedParallelAttention};
use crate::tensor::{KeyValue, Tensor, View, ViewMut};

/// [`Sdpa`] on whole numbers from -128 to 127.
struct WholeNumbers;

/// Such a number for each coordinate.
fn number(what: What, at: [usize; 4]) -> f32 {
    let mixed = (coordinate(what, at) as u32).wrapping_mul(0x9e37_79b1);
    f32::from((mixed >> 24) as u8) - 128.0
}

/// The numbers of a tensor in 8 bits, `[batch, rows, heads, head_dim]`.
fn widen<'a>(scope: Scope<'a, Cpu>, bytes: View<'_, u8>) -> Result<View<'a, f32>> {
    let [batch, heads, rows, head_dim] = bytes.shape();
    let mut wide = scope.take([batch, rows, heads, head_dim])?;
    fill(wide.reborrow(), |[b, row, h, c]| f32::from(bytes.at([b, h, row, c])) - 128.0);
    Ok(wide.into_view())
}

impl AttentionKernel<Cpu, f32> for WholeNumbers {
    const MASKS: MaskKinds = MaskKinds::ALL;

    fn forward(&self, scope: Scope<'_, Cpu>, call: &mut AttentionCall<'_, f32, Cpu>) -> Result<()> {
        Sdpa.forward(scope, call)
    }
}

impl QuantisedAttention<Cpu, f32> for WholeNumbers {
    const BLOCK_KEYS: usize = BLOCK_KEYS;
    const KEY_SCALES: usize = KEY_SCALES;

    fn survey<'a>(
        &self,
        _: Scope<'a, Cpu>,
        _: &mut QuantisedShard<'a, f32, Cpu>,
        sums: ViewMut<'_, f32>,
    ) -> Result<()> {
        fill(sums, |_| 0.0);
        Ok(())
    }

    fn settle(
        &self,
        _: Scope<'_, Cpu>,
        shard: &mut QuantisedShard<'_, f32, Cpu>,
        _: View<'_, f32>,
    ) -> Result<()> {
        fill(shard.value_scale.reborrow(), |_| 1.0);
        Ok(())
    }

    fn edge_maxima(
        &self,
        _: Scope<'_, Cpu>,
        _: &QuantisedShard<'_, f32, Cpu>,
        maxima: ViewMut<'_, f32>,
    ) -> Result<()> {
        fill(maxima, |_| 0.0);
        Ok(())
    }

    fn quantise(
        &self,
        _: Scope<'_, Cpu>,
        shard: &QuantisedShard<'_, f32, Cpu>,
        _: Option<View<'_, f32>>,
        into: &mut QuantisedTensors<'_, Cpu>,
    ) -> Result<()> {
        let KeyValue { key, value } = shard.kv;
        for (from, to) in [(shard.query, &mut into.query), (key, &mut into.key), (value, &mut into.value)] {
            fill(to.reborrow(), |[b, h, row, c]| (from.at([b, row, h, c]) + 128.0) as u8);
        }
        fill(into.query_scale.reborrow(), |_| 1.0);
        fill(into.key_scale.reborrow(), |_| 1.0);
        Ok(())
    }

    fn attend(
        &self,
        scope: Scope<'_, Cpu>,
        tensors: &QuantisedTensors<'_, Cpu>,
        _: View<'_, f32>,
        _: Option<View<'_, i32>>,
        call: &mut AttentionCall<'_, f32, Cpu>,
    ) -> Result<()> {
        let query = widen(scope, tensors.query.as_view())?;
        let (key, value) = (widen(scope, tensors.key.as_view())?, widen(scope, tensors.value.as_view())?);
        let (mask, scale) = (call.mask, call.scale);
        let (out, lse) = (call.out.reborrow(), call.lse.as_mut().map(ViewMut::reborrow));
        let mut call = AttentionCall { query, kv: KeyValue { key, value }, mask, scale, out, lse };
        Sdpa.forward(scope, &mut call)
    }
}

proptest! {
    #[test]
    fn masks_are_those_of_ulysses(
        case in cases(), span in 0..3, padded: bool, packed: bool, dense in 0_usize..3, seed in 0_usize..100,
    ) {
        let (joint, [seq_q, seq_k]) = (case.joint, case.seq);
        // With joint tokens there is neither a span nor are there segments.
        let span = match span {
            1 if joint == 0 => Span::Causal,
            2 if joint == 0 => Span::Window { left: 5, right: 2 },
            _ => Span::Full,
        };
        let some = |salt: usize, at: usize, below: usize| (at + salt + seed).wrapping_mul(0x9e37_79b1) / 64 % below;
        let lengths: Vec<usize> = (0..case.batch).map(|at| some(1, at, seq_k + 1)).collect();
        let ids = |salt, seq: usize| (0..case.batch * seq).map(|at| some(salt, at, 3) as i32).collect::<Vec<_>>();
        let (of_queries, of_keys) = (ids(2, seq_q), ids(3, seq_k));
        let heads = [1, 1, case.heads[0]][dense];
        let allowed = Tensor::from_fn([case.batch, heads, joint + seq_q, joint + seq_k], |[b, h, q, k]| {
            u8::from(some(b + 7 * h + 31 * q, 11 * k, 3) > 0)
        }).unwrap();
        let mask = AttentionMask {
            span,
            key_lengths: padded.then_some(&lengths[..]),
            segments: (packed && joint == 0).then_some(Segments { query: &of_queries, key: &of_keys }),
            dense: (dense > 0).then(|| allowed.view()),
        };
        if case.splits_groups() {
            return Ok(());
        }
        let whole = case.attend::<UlyssesParallelAttention<_>, _>(mask, |_| Sdpa, number).unwrap();
        let rounded = case.attend::<UlyssesQuantisedParallelAttention<_>, _>(mask, |_| WholeNumbers, number).unwrap();
        for (Attended { out, lse, .. }, expected) in rounded.iter().zip(&whole) {
            let bits = |tensor: &Tensor<f32>| tensor.as_slice().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(out), bits(&expected.out), "{:?}", mask);
            prop_assert_eq!(bits(lse), bits(&expected.lse), "{:?}", mask);
        }
    }
}
