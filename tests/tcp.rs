//! Ranks as processes that talk over TCP. A test starts its own program again, once for each rank, with the variables that a
//! launcher would set; there the same test is that rank's life.

mod suite;
mod support;

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use attn::prelude::*;
use attn::{Error, Place, TcpComm};
use suite::{DEADLINE, Fault};
use support::{Problem, Setup, WithFlash, call, open};

/// How a rank's process ended.
#[derive(Debug)]
struct End {
    /// What its life came to; empty if it could not say so.
    said: String,
    /// When, from the start of all.
    at: Duration,
}

/// What stands before what a rank's life came to.
const SAID: &str = "the rank ends: ";

/// Calls `body` in `size` processes, but starts only those of `ranks`: how each of them ended. `test` is the name of the test
/// that calls this.
fn processes(
    test: &str,
    size: usize,
    ranks: &[usize],
    deadline: Duration,
    body: impl FnOnce(TcpComm) -> attn::Result<()>,
) -> Vec<End> {
    processes_with(&[], test, size, ranks, deadline, body)
}

/// As [`processes`], with further variables.
fn processes_with(
    variables: &[(&str, &str)],
    test: &str,
    size: usize,
    ranks: &[usize],
    deadline: Duration,
    body: impl FnOnce(TcpComm) -> attn::Result<()>,
) -> Vec<End> {
    if std::env::var_os("ATTN_RANK").is_some() {
        let outcome = World::from_env().and_then(|world| world.threads_per_rank(1).run(body));
        let said = outcome.map_or_else(|error| error.to_string(), |()| "well".into());
        println!("\n{SAID}{}", said.replace('\n', " "));
        std::process::exit(0);
    }
    let (port, started) = (free_port(), Instant::now());
    let start = |rank: &usize| {
        let rank = rank.to_string();
        let mut program = Command::new(std::env::current_exe().unwrap());
        program.args(["--exact", test, "--nocapture"]).stdout(Stdio::piped());
        for (name, value) in [
            ("ATTN_RANK", &*rank),
            ("ATTN_WORLD_SIZE", &*size.to_string()),
            ("ATTN_LOCAL_RANK", &*rank),
            ("ATTN_LOCAL_WORLD_SIZE", &*size.to_string()),
            ("ATTN_MASTER_ADDR", "127.0.0.1"),
            ("ATTN_MASTER_PORT", &*port.to_string()),
            ("ATTN_TOKEN", test),
            // One of them panics on purpose.
            ("RUST_BACKTRACE", "0"),
            ("ATTN_DEADLINE", &*deadline.as_secs_f64().to_string()),
        ] {
            program.env(name, value);
        }
        program.envs(variables.iter().copied());
        program.spawn().unwrap()
    };
    let children: Vec<_> = ranks.iter().map(start).collect();
    std::thread::scope(|scope| {
        let ends: Vec<_> = children
            .into_iter()
            .map(|child| {
                scope.spawn(move || {
                    let output = child.wait_with_output().unwrap();
                    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
                    let said = printed.lines().find_map(|line| line.strip_prefix(SAID));
                    End { said: said.unwrap_or_default().into(), at: started.elapsed() }
                })
            })
            .collect();
        ends.into_iter().map(|end| end.join().unwrap()).collect()
    })
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn processes_give_the_same_bits_as_threads_and_obey_every_law() {
    for size in 2..=4 {
        let ends = processes(
            "processes_give_the_same_bits_as_threads_and_obey_every_law",
            size,
            &[0, 1, 2, 3][..size],
            Duration::from_secs(60),
            |comm| {
                suite::check_laws(&comm)?;
                suite::strategies_agree_with_threads(&comm)
            },
        );
        for (rank, end) in ends.iter().enumerate() {
            assert_eq!(end.said, "well", "rank {rank} of {size}");
        }
    }
}

#[test]
fn processes_move_more_than_an_int_can_count() {
    let is_rank = std::env::var_os("ATTN_RANK").is_some();
    if !is_rank && !suite::memory_allows(5 << 30) {
        println!("not run: it takes 5 GiB of memory");
        return;
    }
    // Over sockets, and through memory that the processes share.
    for shared in ["0", "1"] {
        let ends = processes_with(
            &[("ATTN_SHARED_MEMORY", shared)],
            "processes_move_more_than_an_int_can_count",
            2,
            &[0, 1],
            Duration::from_secs(60),
            |comm| suite::more_than_an_int_can_count(&comm),
        );
        for (rank, end) in ends.iter().enumerate() {
            assert_eq!(end.said, "well", "rank {rank}, shared memory {shared}");
        }
    }
}

/// Attends again and again, and before each time does what `before` says.
fn attend(comm: TcpComm, mut before: impl FnMut(usize)) -> attn::Result<()> {
    let setup = Setup::ring(comm.size());
    let mut session = open::<WithFlash, _, f32>(comm, setup)?;
    let inputs = Problem::new(1, 24, 4, 8).inputs::<f32>(1);
    for time in 0..1000 {
        before(time);
        call(&mut session, &inputs)?;
    }
    Ok(())
}

/// Lets rank 1 of three end in the middle of its work, and checks that the others hear of it at once.
#[track_caller]
fn check_survivors(test: &str, end: fn(), words: &str) {
    let ends = processes(test, 3, &[0, 1, 2], Duration::from_secs(60), |comm| {
        let rank = comm.rank();
        attend(comm, |time| {
            if (rank, time) == (1, 20) {
                end();
            }
        })
    });
    for rank in [0, 2] {
        let End { said, at } = &ends[rank];
        assert!(said.contains(words), "rank {rank}: {said}");
        let after = at.saturating_sub(ends[1].at);
        assert!(after < Duration::from_secs(2), "rank {rank} ended {after:?} after rank 1");
    }
}

#[test]
fn survivors_of_a_killed_rank_name_it() {
    let kill = || {
        let me = std::process::id().to_string();
        Command::new("kill").args(["-9", &me]).status().unwrap();
        std::thread::sleep(Duration::from_secs(60));
    };
    check_survivors("survivors_of_a_killed_rank_name_it", kill, "rank 1 is lost, and rotate");
}

#[test]
fn survivors_of_a_rank_that_exits_name_it() {
    let exit = || std::process::exit(3);
    check_survivors("survivors_of_a_rank_that_exits_name_it", exit, "rank 1 is lost, and rotate");
}

#[test]
fn survivors_of_a_rank_that_panics_say_what_it_said() {
    let panic = || panic!("enough");
    check_survivors("survivors_of_a_rank_that_panics_say_what_it_said", panic, "rank 1 panicked: enough");
}

#[test]
fn a_rank_that_sleeps_past_the_deadline_is_named() {
    let test = "a_rank_that_sleeps_past_the_deadline_is_named";
    let ends = processes(test, 3, &[0, 1, 2], Duration::from_secs(2), |comm| {
        let rank = comm.rank();
        attend(comm, |time| {
            if (rank, time) == (1, 3) {
                std::thread::sleep(Duration::from_secs(3));
            }
        })
    });
    for rank in [0, 2] {
        let End { said, at } = &ends[rank];
        assert!(
            said.contains("passed its deadline of 2 s: ranks [1] had not arrived"),
            "rank {rank}: {said}"
        );
        assert!(*at < Duration::from_secs(6), "rank {rank}: {at:?}");
    }
    assert!(ends[1].said.contains("deadline"), "it is told too: {}", ends[1].said);
}

#[test]
fn a_rank_that_never_starts_is_named() {
    let test = "a_rank_that_never_starts_is_named";
    let ends = processes(test, 4, &[0, 1, 3], Duration::from_secs(1), |_| Ok(()));
    for End { said, at } in &ends {
        assert!(said.contains("the start of the world at 127.0.0.1:"), "{said}");
        assert!(said.contains("passed its deadline of 1 s: ranks [2] had not arrived"), "{said}");
        assert!(*at < Duration::from_secs(4), "{at:?}");
    }
}

/// The faults of the suite, over sockets, among threads of this process: a world of processes for each would take long.
#[test]
fn everybody_is_told_of_a_fault() {
    std::thread::scope(|scope| {
        for fault in suite::faults::<TcpComm>() {
            scope.spawn(move || [2, 3, 5].map(|ranks| try_out(&fault, ranks)));
        }
    });
}

/// Every rank's communicator.
fn communicators(ranks: usize) -> Vec<TcpComm> {
    let port = free_port();
    let connect = move |rank| {
        let mut place = Place::new(rank, ranks)?;
        place.master_port = Some(port);
        World::at(place).deadline(DEADLINE).threads_per_rank(1).tcp()
    };
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..ranks).map(|rank| scope.spawn(move || connect(rank))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap().unwrap()).collect()
    })
}

/// Tries a fault, and checks what each rank hears.
fn try_out(fault: &Fault<TcpComm>, ranks: usize) {
    let comms = communicators(ranks);
    let started = Instant::now();
    let outcomes: Vec<Result<(), Error>> = std::thread::scope(|scope| {
        let ranks: Vec<_> =
            comms.into_iter().map(|comm| scope.spawn(|| comm.run(|comm| (fault.body)(&comm)))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    for (rank, outcome) in outcomes.iter().enumerate() {
        let told = outcome.as_ref().is_err_and(|error| (fault.heard)(rank, ranks, error));
        let left = outcome.is_ok() && rank + 1 == ranks && fault.leaves;
        assert!(told || left, "{}: rank {rank} of {ranks}: {outcome:?}", fault.name);
    }
    assert!(started.elapsed() < DEADLINE + Duration::from_secs(2), "{}: {:?}", fault.name, started.elapsed());
}
