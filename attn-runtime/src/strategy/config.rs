//! The choice at start-up.

use crate::error::{Error, Result};

/// What a program asks for at start-up. The default asks for nothing: then the group must leave no choice.
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
        let Self { strategy, ulysses_degree, ring_degree } = self;
        let degrees = [("ulysses", *ulysses_degree), ("ring", *ring_degree)];
        let asked = degrees.iter().any(|(_, degree)| degree.is_some());
        let product =
            degrees.iter().filter_map(|(_, degree)| *degree).try_fold(1, usize::checked_mul).unwrap_or(0);
        let mut wide = degrees.iter().filter(|(_, degree)| degree.is_some_and(|degree| degree > 1));
        let by_degree = match (wide.next(), wide.next()) {
            (Some(_), Some(_)) => {
                return Err(Error::Configuration(format!(
                    "ulysses_degree {} and ring_degree {} ask for both at once, which none of the strategies offered \
                     here ({}) does",
                    ulysses_degree.unwrap_or(1),
                    ring_degree.unwrap_or(1),
                    offered.join(", ")
                )));
            }
            (Some((name, _)), None) => Some(*name),
            _ if asked => Some("none"),
            _ => None,
        };
        let name = match (strategy.as_deref(), by_degree) {
            (Some(name), Some(other)) if name != other && (other != "none" || product != ranks) => {
                return Err(Error::Configuration(format!(
                    "strategy `{name}` contradicts the degrees, which ask for `{other}`"
                )));
            }
            (Some(name), _) | (None, Some(name)) => name,
            (None, None) => match offered {
                [only] => only,
                _ => {
                    return Err(Error::Configuration(format!(
                        "nothing says which strategy to use: set `strategy` to one of {}, or the degrees",
                        offered.join(", ")
                    )));
                }
            },
        };
        if asked && product != ranks {
            return Err(Error::Configuration(format!(
                "ulysses_degree {} times ring_degree {} is {product}, but the group has {ranks} ranks",
                ulysses_degree.unwrap_or(1),
                ring_degree.unwrap_or(1)
            )));
        }
        offered.iter().position(|other| *other == name).ok_or_else(|| {
            Error::Configuration(format!(
                "strategy `{name}` is not offered here: expected one of {}",
                offered.join(", ")
            ))
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
