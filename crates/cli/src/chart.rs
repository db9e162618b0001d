//! Charts as SVG: lines through points in panels side by side, on the same axes.

use std::fmt::Write as _;

const PANEL_WIDTH: f64 = 320.0;
const PANEL_HEIGHT: f64 = 300.0;
const GAP: f64 = 24.0;
/// Room for the title of the vertical axis and its numbers.
const LEFT: f64 = 76.0;
const RIGHT: f64 = 16.0;
/// Room for the legend and the titles of the panels.
const TOP: f64 = 92.0;
const BOTTOM: f64 = 54.0;
/// About that of a character of the text.
const CHAR_WIDTH: f64 = 6.6;
/// Room around the points, as a share of the axis.
const MARGIN: f64 = 0.05;
/// Between two numbers of an axis, at least, so that none touches the next.
const TICK_GAP_X: f64 = 44.0;
const TICK_GAP_Y: f64 = 24.0;
/// Of up to so many places along the horizontal axis each gets a number.
const FEW: usize = 8;

/// Colors for light pages, and others for dark ones. Without variables, which some viewers do not know.
const STYLE: &str = "
.page, rect.point { fill: #ffffff; }
text { fill: #24292f; font: 12px system-ui, sans-serif; }
.title { font-weight: 600; }
.grid { stroke: #d8dee4; }
.line { fill: none; stroke-width: 1.8; }
circle, rect.point, path { stroke-width: 1.8; }
.dashed { stroke-dasharray: 5 4; }
.gray { stroke: #6e7781; } circle.gray, path.gray { fill: #6e7781; }
.yellow { stroke: #bf8700; } circle.yellow, path.yellow { fill: #bf8700; }
.blue { stroke: #0969da; } circle.blue, path.blue { fill: #0969da; }
.red { stroke: #cf222e; } circle.red, path.red { fill: #cf222e; }
circle.dashed, path.dashed { fill: #ffffff; stroke-dasharray: none; }
@media (prefers-color-scheme: dark) {
  .page, rect.point { fill: #0d1117; }
  text { fill: #c9d1d9; }
  .grid { stroke: #30363d; }
  .gray { stroke: #8b949e; } circle.gray, path.gray { fill: #8b949e; }
  .yellow { stroke: #e3b341; } circle.yellow, path.yellow { fill: #e3b341; }
  .blue { stroke: #58a6ff; } circle.blue, path.blue { fill: #58a6ff; }
  .red { stroke: #ff7b72; } circle.red, path.red { fill: #ff7b72; }
  circle.dashed, path.dashed { fill: #0d1117; }
}
";

/// A chart.
pub struct Chart {
    /// Over all of it; also the text for readers who cannot see it.
    pub title: String,
    /// How to read it, in a line under the legend.
    pub note: String,
    /// What the horizontal axis shows, with the unit.
    pub x: String,
    /// What the vertical axis shows, with the unit.
    pub y: String,
    /// How the vertical axis grows.
    pub scale: Scale,
    /// Points above are cut off: a triangle at the upper edge stands for each.
    pub highest: f64,
    /// From left to right.
    pub panels: Vec<Panel>,
}

/// How an axis grows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Equal steps are equal differences.
    Linear,
    /// The same, and it begins at 0: for what is compared by its ratio.
    FromZero,
    /// Equal steps are equal ratios; for values above 0.
    Logarithmic,
}

/// One set of axes.
pub struct Panel {
    /// Over it.
    pub title: String,
    /// What is drawn, the first at the back.
    pub series: Vec<Series>,
}

/// Points of one kind, joined in their order.
#[derive(Clone)]
pub struct Series {
    /// In the legend, where series of the same name in several panels stand once.
    pub name: String,
    /// The color.
    pub color: Color,
    /// Whether the line is dashed and the marks hollow.
    pub dashed: bool,
    /// Whether the marks are squares.
    pub square: bool,
    /// The points.
    pub points: Vec<Point>,
}

/// Colors that can be told apart on light and dark pages.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Color {
    Gray,
    Yellow,
    Blue,
    Red,
}

/// A point.
#[derive(Clone)]
pub struct Point {
    /// Along the horizontal axis.
    pub x: f64,
    /// Along the vertical axis.
    pub y: f64,
    /// Whether its mark is larger.
    pub large: bool,
    /// What is said of it where the pointer is on it.
    pub tip: String,
}

impl Color {
    fn class(self) -> &'static str {
        match self {
            Color::Gray => "gray",
            Color::Yellow => "yellow",
            Color::Blue => "blue",
            Color::Red => "red",
        }
    }
}

impl Series {
    fn class(&self) -> String {
        let dashed = if self.dashed { " dashed" } else { "" };
        format!("{}{dashed}", self.color.class())
    }

    /// The mark of a point.
    fn mark(&self, x: f64, y: f64, radius: f64, tip: &str) -> String {
        let (class, tip) = (self.class(), escape(tip));
        let tip = if tip.is_empty() {
            String::new()
        } else {
            format!("<title>{tip}</title>")
        };
        if self.square {
            format!(
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"9\" height=\"9\" class=\"point {class}\">{tip}</rect>",
                x - 4.5,
                y - 4.5
            )
        } else {
            format!(
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" class=\"{class}\">{tip}</circle>"
            )
        }
    }
}

impl Chart {
    /// The chart as SVG; nothing if it has no point.
    pub fn svg(&self) -> Option<String> {
        let axes = Axes::of(self)?;
        let panels = self.panels.len() as f64;
        let (legend, legend_end) = self.legend();
        let panels_end = LEFT + panels * PANEL_WIDTH + (panels - 1.0) * GAP;
        let width = (panels_end.max(legend_end) + RIGHT).round();
        let height = TOP + PANEL_HEIGHT + BOTTOM;
        let title = escape(&self.title);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
             role=\"img\" aria-label=\"{title}\">\n<style>{STYLE}</style>\n\
             <rect width=\"{width}\" height=\"{height}\" class=\"page\"/>\n\
             <text x=\"{LEFT}\" y=\"20\" class=\"title\">{title}</text>\n"
        );
        out.push_str(&legend);
        for (index, panel) in self.panels.iter().enumerate() {
            let left = LEFT + index as f64 * (PANEL_WIDTH + GAP);
            axes.frame(&mut out, &panel.title, index, left);
            for series in &panel.series {
                axes.draw(&mut out, series, left);
            }
            out.push_str("</g>\n");
        }
        let (middle, center) = ((LEFT + panels_end) / 2.0, TOP + PANEL_HEIGHT / 2.0);
        let logarithmic = match self.scale {
            Scale::Logarithmic => " (log scale)",
            Scale::Linear | Scale::FromZero => "",
        };
        let _ = writeln!(
            out,
            "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n\
             <text transform=\"translate(20 {center}) rotate(-90)\" text-anchor=\"middle\">{}{logarithmic}</text>\n</svg>",
            height - 12.0,
            escape(&self.x),
            escape(&self.y)
        );
        Some(out)
    }

    /// What lines mean, in a row under the title, and the note; and how far they reach to the right.
    fn legend(&self) -> (String, f64) {
        let mut out = String::new();
        let mut known: Vec<&Series> = Vec::new();
        for series in self.panels.iter().flat_map(|panel| &panel.series) {
            if known.iter().all(|other| other.name != series.name) {
                known.push(series);
            }
        }
        let (mut x, y) = (LEFT, 44.0);
        for series in known {
            let _ = writeln!(
                out,
                "<line x1=\"{x}\" x2=\"{}\" y1=\"{}\" y2=\"{}\" class=\"line {}\"/><text x=\"{}\" y=\"{y}\">{}</text>",
                x + 26.0,
                y - 4.0,
                y - 4.0,
                series.class(),
                x + 32.0,
                escape(&series.name)
            );
            let _ = writeln!(out, "{}", series.mark(x + 13.0, y - 4.0, 3.5, ""));
            x += 48.0 + CHAR_WIDTH * series.name.len() as f64;
        }
        let mut points = known_points(&self.panels);
        let cut = if points.any(|point| point.y > self.highest) {
            format!(
                "; \u{25b2} above the plot, over {}",
                short((self.highest * 10.0).round() / 10.0)
            )
        } else {
            String::new()
        };
        let note = format!("{}{cut}", self.note);
        let _ = writeln!(out, "<text x=\"{LEFT}\" y=\"62\">{}</text>", escape(&note));
        (out, x.max(LEFT + CHAR_WIDTH * note.len() as f64))
    }
}

fn known_points(panels: &[Panel]) -> impl Iterator<Item = &Point> + Clone {
    let series = panels.iter().flat_map(|panel| &panel.series);
    series.flat_map(|series| &series.points)
}

/// What is drawn where. Values of a logarithmic axis are logarithms here.
struct Axes {
    x: (f64, f64),
    y: (f64, f64),
    scale: Scale,
    highest: f64,
    /// Numbers along the horizontal axis.
    x_ticks: Vec<f64>,
}

impl Axes {
    fn of(chart: &Chart) -> Option<Self> {
        let points = || known_points(&chart.panels);
        points().next()?;
        let mut axes = Axes {
            x: (f64::MAX, f64::MIN),
            y: (f64::MAX, f64::MIN),
            scale: chart.scale,
            highest: chart.highest,
            x_ticks: Vec::new(),
        };
        for point in points() {
            let y = axes.scaled(point.y.min(chart.highest));
            axes.x = (axes.x.0.min(point.x), axes.x.1.max(point.x));
            axes.y = (axes.y.0.min(y), axes.y.1.max(y));
        }
        let widen = |(low, high): (f64, f64)| {
            let margin = MARGIN * (high - low).max(1e-3);
            (low - margin, high + margin)
        };
        axes.x = widen(axes.x);
        axes.y = widen(axes.y);
        if axes.scale == Scale::FromZero {
            axes.y.0 = 0.0;
        }
        let mut places: Vec<f64> = points().map(|point| point.x).collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        axes.x_ticks = match places.len() {
            // From the right, where they are further apart if each is twice the one before.
            ..=FEW => spread(places.into_iter().rev(), TICK_GAP_X, |x| axes.at_x(x)),
            _ => even_ticks(axes.x),
        };
        Some(axes)
    }

    fn scaled(&self, y: f64) -> f64 {
        match self.scale {
            Scale::Linear | Scale::FromZero => y,
            Scale::Logarithmic => y.ln(),
        }
    }

    fn at_x(&self, x: f64) -> f64 {
        (x - self.x.0) / (self.x.1 - self.x.0) * PANEL_WIDTH
    }

    fn at_y(&self, y: f64) -> f64 {
        TOP + (self.y.1 - self.scaled(y)) / (self.y.1 - self.y.0) * PANEL_HEIGHT
    }

    fn y_ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear | Scale::FromZero => even_ticks(self.y),
            Scale::Logarithmic => {
                let ticks = ratio_ticks(self.y.0.exp(), self.y.1.exp());
                spread(ticks.into_iter(), TICK_GAP_Y, |y| self.at_y(y))
            }
        }
    }

    /// Title, grid and numbers of a panel; opens the group that its series are in.
    fn frame(&self, out: &mut String, title: &str, index: usize, left: f64) {
        let (right, bottom) = (left + PANEL_WIDTH, TOP + PANEL_HEIGHT);
        let _ = writeln!(
            out,
            "<text x=\"{left}\" y=\"{}\" class=\"title\">{}</text>",
            TOP - 10.0,
            escape(title)
        );
        for tick in self.y_ticks() {
            let y = self.at_y(tick);
            let _ = writeln!(
                out,
                "<line x1=\"{left}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\" class=\"grid\"/>"
            );
            if index == 0 {
                let _ = writeln!(
                    out,
                    "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                    left - 8.0,
                    y + 4.0,
                    short(tick)
                );
            }
        }
        for &tick in &self.x_ticks {
            let x = left + self.at_x(tick);
            let _ = writeln!(
                out,
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\" class=\"grid\"/>\
                 <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                bottom + 18.0,
                short(tick)
            );
        }
        let _ = writeln!(
            out,
            "<clipPath id=\"panel{index}\"><rect x=\"{left}\" y=\"{TOP}\" width=\"{PANEL_WIDTH}\" height=\"{PANEL_HEIGHT}\"/></clipPath>\n\
             <g clip-path=\"url(#panel{index})\">"
        );
    }

    fn draw(&self, out: &mut String, series: &Series, left: f64) {
        let class = series.class();
        let place = |point: &Point| (left + self.at_x(point.x), self.at_y(point.y));
        let points: Vec<String> = series
            .points
            .iter()
            .map(place)
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" class=\"line {class}\"/>",
            points.join(" ")
        );
        for point in &series.points {
            let (x, y) = place(point);
            let radius = if point.large { 5.5 } else { 3.5 };
            let mark = if point.y > self.highest {
                triangle(x, TOP + 2.0, &series.class(), &point.tip)
            } else {
                series.mark(x, y, radius, &point.tip)
            };
            let _ = writeln!(out, "{mark}");
        }
    }
}

/// What stands for a point above the plot, its tip at the upper edge.
fn triangle(x: f64, top: f64, class: &str, tip: &str) -> String {
    format!(
        "<path d=\"M{x:.1} {top:.1} l5 9 h-10 z\" class=\"{class}\"><title>{}</title></path>",
        escape(tip)
    )
}

/// About five round numbers.
fn even_ticks((first, last): (f64, f64)) -> Vec<f64> {
    let rough = (last - first) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    let step = steps
        .into_iter()
        .find(|&step| step >= rough)
        .unwrap_or(rough);
    let from = (first / step).ceil() as i64;
    (from..)
        .map(|index| index as f64 * step)
        .take_while(|&tick| tick <= last)
        .collect()
}

/// Round numbers of a logarithmic axis, the roundest first.
fn ratio_ticks(low: f64, high: f64) -> Vec<f64> {
    const ROUND: [&[f64]; 5] = [
        &[1.0],
        &[2.0, 5.0],
        &[1.5, 3.0, 4.0, 7.0],
        &[1.2, 2.5, 6.0, 8.0, 9.0],
        &[
            1.1, 1.3, 1.4, 1.6, 1.7, 1.8, 1.9, 2.2, 2.4, 2.6, 2.8, 3.2, 3.4, 3.6, 3.8, 4.2, 4.5,
            4.8, 5.5, 6.5, 7.5, 8.5, 9.5,
        ],
    ];
    let powers = (low.log10().floor() as i32)..=(high.log10().ceil() as i32);
    let of_rank = |rank: &[f64]| -> Vec<f64> {
        let all = powers.clone();
        let all = all.flat_map(|power| rank.iter().map(move |s| s * 10f64.powi(power)));
        all.filter(|tick| (low..=high).contains(tick)).collect()
    };
    ROUND.into_iter().flat_map(of_rank).collect()
}

/// Those ticks that are so far from all before them, where `place` puts them.
fn spread(ticks: impl Iterator<Item = f64>, gap: f64, place: impl Fn(f64) -> f64) -> Vec<f64> {
    let mut kept: Vec<f64> = Vec::new();
    for tick in ticks {
        if kept
            .iter()
            .all(|&other| (place(other) - place(tick)).abs() >= gap)
        {
            kept.push(tick);
        }
    }
    kept
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(even_ticks((0.0, 10.0)), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(even_ticks((-45.0, 62.0)), [0.0, 50.0]);
        assert_eq!(ratio_ticks(0.9, 12.0)[..4], [1.0, 10.0, 2.0, 5.0]);
        assert_eq!(ratio_ticks(10.5, 22.0)[..2], [20.0, 15.0]);
        let kept = spread([0.0, 10.0, 4.0, 6.0, 20.0].into_iter(), 6.0, |x| x);
        assert_eq!(kept, [0.0, 10.0, 20.0]);
    }

    #[test]
    fn axes_are_named_and_what_is_cut_off_is_marked() {
        let points = [(1.0, 2.0), (2.0, 90.0), (4.0, 3.0)];
        let points = points.map(|(x, y)| Point {
            x,
            y,
            large: false,
            tip: "tip".to_owned(),
        });
        let series = Series {
            name: "one".to_owned(),
            color: Color::Red,
            dashed: false,
            square: false,
            points: points.to_vec(),
        };
        let mut chart = Chart {
            title: "title".to_owned(),
            note: "note".to_owned(),
            x: "size, MiB".to_owned(),
            y: "perplexity".to_owned(),
            scale: Scale::Logarithmic,
            highest: 10.0,
            panels: vec![Panel {
                title: "panel".to_owned(),
                series: vec![series],
            }],
        };
        let svg = chart.svg().expect("a chart");
        for words in [
            "size, MiB",
            "perplexity (log scale)",
            "above the plot, over 10",
            ">4</text>",
        ] {
            assert!(svg.contains(words), "no {words} in {svg}");
        }
        // Two points and the legend; the third is above.
        assert_eq!(
            (svg.matches("<circle").count(), svg.matches("<path").count()),
            (3, 1)
        );
        chart.scale = Scale::FromZero;
        chart.highest = f64::INFINITY;
        let svg = chart.svg().expect("a chart");
        assert!(svg.contains(">0</text>") && !svg.contains("<path") && !svg.contains("log scale"));
    }
}
