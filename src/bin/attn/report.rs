//! What the program says about its runs: a table, or JSON.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use attn::{DType, Phases, Traffic};
use comfy_table::{CellAlignment, Table};
use serde_json::{Map, Value, json};

use crate::cli::{Backend, DeviceName};
use crate::failure::Failure;
use crate::plan::Run;

/// What one rank measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) phases: Phases,
    pub(crate) traffic: Traffic,
}

/// What one run measured: of each number the largest that a rank has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    pre: Duration,
    kernel: Duration,
    post: Duration,
    wall: Duration,
    bytes: u64,
}

impl Timing {
    pub(crate) fn of(ranks: impl IntoIterator<Item = Measured>, wall: Duration) -> Self {
        let start =
            Self { pre: Duration::ZERO, kernel: Duration::ZERO, post: Duration::ZERO, wall, bytes: 0 };
        ranks.into_iter().fold(start, |most, Measured { phases, traffic }| Self {
            pre: most.pre.max(phases.pre),
            kernel: most.kernel.max(phases.kernel),
            post: most.post.max(phases.post),
            wall,
            bytes: most.bytes.max(traffic.bytes),
        })
    }
}

/// A comparison that the table has a column for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Comparison {
    pub(crate) title: &'static str,
    /// Its key in JSON.
    pub(crate) key: &'static str,
}

/// One run of the table.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) run: Run,
    pub(crate) timing: Timing,
    /// One for each comparison; absent if it was not made.
    pub(crate) errors: Vec<Option<f64>>,
}

/// All that a command has to say.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    pub(crate) device: DeviceName,
    pub(crate) backend: Backend,
    pub(crate) dtype: DType,
    pub(crate) comparisons: &'a [Comparison],
    pub(crate) rows: Vec<Row>,
    /// What was written: what it is, and the file's name.
    pub(crate) written: Option<(&'static str, &'a Path)>,
}

impl Report<'_> {
    /// Prints the report on stdout.
    ///
    /// # Errors
    /// If stdout cannot be written.
    pub(crate) fn print(&self, as_json: bool) -> Result<(), Failure> {
        print(&if as_json { format!("{}\n", self.json()) } else { self.text() })
    }

    fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
        let titles = ["strategy", "ranks", "pre", "kernel", "post", "total", "moved"].map(str::to_owned);
        table.set_header(titles.into_iter().chain(self.comparisons.iter().map(|c| c.title.to_owned())));
        for Row { run, timing, errors } in &self.rows {
            let mut cells = vec![run.strategy.name().to_owned(), run.ranks.to_string()];
            cells.extend([timing.pre, timing.kernel, timing.post, timing.wall].map(duration));
            cells.push(bytes(timing.bytes));
            cells.extend(errors.iter().map(|error| match error {
                None => "-".to_owned(),
                Some(0.0) => "0".to_owned(),
                Some(error) => format!("{error:.1e}"),
            }));
            table.add_row(cells);
        }
        table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        let (device, backend, dtype) = (self.device.name(), self.backend.name(), self.dtype);
        let written = self.written.map(|(what, name)| format!("{what}: {}\n", name.display()));
        format!(
            "device {device}, kernel {backend}, elements {dtype}\n{table}\n\
             pre, kernel, post: parts of attention, each by its slowest rank; total: the whole run, by the wall clock\n\
             moved: bytes that the busiest rank took from others\n{}",
            written.unwrap_or_default()
        )
    }

    fn json(&self) -> Value {
        let runs: Vec<Value> = self.rows.iter().map(|row| self.run(row)).collect();
        let mut report = Map::new();
        if let Some((what, name)) = self.written {
            report.insert(what.to_owned(), name.to_string_lossy().into());
        }
        report.insert("runs".to_owned(), runs.into());
        report.into()
    }

    fn run(&self, Row { run, timing, errors }: &Row) -> Value {
        let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
        let mut value = json!({
            "strategy": run.strategy.name(),
            "ranks": run.ranks,
            "device": self.device.name(),
            "backend": self.backend.name(),
            "dtype": self.dtype.to_string(),
            "seconds": timing.wall.as_secs_f64(),
            "pre_ms": milliseconds(timing.pre),
            "kernel_ms": milliseconds(timing.kernel),
            "post_ms": milliseconds(timing.post),
            "bytes_per_rank": timing.bytes,
        });
        for (comparison, error) in self.comparisons.iter().zip(errors) {
            value[comparison.key] = json!(error);
        }
        value
    }
}

/// Prints on stdout. That nobody reads it any more is no failure.
///
/// # Errors
/// If stdout cannot be written for another reason.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::System(format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

fn duration(duration: Duration) -> String {
    time(duration.as_secs_f64())
}

/// `12.3 ms`.
pub(crate) fn time(seconds: f64) -> String {
    match seconds {
        1.0.. => format!("{seconds:.2} s"),
        1e-3.. => format!("{:.1} ms", seconds * 1e3),
        _ => format!("{:.1} us", seconds * 1e6),
    }
}

/// `1.5 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = "B";
    for larger in units {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_carry_units() {
        assert_eq!([0, 1023, 1536, 3 << 30].map(bytes), ["0 B", "1023 B", "1.5 KiB", "3.0 GiB"]);
        let texts =
            [1500, 1_500_000, 1_500_000_000].map(|nanoseconds| duration(Duration::from_nanos(nanoseconds)));
        assert_eq!(texts, ["1.5 us", "1.5 ms", "1.50 s"]);
    }
}
