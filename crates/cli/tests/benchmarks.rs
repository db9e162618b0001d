//! `bench-kernels` and `bench --profile`: what they measure and print.

mod common;

use common::{json, model, output, run, sparamx, stdout, text};
use serde_json::Value;

/// One small weight that stays in the caches, so that it is a matter of a moment.
const SMALL: [&str; 7] = [
    "bench-kernels",
    "-r",
    "1",
    "--stream",
    "0",
    "--shapes",
    "70,200",
];

/// The names of the kernels that this CPU can run.
fn runnable() -> Vec<String> {
    let catalog = json(&run(&["inspect", "--kernels", "--json"]));
    let kernels = catalog["kernels"].as_array().expect("a list").iter();
    kernels
        .filter(|kernel| kernel["runnable"] == true)
        .map(|kernel| kernel["name"].as_str().expect("a name").to_owned())
        .collect()
}

#[test]
fn every_kernel_that_runs_is_measured_and_one_of_each_kind_is_chosen() {
    let sparsity = ["-b", "1", "--sparsity", "0,0.5", "--json"];
    let report = json(&output(sparamx().args(SMALL).args(sparsity)));
    for field in ["cpu", "isa", "threads", "read_bandwidth_gb_s", "skipped"] {
        assert!(report.get(field).is_some(), "no {field}");
    }
    let rows = report["kernels"].as_array().expect("a list");
    let mut names: Vec<&str> = rows
        .iter()
        .map(|row| row["kernel"].as_str().expect("a name"))
        .collect();
    let mut expected = runnable();
    names.sort_unstable();
    expected.sort_unstable();
    assert_eq!(names, expected);
    for row in rows {
        for (field, value) in [("n", 70), ("k", 200), ("m", 1)] {
            assert_eq!(row[field], value, "{row}");
        }
        let figure = |field: &str| {
            row[field]
                .as_f64()
                .unwrap_or_else(|| panic!("no {field} in {row}"))
        };
        for field in [
            "us",
            "us_min",
            "us_max",
            "packed_gb_s",
            "bandwidth_share",
            "gflop_s",
        ] {
            assert!(figure(field) > 0.0, "{field} in {row}");
        }
        assert!(
            figure("us_min") <= figure("us") && figure("us") <= figure("us_max"),
            "{row}"
        );
        assert_eq!(row["over_dense"].is_null(), row["sparsity"] == 0.0, "{row}");
        let impossible = row["bandwidth_share"].as_f64() > Some(1.0);
        assert_eq!(row["from_cache"], impossible, "{row}");
    }
    let chosen = |weights: &str, sparsity: f64| {
        let kind = |row: &&Value| row["weights"] == weights && row["sparsity"] == sparsity;
        rows.iter()
            .filter(kind)
            .filter(|row| row["selected"] == true)
            .count()
    };
    for weights in ["bf16", "int8", "int4"] {
        assert_eq!(
            (chosen(weights, 0.0), chosen(weights, 0.5)),
            (1, 1),
            "{weights}"
        );
    }
}

#[test]
fn options_choose_kernels_and_shapes_and_the_form_of_the_result() {
    let args = [
        "--shapes",
        "16,64",
        "-b",
        "1,3",
        "--sparsity",
        "0.5,0.7",
        "--weights",
        "int8",
        "--kernel",
        "portable",
    ];
    let report = json(&output(
        sparamx().args(SMALL).args(args).args(["--format", "json"]),
    ));
    let rows = report["kernels"].as_array().expect("a list");
    let key = |row: &Value| (row["n"].clone(), row["sparsity"].clone(), row["m"].clone());
    assert_eq!(
        rows.len(),
        2 * 2 * 2,
        "shapes, batches, sparsities of the one packed int8 kernel"
    );
    assert!(
        rows.iter()
            .all(|row| row["kernel"] == "linear_i8_bmi8_i32_1x16_portable")
    );
    for (index, row) in rows.iter().enumerate() {
        assert!(
            rows[..index].iter().all(|other| key(other) != key(row)),
            "{row} twice"
        );
    }
    let table = stdout(&output(sparamx().args(SMALL).args(args)));
    assert!(
        table.contains("read bandwidth") && table.contains("| int8 "),
        "{table}"
    );
    let csv = stdout(&output(
        sparamx().args(SMALL).args(args).args(["-o", "csv"]),
    ));
    assert_eq!(csv.lines().count(), 1 + rows.len());
    let other_spelling = ["--json", "bench", "--kernels"];
    let report = json(&output(
        sparamx().args(other_spelling).args(&SMALL[1..]).args(args),
    ));
    assert_eq!(report["kernels"].as_array().map(Vec::len), Some(rows.len()));
}

#[test]
fn weights_larger_than_memory_are_refused_before_any_is_made() {
    let shape = ["bench-kernels", "--shapes", "1048576,1048576"];
    common::fails(&run(&shape), 1, &["TiB", "--weights", "--sparsity"]);
}

#[test]
fn a_profile_accounts_for_all_of_the_time() {
    let directory = model::directory();
    let args = [
        "bench",
        text(&directory),
        "--profile",
        "-p",
        "8",
        "-n",
        "4",
        "-b",
        "2",
        "-r",
        "2",
    ];
    let report = json(&output(sparamx().args(args).arg("--json")));
    let profiles = report["profile"].as_array().expect("a list");
    assert_eq!(
        profiles.len(),
        report["rows"].as_array().expect("a list").len()
    );
    for profile in profiles {
        let ops = profile["ops"].as_array().expect("a list");
        let names: Vec<&str> = ops
            .iter()
            .map(|op| op["op"].as_str().expect("a name"))
            .collect();
        for name in [
            "embedding",
            "norm",
            "qkv",
            "rope",
            "attention",
            "o",
            "gate_up",
            "silu",
            "down",
            "lm_head",
            "sampling",
            "other",
        ] {
            assert!(names.contains(&name), "no {name} in {names:?}");
        }
        let figure = |op: &Value, field: &str| {
            op[field]
                .as_f64()
                .unwrap_or_else(|| panic!("no {field} in {op}"))
        };
        let total = |field: &str| ops.iter().map(|op| figure(op, field)).sum::<f64>();
        assert!((total("share") - 1.0).abs() < 1e-6, "{profile}");
        assert!((total("us") / profile["us"].as_f64().expect("a number") - 1.0).abs() < 1e-6);
        assert!(
            ops.iter()
                .all(|op| figure(op, "us") >= 0.0 && figure(op, "calls") >= 1.0),
            "{profile}"
        );
        let kernels = profile["kernel_share"].as_f64().expect("a number");
        assert!(kernels > 0.0 && kernels < 1.0, "{kernels}");
    }
    let table = stdout(&output(sparamx().args(args)));
    assert!(
        table.contains("| lm_head ") && table.contains("linear layers and attention"),
        "{table}"
    );
    let plain = json(&run(&[
        "bench",
        text(&directory),
        "-p",
        "0",
        "-n",
        "2",
        "-r",
        "1",
        "--json",
    ]));
    assert!(plain.get("profile").is_none());
}
