//! Stage 4: a plan becomes tokens. Cannot fail.

use std::num::NonZeroU16;

use attn_plan::TensorLayout;
use proc_macro2::{Ident, Literal, Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{GenericParam, Generics, Path, TypeParam};

use crate::plan::{Kernel, Offer, Place, Plan, Spec, Strategies};

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
    let count = |count: &Option<NonZeroU16>| count.map(|count| usize::from(count.get()));
    let Spec { heads, kv_heads, head_dim, degree, scale, mask, use_sync } = spec;
    let heads = count(heads).map(|n| quote!(.heads(#n)));
    let kv_heads = count(kv_heads).map(|n| quote!(.kv_heads(#n)));
    let head_dim = count(head_dim).map(|n| quote!(.head_dim(#n)));
    let degree = count(degree).map(|n| quote!(.degree(#n)));
    let scale = scale.map(|scale| Literal::f32_suffixed(scale.get())).map(|scale| quote!(.scale(#scale)));
    let mask = mask.map(|mask| {
        let variant = Ident::new(mask.variant, Span::call_site());
        quote!(.mask(#private::Mask::#variant))
    });
    let use_sync = use_sync.map(|flag| quote!(.use_sync(#flag)));
    quote!(#private::AttentionSpec::new() #heads #kv_heads #head_dim #degree #scale #mask #use_sync)
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
    let bounds = strategies.iter().map(|strategy| bound(place, strategy, &quote!(__K)));
    let names: Vec<_> = offers.iter().map(|offer| offer.strategy.name).collect();
    let variants: Vec<_> =
        offers.iter().map(|offer| Ident::new(offer.strategy.variant, Span::call_site())).collect();
    let numbers = 0..offers.len();
    let enum_doc =
        format!(" A pipeline of [`{}`]: the one that was chosen when it was opened.", place.target.ident);
    let docs = names.iter().map(|name| format!(" `strategy = \"{name}\"`."));
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

            fn open(choice: usize, group: __C, spec: &#private::AttentionSpec) -> #private::Result<Self> {
                match choice {
                    #(
                        #numbers => #private::AttentionPipeline::open(0usize, group, spec).map(Self::#variants),
                    )*
                    _ => ::core::result::Result::Err(#private::Error::unknown_choice(choice, Self::OFFERED)),
                }
            }

            fn name(&self) -> &'static str {
                match self {
                    #(Self::#variants(pipeline) => #private::AttentionPipeline::name(pipeline),)*
                }
            }

            fn communicator(&self) -> &__C {
                match self {
                    #(Self::#variants(pipeline) => #private::AttentionPipeline::communicator(pipeline),)*
                }
            }

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
