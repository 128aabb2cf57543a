//! What an attribute fixes about its attention.

use crate::metadata::Mask;

/// The numbers and flags that `#[parallel_attention(..)]` fixed. Absent ones are free: each call decides.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct AttentionSpec {
    /// Number of query heads, over all ranks.
    pub heads: Option<usize>,
    /// Number of key and value heads, over all ranks.
    pub kv_heads: Option<usize>,
    /// Length of a head.
    pub head_dim: Option<usize>,
    /// Number of ranks.
    pub degree: Option<usize>,
    /// Softmax scale; `1 / sqrt(head_dim)` if absent.
    pub scale: Option<f32>,
    /// The mask; free to each call if absent.
    pub mask: Option<Mask>,
    /// Whether to wait for the queue after each stage of the pipeline that has communicated.
    pub use_sync: bool,
}

impl AttentionSpec {
    /// Nothing fixed.
    pub const fn new() -> Self {
        Self {
            heads: None,
            kv_heads: None,
            head_dim: None,
            degree: None,
            scale: None,
            mask: None,
            use_sync: false,
        }
    }

    /// Fixes the number of query heads.
    #[must_use]
    pub const fn heads(mut self, heads: usize) -> Self {
        self.heads = Some(heads);
        self
    }

    /// Fixes the number of key and value heads.
    #[must_use]
    pub const fn kv_heads(mut self, kv_heads: usize) -> Self {
        self.kv_heads = Some(kv_heads);
        self
    }

    /// Fixes the length of a head.
    #[must_use]
    pub const fn head_dim(mut self, head_dim: usize) -> Self {
        self.head_dim = Some(head_dim);
        self
    }

    /// Fixes the number of ranks.
    #[must_use]
    pub const fn degree(mut self, degree: usize) -> Self {
        self.degree = Some(degree);
        self
    }

    /// Fixes the softmax scale.
    #[must_use]
    pub const fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Fixes the mask.
    #[must_use]
    pub const fn mask(mut self, mask: Mask) -> Self {
        self.mask = Some(mask);
        self
    }

    /// Sets whether to wait for the queue after each stage of the pipeline that has communicated.
    #[must_use]
    pub const fn use_sync(mut self, use_sync: bool) -> Self {
        self.use_sync = use_sync;
        self
    }
}
