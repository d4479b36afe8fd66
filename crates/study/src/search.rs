//! The search for a learning rate: a short list of candidates, and beyond its ends while the best one lies there.

/// A search for the best of several learning rates. It is a function of what has been measured, so that a search that was
/// stopped goes on where it was.
#[derive(Clone, Debug, PartialEq)]
pub struct RateSearch {
    /// Rates to try, ascending.
    candidates: Vec<f64>,
    /// Rates beyond the ends that may be tried.
    extensions: usize,
    higher_is_better: bool,
}

/// A rate and the score that it came to; none where the run failed.
pub type Trial = (f64, Option<f64>);

impl RateSearch {
    /// A search among `candidates`, with up to `extensions` rates beyond them.
    pub fn new(candidates: &[f64], extensions: usize, higher_is_better: bool) -> Self {
        let mut candidates = candidates.to_vec();
        candidates.sort_by(f64::total_cmp);
        candidates.dedup();
        Self { candidates, extensions, higher_is_better }
    }

    /// The rates to try next, of which up to `most` need not wait for each other; none when the search is over.
    pub fn next(&self, trials: &[Trial], most: usize) -> Vec<f64> {
        let is_new = |rate: &f64| trials.iter().all(|(tried, _)| tried != rate);
        let untried: Vec<f64> = self.candidates.iter().copied().filter(is_new).take(most).collect();
        if untried.is_empty() { self.beyond(trials).into_iter().collect() } else { untried }
    }

    /// The rate beyond the candidates that is tried next, if one is.
    fn beyond(&self, trials: &[Trial]) -> Option<f64> {
        if self.candidates.len() < 2 || trials.len() >= self.candidates.len() + self.extensions {
            return None;
        }
        let best = self.best(trials)?;
        let mut tried: Vec<f64> = trials.iter().map(|(rate, _)| *rate).collect();
        tried.sort_by(f64::total_cmp);
        let last = tried.len() - 1;
        let beyond = match best {
            best if best == tried[0] => tried[0] * (tried[0] / tried[1]),
            best if best == tried[last] => tried[last] * (tried[last] / tried[last - 1]),
            _ => return None,
        };
        Some(rounded(beyond))
    }

    /// The rate with the best score, the smallest of equals; none where every run failed.
    pub fn best(&self, trials: &[Trial]) -> Option<f64> {
        let mut best: Option<Trial> = None;
        let mut ordered: Vec<&Trial> = trials.iter().collect();
        ordered.sort_by(|left, right| left.0.total_cmp(&right.0));
        for (rate, score) in ordered {
            let Some(score) = score.filter(|score| score.is_finite()) else { continue };
            let better = |(_, best): Trial| {
                best.is_none_or(|best| if self.higher_is_better { score > best } else { score < best })
            };
            if best.is_none_or(better) {
                best = Some((*rate, Some(score)));
            }
        }
        best.map(|(rate, _)| rate)
    }

    /// Whether the best rate lies at an end of what was tried, so that a better one may lie beyond.
    pub fn is_at_an_end(&self, trials: &[Trial]) -> bool {
        let rates = || trials.iter().map(|(rate, _)| *rate);
        let (low, high) = (rates().fold(f64::INFINITY, f64::min), rates().fold(0.0, f64::max));
        trials.len() > 1 && self.best(trials).is_some_and(|best| best == low || best == high)
    }
}

/// To three digits that count, so that rates beyond the ends are written as people write them.
fn rounded(rate: f64) -> f64 {
    format!("{rate:.2e}").parse().unwrap_or(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a search on a function of which the best rate is known.
    fn search(search: &RateSearch, score: impl Fn(f64) -> Option<f64>) -> (Option<f64>, Vec<Trial>) {
        let mut trials = Vec::new();
        loop {
            let rates = search.next(&trials, 2);
            if rates.is_empty() {
                break;
            }
            trials.extend(rates.into_iter().map(|rate| (rate, score(rate))));
        }
        (search.best(&trials), trials)
    }

    /// A parabola over the logarithm.
    fn peak_at(best: f64) -> impl Fn(f64) -> Option<f64> {
        move |rate: f64| Some(-(rate / best).ln().powi(2))
    }

    #[test]
    fn the_candidate_nearest_to_the_peak_is_found() {
        let among = RateSearch::new(&[1e-2, 1e-4, 1e-3], 0, true);
        let (best, trials) = search(&among, peak_at(8e-4));
        assert_eq!((best, trials.len()), (Some(1e-3), 3));
        assert!(!among.is_at_an_end(&trials));
        let losses = RateSearch::new(&[1e-4, 1e-3, 1e-2], 0, false);
        assert_eq!(search(&losses, |rate| peak_at(1e-4)(rate).map(|score| -score)).0, Some(1e-4));
    }

    #[test]
    fn a_peak_beyond_the_ends_is_followed_as_far_as_was_declared() {
        let (best, trials) = search(&RateSearch::new(&[1e-4, 1e-3], 3, true), peak_at(1e-1));
        assert_eq!((best, trials.len()), (Some(1e-1), 5));
        let short = RateSearch::new(&[1e-4, 1e-3], 1, true);
        let (best, trials) = search(&short, peak_at(1e-1));
        assert_eq!((best, trials.len(), short.is_at_an_end(&trials)), (Some(1e-2), 3, true));
        assert_eq!(search(&RateSearch::new(&[1e-4, 3e-4], 1, true), peak_at(1e-6)).0, Some(3.33e-5));
        assert_eq!(search(&RateSearch::new(&[1e-3], 5, true), peak_at(1.0)).1.len(), 1);
    }

    #[test]
    fn failed_runs_never_win_and_equals_give_the_smaller_rate() {
        let among = RateSearch::new(&[1e-3, 1e-2, 1e-1], 0, true);
        assert_eq!(search(&among, |rate| (rate < 0.05).then_some(0.5)).0, Some(1e-3));
        assert_eq!(search(&among, |_| None).0, None);
        assert_eq!(search(&among, |rate| Some(if rate > 0.05 { f64::NAN } else { rate })).0, Some(1e-2));
    }

    #[test]
    fn a_search_is_a_function_of_its_trials() {
        let search = RateSearch::new(&[1e-4, 1e-3, 1e-2], 2, true);
        let trials = [(1e-2, Some(0.9)), (1e-4, Some(0.1))];
        assert_eq!(search.next(&trials, 1), [1e-3]);
        let mut turned = trials;
        turned.reverse();
        assert_eq!(search.next(&turned, 1), [1e-3]);
    }
}
