//! Compiles the kernels of kernels/ for the host, together with the simulator in kernels/sim, to one shared library, and
//! kernels/sim/nccl, what stands in for NCCL there, to another. The program loads them by the paths that are baked in
//! here, so that a test can load others in their place.

use crate::compile::{self, Inputs, Job};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which names the libraries export. Nothing else: what is inline in C++ must not be shared with whatever else the
/// process has loaded.
const KERNELS: &str = "{ global: attn_*; local: *; };\n";
const NCCL: &str = "{ global: attn_nccl_sim_*; nccl*; local: *; };\n";

pub(crate) fn build() -> Result<(), String> {
    let kernels = PathBuf::from(compile::cargo_variable("CARGO_MANIFEST_DIR")?).join("kernels");
    let out = PathBuf::from(compile::cargo_variable("OUT_DIR")?);
    let folder = out.join("sim");
    std::fs::create_dir_all(&folder).map_err(compile::cannot("create", &folder))?;
    let simulator = kernels.join("sim");
    let nccl = simulator.join("nccl");
    let compiler = PathBuf::from(compile::environment("CXX").unwrap_or("c++".to_owned()));
    let version = compile::run(Command::new(&compiler).arg("--version")).map_err(|error| {
        format!(
            "the feature `sim` needs a C++ compiler, g++ or what CXX names (Debian: apt-get install g++)\n{error}"
        )
    })?;

    let inputs = compile::files(&kernels, &|path| compile::has_extension(path, &["cu", "cpp", "h"]))?;
    let mut jobs = Vec::new();
    for source in &inputs {
        // The simulator's test of itself has a main of its own.
        let wanted = match source.starts_with(&simulator) {
            true => compile::has_extension(source, &["cpp"]) && !source.ends_with("selftest.cpp"),
            false => compile::has_extension(source, &["cu"]),
        };
        if !wanted {
            continue;
        }
        let object = compile::object_path(source, &kernels, &folder);
        let mut arguments: Vec<OsString> =
            ["-std=c++17", "-O2", "-fPIC", "-DATTN_SIM"].map(OsString::from).into();
        // nvcc's `#pragma unroll` means nothing here.
        arguments.extend(
            ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-missing-field-initializers"]
                .map(OsString::from),
        );
        arguments.extend([
            "-I".into(),
            kernels.join("include").into(),
            "-I".into(),
            simulator.clone().into(),
        ]);
        arguments.extend(["-x".into(), "c++".into(), "-c".into(), source.into()]);
        arguments.extend(["-o".into(), object.as_path().into()]);
        jobs.push(Job { source: source.clone(), object, program: compiler.clone(), arguments });
    }
    if jobs.is_empty() {
        return Err(format!("no .cu file in {}", kernels.display()));
    }
    for said in compile::compile(&jobs, &Inputs::read(&inputs, &version)?)? {
        for line in said.lines().filter(|line| line.contains("warning:")) {
            println!("cargo::warning={line}");
        }
    }

    let (stand_in, kernels): (Vec<_>, Vec<_>) = jobs.iter().partition(|job| job.source.starts_with(&nccl));
    let library = link(&compiler, &kernels, KERNELS, &out.join("libattn_sim.so"))?;
    println!("cargo::rustc-env=ATTN_SIM_LIBRARY={library}");
    let library = link(&compiler, &stand_in, NCCL, &out.join("libnccl_sim.so"))?;
    println!("cargo::rustc-env=ATTN_NCCL_SIM_LIBRARY={library}");
    Ok(())
}

/// Links objects to a shared library that exports some names, and returns its path.
fn link(compiler: &Path, jobs: &[&Job], exports: &str, library: &Path) -> Result<String, String> {
    let map = library.with_extension("map");
    std::fs::write(&map, exports).map_err(compile::cannot("write", &map))?;
    let mut link = Command::new(compiler);
    link.arg("-shared").args(jobs.iter().map(|job| &job.object));
    // Every name is found now rather than when it is first called, and its own before anybody else's.
    link.args(["-Wl,-z,defs", "-Wl,-Bsymbolic", "-pthread"]);
    link.arg(format!("-Wl,--version-script={}", map.display())).arg("-o").arg(library);
    compile::run(&mut link)?;
    Ok(library.display().to_string())
}
