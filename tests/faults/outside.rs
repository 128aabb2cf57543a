//! What comes upon a world from outside, tried with `attn run`: a disk that is full, a rank with another token, strangers at
//! the port where ranks meet, a rank that is killed while it writes.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

use super::ended::{End, Ended, Outside};
use super::injector::DEADLINE;
use super::processes::run;
use super::rank::RANKS;
use super::strangers::{Garbage, besiege};

/// What stands in `out` before.
const PRECIOUS: &str = "precious";

/// What every rank runs as a script of `sh`, where `"$@"` is `attn run`.
const PLAIN: &str = r#""$@"; echo "exit $?""#;

/// How late the last rank comes while strangers are there.
const LATE: Duration = Duration::from_millis(700);

/// A trial: what it is called, and how it is made.
pub(crate) struct Trial {
    what: String,
    make: Make,
}

enum Make {
    /// `attn run`, with these arguments and by this script, among threads or processes, in a file system of 64 KiB or not;
    /// how rank 0 and the others must end.
    Disk { threads: bool, small: bool, script: &'static str, args: &'static str, says: &'static str },
    /// This rank's script begins otherwise; what it hears, and what the others do.
    Rank { rank: usize, script: String, hears: End, others: End },
    /// Strangers come.
    Strangers(Garbage),
    /// Another program listens at the port.
    PortTaken,
    /// The rank that writes is killed as it does.
    Killed { threads: bool },
}

/// All that is tried.
pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    let mut add = |what: &str, make: Make| trials.push(Trial { what: what.to_owned(), make });
    for threads in [true, false] {
        let world = if threads { "four threads" } else { "four processes" };
        let disk = |small, script, args, says| Make::Disk { threads, small, script, args, says };
        let full = "cannot write `out`: ";
        if small_disks() {
            add(&format!("{world} write to a disk that is full"), disk(true, PLAIN, "--output out", full));
        }
        // The signal that would end the program at the limit is ignored: then writing fails.
        let limited = r#"trap '' XFSZ; ulimit -f 8; "$@"; echo "exit $?""#;
        add(&format!("{world} write more than a file may have"), disk(false, limited, "--output out", full));
        let device = "cannot write `/dev/full`: it is not a regular file";
        add(&format!("{world} write to `/dev/full`"), disk(false, PLAIN, "--output /dev/full", device));
        let unheard = r#""$@" >/dev/full; echo "exit $?""#;
        let stdout = "cannot write to stdout: ";
        add(&format!("{world} print to `/dev/full`"), disk(false, unheard, "--json", stdout));
        add(&format!("{world}, killed (-9) while the output is written"), Make::Killed { threads });
    }
    let turned_away = (2, "was turned away by rank 0");
    let absent = (4, "passed its deadline of 1 s: ranks [2] had not arrived");
    for (how, token) in [("has another token", "ATTN_TOKEN=other; "), ("has no token", "unset ATTN_TOKEN; ")]
    {
        let script = format!("{token}export ATTN_TOKEN; ");
        let script = if token.starts_with("unset") { token.to_owned() } else { script };
        add(&format!("rank 2 {how}"), Make::Rank { rank: 2, script, hears: turned_away, others: absent });
    }
    let script = "ATTN_TOKEN=other; export ATTN_TOKEN; ".to_owned();
    let alone = (4, "passed its deadline of 1 s: ranks [1, 2, 3] had not arrived");
    add("rank 0 has another token", Make::Rank { rank: 0, script, hears: alone, others: turned_away });
    let script = "sleep 0.3; ATTN_RANK=1; export ATTN_RANK; ".to_owned();
    let twice = (2, "there is a rank 1 already: two processes were given the same rank");
    add(
        "rank 3 takes itself for rank 1",
        Make::Rank { rank: 3, script, hears: twice, others: (4, "ranks [3] had not arrived") },
    );
    let script = r#""$FAULTS" stranger; echo "exit $?"; exit; "#.to_owned();
    let lost = (4, "rank 3 is lost, and the start of the world");
    add(
        "rank 3 knows the token, and announces a key of 4 GiB",
        Make::Rank { rank: 3, script, hears: (0, ""), others: lost },
    );
    add("another program listens at the port", Make::PortTaken);
    for (what, garbage) in [
        ("strangers at the port say nothing", Garbage::Nothing),
        ("strangers at the port say half a hello", Garbage::HalfAHello),
        ("strangers at the port send random bytes (seed 1)", Garbage::Random(1)),
        ("strangers at the port send random bytes (seed 2)", Garbage::Random(2)),
        ("strangers at the port send random bytes (seed 3)", Garbage::Random(3)),
        ("strangers at the port ask for a page by HTTP", Garbage::Http),
        ("strangers at the port say that they are rank 2^64-1", Garbage::HugeNumbers),
        ("strangers at the port come as ranks with another token", Garbage::OtherToken),
        ("strangers at the port do all of this in turn (seed 4)", Garbage::All(4)),
    ] {
        add(what, Make::Strangers(garbage));
    }
    trials
}

/// A script that runs a command in `small`, a file system of 64 KiB, which that command and what it starts see and nobody
/// else. At the end it shows what is in it, and `out`.
const IN_SMALL: &str = r#"mkdir small && mount -t tmpfs -o size=65536 none small && cp out small/out &&
                          ln -s ../in.safetensors small && cd small && { "$@"; ls -A; cat out; echo; }"#;

/// Starts such a script.
fn in_small(command: &mut Command) -> &mut Command {
    command.args(["--map-root-user", "--mount", "sh", "-c", IN_SMALL, "sh"])
}

/// Whether this may be done here.
fn small_disks() -> bool {
    static MAY: OnceLock<bool> = OnceLock::new();
    *MAY.get_or_init(|| {
        let folder = Folder::new(1);
        let mut command = Command::new("unshare");
        let output = in_small(command.current_dir(folder.path())).arg("true").output();
        let may = output.is_ok_and(|output| output.status.success());
        if !may {
            println!("not tried: a disk that is full, since no file system can be mounted here");
        }
        may
    })
}

impl Trial {
    /// Tries it, in a folder of its own.
    pub(crate) fn try_out(&self) -> Outside {
        let folder = Folder::new(if matches!(self.make, Make::Killed { .. }) { 1 << 15 } else { 1 << 10 });
        let mut ended = match &self.make {
            Make::Disk { threads, small, script, args, says } => {
                folder.disk(*threads, *small, script, args, says)
            }
            Make::Rank { rank, script, hears, others } => folder.rank(*rank, script, *hears, *others),
            Make::Strangers(garbage) => folder.strangers(*garbage),
            Make::PortTaken => folder.port_taken(),
            Make::Killed { threads } => folder.killed(*threads),
        };
        ended.what.clone_from(&self.what);
        let waits = matches!(self.make, Make::Rank { .. } | Make::PortTaken);
        if waits && ended.took > DEADLINE + Duration::from_secs(2) {
            ended.complaints.push(format!("it took {:.1} s", ended.took.as_secs_f64()));
        }
        ended
    }
}

/// A folder with `in.safetensors`, and something in `out`.
struct Folder {
    dir: TempDir,
}

impl Folder {
    /// The input has so many queries, of four heads of 16, and 64 keys.
    fn new(queries: usize) -> Self {
        let dir = tempfile::tempdir().expect("a folder for what is tried");
        let tensor = |seq: usize, seed: usize| {
            let values = (0..seq * 64).map(|at| ((at * 31 + seed) % 17) as f32 / 8.0 - 1.0);
            values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>()
        };
        let data = [("q", queries), ("k", 64), ("v", 64)]
            .map(|(name, seq)| (name, seq, tensor(seq, name.len() + seq)));
        let views = data.iter().map(|(name, seq, bytes)| {
            (
                *name,
                TensorView::new(Dtype::F32, vec![1, *seq, 4, 16], bytes).expect("the bytes fit the shape"),
            )
        });
        let bytes = safetensors::serialize(views, None).expect("it serialises");
        std::fs::write(dir.path().join("in.safetensors"), bytes).expect("the input can be written");
        std::fs::write(dir.path().join("out"), PRECIOUS).expect("the output can be written");
        Self { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Starts `attn run` on four ranks, each by a script: what each said, and its exit code.
    fn start(&self, threads: bool, port: Option<u16>, script: &str, args: &str) -> Ended {
        self.start_by(Command::new("env"), threads, port, script, args)
    }

    /// The same, by a command that starts what stands behind it.
    fn start_by(
        &self,
        mut command: Command,
        threads: bool,
        port: Option<u16>,
        script: &str,
        args: &str,
    ) -> Ended {
        let attn = env!("CARGO_BIN_EXE_attn");
        let this = std::env::current_exe().unwrap_or_default();
        command.current_dir(self.path()).env("FAULTS", this);
        if !threads {
            command.args([attn, "launch", "-n", "4", "--grace", "10"]);
            command.args(port.map(|port| format!("--master-port={port}"))).arg("--");
        }
        command.args([
            "sh",
            "-c",
            script,
            "sh",
            attn,
            "run",
            "--input",
            "in.safetensors",
            "--strategy",
            "ring",
        ]);
        command.args(if threads { ["--ranks", "4"] } else { ["--comm", "tcp"] }).args(["--threads", "1"]);
        command.args(args.split_whitespace());
        let started = Instant::now();
        let (text, status) = run(command);
        Ended::new(&text, if threads { 1 } else { RANKS }, started.elapsed(), status)
    }

    /// That the output is as it was, and nothing is left beside it but these.
    fn kept(&self, ended: &mut Outside, beside: impl Fn(&str) -> bool) {
        let out = std::fs::read(self.path().join("out")).unwrap_or_default();
        if out != PRECIOUS.as_bytes() {
            ended.complaints.push(format!("the output has {} bytes that were not there", out.len()));
        }
        let names = std::fs::read_dir(self.path()).into_iter().flatten().flatten();
        for name in names.map(|entry| entry.file_name().to_string_lossy().into_owned()) {
            if !["in.safetensors", "out"].contains(&&*name) && !beside(&name) {
                ended.complaints.push(format!("`{name}` is left behind"));
            }
        }
        ended.file = "as it was";
    }

    /// That the output is what threads write.
    fn whole(&self, ended: &mut Outside) {
        static EXPECTED: OnceLock<Vec<u8>> = OnceLock::new();
        let expected = EXPECTED.get_or_init(|| {
            self.start(true, None, PLAIN, "--output expected");
            std::fs::read(self.path().join("expected")).unwrap_or_default()
        });
        let out = std::fs::read(self.path().join("out")).unwrap_or_default();
        if out.is_empty() || out != *expected {
            ended.complaints.push(String::from("the output is not what threads write"));
        }
        ended.file = "whole";
    }

    fn disk(&self, threads: bool, small: bool, script: &str, args: &str, says: &'static str) -> Outside {
        let ended = if small {
            let mut command = Command::new("unshare");
            in_small(&mut command);
            self.start_by(command, threads, None, script, args)
        } else {
            self.start(threads, None, script, args)
        };
        let rest = ended.rest.join(" ");
        let mut outside = ended.judge(|rank| if rank == 0 { (4, says) } else { (4, "") });
        self.kept(&mut outside, |name| name == "small");
        if small && rest != format!("in.safetensors out {PRECIOUS}") {
            outside.complaints.push(format!("on the full disk there is: {rest}"));
        }
        outside
    }

    fn rank(&self, rank: usize, script: &str, hears: End, others: End) -> Outside {
        let script = format!(r#"if [ $ATTN_RANK = {rank} ]; then {script}fi; {PLAIN}"#);
        let ended = self.start(false, None, &script, "--deadline 1 --output out");
        let mut outside = ended.judge(|other| if other == rank { hears } else { others });
        self.kept(&mut outside, |_| false);
        outside
    }

    fn strangers(&self, garbage: Garbage) -> Outside {
        let port = free_port();
        let (done, came) = (AtomicBool::new(false), AtomicUsize::new(0));
        // The store waits for the last rank, and meanwhile for anybody.
        let late = format!("if [ $ATTN_RANK = 3 ]; then sleep {}; fi; {PLAIN}", LATE.as_secs_f64());
        let ended = std::thread::scope(|scope| {
            scope.spawn(|| besiege(port, garbage, &done, &came));
            let ended = self.start(false, Some(port), &late, "--deadline 20 --output out");
            done.store(true, Ordering::Relaxed);
            ended
        });
        let mut outside = ended.judge(|_| (0, ""));
        self.whole(&mut outside);
        let came = came.into_inner();
        if came < 20 {
            outside.complaints.push(format!("only {came} strangers came"));
        }
        outside
    }

    fn port_taken(&self) -> Outside {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().map_or(0, |address| address.port());
        let done = AtomicBool::new(false);
        let ended = std::thread::scope(|scope| {
            scope.spawn(|| {
                while let Ok((mut stream, _)) = listener.accept() {
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                    let _ = std::io::Write::write_all(
                        &mut stream,
                        b"HTTP/1.1 400 Bad Request\r\n\r\nwhat is this?",
                    );
                }
            });
            let ended = self.start(false, Some(port), PLAIN, "--deadline 1 --output out");
            done.store(true, Ordering::Relaxed);
            let _ = std::net::TcpStream::connect(("127.0.0.1", port));
            ended
        });
        let mut outside = ended.judge(|rank| match rank {
            0 => (4, "the port is in use"),
            _ => (4, "waited 1 s for rank 0"),
        });
        self.kept(&mut outside, |_| false);
        outside
    }

    fn killed(&self, threads: bool) -> Outside {
        let script =
            r#"if [ "${ATTN_RANK:-0}" = 0 ]; then echo $$ >process; exec "$@"; fi; "$@"; echo "exit $?""#;
        let (done, caught) = (AtomicBool::new(false), AtomicBool::new(false));
        let ended = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) && !caught.load(Ordering::Relaxed) {
                    caught.store(self.kill_who_writes().is_some(), Ordering::Relaxed);
                }
            });
            let ended = self.start(threads, None, script, "--no-check --output out");
            done.store(true, Ordering::Relaxed);
            ended
        });
        let mut outside = ended.judge(|rank| if rank == 0 { (-9, "") } else { (4, "rank 0 is lost") });
        if !caught.into_inner() {
            outside.complaints.push(String::from("it was not caught while it wrote"));
        }
        self.kept(&mut outside, |name| name == "process" || name.starts_with(".attn-"));
        outside
    }

    /// Kills the process in whose temporary file something stands.
    fn kill_who_writes(&self) -> Option<()> {
        let mut files = std::fs::read_dir(self.path()).ok()?.flatten();
        let written = files.find(|entry| entry.file_name().to_string_lossy().starts_with(".attn-"))?;
        (written.metadata().ok()?.len() > 0).then_some(())?;
        let process = std::fs::read_to_string(self.path().join("process")).ok()?;
        kill_process(Pid::from_raw(process.trim().parse().ok()?)?, Signal::KILL).ok()
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map_or(0, |address| address.port())
}
