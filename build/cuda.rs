//! Compiles kernels/**/*.cu with nvcc and links them, with the static CUDA runtime, into this crate.
//!
//! nvcc is run here rather than by the `cc` crate, which would swallow what ptxas says; some of that must stop the
//! build.

use crate::compile::{self, Inputs, Job};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where ATTN_CUDA_ARCHITECTURES does not say otherwise: Ampere, and Hopper with the instructions that only it has.
const ARCHITECTURES: &str = "80,90a";
/// What only Hopper has.
const HOPPER: &str = "90a";

pub(crate) fn build() -> Result<(), String> {
    let root = PathBuf::from(compile::cargo_variable("CARGO_MANIFEST_DIR")?);
    let folder = PathBuf::from(compile::cargo_variable("OUT_DIR")?).join("cuda");
    std::fs::create_dir_all(&folder).map_err(compile::cannot("create", &folder))?;
    let kernels = root.join("kernels");

    let architectures = compile::environment("ATTN_CUDA_ARCHITECTURES").unwrap_or(ARCHITECTURES.to_owned());
    let mut code = gencode(&architectures)?;
    // Cards that are newer than all of these compile it when the program starts.
    code.push("-gencode=arch=compute_80,code=compute_80".to_owned());
    let nvcc = find_nvcc(&root)?;
    println!("cargo::rerun-if-changed={}", nvcc.display());
    let version = version(&nvcc)?;
    // Variables that nvcc reads by itself.
    let flags = ["NVCC_CCBIN", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"].map(compile::environment);

    let simulator = kernels.join("sim");
    let inputs = compile::files(&kernels, &|path| {
        compile::has_extension(path, &["cu", "h"]) && !path.starts_with(&simulator)
    })?;
    let mut jobs = Vec::new();
    for source in inputs.iter().filter(|path| compile::has_extension(path, &["cu"])) {
        let object = compile::object_path(source, &kernels, &folder);
        let mut arguments: Vec<OsString> =
            ["-std=c++17", "-O3", "-Xcompiler=-fPIC"].map(OsString::from).into();
        arguments.push("-Xptxas=-v,--warn-on-spills,--warn-on-local-memory-usage".into());
        // What is written for one architecture's own instructions is compiled for it alone, and is needed to link.
        let hopper =
            source.components().any(|part| matches!(part.as_os_str().to_str(), Some("sm90" | "probe")));
        arguments.extend(if hopper { gencode(HOPPER)? } else { code.clone() }.iter().map(OsString::from));
        arguments.extend(["-I".into(), kernels.join("include").into()]);
        arguments.extend(["-c".into(), source.into(), "-o".into(), object.as_path().into()]);
        jobs.push(Job { source: source.clone(), object, program: nvcc.clone(), arguments });
    }
    if jobs.is_empty() {
        return Err(format!("no .cu file in {}", kernels.display()));
    }
    let said = compile::compile(&jobs, &Inputs::read(&inputs, &(&version, &flags))?)?;
    let mut refused = Vec::new();
    for (job, said) in jobs.iter().zip(&said) {
        judge(&job.source, said, &mut refused);
    }
    if !refused.is_empty() {
        return Err(refused.join("\n"));
    }

    let mut archive = cc::Build::new();
    archive.cpp(true);
    for job in &jobs {
        archive.object(&job.object);
    }
    archive.try_compile("attn_kernels").map_err(|error| error.to_string())?;
    println!("cargo::rustc-link-search=native={}", runtime_folder(&nvcc)?.display());
    println!("cargo::rustc-link-lib=static=cudart_static");
    // What the static runtime calls.
    for library in ["rt", "pthread", "dl"] {
        println!("cargo::rustc-link-lib={library}");
    }
    println!("cargo::rustc-env=ATTN_BUILD_NVCC={version}");
    println!("cargo::rustc-env=ATTN_BUILD_CUDA_ARCHITECTURES={architectures}");
    Ok(())
}

/// nvcc's flags for a list such as "80,90a": machine code for each.
fn gencode(architectures: &str) -> Result<Vec<String>, String> {
    let known = |name: &str| {
        let digits = name.strip_suffix(['a', 'f']).unwrap_or(name);
        (2..=3).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    architectures
        .split(',')
        .map(str::trim)
        .map(|name| match known(name) {
            true => Ok(format!("-gencode=arch=compute_{name},code=sm_{name}")),
            false => Err(format!(
                "ATTN_CUDA_ARCHITECTURES: `{name}` is not an architecture; expected a list such as `90a` or \
                 `80,90a`, found `{architectures}`"
            )),
        })
        .collect()
}

fn find_nvcc(root: &Path) -> Result<PathBuf, String> {
    if let Some(path) = compile::environment("NVCC") {
        // Named by hand: another one in its place would be a surprise.
        let path = PathBuf::from(path);
        let missing = || format!("NVCC={}: no such file (it must be a path)", path.display());
        return if path.is_file() { Ok(path) } else { Err(missing()) };
    }
    let mut places = Vec::new();
    for variable in ["CUDA_HOME", "CUDA_PATH"] {
        places.extend(compile::environment(variable).map(|home| Path::new(&home).join("bin")));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    places.extend(std::env::split_paths(&path));
    places.extend([root.join(".cuda-toolchain/bin"), "/usr/local/cuda/bin".into()]);
    let found = places.iter().map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file());
    found.ok_or_else(|| {
        "the feature `cuda` needs nvcc, CUDA's compiler, and there is none in NVCC (a path), CUDA_HOME/bin, \
         CUDA_PATH/bin, PATH, .cuda-toolchain/bin and /usr/local/cuda/bin\n\
         scripts/install-cuda-toolchain fetches one from PyPI into .cuda-toolchain; it needs no rights and no GPU"
            .to_owned()
    })
}

/// Such as 13.0.88.
fn version(nvcc: &Path) -> Result<String, String> {
    let said = compile::run(Command::new(nvcc).arg("--version"))?;
    let version = said.split_whitespace().rev().find_map(|word| word.strip_prefix('V'));
    version.map(str::to_owned).ok_or_else(|| format!("{} does not say its version: {said}", nvcc.display()))
}

/// The folder of the toolkit's static runtime: a toolkit's own, that of PyPI's wheels or a distribution's.
fn runtime_folder(nvcc: &Path) -> Result<PathBuf, String> {
    let real = nvcc.canonicalize().unwrap_or(nvcc.to_owned());
    let home = real.parent().and_then(Path::parent).unwrap_or(Path::new("/usr"));
    let architecture = compile::cargo_variable("CARGO_CFG_TARGET_ARCH")?;
    let target = if architecture == "aarch64" { "sbsa" } else { "x86_64" };
    let places = [
        home.join("lib64"),
        home.join("lib"),
        home.join(format!("targets/{target}-linux/lib")),
        home.join(format!("lib/{architecture}-linux-gnu")),
    ];
    let found = places.iter().find(|folder| folder.join("libcudart_static.a").is_file());
    found.cloned().ok_or_else(|| {
        let places: Vec<_> = places.iter().map(|folder| folder.display().to_string()).collect();
        format!("libcudart_static.a belongs to {} but is in none of {}", nvcc.display(), places.join(", "))
    })
}

/// Passes the compiler's warnings on. What ptxas calls an advice, C7500 and after, means a kernel whose tensor core
/// instructions run one by one or whose register split is ignored: correct, and several times too slow. That stops
/// the build.
fn judge(source: &Path, said: &str, refused: &mut Vec<String>) {
    for line in said.lines() {
        if advice(line) {
            refused.push(format!("{}: {}", source.display(), line.trim()));
        } else if line.contains("warning") && !line.starts_with("Remark:") {
            println!("cargo::warning={}", line.trim());
        }
    }
}

/// Whether ptxas numbers the line `(C7xxx)`.
fn advice(line: &str) -> bool {
    line.match_indices("(C7").any(|(at, _)| {
        let number = &line.as_bytes()[at..];
        number.len() >= 7 && number[3..6].iter().all(u8::is_ascii_digit) && number[6] == b')'
    })
}
