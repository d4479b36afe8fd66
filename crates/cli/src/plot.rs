//! The loss curve of a run: an SVG file, and a line of text.

use std::fs;
use std::path::Path;

use anyhow::Context;
use tunesmith_study::plot::{Chart, Series, Spacing, Style, smoothed};
use tunesmith_train::{LogLine, read_log};

/// Losses by step.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct LossCurve {
    /// Mean training loss since the point before.
    pub(crate) train: Vec<(u64, f64)>,
    /// Loss on the validation file.
    pub(crate) eval: Vec<(u64, f64)>,
}

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
        fs::write(path, self.chart(title).file()).with_context(|| format!("cannot write {}", path.display()))
    }

    fn chart(&self, title: &str) -> Chart {
        let reach = reach(self.train.len());
        let raw = if reach == 0 { Style::Line } else { Style::Faint };
        let mut series = vec![Series::new("training", raw, smoothed(&self.train, 0))];
        if reach > 0 {
            let name = format!("training, mean of {} points", 2 * reach + 1);
            series.push(Series::new(&name, Style::Line, smoothed(&self.train, reach)));
        }
        series.push(Series::new("validation", Style::Bars, smoothed(&self.eval, 0)));
        series.retain(|series| !series.points.is_empty());
        Chart {
            title: title.to_owned(),
            x: "step".to_owned(),
            y: "loss a token".to_owned(),
            x_spacing: Spacing::Even,
            series,
        }
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
        // Losses, their means, validation; its two points, and the sign before its name.
        assert_eq!((svg.matches("<polyline").count(), svg.matches("<polygon").count()), (3, 3), "{svg}");
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
    fn the_sparkline_runs_from_the_first_to_the_last_loss() {
        let curve = LossCurve { train: (0..8).map(|step| (step, 7.0 - step as f64)).collect(), eval: Vec::new() };
        assert_eq!(curve.sparkline(8), "7.00 █▇▆▅▄▃▂▁ 0.00");
        assert_eq!(curve.sparkline(2), "7.00 █▁ 0.00");
        assert_eq!(LossCurve::default().sparkline(8), "");
    }
}
