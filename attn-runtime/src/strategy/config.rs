//! The choice at start-up.

use crate::error::{Error, Result};

/// What a program asks for at start-up. The default asks for nothing: then the attribute must leave no choice.
///
/// ```
/// use attn_runtime::ParallelConfig;
///
/// let config = ParallelConfig { ring_degree: Some(4), ..ParallelConfig::default() };
/// assert_eq!(config.choose(&["none", "ulysses", "ring"], 4)?, 2);
/// assert!(config.choose(&["none", "ulysses"], 4).is_err(), "what is not offered is not replaced");
/// # Ok::<(), attn_runtime::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParallelConfig {
    /// A strategy by name.
    pub strategy: Option<String>,
    /// How many ranks share the heads.
    pub ulysses_degree: Option<usize>,
    /// How many ranks stand in a ring.
    pub ring_degree: Option<usize>,
}

impl ParallelConfig {
    /// Asks for a strategy by name.
    pub fn strategy(name: impl Into<String>) -> Self {
        Self { strategy: Some(name.into()), ..Self::default() }
    }

    /// Which of the `offered` strategies is meant, in a group of `ranks`.
    ///
    /// # Errors
    /// If the configuration names none of them, names two, or asks for other degrees than the group has. Never
    /// falls back to less.
    pub fn choose(&self, offered: &[&str], ranks: usize) -> Result<usize> {
        let fail = |message: String| Err(Error::Configuration(message));
        let all = offered.join(", ");
        let (ulysses, ring) = (self.ulysses_degree.unwrap_or(1), self.ring_degree.unwrap_or(1));
        let asked = self.ulysses_degree.or(self.ring_degree).is_some();
        let product = ulysses.saturating_mul(ring);
        if asked && product != ranks {
            return fail(format!(
                "ulysses_degree {ulysses} times ring_degree {ring} is {product}, but the group has {ranks} ranks"
            ));
        }
        let by_degree = match (ulysses > 1, ring > 1) {
            (true, true) => {
                return fail(format!(
                    "ulysses_degree {ulysses} and ring_degree {ring} ask for both at once, which none of the strategies \
                     offered here ({all}) does"
                ));
            }
            (true, false) => Some("ulysses"),
            (false, true) => Some("ring"),
            (false, false) => None,
        };
        let name = match (self.strategy.as_deref(), by_degree, offered) {
            (Some(name), Some(other), _) if name != other => {
                return fail(format!("strategy `{name}` contradicts the degrees, which ask for `{other}`"));
            }
            (Some(name), _, _) | (None, Some(name), _) | (None, None, &[name]) => name,
            (None, None, _) if asked => "none",
            (None, None, _) => {
                return fail(format!(
                    "nothing says which strategy to use: set `strategy` to one of {all}, or the degrees"
                ));
            }
        };
        offered.iter().position(|other| *other == name).ok_or_else(|| {
            Error::Configuration(format!("strategy `{name}` is not offered here: expected one of {all}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [&str; 3] = ["none", "ulysses", "ring"];

    fn config(strategy: Option<&str>, ulysses: Option<usize>, ring: Option<usize>) -> ParallelConfig {
        ParallelConfig { strategy: strategy.map(str::to_owned), ulysses_degree: ulysses, ring_degree: ring }
    }

    #[test]
    fn names_and_degrees_choose() {
        assert_eq!(config(Some("ring"), None, None).choose(&ALL, 4), Ok(2));
        assert_eq!(config(None, Some(4), None).choose(&ALL, 4), Ok(1));
        assert_eq!(config(None, Some(1), Some(4)).choose(&ALL, 4), Ok(2));
        assert_eq!(config(None, Some(1), Some(1)).choose(&ALL, 1), Ok(0));
        assert_eq!(config(Some("ulysses"), Some(1), None).choose(&ALL, 1), Ok(1));
        assert_eq!(config(None, None, None).choose(&["ring"], 3), Ok(0));
        assert_eq!(config(None, None, Some(1)).choose(&["ring"], 1), Ok(0));
    }

    #[test]
    fn what_the_group_cannot_give_is_an_error() {
        for (config, ranks, say) in [
            (config(None, None, None), 2, "nothing says which"),
            (config(None, Some(2), Some(2)), 4, "both at once"),
            (config(None, Some(4), None), 2, "the group has 2 ranks"),
            (config(None, Some(1), None), 2, "the group has 2 ranks"),
            (config(Some("ring"), Some(4), None), 4, "contradicts"),
            (config(Some("rings"), None, None), 4, "not offered here"),
            (config(None, Some(usize::MAX), None), 2, "the group has 2 ranks"),
        ] {
            let error = config.choose(&ALL, ranks).unwrap_err().to_string();
            assert!(error.contains(say), "{error}");
        }
    }
}
