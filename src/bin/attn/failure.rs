//! How the program ends when it does not end well: one line on stderr, and an exit code that says whose turn it is.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

/// Why the program stops. Every kind has an exit code of its own; `--help` lists them.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Help or the version was asked for, and given.
    Answered,
    /// A result is further from what it is compared with than rounding explains.
    Tolerance(String),
    /// The command line asks for what the program does not have.
    Usage(String),
    /// Tensors, or what is asked for them, do not fit.
    Input(String),
    /// The system refused: a file, memory, a thread, a GPU.
    System(String),
    /// A mistake in this program.
    Internal(String),
    /// A launched program ended with a code of its own.
    Rank { message: String, code: u8 },
    /// Another rank of this world has failed by itself, and says so itself.
    Told { code: u8 },
}

impl Failure {
    /// A file that could not be read, written or found.
    pub(crate) fn file(what: &str, path: &Path, error: &io::Error) -> Self {
        Self::System(format!("cannot {what} `{}`: {error}", path.display()))
    }

    /// Says on stderr why, and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        if !matches!(self, Self::Answered | Self::Told { .. }) {
            // When stderr is closed too, the exit code is all that can be said.
            let _ = writeln!(io::stderr(), "attn: {self}");
        }
        ExitCode::from(self.code())
    }

    /// The exit code.
    pub(crate) const fn code(&self) -> u8 {
        match self {
            Self::Answered => 0,
            Self::Tolerance(_) => 1,
            Self::Usage(_) => 2,
            Self::Input(_) => 3,
            Self::System(_) => 4,
            Self::Internal(_) => 5,
            Self::Rank { code, .. } | Self::Told { code } => *code,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered => Ok(()),
            Self::Told { code } => write!(f, "another rank failed, with exit code {code}"),
            Self::Tolerance(message)
            | Self::Usage(message)
            | Self::Input(message)
            | Self::System(message)
            | Self::Internal(message)
            | Self::Rank { message, .. } => f.write_str(message),
        }
    }
}

impl From<attn::Error> for Failure {
    fn from(error: attn::Error) -> Self {
        use attn::Error;
        let message = error.to_string();
        match error {
            Error::OutOfMemory { .. }
            | Error::Thread(_)
            | Error::Device { .. }
            | Error::Library { .. }
            | Error::RankFailed { .. }
            | Error::RankLost { .. }
            | Error::Deadline { .. }
            | Error::Unavailable { .. } => Self::System(message),
            Error::Environment(_) => Self::Usage(message),
            Error::RankPanicked { .. }
            | Error::RankLeft { .. }
            | Error::RanksDisagree { .. }
            | Error::Reentrant
            | Error::Capturing { .. }
            | Error::Plan(_) => Self::Internal(message),
            _ => Self::Input(message),
        }
    }
}
