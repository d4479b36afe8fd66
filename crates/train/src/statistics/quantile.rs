//! Quantiles, as the figures of Houlsby et al. 2019 show them (the 20th, 50th and 80th percentile over tasks).

/// The value below which the part `q` of `values` lies, `q` in `[0, 1]`, interpolated in a straight line between
/// neighbours as NumPy's `quantile` does by default; NaN without values or if one of them is NaN.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    if values.is_empty() || values.iter().any(|value| value.is_nan()) {
        return f64::NAN;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = q.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_equal_those_of_numpy() {
        // numpy.quantile([3, 1, 4, 1, 5, 9, 2, 6], q)
        let values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0];
        for (q, expected) in [(0.0, 1.0), (0.2, 1.4), (0.5, 3.5), (0.8, 5.6), (0.95, 7.95), (1.0, 9.0)] {
            assert!((quantile(&values, q) - expected).abs() < 1e-12, "{q}: {}", quantile(&values, q));
        }
        assert_eq!(quantile(&[7.0], 0.3), 7.0);
        assert!(quantile(&[], 0.5).is_nan() && quantile(&[1.0, f64::NAN], 0.5).is_nan());
    }
}
