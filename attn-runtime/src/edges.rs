//! What a model does to queries and keys right before attention, done where they are laid out for it: RMSNorm and rotary
//! embedding.

use core::ops::Range;

use crate::device::{Cpu, Device, EdgeCopy, EdgeNorm, EdgeRope, RopePairs, Scope};
use crate::error::{Error, Result};
use crate::tensor::{Element, View, ViewMut};

/// RMSNorm of each row of `head_dim` channels: `x / sqrt(mean(x²) + eps) * weight`.
///
/// B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", 2019, arXiv:1910.07467.
pub struct RmsNorm<'a, T, D = Cpu> {
    /// `[1, 1, 1 or heads, head_dim]` in every layout; if absent, all are 1.
    pub weight: Option<View<'a, T, D>>,
    /// What is added to the mean: at least 0.
    pub eps: f32,
}

/// Rotary embedding of the first `2 * pairs` channels of each row: a pair `(a, b)` becomes
/// `(a cos - b sin, b cos + a sin)`. The other channels stay.
///
/// The tables are of this rank's own rows, as the tensor is: cut from those of the whole sequence by
/// [`Session::sharding`](crate::Session::sharding), they suit every layout and split.
///
/// J. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, arXiv:2104.09864.
pub struct Rope<'a, D = Cpu> {
    /// `[1 or batch, seq, 1, pairs]` in every layout.
    pub cos: View<'a, f32, D>,
    /// Of the same shape.
    pub sin: View<'a, f32, D>,
    /// Which channels are a pair.
    pub pairs: RopePairs,
}

/// What is done to one tensor: the norm first, then the rotation, in fp32, rounded once. The default is nothing.
pub struct Edge<'a, T, D = Cpu> {
    /// RMSNorm.
    pub norm: Option<RmsNorm<'a, T, D>>,
    /// Rotary embedding.
    pub rope: Option<Rope<'a, D>>,
}

/// What is done to queries and keys on their way into attention, in the pass that lays them out for the exchange or the
/// kernel. All by itself each of these steps would read and write the tensors once more.
///
/// The example `edges` of the crate `attn` has all of it.
pub struct Edges<'a, T, D = Cpu> {
    /// Of the queries.
    pub query: Edge<'a, T, D>,
    /// Of the keys.
    pub key: Edge<'a, T, D>,
    /// Of the joint tokens' queries.
    pub joint_query: Edge<'a, T, D>,
    /// Of the joint tokens' keys.
    pub joint_key: Edge<'a, T, D>,
}

macro_rules! plain_data {
    ($($name:ident<$($parameter:ident),*>),* $(,)?) => {$(
        impl<$($parameter),*> Clone for $name<'_, $($parameter),*> {
            fn clone(&self) -> Self {
                *self
            }
        }

        impl<$($parameter),*> Copy for $name<'_, $($parameter),*> {}
    )*};
}

plain_data!(RmsNorm<T, D>, Rope<D>, Edge<T, D>, Edges<T, D>);

impl<T, D> Default for Edge<'_, T, D> {
    fn default() -> Self {
        Self { norm: None, rope: None }
    }
}

impl<T, D> Default for Edges<'_, T, D> {
    fn default() -> Self {
        Self {
            query: Edge::default(),
            key: Edge::default(),
            joint_query: Edge::default(),
            joint_key: Edge::default(),
        }
    }
}

impl<T, D> core::fmt::Debug for RmsNorm<'_, T, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("RmsNorm").field("weight", &self.weight).field("eps", &self.eps).finish()
    }
}

impl<D> core::fmt::Debug for Rope<'_, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Rope").field("cos", &self.cos).field("pairs", &self.pairs).finish_non_exhaustive()
    }
}

impl<T, D> core::fmt::Debug for Edge<'_, T, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Edge").field("norm", &self.norm).field("rope", &self.rope).finish()
    }
}

impl<T, D> core::fmt::Debug for Edges<'_, T, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Edges")
            .field("query", &self.query)
            .field("key", &self.key)
            .field("joint_query", &self.joint_query)
            .field("joint_key", &self.joint_key)
            .finish()
    }
}

impl<T, D> Edge<'_, T, D> {
    /// Whether nothing is done.
    pub const fn is_none(&self) -> bool {
        self.norm.is_none() && self.rope.is_none()
    }

    /// A number of what ranks must agree on.
    fn digest(&self, digest: u64) -> u64 {
        let norm = self.norm.map_or(0, |norm| {
            1 << 32 | u64::from(norm.weight.is_some()) << 33 | u64::from(norm.eps.to_bits())
        });
        let rope = self.rope.map_or(0, |rope| (rope.cos.shape()[3] as u64) << 1 | rope.pairs as u64);
        [norm, rope]
            .into_iter()
            .fold(digest, |digest, number| (digest ^ number).wrapping_mul(0x0100_0000_01b3).rotate_left(17))
    }
}

impl<T, D> Edges<'_, T, D> {
    /// A number of what ranks must agree on: which tensors are normalised, with which `eps`, how many pairs are rotated.
    pub(crate) fn digest(&self) -> u64 {
        let Self { query, key, joint_query, joint_key } = self;
        let edges = [query, key, joint_query, joint_key];
        // 0 is that of calls without.
        edges.into_iter().fold(0xcbf2_9ce4_8422_2325, |digest, edge| edge.digest(digest)).max(1)
    }
}

/// A tensor to which an edge belongs, as [`Edge::check`] sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EdgeOf {
    /// `query`.
    pub(crate) name: &'static str,
    /// The tensor's shape, `[batch, seq, heads, head_dim]`.
    pub(crate) shape: [usize; 4],
}

impl<'a, T: Element, D: Device> Edge<'a, T, D> {
    /// That weights and tables fit a tensor.
    ///
    /// # Errors
    /// If not.
    pub(crate) fn check(&self, EdgeOf { name, shape: [batch, seq, heads, head_dim] }: EdgeOf) -> Result<()> {
        let wrong = |message: String| Err(Error::Edge { edge: name, message });
        if let Some(RmsNorm { weight, eps }) = self.norm {
            if !(eps.is_finite() && eps >= 0.0) {
                return wrong(format!(
                    "an eps of {eps} is added to a mean of squares: give a number from 0 on"
                ));
            }
            let found = weight.map_or([1, 1, 1, head_dim], |weight| weight.shape());
            if found != [1, 1, 1, head_dim] && found != [1, 1, heads, head_dim] {
                return wrong(format!(
                    "the norm's weight has shape {found:?}, expected {:?} or {:?}: a weight for each channel of a \
                     row, the same for all heads or of each its own (axes are [1, 1, heads, head_dim] in every layout)",
                    [1, 1, 1, head_dim],
                    [1, 1, heads, head_dim]
                ));
            }
        }
        if let Some(Rope { cos, sin, .. }) = self.rope {
            let found = cos.shape();
            let pairs = found[3];
            if ![1, batch].contains(&found[0]) || found[1] != seq || found[2] != 1 {
                return wrong(format!(
                    "the table cos has shape {found:?}, expected [1 or {batch}, {seq}, 1, rotary_dim / 2]: the angles of \
                     this rank's own {seq} rows (axes are [batch, seq, 1, pairs] in every layout)"
                ));
            }
            if pairs == 0 || pairs > head_dim / 2 {
                return wrong(format!(
                    "the table cos has {pairs} angles a row, which rotate {} of {head_dim} channels: give from 1 to {}",
                    2 * pairs,
                    head_dim / 2
                ));
            }
            if sin.shape() != found {
                let sin = sin.shape();
                return wrong(format!(
                    "the table sin has shape {sin:?}, and cos has {found:?}: give both alike"
                ));
            }
        }
        Ok(())
    }

    /// The edge of some of the heads.
    pub(crate) fn heads(self, heads: &Range<usize>) -> Result<Self> {
        let norm = match self.norm {
            Some(RmsNorm { weight: Some(weight), eps }) if weight.shape()[2] > 1 => {
                Some(RmsNorm { weight: Some(weight.narrow(2, heads.start, heads.len())?), eps })
            }
            norm => norm,
        };
        Ok(Self { norm, ..self })
    }

    /// The edge of some of the positions.
    pub(crate) fn rows(self, rows: &Range<usize>) -> Result<Self> {
        let part = |table: View<'a, f32, D>| table.narrow(1, rows.start, rows.len());
        let rope = match self.rope {
            Some(Rope { cos, sin, pairs }) => Some(Rope { cos: part(cos)?, sin: part(sin)?, pairs }),
            None => None,
        };
        Ok(Self { rope, ..self })
    }

    /// The copy that does it.
    pub(crate) fn copy(&self, source: &View<'_, T, D>, destination: &ViewMut<'_, T, D>) -> EdgeCopy {
        debug_assert_eq!(source.shape(), destination.shape());
        // Along an axis of one index nobody steps: that is how one row serves all.
        let axis = |shape: [usize; 4], strides: [usize; 4], axis: usize| {
            if shape[axis] == 1 { 0 } else { strides[axis] }
        };
        let table = |view: View<'_, f32, D>| {
            let (shape, strides) = (view.shape(), view.strides());
            [axis(shape, strides, 0), strides[1], strides[3]]
        };
        EdgeCopy {
            source: source.base().as_ptr().cast_const().cast(),
            destination: destination.base().as_ptr().cast(),
            dtype: T::DTYPE,
            extent: source.shape(),
            source_strides: source.strides(),
            destination_strides: destination.strides(),
            norm: self.norm.map(|RmsNorm { weight, eps }| EdgeNorm {
                weight: weight.map_or(core::ptr::null(), |weight| weight.base().as_ptr().cast_const().cast()),
                weight_strides: weight.map_or([0, 1], |weight| {
                    [axis(weight.shape(), weight.strides(), 2), weight.strides()[3]]
                }),
                eps,
            }),
            rope: self.rope.map(|Rope { cos, sin, pairs }| EdgeRope {
                cos: cos.base().as_ptr().cast_const(),
                sin: sin.base().as_ptr().cast_const(),
                cos_strides: table(cos),
                sin_strides: table(sin),
                pairs: cos.shape()[3],
                order: pairs,
            }),
        }
    }

    /// A dense copy of a tensor with it done; the tensor itself if there is nothing to do.
    pub(crate) fn applied(&self, scope: Scope<'a, D>, tensor: View<'a, T, D>) -> Result<View<'a, T, D>> {
        if self.is_none() {
            return Ok(tensor);
        }
        let changed = scope.take(tensor.shape())?;
        // SAFETY: the views lend what is read, the destination was just taken, and the checks of a session have shown that
        // weights and tables are of the tensor's shape.
        unsafe { scope.edge(&[self.copy(&tensor, &changed)]) }?;
        Ok(changed.into_view())
    }
}
