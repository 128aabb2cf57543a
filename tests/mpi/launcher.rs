//! Starting `mpirun`, and what came of it.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::mpirun::{Kind, arguments, mpirun, naming};

/// Which part this process plays.
pub(crate) const PART: &str = "ATTN_TEST_PART";

/// A job that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(90);

/// Ranks to be started.
pub(crate) struct Job {
    command: Command,
    ranks: usize,
    part: &'static str,
    what: String,
}

/// What came of them.
pub(crate) struct Outcome {
    pub(crate) succeeded: bool,
    pub(crate) took: Duration,
    text: String,
    what: String,
}

impl Job {
    /// This program, in so many processes, each of which plays a part.
    pub(crate) fn new(ranks: usize, part: &'static str) -> Self {
        Self::command(mpirun(), Kind::linked(), ranks, part, &[])
    }

    /// The same, started so that a rank which is killed is named.
    pub(crate) fn naming(ranks: usize, part: &'static str) -> Self {
        Self::command(mpirun(), Kind::linked(), ranks, part, naming(Kind::linked()))
    }

    /// The same, under another launcher.
    pub(crate) fn under(self, (mpirun, kind): (PathBuf, Kind)) -> Self {
        Self::command(mpirun, kind, self.ranks, self.part, &[])
    }

    fn command(mpirun: PathBuf, kind: Kind, ranks: usize, part: &'static str, before: &[&str]) -> Self {
        let (arguments, variables) = arguments(kind);
        let mut command = Command::new(mpirun);
        command
            .args(arguments)
            .envs(variables.iter().copied())
            .arg("-n")
            .arg(ranks.to_string())
            .args(before)
            .args(this_program());
        Self { command, ranks, part, what: format!("{part} on {ranks} ranks") }
    }

    /// With a variable in the ranks' environment.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// This program, without a launcher.
    pub(crate) fn alone(part: &'static str) -> Self {
        let [program, arguments @ ..] = this_program();
        let mut command = Command::new(program);
        command.args(arguments);
        Self { command, ranks: 1, part, what: format!("{part} alone") }
    }

    /// Any command that ends in starting ranks.
    pub(crate) fn by(command: Command, ranks: usize, part: &'static str) -> Self {
        Self { command, ranks, part, what: format!("{part} on {ranks} ranks of two hosts") }
    }

    /// Runs it to its end.
    pub(crate) fn run(mut self) -> Outcome {
        // Not a pipe: what nobody empties would stop the ranks.
        let mut said = tempfile();
        self.command
            .env(PART, self.part)
            .stdin(Stdio::null())
            .stdout(said.try_clone().unwrap())
            .stderr(said.try_clone().unwrap());
        let started = Instant::now();
        let mut child =
            self.command.spawn().unwrap_or_else(|error| panic!("{:?}: {error}", self.command.get_program()));
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if started.elapsed() > LIMIT {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let mut text = String::new();
        said.rewind().unwrap();
        said.read_to_string(&mut text).unwrap_or_else(|error| panic!("{}: {error}", self.what));
        let outcome = Outcome {
            succeeded: status.is_some_and(|status| status.success()),
            took: started.elapsed(),
            text,
            what: self.what,
        };
        assert!(status.is_some(), "it hung: {outcome}");
        outcome
    }
}

/// This program, so that it plays its part alone.
pub(crate) fn this_program() -> [OsString; 5] {
    let program = std::env::current_exe().unwrap().into_os_string();
    [program, "rank".into(), "--exact".into(), "--nocapture".into(), "--test-threads=1".into()]
}

/// A file that goes when it is closed.
fn tempfile() -> File {
    static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("attn-mpi-{}-{number}", std::process::id()));
    let file = File::options().read(true).append(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file
}

impl Outcome {
    /// That all is well.
    pub(crate) fn succeeds(&self) {
        assert!(self.succeeded, "{self}");
        // A rank without a part, or a launcher that starts nothing, would not be noticed otherwise.
        assert!(self.count("plays its part") > 0, "{self}");
    }

    /// How many times something was said.
    pub(crate) fn count(&self, words: &str) -> usize {
        self.text.matches(words).count()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = if self.succeeded { "succeeded" } else { "failed" };
        write!(f, "{} {end} after {:?} and said:\n{}", self.what, self.took, self.text)
    }
}
