//! With the feature `mpi`, compiles what calls MPI. The default build does nothing here.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
