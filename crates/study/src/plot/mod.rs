//! Plots as SVG, for pages that are light or dark, and as PNG.

mod axis;
mod chart;
mod heat;
mod png;
mod smoothing;
mod strip;
mod svg;

pub use axis::Spacing;
pub(crate) use axis::si;
pub use chart::{Chart, Point, Series, Style};
pub(crate) use heat::Heat;
pub(crate) use png::png;
pub use smoothing::smoothed;
pub(crate) use strip::Strip;
pub(crate) use svg::Theme;
pub(crate) use svg::escaped;

/// Any plot, with the name of its file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plot {
    /// Its file's name without ending.
    pub(crate) name: String,
    /// What is said below it.
    pub(crate) caption: String,
    pub(crate) figure: Figure,
}

/// A kind of plot.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Figure {
    Chart(Chart),
    Strip(Strip),
    Heat(Heat),
}

impl Plot {
    /// The plot as SVG.
    pub(crate) fn svg(&self, theme: Theme) -> String {
        match &self.figure {
            Figure::Chart(chart) => chart.svg(theme),
            Figure::Strip(strip) => strip.svg(theme),
            Figure::Heat(heat) => heat.svg(theme),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plots() -> Vec<Plot> {
        let point = |x: f64, y: f64| Point { x, y, span: Some((y - 0.02, y + 0.01)), title: "a & b".to_owned() };
        let series = |name: &str, style| Series {
            name: name.to_owned(),
            points: vec![point(100.0, 0.7), point(1e4, 0.8), point(1e6, 0.85)],
            style,
        };
        let chart = Chart {
            title: "scores".to_owned(),
            x: "trained parameters".to_owned(),
            y: "accuracy".to_owned(),
            x_spacing: Spacing::Log,
            series: vec![series("LoRA <r>", Style::Band), series("adapters", Style::Bars), series("loss", Style::Line)],
        };
        let strip = Strip {
            title: "runs".into(),
            x: "accuracy".into(),
            rows: vec![("a".into(), vec![0.1, 0.2]), ("b".into(), vec![])],
        };
        let values = vec![vec![1.0, 0.5], vec![0.25, 0.0]];
        let heat = Heat { title: "φ".into(), x: "j".into(), y: "i".into(), values };
        let plot = |name: &str, figure| Plot { name: name.to_owned(), caption: String::new(), figure };
        vec![plot("chart", Figure::Chart(chart)), plot("strip", Figure::Strip(strip)), plot("heat", Figure::Heat(heat))]
    }

    #[test]
    fn every_plot_is_valid_in_both_themes_and_becomes_pixels() {
        for plot in plots() {
            let page = plot.svg(Theme::Page);
            assert!(page.contains("var(--text)") && !page.contains("NaN") && !page.contains("inf"), "{page}");
            let paper = plot.svg(Theme::Paper);
            assert!(!paper.contains("var("), "{paper}");
            let pixels = png(&plot.name, &paper).unwrap();
            assert_eq!(pixels, png(&plot.name, &paper).unwrap());
            assert!(pixels.starts_with(b"\x89PNG") && pixels.len() > 2000, "{}", pixels.len());
        }
    }

    #[test]
    fn a_plot_that_stands_alone_shows_its_title() {
        let points = || [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)];
        let styles = [Style::Line, Style::Faint, Style::Signs];
        let chart = Chart {
            title: "loss".to_owned(),
            x: "step".to_owned(),
            y: "nats".to_owned(),
            x_spacing: Spacing::Even,
            series: styles.map(|style| Series::new("series", style, points())).to_vec(),
        };
        let file = chart.file();
        assert!(file.contains(">loss</text>") && !chart.svg(Theme::Paper).contains(">loss</text>"));
        // Two lines; the signs are those of the third series and of its name.
        assert_eq!((file.matches("<polyline").count(), file.matches("<polygon").count()), (2, 4), "{file}");
    }

    #[test]
    fn text_is_escaped_and_every_point_is_drawn() {
        let svg = plots()[0].svg(Theme::Page);
        assert!(svg.contains("LoRA &lt;r&gt;") && svg.contains("<title>a &amp; b</title>"));
        assert_eq!(svg.matches("<title>").count(), 6);
        assert_eq!(svg.matches("<polygon").count(), 4 + 1);
    }
}
