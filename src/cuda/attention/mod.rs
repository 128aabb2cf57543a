//! Attention on a GPU: what each kernel takes, the checks before a launch, and one launch for a call.

mod call;
mod flash;
mod kernel;
mod masks;
mod sage;
mod sage_shard;
mod sdpa;
mod state;
pub mod tuning;

use attn_runtime::{AttentionCall, BlockMask, Element};

use crate::cuda::launches::Launches;
use tuning::Asked;

pub use flash::{FlashForm, FlashSm80, FlashSm90};
pub use kernel::{KernelInfo, kernels};
pub use masks::DeviceMasks;
pub use sage::{Quantised, SageSm80, SageSm90, quantise};
pub use sdpa::SdpaGpu;

pub(crate) use flash::flash_for;

/// What of a call and its card a choice between kernels depends on.
pub(crate) fn asked<D: Launches, T: Element>(queue: &D::Queue, call: &AttentionCall<'_, T, D>) -> Asked {
    asked_by::<D>(queue, call.query.shape(), call.kv.key.shape(), &call.mask)
}

/// The same of its parts.
fn asked_by<D: Launches>(
    queue: &D::Queue,
    query: [usize; 4],
    key: [usize; 4],
    mask: &BlockMask<'_, D>,
) -> Asked {
    let [queries, keys] = [query[1], key[1]].map(|length| i64::try_from(length).unwrap_or(i64::MAX));
    Asked {
        capability: D::capability(queue),
        head_dim: query[3],
        banded: mask.band.lo > 1 - queries || mask.band.hi < keys - 1,
        keys: key[1],
    }
}

/// Makes a type the kernel that it chooses for a call, on any device or on some: it has a method
/// `kernel(&self, &Asked) -> Result<Kernel>`.
macro_rules! gpu_kernel {
    (impl[$($generic:tt)*] $kernel:ty, $device:ty, $element:ident) => {
        impl<$($generic)* T: $element> attn_runtime::AttentionKernel<$device, T> for $kernel {
            const MASKS: attn_runtime::MaskKinds = attn_runtime::MaskKinds::ALL;

            fn forward(
                &self,
                scope: attn_runtime::Scope<'_, $device>,
                call: &mut attn_runtime::AttentionCall<'_, T, $device>,
            ) -> attn_runtime::Result<()> {
                let asked = $crate::cuda::attention::asked::<$device, T>(scope.queue(), call);
                self.kernel(&asked)?.forward(scope, call, &$crate::cuda::DeviceMasks::NONE)
            }
        }

        impl<$($generic)* T: $element> attn_runtime::CarriesState<$device, T> for $kernel {
            fn step(
                &self,
                scope: attn_runtime::Scope<'_, $device>,
                query: attn_runtime::View<'_, T, $device>,
                kv: attn_runtime::KeyValue<'_, T, $device>,
                mask: &attn_runtime::BlockMask<'_, $device>,
                scale: f32,
                state: &mut attn_runtime::CarriedState<'_, $device>,
            ) -> attn_runtime::Result<()> {
                let asked = $crate::cuda::attention::asked_by::<$device>(scope.queue(), query.shape(), kv.key.shape(), mask);
                self.kernel(&asked)?.step(scope, query, kv, mask, scale, state)
            }

            fn finish(
                &self,
                scope: attn_runtime::Scope<'_, $device>,
                state: attn_runtime::CarriedState<'_, $device>,
                out: attn_runtime::ViewMut<'_, T, $device>,
                lse: Option<attn_runtime::ViewMut<'_, f32, $device>>,
            ) -> attn_runtime::Result<()> {
                let shape = state.output.shape();
                let asked = $crate::cuda::attention::asked_by::<$device>(scope.queue(), shape, shape, &attn_runtime::BlockMask::FULL);
                self.kernel(&asked)?.finish(scope, state, out, lse)
            }

            fn begin<'a>(
                &self,
                scope: attn_runtime::Scope<'a, $device>,
                query: [usize; 4],
            ) -> attn_runtime::Result<attn_runtime::CarriedState<'a, $device>> {
                let full = attn_runtime::BlockMask::FULL;
                let asked = $crate::cuda::attention::asked_by::<$device>(scope.queue(), query, query, &full);
                self.kernel(&asked)?.begin::<$device, T>(scope, query)
            }
        }
    };
}
use gpu_kernel;
