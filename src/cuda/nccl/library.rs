//! The loaded library: its functions, each looked up once, and its codes as errors.

use core::ffi::{CStr, c_int};
use core::fmt;
use std::path::{Path, PathBuf};

use attn_runtime::{Error, Result};
use libloading::os::unix::Library as Loaded;

use super::abi;
use super::search;
use crate::cuda::loader::told;

/// What the interface is called in messages.
const NAME: &str = "NCCL";

/// The oldest that is used: the first with `ncclCommSplit`.
const OLDEST: Version = Version { major: 2, minor: 18, patch: 0 };

/// A version of NCCL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 2.
    pub major: u32,
    /// Such as 30.
    pub minor: u32,
    /// Such as 7.
    pub patch: u32,
}

impl Version {
    /// From the number that `ncclGetVersion` gives.
    const fn from_number(number: u32) -> Self {
        Self { major: number / 10_000, minor: number % 10_000 / 100, patch: number % 100 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { major, minor, patch } = self;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// NCCL, loaded. It stays loaded to the end of the process.
pub struct Library {
    path: PathBuf,
    version: Version,
    pub(super) error_string: abi::GetErrorString,
    pub(super) last_error: Option<abi::GetLastError>,
    pub(super) unique_id: abi::GetUniqueId,
    pub(super) init: abi::CommInit,
    pub(super) split: abi::CommSplit,
    pub(super) async_error: abi::CommAsyncError,
    pub(super) finalize: abi::CommCall,
    pub(super) destroy: abi::CommCall,
    pub(super) abort: abi::CommCall,
    pub(super) group_start: abi::Group,
    pub(super) group_end: abi::Group,
    pub(super) send: abi::Send,
    pub(super) receive: abi::Receive,
    /// From 2.28 on.
    pub(super) all_to_all: Option<abi::AllToAll>,
    /// From 2.19 on, as those that follow.
    pub(super) register: Option<(abi::CommRegister, abi::CommDeregister)>,
    pub(super) memory: Option<(abi::MemAlloc, abi::MemFree)>,
}

impl Library {
    /// Finds NCCL on this machine.
    ///
    /// # Errors
    /// If there is none, or it is too old.
    pub(super) fn find() -> Result<Self> {
        let (path, library) = search::find()?;
        Self::of(path, library)
    }

    /// Looks up a loaded library's functions.
    ///
    /// # Errors
    /// If it lacks one, or is too old.
    pub(super) fn of(path: PathBuf, library: Loaded) -> Result<Self> {
        let unavailable = |why: String| Error::Unavailable {
            what: NAME,
            why: format!("{}: {why}", path.display()),
            cure: format!("install NCCL {OLDEST} or later: `pip install nvidia-nccl-cu13`"),
        };
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: `nccl.h` declares the function with the type of the field that it is put into.
                *unsafe { library.get($name) }.map_err(|error| unavailable(told(&error)))?
            };
        }
        macro_rules! optional {
            ($name:literal) => {
                // SAFETY: as above.
                unsafe { library.get($name) }.ok().map(|symbol| *symbol)
            };
        }
        let get_version: abi::GetVersion = symbol!("ncclGetVersion");
        let mut number = 0;
        // SAFETY: the function writes one number, and may be called before anything else.
        let code = unsafe { get_version(&mut number) };
        let version = Version::from_number(number.unsigned_abs());
        if code != abi::SUCCESS || version < OLDEST {
            return Err(unavailable(format!("it is version {version}, older than {OLDEST}")));
        }
        let found = Self {
            version,
            error_string: symbol!("ncclGetErrorString"),
            last_error: optional!("ncclGetLastError"),
            unique_id: symbol!("ncclGetUniqueId"),
            init: symbol!("ncclCommInitRankConfig"),
            split: symbol!("ncclCommSplit"),
            async_error: symbol!("ncclCommGetAsyncError"),
            finalize: symbol!("ncclCommFinalize"),
            destroy: symbol!("ncclCommDestroy"),
            abort: symbol!("ncclCommAbort"),
            group_start: symbol!("ncclGroupStart"),
            group_end: symbol!("ncclGroupEnd"),
            send: symbol!("ncclSend"),
            receive: symbol!("ncclRecv"),
            all_to_all: optional!("ncclAlltoAll"),
            register: optional!("ncclCommRegister").zip(optional!("ncclCommDeregister")),
            memory: optional!("ncclMemAlloc").zip(optional!("ncclMemFree")),
            path: resolved(&path, get_version as *const ()),
        };
        // Its functions are called from here on, by communicators that nobody counts: it stays.
        core::mem::forget(library);
        Ok(found)
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its version.
    pub const fn version(&self) -> Version {
        self.version
    }

    /// Whether it has `ncclAlltoAll`.
    pub const fn has_all_to_all(&self) -> bool {
        self.all_to_all.is_some()
    }

    /// An identifier for a new communicator, to be handed to all its ranks.
    ///
    /// # Errors
    /// If NCCL reports one.
    pub fn unique_id(&self) -> Result<abi::UniqueId> {
        let mut id = abi::UniqueId { internal: [0; 128] };
        // SAFETY: the function fills in one identifier.
        let code = unsafe { (self.unique_id)(&mut id) };
        self.check("ncclGetUniqueId", code)?;
        Ok(id)
    }

    /// A code as a result. `ncclInProgress` is none of the errors.
    pub(super) fn check(&self, call: &'static str, code: abi::Code) -> Result<()> {
        match code {
            abi::SUCCESS | abi::IN_PROGRESS => Ok(()),
            code => Err(self.failed(call, code)),
        }
    }

    /// The error of a code, with all that NCCL says about it.
    #[cold]
    pub(super) fn failed(&self, call: &'static str, code: abi::Code) -> Error {
        // SAFETY: the function takes any code and returns a string of its own, for good.
        let name = unsafe { CStr::from_ptr((self.error_string)(code)) }.to_string_lossy();
        let detail = self.last_error.map(|last_error| {
            // SAFETY: the communicator is one that the function does not look at; the string is copied at once.
            unsafe { CStr::from_ptr(last_error(core::ptr::null_mut())) }.to_string_lossy()
        });
        let detail = detail.as_deref().map(str::trim).filter(|detail| !detail.is_empty());
        let cure = "NCCL_DEBUG=WARN in the environment makes NCCL say more";
        let text = match detail {
            Some(detail) => format!("{name} (code {code}): {detail}; {cure}"),
            None => format!("{name} (code {code}); {cure}"),
        };
        Error::Library { library: NAME, call, text }
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Library")
            .field("path", &self.path)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// The file that a symbol is of, where the loader was given a bare name.
fn resolved(path: &Path, symbol: *const ()) -> PathBuf {
    if path.is_absolute() {
        return path.to_owned();
    }
    let address = symbol.addr();
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return path.to_owned() };
    let holds = |line: &&str| {
        let ends = line.split([' ', '-']).take(2).map(|end| usize::from_str_radix(end, 16));
        matches!(ends.collect::<Result<Vec<_>, _>>().as_deref(), Ok([start, end]) if (*start..*end).contains(&address))
    };
    let file = maps.lines().find(holds).and_then(|line| line.find('/').map(|at| PathBuf::from(&line[at..])));
    file.unwrap_or_else(|| path.to_owned())
}

/// A count or a number as C has it.
pub(super) fn small(number: usize, what: &'static str) -> Result<c_int> {
    c_int::try_from(number)
        .map_err(|_| Error::Configuration(format!("{number} is too large a {what} for NCCL")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_their_number() {
        assert_eq!(Version::from_number(23007).to_string(), "2.30.7");
        assert!(Version::from_number(21806) > OLDEST && Version::from_number(21705) < OLDEST);
    }
}
