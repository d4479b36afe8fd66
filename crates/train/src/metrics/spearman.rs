//! Spearman's rank correlation, as `scipy.stats.spearmanr`.

use super::pearson;

/// The correlation of the ranks of two samples of equal length, −1 to 1; equal values share the mean of their ranks. NaN
/// where one of them is constant or they have fewer than two values.
pub fn spearman(predictions: &[f64], labels: &[f64]) -> f64 {
    pearson(&ranks(predictions), &ranks(labels))
}

/// The rank of every value, from 1.
pub(crate) fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|left, right| values[*left].total_cmp(&values[*right]));
    let mut ranks = vec![0.0; values.len()];
    let mut begin = 0;
    while begin < order.len() {
        let tied = order[begin..].iter().take_while(|place| values[**place] == values[order[begin]]).count().max(1);
        for place in &order[begin..begin + tied] {
            ranks[*place] = begin as f64 + (tied + 1) as f64 / 2.0;
        }
        begin += tied;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_share_their_ranks() {
        assert_eq!(ranks(&[3.0, -0.0, 0.0, 3.0, 3.0, 9.0]), [4.0, 1.5, 1.5, 4.0, 4.0, 6.0]);
    }
}
