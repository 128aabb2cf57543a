//! What there is for the features that need more than Rust: compilers, a driver, GPUs; and what is missing.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::facts::Fact;
use super::gpu;

/// Where a compiler is, and its version.
struct Tool {
    path: PathBuf,
    version: String,
}

pub(super) fn facts() -> Vec<Fact> {
    let (nvcc, cxx, module) = (nvcc(), cxx(), kernel_module());
    let gpus = gpu::ask();
    let mut for_cuda = Vec::new();
    if !cfg!(feature = "cuda") {
        if nvcc.is_none() {
            for_cuda.push(String::from("nvcc (scripts/install-cuda-toolchain installs one)"));
        }
        for_cuda.push(String::from("a build with `--features cuda`"));
    }
    match &gpus {
        // A build that cannot ask knows what the system shows.
        None if module.is_none() => for_cuda.push(String::from("an NVIDIA driver")),
        None => {}
        Some(gpus) => for_cuda.extend(gpus.missing()),
    }
    let mut for_sim = Vec::new();
    if !cfg!(feature = "sim") {
        if cxx.is_none() {
            for_sim.push(String::from("a C++ compiler (g++, or what CXX names)"));
        }
        for_sim.push(String::from("a build with `--features sim`"));
    }

    let tool = |key, tool: Option<Tool>| match tool {
        None => Fact::said(key, Value::Null, "none found"),
        Some(Tool { path, version }) => {
            let path = path.display().to_string();
            let text = format!("{version} ({path})");
            Fact::said(key, json!({ "path": path, "version": version }), text)
        }
    };
    let module = match module {
        None => Fact::said("nvidia_driver", Value::Null, "none found"),
        Some(version) => Fact::new("nvidia_driver", version),
    };
    let missing = |key, missing: Vec<String>| {
        let text = if missing.is_empty() { String::from("nothing") } else { missing.join("; ") };
        Fact::said(key, missing, text)
    };
    let mut facts = vec![built(), tool("nvcc", nvcc), tool("cxx", cxx), module];
    facts.extend(gpu::facts(gpus));
    facts.extend([missing("missing_for_cuda", for_cuda), missing("missing_for_sim", for_sim)]);
    facts
}

/// What compiled this build's GPU kernels, and for which GPUs.
fn built() -> Fact {
    let said = |variable: Option<&'static str>| variable.filter(|said| !said.is_empty());
    let nvcc = said(option_env!("ATTN_BUILD_NVCC"));
    let Some((nvcc, architectures)) = nvcc.zip(said(option_env!("ATTN_BUILD_CUDA_ARCHITECTURES"))) else {
        return Fact::said("gpu_kernels", Value::Null, "none in this build");
    };
    let names: Vec<String> = architectures.split(',').map(|name| format!("sm_{}", name.trim())).collect();
    let text = format!("for {}, by nvcc {nvcc}", names.join(", "));
    Fact::said("gpu_kernels", json!({ "nvcc": nvcc, "architectures": names }), text)
}

/// nvcc where the build would look for it.
fn nvcc() -> Option<Tool> {
    let named = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let path = match named("NVCC") {
        // Named by hand: the build takes no other in its place.
        Some(path) => Some(path).filter(|path| path.is_file()),
        None => {
            let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(named).map(|home| home.join("bin"));
            let path = env::var_os("PATH").unwrap_or_default();
            let others = [PathBuf::from(".cuda-toolchain/bin"), PathBuf::from("/usr/local/cuda/bin")];
            let folders = homes.chain(env::split_paths(&path)).chain(others);
            folders.map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file())
        }
    }?;
    let said = version_of(&path)?;
    let version = said.split_whitespace().rev().find_map(|word| word.strip_prefix('V'))?.to_owned();
    Some(Tool { path, version })
}

/// The C++ compiler that the build would run.
fn cxx() -> Option<Tool> {
    let name = env::var_os("CXX").filter(|value| !value.is_empty()).unwrap_or("c++".into());
    let path = PathBuf::from(name);
    let version = version_of(&path)?.lines().next()?.to_owned();
    Some(Tool { path, version })
}

/// What a compiler says about itself; none if it does not run.
fn version_of(path: &Path) -> Option<String> {
    let output = Command::new(path).arg("--version").stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The version of the NVIDIA driver that the system has loaded, such as 580.82.07. What the CUDA library says comes
/// from elsewhere, and only in a build that can ask it.
fn kernel_module() -> Option<String> {
    let said = fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let number = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    said.lines().next()?.split_whitespace().find(number).map(str::to_owned)
}
