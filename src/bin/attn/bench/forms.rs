//! The GPU's kernel in a form of the caller's choice, as a kernel of one's own.

use std::marker::PhantomData;

use attn::cuda::{FlashForm, FlashSm80, FlashSm90, Half, Launches, SageSm80};
use attn::prelude::*;
use attn::{AttentionCall, AttentionKernel, BlockMask, CarriedState, CarriesState, KeyValue, Result, Scope};

/// Attention with the kernel in its simple form.
#[parallel_attention(strategy = ["none", "ulysses", "ring", "hybrid", "allgather_kv", "ulysses_allgather"], backend = SimpleFlash)]
pub(super) struct SimpleAttention;

/// Attention with the kernel in its overlapped form.
#[parallel_attention(strategy = ["none", "ulysses", "ring", "hybrid", "allgather_kv", "ulysses_allgather"], backend = OverlappedFlash)]
pub(super) struct OverlappedAttention;

/// Attention with the kernel for every card since Ampere.
#[parallel_attention(strategy = ["none", "ulysses", "ring", "hybrid", "allgather_kv", "ulysses_allgather"], backend = FlashSm80)]
pub(super) struct Sm80Attention;

/// Attention in 8 bits with the kernel for every card since Ampere.
#[parallel_attention(strategy = ["none", "ulysses", "ring", "hybrid", "allgather_kv", "ulysses_allgather"], backend = SageSm80)]
pub(super) struct SageSm80Attention;

pub(super) type SimpleFlash = InForm<Simple>;
pub(super) type OverlappedFlash = InForm<Overlapped>;

/// The kernel in one form.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct InForm<F>(PhantomData<F>);

/// A form as a type.
pub(super) trait Form {
    const FLASH: FlashSm90;
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Simple;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Overlapped;

impl Form for Simple {
    const FLASH: FlashSm90 = FlashSm90::new(FlashForm::Simple);
}

impl Form for Overlapped {
    const FLASH: FlashSm90 = FlashSm90::new(FlashForm::Overlapped);
}

impl<F: Form, D: Launches, T: Half> AttentionKernel<D, T> for InForm<F> {
    fn forward(&self, scope: Scope<'_, D>, call: &mut AttentionCall<'_, T, D>) -> Result<()> {
        F::FLASH.forward(scope, call)
    }
}

impl<F: Form, D: Launches, T: Half> CarriesState<D, T> for InForm<F> {
    fn step(
        &self,
        scope: Scope<'_, D>,
        query: View<'_, T, D>,
        kv: KeyValue<'_, T, D>,
        mask: &BlockMask<'_, D>,
        scale: f32,
        state: &mut CarriedState<'_, D>,
    ) -> Result<()> {
        F::FLASH.step(scope, query, kv, mask, scale, state)
    }

    fn finish(
        &self,
        scope: Scope<'_, D>,
        state: CarriedState<'_, D>,
        out: ViewMut<'_, T, D>,
        lse: Option<ViewMut<'_, f32, D>>,
    ) -> Result<()> {
        CarriesState::<D, T>::finish(&F::FLASH, scope, state, out, lse)
    }

    fn begin<'a>(&self, scope: Scope<'a, D>, query: [usize; 4]) -> Result<CarriedState<'a, D>> {
        CarriesState::<D, T>::begin(&F::FLASH, scope, query)
    }
}
