//! `attn run` on ranks that are processes: what comes out is what threads compute, and however a rank ends, all learn of it.

use std::fs;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use safetensors::Dtype;
use tempfile::{TempDir, tempdir};

use crate::problem::{Problem, Sizes};
use crate::tensors::BSHD;
use crate::{fail, names, succeed, texts};

/// A folder with an `in.safetensors`.
fn folder(dtype: Dtype, sizes: Sizes) -> TempDir {
    let folder = tempdir().unwrap();
    Problem::new(dtype, sizes).write(&folder.path().join("in.safetensors"), BSHD);
    folder
}

fn small() -> TempDir {
    folder(Dtype::F32, Sizes { batch: 2, seq: [48, 48], heads: [4, 2], dim: 16, joint: 0 })
}

/// Runs `attn run` over TCP as ranks, each by this script of `sh`, where `"$@"` is the command.
fn script(folder: &Path, ranks: &str, launch: &[&str], script: &str, args: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_attn"));
    command.current_dir(folder).args(["launch", "-n", ranks]).args(launch);
    command.args(["--", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_attn"), "run", "--comm", "tcp"]);
    command.args(["--input", "in.safetensors"]).args(args.split_whitespace());
    command.output().expect("the program starts")
}

/// The same; all ranks must succeed. Gives their stdout, where lines of rank 0 alone are.
#[track_caller]
fn processes(folder: &Path, ranks: &str, args: &str) -> String {
    let output = script(folder, ranks, &[], r#"exec "$@""#, args);
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success() && stderr.is_empty(), "{args}: {stdout}{stderr}");
    assert!(stdout.lines().all(|line| line.starts_with("[0] ")), "{args}: {stdout}");
    stdout.lines().map(|line| format!("{}\n", &line[4..])).collect()
}

/// The same; all ranks must fail with this code, and only one of them say why: all of these, in one line.
#[track_caller]
fn refuse(folder: &Path, ranks: &str, args: &str, code: i32, says: &[&str]) {
    // A rank's own code goes to stdout, and is not the launcher's: so all are seen.
    let output = script(folder, ranks, &[], r#""$@"; echo $?"#, args);
    let (stdout, stderr) = texts(&output);
    let mut codes: Vec<&str> = stdout.lines().collect();
    codes.sort();
    let ranks: usize = ranks.parse().unwrap();
    let expected: Vec<String> = (0..ranks).map(|rank| format!("[{rank}] {code}")).collect();
    assert_eq!(codes, expected, "{args}: {stderr}");
    assert!(stderr.starts_with("[0] attn: ") && stderr.lines().count() == 1, "{args}: {stderr}");
    for said in says {
        assert!(stderr.contains(said), "{args}: {stderr} does not say {said:?}");
    }
}

#[test]
fn processes_compute_what_threads_do_bit_for_bit() {
    let sizes = Sizes { batch: 2, seq: [48, 48], heads: [4, 2], dim: 16, joint: 5 };
    let plain = Sizes { joint: 0, ..sizes };
    for (dtype, sizes, ranks, args) in [
        (Dtype::F32, plain, "4", "--strategy hybrid --ulysses 2 --ring 2 --lse"),
        (Dtype::F32, plain, "4", "--strategy ring --layout zigzag --mask causal+segments --lse"),
        (Dtype::F32, plain, "3", "--strategy ulysses --split uneven --mask padding"),
        (Dtype::BF16, plain, "2", "--strategy allgather_kv --mask window:9,2"),
        (Dtype::F16, sizes, "4", "--strategy ulysses_allgather --joint front --lse"),
        (Dtype::F32, sizes, "2", "--strategy ring --joint rear --backend sdpa"),
        (Dtype::F32, plain, "1", "--strategy ulysses"),
    ] {
        let folder = folder(dtype, sizes);
        let alone = ["run", "--input", "in.safetensors", "--output", "threads", "--ranks", ranks];
        succeed(folder.path(), &[&alone[..], &args.split_whitespace().collect::<Vec<_>>()].concat());
        let said = processes(folder.path(), ranks, &format!("{args} --output processes"));
        assert!(said.contains(", ranks over tcp") && said.contains("output: processes\n"), "{said}");
        let read = |name: &str| fs::read(folder.path().join(name)).unwrap();
        assert!(read("threads") == read("processes"), "{dtype} {args}");
        assert_eq!(names(folder.path()), ["in.safetensors", "processes", "threads"]);
    }
}

#[test]
fn rank_0_reports_all_runs_and_what_each_sent() {
    let folder = small();
    let strategies = "--strategy none,ulysses,ring,hybrid,allgather_kv,ulysses_allgather --json";
    let runs = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap()["runs"].clone();
    let over_tcp = runs(&processes(folder.path(), "4", strategies));
    let args = format!("--input in.safetensors --ranks 4 {strategies}");
    let threads = runs(&succeed(folder.path(), &args.split_whitespace().collect::<Vec<_>>()));
    assert_eq!(over_tcp.as_array().unwrap().len(), 6);
    for (tcp, threads) in over_tcp.as_array().unwrap().iter().zip(threads.as_array().unwrap()) {
        for same in [
            "strategy",
            "ranks",
            "bytes_per_rank",
            "blocks_busiest",
            "blocks_mean",
            "relative_error_one_rank",
        ] {
            assert_eq!(tcp[same], threads[same], "{same}: {tcp}");
        }
        assert_eq!((tcp["comm"].as_str(), threads["comm"].as_str()), (Some("tcp"), Some("threads")));
        assert!(tcp["seconds"].as_f64().unwrap() > 0.0, "{tcp}");
    }
}

#[test]
fn what_cannot_be_done_is_said_once_and_all_ranks_end_alike() {
    let folder = small();
    let here = folder.path();
    refuse(here, "3", "--strategy ulysses", 3, &["4 query heads do not divide among 3 ranks"]);
    refuse(here, "2", "--strategy ulysses --ranks 4", 2, &["`--ranks` says 4, but 2 ranks were started"]);
    refuse(here, "2", "--strategy hybrid --ulysses 2 --ring 2", 2, &["is 4 ranks, but 2 were started"]);
    refuse(here, "2", "", 2, &["`none` runs on one rank, and 2 were started", "`--strategy`"]);
    refuse(here, "2", "--strategy ring --mask padding+causal --joint front", 3, &["causal"]);
    refuse(here, "2", "--strategy ring --output no/out", 4, &["cannot write `no/out`"]);
    refuse(here, "2", "--strategy ring --output a --scatter 5", 2, &["names no layout"]);
    fs::write(here.join("in.safetensors"), b"no tensors").unwrap();
    refuse(here, "2", "--strategy ring --output out", 3, &["is no safetensors file"]);
    fs::remove_file(here.join("in.safetensors")).unwrap();
    refuse(here, "2", "--strategy ring", 4, &["cannot read `in.safetensors`"]);
    assert_eq!(names(here), [""; 0]);
}

#[test]
fn a_disk_that_is_full_leaves_what_was_there() {
    let folder = small();
    fs::write(folder.path().join("out"), b"precious").unwrap();
    // The signal that would end the program at the limit is ignored: then writing fails.
    let limited = r#"trap '' XFSZ; ulimit -f 8; "$@"; echo $?"#;
    let output = script(folder.path(), "2", &[], limited, "--strategy ring --output out");
    let (stdout, stderr) = texts(&output);
    assert!(stdout.contains("[0] 4\n") && stdout.contains("[1] 4\n"), "{stdout}{stderr}");
    assert!(stderr.starts_with("[0] attn: cannot write `out`: ") && stderr.lines().count() == 1, "{stderr}");
    assert_eq!(fs::read(folder.path().join("out")).unwrap(), b"precious");
    assert_eq!(names(folder.path()), ["in.safetensors", "out"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_rank_that_is_killed_is_named_by_the_others() {
    let folder = folder(Dtype::F32, Sizes { batch: 1, seq: [2048, 2048], heads: [2, 2], dim: 64, joint: 0 });
    fs::write(folder.path().join("out"), b"precious").unwrap();
    for victim in [0, 2] {
        // When it has found the three others.
        let killed = format!(
            r#"if [ $ATTN_RANK = {victim} ]; then "$@" &
               until [ $(ls -l /proc/$!/fd | grep -c socket) -ge 3 ]; do sleep 0.01; done
               sleep 0.1; kill -9 $!; wait $!; kill -9 $$; fi; exec "$@""#
        );
        let start = Instant::now();
        let args = "--strategy ring --no-check --output out --threads 1";
        let output = script(folder.path(), "4", &["--grace", "30"], &killed, args);
        let (stdout, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(128 + 9), "{stdout}{stderr}");
        assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
        for survivor in (0..4).filter(|rank| *rank != victim) {
            let says = format!("[{survivor}] attn: rank {victim} is lost");
            assert!(stderr.contains(&says), "{stderr} does not say {says}");
        }
        let says = format!("attn: rank {victim} on localhost was ended by signal 9 (SIGKILL)\n");
        assert!(stderr.ends_with(&says), "{stderr}");
        assert_eq!(fs::read(folder.path().join("out")).unwrap(), b"precious");
    }
    assert_eq!(names(folder.path()), ["in.safetensors", "out"]);
}

/// Two ranks, of which rank 0 prints into a pipe that is full, and has written `out` before. The pipe, and how much is in it.
fn stuck(folder: &Path, args: &str) -> ([Child; 2], PipeReader, usize) {
    const FULL: usize = 64 << 10;
    let (pipe, mut end): (PipeReader, PipeWriter) = std::io::pipe().unwrap();
    end.write_all(&[b'.'; FULL]).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let rank = |rank: &str, stdout: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_attn"));
        command.current_dir(folder).args(["run", "--comm", "tcp", "--input", "in.safetensors"]);
        command.args(args.split_whitespace()).args(["--output", "out", "--no-check"]);
        command.envs([("ATTN_RANK", rank), ("ATTN_WORLD_SIZE", "2"), ("ATTN_MASTER_PORT", &port)]);
        command.stdout(stdout).stderr(Stdio::piped()).spawn().unwrap()
    };
    let ranks = [rank("0", end.into()), rank("1", Stdio::null())];
    let until = Instant::now() + Duration::from_secs(30);
    while !folder.join("out").exists() {
        assert!(Instant::now() < until, "nothing is written");
        sleep(Duration::from_millis(10));
    }
    (ranks, pipe, FULL)
}

#[test]
fn who_reads_slowly_what_rank_0_prints_fails_nobody() {
    let folder = small();
    let (ranks, mut pipe, full) = stuck(folder.path(), "--strategy ring --deadline 1");
    sleep(Duration::from_secs(2));
    let mut said = String::new();
    pipe.read_to_string(&mut said).unwrap();
    for rank in ranks {
        let output = rank.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", texts(&output).1);
    }
    assert!(said[full..].contains("output: out\n"), "{}", &said[full..]);
}

#[test]
fn rank_0_ends_with_the_others_whatever_it_does_alone() {
    let folder = small();
    let ([zero, mut one], _pipe, _) = stuck(folder.path(), "--strategy ring");
    one.kill().unwrap();
    one.wait().unwrap();
    let killed = Instant::now();
    let output = zero.wait_with_output().unwrap();
    assert!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());
    assert_eq!(output.status.code(), Some(4));
    let (_, stderr) = texts(&output);
    assert!(stderr.starts_with("attn: rank 1 is lost") && stderr.lines().count() == 1, "{stderr}");
    assert_eq!(names(folder.path()), ["in.safetensors", "out"]);
}

#[test]
fn a_rank_that_never_comes_is_named_when_the_deadline_has_passed() {
    let folder = small();
    let absent = r#"if [ $ATTN_RANK = 1 ]; then exec sleep 60; fi; exec "$@""#;
    let args = "--strategy ring --deadline 0.6";
    let output = script(folder.path(), "3", &["--grace", "0.5"], absent, args);
    let (_, stderr) = texts(&output);
    for rank in [0, 2] {
        let said = stderr.lines().find(|line| line.starts_with(&format!("[{rank}] attn: ")));
        assert!(
            said.is_some_and(|said| said.contains("deadline of 0.6 s") && said.contains("[1]")),
            "{stderr}"
        );
    }
    assert!(stderr.contains("rank 1, still running 0.5 s later, had to be ended"), "{stderr}");
}

#[test]
fn what_the_environment_does_not_say_is_asked_for() {
    let folder = small();
    let run = ["run", "--comm", "tcp", "--input", "in.safetensors", "--strategy", "ring"];
    fail(folder.path(), &run, 2, &["attn launch -n 4", "`ATTN_RANK`"]);
    for (variables, says) in [
        (&[("ATTN_RANK", "0")][..], "`ATTN_WORLD_SIZE` is missing"),
        (&[("ATTN_RANK", "2"), ("ATTN_WORLD_SIZE", "2")], "ATTN_RANK"),
        (&[("ATTN_RANK", "0"), ("ATTN_WORLD_SIZE", "two")], "`ATTN_WORLD_SIZE`"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_attn"));
        command.current_dir(folder.path()).args(run).envs(variables.iter().copied());
        let output = command.output().unwrap();
        let (_, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.starts_with("attn: ") && stderr.contains(says), "{stderr}");
    }
}

#[test]
fn what_no_rank_could_do_is_refused_before_they_meet() {
    let folder = small();
    let run = |args: &str| {
        let words: Vec<String> = format!("run {args}").split_whitespace().map(str::to_owned).collect();
        words
    };
    for (args, says) in [
        ("--comm tcp", "`--comm tcp` is for tensors from a file"),
        ("--comm tcp --device cuda --input in.safetensors", "cuda"),
        ("--comm smoke --input in.safetensors", "threads, tcp, mpi, nccl"),
        ("--deadline 0 --input in.safetensors", "expected seconds, above 0"),
    ] {
        let words = run(args);
        fail(folder.path(), &words.iter().map(String::as_str).collect::<Vec<_>>(), 2, &[says]);
    }
    if !cfg!(feature = "mpi") {
        let words = run("--comm mpi --input in.safetensors");
        fail(
            folder.path(),
            &words.iter().map(String::as_str).collect::<Vec<_>>(),
            2,
            &["`--features mpi`", "mpicc"],
        );
    }
    if !cfg!(feature = "nccl") {
        let words = run("--comm nccl --input in.safetensors");
        fail(folder.path(), &words.iter().map(String::as_str).collect::<Vec<_>>(), 2, &["`--features nccl`"]);
    }
}
