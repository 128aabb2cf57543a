//! `bench`: what it says, and in what order.

use std::path::Path;

use serde_json::Value;

use crate::{fail, succeed};

/// Runs `bench --json` and gives its objects, one for each line.
#[track_caller]
fn bench(shape: &str, args: &[&str]) -> Vec<Value> {
    let start = ["bench", "--json", "--runs", "3", "--warmup", "1", "--shape", shape];
    let said = succeed(Path::new("."), &[&start[..], args].concat());
    assert!(said.ends_with('\n'), "{said}");
    said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn names(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["name"].as_str().unwrap()).collect()
}

fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("{key} of {row} is a number"))
}

const ONE_RUN: [&str; 4] = ["attention", "pre", "kernel", "post"];
const KERNELS: [&str; 4] = ["reshard", "back", "begin", "finish"];

#[test]
fn a_row_is_an_object_on_a_line_and_attention_is_the_first() {
    let rows = bench("2,48,4,16", &["--dtype", "bf16", "--kv-heads", "2", "--seq-k", "24", "--threads", "1"]);
    assert_eq!(names(&rows), [ONE_RUN, KERNELS].concat());
    let keys = [
        "allgather",
        "backend",
        "bytes_per_rank",
        "device",
        "device_name",
        "dtype",
        "floor_ms",
        "form",
        "gb_per_s",
        "gemm_tflops",
        "gflops",
        "iqr_ms",
        "kv_heads",
        "layout",
        "mask",
        "max_ms",
        "median_ms",
        "min_ms",
        "name",
        "of_floor",
        "profile",
        "ranks",
        "ring",
        "runs",
        "seq_k",
        "shape",
        "split",
        "strategy",
        "threads",
        "ulysses",
        "warmup",
    ];
    for row in &rows {
        assert_eq!(row.as_object().unwrap().keys().collect::<Vec<_>>(), keys);
        let [least, median, most] = ["min_ms", "median_ms", "max_ms"].map(|key| number(row, key));
        assert!(0.0 < least && least <= median && median <= most, "{row}");
        assert!((0.0..=most - least).contains(&number(row, "iqr_ms")), "{row}");
        let settings = ["device", "dtype", "backend", "mask"].map(|key| row[key].as_str().unwrap());
        assert_eq!(settings, ["cpu", "bf16", "flash", "none"]);
        let counts = ["seq_k", "kv_heads", "threads", "runs", "warmup"].map(|key| row[key].as_u64().unwrap());
        assert_eq!(counts, [24, 2, 1, 3, 1]);
        assert_eq!(row["shape"], serde_json::json!([2, 48, 4, 16]));
        assert!(!row["device_name"].as_str().unwrap().is_empty());
    }
    let rate = |row: &Value| number(row, "gflops") * number(row, "median_ms") * 1e6;
    let operations = f64::from(4 * 2 * 4 * 48 * 24 * 16);
    for row in [&rows[0], &rows[2]] {
        assert!((rate(row) / operations - 1.0).abs() < 1e-9, "{row}");
        assert!(row["floor_ms"].is_null() && row["gb_per_s"].is_null(), "{row}");
    }
    for row in &rows[4..] {
        assert!(
            number(row, "gb_per_s") > 0.0 && row["gflops"].is_null() && row["strategy"].is_null(),
            "{row}"
        );
        let part = number(row, "floor_ms") / number(row, "median_ms");
        assert!((number(row, "of_floor") / part - 1.0).abs() < 1e-9, "{row}");
    }
    let bytes = |row: &Value| (number(row, "gb_per_s") * number(row, "median_ms") * 1e6).round();
    // A tensor read and written; the state of 2 * 48 * 4 rows: maximum and sum, then those and the output.
    assert_eq!([&rows[4], &rows[5]].map(bytes), [2.0 * 2.0 * 2.0 * 48.0 * 4.0 * 16.0; 2]);
    assert_eq!([&rows[6], &rows[7]].map(bytes), [384.0 * 8.0, 384.0 * (16.0 * 6.0 + 8.0)]);
}

#[test]
fn every_strategy_asked_for_has_its_rows_and_the_bytes_of_its_formula() {
    let strategies = "none,ulysses,ring,hybrid,allgather_kv,ulysses_allgather";
    let rows = bench("2,48,4,16", &["--strategy", strategies, "--ranks", "2,4", "--backend", "sdpa"]);
    assert_eq!(names(&rows), [&[ONE_RUN; 11].concat()[..], &KERNELS].concat());
    let said = |row: &Value| {
        (row["strategy"].as_str().unwrap().to_owned(), row["ranks"].as_u64(), row["bytes_per_rank"].as_u64())
    };
    // Bytes of a position: four tensors under Ulysses, two under ring, of 2 batch rows, 4 heads of 16 floats.
    let position = 2 * 4 * 16 * 4;
    let expected = [
        ("none", 1, 0),
        ("ulysses", 2, 4 * position * 24 / 2),
        ("ulysses", 4, 4 * position * 12 * 3 / 4),
        ("ring", 2, 2 * position * 24),
        ("ring", 4, 2 * position * 12 * 3),
        ("hybrid", 2, 2 * position * 24),
        ("hybrid", 4, 4 * position * 12 / 2 + 2 * position / 2 * 24),
        ("allgather_kv", 2, 2 * position * 24),
        ("allgather_kv", 4, 2 * position * 12 * 3),
        ("ulysses_allgather", 2, 2 * position * 24),
        ("ulysses_allgather", 4, 4 * position * 12 / 2 + 2 * position / 2 * 24),
    ];
    for (run, (strategy, ranks, bytes)) in rows.chunks(4).zip(expected) {
        assert_eq!(said(&run[0]), (strategy.to_owned(), Some(ranks), Some(bytes)));
        assert!(run[1..].iter().all(|row| row["strategy"] == strategy && row["bytes_per_rank"].is_null()));
    }
}

#[test]
fn a_causal_mask_counts_what_it_leaves_and_a_floor_what_it_would_take() {
    let rows = bench("2,48,4,16", &["--mask", "causal", "--seq-k", "40", "--gemm-tflops", "0.5"]);
    let operations = number(&rows[0], "gflops") * number(&rows[0], "median_ms") * 1e6;
    // Of 48 queries the last 40 attend 1, 2, .. 40 keys.
    let expected = f64::from(4 * 2 * 4 * 16 * (40 * 41 / 2));
    assert!((operations / expected - 1.0).abs() < 1e-9, "{operations} and {expected}");
    for row in [&rows[0], &rows[2]] {
        assert!((number(row, "floor_ms") / (expected / 0.5e9) - 1.0).abs() < 1e-9, "{row}");
    }
}

#[test]
fn rings_are_measured_in_every_layout_and_split() {
    for (layout, split, shape) in [
        ("zigzag", "strict", "1,48,4,16"),
        ("striped", "uneven", "1,23,5,16"),
        ("contiguous", "uneven", "1,3,5,16"),
    ] {
        let args = ["--strategy", "hybrid", "--ulysses", "2", "--ring", "2", "--mask", "window:9,0"];
        let rows = bench(shape, &[&args[..], &["--layout", layout, "--split", split]].concat());
        let said =
            ["layout", "split", "mask", "ranks", "ulysses", "ring"].map(|key| rows[0][key].to_string());
        assert_eq!(said.map(|text| text.replace('"', "")), [layout, split, "window(9, 0)", "4", "2", "2"]);
    }
}

#[test]
fn a_tensor_that_cannot_be_resharded_has_no_such_row() {
    let rows = bench("1,5,1,8", &[]);
    assert_eq!(names(&rows), [&ONE_RUN[..], &["begin", "finish"]].concat());
}

#[test]
fn the_table_has_a_row_for_each() {
    let args = [
        "bench",
        "--shape",
        "1,32,4,16",
        "--runs",
        "2",
        "--warmup",
        "0",
        "--strategy",
        "ring",
        "--ranks",
        "2",
    ];
    let table = succeed(Path::new("."), &args);
    for said in [
        "cpu (",
        "kernel flash, elements f32, mask none",
        "query [1, 32, 4, 16]",
        "medians of 2 runs after 0",
    ] {
        assert!(table.contains(said), "{said}: {table}");
    }
    for name in ONE_RUN.iter().chain(&KERNELS) {
        assert_eq!(table.matches(&format!("│ {name} ")).count(), 1, "{name}: {table}");
    }
    assert!(table.contains("FLOP/s") && table.contains("B/s") && table.contains(" %"), "{table}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let refuse = |args: &[&str], code: i32, says: &[&str]| {
        fail(Path::new("."), &[&["bench"], args].concat(), code, says);
    };
    for shape in ["", "1,2,3", "1,2,3,4,5", "1,0,3,4", "1,2,x,4", "1,-2,3,4"] {
        refuse(&["--shape", shape], 2, &["--shape", "batch,seq,heads,head_dim"]);
    }
    refuse(&["--runs", "0"], 2, &["0 is not between 1 and 100000"]);
    refuse(&["--warmup", "some"], 2, &["expected a number between 0 and 100000"]);
    for rate in ["0", "-1", "nan", "inf"] {
        refuse(&[&format!("--gemm-tflops={rate}")], 2, &["finite number above 0"]);
    }
    refuse(&["--device", "gpu"], 2, &["cpu, cuda"]);
    refuse(&["--form", "simple"], 2, &["`--form`", "--device cuda"]);
    refuse(&["--backend", "sage"], 2, &["`sage`", "--device cuda"]);
    refuse(&["--threads", "1024", "--strategy", "ring", "--ranks", "2"], 2, &["2048 threads"]);
    refuse(&["--kv-heads", "3"], 3, &["3 heads of keys and values", "8 heads"]);
    refuse(&["--ranks", "2"], 2, &["`none` runs on one rank", "`--strategy`"]);
    refuse(&["--strategy", "ulysses", "--ranks", "3"], 3, &["8 query heads", "1, 2, 4 and 8"]);
    refuse(&["--strategy", "ring", "--ranks", "3"], 3, &["the queries: 2048 positions", "1, 2, 4, 8"]);
    refuse(
        &["--strategy", "ring", "--ranks", "2", "--seq-k", "31"],
        3,
        &["the keys: 31 positions", "1 and 31"],
    );
    // A tensor that could be addressed, but that no machine has the memory for.
    refuse(
        &["--shape", "1,100000000000,64,128"],
        4,
        &["could not allocate 3276800000000000 bytes of cpu memory"],
    );
    refuse(&["--shape", "1,9999999999999999,999,9999"], 3, &["more than this machine can address"]);
}
