//! Paired tests: whether two methods differ, measured on the same seeds or tasks.

use statrs::function::beta::checked_beta_reg;
use statrs::function::erf::erfc;

use super::Summary;

/// Pairs up to which Wilcoxon's distribution is counted out, as scipy does: without ties, and with them.
const COUNTED: usize = 50;
const COUNTED_WITH_TIES: usize = 13;

/// What a test found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// The mean of the differences, left minus right.
    pub mean_difference: f64,
    /// The test's statistic.
    pub statistic: f64,
    /// How likely so large a statistic is, either way, if the two do not differ.
    pub p_value: f64,
}

/// Student's paired t test, two-sided, as `scipy.stats.ttest_rel`. None with fewer than two pairs or different lengths; a
/// statistic of NaN where all differences are zero.
pub fn paired_t_test(left: &[f64], right: &[f64]) -> Option<Comparison> {
    let summary = Summary::of(&differences(left, right)?)?;
    let statistic = summary.mean / summary.standard_error()?;
    let freedom = (summary.count - 1) as f64;
    let p_value = match freedom / (freedom + statistic * statistic) {
        part if part.is_nan() => f64::NAN,
        part => checked_beta_reg(freedom / 2.0, 0.5, part).ok()?,
    };
    Some(Comparison { mean_difference: summary.mean, statistic, p_value })
}

/// Wilcoxon's signed-rank test, two-sided, as `scipy.stats.wilcoxon` by default: pairs without difference are dropped; the
/// distribution is counted out for up to 50 pairs without ties or up to 13 with them, and normal otherwise. None without
/// any difference or with different lengths.
pub fn wilcoxon_signed_rank(left: &[f64], right: &[f64]) -> Option<Comparison> {
    let all = differences(left, right)?;
    let kept: Vec<f64> = all.iter().copied().filter(|difference| *difference != 0.0).collect();
    if kept.is_empty() {
        return None;
    }
    let sizes: Vec<f64> = kept.iter().map(|difference| difference.abs()).collect();
    let ranks = crate::metrics::ranks(&sizes);
    let positive: f64 = kept.iter().zip(&ranks).filter(|(value, _)| **value > 0.0).map(|(_, rank)| rank).sum();
    let count = kept.len() as f64;
    let statistic = positive.min(count * (count + 1.0) / 2.0 - positive);
    let mut sorted = sizes;
    sorted.sort_by(f64::total_cmp);
    let ties: f64 =
        sorted.chunk_by(|left, right| left == right).map(|tied| (tied.len() as f64).powi(3) - tied.len() as f64).sum();
    let plain = ties == 0.0 && kept.len() == all.len();
    let p_value = if all.len() <= if plain { COUNTED } else { COUNTED_WITH_TIES } {
        (2.0 * counted_out(&ranks, statistic)).min(1.0)
    } else {
        let variance = count * (count + 1.0) * (2.0 * count + 1.0) / 24.0 - ties / 48.0;
        let z = (statistic - count * (count + 1.0) / 4.0) / variance.sqrt();
        erfc(z.abs() / std::f64::consts::SQRT_2)
    };
    let mean_difference = all.iter().sum::<f64>() / all.len() as f64;
    Some(Comparison { mean_difference, statistic, p_value })
}

/// How likely those of `ranks` that an even chance picks sum to at most `most`.
fn counted_out(ranks: &[f64], most: f64) -> f64 {
    // Shared ranks may be halves.
    let doubled = |rank: f64| (2.0 * rank).round() as usize;
    let mut chances = vec![0.0; doubled(most) + 1];
    chances[0] = 1.0;
    for rank in ranks {
        for sum in (0..chances.len()).rev() {
            let with = sum.checked_sub(doubled(*rank)).map_or(0.0, |rest| chances[rest]);
            chances[sum] = 0.5 * (chances[sum] + with);
        }
    }
    chances.iter().sum()
}

fn differences(left: &[f64], right: &[f64]) -> Option<Vec<f64>> {
    (left.len() == right.len()).then(|| left.iter().zip(right).map(|(left, right)| left - right).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Table {
        cases: Vec<Case>,
    }

    #[derive(serde::Deserialize)]
    struct Case {
        left: Vec<f64>,
        right: Vec<f64>,
        t: [f64; 2],
        wilcoxon: [f64; 2],
    }

    #[test]
    fn statistics_and_p_values_equal_those_of_scipy() {
        let table: Table = serde_json::from_str(include_str!("../../tests/data/paired_tests.json")).unwrap();
        assert_eq!(table.cases.len(), 7);
        for case in table.cases {
            for (found, expected) in [
                (paired_t_test(&case.left, &case.right).unwrap(), case.t),
                (wilcoxon_signed_rank(&case.left, &case.right).unwrap(), case.wilcoxon),
            ] {
                let close = |value: f64, expected: f64| (value - expected).abs() < 1e-9 * expected.abs().max(1e-3);
                assert!(
                    close(found.statistic, expected[0]) && close(found.p_value, expected[1]),
                    "{found:?} {expected:?}"
                );
            }
        }
    }

    #[test]
    fn what_cannot_be_compared_has_no_result() {
        assert_eq!(paired_t_test(&[1.0], &[2.0]), None);
        assert_eq!(paired_t_test(&[1.0, 2.0], &[2.0]), None);
        assert_eq!(wilcoxon_signed_rank(&[1.0, 2.0], &[1.0, 2.0]), None);
        assert!(paired_t_test(&[1.0, 2.0], &[1.0, 2.0]).unwrap().p_value.is_nan());
        let certain = paired_t_test(&[1.0, 2.0], &[0.0, 1.0]).unwrap();
        assert_eq!((certain.mean_difference, certain.p_value), (1.0, 0.0));
    }
}
