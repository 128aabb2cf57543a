//! Plain attention: for each query all its products, then all its exponentials, then its output.

use attn_plan::MaskKinds;

use crate::device::{Cpu, Scope};
use crate::error::Result;
use crate::kernel::cpu::rows::{Row, cut, load};
use crate::kernel::cpu::state::{Finish, Running, SharedState, begin, finish};
use crate::kernel::{AttentionCall, AttentionKernel, BlockMask, CarriedState, CarriesState, Sdpa};
use crate::tensor::{Element, KeyValue, View, ViewMut};

/// How many partial sums a dot product keeps.
const LANES: usize = 8;

impl<T: Element> AttentionKernel<Cpu, T> for Sdpa {
    const MASKS: MaskKinds = MaskKinds::ALL;

    fn forward(&self, scope: Scope<'_, Cpu>, call: &mut AttentionCall<'_, T, Cpu>) -> Result<()> {
        let rows = Finish::new(call.out.reborrow(), call.lse.as_mut().map(ViewMut::reborrow));
        each_row(scope, call.query, call.kv, &call.mask, call.scale, |row, attended, output| {
            output.fill(0.0);
            let running = attended.attend(Running::EMPTY, output);
            // SAFETY: `each_row` gives each row to one worker.
            unsafe { rows.row(row, running, output) };
        })
    }
}

impl<T: Element> CarriesState<Cpu, T> for Sdpa {
    fn begin<'a>(&self, scope: Scope<'a, Cpu>, query: [usize; 4]) -> Result<CarriedState<'a, Cpu>> {
        begin(scope, query)
    }

    fn step(
        &self,
        scope: Scope<'_, Cpu>,
        query: View<'_, T, Cpu>,
        kv: KeyValue<'_, T, Cpu>,
        mask: &BlockMask<'_, Cpu>,
        scale: f32,
        state: &mut CarriedState<'_, Cpu>,
    ) -> Result<()> {
        let state = SharedState::new(state);
        each_row(scope, query, kv, mask, scale, |row, attended, output| {
            // SAFETY: `each_row` gives each row to one worker.
            let before = unsafe { state.load(row, output) };
            let running = attended.attend(before, output);
            // SAFETY: as above.
            unsafe { state.store(row, running, output) };
        })
    }

    fn finish(
        &self,
        scope: Scope<'_, Cpu>,
        state: CarriedState<'_, Cpu>,
        out: ViewMut<'_, T, Cpu>,
        lse: Option<ViewMut<'_, f32, Cpu>>,
    ) -> Result<()> {
        finish(scope, state, out, lse)
    }
}

/// A query and the keys that the band and the key lengths let it attend, widened.
struct Attended<'m> {
    query: &'m [f32],
    /// `[keys, head_dim]`.
    keys: &'m [f32],
    /// `[keys, head_dim]`.
    values: &'m [f32],
    scale: f32,
    /// `[keys]`: products, then their exponentials.
    weights: &'m mut [f32],
    row: Row,
    /// The position of the first key.
    first: usize,
    /// Whether there is anything but a band and key lengths to ask about a key.
    others: Option<&'m BlockMask<'m, Cpu>>,
}

/// Calls `body(row, attended, output)` for each query, with memory for its output. One task is one query head, whose
/// keys and values are widened once.
fn each_row<T: Element>(
    scope: Scope<'_, Cpu>,
    query: View<'_, T, Cpu>,
    kv: KeyValue<'_, T, Cpu>,
    mask: &BlockMask<'_, Cpu>,
    scale: f32,
    body: impl Fn(Row, Attended<'_>, &mut [f32]) + Sync,
) -> Result<()> {
    let [batch, seq_q, heads, head_dim] = query.shape();
    let [_, seq_k, kv_heads, _] = kv.key.shape();
    if query.shape().contains(&0) {
        return Ok(());
    }
    let group = heads / kv_heads.max(1);
    let others = (mask.segments.is_some() || mask.dense.is_some()).then_some(mask);
    let floats = 2 * seq_k * head_dim + seq_k + 2 * head_dim;
    scope.queue().for_each_with(batch * heads, floats, |mut memory, task| {
        let (b, h) = (task / heads, task % heads);
        let key = cut(&mut memory, seq_k * head_dim);
        let value = cut(&mut memory, seq_k * head_dim);
        let weights = cut(&mut memory, seq_k);
        let row_query = cut(&mut memory, head_dim);
        let output = cut(&mut memory, head_dim);
        // What lies behind is padding, and not to be read.
        let keys = mask.keys(b, seq_k);
        for position in 0..keys {
            let here = position * head_dim..(position + 1) * head_dim;
            load(&kv.key, [b, position, h / group], &mut key[here.clone()]);
            load(&kv.value, [b, position, h / group], &mut value[here]);
        }
        for position in 0..seq_q {
            let row = [b, position, h];
            load(&query, row, row_query);
            let attended = mask.band.keys_of(position, &(0..keys));
            let span = attended.start * head_dim..attended.end * head_dim;
            let attended = Attended {
                query: row_query,
                keys: &key[span.clone()],
                values: &value[span],
                scale,
                weights: &mut weights[..attended.len()],
                row,
                first: attended.start,
                others,
            };
            body(row, attended, output);
        }
    })
}

impl Attended<'_> {
    /// Takes the keys and values into the query's state.
    fn attend(self, before: Running, output: &mut [f32]) -> Running {
        let Self { query, keys, values, scale, weights, row: [batch, position, head], first, others } = self;
        if weights.is_empty() {
            return before;
        }
        // What a row does not attend is passed over in both sums: a weight of 0 would not keep a NaN out.
        let attends = |key: usize| others.is_none_or(|mask| mask.attends(batch, head, position, first + key));
        let mut max = before.max;
        for (index, (weight, key)) in weights.iter_mut().zip(keys.chunks_exact(query.len())).enumerate() {
            if attends(index) {
                *weight = dot(query, key) * scale;
                max = if *weight > max { *weight } else { max };
            }
        }
        let base = Running::base(max);
        // A row that had attended nothing keeps nothing, whatever the maximum has become.
        let keep = if before.sum == 0.0 { 0.0 } else { (before.max - base).exp() };
        for value in &mut *output {
            *value *= keep;
        }
        let mut sum = before.sum * keep;
        for (index, (weight, value)) in weights.iter_mut().zip(values.chunks_exact(query.len())).enumerate() {
            if attends(index) {
                let exp = (*weight - base).exp();
                sum += exp;
                for (output, value) in output.iter_mut().zip(value) {
                    *output += exp * value;
                }
            }
        }
        Running { max, sum }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let (a_lanes, b_lanes) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f32 = a_lanes.remainder().iter().zip(b_lanes.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a_lanes.zip(b_lanes) {
        for lane in 0..LANES {
            sums[lane] += x[lane] * y[lane];
        }
    }
    sums.iter().sum::<f32>() + tail
}
