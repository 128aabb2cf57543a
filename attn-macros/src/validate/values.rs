//! What single values mean.

use std::num::NonZeroU16;

use syn::{Lit, LitStr, Path};

use crate::parse::Value;
use crate::plan::Scale;

/// An axis or a count: an integer without suffix, or with the one that it has as a parameter.
pub(super) fn integer(value: &Value) -> Option<usize> {
    let Value::Literal(Lit::Int(number)) = value else { return None };
    matches!(number.suffix(), "" | "usize").then(|| number.base10_parse().ok())?
}

/// A count: at least 1, and small enough that its divisors are listed in no time.
pub(super) fn count(value: &Value) -> Option<NonZeroU16> {
    integer(value).and_then(|count| u16::try_from(count).ok()).and_then(NonZeroU16::new)
}

/// A softmax scale, written as an integer or a float.
pub(super) fn scale(value: &Value) -> Option<Scale> {
    let (suffix, number) = match value {
        Value::Literal(Lit::Int(number)) => (number.suffix(), number.base10_parse()),
        Value::Literal(Lit::Float(number)) => (number.suffix(), number.base10_parse()),
        _ => return None,
    };
    if matches!(suffix, "" | "f32") { number.ok().and_then(Scale::new) } else { None }
}

/// `true` or `false`.
pub(super) fn flag(value: &Value) -> Option<bool> {
    match value {
        Value::Literal(Lit::Bool(flag)) => Some(flag.value),
        _ => None,
    }
}

/// A string.
pub(super) fn string(value: &Value) -> Option<&LitStr> {
    match value {
        Value::Literal(Lit::Str(string)) => Some(string),
        _ => None,
    }
}

/// A path without arguments, in quotes or without.
pub(super) fn path(value: &Value) -> Option<Path> {
    match value {
        Value::Literal(Lit::Str(string)) => string.parse_with(Path::parse_mod_style).ok(),
        Value::Path(path) => path.segments.iter().all(|s| s.arguments.is_none()).then(|| path.clone()),
        _ => None,
    }
}
