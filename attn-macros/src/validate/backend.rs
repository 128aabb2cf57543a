//! `backend`.

use proc_macro2::Span;
use syn::Lit;

use super::settings::{Setting, Settings};
use crate::diag;
use crate::parse::Value;
use crate::plan::Kernel;
use crate::registry::{Backend, DEFAULT_BACKEND, Key};

impl Settings<'_, '_> {
    /// `backend`.
    pub(super) fn kernel(&mut self, backends: &[Backend]) -> Option<Kernel> {
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
