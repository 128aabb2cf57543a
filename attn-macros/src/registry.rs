//! What the attribute knows by name: strategies, backends and keys, one row each; and of names that others keep
//! (layouts of a ring, splits), what to call them.

use attn_plan::{RingLayout, Split};

/// A row that is looked up by name.
pub(crate) trait Named {
    /// What the table's rows are, in messages.
    const WHAT: &'static str;
    /// The name by which the attribute calls this row.
    fn name(&self) -> &'static str;
}

/// A strategy of this crate.
#[derive(Debug)]
pub(crate) struct Strategy {
    /// Its name in `strategy = ".."`.
    pub(crate) name: &'static str,
    /// Its type, `<C, SCATTER, GATHER>`, in `attn::__private`.
    pub(crate) type_name: &'static str,
    /// Its variant in the enum that a list of strategies becomes.
    pub(crate) variant: &'static str,
    /// The keys of the degrees whose product is its whole one, `degree`. With [`Key::Ulysses`] it splits the heads.
    pub(crate) degrees: &'static [Key],
    /// The keys that it has beside these and those of every strategy.
    pub(crate) keys: &'static [Key],
    /// If it needs a kernel that computes in 8 bits: the strategy that does the same for every kernel.
    pub(crate) at_full_width: Option<&'static str>,
}

/// Every strategy.
pub(crate) static STRATEGIES: [Strategy; 7] = [
    Strategy {
        name: "none",
        type_name: "NoParallelAttention",
        variant: "None",
        degrees: &[],
        keys: &[],
        at_full_width: None,
    },
    Strategy {
        name: "ulysses",
        type_name: "UlyssesParallelAttention",
        variant: "Ulysses",
        degrees: &[Key::Ulysses],
        keys: &[Key::Degree, Key::Split, Key::UseSync, Key::FuseQkv],
        at_full_width: None,
    },
    Strategy {
        name: "ring",
        type_name: "RingParallelAttention",
        variant: "Ring",
        degrees: &[Key::Ring],
        keys: &[Key::Degree, Key::Layout, Key::Split, Key::UseSync],
        at_full_width: None,
    },
    Strategy {
        name: "hybrid",
        type_name: "HybridParallelAttention",
        variant: "Hybrid",
        degrees: &[Key::Ulysses, Key::Ring],
        keys: &[Key::Degree, Key::Layout, Key::Split, Key::UseSync, Key::FuseQkv],
        at_full_width: None,
    },
    Strategy {
        name: "allgather_kv",
        type_name: "AllGatherKvParallelAttention",
        variant: "AllGatherKv",
        degrees: &[Key::AllGather],
        keys: &[Key::Degree, Key::Split, Key::UseSync],
        at_full_width: None,
    },
    Strategy {
        name: "ulysses_allgather",
        type_name: "UlyssesAllGatherParallelAttention",
        variant: "UlyssesAllGather",
        degrees: &[Key::Ulysses, Key::AllGather],
        keys: &[Key::Degree, Key::Split, Key::UseSync, Key::FuseQkv],
        at_full_width: None,
    },
    Strategy {
        name: "ulysses_quantised",
        type_name: "UlyssesQuantisedParallelAttention",
        variant: "UlyssesQuantised",
        degrees: &[Key::Ulysses],
        keys: &[Key::Degree, Key::Split, Key::UseSync],
        at_full_width: Some("ulysses"),
    },
];

impl Strategy {
    /// Whether `key` may stand beside this strategy.
    pub(crate) fn has(&self, key: Key) -> bool {
        key.row().shared || self.degrees.contains(&key) || self.keys.contains(&key)
    }
}

/// A kernel of this crate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backend {
    /// Its name in `backend = ".."`, and that of the cargo feature which it needs.
    pub(crate) name: &'static str,
    /// Its type in `attn::__private`.
    pub(crate) type_name: &'static str,
    /// Whether that feature is on.
    pub(crate) enabled: bool,
    /// Whether it computes in 8 bits.
    pub(crate) eight_bits: bool,
}

/// Every backend.
pub(crate) static BACKENDS: [Backend; 3] = [
    Backend { name: "sdpa", type_name: "Sdpa", enabled: cfg!(feature = "sdpa"), eight_bits: false },
    Backend { name: "flash", type_name: "Flash", enabled: cfg!(feature = "flash"), eight_bits: false },
    Backend { name: "sage", type_name: "Sage", enabled: cfg!(feature = "sage"), eight_bits: true },
];

/// The backend of an attribute that names none.
pub(crate) const DEFAULT_BACKEND: &str = "flash";

/// A key of the attribute. Its [row](Key::row) says what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Strategy,
    Scatter,
    Gather,
    Heads,
    KvHeads,
    HeadDim,
    Degree,
    Ulysses,
    Ring,
    AllGather,
    Layout,
    Split,
    Scale,
    Mask,
    UseSync,
    FuseQkv,
    Backend,
    Crate,
}

/// What may be said of a key.
#[derive(Debug)]
pub(crate) struct KeyRow {
    /// The key.
    pub(crate) key: Key,
    /// Its name.
    pub(crate) name: &'static str,
    /// What its value must be, in words.
    pub(crate) expects: &'static str,
    /// Such a value.
    pub(crate) example: &'static str,
    /// Whether every strategy has it. Otherwise the strategies' rows tell.
    pub(crate) shared: bool,
}

/// Every key, in the order of [`Key`].
pub(crate) static KEYS: [KeyRow; 18] = [
    KeyRow {
        key: Key::Strategy,
        name: "strategy",
        expects: "a name, a path or a list of names",
        example: "\"ulysses\"",
        shared: true,
    },
    KeyRow { key: Key::Scatter, name: "scatter", expects: AXIS, example: "2", shared: true },
    KeyRow { key: Key::Gather, name: "gather", expects: AXIS, example: "1", shared: true },
    KeyRow { key: Key::Heads, name: "heads", expects: COUNT, example: "24", shared: true },
    KeyRow { key: Key::KvHeads, name: "kv_heads", expects: COUNT, example: "8", shared: true },
    KeyRow { key: Key::HeadDim, name: "head_dim", expects: COUNT, example: "128", shared: true },
    KeyRow { key: Key::Degree, name: "degree", expects: COUNT, example: "4", shared: false },
    KeyRow { key: Key::Ulysses, name: "ulysses", expects: COUNT, example: "2", shared: false },
    KeyRow { key: Key::Ring, name: "ring", expects: COUNT, example: "2", shared: false },
    KeyRow { key: Key::AllGather, name: "allgather", expects: COUNT, example: "2", shared: false },
    KeyRow { key: Key::Layout, name: "layout", expects: "a name", example: "\"zigzag\"", shared: false },
    KeyRow { key: Key::Split, name: "split", expects: "a name", example: "\"uneven\"", shared: false },
    KeyRow {
        key: Key::Scale,
        name: "scale",
        expects: "a finite number above 0 that `f32` can hold",
        example: "0.125",
        shared: true,
    },
    KeyRow {
        key: Key::Mask,
        name: "mask",
        expects: "a name, or several joined by `+`",
        example: "\"causal\"",
        shared: true,
    },
    KeyRow { key: Key::UseSync, name: "use_sync", expects: "a bool", example: "true", shared: false },
    KeyRow { key: Key::FuseQkv, name: "fuse_qkv", expects: "a bool", example: "false", shared: false },
    KeyRow {
        key: Key::Backend,
        name: "backend",
        expects: "a name or a path",
        example: "\"flash\"",
        shared: true,
    },
    KeyRow { key: Key::Crate, name: "crate", expects: "a path", example: "my_attn", shared: true },
];

const AXIS: &str = "the number of an axis";
const COUNT: &str = "an integer from 1 to 65535";

impl Key {
    /// This key's row.
    pub(crate) fn row(self) -> &'static KeyRow {
        &KEYS[self as usize]
    }
}

impl Named for Strategy {
    const WHAT: &'static str = "strategy";
    fn name(&self) -> &'static str {
        self.name
    }
}

impl Named for Backend {
    const WHAT: &'static str = "backend";
    fn name(&self) -> &'static str {
        self.name
    }
}

impl Named for RingLayout {
    const WHAT: &'static str = "layout";
    fn name(&self) -> &'static str {
        (*self).name()
    }
}

impl Named for Split {
    const WHAT: &'static str = "split";
    fn name(&self) -> &'static str {
        (*self).name()
    }
}

impl Named for KeyRow {
    const WHAT: &'static str = "key";
    fn name(&self) -> &'static str {
        self.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_finds_its_row() {
        for (idx, row) in KEYS.iter().enumerate() {
            assert_eq!(row.key as usize, idx, "{}", row.name);
        }
    }

    #[test]
    fn every_key_belongs_to_a_strategy() {
        for row in &KEYS {
            assert!(STRATEGIES.iter().any(|strategy| strategy.has(row.key)), "{}", row.name);
            let times = |s: &Strategy| s.degrees.iter().chain(s.keys).filter(|key| **key == row.key).count();
            assert!(STRATEGIES.iter().all(|s| times(s) + usize::from(row.shared) <= 1), "{}", row.name);
        }
    }

    #[test]
    fn parallel_strategies_have_a_degree_a_split_and_use_sync() {
        for strategy in &STRATEGIES {
            for key in [Key::Degree, Key::Split, Key::UseSync] {
                assert_eq!(strategy.has(key), !strategy.degrees.is_empty(), "{} {key:?}", strategy.name);
            }
            assert_eq!(strategy.has(Key::Layout), strategy.has(Key::Ring), "{}", strategy.name);
            // What is rounded before it is exchanged goes at once.
            let may_fuse = strategy.has(Key::Ulysses) && strategy.at_full_width.is_none();
            assert_eq!(strategy.has(Key::FuseQkv), may_fuse, "{}", strategy.name);
        }
    }

    #[test]
    fn what_needs_8_bits_has_a_backend_and_a_strategy_instead() {
        for instead in STRATEGIES.iter().filter_map(|strategy| strategy.at_full_width) {
            let any_kernel = |other: &Strategy| other.name == instead && other.at_full_width.is_none();
            assert!(STRATEGIES.iter().any(any_kernel), "{instead}");
            assert!(BACKENDS.iter().any(|backend| backend.eight_bits), "{instead}");
        }
    }

    #[test]
    fn the_default_backend_is_in_the_table() {
        assert!(BACKENDS.iter().any(|backend| backend.name == DEFAULT_BACKEND));
    }
}
