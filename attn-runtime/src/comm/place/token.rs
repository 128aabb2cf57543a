//! What the processes of one world know and others do not.

use core::fmt;
use core::hint::black_box;

use crate::error::{Error, Result};

/// What all ranks of a world know, so that they do not take those of another one for their own. It goes over the network
/// as it is: it is no secret to who can listen there.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    bytes: [u8; Self::LONGEST],
}

impl Token {
    /// The most bytes that a token has.
    pub const LONGEST: usize = 128;

    /// The token of a world that was given none.
    pub(crate) const NONE: Self = Self { bytes: [0; Self::LONGEST] };

    /// A token.
    ///
    /// # Errors
    /// If it is empty or longer than 128 bytes, or has a zero byte in it.
    pub fn new(text: &str) -> Result<Self> {
        if text.is_empty() || text.len() > Self::LONGEST || text.contains('\0') {
            return Err(Error::Environment(format!(
                "the token (`ATTN_TOKEN`) has {} bytes: it must have 1 to {}, none of them zero",
                text.len(),
                Self::LONGEST
            )));
        }
        Ok(Self::derived(text))
    }

    /// A token from what a launcher says of its job: as much of it as fits.
    pub(super) fn derived(text: &str) -> Self {
        let mut token = Self::NONE;
        for (to, from) in token.bytes.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        token
    }

    /// As it goes over the network: always as long.
    pub(crate) const fn bytes(&self) -> &[u8; Self::LONGEST] {
        &self.bytes
    }

    /// Whether these are its bytes. Takes as long wherever they differ.
    pub(crate) fn is(&self, bytes: &[u8; Self::LONGEST]) -> bool {
        let differences = self.bytes.iter().zip(bytes).fold(0, |all, (a, b)| black_box(all | (a ^ b)));
        differences == 0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}
