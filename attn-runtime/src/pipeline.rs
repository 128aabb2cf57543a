//! Pre-attention, kernel, post-attention: one type for each combination.

use core::marker::PhantomData;
use core::time::Duration;
use std::time::Instant;

use attn_plan::{MaskKinds, Sharding};

use crate::comm::{Communicator, Traffic};
use crate::device::{Device, Scope};
use crate::error::{Error, Result};
use crate::kernel::{AttentionCall, AttentionKernel};
use crate::spec::AttentionSpec;
use crate::strategy::{AttentionRequest, ParallelAttentionStrategy, ParallelConfig};
use crate::tensor::{Element, TensorLayout};

/// What an attribute generates: one [`Pipeline`], or an enum of several between which start-up chooses.
pub trait AttentionPipeline<C: Communicator, T: Element>: Sized {
    /// The strategies' names, in the attribute's order.
    const OFFERED: &'static [&'static str];

    /// The order of the axes in the caller's tensors.
    const LAYOUT: TensorLayout;

    /// The masks that its strategies take with their kernel.
    const MASKS: MaskKinds;

    /// Whether its strategies take joint tokens: those of this crate do.
    const JOINT: bool = true;

    /// Opens the `choice`-th of the offered strategies. Collective.
    ///
    /// # Errors
    /// As [`ParallelAttentionStrategy::open`].
    fn open(choice: usize, group: C, spec: &AttentionSpec) -> Result<Self>;

    /// The name of the strategy that is open.
    fn name(&self) -> &'static str;

    /// Its group.
    fn communicator(&self) -> &C;

    /// How the group shares positions and heads.
    fn sharding(&self) -> Sharding;

    /// Whether the strategy that is open takes keys that every rank has.
    fn replicated_keys(&self) -> bool;

    /// What this rank has moved so far.
    fn traffic(&self) -> Traffic;

    /// How many blocks of queries and keys this rank has computed and skipped so far, if the strategy counts them.
    fn work(&self) -> Work;

    /// Runs one call.
    ///
    /// # Errors
    /// If a stage fails.
    ///
    /// # Panics
    /// Possibly, if the request's shapes and masks do not fit each other. Those of a session do: it has checked them.
    fn run<'a>(
        &mut self,
        scope: Scope<'a, C::Device>,
        request: AttentionRequest<'a, T, C::Device>,
        clock: &mut Clock,
    ) -> Result<()>;
}

/// A strategy and a kernel, monomorphised.
#[derive(Debug)]
pub struct Pipeline<S, K, C, T> {
    strategy: S,
    kernel: K,
    types: PhantomData<fn(&C, T)>,
}

impl<S, K, C, T> Pipeline<S, K, C, T>
where
    S: ParallelAttentionStrategy<K, C, T>,
    C: Communicator,
    T: Element,
{
    /// Puts a strategy round a kernel.
    pub const fn new(strategy: S, kernel: K) -> Self {
        Self { strategy, kernel, types: PhantomData }
    }
}

impl<S, K, C, T> AttentionPipeline<C, T> for Pipeline<S, K, C, T>
where
    S: ParallelAttentionStrategy<K, C, T>,
    K: Default,
    C: Communicator,
    T: Element,
{
    const OFFERED: &'static [&'static str] = &[S::NAME];
    const LAYOUT: TensorLayout = S::LAYOUT;
    const MASKS: MaskKinds = S::MASKS;
    const JOINT: bool = S::JOINT;

    fn open(_: usize, group: C, spec: &AttentionSpec) -> Result<Self> {
        if let Some(degree) = spec.degree.filter(|degree| S::ENABLED && *degree != group.size()) {
            let found = format!("a group of {} ranks", group.size());
            return Err(Error::Declared { key: "degree", declared: degree.to_string(), found });
        }
        let ranks = group.size();
        let strategy = S::open(group, spec)?;
        // A strategy of a user's own may not look at what was asked for.
        let shares = strategy.sharding();
        if shares.ranks() != ranks {
            return Err(Error::Configuration(format!(
                "strategy `{}` says in `sharding` that {} ranks share its sequence, but its group has {ranks}",
                S::NAME,
                shares.ranks()
            )));
        }
        let unheeded = |key, declared: &str, found: &str| {
            let (declared, found) =
                (format!("\"{declared}\""), format!("strategy `{}`, which shares {found}", S::NAME));
            Err(Error::Declared { key, declared, found })
        };
        if let Some(split) = spec.split.filter(|split| S::ENABLED && *split != shares.split) {
            return unheeded("split", split.name(), &format!("as `{}` does", shares.split.name()));
        }
        let own = !ParallelConfig::knows(S::NAME);
        if let Some(layout) = spec.layout.filter(|layout| own && *layout != shares.layout) {
            return unheeded("layout", layout.name(), &format!("in the order `{}`", shares.layout.name()));
        }
        Ok(Self::new(strategy, K::default()))
    }

    fn name(&self) -> &'static str {
        S::NAME
    }

    fn communicator(&self) -> &C {
        self.strategy.communicator()
    }

    #[inline]
    fn sharding(&self) -> Sharding {
        self.strategy.sharding()
    }

    #[inline]
    fn replicated_keys(&self) -> bool {
        S::REPLICATED_KEYS
    }

    fn traffic(&self) -> Traffic {
        self.strategy.traffic()
    }

    fn work(&self) -> Work {
        self.strategy.work()
    }

    #[inline]
    fn run<'a>(
        &mut self,
        scope: Scope<'a, C::Device>,
        request: AttentionRequest<'a, T, C::Device>,
        clock: &mut Clock,
    ) -> Result<()> {
        let Self { strategy, kernel, .. } = self;
        clock.start();
        let request = match request.edges {
            Some(_) if !S::EDGES => request.with_edges_done(scope)?,
            _ => request,
        };
        let (mut call, context) = strategy.pre_attention(scope, request)?;
        clock.lap::<C::Device>(scope, |phases| &mut phases.pre)?;
        strategy.kernel(kernel, &context).take(scope, &mut call)?;
        clock.lap::<C::Device>(scope, |phases| &mut phases.kernel)?;
        strategy.post_attention(scope, call, context)?;
        clock.lap::<C::Device>(scope, |phases| &mut phases.post)
    }
}

/// Opens the pipeline that a configuration asks for, out of those that an attribute offers. Collective.
///
/// # Errors
/// If the configuration is none that the pipelines or the group can give ([`ParallelConfig::choose`]), if the group's
/// size is not the attribute's `degree`, or the strategy cannot be opened on it.
pub fn build_parallel_attention_strategy<P, C, T>(
    config: &ParallelConfig,
    group: C,
    spec: &AttentionSpec,
) -> Result<P>
where
    P: AttentionPipeline<C, T>,
    C: Communicator,
    T: Element,
{
    let choice = config.choose(P::OFFERED, group.size())?;
    let spec = config.merge(spec, P::OFFERED.get(choice).copied().unwrap_or_default())?;
    if let Some(mask) = spec.mask.filter(|mask| !P::MASKS.takes(*mask)) {
        return Err(Error::MaskKind { mask, takes: P::MASKS });
    }
    P::open(choice, group, &spec)
}

/// A kernel, called with what it takes.
trait Take<D: Device, T: Element>: AttentionKernel<D, T> {
    /// [`forward`](AttentionKernel::forward), unless a strategy brings a mask that the kernel does not take: one of this
    /// crate never does.
    #[inline]
    fn take(&self, scope: Scope<'_, D>, call: &mut AttentionCall<'_, T, D>) -> Result<()> {
        let mask = call.mask.kinds();
        if Self::MASKS.takes(mask) {
            self.forward(scope, call)
        } else {
            Err(Error::MaskKind { mask, takes: Self::MASKS })
        }
    }
}

impl<D: Device, T: Element, K: AttentionKernel<D, T>> Take<D, T> for K {}

/// Blocks that a ring met, on one rank: each is a stretch of this rank's positions and a stretch of some rank's keys, its
/// own included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Those that were computed, at least in part.
    pub computed: u64,
    /// Those that cost nothing: positions, key lengths or the order of segments tell that no query attends a key.
    pub skipped: u64,
}

/// Time spent in each part of the pipeline, on this rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Phases {
    /// Resharding before the kernel.
    pub pre: Duration,
    /// The kernel, and for ring the hops between its steps.
    pub kernel: Duration,
    /// Resharding after it.
    pub post: Duration,
    /// Calls counted.
    pub calls: u64,
}

/// Measures phases, when asked to.
#[derive(Debug, Default)]
pub struct Clock {
    /// When the present phase began; absent while nothing is measured.
    since: Option<Instant>,
    running: bool,
    phases: Phases,
}

impl Clock {
    /// Starts or stops measuring.
    pub(crate) const fn enable(&mut self, enable: bool) {
        self.running = enable;
        self.since = None;
    }

    /// What was measured so far.
    pub(crate) const fn phases(&self) -> Phases {
        self.phases
    }

    #[inline]
    fn start(&mut self) {
        if self.running {
            self.since = Some(Instant::now());
            self.phases.calls += 1;
        }
    }

    /// Ends a phase. Only while measuring does this wait for the queue.
    #[inline]
    fn lap<D: Device>(
        &mut self,
        scope: Scope<'_, D>,
        phase: impl Fn(&mut Phases) -> &mut Duration,
    ) -> Result<()> {
        match self.since {
            None => Ok(()),
            Some(since) => {
                let now = Self::settled::<D>(scope)?;
                *phase(&mut self.phases) += now.duration_since(since);
                self.since = Some(now);
                Ok(())
            }
        }
    }

    /// When the queue has done what was put on it.
    #[cold]
    fn settled<D: Device>(scope: Scope<'_, D>) -> Result<Instant> {
        D::synchronize(scope.queue())?;
        Ok(Instant::now())
    }
}

/// The pipeline of an attribute that did not compile: it stands in, so that the attribute's own error is the only one.
#[doc(hidden)]
#[derive(Debug)]
pub enum Unbuilt {}

impl<C: Communicator, T: Element> AttentionPipeline<C, T> for Unbuilt {
    const OFFERED: &'static [&'static str] = &[];
    const LAYOUT: TensorLayout = TensorLayout::Bshd;
    const MASKS: MaskKinds = MaskKinds::ALL;

    fn open(choice: usize, _: C, _: &AttentionSpec) -> Result<Self> {
        Err(Error::unknown_choice(choice, &[]))
    }

    fn name(&self) -> &'static str {
        match *self {}
    }

    fn communicator(&self) -> &C {
        match *self {}
    }

    fn sharding(&self) -> Sharding {
        match *self {}
    }

    fn replicated_keys(&self) -> bool {
        match *self {}
    }

    fn traffic(&self) -> Traffic {
        match *self {}
    }

    fn work(&self) -> Work {
        match *self {}
    }

    fn run<'a>(
        &mut self,
        _: Scope<'a, C::Device>,
        _: AttentionRequest<'a, T, C::Device>,
        _: &mut Clock,
    ) -> Result<()> {
        match *self {}
    }
}
