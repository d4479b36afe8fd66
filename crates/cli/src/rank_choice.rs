//! The smallest rank of a DyLoRA adapter that is good enough.

use anyhow::Context;
use tunesmith_methods::{BuiltAdapter, at_rank};
use tunesmith_tensor::Adapter;
use tunesmith_train::metrics::MetricValue;
use tunesmith_train::{Evaluation, TrainError};

use crate::base::Base;

/// Evaluates an adapter at each of `ranks`.
pub(crate) fn measure_ranks(
    base: &Base,
    built: &BuiltAdapter,
    ranks: impl IntoIterator<Item = usize>,
    evaluate: impl Fn(&Adapter) -> Result<Evaluation, TrainError>,
) -> anyhow::Result<Vec<(usize, Evaluation)>> {
    let measure = |rank| {
        let plain = base.describe(|description| at_rank(built, rank, description))?;
        Ok((rank, evaluate(&plain.adapter)?))
    };
    ranks.into_iter().map(measure).collect()
}

/// A choice among ranks, and what it rests on.
#[derive(Debug)]
pub(crate) struct ChosenRank {
    /// The smallest that is good enough.
    pub(crate) rank: usize,
    /// By how much of the best rank's value a smaller rank's may be worse.
    pub(crate) tolerance: f64,
    /// What was compared.
    pub(crate) metric: &'static str,
    /// Its value at each rank.
    pub(crate) values: Vec<(usize, f64)>,
}

impl ChosenRank {
    /// The smallest rank whose `metric` is at most a fraction `tolerance` of the best one's worse than that.
    ///
    /// # Errors
    /// That there are no ranks, or that the metric was not measured.
    pub(crate) fn of(measured: &[(usize, Evaluation)], metric: MetricValue, tolerance: f64) -> anyhow::Result<Self> {
        let value = |(rank, evaluation): &(usize, Evaluation)| {
            let value = evaluation.get(metric.key);
            Ok((*rank, value.with_context(|| format!("an evaluation of the held-out set has no {}", metric.key))?))
        };
        let values = measured.iter().map(value).collect::<anyhow::Result<Vec<_>>>()?;
        let rank =
            smallest_within(&values, metric.higher_is_better, tolerance).context("there is at least one rank")?;
        Ok(Self { rank, tolerance, metric: metric.key, values })
    }
}

fn smallest_within(values: &[(usize, f64)], higher_is_better: bool, tolerance: f64) -> Option<usize> {
    let cost = |value: f64| if higher_is_better { -value } else { value };
    let best = values.iter().map(|(_, value)| cost(*value)).fold(f64::INFINITY, f64::min);
    let good_enough = values.iter().filter(|(_, value)| cost(*value) <= best + best.abs() * tolerance);
    good_enough.map(|(rank, _)| *rank).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_rank_that_is_good_enough_is_chosen() {
        let losses = [(1, 2.5), (2, 2.02), (3, 2.0), (4, 2.01)];
        assert_eq!(smallest_within(&losses, false, 0.01), Some(2));
        assert_eq!(smallest_within(&losses, false, 0.0), Some(3));
        assert_eq!(smallest_within(&losses, false, 0.3), Some(1));
        assert_eq!(smallest_within(&[], false, 0.1), None);
        let scores = [(1, 0.5), (2, 0.79), (4, 0.8), (8, 0.78)];
        assert_eq!(smallest_within(&scores, true, 0.0), Some(4));
        assert_eq!(smallest_within(&scores, true, 0.02), Some(2));
        // Correlations may lie below zero, where worse is further from it.
        assert_eq!(smallest_within(&[(1, -0.2), (2, -0.1)], true, 0.5), Some(2));
    }
}
