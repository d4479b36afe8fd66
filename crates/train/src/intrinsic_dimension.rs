//! The search for the intrinsic dimension of an objective (Li et al. 2018, <https://arxiv.org/abs/1804.08838>, section 2;
//! Aghajanyan, Zettlemoyer and Gupta 2021, <https://arxiv.org/abs/2012.13255>, section 3).
//!
//! ```text
//! d90 = the smallest d at which training in a random subspace of d dimensions reaches 90 % of what training
//!       everything reaches, by a metric of which more is better
//! ```
//!
//! The search knows nothing of models: it is told what trials came to, and says what to try next. So it can go on after any
//! interruption from the list of trials alone.

use serde::{Deserialize, Serialize};

use crate::TrainError;

/// How the search goes: `d` grows from `first` by `factor` until the threshold is reached or `last` is passed; then the
/// gap between the largest `d` that fell short and the smallest that did not is halved, on a logarithmic scale, until the
/// two are within `resolution` of each other or neighbours. Each `d` is tried with each learning rate, and the best counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DimensionSearch {
    /// What fraction of the baseline is to be reached; 0.9 for d90.
    pub fraction: f64,
    /// The first `d`.
    pub first: usize,
    /// The largest `d` that is tried.
    pub last: usize,
    /// By how much `d` grows, more than 1.
    pub factor: f64,
    /// The ratio of two `d` that is near enough, from 1.
    pub resolution: f64,
    /// Learning rates in the subspace.
    pub learning_rates: Vec<f64>,
    /// Learning rates of training everything.
    pub baseline_learning_rates: Vec<f64>,
}

/// A training run that was made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// What was trained.
    #[serde(flatten)]
    pub candidate: Candidate,
    /// The best value that the metric took; none where the run diverged.
    pub metric: Option<f64>,
}

/// A training run to make.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// `d`; none for training everything, the baseline.
    pub dimension: Option<usize>,
    /// The learning rate.
    pub learning_rate: f64,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq)]
pub enum NextTrial {
    /// A run to make.
    Train(Candidate),
    /// Nothing: the search is over.
    Finished(IntrinsicDimension),
}

/// What a search found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IntrinsicDimension {
    /// The best run that trained everything.
    pub baseline: Trial,
    /// The value of the metric to reach.
    pub threshold: f64,
    /// The smallest `d` that reached it, with its best run; none where even the largest did not.
    pub found: Option<Trial>,
    /// The best run of each `d` that was tried, by `d`.
    pub curve: Vec<CurvePoint>,
}

/// What one `d` came to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// `d`.
    pub dimension: usize,
    /// The learning rate that was best.
    pub learning_rate: f64,
    /// The metric with it; none where every run diverged.
    pub metric: Option<f64>,
    /// The best metric up to this `d`: what can be had with so many numbers or fewer.
    pub envelope: Option<f64>,
}

impl Default for DimensionSearch {
    /// d90 from 10 to 10,000, to within a quarter.
    fn default() -> Self {
        Self {
            fraction: 0.9,
            first: 10,
            last: 10_000,
            factor: 3.0,
            resolution: 1.25,
            learning_rates: vec![1e-3, 1e-2, 1e-1],
            baseline_learning_rates: vec![2e-5],
        }
    }
}

impl DimensionSearch {
    /// Makes sure that the search can be made.
    ///
    /// # Errors
    /// [`TrainError::InvalidArguments`] with everything that is wrong.
    pub fn validate(&self) -> Result<(), TrainError> {
        let mut problems = Vec::new();
        let mut check = |holds: bool, problem: String| {
            if !holds {
                problems.push(problem);
            }
        };
        check(
            self.fraction > 0.0 && self.fraction <= 1.0,
            format!("fraction is {}, must be more than 0 and at most 1", self.fraction),
        );
        check(self.first > 0, "first is 0, must be at least 1".to_owned());
        check(self.last >= self.first, format!("last is {}, less than first, which is {}", self.last, self.first));
        check(self.factor > 1.0 && self.factor.is_finite(), format!("factor is {}, must be more than 1", self.factor));
        check(self.resolution >= 1.0, format!("resolution is {}, must be at least 1", self.resolution));
        for (name, rates) in
            [("learning_rates", &self.learning_rates), ("baseline_learning_rates", &self.baseline_learning_rates)]
        {
            check(!rates.is_empty(), format!("{name} is empty"));
            for rate in rates {
                check(*rate > 0.0 && rate.is_finite(), format!("{name} has {rate}, must be more than 0"));
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(TrainError::InvalidArguments { problems }) }
    }

    /// What comes after `trials`, in whatever order these were made.
    pub fn next(&self, trials: &[Trial]) -> NextTrial {
        let baseline = match best_of(None, &self.baseline_learning_rates, trials) {
            Ok(best) => best,
            Err(candidate) => return NextTrial::Train(candidate),
        };
        // A baseline that diverged can be reached by nothing.
        let threshold = baseline.metric.map_or(f64::INFINITY, |metric| self.fraction * metric);
        let mut curve: Vec<Trial> = Vec::new();
        let mut reaches = |dimension: usize| {
            let best = best_of(Some(dimension), &self.learning_rates, trials)?;
            curve.push(best);
            Ok(best.metric.is_some_and(|metric| metric >= threshold))
        };
        match self.search(&mut reaches) {
            Err(candidate) => NextTrial::Train(candidate),
            Ok(dimension) => {
                let found = curve.iter().find(|trial| trial.candidate.dimension == dimension && dimension.is_some());
                let found = found.copied();
                NextTrial::Finished(IntrinsicDimension { baseline, threshold, found, curve: with_envelope(curve) })
            }
        }
    }

    /// The smallest `d` that reaches the threshold, if one up to the last does.
    fn search<E>(&self, reaches: &mut impl FnMut(usize) -> Result<bool, E>) -> Result<Option<usize>, E> {
        let (mut below, mut above) = (None, self.first);
        while !reaches(above)? {
            if above >= self.last {
                return Ok(None);
            }
            below = Some(above);
            above = ((above as f64 * self.factor).round() as usize).clamp(above + 1, self.last);
        }
        let Some(mut below) = below else { return Ok(Some(above)) };
        while above > below + 1 && above as f64 / below as f64 > self.resolution {
            let middle = ((below as f64 * above as f64).sqrt().round() as usize).clamp(below + 1, above - 1);
            if reaches(middle)? {
                above = middle;
            } else {
                below = middle;
            }
        }
        Ok(Some(above))
    }
}

/// The best trial of a dimension, or the first of its runs that is yet to be made.
fn best_of(dimension: Option<usize>, learning_rates: &[f64], trials: &[Trial]) -> Result<Trial, Candidate> {
    let mut best: Option<Trial> = None;
    for learning_rate in learning_rates {
        let candidate = Candidate { dimension, learning_rate: *learning_rate };
        let trial = *trials.iter().find(|trial| trial.candidate == candidate).ok_or(candidate)?;
        let trial = Trial { metric: trial.metric.filter(|metric| !metric.is_nan()), ..trial };
        if best.is_none_or(|best| trial.metric > best.metric) {
            best = Some(trial);
        }
    }
    best.ok_or(Candidate { dimension, learning_rate: f64::NAN })
}

fn with_envelope(mut trials: Vec<Trial>) -> Vec<CurvePoint> {
    trials.sort_by_key(|trial| trial.candidate.dimension);
    let mut envelope: Option<f64> = None;
    let points = trials.into_iter().filter_map(|Trial { candidate, metric }| {
        // None is less than any number.
        if metric > envelope {
            envelope = metric;
        }
        let Candidate { dimension, learning_rate } = candidate;
        Some(CurvePoint { dimension: dimension?, learning_rate, metric, envelope })
    });
    points.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(search: &DimensionSearch, metric: impl Fn(Candidate) -> Option<f64>) -> (IntrinsicDimension, Vec<Trial>) {
        let mut trials = Vec::new();
        loop {
            match search.next(&trials) {
                NextTrial::Finished(found) => return (found, trials),
                NextTrial::Train(candidate) => trials.push(Trial { candidate, metric: metric(candidate) }),
            }
        }
    }

    /// 0.8 from 37 dimensions on, with the second learning rate.
    fn step(candidate: Candidate) -> Option<f64> {
        match candidate {
            Candidate { dimension: None, .. } => Some(0.85),
            Candidate { learning_rate: 0.1, .. } => Some(0.4),
            Candidate { dimension: Some(dimension), .. } => Some(if dimension < 37 { 0.5 } else { 0.8 }),
        }
    }

    fn search() -> DimensionSearch {
        DimensionSearch { learning_rates: vec![0.1, 0.2], resolution: 1.0, factor: 2.0, ..DimensionSearch::default() }
    }

    #[test]
    fn the_smallest_dimension_is_found_between_the_last_that_failed_and_the_first_that_did_not() {
        let (found, trials) = run(&search(), step);
        let best = found.found.unwrap();
        assert_eq!((best.candidate.dimension, best.candidate.learning_rate, best.metric), (Some(37), 0.2, Some(0.8)));
        assert!((found.threshold - 0.765).abs() < 1e-12);
        let tried: Vec<usize> = found.curve.iter().map(|point| point.dimension).collect();
        assert_eq!(tried, [10, 20, 28, 33, 36, 37, 38, 40]);
        assert_eq!(trials.len(), 1 + 2 * tried.len());
        let (coarse, _) = run(&DimensionSearch { resolution: 1.5, ..search() }, step);
        assert_eq!(coarse.found.unwrap().candidate.dimension, Some(40));
    }

    #[test]
    fn it_goes_on_from_its_trials_in_any_order() {
        let (found, mut trials) = run(&search(), step);
        for made in 0..trials.len() {
            let NextTrial::Train(next) = search().next(&trials[..made]) else { panic!("over after {made}") };
            assert_eq!(next, trials[made].candidate);
        }
        trials.reverse();
        assert_eq!(search().next(&trials), NextTrial::Finished(found));
    }

    #[test]
    fn the_first_dimension_may_do_and_the_last_may_not() {
        let (found, _) = run(&DimensionSearch { first: 50, ..search() }, step);
        assert_eq!((found.found.unwrap().candidate.dimension, found.curve.len()), (Some(50), 1));
        let (found, _) = run(&DimensionSearch { last: 36, ..search() }, step);
        assert_eq!(found.found, None);
        assert_eq!(found.curve.iter().map(|point| point.dimension).collect::<Vec<_>>(), [10, 20, 36]);
    }

    #[test]
    fn runs_that_diverge_reach_nothing_and_the_envelope_never_falls() {
        let metric = |candidate: Candidate| match candidate.dimension {
            None => Some(1.0),
            Some(10) => Some(0.6),
            Some(20) => None,
            Some(40) => Some(f64::NAN),
            _ => Some(0.95),
        };
        let (found, _) = run(&DimensionSearch { resolution: 3.0, ..search() }, metric);
        assert_eq!(found.found.unwrap().candidate.dimension, Some(80));
        let envelope: Vec<Option<f64>> = found.curve.iter().map(|point| point.envelope).collect();
        assert_eq!(envelope, [Some(0.6), Some(0.6), Some(0.6), Some(0.95)]);
        let (found, _) = run(&search(), |candidate| candidate.dimension.map(|_| 1.0));
        assert_eq!((found.found, found.baseline.metric), (None, None));
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let wrong = DimensionSearch {
            fraction: 0.0,
            first: 0,
            last: 0,
            factor: 1.0,
            resolution: 0.5,
            learning_rates: Vec::new(),
            baseline_learning_rates: vec![-1.0],
        };
        let TrainError::InvalidArguments { problems } = wrong.validate().unwrap_err() else { panic!() };
        assert_eq!(problems.len(), 6, "{problems:?}");
        DimensionSearch::default().validate().unwrap();
    }

    #[test]
    fn trials_are_lines_of_json() {
        let trial = Trial { candidate: Candidate { dimension: Some(7), learning_rate: 0.1 }, metric: None };
        let line = serde_json::to_string(&trial).unwrap();
        assert_eq!(line, r#"{"dimension":7,"learning_rate":0.1,"metric":null}"#);
        assert_eq!(serde_json::from_str::<Trial>(&line).unwrap(), trial);
    }
}
