//! Faults on purpose: one rank of four panics, fails, leaves, exits, is killed, sleeps past the deadline, or calls something
//! else, at every point of every strategy, in every kind of world; and every survivor must end in time with an error that
//! names the rank or the collective.
//!
//! Then what comes from outside: a full disk, another token, strangers at the port, a rank killed as it writes.
//!
//! Without arguments: all of it among threads, and a sample among processes that `attn launch` starts, of what comes from
//! outside, and under `mpirun` with the feature `mpi`. `--table FILE` tries everything in every kind of world that this build
//! has and writes down what each survivor heard; behind FILE may stand which kinds: `threads`, `tcp`, `mpi`, `outside`
//! (`scripts/faults` does so).

#[cfg(unix)]
mod ended;
mod injector;
#[cfg(feature = "mpi")]
#[path = "../mpi/mpirun.rs"]
mod mpirun;
#[cfg(unix)]
mod outside;
mod processes;
mod rank;
mod row;
#[cfg(unix)]
mod sockets;
#[cfg(unix)]
mod strangers;
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
use table::Line;

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

/// Tries every case, some at a time: what came of them, in order.
fn all<C: Sync, R: Send>(cases: &[C], at_once: usize, try_out: impl Fn(&C) -> R + Sync) -> Vec<R> {
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

/// What was tried, and what is amiss with it.
type Tried = (Line, Vec<String>);

fn tried(row: &Row) -> Tried {
    let complaints = row.complaints();
    ((row.world, row.line(), !complaints.is_empty()), complaints)
}

fn among_threads() -> Vec<Tried> {
    // Ranks that panic on purpose need not say so.
    std::panic::set_hook(Box::new(|_| {}));
    let rows =
        all(&cases(&Fault::OF_THREADS), 4, |case| threads::try_out(case.setup, &case.point, case.plan));
    let _ = std::panic::take_hook();
    rows.iter().map(tried).collect()
}

/// Every fault among processes, or of each kind one, at points of different strategies.
fn among_processes(starter: &Starter, every: bool) -> Vec<Tried> {
    let cases = sample(cases(starter.faults), every, 17);
    all(&cases, 2, |case| tried(&starter.try_out(case.setup, &case.point, case.plan)))
}

#[cfg(unix)]
fn from_outside(every: bool) -> Vec<Tried> {
    all(&sample(outside::trials(), every, 5), 2, |trial| {
        let outside = trial.try_out();
        ((table::OUTSIDE, outside.line(), !outside.complaints.is_empty()), outside.complaints)
    })
}

#[cfg(not(unix))]
fn from_outside(_: bool) -> Vec<Tried> {
    Vec::new()
}

/// All, or every so many.
fn sample<C>(cases: Vec<C>, every: bool, step: usize) -> Vec<C> {
    cases.into_iter().step_by(if every { 1 } else { step }).collect()
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("rank") => return code(processes::rank(&arguments)),
        #[cfg(unix)]
        Some("stranger") => return code(strangers::announce()),
        _ => {}
    }
    let (page, kinds) = match arguments.as_slice() {
        [flag, page, kinds @ ..] if flag == "--table" => (Some(page), kinds),
        _ => (None, &[][..]),
    };
    let wanted = |kind: &str| kinds.is_empty() || kinds.iter().any(|wanted| wanted == kind);
    let mut rows = if wanted("threads") { among_threads() } else { Vec::new() };
    for starter in Starter::all().iter().filter(|starter| wanted(starter.link)) {
        rows.extend(among_processes(starter, page.is_some()));
    }
    if wanted("outside") {
        rows.extend(from_outside(page.is_some()));
    }
    let mut failed = 0;
    for ((_, line, _), complaints) in rows.iter().filter(|(_, complaints)| !complaints.is_empty()) {
        failed += 1;
        println!("{line}\n    {}", complaints.join("\n    "));
    }
    let passed = rows.len() - failed;
    if let Some(page) = page {
        let lines: Vec<Line> = rows.into_iter().map(|(line, _)| line).collect();
        if let Err(error) = table::write(page.as_ref(), &lines) {
            println!("cannot write {page}: {error}");
            failed += 1;
        }
    }
    println!("test result: {}. {passed} passed; {failed} failed", if failed == 0 { "ok" } else { "FAILED" });
    code((failed == 0 && passed > 0).then_some(()))
}

/// How this process ends.
fn code(outcome: Option<()>) -> ExitCode {
    if outcome.is_some() { ExitCode::SUCCESS } else { ExitCode::from(2) }
}
