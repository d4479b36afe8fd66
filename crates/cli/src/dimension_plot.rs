//! The plot of a search for an intrinsic dimension: the metric by `d`, with what training everything reaches.

use std::fs;
use std::path::Path;

use anyhow::{Context, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use tunesmith_train::IntrinsicDimension;

use crate::plot::{EVAL, INK, SIZE, TRAIN};

/// Writes the curve as an SVG file.
pub(crate) fn write_svg(found: &IntrinsicDimension, metric: &str, path: &Path) -> anyhow::Result<()> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    draw(&area, found, metric).map_err(|error| anyhow!("cannot draw the curve: {error}"))?;
    drop(area);
    fs::write(path, svg).with_context(|| format!("cannot write {}", path.display()))
}

fn draw(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    found: &IntrinsicDimension,
    metric: &str,
) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    area.fill(&WHITE)?;
    let tried = found.curve.iter().filter_map(|point| Some((point.dimension as f64, point.metric?)));
    let tried: Vec<(f64, f64)> = tried.collect();
    let envelope = found.curve.iter().filter_map(|point| Some((point.dimension as f64, point.envelope?)));
    let lines = [found.baseline.metric, Some(found.threshold).filter(|threshold| threshold.is_finite())];
    let values = || tried.iter().map(|(_, value)| *value).chain(lines.into_iter().flatten());
    let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
    if low > high {
        return area.present();
    }
    let dimensions = found.curve.iter().map(|point| point.dimension as f64);
    let (first, last) = dimensions.fold((f64::INFINITY, 1.0f64), |(first, last), d| (first.min(d), last.max(d)));
    let margin = (0.06 * (high - low)).max(1e-3);
    let mut chart = ChartBuilder::on(area)
        .caption("Intrinsic dimension", ("sans-serif", 20).into_font().color(&INK))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(62)
        .build_cartesian_2d((first / 1.2..last * 1.2).log_scale(), low - margin..high + margin)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(INK.mix(0.12))
        .axis_style(INK.mix(0.5))
        .label_style(("sans-serif", 14).into_font().color(&INK))
        .axis_desc_style(("sans-serif", 15).into_font().color(&INK))
        .x_desc("d")
        .y_desc(metric)
        .x_label_formatter(&|d| format!("{d:.0}"))
        .draw()?;
    for (value, name, color) in [(lines[0], "everything is trained", INK), (lines[1], "what is to be reached", EVAL)] {
        let Some(value) = value else { continue };
        chart
            .draw_series(LineSeries::new([(first / 1.2, value), (last * 1.2, value)], color.stroke_width(1)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], color.stroke_width(1)));
    }
    chart
        .draw_series(LineSeries::new(envelope, TRAIN.mix(0.35).stroke_width(2)))?
        .label("best up to d")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 22, y)], TRAIN.mix(0.35).stroke_width(2)));
    chart
        .draw_series(tried.iter().map(|point| Circle::new(*point, 4, TRAIN.filled())))?
        .label("d dimensions are trained")
        .legend(|(x, y)| Circle::new((x + 11, y), 4, TRAIN.filled()));
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.85))
        .border_style(INK.mix(0.25))
        .label_font(("sans-serif", 14).into_font().color(&INK))
        .draw()?;
    area.present()
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
        assert_eq!(svg.matches("<circle").count(), 3, "{svg}");
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
