//! Errors: collected, so that one compile shows them all, and worded alike.

use std::fmt::Display;

use proc_macro2::{Span, TokenStream};
use quote::ToTokens;

use crate::registry::Named;

/// Every error found so far. As tokens: a `compile_error!` for each.
#[derive(Default)]
pub(crate) struct Errors(Vec<syn::Error>);

impl Errors {
    /// Adds an error that stands on `tokens`.
    pub(crate) fn at(&mut self, tokens: impl ToTokens, message: impl Display) {
        self.push(syn::Error::new_spanned(tokens, message));
    }

    /// Adds an error about what is missing, which has no token to stand on but the attribute.
    pub(crate) fn at_call_site(&mut self, message: impl Display) {
        self.push(syn::Error::new(Span::call_site(), message));
    }

    /// Adds an error.
    pub(crate) fn push(&mut self, error: syn::Error) {
        self.0.push(error);
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl ToTokens for Errors {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        tokens.extend(self.0.iter().map(syn::Error::to_compile_error));
    }
}

/// What to say of a name that is not in its table: the entry that was probably meant, or the whole table.
pub(crate) fn unknown<T: Named>(found: &str, table: &[T]) -> String {
    let what = T::WHAT;
    match nearest(found, table) {
        Some(near) => did_you_mean(what, found, near.name()),
        None => format!("unknown {what} `{found}`: expected {}", one_of(table)),
    }
}

/// What to say of a name that is `near` but for a slip of the keyboard.
pub(crate) fn did_you_mean(what: &str, found: &str, near: &str) -> String {
    format!("unknown {what} `{found}`: did you mean `{near}`?")
}

/// The entry whose name is `found` but for a slip of the keyboard.
pub(crate) fn nearest<'a, T: Named>(found: &str, table: &'a [T]) -> Option<&'a T> {
    nearest_of(found, table.iter().map(|entry| (entry.name(), entry)))
}

/// Like [`nearest`], of names and what they stand for.
pub(crate) fn nearest_of<T>(found: &str, named: impl IntoIterator<Item = (&'static str, T)>) -> Option<T> {
    let found = found.to_lowercase();
    let (slips, name, entry) = named
        .into_iter()
        .map(|(name, entry)| (distance(&found, name), name, entry))
        .min_by_key(|(slips, ..)| *slips)?;
    (slips <= (name.len() / 3).max(1)).then_some(entry)
}

/// `` `a`, `b` or `c` ``, all of a table.
pub(crate) fn one_of<T: Named>(table: &[T]) -> String {
    join(table.iter().map(|entry| format!("`{}`", entry.name())), "or")
}

/// `a, b or c`.
pub(crate) fn join(words: impl IntoIterator<Item = String>, conjunction: &str) -> String {
    let words: Vec<String> = words.into_iter().collect();
    match words.split_last() {
        None => String::from("none"),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} {conjunction} {last}", rest.join(", ")),
    }
}

/// How many letters to insert, delete, replace or swap with their neighbour to make `b` of `a` (optimal
/// string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{KEYS, STRATEGIES};

    #[test]
    fn distance_counts_slips() {
        for (a, b, slips) in
            [("", "abc", 3), ("ring", "ring", 0), ("rnig", "ring", 1), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(a, b), slips, "{a} {b}");
            assert_eq!(distance(b, a), slips, "{b} {a}");
        }
    }

    #[test]
    fn near_names_are_suggested_and_far_ones_are_not() {
        let near = |found| nearest(found, &STRATEGIES).map(Named::name);
        assert_eq!(near("ulyses"), Some("ulysses"));
        assert_eq!(near("Ring"), Some("ring"));
        assert_eq!(near("rnig"), Some("ring"));
        assert_eq!(near("megatron"), None);
        assert_eq!(nearest("head_dims", &KEYS).map(Named::name), Some("head_dim"));
    }
}
