//! The plot: perplexity by bytes of weights, a panel for each kind of numbers, the dense models in all of them.

use sparamx_compress::Method;
use sparamx_format::ElementKind;

use super::results::{Results, Row};
use super::setting::Way;
use crate::chart::{Chart, Color, Panel, Point, Scale, Series};
use crate::units;

/// Perplexities above so many times that of the dense model are cut off: the table has them.
const HIGHEST: f64 = 10.0;
/// The sparsity with the large marks.
const MARKED: f64 = 0.5;
/// Binary units with their bytes.
const UNITS: [(f64, &str); 3] = [(1024.0, "KiB"), (1048576.0, "MiB"), (1073741824.0, "GiB")];

/// The plot as SVG; nothing without a dense bf16 row, which gives the scale, and a pruned one.
pub fn svg(results: &Results) -> Option<String> {
    let dense = results.dense()?;
    let most = results.rows.iter().map(|row| row.bytes).max()? as f64;
    let (unit_bytes, unit) = UNITS
        .into_iter()
        .rfind(|&(size, _)| most >= 2.0 * size)
        .unwrap_or(UNITS[0]);
    let kinds = [ElementKind::Bf16, ElementKind::Int8, ElementKind::Int4];
    let panels: Vec<Panel> = kinds
        .into_iter()
        .filter_map(|weights| panel(results, weights, unit_bytes))
        .collect();
    let chart = Chart {
        title: format!("{}: perplexity by bytes of weights", results.inputs.model),
        note: "large marks: 50 % zeros; lower left is better".to_owned(),
        x: format!("size of all weights, {unit}"),
        y: "perplexity".to_owned(),
        scale: Scale::Logarithmic,
        highest: dense.perplexity * HIGHEST,
        panels,
    };
    chart.svg()
}

/// The rows of one kind of numbers, with the dense ones; nothing if none of them is pruned.
fn panel(results: &Results, weights: ElementKind, unit_bytes: f64) -> Option<Panel> {
    let mut ways: Vec<(Way, Vec<&Row>)> = Vec::new();
    for row in &results.rows {
        let Some(way) = row.setting.way.filter(|_| row.setting.weights == weights) else {
            continue;
        };
        match ways.iter_mut().find(|(known, _)| *known == way) {
            Some((_, rows)) => rows.push(row),
            None => ways.push((way, vec![row])),
        }
    }
    if ways.is_empty() {
        return None;
    }
    ways.sort_by_key(|(way, _)| (way.method as u8, way.refit));
    let points = |rows: &[&Row]| rows.iter().map(|row| point(row, unit_bytes)).collect();
    let mut series = vec![Series {
        name: "dense bf16, int8, int4".to_owned(),
        color: Color::Gray,
        dashed: false,
        square: true,
        points: points(&dense_rows(results)),
    }];
    for (way, mut rows) in ways {
        rows.sort_by_key(|row| row.bytes);
        series.push(Series {
            name: way.to_string(),
            color: color(way.method),
            dashed: !way.refit,
            square: false,
            points: points(&rows),
        });
    }
    Some(Panel {
        title: format!("pruned, weights in {weights}"),
        series,
    })
}

/// Dense rows, the best of each number of bytes.
fn dense_rows(results: &Results) -> Vec<&Row> {
    let dense = results.rows.iter().filter(|row| row.setting.way.is_none());
    let mut rows: Vec<&Row> = dense.collect();
    rows.sort_by(|a, b| (a.bytes.cmp(&b.bytes)).then(a.perplexity.total_cmp(&b.perplexity)));
    rows.dedup_by_key(|row| row.bytes);
    rows
}

fn color(method: Method) -> Color {
    match method {
        Method::Magnitude => Color::Yellow,
        Method::Wanda => Color::Blue,
        Method::SparseGpt => Color::Red,
    }
}

fn point(row: &Row, unit_bytes: f64) -> Point {
    let sparsity = match row.setting.way {
        Some(_) => format!(", {}", units::percent(row.setting.sparsity)),
        None => String::new(),
    };
    Point {
        x: row.bytes as f64 / unit_bytes,
        y: row.perplexity,
        large: row.setting.sparsity == MARKED,
        tip: format!(
            "{} {}{sparsity}: {}, perplexity {:.3}",
            row.setting.how(),
            row.setting.weights,
            units::bytes(row.bytes),
            row.perplexity
        ),
    }
}
