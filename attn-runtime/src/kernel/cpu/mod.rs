//! Kernels for the host processor: portable, in fp32 whatever the element type.

#[cfg(feature = "flash")]
mod attended;
#[cfg(feature = "flash")]
mod exp;
#[cfg(feature = "flash")]
mod flash;
#[cfg(any(feature = "flash", feature = "sdpa"))]
mod rows;
#[cfg(feature = "sdpa")]
mod sdpa;
#[cfg(any(feature = "flash", feature = "sdpa"))]
mod state;

#[cfg(all(test, feature = "flash", feature = "sdpa"))]
mod tests;
