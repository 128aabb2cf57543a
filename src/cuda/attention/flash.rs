//! `flash` on a GPU: which kernel a card gets.

use attn_runtime::{AttentionCall, Flash, Result, Scope};

use super::kernel::{FLASH_SM80, FLASH_SM90, FLASH_SM90_SIMPLE, Kernel, Launcher};
use super::tuning::{Asked, FlashVariant, Tuning};
use super::{DeviceMasks, asked, gpu_kernel};
use crate::cuda::architecture::Architecture;
use crate::cuda::element::Half;
use crate::cuda::launches::Launches;

/// The compute capability that Hopper's kernel is for.
const HOPPER: (u32, u32) = (9, 0);

/// How the Hopper kernel's warpgroups share the work. The results of both forms are within rounding of each other.
///
/// A form is for long sequences whose mask is a band and key lengths. Calls with segments or a dense mask have one kernel,
/// and so have those with so few queries that all query heads of a key head stand in one tile: it is theirs in any form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FlashForm {
    /// Whatever is known to suit the shape.
    #[default]
    Auto,
    /// One product after the other. For `head_dim` 64, 128 and 256.
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
/// `head_dim` 32, 64, 96, 128, 192 or 256; bf16 or f16; a softmax scale above 0; any lengths and masks; rows of `head_dim`
/// elements dense, bases and strides multiples of 16 bytes. What does not fit is refused with an error before anything is
/// queued.
///
/// Segments and dense masks are looked at once for each tile of queries and block of keys. Blocks that they leave nothing of
/// are not loaded, and those of which they leave everything cost what they cost without a mask.
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

    pub(super) const fn chosen(self) -> Kernel {
        let info = if matches!(self.form, FlashForm::Simple) { &FLASH_SM90_SIMPLE } else { &FLASH_SM90 };
        Kernel { info, launcher: Launcher::Plain(|launchers| launchers.flash_sm90), form: self.form as i32 }
    }

    /// The kernel in its form, or in the one that the table knows to suit the call.
    fn kernel(self, asked: &Asked) -> Result<Kernel> {
        if self.form != FlashForm::Auto {
            return Ok(self.chosen());
        }
        let asked = Asked { capability: HOPPER, ..*asked };
        let known = Tuning::in_force()?.choose(&asked);
        let own = known.filter(|variant| *variant != FlashVariant::Sm80);
        Ok(own.unwrap_or(FlashVariant::Sm90Overlapped).kernel())
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
    pub(super) const fn chosen(self) -> Kernel {
        Kernel { info: &FLASH_SM80, launcher: Launcher::Plain(|launchers| launchers.flash_sm80), form: 0 }
    }

    fn kernel(self, _: &Asked) -> Result<Kernel> {
        Ok(self.chosen())
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
                self.kernel(&asked::<D, T>(scope.queue(), call))?.forward(scope, call, masks)
            }
        }
    };
}
pub(super) use forward_with;

forward_with!(FlashSm90, Half);
forward_with!(FlashSm80, Half);
gpu_kernel!(impl[D: Launches,] FlashSm90, D, Half);
gpu_kernel!(impl[D: Launches,] FlashSm80, D, Half);

/// The kernel for a call on its card, in a form if one is asked for and there are forms.
pub(crate) fn flash_for(asked: &Asked, form: FlashForm) -> Result<Kernel> {
    if form != FlashForm::Auto && Architecture::Hopper.is_of(asked.capability) {
        return FlashSm90::new(form).kernel(asked);
    }
    let known = Tuning::in_force()?.choose(asked);
    // What no kernel takes is refused by the one that takes most, in its words.
    Ok(known.unwrap_or(FlashVariant::Sm80).kernel())
}

/// What [`Flash`] is on a queue's card.
trait OnCard {
    fn kernel(&self, asked: &Asked) -> Result<Kernel>;
}

impl OnCard for Flash {
    fn kernel(&self, asked: &Asked) -> Result<Kernel> {
        flash_for(asked, FlashForm::Auto)
    }
}

// One implementation for all devices would be one for a foreign type and any device, which Rust leaves to the crate of
// either.
#[cfg(feature = "cuda")]
gpu_kernel!(impl[] Flash, crate::cuda::Cuda, Half);
#[cfg(feature = "sim")]
gpu_kernel!(impl[] Flash, crate::cuda::Simulated, Half);
