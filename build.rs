//! Tells the program what it was built by and for, so that `attn doctor` can say. Nothing but cargo's own variables:
//! the default build needs no tool besides Rust.

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
}
