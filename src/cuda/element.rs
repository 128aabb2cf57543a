//! The element types that the tensor cores compute on.

use attn_runtime::Element;
use half::{bf16, f16};

mod sealed {
    pub trait Sealed {
        /// The type's number in the kernels' interface.
        const NUMBER: i32;
    }
    impl Sealed for half::bf16 {
        const NUMBER: i32 = crate::cuda::abi::BF16;
    }
    impl Sealed for half::f16 {
        const NUMBER: i32 = crate::cuda::abi::F16;
    }
}

/// An element of 16 bits: [`half::bf16`] or [`half::f16`]. The GPU kernels multiply these, and accumulate in fp32.
#[diagnostic::on_unimplemented(
    message = "the GPU kernels do not compute on `{Self}`",
    label = "no 16-bit element",
    note = "`flash` on `Cuda` computes on `half::bf16` and `half::f16`; cast the tensors, or use a kernel on `Cpu`"
)]
pub trait Half: Element + sealed::Sealed {}

impl Half for bf16 {}
impl Half for f16 {}

/// The number of an element type in the kernels' interface.
pub(crate) const fn number<T: Half>() -> i32 {
    T::NUMBER
}
