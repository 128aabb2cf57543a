//! Files that appear whole or not at all.

#[cfg(unix)]
use std::fs::Permissions;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::{Builder, NamedTempFile};

use crate::failure::Failure;

/// The temporary file that is being written.
static UNFINISHED: Mutex<Option<PathBuf>> = Mutex::new(None);

/// How many links a name may lead through, as Linux has it.
const MAX_LINKS: usize = 40;

/// A file to be written, known to be writable.
#[derive(Debug)]
pub(crate) struct Output {
    /// As the user calls it.
    name: PathBuf,
    /// Where its links lead.
    target: PathBuf,
}

impl Output {
    /// Finds out, before any work is done, whether the file can be written. Leaves nothing behind.
    ///
    /// # Errors
    /// If it cannot.
    pub(crate) fn prepare(name: &Path) -> Result<Self, Failure> {
        let fail = |error: io::Error| Failure::file("write", name, &error);
        let target = resolve(name).map_err(fail)?;
        match fs::metadata(&target) {
            Ok(found) if found.is_dir() => return Err(fail(io::Error::other("it is a folder"))),
            Ok(found) if !found.is_file() => return Err(fail(io::Error::other("it is not a regular file"))),
            // A file that may not be written is not replaced either, though its folder would allow it.
            Ok(_) => drop(OpenOptions::new().append(true).open(&target).map_err(fail)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail(error)),
        }
        if target.file_name().is_none() {
            return Err(fail(io::Error::other("this names no file")));
        }
        let output = Self { name: name.to_owned(), target };
        output.beside().and_then(NamedTempFile::close).map_err(fail)?;
        Ok(output)
    }

    /// As the user calls it.
    pub(crate) fn name(&self) -> &Path {
        &self.name
    }

    /// Writes the file: beside its place first, and then there in one step.
    ///
    /// # Errors
    /// If it cannot; then what was there is still there.
    pub(crate) fn write(&self, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), Failure> {
        let fail = |error: io::Error| Failure::file("write", &self.name, &error);
        let mut file = {
            let mut unfinished = unfinished();
            let file = self.beside().map_err(fail)?;
            *unfinished = Some(file.path().to_owned());
            file
        };
        fill(file.as_file_mut()).map_err(fail)?;
        file.as_file_mut().flush().and_then(|()| file.as_file().sync_all()).map_err(fail)?;
        if let Ok(found) = fs::metadata(&self.target) {
            file.as_file().set_permissions(found.permissions()).map_err(fail)?;
        }
        let mut unfinished = unfinished();
        file.persist(&self.target).map_err(|error| fail(error.error))?;
        *unfinished = None;
        Ok(())
    }

    /// A temporary file in the target's folder, so that it can be renamed to the target.
    fn beside(&self) -> io::Result<NamedTempFile> {
        let folder = self.target.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        fs::metadata(folder)?;
        let mut builder = Builder::new();
        builder.prefix(".attn-");
        #[cfg(unix)]
        builder.permissions(<Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o666));
        // The error names the temporary file, which would say nothing to the user; its kind does.
        builder.tempfile_in(folder).map_err(|error| error.kind().into())
    }
}

fn unfinished() -> MutexGuard<'static, Option<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes what is half written, and lets nothing more be written: the process is about to end.
pub(crate) fn abandon() {
    let unfinished = unfinished();
    if let Some(file) = &*unfinished {
        // It may be gone already; nothing else can be done about it.
        let _ = fs::remove_file(file);
    }
    std::mem::forget(unfinished);
}

/// Follows the links of a name, also of one whose file does not exist yet.
fn resolve(name: &Path) -> io::Result<PathBuf> {
    let mut path = name.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_symlink() => {
                let link = fs::read_link(&path)?;
                path = path.parent().unwrap_or(Path::new("")).join(link);
            }
            _ => return Ok(path),
        }
    }
    Err(io::Error::other("its links lead round in a circle"))
}
