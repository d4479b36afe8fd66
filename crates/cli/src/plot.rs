//! The loss curve of a run: an SVG file, and a line of text.

use std::fs;
use std::path::Path;

use anyhow::{Context, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use tunesmith_train::{LogLine, read_log};

/// Losses by step.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct LossCurve {
    /// Mean training loss since the point before.
    pub(crate) train: Vec<(u64, f64)>,
    /// Loss on the validation file.
    pub(crate) eval: Vec<(u64, f64)>,
}

pub(crate) const SIZE: (u32, u32) = (880, 520);
pub(crate) const INK: RGBColor = RGBColor(60, 60, 60);
pub(crate) const TRAIN: RGBColor = RGBColor(66, 113, 184);
pub(crate) const EVAL: RGBColor = RGBColor(208, 96, 32);

impl LossCurve {
    /// The curve in a run's log.
    pub(crate) fn read(log: &Path) -> anyhow::Result<Self> {
        let mut curve = Self::default();
        for line in read_log(log)? {
            match line {
                LogLine::Training(line) => curve.train.push((line.step, line.loss)),
                LogLine::Evaluation(line) => {
                    let loss = line.metrics.get("eval_loss").filter(|loss| loss.is_finite());
                    curve.eval.extend(loss.map(|loss| (line.step, *loss)));
                }
            }
        }
        Ok(curve)
    }

    /// Writes the curve as an SVG file; nothing is written where there are no points.
    pub(crate) fn write_svg(&self, path: &Path, title: &str) -> anyhow::Result<()> {
        if self.train.is_empty() && self.eval.is_empty() {
            return Ok(());
        }
        let mut svg = String::new();
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        self.draw(&area, title).map_err(|error| anyhow!("cannot draw the loss curve: {error}"))?;
        drop(area);
        fs::write(path, svg).with_context(|| format!("cannot write {}", path.display()))
    }

    fn draw(
        &self,
        area: &DrawingArea<SVGBackend<'_>, Shift>,
        title: &str,
    ) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
        area.fill(&WHITE)?;
        let points = || self.train.iter().chain(&self.eval);
        let last = points().map(|(step, _)| *step).max().unwrap_or(0).max(1);
        let low = points().map(|(_, loss)| *loss).fold(f64::INFINITY, f64::min);
        let high = points().map(|(_, loss)| *loss).fold(f64::NEG_INFINITY, f64::max);
        let margin = (0.06 * (high - low)).max(1e-3);
        let mut chart = ChartBuilder::on(area)
            .caption(title, ("sans-serif", 20).into_font().color(&INK))
            .margin(14)
            .x_label_area_size(44)
            .y_label_area_size(62)
            .build_cartesian_2d(0.0..last as f64 * 1.01, (low - margin).max(0.0)..high + margin)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(INK.mix(0.12))
            .axis_style(INK.mix(0.5))
            .label_style(("sans-serif", 14).into_font().color(&INK))
            .axis_desc_style(("sans-serif", 15).into_font().color(&INK))
            .x_desc("step")
            .y_desc("loss a token")
            .x_label_formatter(&|step| format!("{step:.0}"))
            .draw()?;
        let float = |points: &[(u64, f64)]| -> Vec<(f64, f64)> {
            points.iter().map(|(step, loss)| (*step as f64, *loss)).collect()
        };
        let reach = reach(self.train.len());
        let raw = TRAIN.mix(if reach == 0 { 1.0 } else { 0.35 });
        if !self.train.is_empty() {
            chart
                .draw_series(LineSeries::new(float(&self.train), raw.stroke_width(if reach == 0 { 2 } else { 1 })))?
                .label("training")
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], raw.stroke_width(2)));
        }
        if reach > 0 {
            chart
                .draw_series(LineSeries::new(float(&smoothed(&self.train, reach)), TRAIN.stroke_width(3)))?
                .label(format!("training, mean of {} points", 2 * reach + 1))
                .legend(|(x, y)| PathElement::new([(x, y), (x + 22, y)], TRAIN.stroke_width(3)));
        }
        if !self.eval.is_empty() {
            chart
                .draw_series(LineSeries::new(float(&self.eval), EVAL.stroke_width(2)).point_size(4))?
                .label("validation")
                .legend(|(x, y)| Circle::new((x + 11, y), 4, EVAL.filled()));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .border_style(INK.mix(0.25))
            .label_font(("sans-serif", 14).into_font().color(&INK))
            .draw()?;
        area.present()
    }

    /// The training loss as a line of at most `width` blocks between its first and last values.
    pub(crate) fn sparkline(&self, width: usize) -> String {
        const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        let losses: Vec<f64> = self.train.iter().map(|(_, loss)| *loss).collect();
        let (Some(first), Some(last)) = (losses.first(), losses.last()) else { return String::new() };
        let columns = width.clamp(1, losses.len());
        let means: Vec<f64> = (0..columns)
            .map(|column| {
                let part = &losses[column * losses.len() / columns..(column + 1) * losses.len() / columns];
                part.iter().sum::<f64>() / part.len() as f64
            })
            .collect();
        let low = means.iter().copied().fold(f64::INFINITY, f64::min);
        let high = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let height = |mean: &f64| {
            let share = if high > low { (mean - low) / (high - low) } else { 0.0 };
            BLOCKS[(share * (BLOCKS.len() - 1) as f64).round() as usize]
        };
        format!("{first:.2} {} {last:.2}", means.iter().map(height).collect::<String>())
    }
}

/// Neighbours on each side that are averaged; none where there are too few points.
fn reach(points: usize) -> usize {
    if points < 12 { 0 } else { (points / 24).clamp(1, 50) }
}

/// Each loss averaged with up to `reach` neighbours on each side.
fn smoothed(points: &[(u64, f64)], reach: usize) -> Vec<(u64, f64)> {
    let mean = |(index, (step, _)): (usize, &(u64, f64))| {
        // As many on the left as on the right, so that the ends are not shifted.
        let reach = reach.min(index).min(points.len() - 1 - index);
        let near = &points[index - reach..=index + reach];
        (*step, near.iter().map(|(_, loss)| loss).sum::<f64>() / near.len() as f64)
    };
    points.iter().enumerate().map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn falling(points: u64) -> LossCurve {
        let loss = |step: u64| 1.0 + 2.0 * (-(step as f64) / 20.0).exp() + 0.1 * ((step * 7919) % 13) as f64 / 13.0;
        LossCurve { train: (1..=points).map(|step| (step, loss(step))).collect(), eval: vec![(25, 1.6), (50, 1.3)] }
    }

    #[test]
    fn a_log_gives_its_finite_losses() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log.jsonl");
        let text = r#"{"step":1,"epoch":0.5,"loss":3.5,"learning_rate":0.1,"grad_norm":1.0,"tokens":9,"tokens_per_second":1.0,"peak_memory":null}
{"step":2,"epoch":1.0,"eval_loss":3.0,"eval_runtime":0.1}
{"step":3,"epoch":1.5,"eval_loss":null,"eval_runtime":0.1}
"#;
        fs::write(&log, text).unwrap();
        assert_eq!(LossCurve::read(&log).unwrap(), LossCurve { train: vec![(1, 3.5)], eval: vec![(2, 3.0)] });
        fs::write(&log, "no json\n").unwrap();
        assert!(LossCurve::read(&log).unwrap_err().to_string().ends_with("line 1 is not a line of a run log"));
    }

    #[test]
    fn the_svg_has_both_curves_and_labelled_axes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("loss.svg");
        falling(60).write_svg(&path, "loss of a run").unwrap();
        let svg = fs::read_to_string(&path).unwrap();
        for part in ["loss of a run", "step", "loss a token", "training, mean of 5 points", "validation", "polyline"] {
            assert!(svg.contains(part), "no {part:?}");
        }
        // A curve and its mark in the legend, each.
        assert_eq!(svg.matches("stroke=\"#4271B8\" stroke-width=\"3\"").count(), 2, "{svg}");
    }

    #[test]
    fn few_or_equal_points_are_drawn_and_none_write_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("loss.svg");
        LossCurve::default().write_svg(&path, "").unwrap();
        assert!(!path.exists());
        LossCurve { train: vec![(1, 2.0)], eval: Vec::new() }.write_svg(&path, "").unwrap();
        assert!(path.exists());
    }

    #[test]
    fn smoothing_keeps_ends_and_straight_lines() {
        let line: Vec<(u64, f64)> = (0..20).map(|step| (step, 10.0 - step as f64)).collect();
        assert_eq!(smoothed(&line, 3), line);
        let spike = [(0, 0.0), (1, 3.0), (2, 0.0)];
        assert_eq!(smoothed(&spike, 1), [(0, 0.0), (1, 1.0), (2, 0.0)]);
    }

    #[test]
    fn the_sparkline_runs_from_the_first_to_the_last_loss() {
        let curve = LossCurve { train: (0..8).map(|step| (step, 7.0 - step as f64)).collect(), eval: Vec::new() };
        assert_eq!(curve.sparkline(8), "7.00 █▇▆▅▄▃▂▁ 0.00");
        assert_eq!(curve.sparkline(2), "7.00 █▁ 0.00");
        assert_eq!(LossCurve::default().sparkline(8), "");
    }
}
