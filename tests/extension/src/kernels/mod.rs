//! Kernels: sums in float64, element by element, in safe code.

mod online;
mod row;
mod two_pass;

pub use online::{Online, SpanOnly};
pub use two_pass::TwoPass;
