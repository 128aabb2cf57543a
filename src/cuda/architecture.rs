//! What the code of a kernel needs of a card.

use attn_runtime::Result;

use super::launches::Launches;
use super::layout;

/// What the code of a kernel needs of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Architecture {
    /// Compute capability 8.0 or later.
    Ampere,
    /// Compute capability 9.0, with instructions that neither older nor newer cards have.
    Hopper,
}

impl Architecture {
    /// Whether a card of a compute capability (major, minor) has it.
    pub const fn is_of(self, (major, minor): (u32, u32)) -> bool {
        match self {
            Self::Ampere => major >= 8,
            Self::Hopper => major == 9 && minor == 0,
        }
    }

    const fn cards(self) -> &'static str {
        match self {
            Self::Ampere => "cards of compute capability 8.0 and later (Ampere, Ada, Hopper, Blackwell)",
            Self::Hopper => "compute capability 9.0 (H100, H200)",
        }
    }
}

/// That a queue's card has what a kernel needs.
///
/// # Errors
/// If it has not.
pub(crate) fn supports<D: Launches>(
    queue: &D::Queue,
    kernel: &'static str,
    needs: Architecture,
) -> Result<()> {
    let (major, minor) = D::capability(queue);
    if needs.is_of((major, minor)) {
        return Ok(());
    }
    let what = format!("compute capability {major}.{minor} ({})", D::label(queue));
    Err(layout::unsupported(kernel, what, format!("it is for {}", needs.cards())))
}
