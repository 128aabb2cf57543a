//! Which of its kernels `Flash` is for a call on a card: a table, of which each row says how it is known.
//!
//! A table is text, a row a line:
//!
//! ```text
//! # capability  head_dim  mask  keys  kernel           how it is known
//! 9.0           128       full  8192  sm90/overlapped  measured NVIDIA H100 80GB HBM3, 0.61 ms of 0.61 to 0.74
//! 8.0           *         *     *     sm80             estimated the only kernel for it
//! ```
//!
//! `mask` is `full`, or `band` for causal masks and windows; `*` stands for anything. For a call the row counts that names
//! most of it; among rows that differ in `keys` alone the nearest. One table is part of the library; rows of the file that
//! the environment variable `ATTN_TUNING` names, which `attn bench --device cuda --tune` writes, come before its rows.

use core::fmt::{self, Display};
use std::path::Path;
use std::sync::OnceLock;

use attn_runtime::{Error, Result};

use super::flash::{FlashForm, FlashSm80, FlashSm90};
use super::kernel::{Kernel, KernelInfo};

/// The table that is part of the library.
const SHIPPED: &str = include_str!("tuning.txt");

/// The environment variable that names another table.
const VARIABLE: &str = "ATTN_TUNING";

/// One of the kernels that `Flash` can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FlashVariant {
    /// [`FlashSm90`] in its overlapped form.
    Sm90Overlapped,
    /// [`FlashSm90`] in its simple form.
    Sm90Simple,
    /// [`FlashSm80`].
    Sm80,
}

impl FlashVariant {
    /// All of them, in the order in which they are taken where no table says anything.
    pub const ALL: [Self; 3] = [Self::Sm90Overlapped, Self::Sm90Simple, Self::Sm80];

    /// Its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sm90Overlapped => "sm90/overlapped",
            Self::Sm90Simple => "sm90/simple",
            Self::Sm80 => "sm80",
        }
    }

    /// What it takes.
    pub const fn info(self) -> &'static KernelInfo {
        self.kernel().info
    }

    pub(crate) const fn kernel(self) -> Kernel {
        match self {
            Self::Sm90Overlapped => FlashSm90::new(FlashForm::Overlapped).chosen(),
            Self::Sm90Simple => FlashSm90::new(FlashForm::Simple).chosen(),
            Self::Sm80 => FlashSm80.chosen(),
        }
    }

    /// Whether it can do a call on a card.
    pub fn takes(self, asked: &Asked) -> bool {
        self.info().needs.is_of(asked.capability) && self.info().takes_head_dim(asked.head_dim)
    }
}

/// What of a call and its card a choice depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The card's compute capability: major and minor.
    pub capability: (u32, u32),
    /// Elements of a row.
    pub head_dim: usize,
    /// Whether the mask leaves keys out by their position.
    pub banded: bool,
    /// How many keys there are.
    pub keys: usize,
}

/// A row of a table. What it does not name it is for anyway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The card's compute capability: major and minor.
    pub capability: (u32, u32),
    /// Elements of a row.
    pub head_dim: Option<usize>,
    /// Whether the mask leaves keys out by their position.
    pub banded: Option<bool>,
    /// How many keys there are.
    pub keys: Option<usize>,
    /// What to call.
    pub variant: FlashVariant,
    /// Whether that was measured. Otherwise it is an estimate.
    pub measured: bool,
    /// Where and how; or what the estimate rests on.
    pub provenance: String,
}

impl Choice {
    /// How well the row fits: how much of what is asked it names, and, negative, how far its keys are from those asked for.
    fn fit(&self, asked: &Asked) -> Option<(u32, f64)> {
        let fits = self.capability == asked.capability
            && self.head_dim.is_none_or(|head_dim| head_dim == asked.head_dim)
            && self.banded.is_none_or(|banded| banded == asked.banded)
            && self.variant.takes(asked);
        let named = [self.head_dim.is_some(), self.banded.is_some(), self.keys.is_some()];
        let named = named.into_iter().map(u32::from).sum();
        let far = self.keys.map_or(0.0, |keys| (keys.max(1) as f64 / asked.keys.max(1) as f64).log2().abs());
        fits.then_some((named, -far))
    }

    fn parse(line: &str) -> core::result::Result<Self, String> {
        let mut words = line.split_whitespace();
        let mut next = |what: &str| words.next().ok_or(format!("has no {what}"));
        let (capability, head_dim, mask, keys) =
            (next("capability")?, next("head_dim")?, next("mask")?, next("keys")?);
        let (kernel, known) = (next("kernel")?, next("`measured` or `estimated`")?);
        let number = |word: &str, what: &str| match word {
            "*" => Ok(None),
            word => match word.parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(format!("has `{word}` for {what}: a number or `*`")),
            },
        };
        let numbers = capability.split_once('.').map(|(major, minor)| (major.parse(), minor.parse()));
        let Some((Ok(major), Ok(minor))) = numbers else {
            return Err(format!("has `{capability}` for a capability: such as 9.0"));
        };
        let banded = match mask {
            "*" => None,
            "full" => Some(false),
            "band" => Some(true),
            other => return Err(format!("has `{other}` for a mask: full, band or `*`")),
        };
        let Some(variant) = FlashVariant::ALL.into_iter().find(|variant| variant.name() == kernel) else {
            let names = FlashVariant::ALL.map(FlashVariant::name).join(", ");
            return Err(format!("has `{kernel}` for a kernel: {names}"));
        };
        let measured = match known {
            "measured" => true,
            "estimated" => false,
            other => return Err(format!("has `{other}` for how it is known: measured or estimated")),
        };
        Ok(Self {
            capability: (major, minor),
            head_dim: number(head_dim, "head_dim")?,
            banded,
            keys: number(keys, "keys")?,
            variant,
            measured,
            provenance: words.collect::<Vec<_>>().join(" "),
        })
    }
}

impl Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: Option<usize>| number.map_or(String::from("*"), |number| number.to_string());
        let (major, minor) = self.capability;
        let mask = self.banded.map_or("*", |banded| if banded { "band" } else { "full" });
        write!(
            f,
            "{:<4} {:<4} {mask:<5} {:<7} {:<16} {} {}",
            format!("{major}.{minor}"),
            number(self.head_dim),
            number(self.keys),
            self.variant.name(),
            if self.measured { "measured" } else { "estimated" },
            self.provenance
        )
    }
}

/// A table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuning {
    choices: Vec<Choice>,
}

impl Tuning {
    /// The table that is part of the library.
    ///
    /// # Errors
    /// Never: a test reads it.
    pub fn shipped() -> Result<Self> {
        Self::parse("the table of this library", SHIPPED)
    }

    /// The table in a file.
    ///
    /// # Errors
    /// If the file cannot be read, or a line is no row.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| unreadable(format!("{}: {error}", path.display())))?;
        Self::parse(&path.display().to_string(), &text)
    }

    fn parse(name: &str, text: &str) -> Result<Self> {
        let mut choices = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let choice = Choice::parse(line)
                .map_err(|why| unreadable(format!("line {} of {name} {why}", number + 1)))?;
            choices.push(choice);
        }
        Ok(Self { choices })
    }

    /// The rows.
    pub fn choices(&self) -> &[Choice] {
        &self.choices
    }

    /// Puts a row in the place of one for the same, or adds it.
    pub fn set(&mut self, choice: Choice) {
        let same = |other: &&mut Choice| {
            (other.capability, other.head_dim, other.banded, other.keys)
                == (choice.capability, choice.head_dim, choice.banded, choice.keys)
        };
        match self.choices.iter_mut().find(same) {
            Some(other) => *other = choice,
            None => self.choices.push(choice),
        }
    }

    /// What to call: the row that fits best, the first of several; without one, the first kernel that takes the call.
    pub fn choose(&self, asked: &Asked) -> Option<FlashVariant> {
        let mut best: Option<((u32, f64), FlashVariant)> = None;
        for choice in &self.choices {
            if let Some(fit) = choice.fit(asked)
                && best.is_none_or(|(other, _)| fit > other)
            {
                best = Some((fit, choice.variant));
            }
        }
        let any = || FlashVariant::ALL.into_iter().find(|variant| variant.takes(asked));
        best.map(|(_, variant)| variant).or_else(any)
    }

    /// The table that calls go by: this library's, and before it the file that `ATTN_TUNING` names. It is read once.
    ///
    /// # Errors
    /// If that file cannot be read, or a line of it is no row.
    pub fn in_force() -> Result<&'static Self> {
        static TABLE: OnceLock<Result<Tuning>> = OnceLock::new();
        let table = TABLE.get_or_init(|| {
            let mut table = Self::shipped()?;
            if let Some(path) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
                let mut own = Self::read(Path::new(&path))?;
                own.choices.append(&mut table.choices);
                table = own;
            }
            Ok(table)
        });
        table.as_ref().map_err(Clone::clone)
    }
}

impl Display for Tuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# capability, head_dim, mask, keys, kernel, how it is known")?;
        self.choices.iter().try_for_each(|choice| writeln!(f, "{choice}"))
    }
}

fn unreadable(why: String) -> Error {
    Error::Unavailable {
        what: "a table of kernels",
        why,
        cure: String::from(
            "unset ATTN_TUNING, or let it name a file that `attn bench --device cuda --tune FILE` wrote",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Asked = Asked { capability: (9, 0), head_dim: 128, banded: false, keys: 4096 };

    fn table(text: &str) -> Tuning {
        Tuning::parse("a table", text).unwrap()
    }

    #[test]
    fn the_shipped_table_has_rows_for_every_architecture_and_names_what_takes_them() {
        let table = Tuning::shipped().unwrap();
        for capability in [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)] {
            assert!(table.choices().iter().any(|choice| choice.capability == capability), "{capability:?}");
        }
        for choice in table.choices() {
            let asked = Asked {
                capability: choice.capability,
                head_dim: choice.head_dim.unwrap_or(128),
                banded: choice.banded.unwrap_or(false),
                keys: choice.keys.unwrap_or(4096),
            };
            assert!(choice.variant.takes(&asked), "{choice}");
            assert!(!choice.provenance.is_empty(), "{choice}");
        }
    }

    #[test]
    fn the_row_that_names_most_counts_and_of_those_the_nearest() {
        let table = table(
            "9.0 *   *    *    sm80            estimated a\n\
             9.0 128 full *    sm90/simple     estimated b\n\
             9.0 128 full 1024 sm90/overlapped measured  c\n\
             9.0 128 full 8192 sm90/simple     measured  d\n",
        );
        assert_eq!(table.choose(&ASKED), Some(FlashVariant::Sm90Simple));
        assert_eq!(table.choose(&Asked { keys: 2000, ..ASKED }), Some(FlashVariant::Sm90Overlapped));
        assert_eq!(table.choose(&Asked { banded: true, ..ASKED }), Some(FlashVariant::Sm80));
        // Hopper's kernel is for no other card, whatever a table says.
        let ampere = Asked { capability: (8, 0), ..ASKED };
        assert_eq!(
            super::tests::table("8.0 * * * sm90/simple estimated e").choose(&ampere),
            Some(FlashVariant::Sm80)
        );
        assert_eq!(table.choose(&Asked { capability: (7, 5), ..ASKED }), None);
        assert_eq!(table.choose(&Asked { head_dim: 72, ..ASKED }), None);
    }

    #[test]
    fn rows_survive_being_written_and_take_the_place_of_their_like() {
        let mut written = Tuning::shipped().unwrap();
        assert_eq!(table(&written.to_string()), written);
        let rows = written.choices().len();
        let choice = Choice {
            capability: (9, 0),
            head_dim: Some(96),
            banded: Some(true),
            keys: Some(512),
            variant: FlashVariant::Sm80,
            measured: true,
            provenance: String::from("somewhere"),
        };
        written.set(choice.clone());
        written.set(Choice { measured: false, ..choice });
        assert_eq!(written.choices().len(), rows + 1);
        assert!(!written.choices()[rows].measured);
    }

    #[test]
    fn a_line_that_is_no_row_is_named() {
        for (line, part) in [
            ("9 128 full 1024 sm80 measured x", "`9` for a capability"),
            ("9.0 x full 1024 sm80 measured x", "`x` for head_dim"),
            ("9.0 128 causal 1024 sm80 measured x", "`causal` for a mask"),
            ("9.0 128 full 1024 sm70 measured x", "`sm70` for a kernel: sm90/overlapped, sm90/simple, sm80"),
            ("9.0 128 full 1024 sm80 guessed x", "`guessed` for how it is known"),
            ("9.0 128 full", "has no keys"),
        ] {
            let said = Tuning::parse("t.txt", &format!("# head\n\n{line}\n")).unwrap_err().to_string();
            assert!(said.contains("line 3 of t.txt") && said.contains(part), "{said}");
        }
    }
}
