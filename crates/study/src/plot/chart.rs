//! Points and lines of several series between two axes.

use super::axis::{Axis, Spacing};
use super::svg::{Anchor, Canvas, Ink, Theme, width_of};

/// A plot.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// What it shows, which is also read out in its place.
    pub title: String,
    /// What is said along the horizontal axis.
    pub x: String,
    /// What is said along the vertical axis.
    pub y: String,
    /// How the horizontal axis is scaled.
    pub x_spacing: Spacing,
    /// What is drawn, in this order.
    pub series: Vec<Series>,
}

/// A line of a plot, or points without one.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// What the legend calls it; without a name it is not in the legend.
    pub name: String,
    /// From left to right.
    pub points: Vec<Point>,
    /// How it is drawn.
    pub style: Style,
}

/// A point, with what it spans.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Its place along the horizontal axis.
    pub x: f64,
    /// Its place along the vertical axis.
    pub y: f64,
    /// Lower and upper end of what it spans.
    pub span: Option<(f64, f64)>,
    /// What is said when it is pointed at.
    pub title: String,
}

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Signs, a line through them, and a shade over what they span.
    Band,
    /// Signs, a line through them, and bars over what they span.
    Bars,
    /// A line without signs.
    Line,
    /// A thin grey line without signs.
    Faint,
    /// Signs without a line.
    Signs,
}

impl Style {
    /// What the line of the series of that number is drawn in, and its width.
    fn line(self, number: usize) -> Option<(Ink, f64)> {
        match self {
            Self::Band | Self::Bars => Some((Ink::Series(number), 2.0)),
            Self::Line => Some((Ink::Series(number), 1.8)),
            Self::Faint => Some((Ink::Soft, 1.0)),
            Self::Signs => None,
        }
    }

    fn has_signs(self) -> bool {
        matches!(self, Self::Band | Self::Bars | Self::Signs)
    }
}

const WIDTH: f64 = 500.0;
const PLOT_HEIGHT: f64 = 270.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BELOW: f64 = 46.0;
const LEGEND_LINE: f64 = 20.0;
const TITLE_LINE: f64 = 26.0;

impl Chart {
    /// The plot as an SVG file that stands alone: on white, with its title above.
    pub fn file(&self) -> String {
        self.draw(Theme::Paper, TOP + TITLE_LINE)
    }

    /// The plot as SVG, under which its caption stands.
    pub(crate) fn svg(&self, theme: Theme) -> String {
        self.draw(theme, TOP)
    }

    /// Draws it from `top` on; the title stands above where there is room.
    fn draw(&self, theme: Theme, top: f64) -> String {
        let legend = self.legend();
        let lines = legend.iter().map(|(line, ..)| line + 1).max().unwrap_or(0);
        let height = top + PLOT_HEIGHT + BELOW + lines as f64 * LEGEND_LINE + 6.0;
        let mut canvas = Canvas::new(theme, WIDTH, height);
        let points = || self.series.iter().flat_map(|series| &series.points);
        let (right, bottom) = (WIDTH - RIGHT, top + PLOT_HEIGHT);
        if top > TOP {
            canvas.text(((LEFT + right) / 2.0, TITLE_LINE - 4.0), Anchor::Middle, Ink::Text, &self.title);
        }
        let x = Axis::over(points().map(|point| point.x), self.x_spacing, (LEFT, right));
        let reached = points().flat_map(|point| {
            let (low, high) = point.span.unwrap_or((point.y, point.y));
            [low, high, point.y]
        });
        let y = Axis::over(reached, Spacing::Even, (bottom, top));
        for (value, label) in y.ticks(6) {
            canvas.line((LEFT, y.at(value)), (right, y.at(value)), Ink::Grid, 1.0);
            canvas.text((LEFT - 6.0, y.at(value) + 4.5), Anchor::End, Ink::Soft, &label);
        }
        for (value, label) in x.ticks(7) {
            canvas.line((x.at(value), bottom), (x.at(value), bottom + 4.0), Ink::Soft, 1.0);
            canvas.text((x.at(value), bottom + 18.0), Anchor::Middle, Ink::Soft, &label);
        }
        canvas.line((LEFT, bottom), (right, bottom), Ink::Soft, 1.0);
        canvas.text(((LEFT + right) / 2.0, bottom + 38.0), Anchor::Middle, Ink::Text, &self.x);
        canvas.text_turned((14.0, (top + bottom) / 2.0), Anchor::Middle, Ink::Text, &self.y, -90.0);
        for (number, series) in self.series.iter().enumerate() {
            series.draw(number, &mut canvas, &x, &y);
        }
        for (line, start, number) in legend {
            let (at_x, at_y) = (LEFT + start, bottom + BELOW + 12.0 + line as f64 * LEGEND_LINE);
            if let Some((ink, _)) = self.series[number].style.line(number) {
                canvas.line((at_x, at_y - 4.0), (at_x + 20.0, at_y - 4.0), ink, 2.0);
            }
            if self.series[number].style.has_signs() {
                canvas.mark((at_x + 10.0, at_y - 4.0), number, "");
            }
            canvas.text((at_x + 26.0, at_y), Anchor::Start, Ink::Text, &self.series[number].name);
        }
        canvas.finish(&self.title)
    }

    /// Line, place and series of each entry of the legend.
    fn legend(&self) -> Vec<(usize, f64, usize)> {
        let named = self.series.iter().enumerate().filter(|(_, series)| !series.name.is_empty());
        let (mut line, mut start) = (0, 0.0);
        let mut entries = Vec::new();
        for (number, series) in named {
            let width = 26.0 + width_of(&series.name) + 16.0;
            if start > 0.0 && start + width > WIDTH - LEFT {
                (line, start) = (line + 1, 0.0);
            }
            entries.push((line, start, number));
            start += width;
        }
        if entries.len() > 1 { entries } else { Vec::new() }
    }
}

impl Series {
    /// Points that span nothing and say nothing.
    pub fn new(name: &str, style: Style, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let point = |(x, y)| Point { x, y, span: None, title: String::new() };
        Self { name: name.to_owned(), points: points.into_iter().map(point).collect(), style }
    }

    fn draw(&self, number: usize, canvas: &mut Canvas, x: &Axis, y: &Axis) {
        let at = |point: &Point| (x.at(point.x), y.at(point.y));
        let spans = || self.points.iter().filter_map(|point| Some((x.at(point.x), point.span?)));
        match self.style {
            Style::Band => {
                let upper = spans().map(|(place, (_, high))| (place, y.at(high)));
                let lower: Vec<(f64, f64)> = spans().map(|(place, (low, _))| (place, y.at(low))).collect();
                let outline: Vec<(f64, f64)> = upper.chain(lower.into_iter().rev()).collect();
                if outline.len() > 2 {
                    canvas.area(&outline, Ink::Series(number), 0.16);
                } else {
                    bars(spans(), number, canvas, y);
                }
            }
            Style::Bars => bars(spans(), number, canvas, y),
            Style::Line | Style::Faint | Style::Signs => {}
        }
        if let (Some((ink, width)), [_, _, ..]) = (self.style.line(number), &self.points[..]) {
            canvas.path(&self.points.iter().map(at).collect::<Vec<_>>(), ink, width);
        }
        if self.style.has_signs() {
            for point in &self.points {
                canvas.mark(at(point), number, &point.title);
            }
        }
    }
}

fn bars(spans: impl Iterator<Item = (f64, (f64, f64))>, number: usize, canvas: &mut Canvas, y: &Axis) {
    for (place, (low, high)) in spans {
        canvas.line((place, y.at(low)), (place, y.at(high)), Ink::Series(number), 1.5);
        for end in [low, high] {
            canvas.line((place - 3.0, y.at(end)), (place + 3.0, y.at(end)), Ink::Series(number), 1.5);
        }
    }
}
