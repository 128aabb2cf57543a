//! With the feature `mpi`, compiles what calls MPI. The default build does nothing here.

#[cfg(feature = "mpi")]
#[path = "build/mpi.rs"]
mod mpi;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "mpi")]
    {
        println!("cargo::rerun-if-env-changed=DOCS_RS");
        // docs.rs has no MPI, and its pages need none.
        if std::env::var_os("DOCS_RS").is_some() {
            return;
        }
        // cargo fails the build for such a line, and shows it without all else that was printed here.
        if let Err(message) = mpi::build() {
            for line in message.lines().filter(|line| !line.trim().is_empty()) {
                println!("cargo::error={line}");
            }
        }
    }
}
