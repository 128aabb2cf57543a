//! The attention kernels of this crate: what each takes, and on which cards it runs.

use core::ffi::c_int;

use attn_runtime::{DType, Element, Error, Result};

use crate::cuda::abi::{self, Attention, Launch, Launchers, Sage};
use crate::cuda::architecture::Architecture;
use crate::cuda::layout::{self, Rules};

/// One of the attention kernels, as `attn doctor` and docs/gpu.md list them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KernelInfo {
    /// Its name.
    pub name: &'static str,
    /// What it needs of a card.
    pub needs: Architecture,
    /// Element types.
    pub elements: &'static [DType],
    /// The head_dims that it takes. None: all.
    pub head_dims: Option<&'static [usize]>,
    /// What bases and strides of tensors must be multiples of, in bytes; 1: nothing beyond whole elements.
    pub alignment: usize,
    /// Whether the softmax scale must be above 0.
    pub positive_scale: bool,
}

/// A kernel that was chosen for a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel {
    /// What it takes.
    pub(crate) info: &'static KernelInfo,
    /// What is called.
    pub(crate) launcher: Launcher,
    /// `AttnForm`.
    pub(crate) form: i32,
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Launcher {
    /// On the tensors as they are.
    Plain(fn(&Launchers) -> Launch<Attention>),
    /// On tensors in 8 bits, which are made before.
    Sage {
        /// The attention.
        attention: fn(&Launchers) -> Launch<Sage>,
        /// Whether it takes values in 8 bits too.
        values: bool,
    },
}

const HALVES: &[DType] = &[DType::BF16, DType::F16];
const SIXTEEN: usize = 16;

pub(super) static FLASH_SM90: KernelInfo = KernelInfo {
    name: "flash",
    needs: Architecture::Hopper,
    elements: HALVES,
    head_dims: Some(&[32, 64, 96, 128, 192, 256]),
    alignment: SIXTEEN,
    positive_scale: true,
};

/// In the simple form.
pub(super) static FLASH_SM90_SIMPLE: KernelInfo =
    KernelInfo { head_dims: Some(&[64, 128, 256]), ..FLASH_SM90 };

pub(super) static FLASH_SM80: KernelInfo = KernelInfo { needs: Architecture::Ampere, ..FLASH_SM90 };

pub(super) static SAGE_SM90: KernelInfo =
    KernelInfo { name: "sage", head_dims: Some(&[64, 128]), ..FLASH_SM90 };

pub(super) static SAGE_SM80: KernelInfo = KernelInfo { needs: Architecture::Ampere, ..SAGE_SM90 };

pub(super) static SDPA: KernelInfo = KernelInfo {
    name: "sdpa",
    needs: Architecture::Ampere,
    elements: &[DType::BF16, DType::F16, DType::F32],
    head_dims: None,
    alignment: 1,
    positive_scale: false,
};

/// All of them: for each name the one that suits a card best comes first.
pub fn kernels() -> [(&'static str, &'static KernelInfo); 5] {
    [
        ("flash/sm90", &FLASH_SM90),
        ("flash/sm80", &FLASH_SM80),
        ("sage/sm90", &SAGE_SM90),
        ("sage/sm80", &SAGE_SM80),
        ("sdpa", &SDPA),
    ]
}

impl KernelInfo {
    /// Whether it takes rows of so many elements.
    pub fn takes_head_dim(&self, head_dim: usize) -> bool {
        self.head_dims.is_none_or(|taken| taken.contains(&head_dim))
    }

    /// The head_dims that it takes, as a sentence has them.
    pub fn head_dims_text(&self) -> String {
        match self.head_dims {
            None => String::from("any"),
            Some([]) => String::from("none"),
            Some([only]) => only.to_string(),
            Some([most @ .., last]) => {
                let most: Vec<_> = most.iter().map(usize::to_string).collect();
                format!("{} and {last}", most.join(", "))
            }
        }
    }

    /// How its tensors must lie.
    pub(super) const fn rules(&self) -> Rules {
        if self.alignment > 1 { Rules::COPY_ENGINE } else { Rules::PLAIN }
    }

    /// The number of an element type in the kernels' interface.
    pub(super) fn element<T: Element>(&self) -> Result<c_int> {
        let number = match T::DTYPE {
            DType::BF16 => Some(abi::BF16),
            DType::F16 => Some(abi::F16),
            DType::F32 => Some(abi::F32),
            _ => None,
        };
        match number {
            Some(number) if self.elements.contains(&T::DTYPE) => Ok(number),
            _ => Err(layout::unsupported(
                self.name,
                format!("elements of type {}", T::DTYPE),
                format!(
                    "it takes {}",
                    self.elements.iter().map(DType::to_string).collect::<Vec<_>>().join(", ")
                ),
            )),
        }
    }

    /// A softmax scale that it takes.
    pub(super) fn scale(&self, scale: f32) -> Result<f32> {
        if self.positive_scale {
            layout::scale(self.name, scale)
        } else if scale.is_finite() && (scale * core::f32::consts::LOG2_E).is_finite() {
            Ok(scale)
        } else {
            Err(Error::Scale(scale))
        }
    }
}
