//! `doctor`, help, and a stdout that nobody reads.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::{attn, names, succeed};

#[test]
fn doctor_finds_nothing_wrong() {
    let text = succeed(Path::new("."), &["doctor"]);
    for said in [
        "none, ulysses, ring",
        "flash, sdpa",
        "threads, tcp",
        "cpu",
        "bundled model       ok",
        "ring over tcp       ok: two ranks on 127.0.0.1 differ from two threads by 0",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
    assert!(!text.contains("FAILED"), "{text}");
}

#[test]
fn doctor_speaks_json() {
    let report: serde_json::Value =
        serde_json::from_str(&succeed(Path::new("."), &["doctor", "--json"])).unwrap();
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert!(report["cores"].as_u64() >= Some(1));
    let checks = report["checks"].as_array().unwrap();
    // A GPU adds some.
    assert!(checks.len() >= 5 && checks.iter().all(|check| check["ok"] == true), "{report}");
}

#[cfg(unix)]
#[test]
fn doctor_says_what_the_environment_says() {
    let doctor = |command: &mut Command| {
        let output = command.env("ATTN_DEADLINE", "7").output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        report
    };
    let program = env!("CARGO_BIN_EXE_attn");
    let alone = doctor(Command::new(program).args(["doctor", "--json"]));
    assert_eq!(alone["environment"]["ATTN_DEADLINE"], "7");
    assert!(alone["place"].is_null());
    let launched = ["launch", "-n", "1", "--no-prefix", program, "doctor", "--json"];
    let launched = doctor(Command::new(program).args(launched));
    assert_eq!(launched["environment"]["ATTN_TOKEN"], "(set)");
    let place = &launched["place"];
    assert_eq!([&place["rank"], &place["size"], &place["local_size"]], [0, 1, 1]);
    assert_eq!(
        place["master_port"].to_string(),
        launched["environment"]["ATTN_MASTER_PORT"].as_str().unwrap()
    );
}

#[test]
fn help_lists_the_exit_codes() {
    for args in [&["--help"][..], &["run", "--help"]] {
        let help = succeed(Path::new("."), args);
        assert!((0..=5).all(|code| help.contains(&format!("\n  {code}  "))), "{help}");
    }
    assert_eq!(succeed(Path::new("."), &["--version"]), concat!("attn ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn a_stdout_that_is_closed_is_no_failure() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_attn"));
    let mut child = command.arg("doctor").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_stdout_that_is_full_is() {
    if let Ok(full) = std::fs::File::options().write(true).open("/dev/full") {
        let output = Command::new(env!("CARGO_BIN_EXE_attn")).arg("doctor").stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(4));
        assert!(String::from_utf8(output.stderr).unwrap().starts_with("attn: cannot write to stdout"));
    }
}

#[test]
fn the_demonstration_draws_a_picture() {
    let folder = tempfile::tempdir().unwrap();
    let output = attn(folder.path(), &["--strategy", "none", "--output", "one.png", "--json"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["picture"], "one.png");
    let run = &report["runs"][0];
    assert_eq!((run["strategy"].as_str(), run["ranks"].as_u64()), (Some("none"), Some(1)));
    assert_eq!(run["max_diff_one_rank"].as_f64(), Some(0.0));
    assert!(run["max_diff_reference"].as_f64().unwrap() <= 2e-5, "{run}");
    assert_eq!(names(folder.path()), ["one.png"]);
}
