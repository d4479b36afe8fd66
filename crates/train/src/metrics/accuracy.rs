//! Accuracy: the share of predictions that equal their labels, as scikit-learn's `accuracy_score`.

/// The share of `predictions` that equal their `labels`, 0 to 1; NaN without any.
pub fn accuracy<T: PartialEq>(predictions: &[T], labels: &[T]) -> f64 {
    let right = predictions.iter().zip(labels).filter(|(prediction, label)| prediction == label).count();
    right as f64 / labels.len() as f64
}
