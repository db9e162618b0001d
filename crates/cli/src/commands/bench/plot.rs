//! Speed by context or by batch, as a chart.

use super::report::{Report, Row};
use crate::chart::{Chart, Color, Panel, Point, Scale, Series};

/// Of the series of a panel, in their order; then again, dashed.
const COLORS: [Color; 4] = [Color::Gray, Color::Blue, Color::Red, Color::Yellow];

/// Tokens a second of every combination by depth, or by batch where only that varies, a panel for each kind of test; nothing
/// without rows.
pub fn svg(report: &Report) -> Option<String> {
    let rows = &report.rows;
    let by_batch = rows.iter().any(|row| row.batch != rows[0].batch)
        && rows.iter().all(|row| row.depth == rows[0].depth);
    let at = |row: &Row| if by_batch { row.batch } else { row.depth };
    let mut tests: Vec<&str> = rows.iter().map(|row| row.test.as_str()).collect();
    tests.dedup();
    let panels = tests.into_iter().map(|test| {
        let mut series: Vec<Series> = Vec::new();
        for row in rows.iter().filter(|row| row.test == test) {
            let (name, x, y) = (row.series(by_batch), at(row) as f64, row.tokens_per_s);
            let tip = format!("{name}: {y:.1} tokens a second");
            let point = Point {
                x,
                y,
                large: false,
                tip,
            };
            match series.iter_mut().find(|series| series.name == name) {
                Some(series) => series.points.push(point),
                None => series.push(Series {
                    color: COLORS[series.len() % COLORS.len()],
                    dashed: series.len() >= COLORS.len(),
                    square: false,
                    name,
                    points: vec![point],
                }),
            }
        }
        Panel {
            title: test.to_owned(),
            series,
        }
    });
    let chart = Chart {
        title: format!("Tokens a second: {}", rows.first()?.shape),
        note: report.machine(),
        x: if by_batch {
            "sequences at a time".to_owned()
        } else {
            "tokens before, in each sequence".to_owned()
        },
        y: "tokens a second".to_owned(),
        scale: Scale::FromZero,
        highest: f64::INFINITY,
        panels: panels.collect(),
    };
    chart.svg()
}
