//! Degrees: whether they agree with each other, and with the heads.

use std::num::NonZeroU16;

use attn_plan::Split;

use super::settings::{Setting, Settings};
use super::values::count;
use crate::diag;
use crate::parse::Arg;
use crate::plan::Offer;
use crate::registry::{Key, Strategy};

/// A count of ranks or heads, where one is given.
pub(super) type Count<'a> = Setting<'a, NonZeroU16>;

/// How many ranks there are.
pub(super) struct Degrees<'a> {
    /// In all: `degree`.
    pub(super) whole: Count<'a>,
    /// By the keys of which a strategy's `degree` is the product.
    parts: [(Key, Count<'a>); 3],
}

impl<'a> Degrees<'a> {
    /// What is given for one of the parts.
    pub(super) fn part(&self, key: Key) -> Count<'a> {
        self.parts.iter().find(|(part, _)| *part == key).map_or(Setting::Absent, |(_, count)| *count)
    }

    /// The parts of a strategy's `degree` that are given. `None` if there is none, or one that cannot be used.
    fn given(&self, strategy: &Strategy) -> Option<Vec<(Key, usize)>> {
        let mut given = Vec::new();
        for &key in strategy.degrees {
            match self.part(key) {
                Setting::Absent => {}
                Setting::Faulty => return None,
                Setting::Given(count, _) => given.push((key, number(count))),
            }
        }
        (!given.is_empty()).then_some(given)
    }

    /// How many ranks share the heads under a strategy, if that follows from what is given: the number, the argument
    /// that says it, and how, if it is not the number that stands there.
    fn ulysses(&self, strategy: &Strategy) -> Option<(usize, &'a Arg, String)> {
        match (strategy.degrees, self.part(Key::Ulysses), self.whole) {
            ([Key::Ulysses, ..], Setting::Given(ulysses, arg), _)
            | ([Key::Ulysses], Setting::Absent, Setting::Given(ulysses, arg)) => {
                Some((number(ulysses), arg, String::new()))
            }
            ([Key::Ulysses, outer], Setting::Absent, Setting::Given(whole, arg)) => {
                let (whole, name) = (number(whole), outer.row().name);
                let outer = number(self.part(*outer).value()?);
                let derivation = format!(" among {whole} / {outer} ranks (`degree / {name}`)");
                whole.is_multiple_of(outer).then(|| (whole / outer, arg, derivation))
            }
            _ => None,
        }
    }
}

impl<'a> Settings<'a, '_> {
    /// `degree`, `ulysses`, `ring` and `allgather`.
    pub(super) fn degrees(&mut self) -> Degrees<'a> {
        Degrees {
            whole: self.read(Key::Degree, count),
            parts: [Key::Ulysses, Key::Ring, Key::AllGather].map(|key| (key, self.read(key, count))),
        }
    }

    /// Reports a `degree` that is not what its parts make of it. Returns whether there was none.
    ///
    /// In a list, a strategy that shares such a part with another one is passed over: `ulysses = 2` is all ranks of
    /// one and half the ranks of the other, and the group decides which of them can be opened.
    pub(super) fn check_product(&mut self, offers: &[Offer], degrees: &Degrees<'a>) -> bool {
        let Setting::Given(whole, arg) = degrees.whole else { return true };
        let has = |offer: &&Offer, key| offer.strategy.degrees.contains(&key);
        for Offer { strategy, .. } in offers {
            let Some(given) = degrees.given(strategy) else { continue };
            if given.iter().any(|&(key, _)| offers.iter().filter(|offer| has(offer, key)).count() > 1) {
                continue;
            }
            if let Some(why) = disagreement(strategy, &given, number(whole)) {
                let parts = strategy.degrees.iter().map(|key| format!("`{}`", key.row().name));
                let (name, parts) = (strategy.name, parts.collect::<Vec<_>>().join(" times "));
                self.errors
                    .at(&arg.value, format_args!("under strategy `{name}`, `degree` is {parts}, and {why}"));
                return false;
            }
        }
        true
    }

    /// The numbers of query heads and of key and value heads, if they are given and make groups; reports those that
    /// do not.
    pub(super) fn head_counts(&mut self, heads: Count<'a>, kv_heads: Count<'a>) -> Option<(usize, usize)> {
        let heads = heads.value()?;
        let (kv_heads, arg) = kv_heads.or(heads)?;
        let (heads, kv_heads) = (number(heads), number(kv_heads));
        if let Err(error) = attn_plan::check_kv_group(heads, kv_heads) {
            self.errors.at(arg.map(|arg| &arg.value), error);
            return None;
        }
        Some((heads, kv_heads))
    }

    /// Reports heads that do not divide among the ranks that are to share them.
    pub(super) fn check_heads(
        &mut self,
        offers: &[Offer],
        degrees: &Degrees<'a>,
        (heads, kv_heads): (usize, usize),
    ) {
        for Offer { strategy, .. } in offers {
            let Some((ulysses, arg, derivation)) = degrees.ulysses(strategy) else { continue };
            if let Err(error) = attn_plan::check_head_split(heads, kv_heads, ulysses) {
                let (name, uneven) = (strategy.name, Split::Uneven.name());
                let cure = format_args!("or use `split = \"{uneven}\"`");
                let message = format!("strategy `{name}` splits the heads{derivation}, and {error}; {cure}");
                self.errors.at(&arg.value, message);
                return;
            }
        }
    }
}

/// Why a strategy whose parts are `given` cannot have `whole` ranks, if it cannot.
fn disagreement(strategy: &Strategy, given: &[(Key, usize)], whole: usize) -> Option<String> {
    let instead = |product| format!("write `degree = {product}`, or leave it out");
    match (strategy.degrees, given) {
        ([_], &[(_, part)]) if part != whole => {
            Some(format!("that is {part}, not {whole}: {}", instead(part)))
        }
        ([_, _], &[(_, one), (_, other)]) if one * other != whole => {
            let product = one * other;
            Some(format!("{one} times {other} is {product}, not {whole}: {}", instead(product)))
        }
        ([_, _], &[(key, part)]) if !whole.is_multiple_of(part) => {
            let (name, divisors) = (key.row().name, attn_plan::divisors(whole));
            let divisors = diag::join(divisors.iter().map(usize::to_string), "or");
            Some(format!("{whole} is no multiple of {part}: `{name}` may be {divisors}"))
        }
        _ => None,
    }
}

/// A count as a number like any other.
fn number(count: NonZeroU16) -> usize {
    count.get().into()
}
