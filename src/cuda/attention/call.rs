//! From a call to the kernels' struct: all that can be wrong with it is found here, before anything is queued.

use attn_runtime::{
    AttentionCall, BlockMask, CarriedState, Element, Error, KeyValue, Result, Scope, View, ViewMut,
};

use super::kernel::{Kernel, Launcher};
use super::masks::{self, DeviceMasks};
use super::sage;
use super::state::{self, describe_state};
use crate::cuda::abi;
use crate::cuda::architecture::supports;
use crate::cuda::launches::{Launches, here, launch};
use crate::cuda::layout;

impl Kernel {
    /// One call.
    pub(crate) fn forward<D: Launches, T: Element>(
        self,
        scope: Scope<'_, D>,
        call: &mut AttentionCall<'_, T, D>,
        masks: &DeviceMasks<'_, D>,
    ) -> Result<()> {
        let attention = self.whole(scope.queue(), call)?;
        let mask =
            masks::cross(scope, self.info.name, &call.mask, masks, shapes(&attention), attention.mask)?;
        // SAFETY: the views lend device memory of the shapes that were checked, the outputs exclusively.
        unsafe { self.launch::<D>(scope, &abi::Attention { mask, ..attention }) }
    }

    /// One call whose mask is a band and key lengths in memory of the device: it needs no scratch memory.
    pub(crate) fn forward_banded<D: Launches, T: Element>(
        self,
        queue: &D::Queue,
        call: &mut AttentionCall<'_, T, D>,
        key_lengths: Option<View<'_, i32, D>>,
    ) -> Result<()> {
        let mut attention = self.whole(queue, call)?;
        attention.mask.key_lengths = masks::resident("key_lengths", key_lengths, [attention.batch, 1])?;
        let Launcher::Plain(launcher) = self.launcher else {
            let cure = "call `forward`, which has some";
            return Err(layout::unsupported(self.info.name, "a call without scratch memory", cure));
        };
        // SAFETY: as above.
        unsafe { launch::<D, _>(queue, self.info.name, launcher, &attention) }
    }

    /// One more block of keys on a carried state.
    pub(crate) fn step<D: Launches, T: Element>(
        self,
        scope: Scope<'_, D>,
        query: View<'_, T, D>,
        kv: KeyValue<'_, T, D>,
        mask: &BlockMask<'_, D>,
        scale: f32,
        state: &mut CarriedState<'_, D>,
    ) -> Result<()> {
        let (queue, name) = (scope.queue(), self.info.name);
        let mut attention = self.inputs(queue, query, kv, mask, scale)?;
        (attention.state_output, attention.state_max, attention.state_sum) =
            describe_state(self.info, query.shape(), state)?;
        here::<D>(queue, name, &[("state.output", attention.state_output.base)])?;
        let none = DeviceMasks::NONE;
        attention.mask = masks::cross(scope, name, mask, &none, shapes(&attention), attention.mask)?;
        // SAFETY: the views lend device memory of the shapes that were checked, the state exclusively.
        unsafe { self.launch::<D>(scope, &attention) }
    }

    /// # Safety
    /// What the call describes must be memory of the device, as `abi.h` says.
    unsafe fn launch<D: Launches>(self, scope: Scope<'_, D>, call: &abi::Attention) -> Result<()> {
        match self.launcher {
            // SAFETY: the caller's contract.
            Launcher::Plain(launcher) => unsafe {
                launch::<D, _>(scope.queue(), self.info.name, launcher, call)
            },
            // SAFETY: as above.
            Launcher::Sage { attention, values } => unsafe {
                sage::launch_both(scope, self.info.name, attention, values, call)
            },
        }
    }

    /// A call that goes on from no state, its mask a band.
    fn whole<D: Launches, T: Element>(
        self,
        queue: &D::Queue,
        call: &mut AttentionCall<'_, T, D>,
    ) -> Result<abi::Attention> {
        let AttentionCall { query, kv, ref mask, scale, ref mut out, ref mut lse } = *call;
        let mut attention = self.inputs(queue, query, kv, mask, scale)?;
        (attention.out, attention.lse) =
            state::outputs(self.info, query.shape(), out.reborrow(), lse.as_mut().map(ViewMut::reborrow))?;
        here::<D>(queue, self.info.name, &[("out", attention.out.base)])?;
        Ok(attention)
    }

    /// A call without outputs, its mask a band.
    pub(super) fn inputs<D: Launches, T: Element>(
        self,
        queue: &D::Queue,
        query: View<'_, T, D>,
        kv: KeyValue<'_, T, D>,
        mask: &BlockMask<'_, D>,
        scale: f32,
    ) -> Result<abi::Attention> {
        layout::not_empty("query", query.shape())?;
        let [batch, _, _, head_dim] = query.shape();
        let [_, seq_k, kv_heads, _] = kv.key.shape();
        layout::shape(
            "key",
            kv.key.shape(),
            [batch, seq_k, kv_heads, head_dim],
            "the query's batch and head_dim",
        )?;
        self.share(queue, query, kv, mask, scale)
    }

    /// The same of a rank's share, which may be empty.
    pub(super) fn share<D: Launches, T: Element>(
        self,
        queue: &D::Queue,
        query: View<'_, T, D>,
        KeyValue { key, value }: KeyValue<'_, T, D>,
        mask: &BlockMask<'_, D>,
        scale: f32,
    ) -> Result<abi::Attention> {
        let (info, name) = (self.info, self.info.name);
        layout::agrees("value", value.shape(), key.shape(), "the key's shape")?;
        let numbers = self.numbers::<D, T>(queue, query.shape(), key.shape(), mask, scale)?;
        let tensor = |label, view: View<'_, T, D>| {
            layout::tensor(name, label, info.rules(), view.base(), view.shape(), view.strides())
        };
        let (query, key, value) = (tensor("query", query)?, tensor("key", key)?, tensor("value", value)?);
        here::<D>(queue, name, &[("query", query.base), ("key", key.base), ("value", value.base)])?;
        Ok(abi::Attention { query, key, value, ..numbers })
    }

    /// A call without tensors, its mask a band.
    pub(super) fn numbers<D: Launches, T: Element>(
        self,
        queue: &D::Queue,
        query: [usize; 4],
        key: [usize; 4],
        mask: &BlockMask<'_, D>,
        scale: f32,
    ) -> Result<abi::Attention> {
        let (info, name) = (self.info, self.info.name);
        supports::<D>(queue, name, info.needs)?;
        let element = info.element::<T>()?;
        let ([batch, seq_q, heads, head_dim], [_, seq_k, kv_heads, _]) = (query, key);
        layout::agrees("key", key, [batch, seq_k, kv_heads, head_dim], "the query's batch and head_dim")?;
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("heads that divide the query's {heads}");
            return Err(Error::Shape { tensor: "key", found: key, expected });
        }
        if !info.takes_head_dim(head_dim) {
            let supported = format!("it takes {}; `sdpa` takes any", info.head_dims_text());
            return Err(layout::unsupported(name, format!("head_dim = {head_dim}"), supported));
        }
        layout::count_rows(name, query)?;
        let [seq_q, seq_k] = [layout::length(name, "seq_q", seq_q)?, layout::length(name, "seq_k", seq_k)?];
        let (band_lo, band_hi) = layout::band(mask.band, seq_q, seq_k);
        Ok(abi::Attention {
            query: abi::Tensor::NONE,
            key: abi::Tensor::NONE,
            value: abi::Tensor::NONE,
            out: abi::Tensor::NONE,
            state_output: abi::Tensor::NONE,
            lse: abi::Rows::NONE,
            state_max: abi::Rows::NONE,
            state_sum: abi::Rows::NONE,
            mask: abi::Mask { band_lo, band_hi, ..abi::Mask::NONE },
            batch: layout::length(name, "batch", batch)?,
            seq_q,
            seq_k,
            heads: layout::length(name, "heads", heads)?,
            kv_heads: layout::length(name, "kv_heads", kv_heads)?,
            head_dim: layout::length(name, "head_dim", head_dim)?,
            element,
            form: self.form,
            scale: info.scale(scale)?,
            reserved: 0,
        })
    }

    /// Divides, casts and writes what a state holds.
    pub(crate) fn finish<D: Launches, T: Element>(
        self,
        scope: Scope<'_, D>,
        state: CarriedState<'_, D>,
        out: ViewMut<'_, T, D>,
        lse: Option<ViewMut<'_, f32, D>>,
    ) -> Result<()> {
        state::finish(self.info, scope, state, out, lse)
    }

    /// A state that has attended nothing.
    pub(crate) fn begin<'a, D: Launches, T: Element>(
        self,
        scope: Scope<'a, D>,
        query: [usize; 4],
    ) -> Result<CarriedState<'a, D>> {
        state::begin::<D, T>(self.info, scope, query)
    }
}

/// What masks are to fit: batch, heads, seq_q, seq_k.
pub(super) const fn shapes(call: &abi::Attention) -> [usize; 4] {
    [call.batch as usize, call.heads as usize, call.seq_q as usize, call.seq_k as usize]
}
