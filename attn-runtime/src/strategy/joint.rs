//! Joining replicated tokens and local ones into one sequence.

use crate::device::{Device, Scope, copy_tensor};
use crate::error::Result;
use crate::metadata::JointStrategy;
use crate::tensor::{Element, View, ViewMut};

/// Copies `part` to the positions from `start` on.
pub(super) fn place<T: Element, D: Device>(
    scope: Scope<'_, D>,
    destination: &mut ViewMut<'_, T, D>,
    start: usize,
    part: View<'_, T, D>,
) -> Result<()> {
    let length = part.shape()[1];
    copy_tensor(scope, part, destination.reborrow().narrow(1, start, length)?)
}

/// The two in their joint order, concatenated in scratch memory.
pub(super) fn concatenate<'a, T: Element, D: Device>(
    scope: Scope<'a, D>,
    order: JointStrategy,
    joint: View<'_, T, D>,
    local: View<'_, T, D>,
) -> Result<View<'a, T, D>> {
    let [batch, tokens, heads, head_dim] = local.shape();
    let rows = joint.shape()[1];
    let (joint_start, local_start) = order.starts(rows, tokens);
    let mut whole = scope.take([batch, rows + tokens, heads, head_dim])?;
    place(scope, &mut whole, joint_start, joint)?;
    place(scope, &mut whole, local_start, local)?;
    Ok(whole.into_view())
}
