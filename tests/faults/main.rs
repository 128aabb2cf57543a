//! Faults on purpose: one rank of four panics, fails, leaves, exits, is killed, sleeps past the deadline, or calls something
//! else, at every point of every strategy, in every kind of world; and every survivor must end in time with an error that
//! names the rank or the collective.
//!
//! Without arguments: all of it among threads, and a sample among processes that `attn launch` starts, and `mpirun` with the feature `mpi`. `--table FILE` tries
//! everything in every kind of world that this build has and writes down what each survivor saw (`scripts/faults` does so).

mod injector;
#[cfg(feature = "mpi")]
#[path = "../mpi/mpirun.rs"]
mod mpirun;
mod processes;
mod rank;
mod row;
#[path = "../suite/mod.rs"]
mod suite;
#[path = "../support/mod.rs"]
mod support;
mod table;
mod threads;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use injector::{Fault, Plan};
use processes::Starter;
use row::Row;
use support::Setup;

/// One thing to be tried.
struct Case {
    setup: Setup,
    point: String,
    plan: Plan,
}

/// Every fault of those given at every point of every strategy.
fn cases(faults: &[Fault]) -> Vec<Case> {
    let mut cases = Vec::new();
    for setup in rank::SETUPS {
        for (number, point) in rank::points(setup).into_iter().enumerate() {
            for &fault in faults.iter().filter(|fault| fault.fits(&point)) {
                let rank = (number + fault as usize) % rank::RANKS;
                cases.push(Case { setup, point: point.clone(), plan: Plan { rank, point: number, fault } });
            }
        }
    }
    cases
}

/// Tries every case, some at a time.
fn all(cases: &[Case], at_once: usize, try_out: impl Fn(&Case) -> Row + Sync) -> Vec<Row> {
    let (next, rows) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some((number, case)) = {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    cases.get(number).map(|case| (number, case))
                } {
                    let row = try_out(case);
                    rows.lock().unwrap().push((number, row));
                }
            });
        }
    });
    let mut rows = rows.into_inner().unwrap();
    rows.sort_by_key(|(number, _)| *number);
    rows.into_iter().map(|(_, row)| row).collect()
}

fn among_threads() -> Vec<Row> {
    // Ranks that panic on purpose need not say so.
    std::panic::set_hook(Box::new(|_| {}));
    let rows =
        all(&cases(&Fault::OF_THREADS), 4, |case| threads::try_out(case.setup, &case.point, case.plan));
    let _ = std::panic::take_hook();
    rows
}

/// Every fault among processes, or of each kind one, at points of different strategies.
fn among_processes(starter: &Starter, every: bool) -> Vec<Row> {
    let all_cases = cases(&Fault::OF_PROCESSES);
    let step = if every { 1 } else { 17 };
    let cases: Vec<Case> = all_cases.into_iter().step_by(step).collect();
    all(&cases, 2, |case| starter.try_out(case.setup, &case.point, case.plan))
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "rank") {
        return if processes::rank(&arguments).is_some() { ExitCode::SUCCESS } else { ExitCode::from(2) };
    }
    let every = arguments.iter().any(|argument| argument == "--table");
    let mut rows = among_threads();
    for starter in Starter::all() {
        rows.extend(among_processes(&starter, every));
    }
    let mut failed = 0;
    for row in &rows {
        let complaints = row.complaints();
        if !complaints.is_empty() {
            failed += 1;
            println!("{}\n    {}", row.line(), complaints.join("\n    "));
        }
    }
    if let [flag, file] = arguments.as_slice()
        && flag == "--table"
        && let Err(error) = table::write(file.as_ref(), &rows)
    {
        println!("cannot write {file}: {error}");
        failed += 1;
    }
    println!(
        "test result: {}. {} passed; {failed} failed",
        if failed == 0 { "ok" } else { "FAILED" },
        rows.len() - failed
    );
    if failed == 0 && !rows.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
