//! What degrees, layouts, splits and masks may be, and which of them agree.

use quote::quote;

use super::{each_is_one_error, each_is_taken};

#[test]
fn degree_is_the_product_of_the_degrees_that_a_strategy_has() {
    each_is_one_error([
        (
            quote!(strategy = "ulysses", ulysses = 4, degree = 8),
            "under strategy `ulysses`, `degree` is `ulysses`, and that is 4, not 8: write `degree = 4`, or leave \
             it out",
        ),
        (
            quote!(strategy = "ring", ring = 4, degree = 2),
            "under strategy `ring`, `degree` is `ring`, and that is 4, not 2",
        ),
        (
            quote!(strategy = "allgather_kv", allgather = 3, degree = 2),
            "under strategy `allgather_kv`, `degree` is `allgather`, and that is 3, not 2",
        ),
        (
            quote!(strategy = "hybrid", ulysses = 2, ring = 3, degree = 8),
            "under strategy `hybrid`, `degree` is `ulysses` times `ring`, and 2 times 3 is 6, not 8: write \
             `degree = 6`, or leave it out",
        ),
        (
            quote!(strategy = "ulysses_allgather", ulysses = 65535, allgather = 65535, degree = 65535),
            "under strategy `ulysses_allgather`, `degree` is `ulysses` times `allgather`, and 65535 times \
             65535 is 4294836225",
        ),
        (
            quote!(strategy = "hybrid", ulysses = 4, degree = 6),
            "under strategy `hybrid`, `degree` is `ulysses` times `ring`, and 6 is no multiple of 4: `ulysses` may \
             be 1, 2, 3 or 6",
        ),
        (
            quote!(strategy = "ulysses_allgather", allgather = 4, degree = 6),
            "under strategy `ulysses_allgather`, `degree` is `ulysses` times `allgather`, and 6 is no multiple of 4: \
             `allgather` may be 1, 2, 3 or 6",
        ),
        (
            quote!(strategy = ["none", "hybrid"], ulysses = 2, ring = 3, degree = 8),
            "under strategy `hybrid`, `degree` is `ulysses` times `ring`, and 2 times 3 is 6, not 8",
        ),
        (
            quote!(strategy = ["ulysses", "ring"], ulysses = 4, ring = 2, degree = 4),
            "under strategy `ring`, `degree` is `ring`, and that is 2, not 4",
        ),
    ]);
    each_is_taken([
        quote!(strategy = "ulysses", ulysses = 4, degree = 4),
        quote!(strategy = "hybrid", ulysses = 1, ring = 1, degree = 1),
        quote!(strategy = "hybrid", ulysses = 2, ring = 3),
        quote!(strategy = "hybrid", ulysses = 2, degree = 6),
        // What is all ranks of one is half of another's: the group decides.
        quote!(strategy = ["ulysses", "ring", "hybrid"], ulysses = 2, ring = 3, degree = 6),
        quote!(strategy = ["none", "ulysses", "ulysses_allgather"], ulysses = 2, allgather = 3, degree = 6),
        quote!(strategy = ["ulysses", "ring"], ulysses = 2, ring = 3),
        // Of a strategy of the user's nothing is known.
        quote!(strategy = my::Strategy, ulysses = 2, ring = 3, allgather = 5, degree = 7, heads = 11),
    ]);
}

#[test]
fn heads_divide_among_the_ranks_that_share_them() {
    each_is_one_error([
        (
            quote!(strategy = "ulysses", heads = 6, ulysses = 4),
            "strategy `ulysses` splits the heads, and 6 query heads do not divide among 4 ranks: degrees that do are \
             1, 2, 3 and 6; or use `split = \"uneven\"`",
        ),
        (
            quote!(strategy = "ulysses", heads = 6, degree = 4, split = "strict"),
            "strategy `ulysses` splits the heads, and 6 query heads do not divide among 4 ranks",
        ),
        (
            quote!(strategy = "hybrid", heads = 6, ulysses = 4),
            "strategy `hybrid` splits the heads, and 6 query heads do not divide among 4 ranks",
        ),
        (
            quote!(strategy = "hybrid", heads = 6, degree = 8, ring = 2),
            "strategy `hybrid` splits the heads among 8 / 2 ranks (`degree / ring`), and 6 query heads do not divide \
             among 4 ranks",
        ),
        (
            quote!(strategy = "ulysses_allgather", heads = 12, kv_heads = 4, degree = 6, allgather = 2),
            "strategy `ulysses_allgather` splits the heads among 6 / 2 ranks (`degree / allgather`), and 4 key/value \
             heads neither divide among 3 ranks nor divide 3",
        ),
        (
            quote!(strategy = ["ring", "ulysses_allgather"], heads = 6, ulysses = 4),
            "strategy `ulysses_allgather` splits the heads, and 6 query heads do not divide among 4 ranks",
        ),
        (
            quote!(strategy = "hybrid", heads = 6, kv_heads = 4, split = "uneven"),
            "4 key/value heads do not divide 6",
        ),
    ]);
    each_is_taken([
        quote!(strategy = "hybrid", heads = 6, ulysses = 2, ring = 5, degree = 10),
        quote!(strategy = "hybrid", heads = 6, degree = 10, ring = 5),
        // How many share the heads is not said.
        quote!(strategy = "hybrid", heads = 6, degree = 10),
        quote!(strategy = "hybrid", heads = 6, ring = 5),
        // Nobody shares them.
        quote!(strategy = ["none", "ring", "allgather_kv"], heads = 6, degree = 4),
        // They need not divide.
        quote!(strategy = "ulysses", heads = 6, degree = 4, split = "uneven"),
        quote!(strategy = "hybrid", heads = 6, degree = 8, ring = 2, split = "uneven"),
        quote!(strategy = ["ring", "ulysses_allgather"], heads = 6, ulysses = 4, split = "uneven"),
    ]);
}

#[test]
fn layouts_splits_and_flags_belong_to_some_strategies() {
    each_is_one_error([
        (quote!(strategy = "ring", layout = "zigzga"), "unknown layout `zigzga`: did you mean `zigzag`?"),
        (
            quote!(strategy = "ring", layout = "ulysses"),
            "unknown layout `ulysses`: expected `contiguous`, `zigzag` or `striped`",
        ),
        (
            quote!(strategy = "ring", layout = zigzag),
            "`layout` expects a name, such as `layout = \"zigzag\"`",
        ),
        (quote!(strategy = "ring", split = "equal"), "unknown split `equal`: expected `strict` or `uneven`"),
        (quote!(strategy = "ulysses", layout = "zigzag"), "strategy `ulysses` has no key `layout`"),
        (quote!(strategy = "none", split = "uneven"), "strategy `none` has no key `split`"),
        (quote!(strategy = "ulysses", fuse_qkv = 1), "`fuse_qkv` expects a bool, such as `fuse_qkv = false`"),
        (quote!(strategy = "allgather_kv", fuse_qkv = true), "strategy `allgather_kv` has no key `fuse_qkv`"),
    ]);
}

#[test]
fn what_is_sent_in_8_bits_needs_a_kernel_that_computes_in_them() {
    let cure = "write `backend = \"sage\"`, or use strategy `ulysses`";
    let absent = format!(
        "strategy `ulysses_quantised` needs a kernel that computes in 8 bits, and `backend` is not given: the default, \
         `flash`, does not: {cure}"
    );
    let other = format!(
        "backend `sdpa` does not compute in 8 bits, which strategy `ulysses_quantised` needs: {cure}"
    );
    each_is_one_error([
        (quote!(strategy = "ulysses_quantised"), &absent),
        (quote!(strategy = ["none", "ulysses_quantised"]), &absent),
        (quote!(strategy = "ulysses_quantised", backend = "sdpa"), &other),
        (quote!(strategy = ["ulysses_quantised", "ring"], backend = "sdpa"), &other),
        (quote!(strategy = "ulysses_quantised", backend = "sagee"), "unknown backend `sagee`"),
        (
            quote!(strategy = "ulysses_quantized", backend = "sage"),
            "unknown strategy `ulysses_quantized`: did",
        ),
        // As under `ulysses`, but that there is but one way to exchange.
        (
            quote!(strategy = "ulysses_quantised", backend = "sage", fuse_qkv = true),
            "strategy `ulysses_quantised` has no key `fuse_qkv`",
        ),
        (
            quote!(strategy = "ulysses_quantised", backend = "sage", layout = "zigzag"),
            "strategy `ulysses_quantised` has no key `layout`",
        ),
        (
            quote!(strategy = "ulysses_quantised", backend = "sage", ulysses = 2, degree = 4),
            "under strategy `ulysses_quantised`, `degree` is `ulysses`, and that is 2, not 4",
        ),
        (
            quote!(strategy = "ulysses_quantised", backend = "sage", heads = 6, degree = 4),
            "strategy `ulysses_quantised` splits the heads, and 6 query heads do not divide among 4 ranks",
        ),
    ]);
    each_is_taken([
        quote!(
            strategy = "ulysses_quantised",
            backend = "sage",
            ulysses = 2,
            split = "uneven",
            use_sync = true
        ),
        quote!(strategy = "ulysses_quantised", backend = my::Kernel),
        quote!(strategy = ["ulysses", "ulysses_quantised"], backend = "sage", fuse_qkv = false, degree = 4),
        quote!(strategy = my::Strategy, backend = "sdpa"),
    ]);
}

#[test]
fn masks_are_read_as_they_are_everywhere() {
    each_is_one_error([
        (quote!(strategy = "ring", mask = "casual"), "unknown mask `casual`: did you mean `causal`?"),
        (
            quote!(strategy = "ring", mask = "causal+segmets"),
            "unknown mask `segmets`: did you mean `segments`?",
        ),
        (quote!(strategy = "ring", mask = "windw(3, 4)"), "unknown mask `windw`: did you mean `window`?"),
        (
            quote!(strategy = "ring", mask = "lower"),
            "unknown mask `lower`: expected `none`, `causal`, `window`",
        ),
        (quote!(strategy = "ring", mask = "causal+"), "unknown mask ``: expected"),
        (quote!(strategy = "ring", mask = "causal+causal"), "mask `causal` is given twice"),
        (quote!(strategy = "ring", mask = "none+dense"), "mask `none` stands alone"),
        (
            quote!(strategy = "ring", mask = "causal+window(3)"),
            "masks `causal` and `window` cannot be joined",
        ),
        (quote!(strategy = "ring", mask = "window"), "`window` is no window"),
        (quote!(strategy = "ring", mask = "window(-1, 0)"), "`window(-1, 0)` is no window"),
        (quote!(strategy = "ring", mask = "dense(3)"), "`dense(3)`: only `window` has numbers"),
        (quote!(strategy = "ring", mask = causal), "`mask` expects a name, or several joined by `+`"),
    ]);
}
