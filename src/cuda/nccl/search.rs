//! Where NCCL's library may be: files are looked at, nothing is run.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use attn_runtime::{Error, Result};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use crate::cuda::loader::told;

/// Names that the loader knows: as NCCL installs itself, and as its development package links it.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// The library itself, of a whole path.
const VARIABLE: &str = "ATTN_NCCL_LIBRARY";

/// The first of the places where NCCL can be that holds it: what ATTN_NCCL_LIBRARY names (and then nothing else), what
/// the loader finds, pip's packages beside each python of VIRTUAL_ENV, CONDA_PREFIX and PATH, CUDA's folder.
///
/// # Errors
/// If none does; the message lists what was tried.
pub(super) fn find() -> Result<(PathBuf, Library)> {
    if let Some(path) = env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        return first(&[path.into()], &format!("{VARIABLE} names it and nothing else was tried"));
    }
    let mut places: Vec<PathBuf> = NAMES.iter().map(PathBuf::from).collect();
    places.extend(installed(&|name| env::var_os(name)));
    first(&places, "")
}

/// Loads the first that can be.
fn first(places: &[PathBuf], why: &str) -> Result<(PathBuf, Library)> {
    let mut tried = Vec::new();
    for place in places {
        // SAFETY: NCCL's initialisers set up its own state; which library it is, is the user's choice of what is
        // installed or named.
        match unsafe { Library::open(Some(place), RTLD_NOW | RTLD_LOCAL) } {
            Ok(library) => return Ok((place.clone(), library)),
            Err(error) => tried.push(told(&error)),
        }
    }
    let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
    Err(Error::Unavailable {
        what: "NCCL",
        why: format!("tried {}{why}", tried.join("; ")),
        cure: format!("`pip install nvidia-nccl-cu13`, or let {VARIABLE} name libnccl.so.2"),
    })
}

/// The files that are there, among the places where pip, conda and CUDA put NCCL.
fn installed(variable: &dyn Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    // The folders that have a python in their bin.
    let mut roots: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(set).collect();
    for folder in variable("PATH").iter().flat_map(env::split_paths) {
        let python = ["python3", "python"].iter().map(|name| folder.join(name)).find(|path| path.is_file());
        // A link leads to where its packages are.
        let own = python.iter().filter_map(|path| path.canonicalize().ok());
        for python in python.iter().cloned().chain(own) {
            roots.extend(python.parent().and_then(Path::parent).map(Path::to_owned));
        }
    }
    let mut places = Vec::new();
    for root in &roots {
        for packages in site_packages(root) {
            places.extend(["nvidia/nccl/lib", "nvidia/cu13/lib"].map(|folder| packages.join(folder)));
        }
        places.push(root.join("lib"));
    }
    for home in ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(set) {
        places.extend(["lib64", "lib"].map(|folder| home.join(folder)));
    }
    let mut files = Vec::new();
    for place in places {
        let file = place.join(NAMES[0]);
        if file.is_file() && !files.contains(&file) {
            files.push(file);
        }
    }
    files
}

/// The packages of a python that is installed below `root`.
fn site_packages(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for library in ["lib", "lib64", "local/lib"] {
        let Ok(entries) = root.join(library).read_dir() else { continue };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with("python3") {
                found.extend(["site-packages", "dist-packages"].map(|packages| entry.path().join(packages)));
            }
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_tried_and_the_cure_are_named() {
        let places = ["/attn-no-such/libnccl.so.2", "libattn-no-such-nccl.so"].map(PathBuf::from);
        let said = first(&places, "").unwrap_err().to_string();
        assert!(
            said.starts_with("NCCL is not available: tried /attn-no-such/libnccl.so.2: cannot"),
            "{said}"
        );
        assert!(said.contains("; libattn-no-such-nccl.so: cannot open"), "{said}");
        assert!(said.ends_with("`pip install nvidia-nccl-cu13`, or let ATTN_NCCL_LIBRARY name libnccl.so.2"));
        let said = first(&places[..1], "the reason").unwrap_err().to_string();
        assert!(said.contains("(the reason); `pip install"), "{said}");
    }

    #[test]
    fn packages_of_every_python_in_sight_are_found() {
        let root = env::temp_dir().join(format!("attn-nccl-search-{}", std::process::id()));
        let file = |path: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            path
        };
        let venv = file("venv/lib/python3.12/site-packages/nvidia/nccl/lib/libnccl.so.2");
        let conda = file("conda/lib/libnccl.so.2");
        let system = file("usr/local/lib/python3.11/dist-packages/nvidia/cu13/lib/libnccl.so.2");
        let cuda = file("cuda/lib64/libnccl.so.2");
        file("usr/bin/python3");
        file("other/lib/python3.12/site-packages/nvidia/nccl/lib/libnccl.so.1");
        let variable = |name: &str| {
            let value = match name {
                "VIRTUAL_ENV" => root.join("venv"),
                "CONDA_PREFIX" => root.join("conda"),
                "PATH" => root.join("usr/bin"),
                "CUDA_HOME" => root.join("cuda"),
                _ => return None,
            };
            Some(value.into_os_string())
        };
        let found = installed(&variable);
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(found, [venv, conda, system, cuda]);
        assert!(installed(&|_| None).is_empty());
    }
}
