//! `flash` on a GPU: checks, and one launch for a call.

use attn_runtime::{
    AttentionCall, AttentionKernel, BlockMask, CarriedState, CarriesState, Error, Flash, KeyValue, Mask,
    MaskKinds, Result, Scope, Span, TensorLayout, View, ViewMut,
};

use super::abi;
use super::element::{Half, number};
use super::launches::{Launches, here, launch};
use super::layout;
use super::lengths::upload_lengths;

/// The kernel's name, in messages.
const NAME: &str = "flash";

/// The masks that the kernel takes.
const MASKS: MaskKinds = MaskKinds { span: true, key_lengths: true, segments: false, dense: false };

/// How the kernel's warpgroups share the work. The results of both forms are within rounding of each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FlashForm {
    /// Whatever is known to suit the shape.
    #[default]
    Auto,
    /// One product after the other.
    Simple,
    /// The softmax of one block of keys while the tensor cores work on another.
    Overlapped,
}

/// FlashAttention for compute capability 9.0 (H100, H200), on `Cuda` and
/// `Simulated`.
///
/// This is what [`Flash`] is on these devices. It has a name of its own for those who want to choose the
/// [form](FlashForm), or whose key lengths are in memory of the device.
///
/// `head_dim` 64, 128 or 256; bf16 or f16; a softmax scale above 0; any lengths; masks by position and by key lengths;
/// rows of `head_dim` elements dense, bases and strides multiples of 16 bytes. What does not fit is refused with an error
/// before anything is queued.
///
/// A mask's key lengths lie on the host: a call copies them to the device, and waits for that. So it cannot be captured
/// in a graph; [`forward_with`](Self::forward_with) can.
///
/// Weights are rounded to the element type before they are multiplied with values. A value of NaN or infinity may
/// reach a query that attends no more than its neighbours: the tensor cores multiply it with a weight of 0.
///
/// J. Shah et al., "FlashAttention-3: Fast and Accurate Attention with Asynchrony and Low-precision", 2024,
/// arXiv:2407.08608.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlashSm90 {
    form: FlashForm,
}

impl FlashSm90 {
    /// The kernel in the form that suits the shape.
    pub const AUTO: Self = Self::new(FlashForm::Auto);

    /// The kernel in a form of the caller's choice.
    pub const fn new(form: FlashForm) -> Self {
        Self { form }
    }

    /// [`forward`](AttentionKernel::forward), where of batch row `b` the first `key_lengths[b]` keys count and the
    /// others are padding: not attended, whatever stands there. The call's own mask then has no key lengths.
    ///
    /// `key_lengths` is `[batch, 1, 1, 1]`, dense; a length below 0 counts as 0, one above `seq_k` as `seq_k`.
    ///
    /// All tensors must lie in memory of the queue's own GPU, even where it could read another's. In a process with
    /// several GPUs the driver is asked about all but `lse` and `key_lengths`.
    ///
    /// # Errors
    /// As `forward`; if `key_lengths` has another shape, or the call's mask has key lengths too.
    pub fn forward_with<D: Launches, T: Half>(
        &self,
        queue: &D::Queue,
        call: &mut AttentionCall<'_, T, D>,
        key_lengths: Option<View<'_, i32, D>>,
    ) -> Result<()> {
        if call.mask.key_lengths.is_some() {
            let supported = "give all of them in memory of the device, or call `forward`";
            return Err(layout::unsupported(NAME, "a mask's key lengths in `forward_with`", supported));
        }
        let mut flash = self.whole(queue, call)?;
        flash.mask.key_lengths = key_lengths.map_or(Ok(core::ptr::null()), |lengths| {
            let (expected, found) = ([call.query.shape()[0], 1, 1, 1], lengths.shape());
            layout::shape("key_lengths", found, expected, "one for each batch row")?;
            if lengths.strides()[0] != 1 && found[0] > 1 {
                let what = format!("`key_lengths` {} apart", lengths.strides()[0]);
                return Err(layout::unsupported(NAME, what, "they must be dense"));
            }
            Ok(lengths.base().as_ptr().cast_const())
        })?;
        // SAFETY: the views lend device memory of the shapes checked above, the outputs exclusively.
        unsafe { launch::<D, _>(queue, NAME, |launchers| launchers.flash_sm90, &flash) }
    }

    /// A call that goes on from no state, without key lengths.
    fn whole<D: Launches, T: Half>(
        self,
        queue: &D::Queue,
        call: &mut AttentionCall<'_, T, D>,
    ) -> Result<abi::Attention> {
        let AttentionCall { query, kv, ref mask, scale, ref mut out, ref mut lse } = *call;
        let mut flash = self.inputs(queue, query, kv, mask, scale)?;
        (flash.out, flash.lse) = outputs(query.shape(), out.reborrow(), lse.as_mut().map(ViewMut::reborrow))?;
        here::<D>(queue, NAME, &[("out", flash.out.base)])?;
        Ok(flash)
    }

    /// A call without key lengths and outputs.
    fn inputs<D: Launches, T: Half>(
        self,
        queue: &D::Queue,
        query: View<'_, T, D>,
        KeyValue { key, value }: KeyValue<'_, T, D>,
        mask: &BlockMask<'_, D>,
        scale: f32,
    ) -> Result<abi::Attention> {
        D::supports(queue, NAME)?;
        let kinds = Mask { span: Span::Full, ..mask.kinds() };
        if !MASKS.takes(kinds) {
            return Err(layout::unsupported(
                NAME,
                format!("the mask `{kinds}`"),
                format!("it takes {MASKS}"),
            ));
        }
        let [batch, seq_q, heads, head_dim] = query.shape();
        let [_, seq_k, kv_heads, _] = key.shape();
        layout::not_empty("query", query.shape())?;
        let expected = [batch, seq_k, kv_heads, head_dim];
        layout::shape("key", key.shape(), expected, "the query's batch and head_dim")?;
        layout::shape("value", value.shape(), key.shape(), "the key's shape")?;
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("heads that divide the query's {heads}");
            return Err(Error::Shape { tensor: "key", found: key.shape(), expected });
        }
        if ![64, 128, 256].contains(&head_dim) {
            let what = format!("head_dim = {head_dim}");
            return Err(layout::unsupported(NAME, what, "it takes 64, 128 and 256"));
        }
        layout::count_rows(NAME, query.shape())?;
        let [seq_q, seq_k] = [layout::length(NAME, "seq_q", seq_q)?, layout::length(NAME, "seq_k", seq_k)?];
        let (band_lo, band_hi) = layout::band(mask.band, seq_q, seq_k);
        let tensor = |name, view: View<'_, T, D>| {
            layout::tensor(NAME, name, view.base(), view.shape(), view.strides())
        };
        let (query, key, value) = (tensor("query", query)?, tensor("key", key)?, tensor("value", value)?);
        here::<D>(queue, NAME, &[("query", query.base), ("key", key.base), ("value", value.base)])?;
        Ok(abi::Attention {
            query,
            key,
            value,
            out: abi::Tensor::NONE,
            state_output: abi::Tensor::NONE,
            lse: abi::Rows::NONE,
            state_max: abi::Rows::NONE,
            state_sum: abi::Rows::NONE,
            mask: abi::Mask { band_lo, band_hi, ..abi::Mask::NONE },
            batch: layout::length(NAME, "batch", batch)?,
            seq_q,
            seq_k,
            heads: layout::length(NAME, "heads", heads)?,
            kv_heads: layout::length(NAME, "kv_heads", kv_heads)?,
            head_dim: layout::length(NAME, "head_dim", head_dim)?,
            element: number::<T>(),
            form: self.form as i32,
            scale: layout::scale(NAME, scale)?,
            reserved: 0,
        })
    }
}

/// Describes where rows end: the output and, if asked for, the log-sum-exp.
fn outputs<D, T: Half>(
    query: [usize; 4],
    out: ViewMut<'_, T, D>,
    lse: Option<ViewMut<'_, f32, D>>,
) -> Result<(abi::Tensor, abi::Rows)> {
    layout::shape("out", out.shape(), query, "the query's shape")?;
    let described = layout::tensor(NAME, "out", out.base(), out.shape(), out.strides())?;
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
fn describe_state<D>(
    query: [usize; 4],
    state: &CarriedState<'_, D>,
) -> Result<(abi::Tensor, abi::Rows, abi::Rows)> {
    let CarriedState { output, max, sum } = state;
    layout::shape("state.output", output.shape(), query, "the query's shape")?;
    let described = layout::tensor(NAME, "state.output", output.base(), output.shape(), output.strides())?;
    Ok((described, describe_rows("state.max", query, max)?, describe_rows("state.sum", query, sum)?))
}

/// A call on a carried state, without its outputs.
fn state_call<D: Launches, T: Half>(
    queue: &D::Queue,
    shape: [usize; 4],
    state: &CarriedState<'_, D>,
) -> Result<abi::StateCall> {
    D::supports(queue, NAME)?;
    let [batch, seq, heads, head_dim] = shape;
    if !head_dim.is_multiple_of(8) {
        let what = format!("a state of head_dim = {head_dim}");
        return Err(layout::unsupported(NAME, what, "it takes multiples of 8"));
    }
    let (state_output, state_max, state_sum) = describe_state(shape, state)?;
    layout::count_rows(NAME, shape)?;
    Ok(abi::StateCall {
        state_output,
        out: abi::Tensor::NONE,
        state_max,
        state_sum,
        lse: abi::Rows::NONE,
        batch: layout::length(NAME, "batch", batch)?,
        seq: layout::length(NAME, "seq", seq)?,
        heads: layout::length(NAME, "heads", heads)?,
        head_dim: layout::length(NAME, "head_dim", head_dim)?,
        element: number::<T>(),
        reserved: 0,
    })
}

impl<D: Launches, T: Half> AttentionKernel<D, T> for FlashSm90 {
    const MASKS: MaskKinds = MASKS;

    fn forward(&self, scope: Scope<'_, D>, call: &mut AttentionCall<'_, T, D>) -> Result<()> {
        let mut flash = self.whole(scope.queue(), call)?;
        let shape = [call.query.shape()[0], call.kv.key.shape()[1]];
        flash.mask.key_lengths = upload_lengths(scope, call.mask.key_lengths, shape)?;
        // SAFETY: the views lend device memory of the shapes checked above, the outputs exclusively.
        unsafe { launch::<D, _>(scope.queue(), NAME, |launchers| launchers.flash_sm90, &flash) }
    }
}

impl<D: Launches, T: Half> CarriesState<D, T> for FlashSm90 {
    fn step(
        &self,
        scope: Scope<'_, D>,
        query: View<'_, T, D>,
        kv: KeyValue<'_, T, D>,
        mask: &BlockMask<'_, D>,
        scale: f32,
        state: &mut CarriedState<'_, D>,
    ) -> Result<()> {
        let queue = scope.queue();
        let mut flash = self.inputs(queue, query, kv, mask, scale)?;
        (flash.state_output, flash.state_max, flash.state_sum) = describe_state(query.shape(), state)?;
        here::<D>(queue, NAME, &[("state.output", flash.state_output.base)])?;
        let shape = [query.shape()[0], kv.key.shape()[1]];
        flash.mask.key_lengths = upload_lengths(scope, mask.key_lengths, shape)?;
        // SAFETY: the views lend device memory of the shapes checked above, the state exclusively.
        unsafe { launch::<D, _>(queue, NAME, |launchers| launchers.flash_sm90, &flash) }
    }

    fn finish(
        &self,
        scope: Scope<'_, D>,
        state: CarriedState<'_, D>,
        out: ViewMut<'_, T, D>,
        lse: Option<ViewMut<'_, f32, D>>,
    ) -> Result<()> {
        let shape = state.output.shape();
        let mut call = state_call::<D, T>(scope.queue(), shape, &state)?;
        (call.out, call.lse) = outputs(shape, out, lse)?;
        here::<D>(scope.queue(), NAME, &[("state.output", call.state_output.base), ("out", call.out.base)])?;
        // SAFETY: the views lend device memory of the shapes checked above, the outputs exclusively.
        unsafe { launch::<D, _>(scope.queue(), "state_finish", |launchers| launchers.state_finish, &call) }
    }

    fn begin<'a>(
        &self,
        scope: Scope<'a, D>,
        [batch, seq, heads, head_dim]: [usize; 4],
    ) -> Result<CarriedState<'a, D>> {
        // Rows of one head stand together, as the kernel visits them.
        let rows = |width: usize| -> Result<ViewMut<'a, f32, D>> {
            Ok(scope.take::<f32>([batch, heads, seq, width])?.permuted(TensorLayout::Bhsd))
        };
        let state = CarriedState { output: rows(head_dim)?, max: rows(1)?, sum: rows(1)? };
        let call = state_call::<D, T>(scope.queue(), [batch, seq, heads, head_dim], &state)?;
        // SAFETY: the state is scratch memory of these shapes, lent exclusively.
        unsafe { launch::<D, _>(scope.queue(), "state_begin", |launchers| launchers.state_begin, &call) }?;
        Ok(state)
    }
}

/// `Flash` is [`FlashSm90::AUTO`] on each of these devices. (One implementation for all of them would be one for a
/// foreign type and any device, which Rust leaves to the crate of either.)
macro_rules! flash_on {
    ($($device:ty),* $(,)?) => {$(
        impl<T: Half> AttentionKernel<$device, T> for Flash {
            const MASKS: MaskKinds = MASKS;

            #[inline]
            fn forward(
                &self,
                scope: Scope<'_, $device>,
                call: &mut AttentionCall<'_, T, $device>,
            ) -> Result<()> {
                FlashSm90::AUTO.forward(scope, call)
            }
        }

        impl<T: Half> CarriesState<$device, T> for Flash {
            fn step(
                &self,
                scope: Scope<'_, $device>,
                query: View<'_, T, $device>,
                kv: KeyValue<'_, T, $device>,
                mask: &BlockMask<'_, $device>,
                scale: f32,
                state: &mut CarriedState<'_, $device>,
            ) -> Result<()> {
                FlashSm90::AUTO.step(scope, query, kv, mask, scale, state)
            }

            fn finish(
                &self,
                scope: Scope<'_, $device>,
                state: CarriedState<'_, $device>,
                out: ViewMut<'_, T, $device>,
                lse: Option<ViewMut<'_, f32, $device>>,
            ) -> Result<()> {
                FlashSm90::AUTO.finish(scope, state, out, lse)
            }

            fn begin<'a>(
                &self,
                scope: Scope<'a, $device>,
                query: [usize; 4],
            ) -> Result<CarriedState<'a, $device>> {
                <FlashSm90 as CarriesState<$device, T>>::begin(&FlashSm90::AUTO, scope, query)
            }
        }
    )*};
}

#[cfg(feature = "cuda")]
flash_on!(super::Cuda);
#[cfg(feature = "sim")]
flash_on!(super::Simulated);
