//! The attribute behind `attn::parallel_attention`.
//!
//! Four stages, one module each: `parse` reads syntax, `validate` gives it meaning and collects every error,
//! `plan` is the typed outcome whose values are already true, `expand` prints it and cannot fail. What the
//! attribute knows by name (strategies, backends, keys) stands in one place, `registry`.

mod diag;
mod expand;
mod parse;
mod plan;
mod registry;
#[cfg(test)]
mod tests;
mod validate;

use diag::Errors;
use plan::Place;
use proc_macro2::TokenStream;
use quote::quote;
use registry::Backend;

/// Gives a struct a parallel attention pipeline, chosen at compile time.
///
/// The struct keeps its fields, generics and attributes; it gains an implementation of
/// `ParallelAttention<C, T>` for every communicator `C` and element type `T` that the strategy and the kernel
/// take.
///
/// ```ignore
/// use attn::prelude::*;
///
/// #[parallel_attention(strategy = "ulysses", scatter = 2, gather = 1, heads = 24, head_dim = 128)]
/// struct JointAttention {
///     dropout: f32,
/// }
/// ```
///
/// | key | values | default |
/// |---|---|---|
/// | `strategy` | `"none"`, `"ulysses"`, `"ring"`, `"hybrid"`, `"allgather_kv"`, `"ulysses_allgather"`, `"ulysses_quantised"`; a list of them, `["none", "ulysses"]`; or the path of a type of your own | required |
/// | `scatter`, `gather` | numbers of the head axis and of the sequence axis: (2, 1) is `[batch, seq, heads, head_dim]`, (1, 2) is `[batch, heads, seq, head_dim]`, (2, 0) is `[seq, batch, heads, head_dim]` | 2, 1 |
/// | `heads`, `kv_heads`, `head_dim` | integers from 1 to 65535; `kv_heads` divides `heads` | the tensors' |
/// | `degree` | how many ranks share a sequence, from 1 to 65535. Not for `none` | the group's size |
/// | `ulysses`, `ring`, `allgather` | the degrees of which `degree` is the product, for the strategies that have them: see below | the configuration's |
/// | `layout` | in which order a ring shares the sequence out: `"contiguous"`, `"zigzag"`, `"striped"`. For `ring` and `hybrid` | the configuration's, or else `"contiguous"` |
/// | `split` | `"strict"`: heads and sequence divide among the ranks; `"uneven"`: they need not. Not for `none` | the configuration's, or else `"strict"` |
/// | `scale` | what the scores are multiplied by before the softmax: a finite number above 0 | the call's, or else `1 / sqrt(head_dim)` |
/// | `mask` | `"none"`, or one or more of `"causal"` or `"window(512, 0)"` (keys before, keys behind), `"padding"`, `"segments"` and `"dense"`, joined by `+`: fixed here, no call may ask for another | the call's, or else none |
/// | `use_sync` | whether each stage that communicates ends with waiting for the device's queue. Not for `none` | `false` |
/// | `fuse_qkv` | whether queries, keys and values travel in one exchange. For `ulysses`, `hybrid` and `ulysses_allgather` | `true` |
/// | `backend` | `"sdpa"`, `"flash"`, `"sage"` (each a cargo feature of `attn`), or the path of a kernel type of your own | `"flash"` |
/// | `crate` | the path of the crate `attn`, where it goes by another name | `::attn` |
///
/// # Degrees
/// `degree` is the product of the other degrees that a strategy has: `ulysses` and `ring` under `hybrid`, `ulysses` and
/// `allgather` under `ulysses_allgather`. Under `ulysses`, `ring` and `allgather_kv` the one of this name is all of it, and
/// `ulysses` under `ulysses_quantised`.
/// Ranks that share heads (`ulysses`) divide the query heads, and divide the key and value heads or are a multiple of
/// them, unless `split = "uneven"`.
///
/// # A list of strategies
/// Each strategy is compiled, and one of them is chosen when a session is opened. The attribute then also
/// writes an enum with a variant for each, named after the struct: `JointAttentionPipeline`.
///
/// # 8 bits
/// `ulysses_quantised` is `ulysses` for a kernel that computes in 8 bits, which rounds before the exchange: `backend = "sage"`,
/// or one of your own that implements `QuantisedAttention`.
///
/// # A strategy of your own
/// `strategy = my::Strategy` uses the type `my::Strategy<C, SCATTER, GATHER>`: the communicator and the two axis
/// numbers are added to the path. Such a strategy has every key.
///
/// # Errors
/// Mistakes are reported together, each on the token at fault. What only types can tell (a ring whose kernel
/// cannot go on from a partial result, a kernel for another device) the compiler reports where the pipeline
/// is used.
#[proc_macro_attribute]
pub fn parallel_attention(
    args: proc_macro::TokenStream,
    item: proc_macro::TokenStream,
) -> proc_macro::TokenStream {
    attribute(args.into(), item.into(), &registry::BACKENDS).into()
}

/// The attribute, as a function that a test can call, with the backends it may name.
///
/// The item comes out as it went in. Beside it stands either its pipeline, or every error and a stub.
fn attribute(args: TokenStream, item: TokenStream, backends: &[Backend]) -> TokenStream {
    let mut errors = Errors::default();
    let args = parse::args(args, &mut errors);
    // An argument that could not be read would be missed, and be a second error for one mistake.
    let readable = errors.is_empty();
    let place =
        parse::target(item.clone(), &mut errors).map(|target| Place { target, base: validate::base(&args) });
    let plan = if readable { validate::plan(&args, backends, &mut errors) } else { None };
    let generated = match (&place, &plan) {
        (Some(place), Some(plan)) => expand::pipeline(place, plan),
        (Some(place), None) => expand::stub(place),
        (None, _) => TokenStream::new(),
    };
    quote!(#item #errors #generated)
}
