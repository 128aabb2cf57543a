//! Stage 1: tokens become arguments and a target. Syntax only; no key has a meaning here.

use proc_macro2::{Delimiter, Group, TokenStream};
use quote::ToTokens;
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream, Parser};
use syn::punctuated::Punctuated;
use syn::token::Bracket;
use syn::{Data, DeriveInput, Generics, Ident, Item, Lit, Path, Token, Visibility};

use crate::diag::Errors;

/// `key = value`.
pub(crate) struct Arg {
    /// Any identifier; `crate` is one too.
    pub(crate) key: Ident,
    /// What stands behind the `=`.
    pub(crate) value: Value,
}

/// What a key may be given.
pub(crate) enum Value {
    /// `24`, `0.5`, `true`, `"ring"`.
    Literal(Lit),
    /// `-1`. No key takes one; it is read to be refused with a better message than syntax has.
    Negative(Token![-], Lit),
    /// `my::Strategy`.
    Path(Path),
    /// `["none", "ring"]`: the brackets as written, and what is in them.
    List(Group, Vec<Value>),
}

/// The item under the attribute: what generated code must repeat of it.
pub(crate) struct Target {
    /// Its visibility.
    pub(crate) vis: Visibility,
    /// Its name.
    pub(crate) ident: Ident,
    /// Its parameters and where clause.
    pub(crate) generics: Generics,
}

/// Reads `key = value, ..`. An argument that cannot be read is reported and passed over.
pub(crate) fn args(tokens: TokenStream, errors: &mut Errors) -> Vec<Arg> {
    let mut args = Vec::new();
    let parser = |input: ParseStream<'_>| {
        while !input.is_empty() {
            match input.parse::<Arg>() {
                Ok(arg) if input.is_empty() || input.peek(Token![,]) => args.push(arg),
                Ok(arg) => {
                    errors.push(input.error(format_args!("expected `,` after the value of `{}`", arg.key)))
                }
                Err(error) => errors.push(error),
            }
            while !input.is_empty() && input.parse::<Option<Token![,]>>()?.is_none() {
                input.parse::<proc_macro2::TokenTree>()?;
            }
        }
        Ok(())
    };
    if let Err(error) = parser.parse2(tokens) {
        errors.push(error);
    }
    args
}

/// Reads the item. Anything but a struct is reported; enums and unions, which have a name and generics like
/// one, are returned nevertheless.
pub(crate) fn target(tokens: TokenStream, errors: &mut Errors) -> Option<Target> {
    let Ok(DeriveInput { vis, ident, generics, data, .. }) = syn::parse2(tokens.clone()) else {
        let (place, found) = match syn::parse2(tokens) {
            Ok(Item::Fn(item)) => (item.sig.fn_token.into_token_stream(), "a function"),
            Ok(Item::Impl(item)) => (item.impl_token.into_token_stream(), "an impl block"),
            Ok(Item::Trait(item)) => (item.trait_token.into_token_stream(), "a trait"),
            Ok(Item::Mod(item)) => (item.mod_token.into_token_stream(), "a module"),
            Ok(Item::Type(item)) => (item.type_token.into_token_stream(), "a type alias"),
            Ok(item) => (item.into_token_stream(), "another item"),
            Err(error) => {
                errors.push(syn::Error::new(
                    error.span(),
                    format_args!("{BELONGS}, which cannot be read here: {error}"),
                ));
                return None;
            }
        };
        errors.at(place, format_args!("{BELONGS}, found {found}"));
        return None;
    };
    match data {
        Data::Struct(_) => {}
        Data::Enum(data) => errors.at(data.enum_token, format_args!("{BELONGS}, found an enum")),
        Data::Union(data) => errors.at(data.union_token, format_args!("{BELONGS}, found a union")),
    }
    Some(Target { vis, ident, generics })
}

const BELONGS: &str = "`#[parallel_attention]` belongs on a struct";

impl Parse for Arg {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        if !input.peek(Ident::peek_any) {
            return Err(input.error("expected `key = value`, such as `strategy = \"ulysses\"`"));
        }
        let key = input.call(Ident::parse_any)?;
        if !input.peek(Token![=]) {
            return Err(syn::Error::new(key.span(), format_args!("expected `=` and a value after `{key}`")));
        }
        let equals: Token![=] = input.parse()?;
        if input.is_empty() || input.peek(Token![,]) {
            return Err(syn::Error::new(equals.span, format_args!("expected a value for `{key}`")));
        }
        Ok(Self { key, value: input.parse()? })
    }
}

impl Parse for Value {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        if input.peek(Bracket) {
            // Not `bracketed!`: it would report what is left unread in the brackets a second time.
            let brackets: Group = input.parse()?;
            debug_assert_eq!(brackets.delimiter(), Delimiter::Bracket);
            let items = Punctuated::<Self, Token![,]>::parse_terminated.parse2(brackets.stream())?;
            Ok(Self::List(brackets, items.into_iter().collect()))
        } else if input.peek(Token![-]) {
            Ok(Self::Negative(input.parse()?, input.parse()?))
        } else if input.peek(Lit) {
            input.parse().map(Self::Literal)
        } else if input.peek(Ident::peek_any) || input.peek(Token![::]) {
            input.parse().map(Self::Path)
        } else {
            Err(input.error("expected a value: a literal such as `24` or `\"ring\"`, a path, or a list"))
        }
    }
}

impl Value {
    /// What this is, in words, for "found ..".
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Literal(Lit::Str(_)) => format!("the string `{}`", self.to_token_stream()),
            Self::Literal(Lit::Int(_)) => format!("the integer `{}`", self.to_token_stream()),
            Self::Literal(Lit::Float(_)) => format!("the float `{}`", self.to_token_stream()),
            Self::Literal(_) => format!("`{}`", self.to_token_stream()),
            Self::Negative(_, number) => format!("`-{}`", number.to_token_stream()),
            Self::Path(path) => format!("the path `{}`", path_text(path)),
            Self::List(_, items) if items.is_empty() => String::from("an empty list"),
            Self::List(..) => String::from("a list"),
        }
    }
}

/// A path as it is written, without the blanks that tokens are printed with.
fn path_text(path: &Path) -> String {
    path.to_token_stream().to_string().replace(' ', "")
}

impl ToTokens for Value {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        match self {
            Self::Literal(literal) => literal.to_tokens(tokens),
            Self::Negative(minus, number) => {
                minus.to_tokens(tokens);
                number.to_tokens(tokens);
            }
            Self::Path(path) => path.to_tokens(tokens),
            Self::List(brackets, _) => brackets.to_tokens(tokens),
        }
    }
}
