//! Compiles the C half of the communicator over MPI with the MPI's own compiler wrapper, and asks the wrapper what to
//! link.
//!
//! MPI has an interface of C sources, not of binaries: what `MPI_Comm` is, and what `MPI_COMM_WORLD` expands to, differs
//! from one implementation to the next, and only its wrapper knows where its header and library are.

use std::path::Path;
use std::process::Command;

/// What every message about a missing wrapper ends with.
const CURE: &str = "the feature `mpi` needs an MPI with its compiler wrapper. On Debian and Ubuntu: \
                    apt-get install libopenmpi-dev openmpi-bin (or: libmpich-dev mpich). \
                    One that is not in PATH is named by the environment variable MPICC";

pub(crate) fn build() -> Result<(), String> {
    println!("cargo::rerun-if-changed=build/mpi.rs");
    println!("cargo::rerun-if-changed=src/comm/mpi/shim.c");
    println!("cargo::rerun-if-changed=src/comm/mpi/shim.h");
    println!("cargo::rerun-if-env-changed=MPICC");
    let wrapper = std::env::var("MPICC").ok().filter(|name| !name.is_empty()).unwrap_or("mpicc".into());
    let flags = link_flags(&wrapper)?;
    cc::Build::new()
        .compiler(&wrapper)
        .file(Path::new("src/comm/mpi/shim.c"))
        .warnings(true)
        .extra_warnings(true)
        .std("c11")
        .try_compile("attn_mpi")
        .map_err(|error| format!("`{wrapper}` could not compile src/comm/mpi/shim.c: {error}"))?;
    for flag in flags {
        println!("cargo::{flag}");
    }
    Ok(())
}

/// What the wrapper adds to a line that links, in cargo's words.
fn link_flags(wrapper: &str) -> Result<Vec<String>, String> {
    // Open MPI and Intel's knows the first, MPICH and those made from it know the second.
    let (first, second) = (ask(wrapper, "-showme:link"), ask(wrapper, "-link_info"));
    let said = match (first, second) {
        (Ok(Some(said)), _) | (_, Ok(Some(said))) => said,
        (Err(error), _) | (_, Err(error)) => {
            return Err(format!("`{wrapper}` could not be run ({error}): {CURE}"));
        }
        (Ok(None), Ok(None)) => {
            return Err(format!(
                "`{wrapper}` answers neither -showme:link nor -link_info, so it is no compiler wrapper of Open MPI or \
                 MPICH: {CURE}"
            ));
        }
    };
    let mut flags = Vec::new();
    let mut words = said.split_whitespace();
    while let Some(word) = words.next() {
        let mut value = |rest: &str| match rest {
            "" => words.next().unwrap_or_default().to_owned(),
            rest => rest.to_owned(),
        };
        if let Some(rest) = word.strip_prefix("-L") {
            flags.push(format!("rustc-link-search=native={}", value(rest)));
        } else if let Some(rest) = word.strip_prefix("-l") {
            flags.push(format!("rustc-link-lib={}", value(rest)));
        }
    }
    match flags.iter().any(|flag| flag.starts_with("rustc-link-lib")) {
        true => Ok(flags),
        false => Err(format!("`{wrapper}` names no library to link, it says: {}: {CURE}", said.trim())),
    }
}

/// What the wrapper answers to a question; none if it takes it for something else.
fn ask(wrapper: &str, question: &str) -> std::io::Result<Option<String>> {
    let output = Command::new(wrapper).arg(question).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok((output.status.success() && said.contains("-l")).then_some(said))
}
