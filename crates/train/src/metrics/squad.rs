//! Exact match and F1 of answers (Rajpurkar et al. 2016, 2018), equal to SQuAD's own scripts: case, punctuation, articles
//! and white space do not count; the best of several references does. An empty answer is right where the reference is
//! empty, or has no words but articles, as SQuAD 2.0 has it.

use std::sync::LazyLock;

use regex::Regex;

use super::ngrams;
use super::references::mean_of_best;
use super::tokens_13a::words;
use crate::TrainError;

/// What SQuAD reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Squad {
    /// Answers equal to a reference, in per cent.
    pub exact_match: f64,
    /// Mean F1 of words, in per cent.
    pub f1: f64,
}

/// SQuAD's measures of `answers`, each against any of its references.
///
/// # Errors
/// [`TrainError::References`].
pub fn squad(answers: &[String], references: &[Vec<String>]) -> Result<Squad, TrainError> {
    let exact = |answer: &str, reference: &str| f64::from(u8::from(normalized(answer) == normalized(reference)));
    Ok(Squad {
        exact_match: 100.0 * mean_of_best(answers, references, exact)?,
        f1: 100.0 * mean_of_best(answers, references, f1)?,
    })
}

fn f1(answer: &str, reference: &str) -> f64 {
    let (answer, reference) = (normalized(answer), normalized(reference));
    if answer.is_empty() || reference.is_empty() {
        return f64::from(u8::from(answer == reference));
    }
    let (found, known) = (ngrams::count(&answer, 1), ngrams::count(&reference, 1));
    let common: usize = found.iter().map(|(word, count)| known.get(word).map_or(0, |most| *count.min(most))).sum();
    2.0 * common as f64 / (answer.len() + reference.len()) as f64
}

/// The words of an answer that count.
fn normalized(text: &str) -> Vec<String> {
    static ARTICLES: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\b(a|an|the)\b").expect("the pattern is constant"));
    let plain: String = text.to_lowercase().chars().filter(|letter| !letter.is_ascii_punctuation()).collect();
    words(&ARTICLES.replace_all(&plain, " ")).map(str::to_owned).collect()
}
