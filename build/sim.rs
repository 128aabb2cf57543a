//! Compiles the kernels of kernels/ for the host, together with the simulator in kernels/sim, to one shared library.
//! The program loads it by the path that is baked in here, so that a test can load another in its place.

use crate::compile::{self, Inputs, Job};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

/// Exports the C interface and nothing else: what is inline in C++ must not be shared with whatever else the process
/// has loaded.
const EXPORTS: &str = "{ global: attn_*; local: *; };\n";

pub(crate) fn build() -> Result<(), String> {
    let kernels = PathBuf::from(compile::cargo_variable("CARGO_MANIFEST_DIR")?).join("kernels");
    let out = PathBuf::from(compile::cargo_variable("OUT_DIR")?);
    let folder = out.join("sim");
    std::fs::create_dir_all(&folder).map_err(compile::cannot("create", &folder))?;
    let simulator = kernels.join("sim");
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

    let exports = folder.join("exports.map");
    std::fs::write(&exports, EXPORTS).map_err(compile::cannot("write", &exports))?;
    let library = out.join("libattn_sim.so");
    let mut link = Command::new(&compiler);
    link.arg("-shared").args(jobs.iter().map(|job| &job.object));
    // Every name is found now rather than when it is first called, and its own attn_* before anybody else's.
    link.args(["-Wl,-z,defs", "-Wl,-Bsymbolic", "-pthread"]);
    link.arg(format!("-Wl,--version-script={}", exports.display())).arg("-o").arg(&library);
    compile::run(&mut link)?;
    println!("cargo::rustc-env=ATTN_SIM_LIBRARY={}", library.display());
    Ok(())
}
