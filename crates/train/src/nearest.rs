//! "Did you mean": near names for mistyped ones.

/// Likeness below which two names are not near.
const NEAR: f64 = 0.6;
/// What a name's beginning counts, of the whole name.
const BEGINNING: f64 = 0.8;

/// The candidate most like `wanted`, if one is near.
pub fn nearest<'a>(wanted: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = wanted.to_lowercase();
    let likeness = |name: &str| {
        let name = name.to_lowercase();
        let whole = strsim::normalized_damerau_levenshtein(&lower, &name);
        // The beginning of a name is nearly as good as the name.
        let begin: String = name.chars().take(lower.chars().count()).collect();
        let begins = if lower.len() < 4 { 0.0 } else { strsim::normalized_damerau_levenshtein(&lower, &begin) };
        whole.max(BEGINNING * begins)
    };
    let near = candidates.into_iter().map(|name| (likeness(name), name)).filter(|(likeness, _)| *likeness >= NEAR);
    near.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_or_none() {
        let names = ["learning_rate", "logging_steps", "save_steps"];
        assert_eq!(nearest("Learning_rat", names), Some("learning_rate"));
        assert_eq!(nearest("save_step", names), Some("save_steps"));
        assert_eq!(nearest("learn", names), Some("learning_rate"));
        assert_eq!(nearest("smolm2-135m", ["minilm-l6", "smollm2-135m-instruct"]), Some("smollm2-135m-instruct"));
        assert_eq!(nearest("bf16", names), None);
    }
}
