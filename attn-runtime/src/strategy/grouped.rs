//! Heads of an uneven split, where a rank's share begins or ends inside of a group of grouped-query attention.

use attn_plan::{HeadRun, MaskKinds};

use crate::device::{Device, Scope};
use crate::error::Result;
use crate::kernel::{AttentionCall, AttentionKernel, BlockMask, CarriedState, CarriesState};
use crate::tensor::{Element, KeyValue, View, ViewMut};

/// A kernel called once for each run of heads that attend with equal shares of a group: once, unless the heads that a
/// rank computes are cut out of several groups.
#[derive(Debug)]
pub struct Grouped<'a, K> {
    kernel: &'a K,
    /// None if one call takes all heads.
    runs: &'a [HeadRun],
}

impl<'a, K> Grouped<'a, K> {
    pub(super) const fn new(kernel: &'a K, runs: &'a [HeadRun]) -> Self {
        Self { kernel, runs }
    }
}

/// What a run of heads attends with.
fn inputs<'a, T, D: Device>(
    run: &HeadRun,
    query: View<'a, T, D>,
    kv: KeyValue<'a, T, D>,
    mask: &BlockMask<'a, D>,
) -> Result<(View<'a, T, D>, KeyValue<'a, T, D>, BlockMask<'a, D>)> {
    let dense = match mask.dense {
        Some(dense) if dense.shape()[1] != 1 => Some(dense.narrow(1, run.head, run.heads)?),
        dense => dense,
    };
    let (query, kv) = (query.narrow(2, run.head, run.heads)?, kv.narrow(2, run.kv_head, run.kv_heads)?);
    Ok((query, kv, BlockMask { dense, ..*mask }))
}

impl<D: Device, T: Element, K: AttentionKernel<D, T>> AttentionKernel<D, T> for Grouped<'_, K> {
    const MASKS: MaskKinds = K::MASKS;

    #[inline]
    fn forward(&self, scope: Scope<'_, D>, call: &mut AttentionCall<'_, T, D>) -> Result<()> {
        if self.runs.is_empty() {
            return if call.query.shape().contains(&0) { Ok(()) } else { self.kernel.forward(scope, call) };
        }
        let &mut AttentionCall { query, kv, mask, scale, .. } = call;
        for run in self.runs {
            let (query, kv, mask) = inputs(run, query, kv, &mask)?;
            let out = call.out.reborrow().narrow(2, run.head, run.heads)?;
            let lse =
                call.lse.as_mut().map(|lse| lse.reborrow().narrow(2, run.head, run.heads)).transpose()?;
            self.kernel.forward(scope, &mut AttentionCall { query, kv, mask, scale, out, lse })?;
        }
        Ok(())
    }
}

#[diagnostic::do_not_recommend]
impl<D: Device, T: Element, K: CarriesState<D, T>> CarriesState<D, T> for Grouped<'_, K> {
    fn begin<'a>(&self, scope: Scope<'a, D>, query: [usize; 4]) -> Result<CarriedState<'a, D>> {
        self.kernel.begin(scope, query)
    }

    #[inline]
    fn step(
        &self,
        scope: Scope<'_, D>,
        query: View<'_, T, D>,
        kv: KeyValue<'_, T, D>,
        mask: &BlockMask<'_, D>,
        scale: f32,
        state: &mut CarriedState<'_, D>,
    ) -> Result<()> {
        if self.runs.is_empty() {
            return self.kernel.step(scope, query, kv, mask, scale, state);
        }
        for run in self.runs {
            let (query, kv, mask) = inputs(run, query, kv, mask)?;
            let mut state = state.narrow(2, run.head, run.heads)?;
            self.kernel.step(scope, query, kv, &mask, scale, &mut state)?;
        }
        Ok(())
    }

    fn finish(
        &self,
        scope: Scope<'_, D>,
        state: CarriedState<'_, D>,
        out: ViewMut<'_, T, D>,
        lse: Option<ViewMut<'_, f32, D>>,
    ) -> Result<()> {
        self.kernel.finish(scope, state, out, lse)
    }
}
