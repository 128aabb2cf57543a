//! Tells the program what it was built by and for, so that `attn doctor` can say. Nothing but cargo's own variables:
//! the default build needs no tool besides Rust.

fn main() {
    for variable in ["TARGET", "PROFILE", "OPT_LEVEL"] {
        let value = std::env::var(variable).unwrap_or_default();
        println!("cargo::rustc-env=ATTN_BUILD_{variable}={value}");
    }
    println!("cargo::rerun-if-changed=build.rs");
}
