//! `backend`.

use proc_macro2::Span;
use syn::{Error, Lit};

use super::settings::{Setting, Settings};
use crate::diag;
use crate::parse::Value;
use crate::plan::{Kernel, Offer};
use crate::registry::{Backend, DEFAULT_BACKEND, Key};

impl Settings<'_, '_> {
    /// `backend`, for strategies of which some need a kernel that computes in 8 bits.
    pub(super) fn kernel(&mut self, backends: &[Backend], offers: &[Offer]) -> Option<Kernel> {
        let narrow = offers.iter().find_map(|offer| Some((offer, offer.strategy.at_full_width?)));
        let too_wide = |backend: &Backend| narrow.filter(|_| !backend.eight_bits);
        match self.read(Key::Backend, Some) {
            Setting::Faulty => None,
            Setting::Absent => {
                let backend = backends.iter().find(|backend| backend.name == DEFAULT_BACKEND)?;
                if let Some((offer, instead)) = too_wide(backend) {
                    let message = format!(
                        "strategy `{}` needs a kernel that computes in 8 bits, and `backend` is not given: the \
                         default, `{}`, does not: {}",
                        offer.strategy.name,
                        backend.name,
                        narrow_one(backends, instead)
                    );
                    self.errors.push(Error::new(offer.span, message));
                } else if !backend.enabled {
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
                if let Some((offer, instead)) = too_wide(backend) {
                    let message = format!(
                        "backend `{}` does not compute in 8 bits, which strategy `{}` needs: {}",
                        backend.name,
                        offer.strategy.name,
                        narrow_one(backends, instead)
                    );
                    self.errors.at(name, message);
                } else if !backend.enabled {
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

/// Which feature a backend lacks.
fn needs_feature(backend: &Backend) -> String {
    let name = backend.name;
    format!("backend `{name}` needs the cargo feature `{name}` of `attn`, which is off: turn it on")
}

/// What to name where a kernel must compute in 8 bits, or else which strategy.
fn narrow_one(backends: &[Backend], instead: &str) -> String {
    let narrow = backends.iter().filter(|backend| backend.eight_bits);
    let backends = diag::join(narrow.map(|backend| format!("`backend = \"{}\"`", backend.name)), "or");
    format!("write {backends}, or use strategy `{instead}`")
}

/// What to name instead of a backend whose feature is off.
fn name_another(backends: &[Backend]) -> String {
    let enabled = backends.iter().filter(|backend| backend.enabled);
    let others: Vec<String> = enabled.map(|backend| format!("`backend = \"{}\"`", backend.name)).collect();
    if others.is_empty() { String::new() } else { format!(", or write {}", diag::join(others, "or")) }
}
