//! `sage` on a GPU: tensors to 8 bits, and attention on them.

#[cfg(feature = "sage")]
use attn_runtime::Sage;
use attn_runtime::{AttentionCall, BlockMask, KeyValue, Result, Scope, View, ViewMut};

use super::flash::forward_with;
use super::kernel::{Kernel, Launcher, SAGE_SM80, SAGE_SM90};
use super::tuning::Asked;
use super::{DeviceMasks, asked, gpu_kernel, masks};
use crate::cuda::abi::{self, Launch, Launchers};
use crate::cuda::element::Half;
use crate::cuda::launches::{Launches, launch};

/// Keys that have their scales together, and keys of which sums are taken, as kernels/sage/shapes.h has them.
pub(super) const BLOCK_KEYS: usize = 128;
pub(super) const PIECE_KEYS: usize = 256;
/// Scales of a block of keys.
pub(super) const KEY_GROUPS: usize = 4;

/// The launch that rounds, in messages.
const QUANTISE: &str = "sage_quantise";

/// Attention in 8 bits for compute capability 9.0 (H100, H200), on `Cuda` and `Simulated`.
///
/// Queries, and keys less their mean, are multiplied as integers; weights and values as floats of 8 bits (e4m3), whose sums
/// are added up in fp32 block by block. The result is off by some 4 % of its size in the mean, where `flash` is off by
/// some 0.2 %: that is much for a single number and little for what models make of many. Channels of the keys that are much
/// larger than the others, or have an offset, are what such attention commonly suffers from: the offset is taken out here
/// before rounding, exactly.
///
/// Where `flash` goes further: a weight of 2^-18 of its row's largest, or less, becomes 0, though the log-sum-exp counts it,
/// so where one key's product stands 12.5 above all others', what those would add together is lost. Products, times the
/// softmax scale, are to stay below 2^20: the largest weight leaves the range of e4m3 some way beyond. Elements below 2^-50
/// count as 0; and a query whose largest element times the softmax scale is below 2^-56 is taken as one of that size,
/// which tells where keys are larger than some 2^40.
///
/// `head_dim` 64 or 128; bf16 or f16; a softmax scale above 0; any lengths and masks; rows of `head_dim` elements dense,
/// bases and strides multiples of 16 bytes. What does not fit is refused with an error before anything is queued. The
/// log-sum-exp and a carried state are those of the products themselves: a state may go from hop to hop, and from this
/// kernel to `flash`.
///
/// A call takes scratch memory for the tensors in 8 bits: about half of what query, key and value have in 16.
///
/// A NaN or an infinity among the queries makes that query's result NaN; one among the keys or values that count makes
/// NaN of all that its head, or its channel, gives.
///
/// J. Zhang et al., "SageAttention: Accurate 8-Bit Attention for Plug-and-play Inference Acceleration", 2024,
/// arXiv:2410.02367; "SageAttention2", 2024, arXiv:2411.10958.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SageSm90;

impl SageSm90 {
    pub(super) const fn chosen(self) -> Kernel {
        let launcher = Launcher::Sage { attention: |launchers| launchers.sage_sm90, values: true };
        Kernel { info: &SAGE_SM90, launcher, form: 0 }
    }

    fn kernel(self, _: &Asked) -> Result<Kernel> {
        Ok(self.chosen())
    }
}

/// Attention with queries and keys in 8 bits for every card of compute capability 8.0 and later, on `Cuda` and
/// `Simulated`.
///
/// This is what `Sage` is on all cards but Hopper's, which have a kernel of their own, [`SageSm90`]; what is said there
/// holds here too, but for this: weights and values are multiplied in the 16 bits that they have, so the result is off by
/// some 1 % of its size, far smaller weights count, and large products do no harm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SageSm80;

impl SageSm80 {
    const fn chosen(self) -> Kernel {
        let launcher = Launcher::Sage { attention: |launchers| launchers.sage_sm80, values: false };
        Kernel { info: &SAGE_SM80, launcher, form: 0 }
    }

    fn kernel(self, _: &Asked) -> Result<Kernel> {
        Ok(self.chosen())
    }
}

forward_with!(SageSm80, Half);
gpu_kernel!(impl[D: Launches,] SageSm80, D, Half);
forward_with!(SageSm90, Half);
gpu_kernel!(impl[D: Launches,] SageSm90, D, Half);

/// Rounds to 8 bits, and attends.
///
/// # Safety
/// What the call describes must be memory of the device, as `abi.h` says.
pub(super) unsafe fn launch_both<D: Launches>(
    scope: Scope<'_, D>,
    name: &'static str,
    attention: fn(&Launchers) -> Launch<abi::Sage>,
    values: bool,
    call: &abi::Attention,
) -> Result<()> {
    let quantised = Quantised::take(scope, call, values)?;
    let call = abi::Sage { attention: *call, tensors: quantised.describe() };
    // SAFETY: the caller's contract, and scratch memory of the sizes that `abi.h` asks for.
    unsafe { launch::<D, _>(scope.queue(), QUANTISE, |launchers| launchers.sage_quantise, &call) }?;
    // SAFETY: as above.
    unsafe { launch::<D, _>(scope.queue(), name, attention, &call) }
}

/// Rounds to 8 bits and does no more: for tests of just that.
///
/// # Errors
/// As a call of [`SageSm90`].
#[doc(hidden)]
pub fn quantise<'a, D: Launches, T: Half>(
    scope: Scope<'a, D>,
    query: View<'_, T, D>,
    kv: KeyValue<'_, T, D>,
    key_lengths: Option<View<'_, i32, D>>,
    scale: f32,
) -> Result<Quantised<'a, D>> {
    let mut attention = SageSm90.chosen().inputs(scope.queue(), query, kv, &BlockMask::FULL, scale)?;
    attention.mask.key_lengths = masks::resident("key_lengths", key_lengths, [attention.batch, 1])?;
    let quantised = Quantised::take(scope, &attention, true)?;
    let call = abi::Sage { attention, tensors: quantised.describe() };
    // SAFETY: the views lend device memory of the shapes that were checked, and scratch memory is lent exclusively.
    unsafe { launch::<D, _>(scope.queue(), QUANTISE, |launchers| launchers.sage_quantise, &call) }?;
    Ok(quantised)
}

/// A call's tensors in 8 bits, in scratch memory. `abi.h` says what they hold.
#[doc(hidden)]
#[allow(missing_debug_implementations, reason = "memory of the device has nothing to show")]
pub struct Quantised<'a, D> {
    pub query: ViewMut<'a, u8, D>,
    pub key: ViewMut<'a, u8, D>,
    /// Not if values stay as they are.
    pub value: Option<ViewMut<'a, u8, D>>,
    pub query_scale: ViewMut<'a, f32, D>,
    pub query_mean: ViewMut<'a, f32, D>,
    pub key_scale: ViewMut<'a, f32, D>,
    pub value_scale: ViewMut<'a, f32, D>,
    pub key_mean: ViewMut<'a, f32, D>,
    partial: ViewMut<'a, f32, D>,
}

impl<'a, D: Launches> Quantised<'a, D> {
    /// For a call whose numbers were checked. `values`: these too.
    fn take(scope: Scope<'a, D>, call: &abi::Attention, values: bool) -> Result<Self> {
        let [batch, heads, kv_heads, seq_q, seq_k, head_dim] =
            [call.batch, call.heads, call.kv_heads, call.seq_q, call.seq_k, call.head_dim]
                .map(|n| n as usize);
        let (blocks, pieces) = (seq_k.div_ceil(BLOCK_KEYS), seq_k.div_ceil(PIECE_KEYS));
        let value = || scope.take([batch, kv_heads, head_dim, blocks * BLOCK_KEYS]);
        Ok(Self {
            query: scope.take([batch, heads, seq_q, head_dim])?,
            key: scope.take([batch, kv_heads, seq_k, head_dim])?,
            value: values.then(value).transpose()?,
            query_scale: scope.take([batch, heads, seq_q, 1])?,
            query_mean: scope.take([batch, heads, seq_q, 1])?,
            key_scale: scope.take([batch, kv_heads, blocks, KEY_GROUPS])?,
            value_scale: scope.take([batch, kv_heads, 1, head_dim])?,
            key_mean: scope.take([batch, kv_heads, 1, head_dim])?,
            partial: scope.take([batch, kv_heads, pieces, 2 * head_dim])?,
        })
    }

    fn describe(&self) -> abi::SageTensors {
        abi::SageTensors {
            query: self.query.base().as_ptr().cast(),
            key: self.key.base().as_ptr().cast(),
            value: self.value.as_ref().map_or(core::ptr::null_mut(), |value| value.base().as_ptr()),
            query_scale: self.query_scale.base().as_ptr(),
            query_mean: self.query_mean.base().as_ptr(),
            key_scale: self.key_scale.base().as_ptr(),
            value_scale: self.value_scale.base().as_ptr(),
            key_mean: self.key_mean.base().as_ptr(),
            partial: self.partial.base().as_ptr(),
        }
    }
}

#[cfg(feature = "sage")]
mod marker {
    use super::*;
    use crate::cuda::architecture::Architecture;

    /// What [`Sage`] is on a queue's card.
    trait OnCard {
        fn kernel(&self, asked: &Asked) -> Result<Kernel>;
    }

    impl OnCard for Sage {
        fn kernel(&self, asked: &Asked) -> Result<Kernel> {
            match Architecture::Hopper.is_of(asked.capability) {
                true => SageSm90.kernel(asked),
                false => SageSm80.kernel(asked),
            }
        }
    }

    #[cfg(feature = "cuda")]
    gpu_kernel!(impl[] Sage, crate::cuda::Cuda, Half);
    #[cfg(feature = "sim")]
    gpu_kernel!(impl[] Sage, crate::cuda::Simulated, Half);

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn hopper_has_a_kernel_of_its_own_and_all_others_since_ampere_share_one() {
            let asked = |capability| Asked { capability, head_dim: 128, banded: false, keys: 1024 };
            for (capability, info) in [
                ((8, 0), &SAGE_SM80),
                ((8, 9), &SAGE_SM80),
                ((9, 0), &SAGE_SM90),
                ((10, 0), &SAGE_SM80),
                ((12, 0), &SAGE_SM80),
            ] {
                let kernel = OnCard::kernel(&Sage, &asked(capability)).unwrap();
                assert_eq!(kernel.info, info, "{capability:?}");
                assert!(kernel.info.needs.is_of(capability), "{capability:?}");
            }
        }
    }
}
