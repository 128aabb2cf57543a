//! `mask`.

use attn_plan::{Mask, MaskError};
use syn::LitStr;

use super::settings::{Setting, Settings};
use super::values::string;
use crate::diag;
use crate::plan::FixedMask;
use crate::registry::Key;

impl<'a> Settings<'a, '_> {
    /// `mask`: names joined by `+`, as [`Mask`] reads them.
    pub(super) fn mask(&mut self) -> Setting<'a, FixedMask> {
        self.read(Key::Mask, string).and_then(|text| self.parse_mask(text))
    }

    /// What a string says; reports one that says no mask.
    fn parse_mask(&mut self, text: &LitStr) -> Option<FixedMask> {
        let error = match text.value().parse::<Mask>() {
            Ok(mask) => return Some(FixedMask { mask, span: text.span() }),
            Err(error) => error,
        };
        let near = match &error {
            MaskError::Unknown(found) => {
                let near = diag::nearest_of(found, Mask::NAMES.map(|name| (name, name)));
                near.map(|near| diag::did_you_mean("mask", found, near))
            }
            _ => None,
        };
        self.errors.at(text, near.unwrap_or_else(|| error.to_string()));
        None
    }
}
