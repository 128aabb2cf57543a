//! What tensors hold: elements that kernels compute on, and what masks are made of.

use core::fmt;

use bytemuck::Pod;
use half::{bf16, f16};

/// The name of an element type, for messages and for foreign code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: binary32 with the lower half of its bits cut off.
    BF16,
    /// An integer of 32 bits.
    I32,
    /// A byte.
    U8,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::U8 => 1,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::I32 => "i32",
            Self::U8 => "u8",
        })
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
    impl Sealed for i32 {}
    impl Sealed for u8 {}
}

/// What a tensor can hold: an [`Element`], or `i32` or `u8`, of which masks are made.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be stored in a tensor",
    note = "expected `f32`, `half::f16`, `half::bf16`, or for masks `i32` or `u8`"
)]
pub trait Scalar: sealed::Sealed + Pod + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// The type's name.
    const DTYPE: DType;
}

macro_rules! scalars {
    ($($scalar:ty: $name:ident),* $(,)?) => {$(
        impl Scalar for $scalar {
            const DTYPE: DType = DType::$name;
        }
    )*};
}

scalars!(f32: F32, f16: F16, bf16: BF16, i32: I32, u8: U8);

/// An element of a tensor: `f32`, [`half::f16`] or [`half::bf16`]. Kernels accumulate in `f32` for all three.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no element type of an attention tensor",
    note = "expected `f32`, `half::f16` or `half::bf16`"
)]
pub trait Element: Scalar {
    /// Widens, exactly.
    fn to_f32(self) -> f32;

    /// Narrows, to the nearest, ties to even.
    fn from_f32(value: f32) -> Self;
}

impl Element for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }
}

impl Element for f16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
}
