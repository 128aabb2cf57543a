//! Whether the head counts divide as they must.

use std::num::NonZeroU16;

use super::settings::{Setting, Settings};
use crate::plan::Strategies;

impl<'a> Settings<'a, '_> {
    /// Whether the head counts divide as they must.
    pub(super) fn check_heads(
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
}
