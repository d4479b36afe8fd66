//! Near names for mistyped ones.

/// Likeness below which two names are not near.
const NEAR: f64 = 0.6;

/// The up to `limit` candidates that are most like `wanted`, the nearest first.
pub(crate) fn nearest<'a>(wanted: &str, candidates: impl IntoIterator<Item = &'a str>, limit: usize) -> Vec<&'a str> {
    let lower = wanted.to_lowercase();
    let likeness = |name: &str| strsim::normalized_damerau_levenshtein(&lower, &name.to_lowercase());
    let mut near: Vec<(f64, &str)> = candidates.into_iter().map(|name| (likeness(name), name)).collect();
    near.retain(|(likeness, _)| *likeness >= NEAR);
    near.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    near.dedup_by(|a, b| a.1 == b.1);
    near.into_iter().take(limit).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_comes_first_and_strangers_not_at_all() {
        let names = ["q_proj", "k_proj", "lm_head", "q_proj"];
        assert_eq!(nearest("q_porj", names, 3), ["q_proj", "k_proj"]);
        assert!(nearest("embed", names, 3).is_empty());
    }
}
