//! Averages over neighbours, so that noisy lines can be followed.

/// Each value averaged with up to `reach` neighbours on each side.
pub fn smoothed(points: &[(u64, f64)], reach: usize) -> Vec<(f64, f64)> {
    let mean = |(index, (at, _)): (usize, &(u64, f64))| {
        // As many on the left as on the right, so that the ends are not shifted.
        let reach = reach.min(index).min(points.len() - 1 - index);
        let near = &points[index - reach..=index + reach];
        (*at as f64, near.iter().map(|(_, value)| value).sum::<f64>() / near.len() as f64)
    };
    points.iter().enumerate().map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_keeps_ends_and_straight_lines() {
        let line: Vec<(u64, f64)> = (0..20).map(|step| (step, 10.0 - step as f64)).collect();
        let same: Vec<(f64, f64)> = line.iter().map(|(step, value)| (*step as f64, *value)).collect();
        assert_eq!(smoothed(&line, 3), same);
        let spike = [(0, 0.0), (1, 3.0), (2, 0.0)];
        assert_eq!(smoothed(&spike, 1), [(0.0, 0.0), (1.0, 1.0), (2.0, 0.0)]);
    }
}
