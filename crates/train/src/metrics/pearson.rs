//! Pearson's correlation coefficient, as `scipy.stats.pearsonr`.

/// The linear correlation of two samples of equal length, −1 to 1; NaN where one of them is constant or they have fewer
/// than two values.
pub fn pearson(predictions: &[f64], labels: &[f64]) -> f64 {
    let constant = |values: &[f64]| values.iter().all(|value| *value == values[0]);
    if constant(predictions) || constant(labels) {
        return f64::NAN;
    }
    let (predictions, labels) = (centred(predictions), centred(labels));
    let product: f64 = predictions.iter().zip(&labels).map(|(left, right)| left * right).sum();
    product.clamp(-1.0, 1.0)
}

/// The differences from the mean, scaled to unit length; scaled first by the largest, that no square over- or underflows.
fn centred(values: &[f64]) -> Vec<f64> {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let largest = values.iter().map(|value| (value - mean).abs()).fold(0.0, f64::max);
    let scaled: Vec<f64> = values.iter().map(|value| (value - mean) / largest).collect();
    let norm = scaled.iter().map(|value| value * value).sum::<f64>().sqrt();
    scaled.iter().map(|value| value / norm).collect()
}
