//! Mean and sample standard deviation, as papers report several runs.

use std::fmt;

/// What several runs came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// How many values.
    pub count: usize,
    /// Their mean.
    pub mean: f64,
    /// Their sample standard deviation, with `count − 1` in the denominator; none of a single value.
    pub standard_deviation: Option<f64>,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
}

impl Summary {
    /// The summary of `values`; none without any.
    pub fn of(values: &[f64]) -> Option<Self> {
        let count = values.len();
        if count == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / count as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Some(Self {
            count,
            mean,
            standard_deviation: (count > 1).then(|| (squares / (count - 1) as f64).sqrt()),
            least: values.iter().copied().fold(f64::INFINITY, f64::min),
            most: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        })
    }

    /// The standard error of the mean; none of a single value.
    pub fn standard_error(&self) -> Option<f64> {
        self.standard_deviation.map(|deviation| deviation / (self.count as f64).sqrt())
    }
}

/// `mean ± standard deviation`, with as many decimals as asked for (default 2).
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = f.precision().unwrap_or(2);
        write!(f, "{:.decimals$}", self.mean)?;
        self.standard_deviation.map_or(Ok(()), |deviation| write!(f, " ± {deviation:.decimals$}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_deviation_are_those_of_the_definition() {
        let summary = Summary::of(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).unwrap();
        assert_eq!((summary.count, summary.mean, summary.least, summary.most), (8, 5.0, 2.0, 9.0));
        assert!((summary.standard_deviation.unwrap() - (32.0f64 / 7.0).sqrt()).abs() < 1e-15);
        assert!((summary.standard_error().unwrap() - (4.0f64 / 7.0).sqrt()).abs() < 1e-15);
        assert_eq!(format!("{summary} {summary:.1}"), "5.00 ± 2.14 5.0 ± 2.1");
        let one = Summary::of(&[3.0]).unwrap();
        assert_eq!((one.standard_deviation, one.to_string()), (None, "3.00".to_owned()));
        assert_eq!(Summary::of(&[]), None);
    }
}
