//! Hypotheses with their references.

use crate::TrainError;

/// Checks that there are hypotheses and that each has a reference.
pub(super) fn check_references<H, R>(hypotheses: &[H], references: &[Vec<R>]) -> Result<(), TrainError> {
    if hypotheses.is_empty() || hypotheses.len() != references.len() {
        let reason = format!("there are {} hypotheses and {} sets of references", hypotheses.len(), references.len());
        return Err(TrainError::References { reason });
    }
    match references.iter().position(Vec::is_empty) {
        Some(index) => Err(TrainError::References { reason: format!("hypothesis {index} (from 0) has none") }),
        None => Ok(()),
    }
}

/// The mean over the hypotheses of the best score against any of their references. A score is not negative.
pub(super) fn mean_of_best(
    hypotheses: &[String],
    references: &[Vec<String>],
    score: impl Fn(&str, &str) -> f64,
) -> Result<f64, TrainError> {
    check_references(hypotheses, references)?;
    let pairs = hypotheses.iter().zip(references);
    let best =
        pairs.map(|(text, references)| references.iter().map(|reference| score(text, reference)).fold(0.0, f64::max));
    Ok(best.sum::<f64>() / hypotheses.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_compared_is_an_error() {
        let reason = |hypotheses: &[&str], references: &[Vec<&str>]| {
            check_references(hypotheses, references).unwrap_err().to_string().split(": ").nth(1).unwrap().to_owned()
        };
        assert_eq!(reason(&["a"], &[]), "there are 1 hypotheses and 0 sets of references");
        assert_eq!(reason(&[], &[]), "there are 0 hypotheses and 0 sets of references");
        assert_eq!(reason(&["a", "b"], &[vec!["a"], vec![]]), "hypothesis 1 (from 0) has none");
    }
}
