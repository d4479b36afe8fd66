//! Axes: from values to places, and ticks that people would choose.

/// How an axis is scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    /// Equal steps are differences.
    Even,
    /// Equal steps are factors; what is not positive has no place.
    Log,
}

/// A range of values along a line.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    spacing: Spacing,
    /// Where `low` and `high` lie.
    place: (f64, f64),
}

impl Axis {
    /// An axis that shows all of `values` with some room around them.
    pub(super) fn over(values: impl Iterator<Item = f64>, spacing: Spacing, place: (f64, f64)) -> Self {
        let finite = values.filter(|value| value.is_finite() && (spacing == Spacing::Even || *value > 0.0));
        let (low, high) =
            finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if low > high { (1.0, 10.0) } else { (low, high) };
        let (low, high) = match spacing {
            Spacing::Even => {
                let room = if high > low { 0.06 * (high - low) } else { 0.05 * high.abs().max(0.1) };
                (low - room, high + room)
            }
            Spacing::Log => {
                let room = ((high / low).ln() * 0.06).max(0.25);
                (low * (-room).exp(), high * room.exp())
            }
        };
        Self { low, high, spacing, place }
    }

    /// Where a value lies.
    pub(super) fn at(&self, value: f64) -> f64 {
        let part = match self.spacing {
            Spacing::Even => (value - self.low) / (self.high - self.low),
            Spacing::Log => (value / self.low).ln() / (self.high / self.low).ln(),
        };
        self.place.0 + part * (self.place.1 - self.place.0)
    }

    /// Ticks with what is written at them; `most` is how many there is room for, roughly.
    pub(super) fn ticks(&self, most: usize) -> Vec<(f64, String)> {
        match self.spacing {
            Spacing::Even => self.even_ticks(most),
            Spacing::Log => self.log_ticks(most),
        }
    }

    fn even_ticks(&self, most: usize) -> Vec<(f64, String)> {
        let rough = (self.high - self.low) / most.max(2) as f64;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(10.0 * power);
        let decimals = (0..9).find(|decimals| {
            let scaled = step * 10f64.powi(*decimals);
            (scaled - scaled.round()).abs() < 1e-6 * scaled
        });
        let decimals = decimals.unwrap_or(0) as usize;
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step).floor() as i64;
        (first..=last).map(|count| count as f64 * step).map(|value| (value, even_label(value, decimals))).collect()
    }

    fn log_ticks(&self, most: usize) -> Vec<(f64, String)> {
        let (first, last) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
        let inside = |value: &f64| (self.low..=self.high).contains(value);
        let with = |factors: &[f64]| -> Vec<f64> {
            let powers = (first..=last).map(|power| 10f64.powi(power));
            powers.flat_map(|power| factors.iter().map(move |factor| factor * power)).filter(inside).collect()
        };
        let mut values = with(&[1.0]);
        if values.len() < 3 {
            values = with(&[1.0, 2.0, 5.0]);
        }
        let every = values.len().div_ceil(most.max(2));
        values.into_iter().step_by(every.max(1)).map(|value| (value, si(value))).collect()
    }
}

fn even_label(value: f64, decimals: usize) -> String {
    if value.abs() >= 10_000.0 { si(value) } else { format!("{value:.decimals$}").replace('-', "−") }
}

/// A number with k, M or G where it is large.
pub(crate) fn si(value: f64) -> String {
    let units = [(1e9, "G"), (1e6, "M"), (1e3, "k")];
    // Just below a unit, rounding would write 1000 of the smaller one.
    match units.iter().find(|(unit, _)| value.abs() >= unit * 0.9995) {
        Some((unit, sign)) => format!("{}{sign}", digits(value / unit)),
        None if value == 0.0 || value.abs() >= 1e-3 => digits(value),
        None => format!("{value:e}"),
    }
}

/// Three digits that count, without zeros behind.
fn digits(value: f64) -> String {
    let decimals = (2 - value.abs().max(1e-9).log10().floor() as i32).clamp(0, 6) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis, most: usize) -> Vec<String> {
        axis.ticks(most).into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round_numbers_inside_the_axis() {
        let axis = Axis::over([0.812, 0.874].into_iter(), Spacing::Even, (0.0, 100.0));
        assert_eq!(labels(&axis, 5), ["0.82", "0.84", "0.86"]);
        let negative = Axis::over([-3.0, 1.0].into_iter(), Spacing::Even, (100.0, 0.0));
        assert_eq!(labels(&negative, 5), ["−3", "−2", "−1", "0", "1"]);
        let log = Axis::over([768.0, 22.0e6].into_iter(), Spacing::Log, (0.0, 100.0));
        assert_eq!(labels(&log, 8), ["1k", "10k", "100k", "1M", "10M"]);
        let ranks = Axis::over([1.0, 64.0].into_iter(), Spacing::Log, (0.0, 100.0));
        assert_eq!(labels(&ranks, 8), ["1", "2", "5", "10", "20", "50"]);
    }

    #[test]
    fn places_run_from_end_to_end() {
        let axis = Axis::over([1.0, 100.0].into_iter(), Spacing::Log, (10.0, 210.0));
        assert!((axis.at(10.0) - 110.0).abs() < 1e-9);
        assert!(axis.at(1.0) > 10.0 && axis.at(100.0) < 210.0);
        let none = Axis::over(std::iter::empty(), Spacing::Even, (0.0, 1.0));
        assert!(none.at(5.0).is_finite());
    }

    #[test]
    fn large_numbers_are_short() {
        let shown = [1.0, 999.9, 4608.0, 22_713_216.0, 0.05, 3e-5].map(si);
        assert_eq!(shown, ["1", "1k", "4.61k", "22.7M", "0.05", "3e-5"]);
    }
}
