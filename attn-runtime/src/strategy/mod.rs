//! Strategies: how the sequence is resharded around the kernel.

mod allgather_kv;
mod config;
mod degrees;
mod frame;
mod gather;
mod grouped;
mod home;
mod hybrid;
mod none;
mod quantise;
mod request;
mod reshard;
mod ring;
mod rotate;
mod ulysses;
mod ulysses_allgather;
mod ulysses_quantised;

pub use allgather_kv::AllGatherKvParallelAttention;
pub use config::ParallelConfig;
pub use gather::{Gather, GatherContext};
pub use grouped::Grouped;
pub use hybrid::HybridParallelAttention;
pub use none::NoParallelAttention;
pub use quantise::{QuantiseFirst, QuantisedContext};
pub use request::{AttentionMask, AttentionRequest, Joint};
pub use reshard::{DirectContext, ReshardContext};
pub use ring::RingParallelAttention;
pub use rotate::Rotate;
pub use ulysses::UlyssesParallelAttention;
pub use ulysses_allgather::UlyssesAllGatherParallelAttention;
pub use ulysses_quantised::UlyssesQuantisedParallelAttention;

use attn_plan::{MaskKinds, RingLayout, Sharding, Split};

use crate::comm::{Communicator, Traffic};
use crate::device::Scope;
use crate::error::Result;
use crate::kernel::{AttentionCall, AttentionKernel};
use crate::pipeline::Work;
use crate::spec::AttentionSpec;
use crate::tensor::{Element, TensorLayout};

/// What [`post_attention`](ParallelAttentionStrategy::post_attention) must know of
/// [`pre_attention`](ParallelAttentionStrategy::pre_attention): a type of each strategy's own.
pub trait ParallelAttentionContext {
    /// The strategy's name.
    fn name(&self) -> &'static str;
}

/// A communication strategy: what happens before and after the kernel, and what drives it.
///
/// The trait is open. A type of your own is written `struct Mine<C, const SCATTER: usize, const GATHER: usize>` and
/// named in the attribute by its path. It is generic in the kernel `K`, so that an implementation can ask more of a
/// kernel than that it computes, as ring asks that it carries state.
///
/// A call runs as three lines, the same for every strategy:
///
/// ```text
/// let (mut call, context) = strategy.pre_attention(scope, request)?;
/// strategy.kernel(&kernel, &context).forward(scope, &mut call)?;
/// strategy.post_attention(scope, call, context)?;
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no strategy for kernel `{K}` under communicator `{C}` on `{T}`",
    note = "a strategy of your own implements `ParallelAttentionStrategy<K, C, T>`"
)]
pub trait ParallelAttentionStrategy<K, C: Communicator, T: Element>: Sized {
    /// The strategy's name: `ulysses`.
    const NAME: &'static str;

    /// Whether it shards anything.
    const ENABLED: bool;

    /// The order of the axes in the caller's tensors.
    const LAYOUT: TensorLayout;

    /// The masks that it takes, with this kernel. A call with another one is refused before anything moves. A strategy
    /// that says nothing takes masks by position; one that passes the whole mask on says `K::MASKS`.
    const MASKS: MaskKinds = MaskKinds::SPAN;

    /// Whether it takes [joint tokens](AttentionRequest::joint). If not, a call with some is refused before anything moves.
    const JOINT: bool = false;

    /// Whether it takes keys that every rank has ([`KeyPlacement::Replicated`](crate::KeyPlacement)). If not, a call with
    /// some is refused before anything moves.
    const REPLICATED_KEYS: bool = false;

    /// Whether it heeds the [edges](AttentionRequest::edges) of a request. If not, it is given queries and keys to which they
    /// have been done, in a pass of its own, and none.
    const EDGES: bool = false;

    /// What `post_attention` must know of `pre_attention`.
    type Context<'a>: ParallelAttentionContext;

    /// What stands in the kernel's place: the kernel itself, or an adapter round it.
    type Driven<'a>: AttentionKernel<C::Device, T>
    where
        Self: 'a,
        K: 'a;

    /// Takes its group and makes what subgroups it needs. Collective; once per session.
    ///
    /// # Errors
    /// If the group's size is not one that the strategy can use, or contradicts `spec`.
    fn open(group: C, spec: &AttentionSpec) -> Result<Self>;

    /// The group.
    fn communicator(&self) -> &C;

    /// How the group shares positions and heads: by this each call's shapes are checked. One that says nothing shares the
    /// sequence in equal, consecutive stretches.
    #[inline]
    fn sharding(&self) -> Sharding {
        let outer = self.communicator().size();
        Sharding { ulysses: 1, outer, layout: RingLayout::Contiguous, split: Split::Strict }
    }

    /// What this rank has moved so far, through all groups that the strategy has.
    fn traffic(&self) -> Traffic {
        self.communicator().traffic()
    }

    /// How many blocks of queries and keys this rank has computed and skipped so far, if the strategy counts them.
    fn work(&self) -> Work {
        Work::default()
    }

    /// Reshards for the kernel: what the kernel reads and where it writes.
    ///
    /// # Errors
    /// If the request's shapes do not suit the strategy, or communication fails.
    ///
    /// # Panics
    /// Possibly, if the request's shapes and masks do not fit each other. Those of a session do: it has checked them.
    fn pre_attention<'a>(
        &mut self,
        scope: Scope<'a, C::Device>,
        request: AttentionRequest<'a, T, C::Device>,
    ) -> Result<(AttentionCall<'a, T, C::Device>, Self::Context<'a>)>;

    /// What is called in the kernel's place.
    fn kernel<'a, 'c: 'a>(&'a self, kernel: &'a K, context: &'a Self::Context<'c>) -> Self::Driven<'a>;

    /// Reshards what the kernel wrote into the caller's outputs.
    ///
    /// # Errors
    /// If communication fails.
    fn post_attention<'a>(
        &mut self,
        scope: Scope<'a, C::Device>,
        call: AttentionCall<'a, T, C::Device>,
        context: Self::Context<'a>,
    ) -> Result<()>;
}
