//! Ranks as processes that `mpirun` starts: over MPI, whichever of Open MPI and MPICH the program was built with.
//!
//! ```no_run
//! use attn_runtime::{Communicator, Error, comm::mpi};
//!
//! mpi::world()?.run(|comm| {
//!     println!("rank {} of {}", comm.rank(), comm.size());
//!     Ok::<_, Error>(())
//! })?;
//! # Ok::<(), Error>(())
//! ```
//!
//! Needs the feature `mpi`: an MPI when the program is built, whose compiler wrapper `mpicc` is in PATH or named by the
//! environment variable `MPICC`, and the same MPI's `mpirun` when it is started. Without `mpirun` the world has one rank.
//!
//! When all is well, the world's end waits for all ranks and ends MPI. When a rank has failed, every rank gets an error, and
//! none may wait for the others any more, so MPI is not ended: the process must end, and it does so with a status
//! other than 0, which makes `mpirun` end the job. Before it does, it lingers for a second or two in `exit`, in which the
//! other ranks can say what they have heard.
//!
//! A program that has started MPI itself (with `MPI_THREAD_SERIALIZED` or more) keeps it: worlds come and go, MPI stays,
//! and the end of the job is the program's own affair. It must not call MPI while a collective is under way, unless it has
//! started MPI with `MPI_THREAD_MULTIPLE`.

mod ffi;
mod link;
mod wire;
mod world;

pub use link::MpiLink;
pub use world::{MpiComm, MpiWorld, library, world};
