//! The fp32 state of a row between blocks of keys.

use crate::tensor::ViewMut;

/// What a kernel carries from one block of keys to the next. The caller owns it; rows are `[batch, seq_q, heads]`.
pub struct CarriedState<'a, D> {
    /// The output so far, not yet divided: `[batch, seq_q, heads, head_dim]`. It counts for nothing where `max` is -inf.
    pub output: ViewMut<'a, f32, D>,
    /// The largest scaled product so far, in units that suit the kernel (natural, or powers of two):
    /// `[batch, seq_q, heads, 1]`, -inf at first.
    pub max: ViewMut<'a, f32, D>,
    /// The sum of exponentials relative to `max`: `[batch, seq_q, heads, 1]`, zero at first.
    pub sum: ViewMut<'a, f32, D>,
}

impl<D> core::fmt::Debug for CarriedState<'_, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("CarriedState").field("output", &self.output).finish_non_exhaustive()
    }
}
