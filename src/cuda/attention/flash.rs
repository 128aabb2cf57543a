//! `flash` on a GPU: which kernel a card gets.

use attn_runtime::{AttentionCall, Flash, Result, Scope};

use super::kernel::{FLASH_SM80, FLASH_SM90, FLASH_SM90_SIMPLE, Kernel};
use super::{DeviceMasks, gpu_kernel};
use crate::cuda::architecture::Architecture;
use crate::cuda::element::Half;
use crate::cuda::launches::Launches;

/// How the Hopper kernel's warpgroups share the work. The results of both forms are within rounding of each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FlashForm {
    /// Whatever is known to suit the shape.
    #[default]
    Auto,
    /// One product after the other.
    Simple,
    /// The softmax of one block of keys while the tensor cores work on another.
    Overlapped,
}

/// FlashAttention for compute capability 9.0 (H100, H200), on `Cuda` and
/// `Simulated`.
///
/// This is what [`Flash`] is on such cards. It has a name of its own for those who want to choose the
/// [form](FlashForm), or whose masks are in memory of the device.
///
/// `head_dim` 64, 128 or 256; bf16 or f16; a softmax scale above 0; any lengths and masks; rows of `head_dim` elements
/// dense, bases and strides multiples of 16 bytes. What does not fit is refused with an error before anything is queued.
///
/// A mask's key lengths and segments lie on the host: a call copies them to the device, and waits for that. So it cannot be
/// captured in a graph; [`forward_with`](Self::forward_with) can.
///
/// Weights are rounded to the element type before they are multiplied with values. A value of NaN or infinity may
/// reach a query that attends no more than its neighbours: the tensor cores multiply it with a weight of 0.
///
/// J. Shah et al., "FlashAttention-3: Fast and Accurate Attention with Asynchrony and Low-precision", 2024,
/// arXiv:2407.08608.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlashSm90 {
    form: FlashForm,
}

impl FlashSm90 {
    /// The kernel in the form that suits the shape.
    pub const AUTO: Self = Self::new(FlashForm::Auto);

    /// The kernel in a form of the caller's choice.
    pub const fn new(form: FlashForm) -> Self {
        Self { form }
    }

    pub(crate) fn kernel<D: Launches>(self, _: &D::Queue) -> Kernel {
        let info = if self.form == FlashForm::Simple { &FLASH_SM90_SIMPLE } else { &FLASH_SM90 };
        Kernel { info, launcher: |launchers| launchers.flash_sm90, form: self.form as i32 }
    }
}

/// FlashAttention for every card of compute capability 8.0 and later, on `Cuda` and `Simulated`.
///
/// This is what [`Flash`] is on all cards but Hopper's, which have a kernel of their own, [`FlashSm90`]; what is said there
/// holds here too.
///
/// T. Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", 2023, arXiv:2307.08691.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlashSm80;

impl FlashSm80 {
    pub(crate) fn kernel<D: Launches>(self, _: &D::Queue) -> Kernel {
        Kernel { info: &FLASH_SM80, launcher: |launchers| launchers.flash_sm80, form: 0 }
    }
}

/// `forward_with` of a kernel.
macro_rules! forward_with {
    ($kernel:ty, $element:ident) => {
        impl $kernel {
            /// [`forward`](attn_runtime::AttentionKernel::forward), with masks that are in memory of the device: what they
            /// say, the call's own mask must leave unsaid.
            ///
            /// All tensors must lie in memory of the queue's own GPU, even where it could read another's. In a process
            /// with several GPUs the driver is asked about all but `lse` and the masks.
            ///
            /// # Errors
            /// As `forward`; if a mask has another shape, or the call's mask speaks of the same.
            pub fn forward_with<D: Launches, T: $element>(
                &self,
                scope: Scope<'_, D>,
                call: &mut AttentionCall<'_, T, D>,
                masks: &DeviceMasks<'_, D>,
            ) -> Result<()> {
                self.kernel::<D>(scope.queue()).forward(scope, call, masks)
            }
        }
    };
}
pub(super) use forward_with;

forward_with!(FlashSm90, Half);
forward_with!(FlashSm80, Half);
gpu_kernel!(impl[D: Launches,] FlashSm90, D, Half);
gpu_kernel!(impl[D: Launches,] FlashSm80, D, Half);

/// The kernel for a queue's card, in a form if it has forms.
pub(crate) fn flash_for<D: Launches>(queue: &D::Queue, form: FlashForm) -> Kernel {
    match Architecture::Hopper.is_of(D::capability(queue)) {
        true => FlashSm90::new(form).kernel::<D>(queue),
        false => FlashSm80.kernel::<D>(queue),
    }
}

/// What [`Flash`] is on a queue's card.
trait OnCard {
    fn kernel<D: Launches>(&self, queue: &D::Queue) -> Kernel;
}

impl OnCard for Flash {
    fn kernel<D: Launches>(&self, queue: &D::Queue) -> Kernel {
        flash_for::<D>(queue, FlashForm::Auto)
    }
}

// One implementation for all devices would be one for a foreign type and any device, which Rust leaves to the crate of
// either.
#[cfg(feature = "cuda")]
gpu_kernel!(impl[] Flash, crate::cuda::Cuda, Half);
#[cfg(feature = "sim")]
gpu_kernel!(impl[] Flash, crate::cuda::Simulated, Half);
