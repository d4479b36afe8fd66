//! A line for each row of a table, with a point for each of its runs and a stroke at their mean.

use super::axis::{Axis, Spacing};
use super::svg::{Anchor, Canvas, Ink, Theme, width_of};

/// A plot of all runs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Strip {
    pub(crate) title: String,
    pub(crate) x: String,
    /// Names with the values of their runs.
    pub(crate) rows: Vec<(String, Vec<f64>)>,
}

const WIDTH: f64 = 500.0;
const LINE: f64 = 24.0;
const TOP: f64 = 8.0;
const BELOW: f64 = 46.0;
const LONGEST_NAME: usize = 30;

impl Strip {
    /// The plot as SVG.
    pub(crate) fn svg(&self, theme: Theme) -> String {
        let names: Vec<String> = self.rows.iter().map(|(name, _)| shortened(name)).collect();
        let left = names.iter().map(|name| width_of(name)).fold(40.0, f64::max) + 12.0;
        let bottom = TOP + LINE * self.rows.len() as f64;
        let mut canvas = Canvas::new(theme, WIDTH, bottom + BELOW);
        let right = WIDTH - 16.0;
        let x =
            Axis::over(self.rows.iter().flat_map(|(_, values)| values.iter().copied()), Spacing::Even, (left, right));
        for (value, label) in x.ticks(5) {
            canvas.line((x.at(value), TOP), (x.at(value), bottom), Ink::Grid, 1.0);
            canvas.text((x.at(value), bottom + 17.0), Anchor::Middle, Ink::Soft, &label);
        }
        for (place, ((_, values), name)) in self.rows.iter().zip(&names).enumerate() {
            let y = TOP + LINE * (place as f64 + 0.5);
            canvas.text((left - 8.0, y + 4.5), Anchor::End, Ink::Text, name);
            canvas.line((left, y), (right, y), Ink::Grid, 1.0);
            let finite: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
            if finite.is_empty() {
                continue;
            }
            let mean = finite.iter().sum::<f64>() / finite.len() as f64;
            canvas.line((x.at(mean), y - 8.0), (x.at(mean), y + 8.0), Ink::Text, 2.0);
            for value in finite {
                canvas.mark((x.at(value), y), 0, &format!("{}: {value:.4}", self.rows[place].0));
            }
        }
        canvas.text(((left + right) / 2.0, bottom + 37.0), Anchor::Middle, Ink::Text, &self.x);
        canvas.finish(&self.title)
    }
}

fn shortened(name: &str) -> String {
    if name.chars().count() <= LONGEST_NAME {
        return name.to_owned();
    }
    name.chars().take(LONGEST_NAME - 1).chain(['…']).collect()
}
