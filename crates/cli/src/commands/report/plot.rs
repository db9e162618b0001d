//! The plot: perplexity by bytes of weights, a panel for each kind of numbers, the dense models in all of them.

use std::fmt::Write as _;

use super::results::{Results, Row};
use super::setting::{Method, Way, Weights};
use crate::units;

const PANEL_WIDTH: f64 = 320.0;
const PANEL_HEIGHT: f64 = 300.0;
const GAP: f64 = 24.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
/// Room for the legend and the titles of the panels.
const TOP: f64 = 92.0;
const BOTTOM: f64 = 54.0;
/// Perplexities above so many times that of the dense model are cut off: the table has them.
const HIGHEST: f64 = 10.0;
/// The sparsity with the large marks.
const MARKED: f64 = 0.5;
/// Room around the points, as a share of the axis.
const MARGIN: f64 = 0.05;

/// Colors for light pages, and others for dark ones. Without variables, which some viewers do not know.
const STYLE: &str = "
.page, rect.point { fill: #ffffff; }
text { fill: #24292f; font: 12px system-ui, sans-serif; }
.title { font-weight: 600; }
.grid { stroke: #d8dee4; }
.line { fill: none; stroke-width: 1.8; }
circle, rect.point { stroke-width: 1.8; }
.plain { stroke-dasharray: 5 4; }
.dense { stroke: #6e7781; }
.magnitude { stroke: #bf8700; } circle.magnitude { fill: #bf8700; }
.wanda { stroke: #0969da; } circle.wanda { fill: #0969da; }
.sparsegpt { stroke: #cf222e; } circle.sparsegpt { fill: #cf222e; }
circle.plain { fill: #ffffff; stroke-dasharray: none; }
@media (prefers-color-scheme: dark) {
  .page, rect.point { fill: #0d1117; }
  text { fill: #c9d1d9; }
  .grid { stroke: #30363d; }
  .dense { stroke: #8b949e; }
  .magnitude { stroke: #e3b341; } circle.magnitude { fill: #e3b341; }
  .wanda { stroke: #58a6ff; } circle.wanda { fill: #58a6ff; }
  .sparsegpt { stroke: #ff7b72; } circle.sparsegpt { fill: #ff7b72; }
  circle.plain { fill: #0d1117; }
}
";

/// The plot as SVG; nothing without a dense bf16 row, which gives the scale.
pub fn svg(results: &Results) -> Option<String> {
    let dense = results.dense()?;
    let kinds = [Weights::Bf16, Weights::Int8, Weights::Int4];
    let of_kind = |weights: Weights| pruned(results, weights);
    let kinds: Vec<Weights> = kinds
        .into_iter()
        .filter(|&weights| !of_kind(weights).is_empty())
        .collect();
    if kinds.is_empty() {
        return None;
    }
    let axes = Axes::new(results, dense);
    let panels = kinds.len() as f64;
    let width = LEFT + panels * PANEL_WIDTH + (panels - 1.0) * GAP + RIGHT;
    let height = TOP + PANEL_HEIGHT + BOTTOM;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         role=\"img\" aria-label=\"Perplexity by bytes of weights of {}\">\n<style>{STYLE}</style>\n\
         <rect width=\"{width}\" height=\"{height}\" class=\"page\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" class=\"title\">{}: perplexity by bytes of weights</text>\n",
        escape(&results.inputs.model),
        escape(&results.inputs.model)
    );
    legend(&mut out, results);
    for (index, &weights) in kinds.iter().enumerate() {
        let left = LEFT + index as f64 * (PANEL_WIDTH + GAP);
        let panel = Panel { axes: &axes, left };
        panel.frame(&mut out, weights, index == 0);
        panel.dense(&mut out, results);
        for (way, rows) in of_kind(weights) {
            panel.pruned(&mut out, way, &rows);
        }
        out.push_str("</g>\n");
    }
    let middle = LEFT + (width - LEFT - RIGHT) / 2.0;
    let _ = writeln!(
        out,
        "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{} of weights, all tensors</text>\n</svg>",
        height - 12.0,
        axes.unit
    );
    Some(out)
}

/// Rows of one kind of numbers, by way, each by bytes.
fn pruned(results: &Results, weights: Weights) -> Vec<(Way, Vec<&Row>)> {
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
    for (_, rows) in &mut ways {
        rows.sort_by_key(|row| row.bytes);
    }
    ways
}

/// Dense rows, the best of each number of bytes.
fn dense_rows(results: &Results) -> Vec<&Row> {
    let dense = results.rows.iter().filter(|row| row.setting.way.is_none());
    let mut rows: Vec<&Row> = dense.collect();
    rows.sort_by(|a, b| (a.bytes.cmp(&b.bytes)).then(a.perplexity.total_cmp(&b.perplexity)));
    rows.dedup_by_key(|row| row.bytes);
    rows
}

/// What is drawn where: bytes to the right, the logarithm of the perplexity upwards.
struct Axes {
    /// First and last.
    bytes: (f64, f64),
    /// Logarithms of lowest and highest.
    perplexity: (f64, f64),
    /// Bytes of a unit.
    unit_bytes: f64,
    unit: &'static str,
}

impl Axes {
    fn new(results: &Results, dense: &Row) -> Self {
        let (mut bytes, mut logs) = ((f64::MAX, 0f64), (f64::MAX, f64::MIN));
        for row in &results.rows {
            let size = row.bytes as f64;
            bytes = (bytes.0.min(size), bytes.1.max(size));
            let log = row.perplexity.min(dense.perplexity * HIGHEST).ln();
            logs = (logs.0.min(log), logs.1.max(log));
        }
        let widen = |(low, high): (f64, f64)| {
            let margin = MARGIN * (high - low).max(1e-3);
            (low - margin, high + margin)
        };
        let units = [(1024.0, "KiB"), (1048576.0, "MiB"), (1073741824.0, "GiB")];
        let fits = |&(size, _): &(f64, &str)| bytes.1 >= 2.0 * size;
        let (unit_bytes, unit) = units.into_iter().rfind(fits).unwrap_or(units[0]);
        Axes {
            bytes: widen(bytes),
            perplexity: widen(logs),
            unit_bytes,
            unit,
        }
    }

    fn x(&self, bytes: f64) -> f64 {
        let (first, last) = self.bytes;
        (bytes - first) / (last - first) * PANEL_WIDTH
    }

    fn y(&self, perplexity: f64) -> f64 {
        let (low, high) = self.perplexity;
        TOP + (high - perplexity.ln()) / (high - low) * PANEL_HEIGHT
    }

    /// About five round numbers of units.
    fn byte_ticks(&self) -> Vec<f64> {
        let (first, last) = (
            self.bytes.0 / self.unit_bytes,
            self.bytes.1 / self.unit_bytes,
        );
        let rough = (last - first) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
        let step = step
            .into_iter()
            .find(|&step| step >= rough)
            .unwrap_or(rough);
        let from = (first / step).ceil() as i64;
        (from..)
            .map(|index| index as f64 * step)
            .take_while(|&tick| tick <= last)
            .collect()
    }

    /// Round numbers, as many as suit a logarithmic axis of this length.
    fn perplexity_ticks(&self) -> Vec<f64> {
        let (low, high) = (self.perplexity.0.exp(), self.perplexity.1.exp());
        let series: &[f64] = match high / low {
            ratio if ratio > 30.0 => &[1.0],
            ratio if ratio > 6.0 => &[1.0, 2.0, 5.0],
            ratio if ratio > 2.0 => &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
            _ => &[
                1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0, 2.2, 2.4, 2.6, 2.8, 3.0, 3.2, 3.4,
                3.6, 3.8, 4.0, 4.25, 4.5, 4.75, 5.0, 5.5, 6.0, 6.5, 7.0, 7.5, 8.0, 8.5, 9.0, 9.5,
            ],
        };
        let powers = (low.log10().floor() as i32)..=(high.log10().ceil() as i32);
        let all = powers.flat_map(|power| series.iter().map(move |s| s * 10f64.powi(power)));
        all.filter(|tick| (low..=high).contains(tick)).collect()
    }
}

/// One set of axes, at its place.
struct Panel<'a> {
    axes: &'a Axes,
    left: f64,
}

impl Panel<'_> {
    fn x(&self, row: &Row) -> f64 {
        self.left + self.axes.x(row.bytes as f64)
    }

    fn frame(&self, out: &mut String, weights: Weights, labels: bool) {
        let (left, right, bottom) = (self.left, self.left + PANEL_WIDTH, TOP + PANEL_HEIGHT);
        let _ = writeln!(
            out,
            "<text x=\"{left}\" y=\"{}\" class=\"title\">pruned, {weights}</text>",
            TOP - 10.0
        );
        for tick in self.axes.perplexity_ticks() {
            let y = self.axes.y(tick);
            let _ = writeln!(
                out,
                "<line x1=\"{left}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\" class=\"grid\"/>"
            );
            if labels {
                let _ = writeln!(
                    out,
                    "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{tick}</text>",
                    left - 8.0,
                    y + 4.0,
                    tick = short(tick)
                );
            }
        }
        for tick in self.axes.byte_ticks() {
            let x = left + self.axes.x(tick * self.axes.unit_bytes);
            let _ = writeln!(
                out,
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\" class=\"grid\"/>\
                 <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{tick}</text>",
                bottom + 18.0,
                tick = short(tick)
            );
        }
        let _ = writeln!(
            out,
            "<clipPath id=\"{weights}\"><rect x=\"{left}\" y=\"{TOP}\" width=\"{PANEL_WIDTH}\" height=\"{PANEL_HEIGHT}\"/></clipPath>\n\
             <g clip-path=\"url(#{weights})\">"
        );
    }

    fn dense(&self, out: &mut String, results: &Results) {
        let rows = dense_rows(results);
        self.line(out, &rows, "dense");
        for row in rows {
            let (x, y) = (self.x(row), self.axes.y(row.perplexity));
            let _ = writeln!(
                out,
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"9\" height=\"9\" class=\"point dense\">{}</rect>",
                x - 4.5,
                y - 4.5,
                tip(row)
            );
        }
    }

    fn pruned(&self, out: &mut String, way: Way, rows: &[&Row]) {
        let class = class(way);
        self.line(out, rows, &class);
        for row in rows {
            let radius = if row.setting.sparsity == MARKED {
                5.5
            } else {
                3.5
            };
            let _ = writeln!(
                out,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius}\" class=\"{class}\">{}</circle>",
                self.x(row),
                self.axes.y(row.perplexity),
                tip(row)
            );
        }
    }

    fn line(&self, out: &mut String, rows: &[&Row], class: &str) {
        let point = |row: &&Row| format!("{:.1},{:.1}", self.x(row), self.axes.y(row.perplexity));
        let points: Vec<String> = rows.iter().map(point).collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" class=\"line {class}\"/>",
            points.join(" ")
        );
    }
}

/// What lines mean, in a row under the title.
fn legend(out: &mut String, results: &Results) {
    let mut ways: Vec<Way> = results
        .rows
        .iter()
        .filter_map(|row| row.setting.way)
        .collect();
    ways.sort_by_key(|way| (way.method as u8, way.refit));
    ways.dedup();
    let entry = |way: Way| (class(way), way.to_string());
    let mut entries: Vec<(String, String)> = ways.into_iter().map(entry).collect();
    entries.push(("dense".to_owned(), "dense bf16, int8, int4".to_owned()));
    let (mut x, y) = (LEFT, 44.0);
    for (class, name) in entries {
        let _ = writeln!(
            out,
            "<line x1=\"{x}\" x2=\"{}\" y1=\"{}\" y2=\"{}\" class=\"line {class}\"/>\
             <text x=\"{}\" y=\"{y}\">{name}</text>",
            x + 26.0,
            y - 4.0,
            y - 4.0,
            x + 32.0
        );
        x += 48.0 + 6.6 * name.len() as f64;
    }
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"62\">large marks: 50 % zeros; lower left is better</text>"
    );
}

fn color(method: Method) -> &'static str {
    match method {
        Method::Magnitude => "magnitude",
        Method::Wanda => "wanda",
        Method::SparseGpt => "sparsegpt",
    }
}

fn class(way: Way) -> String {
    let plain = if way.refit { "" } else { " plain" };
    format!("{}{plain}", color(way.method))
}

fn tip(row: &Row) -> String {
    let sparsity = match row.setting.way {
        Some(_) => format!(", {}", units::percent(row.setting.sparsity)),
        None => String::new(),
    };
    format!(
        "<title>{} {}{sparsity}: {}, perplexity {:.3}</title>",
        row.setting.how(),
        row.setting.weights,
        units::bytes(row.bytes),
        row.perplexity
    )
}

/// A number with no more digits than it needs.
fn short(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('"', "&quot;")
}
