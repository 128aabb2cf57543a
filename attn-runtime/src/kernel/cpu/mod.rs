//! Kernels for the host processor: portable, in fp32 whatever the element type.

#[cfg(feature = "flash")]
mod exp;
#[cfg(feature = "flash")]
mod flash;
mod rows;
#[cfg(feature = "sdpa")]
mod sdpa;
mod state;
