//! The carried state on the host, the same for both kernels.

use crate::device::{Cpu, Scope};
use crate::error::Result;
use crate::kernel::CarriedState;
use crate::kernel::cpu::rows::{Row, Shared, load};
use crate::tensor::{Element, TensorLayout, ViewMut};

/// A row's running maximum and sum.
#[derive(Clone, Copy, Debug)]
pub(super) struct Running {
    pub(super) max: f32,
    pub(super) sum: f32,
}

impl Running {
    /// A row that has attended nothing.
    pub(super) const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0 };

    /// What exponentials are relative to, given the maximum. Products of -inf weigh nothing, also while a row has met no
    /// other (when -inf - -inf would be NaN).
    #[inline(always)]
    pub(super) fn base(max: f32) -> f32 {
        if max == f32::NEG_INFINITY { 0.0 } else { max }
    }

    /// What the row's output is multiplied with at the end: zero for a row that has attended nothing.
    pub(super) fn normalizer(self) -> f32 {
        if self.sum == 0.0 { 0.0 } else { 1.0 / self.sum }
    }

    /// Log-sum-exp, natural: -inf for a row that has attended nothing.
    pub(super) fn lse(self) -> f32 {
        if self.sum == 0.0 { f32::NEG_INFINITY } else { self.max + self.sum.ln() }
    }
}

/// Takes and clears the memory of a state.
pub(super) fn begin<'a>(
    scope: Scope<'a, Cpu>,
    [batch, seq, heads, head_dim]: [usize; 4],
) -> Result<CarriedState<'a, Cpu>> {
    // Rows of one head stand together, as the kernels visit them.
    let filled = |width: usize, value: f32| -> Result<ViewMut<'a, f32, Cpu>> {
        let tensor = scope.take::<f32>([batch, heads, seq, width])?;
        let elements = batch * heads * seq * width;
        // SAFETY: the tensor was just taken, dense, with this many elements, and is lent exclusively.
        unsafe { core::slice::from_raw_parts_mut(tensor.base().as_ptr(), elements) }.fill(value);
        Ok(tensor.permuted(TensorLayout::Bhsd))
    };
    Ok(CarriedState {
        output: filled(head_dim, 0.0)?,
        max: filled(1, Running::EMPTY.max)?,
        sum: filled(1, Running::EMPTY.sum)?,
    })
}

/// A state that the workers of a team read and write, each its own rows.
pub(super) struct SharedState<'a> {
    output: Shared<'a, f32>,
    max: Shared<'a, f32>,
    sum: Shared<'a, f32>,
}

impl<'a> SharedState<'a> {
    pub(super) fn new(state: &'a mut CarriedState<'_, Cpu>) -> Self {
        Self {
            output: Shared::new(state.output.reborrow()),
            max: Shared::new(state.max.reborrow()),
            sum: Shared::new(state.sum.reborrow()),
        }
    }

    /// Reads a row's state.
    ///
    /// # Safety
    /// No other thread writes the row meanwhile.
    pub(super) unsafe fn load(&self, row: Row, output: &mut [f32]) -> Running {
        let (mut max, mut sum) = ([0.0], [0.0]);
        // SAFETY: the caller's contract.
        unsafe {
            self.output.load(row, output);
            self.max.load(row, &mut max);
            self.sum.load(row, &mut sum);
        }
        Running { max: max[0], sum: sum[0] }
    }

    /// Writes a row's state.
    ///
    /// # Safety
    /// No other thread reads or writes the row meanwhile.
    pub(super) unsafe fn store(&self, row: Row, running: Running, output: &[f32]) {
        // SAFETY: the caller's contract.
        unsafe {
            self.output.store(row, output);
            self.max.store(row, &[running.max]);
            self.sum.store(row, &[running.sum]);
        }
    }
}

/// Where rows end: the output and, if asked for, the log-sum-exp.
pub(super) struct Finish<'a, T> {
    out: Shared<'a, T>,
    lse: Option<Shared<'a, f32>>,
}

impl<'a, T: Element> Finish<'a, T> {
    pub(super) fn new(out: ViewMut<'a, T, Cpu>, lse: Option<ViewMut<'a, f32, Cpu>>) -> Self {
        Self { out: Shared::new(out), lse: lse.map(Shared::new) }
    }

    /// Divides a row, casts it and writes it. `output` is left divided.
    ///
    /// # Safety
    /// No other thread reads or writes the row meanwhile.
    pub(super) unsafe fn row(&self, row: Row, running: Running, output: &mut [f32]) {
        let normalizer = running.normalizer();
        for value in &mut *output {
            *value *= normalizer;
        }
        // SAFETY: the caller's contract.
        unsafe { self.out.store(row, output) };
        if let Some(lse) = &self.lse {
            // SAFETY: the caller's contract.
            unsafe { lse.store(row, &[running.lse()]) };
        }
    }
}

/// Finishes every row of a state.
pub(super) fn finish<T: Element>(
    scope: Scope<'_, Cpu>,
    state: CarriedState<'_, Cpu>,
    out: ViewMut<'_, T, Cpu>,
    lse: Option<ViewMut<'_, f32, Cpu>>,
) -> Result<()> {
    let [batch, seq, heads, head_dim] = state.output.shape();
    let (output, max, sum) = (state.output.as_view(), state.max.as_view(), state.sum.as_view());
    let finish = Finish::new(out, lse);
    scope.queue().for_each_with(batch * heads, head_dim, |row_output, task| {
        for position in 0..seq {
            let row = [task / heads, position, task % heads];
            let (mut row_max, mut row_sum) = ([0.0], [0.0]);
            load(&output, row, row_output);
            load(&max, row, &mut row_max);
            load(&sum, row, &mut row_sum);
            // SAFETY: the rows of a task's head are this task's alone.
            unsafe { finish.row(row, Running { max: row_max[0], sum: row_sum[0] }, row_output) };
        }
    })
}
