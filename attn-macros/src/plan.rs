//! Stage 3: what to generate. Every value here is one that can be generated.

use std::num::NonZeroU16;

use attn_plan::{Mask, RingLayout, Split, TensorLayout};
use proc_macro2::Span;
use syn::Path;

use crate::parse::Target;
use crate::registry::Strategy;

/// Where generated code stands.
pub(crate) struct Place {
    /// The struct that it is for.
    pub(crate) target: Target,
    /// The path of the crate `attn` from there; `::attn` if absent.
    pub(crate) base: Option<Path>,
}

/// A pipeline, or a choice of pipelines.
pub(crate) struct Plan {
    /// How the sequence is sharded.
    pub(crate) strategies: Strategies,
    /// Which axis is which.
    pub(crate) layout: TensorLayout,
    /// What computes the attention of one rank.
    pub(crate) kernel: Kernel,
    /// What is fixed of each call.
    pub(crate) spec: Spec,
}

/// How the sequence is sharded.
pub(crate) enum Strategies {
    /// `strategy = "ring"`.
    One(Offer),
    /// `strategy = ["none", "ring"]`: at least one, all different.
    Several(Vec<Offer>),
    /// `strategy = my::Strategy`: a path whose last segment has no arguments.
    Own(Path),
}

impl Strategies {
    /// The strategies of this crate among them: none for one of the user's, of which nothing is known.
    pub(crate) fn offers(&self) -> &[Offer] {
        match self {
            Self::One(offer) => std::slice::from_ref(offer),
            Self::Several(offers) => offers,
            Self::Own(_) => &[],
        }
    }
}

/// A strategy of this crate, where it was named.
pub(crate) struct Offer {
    /// The strategy.
    pub(crate) strategy: &'static Strategy,
    /// The name in the attribute.
    pub(crate) span: Span,
}

/// What computes the attention of one rank.
pub(crate) enum Kernel {
    /// A type of `attn::__private` whose cargo feature is on, and where it was named.
    Builtin(&'static str, Span),
    /// A type of the user's.
    Own(Path),
}

/// What is fixed of each call; `None` is left to the call.
pub(crate) struct Spec {
    /// Number of query heads.
    pub(crate) heads: Option<NonZeroU16>,
    /// Number of key and value heads; divides `heads`.
    pub(crate) kv_heads: Option<NonZeroU16>,
    /// Length of a head.
    pub(crate) head_dim: Option<NonZeroU16>,
    /// Number of ranks that share a sequence.
    pub(crate) degree: Option<NonZeroU16>,
    /// Number of ranks that share the heads.
    pub(crate) ulysses: Option<NonZeroU16>,
    /// Number of ranks, or of groups of them, in a ring.
    pub(crate) ring: Option<NonZeroU16>,
    /// Number of ranks, or of groups of them, that gather keys and values.
    pub(crate) allgather: Option<NonZeroU16>,
    /// In which order a ring shares the sequence out.
    pub(crate) layout: Option<RingLayout>,
    /// Whether shares must be equal.
    pub(crate) split: Option<Split>,
    /// What scores are multiplied by.
    pub(crate) scale: Option<Scale>,
    /// Which keys a query sees.
    pub(crate) mask: Option<FixedMask>,
    /// Whether exchanges end with a synchronisation.
    pub(crate) use_sync: Option<bool>,
    /// Whether queries, keys and values travel in one exchange.
    pub(crate) fuse_qkv: Option<bool>,
}

/// A mask, where it was named: there the compiler is to point if the kernel does not take it.
pub(crate) struct FixedMask {
    /// The mask.
    pub(crate) mask: Mask,
    /// The name in the attribute.
    pub(crate) span: Span,
}

/// A softmax scale: finite, above zero.
#[derive(Clone, Copy)]
pub(crate) struct Scale(f32);

impl Scale {
    /// A scale, if the number can be one.
    pub(crate) fn new(scale: f32) -> Option<Self> {
        (scale.is_finite() && scale > 0.0).then_some(Self(scale))
    }

    /// The number.
    pub(crate) fn get(self) -> f32 {
        self.0
    }
}
