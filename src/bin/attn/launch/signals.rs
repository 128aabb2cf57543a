//! Signals: those that a launcher passes on, and what they are called.

use std::sync::mpsc::Sender;
use std::thread::Builder;

use rustix::process::Signal;
use signal_hook::iterator::Signals;

use super::watch::Event;
use crate::failure::Failure;

/// Those that ask a program to end.
pub(super) const PASSED_ON: [Signal; 3] = [Signal::INT, Signal::TERM, Signal::HUP];

/// Tells of signals to this process from now on. Those that whoever started it has it ignore (`nohup`) stay ignored.
///
/// # Errors
/// If the system refuses.
pub(super) fn watch(events: Sender<Event>) -> Result<(), Failure> {
    let refused = |error: std::io::Error| Failure::System(format!("cannot watch for signals: {error}"));
    let ignored = ignored();
    let numbers = PASSED_ON.map(Signal::as_raw).into_iter().filter(|number| ignored >> (number - 1) & 1 == 0);
    let mut signals = Signals::new(numbers).map_err(refused)?;
    let tell = move || {
        for number in &mut signals {
            if events.send(Event::Signal(number)).is_err() {
                break;
            }
        }
    };
    Builder::new().name(String::from("signals")).spawn(tell).map_err(refused)?;
    Ok(())
}

/// Which signals this process ignores, a bit for each: none where the system does not tell.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

/// `signal 9 (SIGKILL)`.
pub(super) fn called(number: i32) -> String {
    match signal_hook::low_level::signal_name(number) {
        Some(name) => format!("signal {number} ({name})"),
        None => format!("signal {number}"),
    }
}
