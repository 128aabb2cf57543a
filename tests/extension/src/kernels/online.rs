//! A kernel that goes on from a partial result.

use attn::{
    AttentionCall, AttentionKernel, BlockMask, CarriedState, CarriesState, Cpu, Element, KeyValue, MaskKinds,
    Scope, View, ViewMut,
};

use super::row::{Row, larger, rows, write};

/// Softmax attention of one block of keys after another, each block's sums in float64. Every mask.
#[derive(Clone, Copy, Debug, Default)]
pub struct Online;

impl<T: Element> AttentionKernel<Cpu, T> for Online {
    const MASKS: MaskKinds = MaskKinds::ALL;

    /// One step on a fresh state.
    fn forward(&self, scope: Scope<'_, Cpu>, call: &mut AttentionCall<'_, T, Cpu>) -> attn::Result<()> {
        let mut state = CarriesState::<Cpu, T>::begin(self, scope, call.query.shape())?;
        self.step(scope, call.query, call.kv, &call.mask, call.scale, &mut state)?;
        self.finish(scope, state, call.out.reborrow(), call.lse.as_mut().map(ViewMut::reborrow))
    }
}

impl<T: Element> CarriesState<Cpu, T> for Online {
    fn begin<'a>(&self, scope: Scope<'a, Cpu>, query: [usize; 4]) -> attn::Result<CarriedState<'a, Cpu>> {
        let [batch, seq, heads, _] = query;
        let narrow = [batch, seq, heads, 1];
        let (mut max, mut sum) = (scope.take(narrow)?, scope.take(narrow)?);
        let mut output = scope.take(query)?;
        for [b, i, h] in rows(query) {
            max.set([b, i, h, 0], f32::NEG_INFINITY);
            sum.set([b, i, h, 0], 0.0);
            (0..query[3]).for_each(|c| output.set([b, i, h, c], 0.0));
        }
        Ok(CarriedState { output, max, sum })
    }

    fn step(
        &self,
        _: Scope<'_, Cpu>,
        query: View<'_, T, Cpu>,
        kv: KeyValue<'_, T, Cpu>,
        mask: &BlockMask<'_, Cpu>,
        scale: f32,
        state: &mut CarriedState<'_, Cpu>,
    ) -> attn::Result<()> {
        for at in rows(query.shape()) {
            let row = Row { query, kv, mask, scale, at };
            let products: Vec<(usize, f64)> = row.attended().collect();
            let [b, i, h] = at;
            let before = f64::from(state.max.at([b, i, h, 0]));
            let max = products.iter().fold(before, |max, (_, product)| larger(max, *product));
            if max == f64::NEG_INFINITY {
                continue;
            }
            let keep = (before - max).exp();
            let weights: Vec<(usize, f64)> =
                products.into_iter().map(|(key, product)| (key, (product - max).exp())).collect();
            let sum: f64 = weights.iter().map(|(_, weight)| weight).sum();
            let sum = f64::from(state.sum.at([b, i, h, 0])) * keep + sum;
            for c in 0..query.shape()[3] {
                let block: f64 = weights.iter().map(|(key, weight)| weight * row.value(*key, c)).sum();
                let value = f64::from(state.output.at([b, i, h, c])) * keep + block;
                state.output.set([b, i, h, c], value as f32);
            }
            state.max.set([b, i, h, 0], max as f32);
            state.sum.set([b, i, h, 0], sum as f32);
        }
        Ok(())
    }

    fn finish(
        &self,
        _: Scope<'_, Cpu>,
        state: CarriedState<'_, Cpu>,
        mut out: ViewMut<'_, T, Cpu>,
        mut lse: Option<ViewMut<'_, f32, Cpu>>,
    ) -> attn::Result<()> {
        for at in rows(out.shape()) {
            let [b, i, h] = at;
            let sum = f64::from(state.sum.at([b, i, h, 0]));
            let (weight, logarithm) = if sum == 0.0 {
                (0.0, f64::NEG_INFINITY)
            } else {
                (1.0 / sum, f64::from(state.max.at([b, i, h, 0])) + sum.ln())
            };
            let channels = 0..out.shape()[3];
            let output = channels.map(|c| f64::from(state.output.at([b, i, h, c])) * weight);
            write(&mut out, &mut lse, at, output, logarithm);
        }
        Ok(())
    }
}

/// [`Online`], if it had been written before there were masks but those by position: it says nothing of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct SpanOnly;

impl<T: Element> AttentionKernel<Cpu, T> for SpanOnly {
    fn forward(&self, scope: Scope<'_, Cpu>, call: &mut AttentionCall<'_, T, Cpu>) -> attn::Result<()> {
        Online.forward(scope, call)
    }
}

impl<T: Element> CarriesState<Cpu, T> for SpanOnly {
    fn begin<'a>(&self, scope: Scope<'a, Cpu>, query: [usize; 4]) -> attn::Result<CarriedState<'a, Cpu>> {
        CarriesState::<Cpu, T>::begin(&Online, scope, query)
    }

    fn step(
        &self,
        scope: Scope<'_, Cpu>,
        query: View<'_, T, Cpu>,
        kv: KeyValue<'_, T, Cpu>,
        mask: &BlockMask<'_, Cpu>,
        scale: f32,
        state: &mut CarriedState<'_, Cpu>,
    ) -> attn::Result<()> {
        // Of the mask, the band alone: what a kernel need look at that takes no others.
        Online.step(scope, query, kv, &BlockMask::from(mask.band), scale, state)
    }

    fn finish(
        &self,
        scope: Scope<'_, Cpu>,
        state: CarriedState<'_, Cpu>,
        out: ViewMut<'_, T, Cpu>,
        lse: Option<ViewMut<'_, f32, Cpu>>,
    ) -> attn::Result<()> {
        Online.finish(scope, state, out, lse)
    }
}
