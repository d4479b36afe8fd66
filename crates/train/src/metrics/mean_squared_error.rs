//! The mean squared error, as scikit-learn's `mean_squared_error`.

/// The mean squared difference of `predictions` from `labels`; NaN without any.
pub fn mean_squared_error(predictions: &[f64], labels: &[f64]) -> f64 {
    let squares = predictions.iter().zip(labels).map(|(prediction, label)| (prediction - label).powi(2));
    squares.sum::<f64>() / labels.len() as f64
}
