//! Two hosts: namespaces of the network and of the host's name, joined by a virtual cable.

use std::path::Path;
use std::process::Command;

use crate::launcher::{Job, this_program};
use crate::mpirun::{Kind, arguments, mpirun};

/// A script that runs a command on the first of two such hosts.
fn script() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mpi/two-hosts"))
}

#[test]
fn two_hosts_obey_every_law() {
    let possible = Command::new(script()).arg("--check").output().unwrap();
    if !possible.status.success() {
        let why = String::from_utf8_lossy(&possible.stderr).trim().to_owned();
        println!("not run: two hosts cannot be played here: {why}");
        return;
    }
    let kind = Kind::linked();
    let (options, variables) = arguments(kind);
    let mut command = Command::new(script());
    // So that tensors cross the cable. MPICH may have been built with UCX, which looks for shared memory all the same.
    command.args((kind == Kind::OpenMpi).then_some("--apart"));
    command.envs(variables.iter().copied()).arg(mpirun()).args(options);
    // The script puts the agent's path, the network and the hosts in the place of these words.
    match kind {
        Kind::OpenMpi => command.args(["--mca", "plm_rsh_agent", "@agent"]).args([
            "--mca",
            "oob_tcp_if_include",
            "@network",
            "--mca",
            "btl_tcp_if_include",
            "@network",
            "--host",
            "@a:2,@b:2",
            "-x",
            crate::launcher::PART,
        ]),
        Kind::Mpich => command
            .args(["-launcher", "ssh", "-launcher-exec", "@agent", "-iface", "@interface"])
            .args(["-hosts", "@a:2,@b:2"]),
    };
    command.args(["-n", "4"]).args(this_program());
    let job = Job::by(command, 4, "laws").run();
    job.succeeds();
    assert_eq!(job.count("on host attn-a"), 2, "{job}");
    assert_eq!(job.count("on host attn-b"), 2, "{job}");
}
