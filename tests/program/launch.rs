//! `attn launch`: what ranks print comes through whole, and however one ends, the others end too and it is told.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::tempdir;

use crate::{fail, texts};

/// What each rank runs is a script of `sh`.
fn launch(args: &[&str], script: &str) -> Command {
    // Whoever runs these tests may have been told to ignore signals, as what runs in the background is.
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP,INT,TERM", env!("CARGO_BIN_EXE_attn")]);
    command.arg("launch").args(args).args(["--", "sh", "-c", script]);
    command
}

fn run(args: &[&str], script: &str) -> Output {
    launch(args, script).output().expect("the program starts")
}

/// Runs a script on ranks; it must succeed, and say nothing on stderr. Its lines in order of the alphabet.
#[track_caller]
fn lines(args: &[&str], script: &str) -> Vec<String> {
    let output = run(args, script);
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success() && stderr.is_empty(), "{:?}: {stdout}{stderr}", output.status);
    let mut lines: Vec<String> = stdout.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Runs a script on ranks; it must fail with this code, within these seconds, and its stderr says all of these.
#[track_caller]
fn ends(args: &[&str], script: &str, code: i32, seconds: u64, says: &[&str]) {
    let start = Instant::now();
    let output = run(args, script);
    let (_, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(start.elapsed() < Duration::from_secs(seconds), "{:?}: {stderr}", start.elapsed());
    for said in says {
        assert!(stderr.contains(said), "{stderr} does not say {said:?}");
    }
}

/// A launcher whose ranks have printed something: one line of each.
fn started(mut command: Command, ranks: usize) -> (Child, Vec<String>) {
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let mut stdout = BufReader::new(child.stdout.take().expect("it is piped"));
    let lines = (0..ranks).map(|_| {
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a rank prints a line");
        line.trim_end().to_owned()
    });
    let lines = lines.collect();
    // What comes after that is read to the end, so that nobody waits for a reader.
    std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
    (child, lines)
}

fn signal(process: &str, name: &str) {
    let done = Command::new("sh").args(["-c", &format!("kill -{name} {process}")]).status();
    assert!(done.expect("there is a shell").success());
}

fn lives(process: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    // What its parent has not asked for yet is dead all the same.
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}

/// Waits until none of these lives.
#[track_caller]
fn gone(processes: &[&str], seconds: u64) {
    let until = Instant::now() + Duration::from_secs(seconds);
    while let Some(process) = processes.iter().find(|process| lives(process)) {
        assert!(Instant::now() < until, "{process} still lives");
        sleep(Duration::from_millis(10));
    }
}

/// What stands behind the number of the rank.
fn text(line: &str) -> &str {
    line.split_once("] ").expect("a number stands before it").1
}

#[test]
fn every_rank_knows_its_place() {
    let script = "echo $ATTN_RANK $ATTN_WORLD_SIZE $ATTN_LOCAL_RANK $ATTN_LOCAL_WORLD_SIZE $ATTN_MASTER_ADDR";
    let expected: Vec<String> = (0..3).map(|rank| format!("[{rank}] {rank} 3 {rank} 3 127.0.0.1")).collect();
    assert_eq!(lines(&["-n", "3"], script), expected);
    let same = lines(&["-n", "2", "--no-prefix"], "echo $ATTN_MASTER_PORT $ATTN_TOKEN");
    assert_eq!(same[0], same[1]);
    let (port, token) = same[0].split_once(' ').unwrap();
    assert!(port.parse::<u16>().unwrap() > 0 && token.len() == 32);
    // Another launcher has another one.
    assert!(!lines(&["-n", "1"], "echo $ATTN_TOKEN")[0].contains(token));
    let given = [
        "-n",
        "1",
        "--master-addr",
        "10.1.2.3",
        "--master-port",
        "4567",
        "--env",
        "A=b c=d",
        "--env",
        "PATH",
    ];
    assert_eq!(lines(&given, "echo $ATTN_MASTER_ADDR:$ATTN_MASTER_PORT $A"), ["[0] 10.1.2.3:4567 b c=d"]);
    assert_eq!(
        lines(&["-n", "1"], "cat; pwd"),
        [format!("[0] {}", std::env::current_dir().unwrap().display())]
    );
}

#[test]
fn lines_stay_whole_when_all_ranks_print_at_once() {
    let script = "i=0; while [ $i -lt 2000 ]; do echo $ATTN_RANK line $i of $ATTN_RANK; echo $ATTN_RANK error >&2; \
                  i=$((i+1)); done";
    let output = run(&["-n", "4"], script);
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success());
    let mut next = [0; 4];
    for line in stdout.lines() {
        let rank: usize = line[1..2].parse().unwrap();
        assert_eq!(line, format!("[{rank}] {rank} line {} of {rank}", next[rank]));
        next[rank] += 1;
    }
    assert_eq!(next, [2000; 4]);
    let all = (0..4).map(|rank| stderr.matches(&format!("[{rank}] {rank} error\n")).count());
    assert_eq!(all.collect::<Vec<_>>(), [2000; 4]);
}

#[test]
fn what_is_written_last_comes_through_however_slowly_it_is_read() {
    const LINES: usize = 200_000;
    let mut command = launch(&["-n", "1"], &format!("exec seq {LINES}"));
    let mut child = command.stdout(Stdio::piped()).spawn().expect("the program starts");
    // The rank has ended long before its last line is read.
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    stdout.read_line(&mut first).unwrap();
    sleep(Duration::from_millis(1800));
    assert_eq!((text(&first), stdout.lines().count()), ("1\n", LINES - 1));
    assert!(child.wait().unwrap().success());
}

#[test]
fn bytes_that_are_no_text_and_lines_without_end_come_through() {
    let output = run(&["-n", "2"], r"printf '\377\376\n\000last'");
    let mut lines: Vec<&[u8]> = output.stdout.split_inclusive(|byte| *byte == b'\n').collect();
    lines.sort();
    assert_eq!(lines, [&b"[0] \0last\n"[..], b"[0] \xff\xfe\n", b"[1] \0last\n", b"[1] \xff\xfe\n"]);
    // 32 MiB without an end, cut into lines: nothing is lost.
    let output = run(&["-n", "1", "--no-prefix"], "head -c 33554432 /dev/zero");
    assert!(output.status.success());
    assert_eq!(output.stdout.iter().filter(|byte| **byte == 0).count(), 32 << 20);
    assert!(output.stdout.split(|byte| *byte == b'\n').all(|line| line.len() <= 64 << 10));
}

#[test]
fn the_launchers_exit_code_is_that_of_the_first_rank_that_failed() {
    ends(
        &["-n", "3"],
        "exit $((ATTN_RANK == 1 ? 7 : 0))",
        7,
        2,
        &["rank 1 on localhost ended with exit code 7"],
    );
    let output =
        Command::new(env!("CARGO_BIN_EXE_attn")).args(["launch", "-n", "2", "/no/such"]).output().unwrap();
    assert_eq!(output.status.code(), Some(127));
    assert!(texts(&output).1.contains("cannot start `/no/such`: No such file"));
    let output =
        Command::new(env!("CARGO_BIN_EXE_attn")).args(["launch", "-n", "1", "/dev/null"]).output().unwrap();
    assert_eq!(output.status.code(), Some(126));
}

#[test]
fn when_a_rank_is_killed_the_others_are_ended_and_it_is_named() {
    let script = "if [ $ATTN_RANK = 2 ]; then kill -9 $$; fi; echo $$; exec sleep 60";
    let says = [
        "rank 2 on localhost was ended by signal 9 (SIGKILL)",
        "ranks 0, 1 and 3, still running 0.3 s later",
    ];
    ends(&["-n", "4", "--grace", "0.3"], script, 128 + 9, 2, &says);
    // Survivors that notice it, and say so, count as such; one that does not hear is killed.
    let script = "case $ATTN_RANK in 0) sleep 0.05; echo I heard >&2; exit 3;; 1) kill -11 $$;; esac; \
                  trap '' TERM; while :; do sleep 0.1; done";
    let says = [
        "[0] I heard",
        "rank 1 on localhost was ended by signal 11 (SIGSEGV)",
        "rank 2, still running 0.2 s",
    ];
    ends(&["-n", "3", "--grace", "0.2"], script, 128 + 11, 4, &says);
}

#[test]
fn what_a_rank_has_started_ends_with_it() {
    let (mut child, lines) = started(launch(&["-n", "1"], "sleep 60 & echo $!"), 1);
    assert!(child.wait().unwrap().success());
    gone(&[text(&lines[0])], 1);
}

#[test]
fn signals_are_passed_on_and_all_ranks_waited_for() {
    let script = "trap 'sleep 0.2; exit 5' TERM; echo $$; while :; do sleep 0.02; done";
    let (mut child, lines) = started(launch(&["-n", "2"], script), 2);
    signal(&child.id().to_string(), "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(5));
    assert!(lines.iter().all(|line| !lives(text(line))));
    for (name, number) in [("INT", 2), ("HUP", 1)] {
        let (mut child, _) = started(launch(&["-n", "2"], "echo $$; exec sleep 60"), 2);
        signal(&child.id().to_string(), name);
        assert_eq!(child.wait().unwrap().code(), Some(128 + number), "{name}");
    }
    // One that ignores signals is waited for, until the second.
    let (mut child, lines) = started(launch(&["-n", "1"], "trap '' INT; echo $$; exec sleep 60"), 1);
    signal(&child.id().to_string(), "INT");
    sleep(Duration::from_millis(300));
    assert!(lives(text(&lines[0])) && child.try_wait().unwrap().is_none());
    signal(&child.id().to_string(), "INT");
    assert_eq!(child.wait().unwrap().code(), Some(128 + 9));
}

#[test]
fn a_launcher_that_was_told_to_ignore_a_signal_does() {
    let command =
        format!("trap '' HUP; exec {} launch -n 1 -- sh -c 'echo $$; sleep 0.5'", env!("CARGO_BIN_EXE_attn"));
    let mut nohup = Command::new("sh");
    nohup.args(["-c", &command]);
    let (mut child, _) = started(nohup, 1);
    signal(&child.id().to_string(), "HUP");
    assert!(child.wait().unwrap().success());
}

#[test]
fn no_rank_outlives_a_launcher_that_is_killed() {
    let script = "trap '' INT; sleep 60 & echo $$ $!; wait";
    let (mut child, lines) = started(launch(&["-n", "2"], script), 2);
    signal(&child.id().to_string(), "KILL");
    child.wait().unwrap();
    let processes: Vec<&str> = lines.iter().flat_map(|line| text(line).split(' ')).collect();
    gone(&processes, 4);
}

#[cfg(target_os = "linux")]
#[test]
fn no_rank_outlives_a_keeper_that_is_killed() {
    let (mut child, lines) = started(launch(&["-n", "2"], "echo $$ $PPID; exec sleep 60"), 2);
    let (rank, keeper) = text(&lines[0]).split_once(' ').unwrap();
    signal(keeper, "KILL");
    let said = child.wait_with_output_code();
    assert_eq!(said.0, Some(4), "{}", said.1);
    assert!(said.1.contains("the connection to localhost is lost, and with it ranks 0 and 1"), "{}", said.1);
    gone(&[rank], 1);
}

/// A child's exit code, and what it said on stderr.
trait Said {
    fn wait_with_output_code(&mut self) -> (Option<i32>, String);
}

impl Said for Child {
    fn wait_with_output_code(&mut self) -> (Option<i32>, String) {
        let stderr = std::io::read_to_string(self.stderr.take().expect("it is piped")).expect("it is text");
        (self.wait().expect("it ends").code(), stderr)
    }
}

#[test]
fn a_launcher_may_be_a_launchers_rank() {
    let program = env!("CARGO_BIN_EXE_attn");
    let inner = format!("exec {program} launch -n 2 -- sh -c 'echo $ATTN_RANK of $ATTN_WORLD_SIZE'");
    assert_eq!(
        lines(&["-n", "2"], &inner),
        ["[0] [0] 0 of 2", "[0] [1] 1 of 2", "[1] [0] 0 of 2", "[1] [1] 1 of 2"]
    );
    // What is ended outside ends inside.
    let inner = format!("exec {program} launch -n 1 -- sh -c 'echo $$; exec sleep 60'");
    let (mut child, lines) = started(launch(&["-n", "2"], &inner), 2);
    signal(&child.id().to_string(), "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    gone(&lines.iter().map(|line| text(text(line))).collect::<Vec<_>>(), 3);
}

#[test]
fn ranks_find_their_output_closed_when_nobody_reads_the_launchers() {
    let mut child =
        launch(&["-n", "2"], "exec yes").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert_eq!(text(&first), "y\n");
    assert_eq!(child.wait().unwrap().code(), Some(128 + 13));
    if let Ok(full) = fs::File::options().write(true).open("/dev/full") {
        let output = launch(&["-n", "1"], "echo lost").stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(4));
        assert!(texts(&output).1.contains("cannot write to stdout: No space left"), "{output:?}");
    }
}

/// A command that does as ssh does, without going anywhere: words joined by spaces, read by another shell, which greets.
fn rsh(folder: &Path) -> String {
    let script = "#!/bin/sh\n[ \"$1\" = -p ] && [ \"$2\" = 22 ] || exit 9\nshift 2\nFAKE_HOST=$1; export FAKE_HOST\n\
                  shift\n[ $FAKE_HOST = down ] && { echo no route >&2; exit 255; }\necho Welcome to $FAKE_HOST\n\
                  echo \"$*\" >> \"${0%/*}/commands\"\nexec env -u ATTN_TEST sh -c \"$*\"\n";
    let path = folder.join("rsh");
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(script.as_bytes()).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o755)).unwrap();
    drop(file);
    format!("{} -p 22", path.display())
}

#[test]
fn ranks_start_on_other_hosts_in_order() {
    let folder = tempdir().unwrap();
    let rsh = rsh(folder.path());
    let script = "echo $ATTN_RANK/$ATTN_WORLD_SIZE $ATTN_LOCAL_RANK/$ATTN_LOCAL_WORLD_SIZE ${FAKE_HOST:-here} \
                  $ATTN_MASTER_ADDR $ATTN_TEST \"$0\"";
    let mut command = launch(&["--hosts", "me@a,b:2,localhost", "--rsh", &rsh], script);
    // A word that every shell on the way would have its own idea of.
    let output = command.arg("it's $HOME; `x`\\").env("ATTN_TEST", "carried").output().unwrap();
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success() && stderr.is_empty(), "{stdout}{stderr}");
    let mut lines: Vec<&str> = stdout.lines().collect();
    lines.sort();
    let word = "carried it's $HOME; `x`\\";
    let expected = [
        format!("[0] 0/4 0/1 me@a a {word}"),
        format!("[1] 1/4 0/2 b a {word}"),
        format!("[2] 2/4 1/2 b a {word}"),
        format!("[3] 3/4 0/1 here a {word}"),
    ];
    assert_eq!(lines, expected);
    // The command line of ssh says nothing but which program to start: no token, and no word of the ranks' own.
    let commands = fs::read_to_string(folder.path().join("commands")).unwrap();
    let keeper = format!("exec '{}' launch-keeper\n", env!("CARGO_BIN_EXE_attn"));
    assert_eq!(commands, keeper.repeat(2));
}

#[test]
fn hosts_that_cannot_be_reached_or_are_lost_are_named() {
    let folder = tempdir().unwrap();
    let rsh = rsh(folder.path());
    let on = |hosts| ["--hosts", hosts, "--rsh", &rsh].map(str::to_owned);
    let mark = folder.path().join("started");
    let touch = format!("touch {}", mark.display());
    let args = on("a,down");
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let says = ["cannot start ranks on down", "exit status: 255", "no route", "-p 22 down true` work?"];
    ends(&args, &touch, 4, 2, &says);
    assert!(!mark.exists(), "ranks start when all hosts are there");

    // One that never answers: what stands for ssh ends with the launcher.
    let silent = folder.path().join("silent");
    fs::write(
        &silent,
        "#!/bin/sh\necho $$ >\"${0%/*}/new\"; mv \"${0%/*}/new\" \"${0%/*}/process\"\nexec sleep 60\n",
    )
    .unwrap();
    fs::set_permissions(&silent, fs::Permissions::from_mode(0o755)).unwrap();
    let args = ["--hosts", "a", "--rsh", silent.to_str().unwrap()];
    let mut child = launch(&args, &touch).stderr(Stdio::piped()).spawn().unwrap();
    let process = folder.path().join("process");
    while !process.exists() {
        sleep(Duration::from_millis(10));
    }
    signal(&child.id().to_string(), "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    assert!(!lives(fs::read_to_string(&process).unwrap().trim()));

    let args = on("a,b");
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (mut child, lines) = started(launch(&args, "echo $PPID $$; exec sleep 60"), 2);
    let of_rank_1 = lines.iter().find(|line| line.starts_with("[1]")).unwrap();
    let (keeper, rank) = text(of_rank_1).split_once(' ').unwrap();
    signal(keeper, "KILL");
    let (code, stderr) = child.wait_with_output_code();
    assert_eq!(code, Some(4));
    assert!(stderr.contains("the connection to b is lost, and with it rank 1"), "{stderr}");
    assert!(stderr.contains("rank 0, still running 2 s later"), "{stderr}");
    gone(&[rank], 1);
}

#[test]
fn command_lines_that_make_no_sense() {
    let folder = tempdir().unwrap();
    let here = folder.path();
    fail(here, &["launch", "true"], 2, &["how many ranks", "`-n`", "`--hosts`"]);
    fail(here, &["launch", "-n", "2"], 2, &["PROGRAM", "attn launch --help"]);
    fail(here, &["launch", "-n", "0", "true"], 2, &["0 is not between 1 and 1024"]);
    fail(here, &["launch", "-n", "9", "--hosts", "a,b:2", "true"], 2, &["9 ranks", "places for 3", "`a:5`"]);
    fail(here, &["launch", "--hosts", "-oProxyCommand=x", "true"], 2, &["names no host"]);
    fail(here, &["launch", "-n", "1", "--env", "NO_SUCH_VARIABLE", "true"], 2, &["`--env NO_SUCH_VARIABLE`"]);
    fail(here, &["launch", "-n", "1", "--rsh", " ", "true"], 2, &["`--rsh`"]);
    fail(here, &["launch", "-n", "1", "--master-port", "0", "true"], 2, &["--master-port"]);
    fail(here, &["launch", "-n", "1", "--grace", "-1", "true"], 2, &["seconds"]);
    fail(
        here,
        &["launch", "--hosts", "a", "--rsh", "/no/such", "true"],
        4,
        &["cannot start ranks on a", "/no/such a"],
    );
}
