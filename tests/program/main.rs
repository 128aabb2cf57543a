//! The program `attn`, run as its users run it.

mod bad_input;
mod bench;
mod dense;
mod files;
mod gpu;
#[cfg(unix)]
mod launch;
mod other;
mod problem;
#[cfg(unix)]
mod processes;
mod report;
mod sharing;
mod sweep;
mod tensors;

use std::path::Path;
use std::process::{Command, Output};

/// Runs the program in a folder.
fn attn(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_attn"));
    command.current_dir(folder).args(args).output().expect("the program starts")
}

/// Runs the program and gives its stdout; it must succeed.
#[track_caller]
fn succeed(folder: &Path, args: &[&str]) -> String {
    let output = attn(folder, args);
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success(), "{args:?}: {:?}\n{stdout}{stderr}", output.status);
    assert_eq!(stderr, "", "{args:?}");
    stdout
}

/// Runs the program; it must fail with this code, print nothing on stdout, and say all of these in one line.
#[track_caller]
fn fail(folder: &Path, args: &[&str], code: i32, says: &[&str]) {
    let output = attn(folder, args);
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert_eq!(stdout, "", "{args:?}");
    assert!(stderr.starts_with("attn: ") && stderr.lines().count() == 1, "{args:?}: {stderr}");
    for said in says {
        assert!(stderr.contains(said), "{args:?}: {stderr} does not say {said:?}");
    }
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("the program prints text");
    (text(&output.stdout), text(&output.stderr))
}

/// Names of all files in a folder, also hidden ones.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("the folder is there");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("it can be read").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
