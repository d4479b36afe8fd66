//! Confidence intervals by resampling (Efron 1979): the percentile method.

use tunesmith_tensor::Seed;

use super::quantile;

/// An interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// The interval that holds `statistic` with `confidence` (such as 0.95): the outer quantiles of its values over
/// `resamples` samples drawn from `values` with replacement. The same seed gives the same interval; NaN without values.
pub fn bootstrap_interval(
    values: &[f64],
    statistic: impl Fn(&[f64]) -> f64,
    confidence: f64,
    resamples: usize,
    seed: Seed,
) -> Interval {
    if values.is_empty() || resamples == 0 {
        return Interval { low: f64::NAN, high: f64::NAN };
    }
    let mut stream = seed.stream("bootstrap", 0);
    let mut sample = vec![0.0; values.len()];
    let statistics: Vec<f64> = (0..resamples)
        .map(|_| {
            sample.fill_with(|| values[stream.below(values.len() as u64) as usize]);
            statistic(&sample)
        })
        .collect();
    let outside = (1.0 - confidence.clamp(0.0, 1.0)) / 2.0;
    Interval { low: quantile(&statistics, outside), high: quantile(&statistics, 1.0 - outside) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(values: &[f64]) -> f64 {
        values.iter().sum::<f64>() / values.len() as f64
    }

    #[test]
    fn the_interval_of_a_mean_is_that_of_the_normal_distribution() {
        // The mean of 400 values 0 to 399 has standard error σ/√n = 115.47/20.
        let values: Vec<f64> = (0..400).map(f64::from).collect();
        let Interval { low, high } = bootstrap_interval(&values, mean, 0.95, 4000, Seed(1));
        let half = 1.96 * 115.47 / 20.0;
        assert!((low - (199.5 - half)).abs() < 0.6 && (high - (199.5 + half)).abs() < 0.6, "{low} {high}");
        assert_eq!(
            bootstrap_interval(&values, mean, 0.95, 50, Seed(3)),
            bootstrap_interval(&values, mean, 0.95, 50, Seed(3))
        );
        let narrow = bootstrap_interval(&values, mean, 0.5, 4000, Seed(1));
        assert!(narrow.low > low && narrow.high < high);
    }

    #[test]
    fn a_constant_has_no_width() {
        assert_eq!(bootstrap_interval(&[2.5; 7], mean, 0.95, 100, Seed(0)), Interval { low: 2.5, high: 2.5 });
        assert!(bootstrap_interval(&[], mean, 0.95, 100, Seed(0)).low.is_nan());
    }
}
