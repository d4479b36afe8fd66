//! Points and lines of several series between two axes.

use super::axis::{Axis, Spacing};
use super::svg::{Anchor, Canvas, Ink, Theme, width_of};

/// A plot.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Chart {
    /// What it shows, which is also read out in its place.
    pub(crate) title: String,
    pub(crate) x: String,
    pub(crate) y: String,
    pub(crate) x_spacing: Spacing,
    pub(crate) series: Vec<Series>,
}

/// A line of a plot, or points without one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<Point>,
    pub(crate) style: Style,
}

/// A point, with what it spans.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) y: f64,
    /// Lower and upper end of what it spans.
    pub(crate) span: Option<(f64, f64)>,
    /// What is said when it is pointed at.
    pub(crate) title: String,
}

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// Signs, a line through them, and a shade over what they span.
    Band,
    /// Signs, a line through them, and bars over what they span.
    Bars,
    /// A line without signs.
    Line,
}

const WIDTH: f64 = 500.0;
const PLOT_HEIGHT: f64 = 270.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BELOW: f64 = 46.0;
const LEGEND_LINE: f64 = 20.0;

impl Chart {
    /// The plot as SVG.
    pub(crate) fn svg(&self, theme: Theme) -> String {
        let legend = self.legend();
        let lines = legend.iter().map(|(line, ..)| line + 1).max().unwrap_or(0);
        let height = TOP + PLOT_HEIGHT + BELOW + lines as f64 * LEGEND_LINE + 6.0;
        let mut canvas = Canvas::new(theme, WIDTH, height);
        let points = || self.series.iter().flat_map(|series| &series.points);
        let (right, bottom) = (WIDTH - RIGHT, TOP + PLOT_HEIGHT);
        let x = Axis::over(points().map(|point| point.x), self.x_spacing, (LEFT, right));
        let reached = points().flat_map(|point| {
            let (low, high) = point.span.unwrap_or((point.y, point.y));
            [low, high, point.y]
        });
        let y = Axis::over(reached, Spacing::Even, (bottom, TOP));
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
        canvas.text_turned((14.0, (TOP + bottom) / 2.0), Anchor::Middle, Ink::Text, &self.y, -90.0);
        for (number, series) in self.series.iter().enumerate() {
            series.draw(number, &mut canvas, &x, &y);
        }
        for (line, start, number) in legend {
            let (at_x, at_y) = (LEFT + start, bottom + BELOW + 12.0 + line as f64 * LEGEND_LINE);
            canvas.line((at_x, at_y - 4.0), (at_x + 20.0, at_y - 4.0), Ink::Series(number), 2.0);
            if self.series[number].style != Style::Line {
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
            Style::Line => {}
        }
        let path: Vec<(f64, f64)> = self.points.iter().map(at).collect();
        if path.len() > 1 {
            canvas.path(&path, Ink::Series(number), if self.style == Style::Line { 1.8 } else { 2.0 });
        }
        if self.style != Style::Line {
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
