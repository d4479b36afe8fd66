//! T5's buckets of distances (Raffel et al. 2020, section 2.1): one for each small distance, then ranges that grow
//! logarithmically, then one for everything beyond.

/// The bucket of a key `distance` places after the query. Where both directions count, half of the buckets are for keys
/// after the query; otherwise those all share the bucket of distance 0.
pub(super) fn bucket(distance: isize, buckets: usize, max_distance: usize, both_directions: bool) -> usize {
    let (buckets, first) = match (both_directions, distance > 0) {
        (true, after) => (buckets / 2, if after { buckets / 2 } else { 0 }),
        (false, _) => (buckets, 0),
    };
    let places = if both_directions { distance.unsigned_abs() } else { distance.min(0).unsigned_abs() };
    let exact = buckets / 2;
    if places < exact {
        return first + places;
    }
    // In float32, as transformers computes it, so that no boundary moves.
    let (places, exact_f) = (places as f32, exact as f32);
    let share = (places / exact_f).ln() / (max_distance as f64 / exact as f64).ln() as f32;
    let beyond = (share * (buckets - exact) as f32) as usize;
    first + (exact + beyond).min(buckets - 1)
}

#[cfg(test)]
mod tests {
    use super::bucket;

    /// Values of transformers' `_relative_position_bucket` with 32 buckets and a distance of 128.
    #[test]
    fn equal_the_reference() {
        let distances = [-200, -127, -64, -33, -16, -15, -9, -8, -7, -1, 0, 1, 7, 8, 12, 20, 50, 127, 128, 500];
        let both = [15, 15, 14, 12, 10, 9, 8, 8, 7, 1, 0, 17, 23, 24, 25, 26, 29, 31, 31, 31];
        let one = [31, 31, 26, 21, 16, 15, 9, 8, 7, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for ((distance, both), one) in distances.into_iter().zip(both).zip(one) {
            assert_eq!(bucket(distance, 32, 128, true), both, "{distance} in both directions");
            assert_eq!(bucket(distance, 32, 128, false), one, "{distance} in one direction");
        }
    }
}
