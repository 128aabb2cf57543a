//! Stage 2: arguments become a plan, or every error in them.
//!
//! One mistake is one error: what was given but cannot be used is [`Setting::Faulty`], and the checks that
//! would need it are left out.

use std::num::NonZeroU16;

use attn_plan::TensorLayout;
use proc_macro2::Span;
use syn::{Lit, LitStr, Path, PathArguments};

use crate::diag::{self, Errors};
use crate::parse::{Arg, Value};
use crate::plan::{Kernel, Offer, Plan, Scale, Spec, Strategies};
use crate::registry::{Backend, DEFAULT_BACKEND, KEYS, Key, KeyRow, MASKS, Named, STRATEGIES};

/// Gives the arguments their meaning. `None` if there was an error.
pub(crate) fn plan(args: &[Arg], backends: &[Backend], errors: &mut Errors) -> Option<Plan> {
    let mut settings = Settings::collect(args, errors);
    let strategies = settings.strategies();
    settings.check_owners(&strategies);
    let layout = settings.layout();
    let heads = settings.read(Key::Heads, count);
    let kv_heads = settings.read(Key::KvHeads, count);
    let head_dim = settings.read(Key::HeadDim, count);
    let degree = settings.read(Key::Degree, count);
    settings.check_heads(&strategies, heads, kv_heads, degree);
    let scale = settings.read(Key::Scale, scale);
    let mask = settings.read(Key::Mask, string);
    let mask = settings.named(mask, &MASKS);
    let use_sync = settings.read(Key::UseSync, flag);
    let kernel = settings.kernel(backends);
    settings.read(Key::Crate, path);

    let spec = Spec {
        heads: heads.value(),
        kv_heads: kv_heads.value(),
        head_dim: head_dim.value(),
        degree: degree.value(),
        scale: scale.value(),
        mask: mask.value(),
        use_sync: use_sync.value(),
    };
    let plan = Plan { strategies: strategies.value()?, layout: layout?, kernel: kernel?, spec };
    errors.is_empty().then_some(plan)
}

/// The path of the crate `attn`, if `crate = ..` gives one that can be read.
pub(crate) fn base(args: &[Arg]) -> Option<Path> {
    args.iter().find(|arg| arg.key == Key::Crate.row().name).and_then(|arg| path(&arg.value))
}

/// What the attribute says of one key.
#[derive(Clone, Copy)]
enum Setting<'a, T> {
    /// Nothing.
    Absent,
    /// Something that has been reported.
    Faulty,
    /// This, there.
    Given(T, &'a Arg),
}

impl<'a, T> Setting<'a, T> {
    /// The value, if one is given.
    fn value(self) -> Option<T> {
        match self {
            Self::Given(value, _) => Some(value),
            Self::Absent | Self::Faulty => None,
        }
    }

    /// The value, or `default` where nothing is given; and where it stands.
    fn or(self, default: T) -> Option<(T, Option<&'a Arg>)> {
        match self {
            Self::Absent => Some((default, None)),
            Self::Faulty => None,
            Self::Given(value, arg) => Some((value, Some(arg))),
        }
    }
}

/// The arguments by key.
struct Settings<'a, 'e> {
    slots: [Setting<'a, ()>; KEYS.len()],
    errors: &'e mut Errors,
}

impl<'a, 'e> Settings<'a, 'e> {
    /// Sorts the arguments; reports unknown keys and keys given twice.
    fn collect(args: &'a [Arg], errors: &'e mut Errors) -> Self {
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
    fn read<T>(&mut self, key: Key, read: impl FnOnce(&'a Value) -> Option<T>) -> Setting<'a, T> {
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
    fn mismatch<T>(&mut self, key: Key, value: &Value) -> Setting<'a, T> {
        let KeyRow { name, expects, example, .. } = key.row();
        let found = value.describe();
        let message = format!("`{name}` expects {expects}, such as `{name} = {example}`: found {found}");
        self.errors.at(value, message);
        Setting::Faulty
    }

    /// The row of a table that a string names.
    fn named<T: Named>(
        &mut self,
        name: Setting<'a, &'a LitStr>,
        table: &'static [T],
    ) -> Setting<'a, &'static T> {
        match name {
            Setting::Absent => Setting::Absent,
            Setting::Faulty => Setting::Faulty,
            Setting::Given(name, arg) => match self.lookup(name, table) {
                Some(row) => Setting::Given(row, arg),
                None => Setting::Faulty,
            },
        }
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
    fn lookup_or_path<'t, T: Named>(&mut self, key: Key, name: &LitStr, table: &'t [T]) -> Option<&'t T> {
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
    fn lacks_quotes<T: Named>(&mut self, key: Key, path: &Path, table: &[T]) -> bool {
        let Some(row) = table.iter().find(|row| path.is_ident(row.name())) else { return false };
        let (what, key, name) = (T::WHAT, key.row().name, row.name());
        let message = format!(
            "the name of a {what} stands in quotes: expected `{key} = \"{name}\"`, found the path `{name}`"
        );
        self.errors.at(path, message);
        true
    }

    /// `strategy`.
    fn strategies(&mut self) -> Setting<'a, Strategies> {
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

    /// Reports keys that no strategy in use has.
    fn check_owners(&mut self, strategies: &Setting<'a, Strategies>) {
        let Setting::Given(strategies, _) = strategies else { return };
        let used = strategies.offers();
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

    /// `scatter` and `gather`. An error stands on the axis that fits no layout, or not with the other one.
    fn layout(&mut self) -> Option<TensorLayout> {
        let (scatter, gather) = (self.read(Key::Scatter, integer), self.read(Key::Gather, integer));
        let default = TensorLayout::Bshd.axes();
        let ((s, scatter), (g, gather)) = (scatter.or(default.0)?, gather.or(default.1)?);
        let layout = TensorLayout::from_axes(s, g);
        if layout.is_none() {
            let fits = TensorLayout::ALL.iter().any(|layout| layout.axes().0 == s);
            let at = if fits { gather.or(scatter) } else { scatter.or(gather) };
            let known = TensorLayout::ALL.map(|layout| {
                let (scatter, gather) = layout.axes();
                format!("`scatter = {scatter}, gather = {gather}` for `{layout}`")
            });
            let known = diag::join(known, "or");
            let default = match (scatter, gather) {
                (Some(_), Some(_)) => "",
                (None, _) => " (`scatter` by default)",
                (_, None) => " (`gather` by default)",
            };
            let message = format!("`scatter = {s}, gather = {g}`{default} is no layout: expected {known}");
            self.errors.at(at.map(|arg| &arg.value), message);
        }
        layout
    }

    /// Whether the head counts divide as they must.
    fn check_heads(
        &mut self,
        strategies: &Setting<'a, Strategies>,
        heads: Setting<'a, NonZeroU16>,
        kv_heads: Setting<'a, NonZeroU16>,
        degree: Setting<'a, NonZeroU16>,
    ) {
        let Setting::Given(heads, _) = heads else { return };
        let kv_heads = match kv_heads {
            Setting::Faulty => return,
            Setting::Absent => heads,
            Setting::Given(kv_heads, arg) => {
                if let Err(error) = attn_plan::check_kv_group(heads.get().into(), kv_heads.get().into()) {
                    self.errors.at(&arg.value, error);
                    return;
                }
                kv_heads
            }
        };
        let (Setting::Given(strategies, _), Setting::Given(degree, arg)) = (strategies, degree) else {
            return;
        };
        let Some(split) = strategies.offers().iter().find(|offer| offer.strategy.splits_heads) else {
            return;
        };
        let [heads, kv_heads, degree] = [heads, kv_heads, degree].map(|count| usize::from(count.get()));
        if let Err(error) = attn_plan::check_head_split(heads, kv_heads, degree) {
            let name = split.strategy.name;
            self.errors.at(&arg.value, format_args!("strategy `{name}` splits the heads, and {error}"));
        }
    }

    /// `backend`.
    fn kernel(&mut self, backends: &[Backend]) -> Option<Kernel> {
        match self.read(Key::Backend, Some) {
            Setting::Faulty => None,
            Setting::Absent => {
                let backend = backends.iter().find(|backend| backend.name == DEFAULT_BACKEND)?;
                if !backend.enabled {
                    let message = format!(
                        "`backend` is not given, and the default {}{}",
                        needs_feature(backend),
                        name_another(backends)
                    );
                    self.errors.at_call_site(message);
                }
                Some(Kernel::Builtin(backend.type_name, Span::call_site()))
            }
            Setting::Given(Value::Literal(Lit::Str(name)), _) => {
                let backend = self.lookup_or_path(Key::Backend, name, backends)?;
                if !backend.enabled {
                    self.errors.at(name, needs_feature(backend) + &name_another(backends));
                }
                Some(Kernel::Builtin(backend.type_name, name.span()))
            }
            Setting::Given(Value::Path(path), _) => {
                (!self.lacks_quotes(Key::Backend, path, backends)).then(|| Kernel::Own(path.clone()))
            }
            Setting::Given(value, _) => self.mismatch(Key::Backend, value).value(),
        }
    }
}

const LIST_HOLDS: &str = "a list of strategies holds names in quotes, such as `[\"none\", \"ulysses\"]`";

/// Which feature a backend lacks.
fn needs_feature(backend: &Backend) -> String {
    let name = backend.name;
    format!("backend `{name}` needs the cargo feature `{name}` of `attn`, which is off: turn it on")
}

/// What to name instead of a backend whose feature is off.
fn name_another(backends: &[Backend]) -> String {
    let enabled = backends.iter().filter(|backend| backend.enabled);
    let others: Vec<String> = enabled.map(|backend| format!("`backend = \"{}\"`", backend.name)).collect();
    if others.is_empty() { String::new() } else { format!(", or write {}", diag::join(others, "or")) }
}

/// An axis or a count: an integer without suffix, or with the one that it has as a parameter.
fn integer(value: &Value) -> Option<usize> {
    let Value::Literal(Lit::Int(number)) = value else { return None };
    matches!(number.suffix(), "" | "usize").then(|| number.base10_parse().ok())?
}

/// A count: at least 1, and small enough that its divisors are listed in no time.
fn count(value: &Value) -> Option<NonZeroU16> {
    integer(value).and_then(|count| u16::try_from(count).ok()).and_then(NonZeroU16::new)
}

/// A softmax scale, written as an integer or a float.
fn scale(value: &Value) -> Option<Scale> {
    let (suffix, number) = match value {
        Value::Literal(Lit::Int(number)) => (number.suffix(), number.base10_parse()),
        Value::Literal(Lit::Float(number)) => (number.suffix(), number.base10_parse()),
        _ => return None,
    };
    if matches!(suffix, "" | "f32") { number.ok().and_then(Scale::new) } else { None }
}

/// `true` or `false`.
fn flag(value: &Value) -> Option<bool> {
    match value {
        Value::Literal(Lit::Bool(flag)) => Some(flag.value),
        _ => None,
    }
}

/// A string.
fn string(value: &Value) -> Option<&LitStr> {
    match value {
        Value::Literal(Lit::Str(string)) => Some(string),
        _ => None,
    }
}

/// A path without arguments, in quotes or without.
fn path(value: &Value) -> Option<Path> {
    match value {
        Value::Literal(Lit::Str(string)) => string.parse_with(Path::parse_mod_style).ok(),
        Value::Path(path) => path.segments.iter().all(|s| s.arguments.is_none()).then(|| path.clone()),
        _ => None,
    }
}
