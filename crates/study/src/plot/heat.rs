//! A map of numbers between 0 and 1.

use super::svg::{Anchor, Canvas, Ink, Theme};

/// A plot of a matrix.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Heat {
    pub(crate) title: String,
    /// What its columns and rows count.
    pub(crate) x: String,
    pub(crate) y: String,
    /// `[row][column]`, from 0 to 1.
    pub(crate) values: Vec<Vec<f64>>,
}

const LEFT: f64 = 52.0;
const TOP: f64 = 26.0;
const SIDE: f64 = 230.0;

impl Heat {
    /// The plot as SVG.
    pub(crate) fn svg(&self, theme: Theme) -> String {
        let rows = self.values.len().max(1);
        let cols = self.values.iter().map(Vec::len).max().unwrap_or(0).max(1);
        let cell = (SIDE / rows.max(cols) as f64).clamp(8.0, 34.0);
        let (width, height) = (cell * cols as f64, cell * rows as f64);
        let mut canvas = Canvas::new(theme, (LEFT + width + 70.0).max(300.0), TOP + height + 44.0);
        canvas.text((LEFT, 16.0), Anchor::Start, Ink::Text, &self.title);
        for (row, values) in self.values.iter().enumerate() {
            let y = TOP + cell * row as f64;
            if (row + 1).is_multiple_of(label_step(rows)) || row == 0 {
                canvas.text((LEFT - 6.0, y + cell / 2.0 + 4.5), Anchor::End, Ink::Soft, &(row + 1).to_string());
            }
            for (col, value) in values.iter().enumerate() {
                let at = (LEFT + cell * col as f64, y);
                canvas.rectangle(at, (cell, cell), Ink::Grid, 0.5, "");
                let title = format!("i = {}, j = {}: {value:.3}", row + 1, col + 1);
                canvas.rectangle(at, (cell - 0.6, cell - 0.6), Ink::Series(0), value.clamp(0.0, 1.0), &title);
            }
        }
        for col in (0..cols).filter(|col| (col + 1).is_multiple_of(label_step(cols)) || *col == 0) {
            let x = LEFT + cell * (col as f64 + 0.5);
            canvas.text((x, TOP + height + 16.0), Anchor::Middle, Ink::Soft, &(col + 1).to_string());
        }
        canvas.text((LEFT + width / 2.0, TOP + height + 36.0), Anchor::Middle, Ink::Text, &self.x);
        canvas.text_turned((14.0, TOP + height / 2.0), Anchor::Middle, Ink::Text, &self.y, -90.0);
        // The scale.
        let steps = 10;
        let (at, part) = (LEFT + width + 16.0, height / f64::from(steps));
        for step in 0..steps {
            let value = 1.0 - (f64::from(step) + 0.5) / f64::from(steps);
            let y = TOP + part * f64::from(step);
            canvas.rectangle((at, y), (12.0, part), Ink::Grid, 0.5, "");
            canvas.rectangle((at, y), (12.0, part), Ink::Series(0), value, "");
        }
        canvas.text((at + 17.0, TOP + 9.0), Anchor::Start, Ink::Soft, "1");
        canvas.text((at + 17.0, TOP + height), Anchor::Start, Ink::Soft, "0");
        canvas.finish(&self.title)
    }
}

fn label_step(count: usize) -> usize {
    count.div_ceil(8).max(1)
}
