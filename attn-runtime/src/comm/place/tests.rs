use std::collections::HashMap;
use std::ffi::OsString;
use std::time::Duration;

use proptest::prelude::*;

use super::slurm::{first_of, tasks_of};
use super::{Place, Token};
use crate::error::{Error, Result};

/// The place that an environment of these variables gives: `A=1 B=2`.
fn place(variables: &str) -> Result<Place> {
    let set: HashMap<&str, &str> =
        variables.split_whitespace().filter_map(|variable| variable.split_once('=')).collect();
    Place::from(|name| set.get(name).map(OsString::from))
}

/// Rank, ranks, and both on this machine.
fn numbers(variables: &str) -> [usize; 4] {
    let Place { rank, size, local_rank, local_size, .. } = place(variables).unwrap();
    [rank, size, local_rank, local_size]
}

#[track_caller]
fn refused(variables: &str, words: &[&str]) {
    let Error::Environment(message) = place(variables).unwrap_err() else {
        panic!("{variables}: another kind of error");
    };
    for word in words {
        assert!(message.contains(word), "{variables}: no {word} in: {message}");
    }
}

const ATTN: &str = "ATTN_RANK=5 ATTN_WORLD_SIZE=8 ATTN_LOCAL_RANK=1 ATTN_LOCAL_WORLD_SIZE=4";
const TORCHRUN: &str = "RANK=3 WORLD_SIZE=8 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=n0 MASTER_PORT=29400 \
                        TORCHELASTIC_RUN_ID=job7";
const OPEN_MPI: &str = "OMPI_COMM_WORLD_RANK=2 OMPI_COMM_WORLD_SIZE=6 OMPI_COMM_WORLD_LOCAL_RANK=2 \
                        OMPI_COMM_WORLD_LOCAL_SIZE=3 PMIX_NAMESPACE=292618241";
const MPICH: &str = "PMI_RANK=1 PMI_SIZE=4 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=4 PMI_FD=8";
const SLURM: &str = "SLURM_PROCID=6 SLURM_NTASKS=7 SLURM_LOCALID=0 SLURM_NODEID=3 SLURM_TASKS_PER_NODE=2(x3),1 \
                     SLURM_JOB_NODELIST=node[01-04,7],x1 SLURM_JOB_ID=4711 SLURM_STEP_ID=0";

#[test]
fn every_launcher_is_understood() {
    assert_eq!(numbers(ATTN), [5, 8, 1, 4]);
    assert_eq!(numbers(TORCHRUN), [3, 8, 1, 2]);
    assert_eq!(numbers(OPEN_MPI), [2, 6, 2, 3]);
    assert_eq!(numbers(MPICH), [1, 4, 1, 4]);
    assert_eq!(numbers(SLURM), [6, 7, 0, 1]);
}

#[test]
fn the_first_full_set_wins() {
    let all = [ATTN, TORCHRUN, OPEN_MPI, MPICH, SLURM];
    for first in 0..all.len() {
        assert_eq!(numbers(&all[first..].join(" ")), numbers(all[first]));
    }
    // Half of an earlier set is no set.
    assert_eq!(numbers(&format!("RANK=9 {OPEN_MPI}")), numbers(OPEN_MPI));
}

#[test]
fn rank_0_is_where_the_launcher_says() {
    let meeting = |variables: &str| place(variables).unwrap().meeting().unwrap();
    assert_eq!(meeting("ATTN_RANK=0 ATTN_WORLD_SIZE=2"), ("127.0.0.1".into(), 29500));
    assert_eq!(meeting(&format!("{ATTN} ATTN_MASTER_ADDR=n7 ATTN_MASTER_PORT=99")), ("n7".into(), 99));
    // Torch's own store has MASTER_PORT.
    assert_eq!(meeting(TORCHRUN), ("n0".into(), 29401));
    assert_eq!(meeting(&format!("{TORCHRUN} ATTN_MASTER_PORT=29400")), ("n0".into(), 29400));
    assert_eq!(meeting(&format!("{OPEN_MPI} ATTN_MASTER_ADDR=10.0.0.9")).0, "10.0.0.9");
    let (host, port) = meeting(SLURM);
    assert_eq!(host, "node01");
    assert!((20_000..30_000).contains(&port));
    assert_ne!(meeting(&SLURM.replace("4711", "4712")).1, port, "another job");
    assert_ne!(meeting(&SLURM.replace("STEP_ID=0", "STEP_ID=1")).1, port, "another step");
    assert_eq!(meeting(&format!("{SLURM} SLURM_STEP_NODELIST=node7")).0, "node7");
    let Error::Environment(message) = place(OPEN_MPI).unwrap().meeting().unwrap_err() else { panic!() };
    assert!(message.contains("`ATTN_MASTER_ADDR` is missing: 3 of 6 ranks"), "{message}");
}

#[test]
fn own_variables_override_single_ones() {
    assert_eq!(numbers(&format!("{OPEN_MPI} ATTN_RANK=4")), [4, 6, 2, 3]);
    assert_eq!(numbers(&format!("{OPEN_MPI} ATTN_WORLD_SIZE=12")), [2, 12, 2, 3]);
    assert_eq!(numbers(&format!("{SLURM} ATTN_LOCAL_RANK=1 ATTN_LOCAL_WORLD_SIZE=2")), [6, 7, 1, 2]);
    let own = place(&format!("{MPICH} ATTN_TOKEN=abc ATTN_DEADLINE=2.5")).unwrap();
    assert_eq!((own.token, own.deadline), (Token::new("abc").ok(), Some(Duration::from_millis(2500))));
}

#[test]
fn jobs_have_tokens_of_their_own() {
    let token = |variables: &str| place(variables).unwrap().token;
    for job in [TORCHRUN, OPEN_MPI, SLURM] {
        assert!(token(job).is_some(), "{job}");
    }
    assert_ne!(token(TORCHRUN), token(&TORCHRUN.replace("job7", "job8")));
    assert_eq!(token(&format!("{TORCHRUN} ATTN_TOKEN=x")), Token::new("x").ok());
    assert_eq!(token(ATTN), None);
    assert!(Token::new(&"x".repeat(129)).is_err());
    assert_eq!(format!("{:?}", Token::new("secret").unwrap()), "Token(..)");
}

#[test]
fn without_local_numbers_all_ranks_are_on_this_machine() {
    assert_eq!(numbers("RANK=2 WORLD_SIZE=4 MASTER_ADDR=localhost MASTER_PORT=1"), [2, 4, 2, 4]);
    let one = "SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_LOCALID=1 SLURM_STEP_ID=0 SLURM_JOB_NODELIST=n1";
    assert_eq!(numbers(one), [1, 2, 1, 2]);
}

#[test]
fn half_a_set_is_refused_with_the_other_half_named() {
    for (variables, missing, launcher) in [
        ("ATTN_RANK=0", "`ATTN_WORLD_SIZE` is missing", "attn launch"),
        ("ATTN_WORLD_SIZE=2", "`ATTN_RANK` is missing", "attn launch"),
        ("RANK=0 MASTER_ADDR=x", "`WORLD_SIZE` is missing", "torchrun"),
        ("OMPI_COMM_WORLD_SIZE=4", "`OMPI_COMM_WORLD_RANK` is missing", "OpenMPI"),
        ("PMI_RANK=4", "`PMI_SIZE` is missing", "MPICH"),
        ("SLURM_NTASKS=4 SLURM_JOB_ID=1", "`SLURM_PROCID` is missing", "the shell of `salloc`"),
        ("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0", "`LOCAL_WORLD_SIZE` is missing", "torchrun"),
        ("RANK=0 WORLD_SIZE=2 LOCAL_WORLD_SIZE=2", "`LOCAL_RANK` is missing", "torchrun"),
    ] {
        refused(variables, &[missing, launcher, "Start every rank with"]);
    }
}

#[test]
fn nonsense_is_refused_with_its_variable_and_value() {
    for (variables, words) in [
        ("RANK=x WORLD_SIZE=2", ["`RANK` (torchrun) is `x`", "whole number"]),
        ("RANK=-1 WORLD_SIZE=2", ["`RANK` (torchrun) is `-1`", "whole number"]),
        ("RANK= WORLD_SIZE=2", ["`RANK`", "it is empty"]),
        ("RANK=2 WORLD_SIZE=2", ["`RANK` (torchrun) is `2`", "less than `WORLD_SIZE`, which is 2"]),
        ("PMI_RANK=0 PMI_SIZE=0", ["`PMI_SIZE` (MPICH's mpiexec) is `0`", "at least 1"]),
        ("RANK=0 WORLD_SIZE=99999", ["`WORLD_SIZE`", "at most 4096"]),
        (
            "PMI_RANK=0 PMI_SIZE=2 MPI_LOCALRANKID=2 MPI_LOCALNRANKS=2",
            ["`MPI_LOCALRANKID`", "less than `MPI_LOCALNRANKS`"],
        ),
        (
            "PMI_RANK=0 PMI_SIZE=2 MPI_LOCALRANKID=0 MPI_LOCALNRANKS=3",
            ["`MPI_LOCALNRANKS`", "at most `PMI_SIZE`"],
        ),
        ("RANK=0 WORLD_SIZE=2 MASTER_PORT=65535", ["`MASTER_PORT`", "from 1 to 65534"]),
        ("RANK=0 WORLD_SIZE=2 ATTN_MASTER_PORT=0", ["`ATTN_MASTER_PORT` (`attn launch`", "from 1 to 65535"]),
        ("RANK=0 WORLD_SIZE=2 ATTN_DEADLINE=-3", ["`ATTN_DEADLINE`", "seconds"]),
        ("RANK=0 WORLD_SIZE=2 ATTN_DEADLINE=nan", ["`ATTN_DEADLINE`", "seconds"]),
    ] {
        refused(variables, &words);
    }
    refused(
        &SLURM.replace("node[", "node[["),
        &["`SLURM_JOB_NODELIST` (Slurm) is `node[[01-04", "list of hosts"],
    );
    refused(&SLURM.replace("NODEID=3", "NODEID=4"), &["`SLURM_TASKS_PER_NODE`", "number 4"]);
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStringExt;
        let bytes = |name: &str| name.ends_with("RANK").then(|| OsString::from_vec(vec![b'1', 0xff]));
        let error = Place::from(|name| bytes(name).or_else(|| Some("2".into()))).unwrap_err();
        assert!(error.to_string().contains("`ATTN_RANK`"), "{error}");
        assert!(error.to_string().contains("not UTF-8"), "{error}");
    }
}

#[test]
fn nobody_tells_and_the_ways_to_start_are_named() {
    refused("PATH=/bin MASTER_ADDR=x", &["attn launch -n 4", "mpirun", "torchrun", "srun", "World::threads"]);
}

#[test]
fn a_batch_script_is_no_rank() {
    let script = "SLURM_PROCID=0 SLURM_NTASKS=4 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_TASKS_PER_NODE=4";
    refused(script, &["`SLURM_STEP_ID` is missing", "srun PROGRAM"]);
    assert_eq!(numbers(&script.replace('4', "1")), [0, 1, 0, 1]);
    // What is started in it by others is.
    assert_eq!(numbers(&format!("{script} {MPICH}")), numbers(MPICH));
}

#[test]
fn srun_is_not_taken_for_mpich() {
    let both = format!("{SLURM} PMI_RANK=6 PMI_SIZE=7");
    assert_eq!(numbers(&both), numbers(SLURM));
}

#[test]
fn lists_of_hosts_have_a_first_one() {
    for (list, host) in [
        ("node[01-04,7],x1", Some("node01")),
        ("x1", Some("x1")),
        ("x1,node[2-3]", Some("x1")),
        ("a[7,9-10]b[3-4].cluster", Some("a7b3.cluster")),
        ("gpu-a[008-100]", Some("gpu-a008")),
        ("", None),
        (",x", None),
        ("a[", None),
        ("a[]", None),
        ("a[x]", None),
        ("a]b", None),
    ] {
        assert_eq!(first_of(list).as_deref(), host, "{list}");
    }
    assert_eq!([0, 2, 3, 4].map(|node| tasks_of("2(x3),1", node)), [Some(2), Some(2), Some(1), None]);
    assert_eq!(tasks_of("8(x99999999999)", 5_000_000), Some(8));
    for list in ["", "x", "2(x", "2(xx)", "(x2)"] {
        assert_eq!(tasks_of(list, 0), None, "{list}");
    }
}

proptest! {
    #[test]
    fn no_environment_panics_and_what_is_accepted_fits(
        values in proptest::collection::vec(
            proptest::option::weighted(0.6, prop_oneof![
                20 => (0_usize..6).prop_map(|number| number.to_string()),
                1 => "[0-9a-z\\[\\](),x-]{0,12}",
                1 => any::<String>(),
            ]),
            VARIABLES.len(),
        ),
    ) {
        let lookup = |name: &str| {
            let index = VARIABLES.iter().position(|variable| *variable == name)?;
            values[index].as_ref().map(OsString::from)
        };
        match Place::from(lookup) {
            Ok(place) => {
                prop_assert!(place.check().is_ok());
                prop_assert_ne!(place.master_port, Some(0));
            }
            Err(Error::Environment(message)) => prop_assert!(message.len() < 1000),
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}

const VARIABLES: [&str; 37] = [
    "ATTN_RANK",
    "ATTN_WORLD_SIZE",
    "ATTN_LOCAL_RANK",
    "ATTN_LOCAL_WORLD_SIZE",
    "ATTN_MASTER_ADDR",
    "ATTN_MASTER_PORT",
    "ATTN_TOKEN",
    "ATTN_DEADLINE",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "PMIX_NAMESPACE",
    "PMI_RANK",
    "PMI_SIZE",
    "MPI_LOCALRANKID",
    "MPI_LOCALNRANKS",
    "SLURM_PROCID",
    "SLURM_NTASKS",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_TASKS_PER_NODE",
    "SLURM_STEP_TASKS_PER_NODE",
    "SLURM_JOB_NODELIST",
    "SLURM_STEP_NODELIST",
    "SLURM_NODELIST",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_STEPID",
    "PATH",
];
