//! The plot of a search for an intrinsic dimension: the metric by `d`, with what training everything reaches.

use std::fs;
use std::path::Path;

use anyhow::Context;
use tunesmith_study::plot::{Chart, Series, Spacing, Style};
use tunesmith_train::IntrinsicDimension;

/// Writes the curve as an SVG file.
pub(crate) fn write_svg(found: &IntrinsicDimension, metric: &str, path: &Path) -> anyhow::Result<()> {
    fs::write(path, chart(found, metric).file()).with_context(|| format!("cannot write {}", path.display()))
}

fn chart(found: &IntrinsicDimension, metric: &str) -> Chart {
    let dimensions = || found.curve.iter().map(|point| point.dimension as f64);
    let (first, last) = (dimensions().fold(f64::INFINITY, f64::min), dimensions().fold(1.0, f64::max));
    let across = |value: Option<f64>| {
        let value = value.filter(|value| value.is_finite() && first.is_finite());
        value.into_iter().flat_map(move |value| [(first / 1.2, value), (last * 1.2, value)])
    };
    let tried = found.curve.iter().filter_map(|point| Some((point.dimension as f64, point.metric?)));
    let envelope = found.curve.iter().filter_map(|point| Some((point.dimension as f64, point.envelope?)));
    let mut series = vec![
        Series::new("everything is trained", Style::Line, across(found.baseline.metric)),
        Series::new("what is to be reached", Style::Line, across(Some(found.threshold))),
        Series::new("best up to d", Style::Line, envelope),
        Series::new("d dimensions are trained", Style::Signs, tried),
    ];
    series.retain(|series| !series.points.is_empty());
    Chart {
        title: "Intrinsic dimension".to_owned(),
        x: "d".to_owned(),
        y: metric.to_owned(),
        x_spacing: Spacing::Log,
        series,
    }
}

#[cfg(test)]
mod tests {
    use tunesmith_train::{Candidate, CurvePoint, Trial};

    use super::*;

    #[test]
    fn every_dimension_is_a_point() {
        let baseline = Trial { candidate: Candidate { dimension: None, learning_rate: 1e-5 }, metric: Some(0.9) };
        let point = |dimension, metric| CurvePoint { dimension, learning_rate: 0.1, metric, envelope: Some(0.6) };
        let curve = vec![point(10, Some(0.5)), point(30, Some(0.6)), point(90, None)];
        let found = IntrinsicDimension { baseline, threshold: 0.81, found: None, curve };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("curve.svg");
        write_svg(&found, "accuracy", &path).unwrap();
        let svg = fs::read_to_string(&path).unwrap();
        // Two that have a value, and one in the legend.
        assert_eq!(svg.matches("<polygon").count(), 3, "{svg}");
        assert!(svg.contains("what is to be reached") && svg.contains("accuracy"));
        let diverged = IntrinsicDimension {
            baseline: Trial { metric: None, ..baseline },
            threshold: f64::INFINITY,
            curve: vec![point(10, None)],
            found: None,
        };
        write_svg(&diverged, "accuracy", &path).unwrap();
    }
}
