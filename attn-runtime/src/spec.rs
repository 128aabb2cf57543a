//! What an attribute fixes about its attention.

use attn_plan::{Mask, MaskKinds, RingLayout, Split};

/// The numbers and flags that `#[parallel_attention(..)]` fixed. Absent ones are free: start-up or each call decides.
#[derive(Clone, Copy, Debug, PartialEq)]
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
    /// How many ranks share the heads.
    pub ulysses: Option<usize>,
    /// How many ranks stand in a ring.
    pub ring: Option<usize>,
    /// How many ranks gather each other's keys.
    pub allgather: Option<usize>,
    /// In which order a ring shares the sequence; contiguous if absent.
    pub layout: Option<RingLayout>,
    /// Whether shares must be equal; strict if absent.
    pub split: Option<Split>,
    /// Softmax scale; `1 / sqrt(head_dim)` if absent.
    pub scale: Option<f32>,
    /// The mask; free to each call if absent.
    pub mask: Option<Mask>,
    /// Whether to wait for the queue after each stage of the pipeline that has communicated.
    pub use_sync: bool,
    /// Whether query, key and value go in one exchange, or in one each (which needs less memory at a time under a
    /// communicator that packs them).
    pub fuse_qkv: bool,
}

impl Default for AttentionSpec {
    fn default() -> Self {
        Self::new()
    }
}

/// Setters of single fields.
macro_rules! setters {
    ($($(#[$doc:meta])* $field:ident: $ty:ty;)*) => {$(
        $(#[$doc])*
        #[must_use]
        pub const fn $field(mut self, $field: $ty) -> Self {
            self.$field = Some($field);
            self
        }
    )*};
}

impl AttentionSpec {
    /// Nothing fixed.
    pub const fn new() -> Self {
        Self {
            heads: None,
            kv_heads: None,
            head_dim: None,
            degree: None,
            ulysses: None,
            ring: None,
            allgather: None,
            layout: None,
            split: None,
            scale: None,
            mask: None,
            use_sync: false,
            fuse_qkv: true,
        }
    }

    setters! {
        /// Fixes the number of query heads.
        heads: usize;
        /// Fixes the number of key and value heads.
        kv_heads: usize;
        /// Fixes the length of a head.
        head_dim: usize;
        /// Fixes the number of ranks.
        degree: usize;
        /// Fixes the number of ranks that share the heads.
        ulysses: usize;
        /// Fixes the number of ranks of a ring.
        ring: usize;
        /// Fixes the number of ranks that gather each other's keys.
        allgather: usize;
        /// Fixes the order in which a ring shares the sequence.
        layout: RingLayout;
        /// Fixes whether shares must be equal.
        split: Split;
        /// Fixes the softmax scale.
        scale: f32;
        /// Fixes the mask.
        mask: Mask;
    }

    /// Sets whether to wait for the queue after each stage of the pipeline that has communicated.
    #[must_use]
    pub const fn use_sync(mut self, use_sync: bool) -> Self {
        self.use_sync = use_sync;
        self
    }

    /// Sets whether query, key and value go in one exchange.
    #[must_use]
    pub const fn fuse_qkv(mut self, fuse_qkv: bool) -> Self {
        self.fuse_qkv = fuse_qkv;
        self
    }

    /// The same, once it is clear that strategy and kernel take the mask.
    ///
    /// # Panics
    /// While compiling, if they do not.
    #[must_use]
    #[track_caller]
    pub const fn checked(self, takes: MaskKinds) -> Self {
        if let Some(mask) = self.mask {
            assert!(
                takes.takes(mask),
                "the attribute fixes a mask that this strategy with this kernel does not take: use others, or another mask \
                 (types of your own say in `MASKS` what they take)"
            );
        }
        self
    }
}
