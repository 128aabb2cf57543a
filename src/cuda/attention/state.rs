//! The carried state: its description for kernels, its beginning and its end.

use attn_runtime::{CarriedState, Element, Result, Scope, TensorLayout, ViewMut};

use super::kernel::KernelInfo;
use crate::cuda::abi;
use crate::cuda::architecture::supports;
use crate::cuda::launches::{Launches, here, launch};
use crate::cuda::layout;

/// Describes where rows end: the output and, if asked for, the log-sum-exp.
pub(super) fn outputs<D, T: Element>(
    info: &KernelInfo,
    query: [usize; 4],
    out: ViewMut<'_, T, D>,
    lse: Option<ViewMut<'_, f32, D>>,
) -> Result<(abi::Tensor, abi::Rows)> {
    layout::shape("out", out.shape(), query, "the query's shape")?;
    let described = layout::tensor(info.name, "out", info.rules(), out.base(), out.shape(), out.strides())?;
    let lse = match lse {
        None => abi::Rows::NONE,
        Some(lse) => describe_rows("lse", query, &lse)?,
    };
    Ok((described, lse))
}

/// Describes one float for each row of the query.
fn describe_rows<D>(name: &'static str, query: [usize; 4], rows: &ViewMut<'_, f32, D>) -> Result<abi::Rows> {
    let [batch, seq, heads, _] = query;
    layout::shape(name, rows.shape(), [batch, seq, heads, 1], "one for each row of the query")?;
    Ok(layout::rows(rows.base(), rows.strides()))
}

/// Describes a carried state: output, maximum, sum.
pub(super) fn describe_state<D>(
    info: &KernelInfo,
    query: [usize; 4],
    state: &CarriedState<'_, D>,
) -> Result<(abi::Tensor, abi::Rows, abi::Rows)> {
    let CarriedState { output, max, sum } = state;
    layout::shape("state.output", output.shape(), query, "the query's shape")?;
    let (base, shape, strides) = (output.base(), output.shape(), output.strides());
    let described = layout::tensor(info.name, "state.output", info.rules(), base, shape, strides)?;
    Ok((described, describe_rows("state.max", query, max)?, describe_rows("state.sum", query, sum)?))
}

/// A call on a carried state, without its outputs.
fn state_call<D: Launches, T: Element>(
    info: &KernelInfo,
    queue: &D::Queue,
    shape: [usize; 4],
    state: &CarriedState<'_, D>,
) -> Result<abi::StateCall> {
    let name = info.name;
    supports::<D>(queue, name, info.needs)?;
    let [batch, seq, heads, head_dim] = shape;
    let (state_output, state_max, state_sum) = describe_state(info, shape, state)?;
    layout::count_rows(name, shape)?;
    Ok(abi::StateCall {
        state_output,
        out: abi::Tensor::NONE,
        state_max,
        state_sum,
        lse: abi::Rows::NONE,
        batch: layout::length(name, "batch", batch)?,
        seq: layout::length(name, "seq", seq)?,
        heads: layout::length(name, "heads", heads)?,
        head_dim: layout::length(name, "head_dim", head_dim)?,
        element: info.element::<T>()?,
        reserved: 0,
    })
}

pub(super) fn finish<D: Launches, T: Element>(
    info: &KernelInfo,
    scope: Scope<'_, D>,
    state: CarriedState<'_, D>,
    out: ViewMut<'_, T, D>,
    lse: Option<ViewMut<'_, f32, D>>,
) -> Result<()> {
    let (queue, shape) = (scope.queue(), state.output.shape());
    let mut call = state_call::<D, T>(info, queue, shape, &state)?;
    (call.out, call.lse) = outputs(info, shape, out, lse)?;
    here::<D>(queue, info.name, &[("state.output", call.state_output.base), ("out", call.out.base)])?;
    // SAFETY: the views lend device memory of the shapes checked above, the outputs exclusively.
    unsafe { launch::<D, _>(queue, "state_finish", |launchers| launchers.state_finish, &call) }
}

pub(super) fn begin<'a, D: Launches, T: Element>(
    info: &KernelInfo,
    scope: Scope<'a, D>,
    [batch, seq, heads, head_dim]: [usize; 4],
) -> Result<CarriedState<'a, D>> {
    // Rows of one head stand together, as the kernels visit them. Where a row is no multiple of 16 bytes it takes as many
    // as the next one, for kernels that want such strides.
    let rows = |width: usize, room: usize| -> Result<ViewMut<'a, f32, D>> {
        let taken = scope.take::<f32>([batch, heads, seq, room])?;
        taken.narrow(3, 0, width).map(|rows| rows.permuted(TensorLayout::Bhsd))
    };
    let state = CarriedState {
        output: rows(head_dim, head_dim.next_multiple_of(4))?,
        max: rows(1, 1)?,
        sum: rows(1, 1)?,
    };
    let call = state_call::<D, T>(info, scope.queue(), [batch, seq, heads, head_dim], &state)?;
    // SAFETY: the state is scratch memory of these shapes, lent exclusively.
    unsafe { launch::<D, _>(scope.queue(), "state_begin", |launchers| launchers.state_begin, &call) }?;
    Ok(state)
}
