//! The fp32 state of a row between blocks of keys.

use crate::error::{Error, Result};
use crate::tensor::ViewMut;

/// What a kernel carries from one block of keys to the next. The caller owns it; rows are `[batch, seq_q, heads]`.
pub struct CarriedState<'a, D> {
    /// The output so far, not yet divided: `[batch, seq_q, heads, head_dim]`. Where `max` is -inf it means nothing, and
    /// holds what the kernel's own `begin` left there.
    pub output: ViewMut<'a, f32, D>,
    /// The largest scaled product so far, in units that suit the kernel (natural, or powers of two):
    /// `[batch, seq_q, heads, 1]`, -inf at first.
    pub max: ViewMut<'a, f32, D>,
    /// The sum of exponentials relative to `max`: `[batch, seq_q, heads, 1]`, zero at first.
    pub sum: ViewMut<'a, f32, D>,
}

impl<D> CarriedState<'_, D> {
    /// The state of some rows: of part of the positions (axis 1) or of the heads (axis 2).
    ///
    /// # Errors
    /// If the part reaches beyond the axis, or there is no such axis.
    pub fn narrow(&mut self, axis: usize, start: usize, length: usize) -> Result<CarriedState<'_, D>> {
        if axis > 2 {
            return Err(Error::Range { axis, start, length, shape: self.output.shape() });
        }
        Ok(CarriedState {
            output: self.output.reborrow().narrow(axis, start, length)?,
            max: self.max.reborrow().narrow(axis, start, length)?,
            sum: self.sum.reborrow().narrow(axis, start, length)?,
        })
    }
}

impl<D> core::fmt::Debug for CarriedState<'_, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("CarriedState").field("output", &self.output).finish_non_exhaustive()
    }
}
