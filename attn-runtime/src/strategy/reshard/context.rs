//! What the way back, and what stands in the kernel's place, must know of the way in.

use std::sync::Arc;

use attn_plan::HeadRun;

use super::plans::Plans;
use crate::comm::Signature;
use crate::device::Device;
use crate::strategy::ParallelAttentionContext;
use crate::strategy::frame::Frame;
use crate::strategy::home::Home;
use crate::tensor::KeyValue;

/// One rank's part of a call, inside the exchange: besides the [`AttentionCall`](crate::AttentionCall), what adapters and
/// the way back need.
pub struct ReshardContext<'a, T, D: Device> {
    pub(in crate::strategy) signature: Signature,
    pub(in crate::strategy) plans: Arc<Plans>,
    pub(in crate::strategy) frame: Frame<'a, D>,
    /// Keys and values of joint tokens that are not among the others: this rank's heads.
    pub(in crate::strategy) joint: Option<KeyValue<'a, T, D>>,
    /// Absent if the kernel writes the caller's outputs itself.
    pub(super) back: Option<Back<'a, T, D>>,
}

impl<T, D: Device> ParallelAttentionContext for ReshardContext<'_, T, D> {
    fn name(&self) -> &'static str {
        self.signature.strategy
    }
}

impl<T, D: Device> core::fmt::Debug for ReshardContext<'_, T, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ReshardContext").field("signature", &self.signature).finish_non_exhaustive()
    }
}

/// The way back for what the kernel wrote.
pub(super) struct Back<'a, T, D: Device> {
    pub(super) home: Home<'a, T, D>,
    pub(super) plans: Arc<Plans>,
}

/// The context of a strategy that calls the kernel once, on all keys.
pub struct DirectContext<'a, T, D: Device> {
    pub(super) name: &'static str,
    /// Absent if nothing had to be moved.
    pub(super) back: Option<Back<'a, T, D>>,
}

impl<T, D: Device> DirectContext<'_, T, D> {
    /// This rank's heads, as a kernel takes them; none if one call takes all.
    pub(in crate::strategy) fn head_runs(&self) -> &[HeadRun] {
        self.back.as_ref().map_or(&[], |back| &back.plans.head_runs)
    }
}

impl<T, D: Device> ParallelAttentionContext for DirectContext<'_, T, D> {
    fn name(&self) -> &'static str {
        self.name
    }
}

impl<T, D: Device> core::fmt::Debug for DirectContext<'_, T, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("DirectContext")
            .field("name", &self.name)
            .field("moved", &self.back.is_some())
            .finish_non_exhaustive()
    }
}
