//! The choice at start-up.

use attn_plan::{RingLayout, Split};

use crate::error::{Error, Result};
use crate::spec::AttentionSpec;

/// What a program asks for at start-up. The default asks for nothing: then the attribute must leave no choice.
///
/// ```
/// use attn_runtime::ParallelConfig;
///
/// let offered = ["none", "ulysses", "ring", "hybrid"];
/// let config = ParallelConfig { ring_degree: Some(4), ..ParallelConfig::default() };
/// assert_eq!(config.choose(&offered, 4)?, 2);
/// let config = ParallelConfig { ulysses_degree: Some(2), ring_degree: Some(2), ..ParallelConfig::default() };
/// assert_eq!(config.choose(&offered, 4)?, 3);
/// assert!(config.choose(&offered[..3], 4).is_err(), "what is not offered is not replaced");
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
    /// How many ranks gather each other's keys.
    pub allgather_degree: Option<usize>,
    /// In which order a ring shares the sequence; contiguous if absent.
    pub layout: Option<RingLayout>,
    /// Whether shares must be equal; strict if absent.
    pub split: Option<Split>,
}

/// What a strategy of this crate is put together from.
struct Parts {
    name: &'static str,
    ulysses: bool,
    ring: bool,
    allgather: bool,
}

/// Of those put together alike, the first is what degrees ask for.
static PARTS: [Parts; 7] = [
    Parts { name: "none", ulysses: false, ring: false, allgather: false },
    Parts { name: "ulysses", ulysses: true, ring: false, allgather: false },
    Parts { name: "ring", ulysses: false, ring: true, allgather: false },
    Parts { name: "hybrid", ulysses: true, ring: true, allgather: false },
    Parts { name: "allgather_kv", ulysses: false, ring: false, allgather: true },
    Parts { name: "ulysses_allgather", ulysses: true, ring: false, allgather: true },
    Parts { name: "ulysses_quantised", ulysses: true, ring: false, allgather: false },
];

impl Parts {
    /// The strategy of a name; none for one of a user's own.
    fn of(name: &str) -> Option<&'static Self> {
        PARTS.iter().find(|parts| parts.name == name)
    }
}

impl ParallelConfig {
    /// Asks for a strategy by name.
    pub fn strategy(name: impl Into<String>) -> Self {
        Self { strategy: Some(name.into()), ..Self::default() }
    }

    /// The degrees, by the names of what they count.
    const fn degrees(&self) -> [(&'static str, Option<usize>); 3] {
        [
            ("ulysses_degree", self.ulysses_degree),
            ("ring_degree", self.ring_degree),
            ("allgather_degree", self.allgather_degree),
        ]
    }

    /// Whether a strategy is one of this crate.
    pub(crate) fn knows(strategy: &str) -> bool {
        Parts::of(strategy).is_some()
    }

    /// Which of the `offered` strategies is meant, in a group of `ranks`.
    ///
    /// # Errors
    /// If the configuration names none of them, names two, or asks for other degrees than the group has. Never
    /// falls back to less.
    pub fn choose(&self, offered: &[&str], ranks: usize) -> Result<usize> {
        let fail = |message: String| Err(Error::Configuration(message));
        let all = offered.join(", ");
        let given: Vec<(&str, usize)> =
            self.degrees().into_iter().filter_map(|(name, degree)| Some((name, degree?))).collect();
        if let Some((name, _)) = given.iter().find(|(_, degree)| *degree == 0) {
            return fail(format!("`{name}` must be at least 1"));
        }
        // Where one strategy alone is offered, degrees are its own: they choose nothing.
        let named = self.strategy.as_deref().or(match offered {
            [name] => Some(*name),
            _ => None,
        });
        let by_degree = if named.is_none() { self.by_degree(&all)? } else { None };
        // A name may leave one of two degrees to the other: then the strategy itself checks them.
        let complete = match named.and_then(Parts::of) {
            Some(parts) => [
                (parts.ulysses, self.ulysses_degree),
                (parts.ring, self.ring_degree),
                (parts.allgather, self.allgather_degree),
            ]
            .iter()
            .all(|(has, degree)| !has || degree.is_some()),
            // Of a strategy of a user's own nothing is known.
            None => named.is_none(),
        };
        let product = given.iter().fold(1_usize, |product, (_, degree)| product.saturating_mul(*degree));
        if !given.is_empty() && complete && product != ranks {
            let factors: Vec<String> =
                given.iter().map(|(name, degree)| format!("{name} {degree}")).collect();
            return fail(format!(
                "{} {} {product}, but the group has {ranks} ranks",
                factors.join(" times "),
                if factors.len() == 1 { "makes" } else { "is" }
            ));
        }
        let name = match named {
            Some(name) => {
                self.check_name(name)?;
                name
            }
            None if !given.is_empty() => by_degree.unwrap_or("none"),
            None => {
                return fail(format!(
                    "nothing says which strategy to use: set `strategy` to one of {all}, or the degrees"
                ));
            }
        };
        offered.iter().position(|other| *other == name).ok_or_else(|| {
            Error::Configuration(format!("strategy `{name}` is not offered here: expected one of {all}"))
        })
    }

    /// The strategy that the degrees above 1 ask for.
    fn by_degree(&self, all: &str) -> Result<Option<&'static str>> {
        let above = |degree: Option<usize>| degree.unwrap_or(1) > 1;
        let wanted = (above(self.ulysses_degree), above(self.ring_degree), above(self.allgather_degree));
        if wanted == (false, false, false) {
            return Ok(None);
        }
        let found = PARTS.iter().find(|parts| (parts.ulysses, parts.ring, parts.allgather) == wanted);
        found.map(|parts| Some(parts.name)).ok_or_else(|| {
            let asked: Vec<String> = self
                .degrees()
                .into_iter()
                .filter_map(|(name, degree)| Some(format!("{name} {}", degree.filter(|degree| *degree > 1)?)))
                .collect();
            Error::Configuration(format!(
                "{} ask for all at once, which no strategy does: expected one of {all}",
                asked.join(" and ")
            ))
        })
    }

    /// That a named strategy has what the configuration asks for besides.
    fn check_name(&self, name: &str) -> Result<()> {
        let Some(parts) = Parts::of(name) else { return Ok(()) };
        let has = [parts.ulysses, parts.ring, parts.allgather];
        for ((degree_name, degree), has) in self.degrees().into_iter().zip(has) {
            if let Some(degree) = degree.filter(|degree| *degree > 1 && !has) {
                return Err(Error::Configuration(format!(
                    "strategy `{name}` has no {degree_name}: {degree} contradicts it; leave it out or name another strategy"
                )));
            }
        }
        match self.layout {
            Some(layout) if layout != RingLayout::Contiguous && !parts.ring => {
                Err(Error::Configuration(format!(
                    "strategy `{name}` has no layout `{}`: strategies that have it are ring and hybrid",
                    layout.name()
                )))
            }
            _ => Ok(()),
        }
    }

    /// What an attribute fixed and what the configuration adds to it, for the strategy that was chosen.
    ///
    /// # Errors
    /// If they contradict each other, or the strategy has no such layout.
    pub(crate) fn merge(&self, spec: &AttentionSpec, strategy: &str) -> Result<AttentionSpec> {
        self.check_name(strategy)?;
        let mut merged = *spec;
        merged.ulysses = both("ulysses", spec.ulysses, self.ulysses_degree, |degree| degree.to_string())?;
        merged.ring = both("ring", spec.ring, self.ring_degree, |degree| degree.to_string())?;
        merged.allgather =
            both("allgather", spec.allgather, self.allgather_degree, |degree| degree.to_string())?;
        merged.layout = both("layout", spec.layout, self.layout, |layout| format!("\"{}\"", layout.name()))?;
        merged.split = both("split", spec.split, self.split, |split| format!("\"{}\"", split.name()))?;
        Ok(merged)
    }
}

/// What is fixed, or else what is asked for.
fn both<V: Copy + PartialEq>(
    key: &'static str,
    fixed: Option<V>,
    asked: Option<V>,
    say: impl Fn(V) -> String,
) -> Result<Option<V>> {
    match (fixed, asked) {
        (Some(fixed), Some(asked)) if fixed != asked => Err(Error::Declared {
            key,
            declared: say(fixed),
            found: format!("a configuration that asks for {}", say(asked)),
        }),
        (fixed, asked) => Ok(fixed.or(asked)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [&str; 7] =
        ["none", "ulysses", "ring", "hybrid", "allgather_kv", "ulysses_allgather", "ulysses_quantised"];

    fn config(strategy: Option<&str>, ulysses: Option<usize>, ring: Option<usize>) -> ParallelConfig {
        ParallelConfig {
            strategy: strategy.map(str::to_owned),
            ulysses_degree: ulysses,
            ring_degree: ring,
            ..ParallelConfig::default()
        }
    }

    fn gathering(ulysses: Option<usize>, allgather: usize) -> ParallelConfig {
        ParallelConfig { allgather_degree: Some(allgather), ..config(None, ulysses, None) }
    }

    #[test]
    fn names_and_degrees_choose() {
        assert_eq!(config(Some("ring"), None, None).choose(&ALL, 4), Ok(2));
        assert_eq!(config(None, Some(4), None).choose(&ALL, 4), Ok(1));
        assert_eq!(config(None, Some(1), Some(4)).choose(&ALL, 4), Ok(2));
        assert_eq!(config(None, Some(2), Some(2)).choose(&ALL, 4), Ok(3));
        assert_eq!(gathering(None, 4).choose(&ALL, 4), Ok(4));
        assert_eq!(gathering(Some(2), 2).choose(&ALL, 4), Ok(5));
        assert_eq!(config(Some("hybrid"), Some(2), None).choose(&ALL, 8), Ok(3));
        assert_eq!(config(Some("hybrid"), Some(1), Some(4)).choose(&ALL, 4), Ok(3));
        assert_eq!(config(None, Some(1), Some(1)).choose(&ALL, 1), Ok(0));
        assert_eq!(config(Some("ulysses"), Some(1), None).choose(&ALL, 1), Ok(1));
        assert_eq!(config(None, None, None).choose(&["ring"], 3), Ok(0));
        assert_eq!(config(None, None, Some(1)).choose(&["ring"], 1), Ok(0));
        assert_eq!(config(None, None, Some(2)).choose(&["hybrid"], 8), Ok(0));
    }

    #[test]
    fn what_the_group_cannot_give_is_an_error() {
        for (config, ranks, say) in [
            (config(None, None, None), 2, "nothing says which"),
            (config(None, Some(4), None), 2, "ulysses_degree 4 makes 4, but the group has 2 ranks"),
            (config(None, Some(1), None), 2, "the group has 2 ranks"),
            (
                config(None, Some(2), Some(4)),
                4,
                "ulysses_degree 2 times ring_degree 4 is 8, but the group has 4",
            ),
            (config(Some("hybrid"), Some(2), Some(4)), 4, "the group has 4 ranks"),
            (config(Some("ring"), Some(4), None), 4, "contradicts"),
            (config(Some("ring"), Some(4), Some(1)), 4, "contradicts"),
            (config(Some("rings"), None, None), 4, "not offered here"),
            (config(None, Some(usize::MAX), None), 2, "the group has 2 ranks"),
            (config(None, Some(0), None), 2, "at least 1"),
            (ParallelConfig { ring_degree: Some(2), ..gathering(None, 2) }, 4, "all at once"),
        ] {
            let error = config.choose(&ALL, ranks).unwrap_err().to_string();
            assert!(error.contains(say), "{error}");
        }
    }

    #[test]
    fn what_is_sent_in_8_bits_is_asked_for_by_name() {
        assert_eq!(config(Some("ulysses_quantised"), Some(4), None).choose(&ALL, 4), Ok(6));
        assert_eq!(config(None, Some(4), None).choose(&["ulysses_quantised"], 4), Ok(0));
        let offered = ["none", "ulysses_quantised"];
        assert_eq!(config(Some("ulysses_quantised"), None, None).choose(&offered, 4), Ok(1));
        let error = config(None, Some(4), None).choose(&offered, 4).unwrap_err().to_string();
        assert!(error.contains("strategy `ulysses` is not offered here"), "{error}");
        let error = config(Some("ulysses_quantised"), None, Some(4)).choose(&ALL, 4).unwrap_err().to_string();
        assert!(error.contains("has no ring_degree"), "{error}");
    }

    #[test]
    fn of_a_strategy_of_a_users_own_nothing_is_known() {
        let own = ["mine"];
        assert_eq!(config(Some("mine"), Some(2), None).choose(&own, 4), Ok(0));
        let both = ParallelConfig { ring_degree: Some(2), ..gathering(None, 2) };
        assert_eq!(both.choose(&own, 4), Ok(0));
    }

    #[test]
    fn a_layout_belongs_to_rings() {
        let zigzag =
            |name| ParallelConfig { layout: Some(RingLayout::Zigzag), ..ParallelConfig::strategy(name) };
        assert_eq!(zigzag("ring").choose(&ALL, 4), Ok(2));
        let error = zigzag("ulysses").choose(&ALL, 4).unwrap_err().to_string();
        assert!(error.contains("has no layout `zigzag`"), "{error}");
        let by_degree = ParallelConfig { strategy: None, ..zigzag("") };
        assert!(by_degree.merge(&AttentionSpec::new(), "allgather_kv").is_err());
    }

    #[test]
    fn what_the_attribute_fixed_stays() {
        let spec = AttentionSpec::new().layout(RingLayout::Striped).ulysses(2);
        let merged = config(None, None, Some(2)).merge(&spec, "hybrid").unwrap();
        assert_eq!(
            (merged.ulysses, merged.ring, merged.layout),
            (Some(2), Some(2), Some(RingLayout::Striped))
        );
        let error = config(None, Some(4), None).merge(&spec, "hybrid").unwrap_err().to_string();
        assert!(error.contains("`ulysses = 2`") && error.contains("asks for 4"), "{error}");
    }
}
