//! The report in Markdown and as a plot.

use sparamx_engine::{KvPrecision, KvRule};

use super::results::{Results, Row};
use crate::chart::{Chart, Color, Panel, Point, Scale, Series};
use crate::output::Table;
use crate::units;

/// The largest rise of the perplexity that may go unnoticed, in percent.
const UNNOTICED: f64 = 1.0;
/// Rises above so many percent are cut off in the plot: the table has them.
const HIGHEST: f64 = 10.0;
/// The sparsity with the large marks.
const MARKED: f64 = 0.5;

/// The whole of it.
pub fn markdown(results: &Results) -> String {
    let inputs = &results.inputs;
    let files: Vec<String> = inputs
        .texts
        .iter()
        .map(|file| format!("{} ({})", file.name, units::bytes(file.bytes)))
        .collect();
    let mut text = format!(
        "# KV cache: quality by bytes: {}\n\n- Texts: {}\n- Windows of {} tokens, the second half scored: {} tokens\n\
         - Dense: at least the last {} tokens, and the first {}\n\n![Rise of the perplexity by bits](kv-quality.svg)\n\n",
        inputs.model,
        files.join(", "),
        inputs.ctx,
        results.dense().map_or(0, |row| row.tokens),
        inputs.window,
        inputs.sinks
    );
    for line in summary(results) {
        text.push_str(&format!("- {line}\n"));
    }
    text.push_str(
        "\n## All settings\n\nBits an element of an old page takes, masks, scales and padding included; dense bf16 has 16. The rise is \
         over dense bf16.\n\n",
    );
    let mut table = Table::new(&[
        "rule",
        "type",
        "zeros, keys",
        "zeros, values",
        "bits",
        "perplexity",
        "rise",
    ]);
    for row in &results.rows {
        let setting = &row.setting;
        table.row(vec![
            setting
                .rule
                .map_or_else(|| "dense".to_owned(), |rule| rule.to_string()),
            setting.precision.to_string(),
            units::percent(setting.sparsity.keys),
            units::percent(setting.sparsity.values),
            format!("{:.2}", row.bits),
            format!("{:.4}", row.perplexity),
            rise(results, row).map_or_else(String::new, |rise| format!("{rise:+.2} %")),
        ]);
    }
    text + &table.markdown()
}

/// How much the perplexity is above that of dense bf16, in percent.
fn rise(results: &Results, row: &Row) -> Option<f64> {
    let dense = results.dense()?;
    Some((row.perplexity / dense.perplexity - 1.0) * 100.0)
}

/// For each kind of numbers, the fewest bits that go unnoticed, by rule.
pub fn summary(results: &Results) -> Vec<String> {
    let mut lines = Vec::new();
    for precision in [KvPrecision::Bf16, KvPrecision::Int8] {
        let of_kind = |row: &&Row| row.setting.precision == precision;
        for rule in [
            None,
            Some(KvRule::Magnitude),
            Some(KvRule::Token),
            Some(KvRule::Query),
        ] {
            let rows = results.rows.iter().filter(of_kind);
            let unnoticed = rows
                .filter(|row| row.setting.rule == rule)
                .filter(|row| rise(results, row).is_some_and(|rise| rise < UNNOTICED));
            if let Some(row) = unnoticed.min_by(|a, b| a.bits.total_cmp(&b.bits)) {
                lines.push(format!(
                    "fewest bits under {UNNOTICED} %: {}: {:.2} bits, {:+.2} %",
                    row.setting,
                    row.bits,
                    rise(results, row).unwrap_or(0.0)
                ));
            }
        }
    }
    lines
}

/// The plot: the rise by bits, a panel each for keys, values and both. Nothing without dense bf16.
pub fn svg(results: &Results) -> Option<String> {
    let dense = results.dense()?;
    let panels = [
        panel(results, dense, "keys pruned", |row| {
            row.setting.sparsity.values == 0.0
        }),
        panel(results, dense, "values pruned", |row| {
            row.setting.sparsity.keys == 0.0
        }),
        panel(results, dense, "keys and values pruned alike", |row| {
            row.setting.sparsity.keys == row.setting.sparsity.values
        }),
    ];
    let chart = Chart {
        title: format!(
            "{}: rise of the perplexity, in percent, by bits of an element of the KV cache",
            results.inputs.model
        ),
        note: "large marks: 50 % zeros; lower left is better".to_owned(),
        x: "bits of an element of an old page".to_owned(),
        y: "rise of the perplexity, %".to_owned(),
        scale: Scale::Linear,
        highest: HIGHEST,
        panels: panels.into(),
    };
    chart.svg()
}

fn panel(results: &Results, dense: &Row, title: &str, of_panel: fn(&Row) -> bool) -> Panel {
    let rules = [
        (KvRule::Magnitude, Color::Yellow),
        (KvRule::Token, Color::Blue),
        (KvRule::Query, Color::Red),
    ];
    let series = |name: String, color, dashed, square, of_series: &dyn Fn(&Row) -> bool| {
        let mut rows: Vec<&Row> = results.rows.iter().filter(|row| of_series(row)).collect();
        rows.sort_by(|a, b| b.bits.total_cmp(&a.bits));
        Series {
            name,
            color,
            dashed,
            square,
            points: rows.into_iter().map(|row| point(dense, row)).collect(),
        }
    };
    let mut all = vec![series(
        "dense bf16, int8".to_owned(),
        Color::Gray,
        false,
        true,
        &|row| row.setting.rule.is_none(),
    )];
    for (rule, color) in rules {
        for precision in [KvPrecision::Bf16, KvPrecision::Int8] {
            let of_series = |row: &Row| {
                let setting = &row.setting;
                of_panel(row) && setting.rule == Some(rule) && setting.precision == precision
            };
            let drawn = series(
                format!("{rule}, {precision}"),
                color,
                precision == KvPrecision::Int8,
                false,
                &of_series,
            );
            if !drawn.points.is_empty() {
                all.push(drawn);
            }
        }
    }
    Panel {
        title: title.to_owned(),
        series: all,
    }
}

fn point(dense: &Row, row: &Row) -> Point {
    let rise = (row.perplexity / dense.perplexity - 1.0) * 100.0;
    let sparsity = row.setting.sparsity;
    Point {
        x: row.bits,
        y: rise,
        large: sparsity.keys.max(sparsity.values) == MARKED,
        tip: format!("{}: {:.2} bits, {rise:+.2} %", row.setting, row.bits),
    }
}
