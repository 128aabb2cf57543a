//! Tells the program what it was built by and for, so that `attn doctor` can say; with the feature `cuda` compiles
//! the kernels for the GPU, with the feature `sim` for the host simulator. The default build runs nothing but rustc
//! `--version`, and needs no tool besides Rust.

#[cfg(any(feature = "cuda", feature = "sim"))]
#[path = "build/compile.rs"]
mod compile;
#[cfg(feature = "cuda")]
#[path = "build/cuda.rs"]
mod cuda;
#[cfg(feature = "sim")]
#[path = "build/sim.rs"]
mod sim;

use std::process::Command;

fn main() {
    for variable in ["TARGET", "PROFILE", "OPT_LEVEL"] {
        let value = std::env::var(variable).unwrap_or_default();
        println!("cargo::rustc-env=ATTN_BUILD_{variable}={value}");
    }
    let rustc = std::env::var_os("RUSTC").unwrap_or("rustc".into());
    let version = Command::new(rustc)
        .arg("--version")
        .output()
        .ok()
        .and_then(|said| String::from_utf8(said.stdout).ok());
    println!("cargo::rustc-env=ATTN_BUILD_RUSTC={}", version.as_deref().unwrap_or("unknown").trim());
    println!("cargo::rerun-if-changed=build.rs");

    // What the kernels were built by; overwritten below where they are.
    for variable in
        ["ATTN_BUILD_NVCC", "ATTN_BUILD_CUDA_ARCHITECTURES", "ATTN_SIM_LIBRARY", "ATTN_NCCL_SIM_LIBRARY"]
    {
        println!("cargo::rustc-env={variable}=");
    }
    if cfg!(any(feature = "cuda", feature = "sim")) {
        println!("cargo::rerun-if-env-changed=DOCS_RS");
        println!("cargo::rerun-if-changed=kernels");
        // docs.rs has no compiler for the kernels, and its pages need none.
        if std::env::var_os("DOCS_RS").is_some() {
            return;
        }
        // cargo fails the build for such a line, and shows it without all else that was printed here.
        if let Err(message) = kernels() {
            for line in message.lines().filter(|line| !line.trim().is_empty()) {
                println!("cargo::error={line}");
            }
        }
    }
}

/// Compiles what the features ask for.
fn kernels() -> Result<(), String> {
    #[cfg(feature = "cuda")]
    cuda::build()?;
    #[cfg(feature = "sim")]
    sim::build()?;
    Ok(())
}
