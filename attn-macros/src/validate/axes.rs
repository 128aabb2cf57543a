//! `scatter` and `gather`.

use attn_plan::TensorLayout;

use super::settings::Settings;
use super::values::integer;
use crate::diag;
use crate::registry::Key;

impl Settings<'_, '_> {
    /// `scatter` and `gather`. An error stands on the axis that fits no layout, or not with the other one.
    pub(super) fn tensor_layout(&mut self) -> Option<TensorLayout> {
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
}
