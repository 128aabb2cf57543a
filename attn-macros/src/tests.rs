//! What the attribute prints, as snapshots, and what it refuses that no test of the whole crate can show.

mod meaning;

use proc_macro2::TokenStream;
use quote::quote;

use crate::registry::{BACKENDS, Backend};

/// The attribute's output as source text, with every backend on.
fn expand(args: TokenStream, item: TokenStream) -> String {
    let tokens = crate::attribute(args, item, &all_enabled());
    prettyplease::unparse(&syn::parse2(tokens).expect("the attribute prints items"))
}

/// Every backend, with its feature on whichever features this crate is tested with.
fn all_enabled() -> [Backend; BACKENDS.len()] {
    BACKENDS.map(|backend| Backend { enabled: true, ..backend })
}

/// The messages of the errors in the attribute's output, in order.
fn errors(args: TokenStream, item: TokenStream, backends: &[Backend]) -> Vec<String> {
    let file: syn::File =
        syn::parse2(crate::attribute(args, item, backends)).expect("the attribute prints items");
    let macros = file.items.into_iter().filter_map(|item| match item {
        syn::Item::Macro(item) if item.mac.path.segments.last()?.ident == "compile_error" => Some(item.mac),
        _ => None,
    });
    macros.map(|mac| mac.parse_body::<syn::LitStr>().expect("a message").value()).collect()
}

/// The messages for a struct, with every backend on.
fn refusals(args: &TokenStream) -> Vec<String> {
    let item = quote!(
        struct A;
    );
    errors(args.clone(), item, &all_enabled())
}

/// Checks that each attribute has one error, which begins as said.
#[track_caller]
fn each_is_one_error<const N: usize>(cases: [(TokenStream, &str); N]) {
    for (args, expected) in cases {
        let found = refusals(&args);
        assert!(matches!(&found[..], [one] if one.starts_with(expected)), "{args}: {found:#?}");
    }
}

/// Checks that each attribute has no error.
#[track_caller]
fn each_is_taken<const N: usize>(cases: [TokenStream; N]) {
    for args in cases {
        let found = refusals(&args);
        assert!(found.is_empty(), "{args}: {found:#?}");
    }
}

#[test]
fn one_strategy_is_one_pipeline() {
    insta::assert_snapshot!(expand(
        quote!(strategy = "ulysses"),
        quote! {
            /// Documentation stays.
            #[derive(Clone)]
            pub(crate) struct Attention {
                dropout: f32,
            }
        },
    ));
}

#[test]
fn every_key_becomes_a_part_of_the_spec() {
    insta::assert_snapshot!(expand(
        quote! {
            strategy = "hybrid", scatter = 1, gather = 2, heads = 24, kv_heads = 8, head_dim = 128, degree = 6,
            ulysses = 2, ring = 3, layout = "zigzag", split = "strict", scale = 0.125, use_sync = true,
            fuse_qkv = false, mask = "window(512, 1)+segments", backend = "sdpa"
        },
        quote!(
            struct Attention;
        ),
    ));
}

#[test]
fn a_list_is_an_enum_of_pipelines() {
    insta::assert_snapshot!(expand(
        quote!(strategy = ["none", "ulysses", "ring"], heads = 8, degree = 4),
        quote!(
            pub struct Attention(f32);
        ),
    ));
}

#[test]
fn generics_pass_through() {
    insta::assert_snapshot!(expand(
        quote!(strategy = "none", backend = my::Kernel<N>),
        quote! {
            struct Attention<'a, W: Clone + 'a = f32, const N: usize = 4>
            where
                W: Send
            {
                weights: &'a [W; N],
            }
        },
    ));
}

#[test]
fn an_own_strategy_is_given_its_arguments() {
    insta::assert_snapshot!(expand(
        quote!(
            strategy = crate::my::Strategy,
            gather = 0,
            degree = 3,
            allgather = 5,
            heads = 8,
            split = "uneven"
        ),
        quote!(
            struct Attention(f32);
        ),
    ));
}

#[test]
fn another_name_of_the_crate_is_used_everywhere() {
    for name in [quote!("crate::other::attn"), quote!(crate::other::attn)] {
        let text = expand(
            quote!(strategy = ["none"], crate = #name),
            quote!(
                struct Attention;
            ),
        );
        assert_eq!(text.matches("__private").count(), text.matches("crate::other::attn::__private").count());
    }
}

#[test]
fn an_error_leaves_the_item_and_a_stub() {
    insta::assert_snapshot!(expand(
        quote!(strategy = "none", haeds = 8, crate = my_attn),
        quote!(
            struct Attention<const N: usize>;
        ),
    ));
}

#[test]
fn a_backend_whose_feature_is_off_is_refused() {
    let only_sdpa = BACKENDS.map(|backend| Backend { enabled: backend.name == "sdpa", ..backend });
    let found = errors(
        quote!(strategy = "none", backend = "flash"),
        quote!(
            struct A;
        ),
        &only_sdpa,
    );
    assert_eq!(
        found,
        ["backend `flash` needs the cargo feature `flash` of `attn`, which is off: turn it on, or write \
          `backend = \"sdpa\"`"]
    );
    assert!(
        errors(
            quote!(strategy = "none", backend = "sdpa"),
            quote!(
                struct A;
            ),
            &only_sdpa
        )
        .is_empty()
    );
}

#[test]
fn a_default_backend_whose_feature_is_off_is_refused() {
    let none = BACKENDS.map(|backend| Backend { enabled: false, ..backend });
    let found = errors(
        quote!(strategy = "none"),
        quote!(
            struct A;
        ),
        &none,
    );
    assert_eq!(
        found,
        [
            "`backend` is not given, and the default backend `flash` needs the cargo feature `flash` of `attn`, \
          which is off: turn it on"
        ]
    );
    assert!(
        errors(
            quote!(strategy = "none", backend = my::Kernel),
            quote!(
                struct A;
            ),
            &none
        )
        .is_empty()
    );
}

#[test]
fn one_mistake_is_one_error() {
    each_is_one_error([
        // A misspelt key is not also a missing one.
        (quote!(stratgy = "ring"), "unknown key `stratgy`"),
        (quote!(strategy = "ring", scater = 1, gather = 2), "unknown key `scater`"),
        (quote!(strategy = "ring", haeds = 8, heads = 8), "unknown key `haeds`"),
        // A value that cannot be used is not also one that does not fit the others.
        (quote!(strategy = "ring", scatter = "1", gather = 2), "`scatter` expects"),
        (quote!(strategy = "ulysses", heads = 8, kv_heads = 0, degree = 3), "`kv_heads` expects"),
        (
            quote!(strategy = "ulysses", heads = 8, kv_heads = 3, degree = 4),
            "3 key/value heads do not divide",
        ),
        (quote!(strategy = "ulysses", heads = 7, heads = 8, degree = 4), "key `heads` is given twice"),
        (quote!(strategy = "ulises", degree = 4), "unknown strategy `ulises`"),
        // What cannot be read is not also missing.
        (quote!(strategy), "expected `=` and a value after `strategy`"),
        (quote!(strategy =), "expected a value for `strategy`"),
        (quote!(strategy = "ring" scatter = 2), "expected `,` after the value of `strategy`"),
        (quote!("ring"), "expected `key = value`"),
        (quote!(strategy = ["ring" "none"]), "expected `,`"),
        // Degrees that disagree are not also ones that the heads do not divide among.
        (
            quote!(strategy = "hybrid", heads = 8, ulysses = 3, ring = 2, degree = 4),
            "under strategy `hybrid`",
        ),
        (quote!(strategy = "ulysses", heads = 8, ulysses = 3, degree = 4), "under strategy `ulysses`"),
        (quote!(strategy = "hybrid", heads = 8, ulysses = 0, ring = 3, degree = 4), "`ulysses` expects"),
        (quote!(strategy = "hybrid", heads = 8, ulises = 3, ring = 3, degree = 4), "unknown key `ulises`"),
        (quote!(strategy = "hybrid", heads = 8, ulysses = 3, split = "unevn"), "unknown split `unevn`"),
        (
            quote!(strategy = ["ulysses", "hybrid"], heads = 8, degree = 3, ring = 1),
            "strategy `ulysses` splits",
        ),
        (
            quote!(strategy = "ring", ulysses = 3, degree = 4, heads = 8),
            "strategy `ring` has no key `ulysses`",
        ),
    ]);
}

#[test]
fn a_fixed_mask_is_spelt_out() {
    for (text, span, [key_lengths, segments, dense]) in [
        ("none", "Full", [false; 3]),
        ("causal", "Causal", [false; 3]),
        ("window(512)", "Window{left:512usize,right:0usize}", [false; 3]),
        ("window:3,4 + dense", "Window{left:3usize,right:4usize}", [false, false, true]),
        ("padding", "Full", [true, false, false]),
        ("segments+causal", "Causal", [false, true, false]),
        ("segments+padding+dense", "Full", [true, true, true]),
    ] {
        let text = expand(
            quote!(strategy = "none", mask = #text),
            quote!(
                struct A;
            ),
        );
        let text: String = text.split_whitespace().collect::<String>().replace(",}", "}");
        let mask = format!(
            ".mask(::attn::__private::Mask{{span:::attn::__private::Span::{span},key_lengths:{key_lengths},\
             segments:{segments},dense:{dense}}})"
        );
        assert!(text.contains(&mask), "{text}");
    }
}

#[test]
fn every_mistake_is_an_error() {
    for (args, expected) in [
        (quote!(stratgy = "ring", heads = 0, mask = 1), 3),
        (quote!(strategy = ["rng", "rng", none], backend = "x"), 4),
        (quote!(strategy = "none", degree = 0, use_sync = 1), 4),
        (quote!(strategy "ring", heads, scatter = ), 3),
    ] {
        let found = refusals(&args);
        assert_eq!(found.len(), expected, "{args}: {found:#?}");
    }
    assert_eq!(
        errors(
            quote!(strategy = "rnig"),
            quote!(
                enum A {}
            ),
            &all_enabled()
        )
        .len(),
        2
    );
}

#[test]
fn numbers_are_range_checked() {
    for refused in [
        quote!(heads = 0),
        quote!(heads = -1),
        quote!(heads = 2.0),
        quote!(heads = 65536),
        quote!(heads = 99999999999999999999999),
        quote!(heads = 2u8),
        quote!(scale = 0),
        quote!(scale = -0.5),
        quote!(scale = 1e60),
        quote!(scale = 1e-60),
        quote!(scale = 0.5f64),
        quote!(scale = "0.5"),
    ] {
        let found = refusals(&quote!(strategy = "none", #refused));
        assert!(matches!(&found[..], [one] if one.contains("expects")), "{refused}: {found:#?}");
    }
    for taken in [quote!(heads = 2usize), quote!(heads = 0x10), quote!(scale = 2), quote!(scale = 0.5f32)] {
        let found = refusals(&quote!(strategy = "none", #taken));
        assert!(found.is_empty(), "{taken}: {found:#?}");
    }
}
