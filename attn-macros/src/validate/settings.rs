//! The arguments by key: what is given, where, and what of it has been reported.

use syn::{LitStr, Path};

use super::values::string;
use crate::diag::{self, Errors};
use crate::parse::{Arg, Value};
use crate::registry::{KEYS, Key, KeyRow, Named};

/// What the attribute says of one key.
#[derive(Clone, Copy)]
pub(super) enum Setting<'a, T> {
    /// Nothing.
    Absent,
    /// Something that has been reported.
    Faulty,
    /// This, there.
    Given(T, &'a Arg),
}

impl<'a, T> Setting<'a, T> {
    /// The value, if one is given.
    pub(super) fn value(self) -> Option<T> {
        match self {
            Self::Given(value, _) => Some(value),
            Self::Absent | Self::Faulty => None,
        }
    }

    /// The same of a reference to the value.
    pub(super) const fn as_ref(&self) -> Setting<'a, &T> {
        match self {
            Self::Absent => Setting::Absent,
            Self::Faulty => Setting::Faulty,
            Self::Given(value, arg) => Setting::Given(value, arg),
        }
    }

    /// What a value means, or [`Faulty`](Self::Faulty) if that was reported.
    pub(super) fn and_then<U>(self, meaning: impl FnOnce(T) -> Option<U>) -> Setting<'a, U> {
        match self {
            Self::Absent => Setting::Absent,
            Self::Faulty => Setting::Faulty,
            Self::Given(value, arg) => {
                meaning(value).map_or(Setting::Faulty, |value| Setting::Given(value, arg))
            }
        }
    }

    /// The value, or `default` where nothing is given; and where it stands.
    pub(super) fn or(self, default: T) -> Option<(T, Option<&'a Arg>)> {
        match self {
            Self::Absent => Some((default, None)),
            Self::Faulty => None,
            Self::Given(value, arg) => Some((value, Some(arg))),
        }
    }
}

/// The arguments by key.
pub(super) struct Settings<'a, 'e> {
    pub(super) slots: [Setting<'a, ()>; KEYS.len()],
    pub(super) errors: &'e mut Errors,
}

impl<'a, 'e> Settings<'a, 'e> {
    /// Sorts the arguments; reports unknown keys and keys given twice.
    pub(super) fn collect(args: &'a [Arg], errors: &'e mut Errors) -> Self {
        let mut slots = [Setting::Absent; KEYS.len()];
        let mut misspelt = Vec::new();
        for arg in args {
            let (key, name) = (&arg.key, arg.key.to_string());
            let Some(row) = KEYS.iter().find(|row| row.name == name) else {
                errors.at(key, diag::unknown(&name, &KEYS));
                misspelt.extend(diag::nearest(&name, &KEYS));
                continue;
            };
            let slot = &mut slots[row.key as usize];
            *slot = match slot {
                Setting::Absent => Setting::Given((), arg),
                Setting::Faulty | Setting::Given(..) => {
                    errors.at(key, format_args!("key `{name}` is given twice"));
                    Setting::Faulty
                }
            };
        }
        // What was meant by them is not missing.
        for row in misspelt {
            slots[row.key as usize] = Setting::Faulty;
        }
        Self { slots, errors }
    }

    /// The value of a key, if `read` can make sense of it.
    pub(super) fn read<T>(&mut self, key: Key, read: impl FnOnce(&'a Value) -> Option<T>) -> Setting<'a, T> {
        match self.slots[key as usize] {
            Setting::Absent => Setting::Absent,
            Setting::Faulty => Setting::Faulty,
            Setting::Given((), arg) => match read(&arg.value) {
                Some(meaning) => Setting::Given(meaning, arg),
                None => self.mismatch(key, &arg.value),
            },
        }
    }

    /// Reports a value of the wrong kind or out of range.
    pub(super) fn mismatch<T>(&mut self, key: Key, value: &Value) -> Setting<'a, T> {
        let KeyRow { name, expects, example, .. } = key.row();
        let found = value.describe();
        let message = format!("`{name}` expects {expects}, such as `{name} = {example}`: found {found}");
        self.errors.at(value, message);
        Setting::Faulty
    }

    /// The row of a table that the string of a key names.
    pub(super) fn named<T: Named>(&mut self, key: Key, table: &'static [T]) -> Setting<'a, &'static T> {
        self.read(key, string).and_then(|name| self.lookup(name, table))
    }

    /// The row of a table that a string names; reports a name that is not there.
    fn lookup<'t, T: Named>(&mut self, name: &LitStr, table: &'t [T]) -> Option<&'t T> {
        let found = name.value();
        let row = table.iter().find(|row| row.name() == found);
        if row.is_none() {
            self.errors.at(name, diag::unknown(&found, table));
        }
        row
    }

    /// Like [`lookup`](Self::lookup), for a key that also takes paths: hints at quotes that should not be.
    pub(super) fn lookup_or_path<'t, T: Named>(
        &mut self,
        key: Key,
        name: &LitStr,
        table: &'t [T],
    ) -> Option<&'t T> {
        let found = name.value();
        let is_path = found.contains("::") || found.starts_with(char::is_uppercase);
        if is_path && diag::nearest(&found, table).is_none() && name.parse::<Path>().is_ok() {
            let (what, key) = (T::WHAT, key.row().name);
            let message = format!(
                "unknown {what} `{found}`: expected {}; a type of your own stands without quotes, \
                 `{key} = {found}`",
                diag::one_of(table)
            );
            self.errors.at(name, message);
            return None;
        }
        self.lookup(name, table)
    }

    /// Whether a path is a name that lacks its quotes; reports that.
    pub(super) fn lacks_quotes<T: Named>(&mut self, key: Key, path: &Path, table: &[T]) -> bool {
        let Some(row) = table.iter().find(|row| path.is_ident(row.name())) else { return false };
        let (what, key, name) = (T::WHAT, key.row().name, row.name());
        let message = format!(
            "the name of a {what} stands in quotes: expected `{key} = \"{name}\"`, found the path `{name}`"
        );
        self.errors.at(path, message);
        true
    }
}
