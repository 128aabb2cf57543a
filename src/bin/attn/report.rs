//! What the program says about its runs: a table, or JSON.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use attn::prelude::*;
use attn::{DType, KeyPlacement, Mask, Phases, RingLayout, Traffic, Work};
use comfy_table::{CellAlignment, Table};
use serde_json::{Map, Value, json};

use crate::cli::{Backend, CommName, Degree, DeviceName};
use crate::failure::Failure;
use crate::plan::Run;

/// What one rank measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Measured {
    phases: Phases,
    traffic: Traffic,
    work: Work,
}

impl Measured {
    /// What a session has measured so far.
    pub(crate) fn of<A: ParallelAttention<C, T>, C: Communicator, T: Element>(
        session: &Session<A, C, T>,
    ) -> Self {
        Self { phases: session.phases(), traffic: session.traffic(), work: session.work() }
    }

    /// The same, but for what its group had moved before.
    pub(crate) fn since(self, before: Traffic) -> Self {
        Self { traffic: self.traffic - before, ..self }
    }

    /// As another process can read it.
    pub(crate) fn to_words(self) -> [u64; 6] {
        let Self { phases, traffic, work } = self;
        let nanoseconds = |phase: Duration| u64::try_from(phase.as_nanos()).unwrap_or(u64::MAX);
        let [pre, kernel, post] = [phases.pre, phases.kernel, phases.post].map(nanoseconds);
        [pre, kernel, post, traffic.sent, work.computed, work.skipped]
    }

    /// What [`to_words`](Self::to_words) made; none if it is something else.
    pub(crate) fn from_words(words: &[u64]) -> Option<Self> {
        let [pre, kernel, post, sent, computed, skipped] = *words else { return None };
        let (mut phases, mut traffic) = (Phases::default(), Traffic::default());
        [phases.pre, phases.kernel, phases.post] = [pre, kernel, post].map(Duration::from_nanos);
        traffic.sent = sent;
        Some(Self { phases, traffic, work: Work { computed, skipped } })
    }
}

/// What one run measured: of each number the largest that a rank has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    pre: Duration,
    kernel: Duration,
    post: Duration,
    wall: Duration,
    bytes: u64,
    blocks: Option<Blocks>,
}

impl Timing {
    pub(crate) fn of(ranks: &[Measured], wall: Duration) -> Self {
        let longest = |phase: fn(&Phases) -> Duration| {
            ranks.iter().map(|rank| phase(&rank.phases)).max().unwrap_or_default()
        };
        Self {
            pre: longest(|phases| phases.pre),
            kernel: longest(|phases| phases.kernel),
            post: longest(|phases| phases.post),
            wall,
            bytes: ranks.iter().map(|rank| rank.traffic.sent).max().unwrap_or_default(),
            blocks: Blocks::of(ranks.iter().map(|rank| rank.work)),
        }
    }
}

/// Blocks of queries and keys that ranks computed.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Blocks {
    /// The most of a rank.
    busiest: u64,
    /// Of all ranks.
    mean: f64,
}

impl Blocks {
    /// None if nobody counted.
    fn of(ranks: impl Iterator<Item = Work> + Clone) -> Option<Self> {
        let counted = ranks.clone().any(|work| work != Work::default());
        let computed = ranks.map(|work| work.computed);
        let (busiest, count) = (computed.clone().max()?, computed.clone().count());
        counted.then(|| Self { busiest, mean: computed.sum::<u64>() as f64 / count as f64 })
    }

    /// How much more the busiest has than the mean; none if there is nothing to do.
    fn ratio(&self) -> Option<f64> {
        (self.busiest > 0).then(|| self.busiest as f64 / self.mean)
    }

    /// `9 / 9.0 (1.00x)`.
    fn text(&self) -> String {
        let Self { busiest, mean } = self;
        let ratio = self.ratio().map_or_else(String::new, |ratio| format!(" ({ratio:.2}x)"));
        format!("{busiest} / {mean:.1}{ratio}")
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
    pub(crate) comm: CommName,
    pub(crate) backend: Backend,
    pub(crate) dtype: DType,
    pub(crate) mask: Mask,
    pub(crate) keys: KeyPlacement,
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
        let titles =
            ["strategy", "ranks", "pre", "kernel", "post", "total", "sent", "blocks"].map(str::to_owned);
        table.set_header(titles.into_iter().chain(self.comparisons.iter().map(|c| c.title.to_owned())));
        for Row { run, timing, errors } in &self.rows {
            let mut cells = vec![run.strategy.name().to_owned(), run.ranks_text()];
            cells.extend([timing.pre, timing.kernel, timing.post, timing.wall].map(duration));
            cells.push(bytes(timing.bytes));
            cells.push(timing.blocks.map_or_else(|| "-".to_owned(), |blocks| blocks.text()));
            cells.extend(errors.iter().map(|error| match error {
                None => "-".to_owned(),
                Some(0.0) => "0".to_owned(),
                Some(error) => format!("{error:.1e}"),
            }));
            table.add_row(cells);
        }
        table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        let written = self.written.map(|(what, name)| format!("{what}: {}\n", name.display()));
        format!(
            "{}\n{table}\n\
             pre, kernel, post: parts of attention, each by its slowest rank; total: the whole run, by the wall clock\n\
             sent: bytes that the busiest rank sent to others; blocks: of queries and keys, computed by the busiest rank / by \
             a rank on average, if the strategy counts them\n{}",
            self.settings(),
            written.unwrap_or_default()
        )
    }

    /// What is the same for all runs; layout, split and placement of keys only where they are not what they mostly are.
    fn settings(&self) -> String {
        let Self { device, comm, backend, dtype, mask, keys, rows, .. } = self;
        let layouts = rows.iter().filter_map(|row| row.run.layout());
        let splits = rows.iter().map(|row| row.run.sharding.split);
        let mut text =
            format!("device {}, kernel {}, elements {dtype}, mask {mask}", device.name(), backend.name());
        let unusual = [
            ("ranks over", Some(comm.name()).filter(|_| *comm != CommName::default())),
            ("layout", layouts.map(RingLayout::name).find(|name| *name != RingLayout::default().name())),
            ("split", splits.map(Split::name).find(|name| *name != Split::default().name())),
            ("keys", Some(keys.name()).filter(|name| *name != KeyPlacement::default().name())),
        ];
        for (what, name) in unusual {
            if let Some(name) = name {
                text.push_str(&format!(", {what} {name}"));
            }
        }
        text
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
            "ranks": run.ranks(),
            "ulysses": run.degree(Degree::Ulysses),
            "ring": run.degree(Degree::Ring),
            "allgather": run.degree(Degree::Allgather),
            "layout": run.layout().map(RingLayout::name),
            "split": run.sharding.split.name(),
            "mask": self.mask.to_string(),
            "keys": self.keys.name(),
            "device": self.device.name(),
            "comm": self.comm.name(),
            "backend": self.backend.name(),
            "dtype": self.dtype.to_string(),
            "seconds": timing.wall.as_secs_f64(),
            "pre_ms": milliseconds(timing.pre),
            "kernel_ms": milliseconds(timing.kernel),
            "post_ms": milliseconds(timing.post),
            "bytes_per_rank": timing.bytes,
            "blocks_busiest": timing.blocks.map(|blocks| blocks.busiest),
            "blocks_mean": timing.blocks.map(|blocks| blocks.mean),
            "blocks_ratio": timing.blocks.and_then(|blocks| blocks.ratio()),
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
    fn blocks_are_those_of_the_busiest_rank_and_the_mean() {
        let work = |computed, skipped| Work { computed, skipped };
        let causal = [work(1, 3), work(2, 2), work(3, 1), work(4, 0)];
        assert_eq!(Blocks::of(causal.into_iter()).unwrap().text(), "4 / 2.5 (1.60x)");
        assert_eq!(Blocks::of([work(9, 0); 4].into_iter()).unwrap().text(), "9 / 9.0 (1.00x)");
        assert_eq!(Blocks::of([work(0, 2); 2].into_iter()).unwrap().text(), "0 / 0.0");
        assert_eq!(Blocks::of([work(0, 0); 2].into_iter()), None);
    }

    #[test]
    fn numbers_carry_units() {
        assert_eq!([0, 1023, 1536, 3 << 30].map(bytes), ["0 B", "1023 B", "1.5 KiB", "3.0 GiB"]);
        let texts =
            [1500, 1_500_000, 1_500_000_000].map(|nanoseconds| duration(Duration::from_nanos(nanoseconds)));
        assert_eq!(texts, ["1.5 us", "1.5 ms", "1.50 s"]);
    }
}
