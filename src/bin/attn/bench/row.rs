//! What was measured, as a line of a table or of JSON.

use attn::{DType, RingLayout};
use comfy_table::{CellAlignment, Table};
use serde_json::{Value, json};

use super::problem::Problem;
use super::times::Times;
use crate::cli::{Degree, DeviceName, Form};
use crate::machine::threads;
use crate::plan::Run;
use crate::report::{bytes, time};

/// How this program was built.
const PROFILE: &str = env!("ATTN_BUILD_PROFILE");

/// What a time was spent on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    /// Multiplications and additions.
    Operations(f64),
    /// Bytes read and bytes written, both.
    Bytes(u64),
    /// Nothing that has a rate.
    Unknown,
}

/// One thing that was measured.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: &'static str,
    /// None for what belongs to no strategy.
    pub(super) run: Option<Run>,
    pub(super) ranks: usize,
    pub(super) times: Times,
    pub(super) work: Work,
    /// What it takes at least.
    pub(super) floor_ms: Option<f64>,
    /// Bytes that the busiest rank sends to others in a call.
    pub(super) bytes_per_rank: Option<u64>,
}

impl Row {
    /// Billions of operations a second.
    fn gflops(&self) -> Option<f64> {
        match self.work {
            Work::Operations(operations) => Some(operations / self.times.median / 1e6),
            _ => None,
        }
    }

    /// Billions of bytes a second.
    fn gigabytes(&self) -> Option<f64> {
        match self.work {
            Work::Bytes(bytes) => Some(bytes as f64 / self.times.median / 1e6),
            _ => None,
        }
    }

    /// How much of its time would do.
    fn of_floor(&self) -> Option<f64> {
        self.floor_ms.map(|floor| floor / self.times.median)
    }
}

/// All rows, and what they have in common.
pub(super) struct Report<'a> {
    pub(super) problem: &'a Problem,
    pub(super) dtype: DType,
    pub(super) device: DeviceName,
    /// What the hardware is called.
    pub(super) model: String,
    pub(super) rows: Vec<Row>,
}

impl Report<'_> {
    /// A table.
    pub(super) fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
        let titles = [
            "what", "strategy", "ranks", "median", "min", "max", "spread", "rate", "floor", "of floor",
            "sent",
        ];
        table.set_header(titles);
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| String::from("-"));
        for row in &self.rows {
            let mut cells = vec![
                row.name.to_owned(),
                or_dash(row.run.map(|run| run.strategy.name().to_owned())),
                row.run.map_or_else(|| row.ranks.to_string(), |run| run.ranks_text()),
            ];
            let Times { median, least, most, spread } = row.times;
            cells.extend([median, least, most, spread].map(milliseconds));
            let gflops = row.gflops().map(|rate| scaled(rate, ["GFLOP/s", "TFLOP/s"]));
            let rate = gflops.or_else(|| row.gigabytes().map(|rate| scaled(rate, ["GB/s", "TB/s"])));
            cells.push(or_dash(rate));
            cells.push(or_dash(row.floor_ms.map(milliseconds)));
            cells.push(or_dash(row.of_floor().map(|part| format!("{:.0} %", part * 100.0))));
            cells.push(or_dash(row.bytes_per_rank.map(bytes)));
            table.add_row(cells);
        }
        table.column_iter_mut().skip(2).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        let Problem { query, key, span, backend, form, runs, warmup, .. } = self.problem;
        let form = form.map_or_else(String::new, |form| format!(" in form {}", form.name()));
        let kernel = format!("{}{form}", backend.name());
        format!(
            "{} ({}), kernel {kernel}, elements {}, mask {span}\n\
             query {query:?}, key {key:?}: [batch, seq, heads, head_dim] of all ranks together\n{table}\n\
             medians of {runs} runs after {warmup}; spread: between the quartiles; floor: what the same takes at least \
             (see `attn bench --help`)\n{}",
            self.device.name(),
            self.model,
            self.dtype,
            if PROFILE == "release" { "" } else { "not built with --release: these times say nothing\n" },
        )
    }

    /// An object on a line for each row.
    pub(super) fn json(&self) -> String {
        self.rows.iter().map(|row| format!("{}\n", self.object(row))).collect()
    }

    fn object(&self, row: &Row) -> Value {
        let Problem { query, key, span, backend, form, runs, warmup, gemm_tflops, .. } = self.problem;
        let threads = match self.device {
            // What belongs to no strategy is done on one queue.
            DeviceName::Cpu => Some(threads(row.run.map_or(1, |run| run.ranks()), self.problem.threads)),
            DeviceName::Cuda => None,
        };
        let degree = |degree| row.run.and_then(|run| run.degree(degree));
        json!({
            "name": row.name,
            "strategy": row.run.map(|run| run.strategy.name()),
            "ranks": row.ranks,
            "ulysses": degree(Degree::Ulysses),
            "ring": degree(Degree::Ring),
            "allgather": degree(Degree::Allgather),
            "layout": row.run.and_then(|run| run.layout()).map(RingLayout::name),
            "split": row.run.map(|run| run.sharding.split.name()),
            "median_ms": row.times.median,
            "min_ms": row.times.least,
            "max_ms": row.times.most,
            "iqr_ms": row.times.spread,
            "gflops": row.gflops(),
            "gb_per_s": row.gigabytes(),
            "floor_ms": row.floor_ms,
            "of_floor": row.of_floor(),
            "bytes_per_rank": row.bytes_per_rank,
            "device": self.device.name(),
            "device_name": self.model,
            "threads": threads,
            "shape": query,
            "seq_k": key[1],
            "kv_heads": key[2],
            "dtype": self.dtype.to_string(),
            "backend": backend.name(),
            "form": form.map(Form::name),
            "mask": span.to_string(),
            "runs": runs,
            "warmup": warmup,
            "gemm_tflops": gemm_tflops,
            "profile": PROFILE,
        })
    }
}

fn milliseconds(milliseconds: f64) -> String {
    time(milliseconds / 1e3)
}

/// `12.3 GB/s`, `1.23 TB/s`.
fn scaled(rate: f64, [billions, trillions]: [&str; 2]) -> String {
    if rate < 1000.0 { format!("{rate:.1} {billions}") } else { format!("{:.2} {trillions}", rate / 1e3) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_carry_units() {
        assert_eq!(scaled(12.34, ["GB/s", "TB/s"]), "12.3 GB/s");
        assert_eq!(scaled(1234.0, ["GB/s", "TB/s"]), "1.23 TB/s");
    }
}
