//! The correlation coefficient of Matthews 1975, for any number of classes (Gorodkin 2004), as scikit-learn's
//! `matthews_corrcoef`.

use std::collections::BTreeSet;

/// The correlation of `predictions` with `labels`, −1 to 1; 0 where one side knows a single class.
pub fn matthews_correlation(predictions: &[usize], labels: &[usize]) -> f64 {
    let examples = labels.len() as f64;
    let right = predictions.iter().zip(labels).filter(|(prediction, label)| prediction == label).count() as f64;
    let classes: BTreeSet<usize> = predictions.iter().chain(labels).copied().collect();
    let (mut both, mut predicted_squares, mut labelled_squares) = (0.0, 0.0, 0.0);
    for class in classes {
        let count = |values: &[usize]| values.iter().filter(|value| **value == class).count() as f64;
        let (predicted, labelled) = (count(predictions), count(labels));
        both += predicted * labelled;
        predicted_squares += predicted * predicted;
        labelled_squares += labelled * labelled;
    }
    let spread = (examples * examples - predicted_squares) * (examples * examples - labelled_squares);
    if spread == 0.0 { 0.0 } else { (right * examples - both) / spread.sqrt() }
}
