//! Stage 4: a plan becomes tokens. Cannot fail.

use attn_plan::{RingLayout, Split, TensorLayout};
use proc_macro2::{Ident, Literal, Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{GenericParam, Generics, Path, TypeParam};

use crate::plan::{FixedMask, Kernel, Offer, Place, Plan, Spec, Strategies};

/// A type, and the token of the attribute that asked for it: where the compiler is to point if it does not
/// fit.
struct Part {
    ty: TokenStream,
    span: Span,
}

/// The pipeline of a struct.
pub(crate) fn pipeline(place: &Place, plan: &Plan) -> TokenStream {
    let kernel = kernel(place, &plan.kernel);
    let (pipeline, strategies, choice) = match &plan.strategies {
        Strategies::One(offer) => {
            let strategy = builtin(place, offer, plan.layout);
            (single(place, &strategy, &kernel), vec![strategy], None)
        }
        Strategies::Own(path) => {
            let strategy = own(path, plan.layout);
            (single(place, &strategy, &kernel), vec![strategy], None)
        }
        Strategies::Several(offers) => {
            let strategies: Vec<Part> =
                offers.iter().map(|offer| builtin(place, offer, plan.layout)).collect();
            let Part { ty: kernel, span } = &kernel;
            let name = format_ident!("{}Pipeline", place.target.ident);
            let choice = choice(place, &name, offers, &strategies, plan.layout);
            (quote_spanned!(*span=> #name<#kernel, __C, __T>), strategies, Some(choice))
        }
    };
    let mut bounds: Vec<_> = strategies.iter().map(|strategy| bound(place, strategy, &kernel.ty)).collect();
    if matches!(plan.kernel, Kernel::Own(_)) && place.target.generics.type_params().next().is_some() {
        // A kernel that is a parameter of the struct's, or has one, is not known to have a default otherwise.
        let Part { ty, span } = &kernel;
        bounds.push(quote_spanned!(*span=> #ty: ::core::default::Default));
    }
    let attention = attention(place, &bounds, &pipeline, &spec(place, &plan.spec));
    quote!(#choice #attention)
}

/// What stands in for the pipeline of a struct whose attribute has errors: it type-checks, so that they stay
/// the only ones.
pub(crate) fn stub(place: &Place) -> TokenStream {
    let private = private(place, Span::call_site());
    attention(place, &[], &quote!(#private::Unbuilt), &quote!(#private::AttentionSpec::new()))
}

/// Where the names used here are. `span` is for `::attn`; a path of the user's keeps its own.
fn private(place: &Place, span: Span) -> TokenStream {
    match &place.base {
        Some(base) => quote_spanned!(span=> #base::__private),
        None => quote_spanned!(span=> ::attn::__private),
    }
}

/// The type of a strategy of this crate.
fn builtin(place: &Place, offer: &Offer, layout: TensorLayout) -> Part {
    let span = offer.span;
    let (private, (scatter, gather)) = (private(place, span), layout.axes());
    let type_name = Ident::new(offer.strategy.type_name, span);
    Part { ty: quote_spanned!(span=> #private::#type_name<__C, #scatter, #gather>), span }
}

/// The type of a strategy of the user's.
fn own(path: &Path, layout: TensorLayout) -> Part {
    let span = path.segments.last().map_or_else(Span::call_site, |segment| segment.ident.span());
    let (scatter, gather) = layout.axes();
    Part { ty: quote_spanned!(span=> #path<__C, #scatter, #gather>), span }
}

/// The kernel's type.
fn kernel(place: &Place, kernel: &Kernel) -> Part {
    match kernel {
        Kernel::Builtin(type_name, span) => {
            let (private, type_name) = (private(place, *span), Ident::new(type_name, *span));
            Part { ty: quote_spanned!(*span=> #private::#type_name), span: *span }
        }
        Kernel::Own(path) => Part { ty: quote!(#path), span: path.span() },
    }
}

/// The pipeline of one strategy.
fn single(place: &Place, strategy: &Part, kernel: &Part) -> TokenStream {
    let (private, strategy) = (private(place, kernel.span), &strategy.ty);
    let Part { ty: kernel, span } = kernel;
    quote_spanned!(*span=> #private::Pipeline<#strategy, #kernel, __C, __T>)
}

/// That a strategy takes a kernel.
fn bound(place: &Place, strategy: &Part, kernel: &TokenStream) -> TokenStream {
    let Part { ty, span } = strategy;
    let private = private(place, *span);
    quote_spanned!(*span=> #ty: #private::ParallelAttentionStrategy<#kernel, __C, __T>)
}

/// `impl ParallelAttention<C, T> for` the struct.
fn attention(
    place: &Place,
    bounds: &[TokenStream],
    pipeline: &TokenStream,
    spec: &TokenStream,
) -> TokenStream {
    let private = private(place, Span::call_site());
    let target = &place.target;
    let ident = &target.ident;
    let generics = with_params(&target.generics);
    let (impl_generics, _, _) = generics.split_for_impl();
    let (_, args, _) = target.generics.split_for_impl();
    let predicates = target.generics.where_clause.iter().flat_map(|clause| &clause.predicates);
    quote! {
        #[automatically_derived]
        impl #impl_generics #private::ParallelAttention<__C, __T> for #ident #args
        where
            #(#predicates,)*
            __C: #private::Communicator,
            __T: #private::Element,
            #(#bounds,)*
        {
            type Pipeline = #pipeline;
            const SPEC: #private::AttentionSpec = #spec;
        }
    }
}

/// The struct's parameters, and after them the communicator and the element type.
fn with_params(generics: &Generics) -> Generics {
    let mut generics = generics.clone();
    for name in ["__C", "__T"] {
        let param = TypeParam::from(Ident::new(name, Span::call_site()));
        generics.params.push(GenericParam::Type(param));
    }
    generics
}

/// What is fixed of each call, as a constant.
fn spec(place: &Place, spec: &Spec) -> TokenStream {
    let private = private(place, Span::call_site());
    let Spec {
        heads,
        kv_heads,
        head_dim,
        degree,
        ulysses,
        ring,
        allgather,
        layout,
        split,
        scale,
        mask,
        use_sync,
        fuse_qkv,
    } = spec;
    let counts = [
        ("heads", heads),
        ("kv_heads", kv_heads),
        ("head_dim", head_dim),
        ("degree", degree),
        ("ulysses", ulysses),
        ("ring", ring),
        ("allgather", allgather),
    ];
    let counts = counts.into_iter().filter_map(|(name, count)| {
        let (name, count) = (Ident::new(name, Span::call_site()), usize::from((*count)?.get()));
        Some(quote!(.#name(#count)))
    });
    let layout = layout.map(|layout| match layout {
        RingLayout::Contiguous => quote!(.layout(#private::RingLayout::Contiguous)),
        RingLayout::Zigzag => quote!(.layout(#private::RingLayout::Zigzag)),
        RingLayout::Striped => quote!(.layout(#private::RingLayout::Striped)),
    });
    let split = split.map(|split| match split {
        Split::Strict => quote!(.split(#private::Split::Strict)),
        Split::Uneven => quote!(.split(#private::Split::Uneven)),
    });
    let scale = scale.map(|scale| Literal::f32_suffixed(scale.get())).map(|scale| quote!(.scale(#scale)));
    let use_sync = use_sync.map(|flag| quote!(.use_sync(#flag)));
    let fuse_qkv = fuse_qkv.map(|flag| quote!(.fuse_qkv(#flag)));
    let spec = quote!(#private::AttentionSpec::new() #(#counts)* #layout #split #scale #use_sync #fuse_qkv);
    match mask {
        Some(mask) => with_mask(place, &spec, mask),
        None => spec,
    }
}

/// A specification that also fixes a mask, and checks that the kernel takes it.
fn with_mask(place: &Place, spec: &TokenStream, mask: &FixedMask) -> TokenStream {
    let FixedMask { mask: attn_plan::Mask { span: by_position, key_lengths, segments, dense }, span } = mask;
    let private = private(place, *span);
    let by_position = match by_position {
        attn_plan::Span::Full => quote!(Full),
        attn_plan::Span::Causal => quote!(Causal),
        attn_plan::Span::Window { left, right } => quote!(Window { left: #left, right: #right }),
    };
    let spec = quote! {
        #spec.mask(#private::Mask {
            span: #private::Span::#by_position,
            key_lengths: #key_lengths,
            segments: #segments,
            dense: #dense,
        })
    };
    // A call by its path, so that all of it stands on the mask.
    quote_spanned! {*span=>
        #private::AttentionSpec::checked(
            #spec,
            <Self::Pipeline as #private::AttentionPipeline<__C, __T>>::MASKS,
        )
    }
}

/// The enum that a list of strategies becomes: a pipeline for each, opened by number.
fn choice(
    place: &Place,
    name: &Ident,
    offers: &[Offer],
    strategies: &[Part],
    layout: TensorLayout,
) -> TokenStream {
    let private = private(place, Span::call_site());
    let (scatter, gather) = layout.axes();
    let vis = &place.target.vis;
    let types: Vec<_> = strategies.iter().map(|strategy| &strategy.ty).collect();
    // One kernel serves all of them, so each takes what the first takes.
    let first = types.first();
    let bounds = strategies.iter().map(|strategy| bound(place, strategy, &quote!(__K)));
    let names: Vec<_> = offers.iter().map(|offer| offer.strategy.name).collect();
    let variants: Vec<_> =
        offers.iter().map(|offer| Ident::new(offer.strategy.variant, Span::call_site())).collect();
    let numbers = 0..offers.len();
    let enum_doc =
        format!(" A pipeline of [`{}`]: the one that was chosen when it was opened.", place.target.ident);
    let docs = names.iter().map(|name| format!(" `strategy = \"{name}\"`."));
    let getters = [
        ("name", quote!(&'static str)),
        ("communicator", quote!(&__C)),
        ("sharding", quote!(#private::Sharding)),
        ("replicated_keys", quote!(bool)),
        ("traffic", quote!(#private::Traffic)),
        ("work", quote!(#private::Work)),
    ];
    let getters = getters.map(|(name, ty)| {
        let name = Ident::new(name, Span::call_site());
        quote! {
            fn #name(&self) -> #ty {
                match self {
                    #(Self::#variants(pipeline) => #private::AttentionPipeline::#name(pipeline),)*
                }
            }
        }
    });
    let device = quote!(<__C as #private::Communicator>::Device);
    quote! {
        #[doc = #enum_doc]
        #vis enum #name<__K, __C, __T> {
            #(
                #[doc = #docs]
                #variants(#private::Pipeline<#types, __K, __C, __T>),
            )*
        }

        #[automatically_derived]
        impl<__K, __C, __T> #private::AttentionPipeline<__C, __T> for #name<__K, __C, __T>
        where
            __K: ::core::default::Default,
            __C: #private::Communicator,
            __T: #private::Element,
            #(#bounds,)*
        {
            const OFFERED: &'static [&'static str] = &[#(#names),*];
            const LAYOUT: #private::TensorLayout = #private::TensorLayout::of::<#scatter, #gather>();
            const MASKS: #private::MaskKinds =
                <#private::Pipeline<#first, __K, __C, __T> as #private::AttentionPipeline<__C, __T>>::MASKS;

            fn open(choice: usize, group: __C, spec: &#private::AttentionSpec) -> #private::Result<Self> {
                match choice {
                    #(
                        #numbers => #private::AttentionPipeline::open(0usize, group, spec).map(Self::#variants),
                    )*
                    _ => ::core::result::Result::Err(#private::Error::unknown_choice(choice, Self::OFFERED)),
                }
            }

            #(#getters)*

            #[inline]
            fn run<'__a>(
                &mut self,
                scope: #private::Scope<'__a, #device>,
                request: #private::AttentionRequest<'__a, __T, #device>,
                clock: &mut #private::Clock,
            ) -> #private::Result<()> {
                match self {
                    #(
                        Self::#variants(pipeline) => {
                            #private::AttentionPipeline::run(pipeline, scope, request, clock)
                        }
                    )*
                }
            }
        }
    }
}
