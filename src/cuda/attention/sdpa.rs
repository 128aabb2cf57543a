//! `sdpa` on a GPU.

#[cfg(feature = "sdpa")]
use attn_runtime::Sdpa;
use attn_runtime::{AttentionCall, Element, Result, Scope};

use super::flash::forward_with;
use super::kernel::{Kernel, Launcher, SDPA};
use super::tuning::Asked;
use super::{DeviceMasks, asked, gpu_kernel};
use crate::cuda::launches::Launches;

/// Plain attention on a GPU, on `Cuda` and `Simulated`: what `Sdpa` is there, and the kernel that the others are compared
/// with on the device.
///
/// Any `head_dim`, any mask, any finite softmax scale; f32, bf16 and f16, all sums and products in fp32, weights not rounded;
/// rows dense, otherwise any strides. It does without tensor cores, and is slow. A value reaches who attends it, and
/// nobody else, whatever it is. [`Flash`](crate::Flash) is the kernel to serve with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SdpaGpu;

impl SdpaGpu {
    fn kernel(self, _: &Asked) -> Result<Kernel> {
        Ok(Kernel { info: &SDPA, launcher: Launcher::Plain(|launchers| launchers.sdpa), form: 0 })
    }
}

forward_with!(SdpaGpu, Element);
gpu_kernel!(impl[D: Launches,] SdpaGpu, D, Element);

#[cfg(feature = "sdpa")]
mod marker {
    use super::*;

    /// What [`Sdpa`] is on every card.
    trait OnCard {
        fn kernel(&self, asked: &Asked) -> Result<Kernel>;
    }

    impl OnCard for Sdpa {
        fn kernel(&self, asked: &Asked) -> Result<Kernel> {
            SdpaGpu.kernel(asked)
        }
    }

    #[cfg(feature = "cuda")]
    gpu_kernel!(impl[] Sdpa, crate::cuda::Cuda, Element);
    #[cfg(feature = "sim")]
    gpu_kernel!(impl[] Sdpa, crate::cuda::Simulated, Element);
}
