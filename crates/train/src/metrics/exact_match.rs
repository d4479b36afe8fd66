//! Exact match: the share of texts that equal one of their references once case and white space are evened out.

use super::references::check_references;
use super::tokens_13a::words;
use crate::TrainError;

/// The share of `hypotheses` that equal a reference, 0 to 1.
///
/// # Errors
/// [`TrainError::References`].
pub fn exact_match(hypotheses: &[String], references: &[Vec<String>]) -> Result<f64, TrainError> {
    check_references(hypotheses, references)?;
    let pairs = hypotheses.iter().zip(references);
    let equal = pairs.filter(|(text, references)| references.iter().any(|known| evened(text) == evened(known)));
    Ok(equal.count() as f64 / hypotheses.len() as f64)
}

/// A text in lower case, with single spaces between words and none around them.
pub(super) fn evened(text: &str) -> String {
    words(&text.to_lowercase()).collect::<Vec<_>>().join(" ")
}
