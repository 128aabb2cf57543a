//! `strategy`, and which keys the strategies in use have.

use syn::{Lit, LitStr, Path, PathArguments};

use super::settings::{Setting, Settings};
use crate::diag;
use crate::parse::Value;
use crate::plan::{Offer, Strategies};
use crate::registry::{KEYS, Key, STRATEGIES};

impl<'a> Settings<'a, '_> {
    /// `strategy`.
    pub(super) fn strategies(&mut self) -> Setting<'a, Strategies> {
        let arg = match self.slots[Key::Strategy as usize] {
            Setting::Given((), arg) => arg,
            Setting::Faulty => return Setting::Faulty,
            Setting::Absent => {
                self.errors.at_call_site(format_args!(
                    "missing `strategy`: expected one of {}, a list of them, or the path of a type of your \
                     own",
                    diag::one_of(&STRATEGIES)
                ));
                return Setting::Faulty;
            }
        };
        let strategies = match &arg.value {
            Value::Literal(Lit::Str(name)) => self.offer(name).map(Strategies::One),
            Value::Path(path) => self.own_strategy(path).map(Strategies::Own),
            Value::List(_, items) => self.offers(&arg.value, items).map(Strategies::Several),
            Value::Literal(_) | Value::Negative(..) => return self.mismatch(Key::Strategy, &arg.value),
        };
        strategies.map_or(Setting::Faulty, |strategies| Setting::Given(strategies, arg))
    }

    /// A strategy's name.
    fn offer(&mut self, name: &LitStr) -> Option<Offer> {
        let strategy = self.lookup_or_path(Key::Strategy, name, &STRATEGIES)?;
        Some(Offer { strategy, span: name.span() })
    }

    /// A list of names.
    fn offers(&mut self, list: &Value, items: &[Value]) -> Option<Vec<Offer>> {
        if items.is_empty() {
            self.errors.at(list, format_args!("{LIST_HOLDS}: found an empty list"));
            return None;
        }
        let mut offers: Vec<Offer> = Vec::new();
        let mut complete = true;
        for item in items {
            let Value::Literal(Lit::Str(name)) = item else {
                let found = item.describe();
                self.errors.at(item, format_args!("{LIST_HOLDS}: found {found}"));
                complete = false;
                continue;
            };
            match self.offer(name) {
                Some(offer) if offers.iter().any(|other| other.strategy.name == offer.strategy.name) => {
                    self.errors.at(name, format_args!("strategy `{}` is listed twice", offer.strategy.name));
                    complete = false;
                }
                Some(offer) => offers.push(offer),
                None => complete = false,
            }
        }
        complete.then_some(offers)
    }

    /// A strategy of the user's.
    fn own_strategy(&mut self, path: &Path) -> Option<Path> {
        if self.lacks_quotes(Key::Strategy, path, &STRATEGIES) {
            return None;
        }
        match path.segments.last().map(|segment| &segment.arguments) {
            None | Some(PathArguments::None) => Some(path.clone()),
            Some(arguments) => {
                self.errors.at(
                    arguments,
                    "write the path of a strategy without arguments: `<C, SCATTER, GATHER>` are added",
                );
                None
            }
        }
    }

    /// Reports keys that no strategy in use has. (One of the user's has all.)
    pub(super) fn check_owners(&mut self, used: &[Offer]) {
        if used.is_empty() {
            return;
        }
        for row in &KEYS {
            let Setting::Given((), arg) = self.slots[row.key as usize] else { continue };
            if used.iter().any(|offer| offer.strategy.has(row.key)) {
                continue;
            }
            let names = diag::join(used.iter().map(|offer| format!("`{}`", offer.strategy.name)), "and");
            let lack = match used {
                [_] => format!("strategy {names} has"),
                _ => format!("strategies {names} have"),
            };
            let owners = STRATEGIES.iter().filter(|strategy| strategy.has(row.key));
            let owners = diag::join(owners.map(|strategy| format!("`{}`", strategy.name)), "and");
            let message = format!("{lack} no key `{}`: strategies that have it are {owners}", row.name);
            self.errors.at(&arg.key, message);
        }
    }
}

const LIST_HOLDS: &str = "a list of strategies holds names in quotes, such as `[\"none\", \"ulysses\"]`";
