//! `sage` on a sequence that ranks share: each rounds what it has, and attends on what it gets.

use attn_runtime::{
    AttentionCall, BlockMask, QuantisedAttention, QuantisedShard, QuantisedTensors, Result, Scope, View,
    ViewMut,
};

use super::call::shapes;
use super::kernel::Kernel;
use super::sage::{BLOCK_KEYS, KEY_GROUPS, PIECE_KEYS, SageSm90};
use super::{DeviceMasks, masks, state};
use crate::cuda::abi::{self, ShardStep};
use crate::cuda::element::Half;
use crate::cuda::launches::{Launches, here, launch};
use crate::cuda::layout;

/// The launch that rounds a rank's share, in messages.
const SHARD: &str = "sage_shard";

/// No tensors.
const NONE: abi::SageTensors = abi::SageTensors {
    query: core::ptr::null_mut(),
    key: core::ptr::null_mut(),
    value: core::ptr::null_mut(),
    query_scale: core::ptr::null_mut(),
    query_mean: core::ptr::null_mut(),
    key_scale: core::ptr::null_mut(),
    value_scale: core::ptr::null_mut(),
    key_mean: core::ptr::null_mut(),
    partial: core::ptr::null_mut(),
};

/// The steps of [`QuantisedAttention`].
impl Kernel {
    fn survey<'a, D: Launches, T: Half>(
        self,
        scope: Scope<'a, D>,
        shard: &mut QuantisedShard<'a, T, D>,
        sums: ViewMut<'_, f32, D>,
    ) -> Result<()> {
        let [batch, keys, kv_heads, head_dim] = shard.kv.key.shape();
        layout::agrees("sums", sums.shape(), [batch, kv_heads, 1, 2 * head_dim], "two for each channel")?;
        shard.resident_lengths = masks::upload_lengths(scope, shard.key_lengths, [batch, shard.keys.all()])?;
        let partial = scope.take::<f32>([batch, kv_heads, keys.div_ceil(PIECE_KEYS), 2 * head_dim])?;
        let mut call = share(self, scope, shard)?;
        call.sage.tensors.partial = partial.base().as_ptr();
        call.sums = sums.base().as_ptr();
        // SAFETY: the views lend device memory of the shapes that were checked, what is written exclusively.
        unsafe { step(scope, &abi::SageShard { step: ShardStep::Survey, ..call }) }
    }

    fn settle<D: Launches, T: Half>(
        self,
        scope: Scope<'_, D>,
        shard: &mut QuantisedShard<'_, T, D>,
        sums: View<'_, f32, D>,
    ) -> Result<()> {
        let [batch, _, kv_heads, head_dim] = shard.kv.key.shape();
        let expected = [batch, kv_heads, shard.keys.shards, 2 * head_dim];
        layout::agrees("sums", sums.shape(), expected, "two for each channel of each rank")?;
        let call = abi::SageShard { sums: sums.base().as_ptr(), ..share(self, scope, shard)? };
        // SAFETY: as above.
        unsafe { step(scope, &abi::SageShard { step: ShardStep::Settle, ..call }) }
    }

    fn edge_maxima<D: Launches, T: Half>(
        self,
        scope: Scope<'_, D>,
        shard: &QuantisedShard<'_, T, D>,
        maxima: ViewMut<'_, f32, D>,
    ) -> Result<()> {
        let [batch, _, kv_heads, _] = shard.kv.key.shape();
        let expected = [batch, kv_heads, 1, 2 * KEY_GROUPS];
        layout::agrees("maxima", maxima.shape(), expected, "those of two blocks")?;
        let call = abi::SageShard { maxima: maxima.base().as_ptr(), ..share(self, scope, shard)? };
        // SAFETY: as above.
        unsafe { step(scope, &abi::SageShard { step: ShardStep::EdgeMaxima, ..call }) }
    }

    fn quantise<D: Launches, T: Half>(
        self,
        scope: Scope<'_, D>,
        shard: &QuantisedShard<'_, T, D>,
        maxima: Option<View<'_, f32, D>>,
        into: &mut QuantisedTensors<'_, D>,
    ) -> Result<()> {
        let ([batch, queries, heads, head_dim], [_, keys, kv_heads, _]) =
            (shard.query.shape(), shard.kv.key.shape());
        let blocks = shard.keys.blocks(shard.keys.shard, BLOCK_KEYS).len();
        check([batch, heads, kv_heads, head_dim], [queries, keys, blocks], into)?;
        let mut call = share(self, scope, shard)?;
        if let Some(maxima) = maxima {
            let expected = [batch, kv_heads, shard.keys.shards, 2 * KEY_GROUPS];
            layout::agrees("maxima", maxima.shape(), expected, "those of two blocks of each rank")?;
            call.maxima = maxima.base().as_ptr();
        }
        let abi::SageTensors { value_scale, key_mean, .. } = call.sage.tensors;
        call.sage.tensors = abi::SageTensors { value_scale, key_mean, ..describe(into) };
        call.value_rows = into.value.base().as_ptr();
        // SAFETY: as above.
        unsafe { step(scope, &abi::SageShard { step: ShardStep::Round, ..call }) }
    }

    fn attend<D: Launches, T: Half>(
        self,
        scope: Scope<'_, D>,
        tensors: &QuantisedTensors<'_, D>,
        value_scale: View<'_, f32, D>,
        key_lengths: Option<View<'_, i32, D>>,
        call: &mut AttentionCall<'_, T, D>,
    ) -> Result<()> {
        let name = self.info.name;
        let AttentionCall { ref mask, scale, ref mut out, ref mut lse, .. } = *call;
        let query @ [batch, queries, heads, head_dim] = out.shape();
        let [_, kv_heads, keys, _] = tensors.key.shape();
        let blocks = keys.div_ceil(BLOCK_KEYS);
        layout::not_empty("key", tensors.key.shape())?;
        check([batch, heads, kv_heads, head_dim], [queries, keys, blocks], tensors)?;
        layout::shape(
            "value_scale",
            value_scale.shape(),
            [batch, kv_heads, 1, head_dim],
            "one for each channel",
        )?;
        if lse.is_some() && tensors.query_mean.is_none() {
            let cure = "round the queries with their products with the mean key";
            return Err(layout::unsupported(
                name,
                "a log-sum-exp of tensors that were rounded without one",
                cure,
            ));
        }
        let mask = BlockMask { key_lengths: None, ..*mask };
        let mut attention =
            self.numbers::<D, T>(scope.queue(), query, [batch, keys, kv_heads, head_dim], &mask, scale)?;
        (attention.out, attention.lse) =
            state::outputs(self.info, query, out.reborrow(), lse.as_mut().map(ViewMut::reborrow))?;
        here::<D>(scope.queue(), name, &[("out", attention.out.base)])?;
        let there = DeviceMasks { key_lengths, segments: None };
        attention.mask = masks::cross(scope, name, &mask, &there, shapes(&attention), attention.mask)?;
        let value = scope.take::<u8>([batch, kv_heads, head_dim, blocks * BLOCK_KEYS])?;
        let tensors_there = abi::SageTensors {
            value: value.base().as_ptr(),
            value_scale: value_scale.base().as_ptr(),
            ..describe(tensors)
        };
        let sage = abi::Sage { attention, tensors: tensors_there };
        let arrange = abi::SageShard {
            sage,
            value_rows: tensors.value.base().as_ptr(),
            sums: core::ptr::null_mut(),
            maxima: core::ptr::null_mut(),
            shards: 1,
            shard: 0,
            joint: 0,
            tokens: attention.seq_k,
            step: ShardStep::Arrange,
            reserved: 0,
        };
        // SAFETY: the views lend device memory of the shapes that were checked, the outputs exclusively.
        unsafe { step(scope, &arrange) }?;
        // SAFETY: as above.
        unsafe { launch::<D, _>(scope.queue(), name, |launchers| launchers.sage_sm90, &sage) }
    }
}

/// Has a type that chooses a kernel for a queue's card take tensors that were rounded before: it has a method
/// `rounds(&self, &Queue) -> Result<Kernel>`.
macro_rules! rounds_first {
    (impl[$($generic:tt)*] $kernel:ty, $device:ty) => {
        impl<$($generic)* T: Half> QuantisedAttention<$device, T> for $kernel {
            const BLOCK_KEYS: usize = BLOCK_KEYS;
            const KEY_SCALES: usize = KEY_GROUPS;

            fn survey<'a>(
                &self,
                scope: Scope<'a, $device>,
                shard: &mut QuantisedShard<'a, T, $device>,
                sums: ViewMut<'_, f32, $device>,
            ) -> Result<()> {
                self.rounds::<$device>(scope.queue())?.survey(scope, shard, sums)
            }

            fn settle(
                &self,
                scope: Scope<'_, $device>,
                shard: &mut QuantisedShard<'_, T, $device>,
                sums: View<'_, f32, $device>,
            ) -> Result<()> {
                self.rounds::<$device>(scope.queue())?.settle(scope, shard, sums)
            }

            fn edge_maxima(
                &self,
                scope: Scope<'_, $device>,
                shard: &QuantisedShard<'_, T, $device>,
                maxima: ViewMut<'_, f32, $device>,
            ) -> Result<()> {
                self.rounds::<$device>(scope.queue())?.edge_maxima(scope, shard, maxima)
            }

            fn quantise(
                &self,
                scope: Scope<'_, $device>,
                shard: &QuantisedShard<'_, T, $device>,
                maxima: Option<View<'_, f32, $device>>,
                into: &mut QuantisedTensors<'_, $device>,
            ) -> Result<()> {
                self.rounds::<$device>(scope.queue())?.quantise(scope, shard, maxima, into)
            }

            fn attend(
                &self,
                scope: Scope<'_, $device>,
                tensors: &QuantisedTensors<'_, $device>,
                value_scale: View<'_, f32, $device>,
                key_lengths: Option<View<'_, i32, $device>>,
                call: &mut AttentionCall<'_, T, $device>,
            ) -> Result<()> {
                self.rounds::<$device>(scope.queue())?.attend(scope, tensors, value_scale, key_lengths, call)
            }
        }
    };
}

impl SageSm90 {
    #[allow(clippy::unused_self, reason = "as the marker's")]
    fn rounds<D: Launches>(&self, _: &D::Queue) -> Result<Kernel> {
        Ok(self.chosen())
    }
}

rounds_first!(impl[D: Launches,] SageSm90, D);

#[cfg(feature = "sage")]
mod marker {
    use attn_runtime::Sage;

    use super::*;
    use crate::cuda::architecture::Architecture;

    /// What [`Sage`] is on a queue's card.
    trait OnCard {
        fn rounds<D: Launches>(&self, queue: &D::Queue) -> Result<Kernel>;
    }

    impl OnCard for Sage {
        fn rounds<D: Launches>(&self, queue: &D::Queue) -> Result<Kernel> {
            let (major, minor) = D::capability(queue);
            if Architecture::Hopper.is_of((major, minor)) {
                return Ok(SageSm90.chosen());
            }
            let what =
                format!("values in 8 bits on compute capability {major}.{minor} ({})", D::label(queue));
            let cure = "strategy `ulysses_quantised` is for 9.0 (H100, H200): use `ulysses`";
            Err(layout::unsupported("sage", what, cure))
        }
    }

    #[cfg(feature = "cuda")]
    rounds_first!(impl[] Sage, crate::cuda::Cuda);
    #[cfg(feature = "sim")]
    rounds_first!(impl[] Sage, crate::cuda::Simulated);
}

/// A rank's share, as the kernels are told of it.
fn share<D: Launches, T: Half>(
    kernel: Kernel,
    scope: Scope<'_, D>,
    shard: &QuantisedShard<'_, T, D>,
) -> Result<abi::SageShard> {
    let QuantisedShard { query, kv, keys, scale, ref key_mean, ref value_scale, .. } = *shard;
    let name = kernel.info.name;
    let mut attention = kernel.share(scope.queue(), query, kv, &BlockMask::FULL, scale)?;
    attention.mask.key_lengths =
        masks::resident("key_lengths", shard.resident_lengths, [attention.batch, 1])?;
    let [batch, _, kv_heads, head_dim] = kv.key.shape();
    for (name, tensor) in [("key_mean", key_mean), ("value_scale", value_scale)] {
        layout::shape(name, tensor.shape(), [batch, kv_heads, 1, head_dim], "one for each channel")?;
    }
    let tensors = abi::SageTensors {
        key_mean: key_mean.base().as_ptr(),
        value_scale: value_scale.base().as_ptr(),
        ..NONE
    };
    // All keys are counted as these are.
    layout::length(name, "seq_k", keys.all())?;
    Ok(abi::SageShard {
        sage: abi::Sage { attention, tensors },
        shards: layout::length(name, "ranks", keys.shards)?,
        shard: layout::length(name, "rank", keys.shard)?,
        joint: layout::length(name, "joint tokens", keys.joint)?,
        tokens: layout::length(name, "seq_k", keys.tokens)?,
        value_rows: core::ptr::null_mut(),
        sums: core::ptr::null_mut(),
        maxima: core::ptr::null_mut(),
        step: ShardStep::Survey,
        reserved: 0,
    })
}

/// That tensors in 8 bits have the shapes of a call: `[batch, heads, kv_heads, head_dim]`, and
/// `[queries, keys, blocks of keys]`.
fn check<D>(
    [batch, heads, kv_heads, head_dim]: [usize; 4],
    [queries, keys, blocks]: [usize; 3],
    tensors: &QuantisedTensors<'_, D>,
) -> Result<()> {
    let (of_query, of_key) = ([batch, heads, queries, head_dim], [batch, kv_heads, keys, head_dim]);
    for (name, tensor, expected) in [
        ("query", &tensors.query, of_query),
        ("key", &tensors.key, of_key),
        ("value", &tensors.value, of_key),
    ] {
        layout::agrees(name, tensor.shape(), expected, "tensors in 8 bits")?;
    }
    for tensor in core::iter::once(&tensors.query_scale).chain(&tensors.query_mean) {
        layout::agrees("query_scale", tensor.shape(), [batch, heads, queries, 1], "one for each query")?;
    }
    let expected = [batch, kv_heads, blocks, KEY_GROUPS];
    layout::agrees("key_scale", tensors.key_scale.shape(), expected, "those of each block of keys")
}

/// The memory that tensors in 8 bits are in. Values are in rows: they are not among it.
fn describe<D>(tensors: &QuantisedTensors<'_, D>) -> abi::SageTensors {
    let mean = tensors.query_mean.as_ref().map_or(core::ptr::null_mut(), |mean| mean.base().as_ptr());
    abi::SageTensors {
        query: tensors.query.base().as_ptr().cast(),
        key: tensors.key.base().as_ptr().cast(),
        query_scale: tensors.query_scale.base().as_ptr(),
        query_mean: mean,
        key_scale: tensors.key_scale.base().as_ptr(),
        ..NONE
    }
}

/// # Safety
/// What the call describes must be memory of the device, as `abi.h` says.
unsafe fn step<D: Launches>(scope: Scope<'_, D>, call: &abi::SageShard) -> Result<()> {
    // SAFETY: the caller's contract.
    unsafe { launch::<D, _>(scope.queue(), SHARD, |launchers| launchers.sage_shard, call) }
}
