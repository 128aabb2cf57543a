//! Finding the `mpirun` of the MPI that a program is linked with.

#![allow(dead_code, reason = "each test uses its part")]

use std::path::PathBuf;
use std::process::{Command, Stdio};

use attn::comm::mpi;

/// Whose launchers this knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    OpenMpi,
    Mpich,
}

impl Kind {
    /// What this program was linked with.
    pub(crate) fn linked() -> Self {
        if mpi::library().starts_with("Open MPI") { Self::OpenMpi } else { Self::Mpich }
    }

    /// Names under which its `mpirun` may be found, and what it says of its version.
    const fn names(self) -> (&'static [&'static str], &'static str) {
        match self {
            Self::OpenMpi => (&["mpirun.openmpi", "mpirun"], "Open MPI"),
            Self::Mpich => (&["mpirun.mpich", "mpiexec.hydra", "mpirun"], "HYDRA"),
        }
    }

    fn mpirun(self) -> Option<PathBuf> {
        let (names, sign) = self.names();
        let says = |name: &&&str| {
            let version = Command::new(name).arg("--version").stdin(Stdio::null()).output();
            version.is_ok_and(|said| String::from_utf8_lossy(&said.stdout).contains(sign))
        };
        names.iter().find(says).map(PathBuf::from)
    }
}

/// The `mpirun` of the MPI that this program was linked with.
pub(crate) fn mpirun() -> PathBuf {
    match std::env::var_os("ATTN_MPIRUN").filter(|name| !name.is_empty()) {
        Some(name) => name.into(),
        None => Kind::linked().mpirun().unwrap_or_else(|| {
            panic!(
                "the mpirun of {} is not in PATH: install it (Debian: openmpi-bin or mpich), or name it in ATTN_MPIRUN",
                mpi::library()
            )
        }),
    }
}

/// That of another one, if there is one.
pub(crate) fn mpirun_of_another() -> Option<(PathBuf, Kind)> {
    let other = if Kind::linked() == Kind::OpenMpi { Kind::Mpich } else { Kind::OpenMpi };
    Some((other.mpirun()?, other))
}

/// Arguments and variables for more ranks than cores, and for root, which stands in containers for nobody in particular.
pub(crate) const fn arguments(
    kind: Kind,
) -> (&'static [&'static str], &'static [(&'static str, &'static str)]) {
    match kind {
        Kind::OpenMpi => (
            &["--oversubscribe"],
            &[("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")],
        ),
        Kind::Mpich => (&[], &[]),
    }
}

/// What stands before the ranks' program so that a rank that is killed is named. Open MPI's `mpirun` does that by itself.
/// MPICH's ends the others as soon as the rank's end of a pipe is closed, and names a process, which need not be that one:
/// here a shell holds the pipe until it has said which rank it was.
pub(crate) const fn naming(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::OpenMpi => &[],
        Kind::Mpich => &[
            "sh",
            "-c",
            r#""$@"; code=$?; [ $code = 0 ] || echo "rank $PMI_RANK ended with exit code $code" >&2; exit $code"#,
            "sh",
        ],
    }
}
