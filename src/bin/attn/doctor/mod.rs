//! `attn doctor`: what this build can do on this machine, and whether it does.

mod checks;
mod facts;
mod gpu;
mod ranks;
mod tools;

use std::fmt::Write;

use serde_json::{Map, Value, json};

use self::checks::{Check, checks};
use self::facts::{Fact, facts};
use crate::cli::DoctorArgs;
use crate::failure::Failure;
use crate::report::print;

/// Reports on this build and machine.
///
/// # Errors
/// If a check fails, or stdout cannot be written.
pub(crate) fn run(args: DoctorArgs) -> Result<(), Failure> {
    let checks = checks();
    let facts = facts();
    let text = if args.json { format!("{}\n", as_json(&facts, &checks)) } else { as_text(&facts, &checks) };
    print(&text)?;
    let failed: Vec<&str> =
        checks.iter().filter(|check| check.outcome.is_err()).map(|check| check.name).collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::Internal(format!(
        "{} failed: {}",
        if failed.len() == 1 { "a check" } else { "checks" },
        failed.join(", ")
    )))
}

fn as_json(facts: &[Fact], checks: &[Check]) -> Value {
    let mut report: Map<String, Value> =
        facts.iter().map(|fact| (fact.key.to_owned(), fact.value.clone())).collect();
    let check = |check: &Check| {
        let (ok, detail) = (check.outcome.is_ok(), detail(check));
        json!({ "name": check.name, "ok": ok, "detail": detail })
    };
    report.insert("checks".to_owned(), checks.iter().map(check).collect());
    report.into()
}

fn as_text(facts: &[Fact], checks: &[Check]) -> String {
    let mut text = String::new();
    for Fact { key, text: value, .. } in facts {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:<18}{value}", key.trim_end_matches("_bytes").replace('_', " "));
    }
    text.push('\n');
    for check in checks {
        let verdict = if check.outcome.is_ok() { "ok" } else { "FAILED" };
        let _ = writeln!(text, "{:<20}{verdict}: {}", check.name, detail(check));
    }
    text
}

fn detail(check: &Check) -> String {
    match &check.outcome {
        Ok(said) => said.clone(),
        Err(failure) => failure.to_string(),
    }
}
