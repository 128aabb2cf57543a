//! Compiles kernel sources to objects, side by side, and leaves alone what is the same as last time.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One run of a compiler.
pub(crate) struct Job {
    pub(crate) source: PathBuf,
    pub(crate) object: PathBuf,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
}

/// The value of an environment variable that decides what is built. Empty counts as not set.
pub(crate) fn environment(name: &str) -> Option<String> {
    println!("cargo::rerun-if-env-changed={name}");
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A variable that cargo sets for every build script.
pub(crate) fn cargo_variable(name: &str) -> Result<String, String> {
    std::env::var(name).map_err(|_| format!("cargo did not set {name}"))
}

/// All files below `folder` that `keep` wants, in order of their paths.
pub(crate) fn files(folder: &Path, keep: &dyn Fn(&Path) -> bool) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(cannot("list", &folder))? {
            let path = entry.map_err(cannot("list", &folder))?.path();
            if path.is_dir() {
                folders.push(path);
            } else if keep(&path) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

pub(crate) fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension().is_some_and(|found| extensions.iter().any(|&wanted| found == wanted))
}

/// What objects are made from.
pub(crate) struct Inputs {
    /// The contents of each file that sources may include, as a number. By canonical path.
    contents: BTreeMap<PathBuf, u64>,
    /// What else decides the result: the compiler's version, variables that it reads.
    besides: u64,
}

impl Inputs {
    pub(crate) fn read(files: &[PathBuf], besides: &impl Hash) -> Result<Self, String> {
        let mut contents = BTreeMap::new();
        for file in files {
            let path = file.canonicalize().map_err(cannot("find", file))?;
            contents.insert(path, number(&std::fs::read(file).map_err(cannot("read", file))?));
        }
        Ok(Self { contents, besides: number(besides) })
    }

    /// The lines of a stamp for the files that a compiler says it has read. Headers of the system and of the toolkit
    /// are not among the inputs: they change with the compiler's version.
    fn stamp_of(&self, dependencies: &str) -> Vec<String> {
        // "object: source header ..", where a backslash stands before the end of a line and before a space in a name.
        let (_, names) = dependencies.split_once(':').unwrap_or_default();
        let names = names.replace("\\\n", " ").replace("\\ ", "\0");
        let paths = names
            .split_whitespace()
            .filter_map(|name| Path::new(&name.replace('\0', " ")).canonicalize().ok());
        let mut lines: Vec<_> =
            paths.filter_map(|path| Some(stamp_line(&path, *self.contents.get(&path)?))).collect();
        lines.sort();
        lines.dedup();
        lines
    }

    /// Whether a line of a stamp is still true.
    fn agrees(&self, line: &str) -> bool {
        let path = line.split_once(' ').map(|(_, path)| Path::new(path));
        path.is_some_and(|path| {
            self.contents.get(path).is_some_and(|&content| stamp_line(path, content) == line)
        })
    }
}

fn stamp_line(path: &Path, content: u64) -> String {
    format!("{content:016x} {}", path.display())
}

fn number(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// The object for a source: its path below `root`, flattened.
pub(crate) fn object_path(source: &Path, root: &Path, folder: &Path) -> PathBuf {
    let relative = source.strip_prefix(root).unwrap_or(source).with_extension("o");
    let names: Vec<_> = relative.iter().map(|part| part.to_string_lossy()).collect();
    folder.join(names.join("."))
}

/// Runs the jobs on as many threads as cargo grants and returns what each compiler said. A job is not run again while
/// its command and what it has read stay the same.
pub(crate) fn compile(jobs: &[Job], inputs: &Inputs) -> Result<Vec<String>, String> {
    let threads = std::env::var("NUM_JOBS").ok().and_then(|count| count.parse().ok()).unwrap_or(1);
    let next = AtomicUsize::new(0);
    let results = Mutex::new(vec![None; jobs.len()]);
    std::thread::scope(|scope| {
        for _ in 0..jobs.len().min(threads) {
            scope.spawn(|| {
                while let Some((index, job)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    jobs.get(index).map(|job| (index, job))
                } {
                    let result = job.run(inputs);
                    if let Ok(mut results) = results.lock() {
                        results[index] = Some(result);
                    }
                }
            });
        }
    });
    let results = results.into_inner().map_err(|_| "a compiling thread panicked".to_owned())?;
    let mut said = Vec::new();
    let mut failures = Vec::new();
    for result in results.into_iter().flatten() {
        match result {
            Ok(text) => said.push(text),
            Err(text) => failures.push(text),
        }
    }
    if failures.is_empty() { Ok(said) } else { Err(failures.join("\n")) }
}

impl Job {
    fn run(&self, inputs: &Inputs) -> Result<String, String> {
        let [stamp, log, dependencies] =
            ["stamp", "log", "d"].map(|extension| self.object.with_extension(extension));
        let command = format!("{:016x} {} {:?}", inputs.besides, self.program.display(), self.arguments);
        if let (Ok(found), Ok(said)) = (std::fs::read_to_string(&stamp), std::fs::read_to_string(&log)) {
            let mut lines = found.lines();
            if lines.next() == Some(command.as_str()) && lines.all(|line| inputs.agrees(line)) {
                return Ok(said);
            }
        }
        // Without a stamp whatever an interrupted run leaves behind is not taken for its result.
        if stamp.exists() {
            std::fs::remove_file(&stamp).map_err(cannot("remove", &stamp))?;
        }
        let mut compiler = Command::new(&self.program);
        compiler.args(&self.arguments).arg("-MMD").arg("-MF").arg(&dependencies);
        let said = run(&mut compiler).map_err(|error| format!("{}: {error}", self.source.display()))?;
        let read = std::fs::read_to_string(&dependencies).map_err(cannot("read", &dependencies))?;
        let lines = inputs.stamp_of(&read);
        // The source at least must be among them.
        if !lines.is_empty() {
            std::fs::write(&log, &said).map_err(cannot("write", &log))?;
            let text = format!("{command}\n{}", lines.join("\n"));
            std::fs::write(&stamp, text).map_err(cannot("write", &stamp))?;
        }
        Ok(said)
    }
}

/// The message for an operation on a file that failed.
pub(crate) fn cannot(action: &str, path: &Path) -> impl Fn(std::io::Error) -> String {
    move |error| format!("cannot {action} {}: {error}", path.display())
}

/// Runs a program and returns what it said on both streams; an error if it did not end well.
pub(crate) fn run(command: &mut Command) -> Result<String, String> {
    let output = command
        .output()
        .map_err(|error| format!("cannot run {}: {error}", command.get_program().display()))?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(text.into_owned())
    } else {
        Err(format!("{} failed ({})\n{text}", command.get_program().display(), output.status))
    }
}
