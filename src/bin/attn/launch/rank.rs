//! The last step of a keeper's child before it is the rank's program.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::cli::RankArgs;
use crate::failure::Failure;

/// What a shell's exit codes for this are.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// Becomes the program. On Linux it is killed when its keeper is gone, were that killed itself.
///
/// # Errors
/// If it cannot be started.
pub(crate) fn become_rank(args: &RankArgs) -> Result<(), Failure> {
    end_with(args.keeper)?;
    let [program, arguments @ ..] = args.command.as_slice() else {
        return Err(Failure::Usage(String::from("which program?")));
    };
    let error = Command::new(program).args(arguments).exec();
    Err(failure(program, &error))
}

/// Asks to be killed when the parent ends, where that can be asked for; if it has ended already, there is nobody to work
/// for.
fn end_with(keeper: u32) -> Result<(), Failure> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|error| Failure::System(format!("cannot bind a rank to its keeper: {error}")))?;
    let parent = rustix::process::getppid().map_or(0, |parent| parent.as_raw_nonzero().get());
    if u32::try_from(parent) == Ok(keeper) {
        return Ok(());
    }
    Err(Failure::System(String::from("the keeper of this rank has ended before it began")))
}

fn failure(program: &OsString, error: &io::Error) -> Failure {
    let code = if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
    Failure::Rank { message: format!("cannot start `{}`: {error}", program.to_string_lossy()), code }
}
