//! The report in Markdown.

use sparamx_format::ElementKind;

use super::results::{Layers, Results, Row, Tensor};
use crate::output::Table;
use crate::units;

/// The sparsity that the summary is about.
const SUMMARY: f64 = 0.5;
/// Errors closer than this, relatively, are equal: they are rounded to bf16 weights, each in its own way.
const EQUAL: f64 = 1e-3;

/// The whole of it.
pub fn markdown(results: &Results) -> String {
    let mut text = format!("# Quality by bytes: {}\n\n", results.inputs.model);
    for line in results.inputs.lines() {
        text.push_str(&format!("- {line}\n"));
    }
    text.push_str("\n![Perplexity by bytes of weights](quality.svg)\n");
    let summary = summary(results);
    if !summary.is_empty() {
        text.push_str(&format!("\n## At {} %\n\n", SUMMARY * 100.0));
        for line in summary {
            text.push_str(&format!("- {line}\n"));
        }
    }
    text.push_str(
        "\n## All settings\n\n\
         Bytes are those of all weights, embedding and output head included, which stay bf16. The rise is over dense bf16. The \
         rival is the best dense model of no more bytes. The error is that of the outputs of linear layers on the calibration \
         text, in the mean of the tensors; without refitting against what the layer would do with the inputs it gets, with \
         it against what it does in the dense model.\n\n",
    );
    text.push_str(&settings(results));
    if !results.layers.is_empty() {
        text.push_str(
            "\n## Errors of single layers\n\n\
             Each linear layer pruned by itself, to bf16, on the inputs that it has in the dense model on the calibration text: \
             `||X (W' - W)^T|| / ||X W^T||`, in the mean of the tensors. Magnitude takes the smallest of a tensor; by row, as Wanda does, \
             it compares like with like. The last columns count tensors.\n\n",
        );
        text.push_str(&layers(&results.layers));
    }
    text
}

/// What the figures come to, as far as they are there.
pub fn summary(results: &Results) -> Vec<String> {
    let Some(dense) = results.dense() else {
        return Vec::new();
    };
    let mut lines = Vec::from_iter(best_of_bf16(results, dense));
    lines.extend(on_top_of_best(results));
    lines.extend(rivals(results));
    lines
}

/// The dense model, magnitude, and the best way to prune to bf16.
fn best_of_bf16(results: &Results, dense: &Row) -> Option<String> {
    let magnitude = results.magnitude(SUMMARY)?;
    let best = results.best(SUMMARY, ElementKind::Bf16)?;
    let rise = |row: &Row| row.perplexity - dense.perplexity;
    let by = |row: &Row, share: String| {
        let how = row.setting.how();
        format!(
            "; {:.3} by {how} ({:+.3}{share})",
            row.perplexity,
            rise(row)
        )
    };
    let mut line = format!("perplexity {:.3} dense", dense.perplexity);
    line.push_str(&by(magnitude, String::new()));
    if best.setting != magnitude.setting {
        let share = if rise(magnitude) > 0.0 {
            let share = rise(best) / rise(magnitude);
            format!(", {} of the rise", units::percent(share))
        } else {
            // A share of a rise that is none says nothing.
            String::new()
        };
        line.push_str(&by(best, share));
    }
    Some(line)
}

/// What int8 and int4 add to the best way to prune.
fn on_top_of_best(results: &Results) -> Vec<String> {
    let Some(best) = results.best(SUMMARY, ElementKind::Bf16) else {
        return Vec::new();
    };
    let row = |weights: ElementKind| {
        results.rows.iter().find(|row| {
            row.setting.way == best.setting.way
                && row.setting.sparsity == SUMMARY
                && row.setting.weights == weights
        })
    };
    let line = |row: &Row| {
        format!(
            "{} on top of {}: {:.3} ({:+.2} %)",
            row.setting.weights,
            best.setting.how(),
            row.perplexity,
            (row.perplexity / best.perplexity - 1.0) * 100.0
        )
    };
    let rows = [ElementKind::Int8, ElementKind::Int4]
        .into_iter()
        .filter_map(row);
    rows.map(line).collect()
}

/// The best pruned model of each kind of weights beside the best dense one of no more bytes.
fn rivals(results: &Results) -> Vec<String> {
    let line = |weights: ElementKind| {
        let row = results.best(SUMMARY, weights)?;
        let rival = results.dense_rival(row.bytes)?;
        Some(format!(
            "{}: {}, perplexity {:.3}; {} in no more bytes: {}, perplexity {:.3}",
            row.setting,
            units::bytes(row.bytes),
            row.perplexity,
            rival.setting,
            units::bytes(rival.bytes),
            rival.perplexity
        ))
    };
    ElementKind::ALL.into_iter().filter_map(line).collect()
}

fn settings(results: &Results) -> String {
    let mut head = vec![
        "weights".to_owned(),
        "sparsity".to_owned(),
        "method".to_owned(),
        "bytes".to_owned(),
        "of bf16".to_owned(),
        "perplexity".to_owned(),
        "rise".to_owned(),
        "rival".to_owned(),
        "error".to_owned(),
    ];
    let tasks = results.rows.first().map(|row| &row.accuracies[..]);
    for accuracy in tasks.unwrap_or_default() {
        let norm = accuracy.acc_norm.map_or("acc", |_| "acc_norm");
        head.push(format!("{} {norm}", accuracy.task));
    }
    let mut table = Table::new(&head.iter().map(String::as_str).collect::<Vec<_>>());
    let mut rows: Vec<&Row> = results.rows.iter().collect();
    let order = |row: &Row| {
        let way = row.setting.way.map(|way| (way.method as u8, way.refit));
        (row.setting.weights as u8, row.setting.sparsity, way)
    };
    rows.sort_by(|a, b| order(a).partial_cmp(&order(b)).expect("no sparsity is NaN"));
    let dense = results.dense();
    let of_dense = |value: Option<f64>| value.map_or("-".to_owned(), units::percent);
    for row in rows {
        let rival = results.dense_rival(row.bytes);
        let rival = rival.filter(|_| row.setting.way.is_some());
        let mut cells = vec![
            row.setting.weights.to_string(),
            row.setting.sparsity.to_string(),
            row.setting.how(),
            units::bytes(row.bytes),
            of_dense(dense.map(|dense| row.bytes as f64 / dense.bytes as f64)),
            format!("{:.3}", row.perplexity),
            of_dense(dense.map(|dense| row.perplexity / dense.perplexity - 1.0)),
            rival.map_or("-".to_owned(), |rival| format!("{:.3}", rival.perplexity)),
            row.layer_error
                .map_or("-".to_owned(), |error| format!("{error:.4}")),
        ];
        for accuracy in &row.accuracies {
            let (value, error) = match accuracy.acc_norm {
                Some(norm) => (norm, accuracy.acc_norm_stderr),
                None => (accuracy.acc, accuracy.acc_stderr),
            };
            let error = error.map(|error| format!(" ± {error:.3}"));
            cells.push(format!("{value:.3}{}", error.unwrap_or_default()));
        }
        table.row(cells);
    }
    table.markdown()
}

/// Mean errors, and how often a method that should be no better than another is.
fn layers(all: &[Layers]) -> String {
    let mut table = Table::new(&[
        "sparsity",
        "magnitude",
        "magnitude by row",
        "wanda",
        "sparsegpt",
        "tensors",
        "wanda above magnitude by row",
        "sparsegpt above wanda",
    ]);
    for Layers { sparsity, tensors } in all {
        let count = tensors.len();
        // Nothing where a method was not asked for.
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let mean = |error: fn(&Tensor) -> Option<f64>| {
            let sum: Option<f64> = tensors.iter().map(error).sum();
            or_dash(sum.map(|sum| format!("{:.4}", sum / count as f64)))
        };
        let above = |pair: fn(&Tensor) -> Option<(f64, f64)>| {
            let pairs: Option<Vec<(f64, f64)>> = tensors.iter().map(pair).collect();
            let above = |(one, other): &&(f64, f64)| *one > other * (1.0 + EQUAL);
            or_dash(pairs.map(|pairs| pairs.iter().filter(above).count().to_string()))
        };
        table.row(vec![
            sparsity.to_string(),
            mean(|tensor| Some(tensor.magnitude)),
            mean(|tensor| Some(tensor.magnitude_by_row)),
            mean(|tensor| tensor.wanda),
            mean(|tensor| tensor.sparsegpt),
            count.to_string(),
            above(|tensor| Some((tensor.wanda?, tensor.magnitude_by_row))),
            above(|tensor| Some((tensor.sparsegpt?, tensor.wanda?))),
        ]);
    }
    table.markdown()
}
