//! Which keys queries may attend: kinds of masks, and how they are written.

use core::fmt;

/// A mask by position: of a query's keys, those at some distances.
///
/// Where there are more keys than queries, or fewer, the last query stands at the last key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Span {
    /// All of them.
    #[default]
    Full,
    /// Those up to the query's own position.
    Causal,
    /// Those from `left` positions before the query's own to `right` behind it.
    Window {
        /// How many before.
        left: usize,
        /// How many behind.
        right: usize,
    },
}

/// What of a mask there is: its span, and which masks by content narrow it. A key is attended if all allow it.
///
/// ```
/// use attn_plan::{Mask, Span};
///
/// let mask: Mask = "causal+segments".parse()?;
/// assert_eq!(mask, Mask { span: Span::Causal, segments: true, ..Mask::NONE });
/// assert_eq!("window(512)".parse(), Ok(Mask::from(Span::Window { left: 512, right: 0 })));
/// assert_eq!(mask.to_string(), "causal+segments");
/// # Ok::<(), attn_plan::MaskError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mask {
    /// The mask by position.
    pub span: Span,
    /// Whether rows of the batch have lengths, behind which keys are padding: `padding`.
    pub key_lengths: bool,
    /// Whether queries attend keys of their own segment alone: `segments`.
    pub segments: bool,
    /// Whether there is a mask of a value for each query and key: `dense`.
    pub dense: bool,
}

impl From<Span> for Mask {
    fn from(span: Span) -> Self {
        Self { span, ..Self::NONE }
    }
}

impl Mask {
    /// Every query attends every key.
    pub const NONE: Self = Self { span: Span::Full, key_lengths: false, segments: false, dense: false };

    /// The names of which masks are put together, as they are written.
    pub const NAMES: [&str; 6] = ["none", "causal", "window", "padding", "segments", "dense"];

    /// Whether joint tokens, which have no position among the others, may be attended under it.
    pub const fn takes_joint(self) -> bool {
        matches!(self.span, Span::Full) && !self.segments
    }
}

/// Masks that somebody takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MaskKinds {
    /// Spans other than the full one.
    pub span: bool,
    /// Key lengths.
    pub key_lengths: bool,
    /// Segments.
    pub segments: bool,
    /// Dense masks.
    pub dense: bool,
}

impl MaskKinds {
    /// Masks by position alone.
    pub const SPAN: Self = Self { span: true, key_lengths: false, segments: false, dense: false };

    /// Every mask.
    pub const ALL: Self = Self { span: true, key_lengths: true, segments: true, dense: true };

    /// Whether a mask is among them.
    pub const fn takes(self, mask: Mask) -> bool {
        (self.span || matches!(mask.span, Span::Full))
            && (self.key_lengths || !mask.key_lengths)
            && (self.segments || !mask.segments)
            && (self.dense || !mask.dense)
    }
}

impl fmt::Display for MaskKinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("none")?;
        let Self { span, key_lengths, segments, dense } = *self;
        let named =
            [(span, "causal, window"), (key_lengths, "padding"), (segments, "segments"), (dense, "dense")];
        named.iter().filter(|(has, _)| *has).try_for_each(|(_, name)| write!(f, ", {name}"))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("none"),
            Self::Causal => f.write_str("causal"),
            Self::Window { left, right } => write!(f, "window({left}, {right})"),
        }
    }
}

impl fmt::Display for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { span, key_lengths, segments, dense } = *self;
        let named = [(key_lengths, "padding"), (segments, "segments"), (dense, "dense")];
        let mut rest = named.iter().filter(|(has, _)| *has).map(|(_, name)| *name);
        match (span, rest.next()) {
            (Span::Full, Some(first)) => f.write_str(first)?,
            (span, None) => write!(f, "{span}")?,
            (span, Some(first)) => write!(f, "{span}+{first}")?,
        }
        rest.try_for_each(|name| write!(f, "+{name}"))
    }
}

impl core::str::FromStr for Mask {
    type Err = MaskError;

    /// Names joined by `+`; a window's numbers stand in parentheses, `window(512, 0)`, or behind a colon,
    /// `window:512,0`; of one number the other is zero.
    fn from_str(text: &str) -> Result<Self, MaskError> {
        let mut mask = Self::NONE;
        let mut seen: Vec<&str> = Vec::new();
        let terms: Vec<&str> = text.split('+').map(str::trim).collect();
        for term in &terms {
            let name = term.split(['(', ':']).next().unwrap_or_default().trim_end();
            let Some(name) = Self::NAMES.into_iter().find(|known| *known == name) else {
                return Err(MaskError::Unknown(name.to_owned()));
            };
            if name != "window" && *term != name {
                return Err(MaskError::Arguments((*term).to_owned()));
            }
            let is_span = |name: &str| name == "causal" || name == "window";
            if let Some(other) = seen.iter().find(|other| **other == name || is_span(other) && is_span(name))
            {
                return Err(MaskError::Conflict((*other).to_owned(), name.to_owned()));
            }
            seen.push(name);
            match name {
                "causal" => mask.span = Span::Causal,
                "window" => mask.span = window(term)?,
                "padding" => mask.key_lengths = true,
                "segments" => mask.segments = true,
                "dense" => mask.dense = true,
                _ if terms.len() > 1 => {
                    return Err(MaskError::Conflict("none".to_owned(), "others".to_owned()));
                }
                _ => {}
            }
        }
        Ok(mask)
    }
}

/// `window(left, right)`, `window(left)`, `window:left,right` or `window:left`.
fn window(term: &str) -> Result<Span, MaskError> {
    let fail = || MaskError::Window(term.to_owned());
    let rest = term["window".len()..].trim_start();
    let inside = match rest.strip_prefix('(') {
        Some(rest) => rest.strip_suffix(')').ok_or_else(fail)?,
        None => rest.strip_prefix(':').ok_or_else(fail)?,
    };
    let numbers: Result<Vec<usize>, _> = inside.split(',').map(|number| number.trim().parse()).collect();
    match numbers.map_err(|_| fail())?[..] {
        [left] => Ok(Span::Window { left, right: 0 }),
        [left, right] => Ok(Span::Window { left, right }),
        _ => Err(fail()),
    }
}

/// A mask that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MaskError {
    /// There is no mask of this name.
    Unknown(String),
    /// Two that cannot stand together, or one twice.
    Conflict(String, String),
    /// Arguments where none belong.
    Arguments(String),
    /// A window whose numbers cannot be read.
    Window(String),
}

impl fmt::Display for MaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(name) => {
                let names = Mask::NAMES.map(|name| format!("`{name}`"));
                write!(
                    f,
                    "unknown mask `{name}`: expected {}, or several of them joined by `+`",
                    names.join(", ")
                )
            }
            Self::Conflict(one, other) if one == other => write!(f, "mask `{one}` is given twice"),
            Self::Conflict(one, _) if one == "none" => {
                f.write_str("mask `none` stands alone: leave it out, or the others")
            }
            Self::Conflict(one, other) => {
                write!(f, "masks `{one}` and `{other}` cannot be joined: `window(512, 0)` is causal already")
            }
            Self::Arguments(term) => write!(f, "`{term}`: only `window` has numbers"),
            Self::Window(term) => write!(
                f,
                "`{term}` is no window: expected `window(left, right)` or `window:left,right`, two whole numbers, of \
                 which the second may be left out"
            ),
        }
    }
}

impl core::error::Error for MaskError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for text in [
            "none",
            "causal",
            "window(3, 0)",
            "padding",
            "segments",
            "dense",
            "causal+segments",
            "causal+padding+dense",
            "window(0, 7)+padding+segments+dense",
        ] {
            assert_eq!(text.parse::<Mask>().unwrap().to_string(), text);
        }
        assert_eq!("window:3,4".parse(), Ok(Mask::from(Span::Window { left: 3, right: 4 })));
        assert_eq!(" segments + causal ".parse::<Mask>().unwrap().to_string(), "causal+segments");
        assert_eq!("window:5".parse(), "window( 5 , 0 )".parse::<Mask>());
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        for (text, say) in [
            ("casual", "unknown mask `casual`"),
            ("", "unknown mask ``"),
            ("causal+", "unknown mask ``"),
            ("causal+causal", "given twice"),
            ("causal+window(1)", "cannot be joined"),
            ("none+causal", "stands alone"),
            ("segments+none", "stands alone"),
            ("causal(3)", "only `window` has numbers"),
            ("window", "is no window"),
            ("window(1, 2", "is no window"),
            ("window(1, 2, 3)", "is no window"),
            ("window(-1)", "is no window"),
        ] {
            let error = text.parse::<Mask>().unwrap_err().to_string();
            assert!(error.contains(say), "{text}: {error}");
        }
    }

    #[test]
    fn kinds_take_what_they_name() {
        let segments = Mask { segments: true, ..Mask::NONE };
        assert!(MaskKinds::ALL.takes(segments) && !MaskKinds::SPAN.takes(segments));
        assert!(MaskKinds::SPAN.takes(Span::Causal.into()));
        assert!(!MaskKinds { span: false, ..MaskKinds::ALL }.takes(Span::Causal.into()));
        assert_eq!(MaskKinds::SPAN.to_string(), "none, causal, window");
    }
}
