//! What the table and the JSON say about runs.

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::problem::{Problem, Sizes};
use crate::succeed;
use crate::tensors::BSHD;

/// A folder with an `in.safetensors` of two rows of 48 positions, 4 heads and 2 of keys.
fn folder() -> TempDir {
    let folder = tempdir().unwrap();
    let sizes = Sizes { batch: 2, seq: [48, 48], heads: [4, 2], dim: 16, joint: 0 };
    Problem::new(safetensors::Dtype::F32, sizes).write(&folder.path().join("in.safetensors"), BSHD);
    folder
}

fn run(folder: &TempDir, args: &str) -> String {
    let io = ["run", "--input", "in.safetensors"];
    succeed(folder.path(), &[&io[..], &args.split_whitespace().collect::<Vec<_>>()].concat())
}

/// The objects of all runs.
fn runs(folder: &TempDir, args: &str) -> Vec<Value> {
    let report: Value = serde_json::from_str(&run(folder, &format!("--json {args}"))).unwrap();
    report["runs"].as_array().unwrap().clone()
}

const ALL: &str = "--strategy none,ulysses,ring,hybrid,allgather_kv,ulysses_allgather";

#[test]
fn many_runs_are_compared_when_nothing_is_written() {
    let folder = folder();
    let table = run(&folder, &format!("{ALL} --ranks 2,4"));
    for (cell, count) in [
        ("│ none ", 1),
        ("│ ulysses ", 2),
        ("│ ring ", 2),
        ("│ hybrid ", 2),
        ("│ allgather_kv ", 2),
        ("│ ulysses_allgather ", 2),
        (" 2 (1 x 2) ", 2),
        (" 4 (2 x 2) ", 2),
        (" sent ", 2),
        (" blocks ", 1),
    ] {
        assert_eq!(table.matches(cell).count(), count, "{cell}: {table}");
    }
    let all = runs(&folder, &format!("{ALL} --ranks 2 --ranks 4"));
    assert_eq!(all.len(), 11);
    for run in &all {
        assert_eq!((run["backend"].as_str(), run["dtype"].as_str()), (Some("flash"), Some("f32")));
        assert!(run["relative_error_one_rank"].as_f64().unwrap() < 1e-5, "{run}");
        assert_eq!(run["bytes_per_rank"].as_u64() > Some(0), run["ranks"].as_u64() > Some(1), "{run}");
    }
    let unchecked = runs(&folder, &format!("{ALL} --ranks 2 --no-check"));
    assert!(unchecked[1]["relative_error_one_rank"].is_null());
}

#[test]
fn a_run_tells_how_its_ranks_share_the_work() {
    let folder = folder();
    let runs = runs(&folder, &format!("{ALL} --ranks 8 --layout zigzag --split uneven --mask causal"));
    let said: Vec<Value> = runs
        .iter()
        .map(|run| {
            assert_eq!(
                (&run["split"], &run["mask"], &run["keys"]),
                (&json!("uneven"), &json!("causal"), &json!("sharded"))
            );
            let keys = ["strategy", "ranks", "ulysses", "ring", "allgather", "layout"];
            keys.into_iter().map(|key| run[key].clone()).collect()
        })
        .collect();
    let expected = [
        json!(["none", 1, null, null, null, null]),
        json!(["ulysses", 8, 8, null, null, null]),
        json!(["ring", 8, null, 8, null, "zigzag"]),
        json!(["hybrid", 8, 2, 4, null, "zigzag"]),
        json!(["allgather_kv", 8, null, null, 8, null]),
        json!(["ulysses_allgather", 8, 2, null, 4, null]),
    ];
    assert_eq!(said, expected);
    let table = run(&folder, "--strategy ring --ranks 2 --layout striped --split uneven --keys replicated");
    assert!(
        table.contains("elements f32, mask none, layout striped, split uneven, keys replicated\n"),
        "{table}"
    );
}

#[test]
fn bytes_are_those_of_each_strategys_formula() {
    let folder = folder();
    // Bytes of a position: of queries and outputs, and of keys and values.
    let (q, kv) = (2 * 4 * 16 * 4, 2 * 2 * 16 * 4);
    for (args, bytes) in [
        ("--strategy none", 0),
        ("--strategy ulysses --ranks 2", (2 * q + 2 * kv) * 24 / 2),
        // Two heads of keys for four ranks: each goes to two of them.
        ("--strategy ulysses --ranks 4", (2 * q + 2 * 2 * kv) * 12 * 3 / 4),
        ("--strategy ring --ranks 4", 2 * kv * 12 * 3),
        ("--strategy ring --ranks 4 --layout zigzag --mask causal", 2 * kv * 12 * 3),
        ("--strategy allgather_kv --ranks 4", 2 * kv * 12 * 3),
        ("--strategy hybrid --ulysses 2 --ring 2", (2 * q + 2 * kv) * 12 / 2 + 2 * kv / 2 * 24),
        (
            "--strategy ulysses_allgather --ulysses 2 --allgather 2",
            (2 * q + 2 * kv) * 12 / 2 + 2 * kv / 2 * 24,
        ),
        ("--strategy ring --ranks 4 --keys replicated", 0),
        ("--strategy allgather_kv --ranks 4 --keys replicated", 0),
        ("--strategy ulysses --ranks 2 --keys replicated", 2 * q * 24 / 2),
    ] {
        assert_eq!(runs(&folder, args)[0]["bytes_per_rank"], json!(bytes), "{args}");
    }
}

#[test]
fn rings_count_the_blocks_that_they_compute() {
    let folder = folder();
    for (args, [busiest, mean, ratio], cell) in [
        ("--mask causal --layout contiguous", [4.0, 2.5, 1.6], " 4 / 2.5 (1.60x) "),
        ("--mask causal --layout zigzag", [9.0, 9.0, 1.0], " 9 / 9.0 (1.00x) "),
        ("--mask causal --layout striped", [4.0, 4.0, 1.0], " 4 / 4.0 (1.00x) "),
        ("--mask none --layout contiguous", [4.0, 4.0, 1.0], " 4 / 4.0 (1.00x) "),
        ("--mask window:11,0", [2.0, 1.75, 8.0 / 7.0], " 2 / 1.8 (1.14x) "),
    ] {
        let args = format!("--strategy ring --ranks 4 {args}");
        let run_ = &runs(&folder, &args)[0];
        let found = ["blocks_busiest", "blocks_mean", "blocks_ratio"].map(|key| run_[key].as_f64().unwrap());
        assert_eq!(found, [busiest, mean, ratio], "{args}");
        assert!(run(&folder, &args).contains(cell), "{args}");
    }
    // Of two rings of two each.
    let hybrid = &runs(&folder, "--strategy hybrid --ranks 4 --mask causal")[0];
    assert_eq!([&hybrid["blocks_busiest"], &hybrid["blocks_mean"]], [&json!(2), &json!(1.5)]);
    for run in runs(&folder, "--strategy none,ulysses,allgather_kv,ulysses_allgather --ranks 2") {
        assert!(
            ["blocks_busiest", "blocks_mean", "blocks_ratio"].iter().all(|key| run[key].is_null()),
            "{run}"
        );
    }
}
