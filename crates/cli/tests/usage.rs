//! Exit status, help, and wrong usage in one line.

mod common;

use common::{fails, json, output, run, sparamx, stdout};

#[test]
fn help_is_there_for_everything() {
    let help = stdout(&run(&["--help"]));
    for command in [
        "run",
        "compress",
        "perplexity",
        "eval",
        "report",
        "bench",
        "inspect",
        "doctor",
    ] {
        assert!(help.contains(command), "{command} is not in the help");
        let help = stdout(&run(&[command, "--help"]));
        for word in [
            "Usage: sparamx",
            "Examples:",
            "--json",
            "--quiet",
            "--threads",
        ] {
            assert!(help.contains(word), "no {word} in the help of {command}");
        }
    }
    assert!(stdout(&run(&["--version"])).starts_with("sparamx 0."));
}

#[test]
fn nothing_asked_for_is_wrong_usage() {
    let nothing = run(&[]);
    assert_eq!(nothing.status.code(), Some(2));
    assert!(nothing.stdout.is_empty());
}

#[test]
fn wrong_usage_ends_with_2_and_one_line() {
    let table: &[(&[&str], &[&str])] = &[
        (
            &["dance"],
            &["unrecognized subcommand 'dance'", "sparamx --help"],
        ),
        (
            &["doctor", "--jsno"],
            &[
                "unexpected argument '--jsno'",
                "'--json'",
                "sparamx doctor --help",
            ],
        ),
        (
            &["doctor", "-q", "-v"],
            &["cannot be used with", "sparamx doctor --help"],
        ),
        (&["doctor", "-t", "0"], &["--threads", "from 1 to 1024"]),
        (&["doctor", "-t", "many"], &["--threads", "'many'"]),
        (
            &["compress", "m"],
            &["--output <DIR>", "sparamx compress --help"],
        ),
        (
            &["compress", "m", "-o", "d", "--sparsity", "1.5"],
            &["'1.5'", "--sparsity", "at least 0 and below 1"],
        ),
        (
            &["compress", "m", "-o", "d", "--sparsity=-0.1"],
            &["'-0.1'", "--sparsity", "sparamx compress --help"],
        ),
        (
            &["compress", "m", "-o", "d", "--sparsity", "-0.1"],
            &["'-0.1'", "--sparsity", "at least 0 and below 1"],
        ),
        (
            &["compress", "m", "-o", "d", "--sparsity", "nan"],
            &["'nan'", "--sparsity"],
        ),
        (
            &["compress", "m", "-o", "d", "--sparsity", "half"],
            &["'half'", "--sparsity"],
        ),
        (
            &["compress", "m", "-o", "d", "--method", "luck"],
            &["'luck'", "magnitude"],
        ),
        (
            &["compress", "m", "-o", "d", "--weights", "int3"],
            &["'int3'", "bf16"],
        ),
        (
            &["compress", "m", "-o", "d", "--scope", "none"],
            &["'none'", "tensor", "row"],
        ),
        (&["inspect"], &["MODEL"]),
        (
            &["inspect", "m", "--kernels"],
            &["--kernels", "cannot be used with"],
        ),
        (&["bench"], &["--shape"]),
        (
            &["bench", "--shape", "gpt-9"],
            &["'gpt-9'", "tinyllama-1.1b"],
        ),
        (
            &["bench", "--shape", "tinyllama-1.1b", "--layers", "23"],
            &["22 layers", "--layers"],
        ),
        (
            &["bench", "m", "--profile", "-o", "csv"],
            &["--profile", "--format md or json"],
        ),
        (
            &["bench-kernels", "--format", "svg"],
            &["bench-kernels", "--format md"],
        ),
        (
            &["bench-kernels", "--shapes", "16,0"],
            &["'16,0'", "--shapes", "N,K"],
        ),
        (
            &["bench-kernels", "--shapes", "gpt-9"],
            &["'gpt-9'", "llama3-8b"],
        ),
        (
            &["bench-kernels", "--kernel", "linear_of_nobody"],
            &["no kernel", "inspect --kernels"],
        ),
        (
            &["bench-kernels", "-t", "1,2"],
            &["'1,2'", "--threads", "whole number"],
        ),
        (
            &["bench", "--kernels", "--shape", "tinyllama-1.1b"],
            &["'--shape'", "sparamx bench-kernels --help"],
        ),
        (
            &["bench", "--shape", "tinyllama-1.1b", "--weights", "int3"],
            &["'int3'", "--weights", "int8"],
        ),
        (
            &["bench", "--shape", "tinyllama-1.1b", "-p", "0", "-n", "0"],
            &["nothing to measure"],
        ),
        (
            &["bench", "--shape", "tinyllama-1.1b", "-b", "1,0"],
            &["'0'", "--batch"],
        ),
        (
            &["run", "m", "p", "--temperature=-1"],
            &["--temperature", "0 or more"],
        ),
        (&["run", "m", "p", "--top-p", "2"], &["--top-p", "0 to 1"]),
        (&["run", "m", "p", "-n", "0"], &["--max-tokens"]),
        (&["run", "m", "p", "-n", "-5"], &["'-5'", "--max-tokens"]),
        (
            &["run", "m", "p", "--top-k", "-1"],
            &["'-1'", "--top-k", "whole number"],
        ),
        (
            &["run", "m", "p", "--seed", "x"],
            &["'x'", "--seed", "whole number"],
        ),
        (&["perplexity", "m"], &["<FILE>"]),
        (
            &["perplexity", "m", "f", "--memory", "0"],
            &["'0'", "'--memory <SIZE>'", "above 0", "12G"],
        ),
        (
            &["perplexity", "m", "f", "--kv-memory", "0"],
            &["'0'", "'--kv-memory <SIZE>'"],
        ),
        (
            &["eval", "m", "f", "--limit", "99999999999999999999999"],
            &["--limit", "too large"],
        ),
        (
            &["bench", "m", "--json", "-o", "csv"],
            &["--json", "--format"],
        ),
        (
            &["bench", "--shape", "tinyllama-1.1b", "--memory", "1G"],
            &["--memory changes nothing", "MODEL"],
        ),
        (&["eval", "m"], &["<FILE>"]),
        (&["report", "m", "-o", "d"], &["--text"]),
        (&["eval", "m", "f", "--limit", "0"], &["--limit"]),
        (
            &["eval", "m", "f", "--task", "mmlu"],
            &["'mmlu'", "--task", "hellaswag"],
        ),
    ];
    for (args, words) in table {
        let line = fails(&run(args), 2, words);
        assert!(line.len() < 400, "{args:?}: {line}");
    }
}

#[test]
fn a_long_value_is_cut() {
    let digits = "9".repeat(30_000);
    let line = fails(
        &run(&["doctor", "-t", &digits]),
        2,
        &["letters left out", "sparamx doctor --help"],
    );
    assert!(line.len() < 1200, "{} letters", line.len());
}

#[test]
fn doctor_says_what_runs_here() {
    let report = json(&run(&["doctor", "--json"]));
    for field in [
        "cpu",
        "vendor",
        "isa",
        "isa_reason",
        "features",
        "amx",
        "caches",
        "cores",
        "numa_nodes",
        "memory_available_bytes",
        "huge_pages",
        "kernels",
        "environment",
        "warnings",
    ] {
        assert!(report.get(field).is_some(), "no {field} in {report}");
    }
    let kernels = report["kernels"].as_array().expect("a list");
    assert!(kernels.iter().all(|kernel| {
        kernel["kernel"]
            .as_str()
            .is_some_and(|name| name.starts_with("linear_"))
    }));
    let text = stdout(&run(&["doctor"]));
    for name in [
        "cpu",
        "level",
        "amx",
        "caches",
        "cores",
        "numa",
        "memory",
        "huge pages",
        "kernel",
    ] {
        assert!(
            text.lines().any(|line| line.starts_with(name)),
            "no {name} in\n{text}"
        );
    }
}

#[test]
fn doctor_reports_a_forced_level() {
    let forced = output(
        sparamx()
            .env("SPARAMX_ISA", "portable")
            .env("HF_TOKEN", "secret")
            .args(["doctor", "--json"]),
    );
    let report = json(&forced);
    assert_eq!(report["isa"], "portable");
    assert!(
        report["isa_reason"]
            .as_str()
            .expect("text")
            .contains("SPARAMX_ISA")
    );
    assert!(report["warnings"].to_string().contains("SPARAMX_ISA"));
    assert!(report["environment"].to_string().contains("HF_TOKEN"));
    assert!(!report.to_string().contains("secret"), "a token is shown");
    let kernels = report["kernels"].as_array().expect("a list");
    assert!(kernels.iter().all(|kernel| {
        kernel["kernel"]
            .as_str()
            .is_some_and(|name| name.ends_with("_portable"))
    }));
}

#[test]
fn a_level_that_cannot_be_forced_is_refused() {
    let unknown = output(sparamx().env("SPARAMX_ISA", "sse9").args(["doctor"]));
    fails(
        &unknown,
        1,
        &["SPARAMX_ISA", "sse9", "portable, avx2, avx512 or amx"],
    );
}

#[test]
fn doctor_counts_the_threads_asked_for() {
    let report = json(&run(&["doctor", "--json", "-t", "3"]));
    assert_eq!(report["cores"]["threads"], 3);
}

#[test]
fn the_catalog_is_listed_with_what_runs() {
    let catalog = json(&run(&["inspect", "--kernels", "--json"]));
    let kernels = catalog["kernels"].as_array().expect("a list");
    assert!(kernels.len() >= 4, "{kernels:?}");
    for kernel in kernels {
        assert_eq!(kernel["runnable"], kernel["missing"].is_null(), "{kernel}");
        assert!(
            kernel["runnable"] == true || kernel["isa"] != "portable",
            "{kernel}"
        );
    }
    let table = stdout(&run(&["inspect", "--kernels"]));
    let choices = catalog["choices"].as_array().expect("a list");
    assert_eq!(
        table.lines().count(),
        (kernels.len() + 1) + 1 + (choices.len() + 1)
    );
    for format in [
        "dense bf16",
        "sparse bf16",
        "dense int8",
        "sparse int8",
        "dense int4",
        "sparse int4",
    ] {
        let of_format: Vec<_> = choices.iter().filter(|c| c["weight"] == format).collect();
        let rows = |c: &serde_json::Value| c["rows"].as_str().expect("text").to_owned();
        assert!(rows(of_format[0]).starts_with('1'), "{of_format:?}");
        assert!(
            rows(of_format[of_format.len() - 1]).ends_with('+'),
            "{of_format:?}"
        );
        for choice in of_format {
            let kernel = kernels.iter().find(|k| k["name"] == choice["kernel"]);
            assert_eq!(kernel.expect("a kernel of the list")["runnable"], true);
            assert!(choice["reason"].as_str().is_some_and(|r| !r.is_empty()));
        }
    }

    let limited =
        output(
            sparamx()
                .env("SPARAMX_ISA", "portable")
                .args(["inspect", "--kernels", "--json"]),
        );
    for kernel in json(&limited)["kernels"].as_array().expect("a list") {
        assert_eq!(kernel["runnable"], kernel["isa"] == "portable", "{kernel}");
    }
}

#[cfg(unix)]
#[test]
fn a_reader_that_leaves_is_no_error() {
    use std::process::Stdio;
    let mut child = sparamx()
        .args(["inspect", "--kernels", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(0));
    assert!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Linux has a file that is always full.
#[cfg(target_os = "linux")]
#[test]
fn a_full_standard_output_is_named() {
    for args in [
        &["inspect", "--kernels"][..],
        &["doctor", "--json"],
        &["--help"],
    ] {
        let full = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .expect("a device");
        let done = output(sparamx().args(args).stdout(full));
        fails(&done, 1, &["standard output", "No space left"]);
    }
}
