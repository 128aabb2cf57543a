//! Attention on a GPU: what each kernel takes, the checks before a launch, and one launch for a call.

mod call;
mod flash;
mod kernel;
mod masks;
mod sdpa;
mod state;

pub use flash::{FlashForm, FlashSm80, FlashSm90};
pub use kernel::{KernelInfo, kernels};
pub use masks::DeviceMasks;
pub use sdpa::SdpaGpu;

pub(crate) use flash::flash_for;

/// Makes a type the kernel that it chooses for a queue, on any device or on some: it has a method
/// `kernel<D: Launches>(&self, &D::Queue) -> Kernel`.
macro_rules! gpu_kernel {
    (impl[$($generic:tt)*] $kernel:ty, $device:ty, $element:ident) => {
        impl<$($generic)* T: $element> attn_runtime::AttentionKernel<$device, T> for $kernel {
            const MASKS: attn_runtime::MaskKinds = attn_runtime::MaskKinds::ALL;

            fn forward(
                &self,
                scope: attn_runtime::Scope<'_, $device>,
                call: &mut attn_runtime::AttentionCall<'_, T, $device>,
            ) -> attn_runtime::Result<()> {
                self.kernel::<$device>(scope.queue()).forward(scope, call, &$crate::cuda::DeviceMasks::NONE)
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
                self.kernel::<$device>(scope.queue()).step(scope, query, kv, mask, scale, state)
            }

            fn finish(
                &self,
                scope: attn_runtime::Scope<'_, $device>,
                state: attn_runtime::CarriedState<'_, $device>,
                out: attn_runtime::ViewMut<'_, T, $device>,
                lse: Option<attn_runtime::ViewMut<'_, f32, $device>>,
            ) -> attn_runtime::Result<()> {
                self.kernel::<$device>(scope.queue()).finish(scope, state, out, lse)
            }

            fn begin<'a>(
                &self,
                scope: attn_runtime::Scope<'a, $device>,
                query: [usize; 4],
            ) -> attn_runtime::Result<attn_runtime::CarriedState<'a, $device>> {
                self.kernel::<$device>(scope.queue()).begin::<$device, T>(scope, query)
            }
        }
    };
}
use gpu_kernel;
