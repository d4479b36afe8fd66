//! NIST (Doddington 2002) of a corpus, equal to mteval-v13a.pl as the script of the E2E challenge calls it: orders 1 to
//! 5, ASCII letters in lower case, n-grams weighed by their information in all references.

use std::collections::BTreeMap;

use super::ngrams;
use super::references::check_references;
use super::tokens_13a::tokenize;
use crate::TrainError;

const ORDERS: usize = 5;

/// The NIST score of `hypotheses`: from 0, without upper bound. Zero where all references are empty.
///
/// # Errors
/// [`TrainError::References`].
pub fn corpus_nist(hypotheses: &[String], references: &[Vec<String>]) -> Result<f64, TrainError> {
    check_references(hypotheses, references)?;
    let tokens = |text: &String| tokenize(&text.to_ascii_lowercase());
    let hypotheses: Vec<Vec<String>> = hypotheses.iter().map(tokens).collect();
    let references: Vec<Vec<Vec<String>>> =
        references.iter().map(|references| references.iter().map(tokens).collect()).collect();

    let all: Vec<&Vec<String>> = references.iter().flatten().collect();
    let reference_words: usize = all.iter().map(|reference| reference.len()).sum();
    let filled = all.iter().filter(|reference| !reference.is_empty()).count();
    if filled == 0 {
        return Ok(0.0);
    }
    let mut occurrences: BTreeMap<&[String], usize> = BTreeMap::from([(&[][..], reference_words)]);
    for reference in &all {
        for order in 1..=ORDERS {
            for ngram in reference.windows(order) {
                *occurrences.entry(ngram).or_default() += 1;
            }
        }
    }
    // How much the last word tells that the words before it do not, in bits.
    let information = |ngram: &[String]| match (occurrences.get(&ngram[..ngram.len() - 1]), occurrences.get(ngram)) {
        (Some(before), Some(whole)) => (*before as f64 / *whole as f64).log2(),
        _ => 0.0,
    };

    let mut sum = 0.0;
    for order in 1..=ORDERS {
        let (mut found, mut total) = (0.0, 0);
        for (hypothesis, references) in hypotheses.iter().zip(&references) {
            let allowed = ngrams::allowed(references, order);
            for (ngram, count) in ngrams::count(hypothesis, order) {
                found += information(ngram) * allowed.get(ngram).map_or(0, |most| count.min(*most)) as f64;
            }
            total += (hypothesis.len() + 1).saturating_sub(order);
        }
        sum += found / total.max(1) as f64;
    }
    // The mean length of a reference that is not empty, for every hypothesis.
    let reference_length = reference_words as f64 * hypotheses.len() as f64 / filled as f64;
    let hypothesis_length: usize = hypotheses.iter().map(Vec::len).sum();
    Ok(sum * length_penalty(hypothesis_length as f64 / reference_length))
}

/// A half at two thirds of the length.
fn length_penalty(ratio: f64) -> f64 {
    match ratio {
        _ if ratio >= 1.0 => 1.0,
        _ if ratio <= 0.0 => 0.0,
        _ => (0.5f64.ln() / 1.5f64.ln().powi(2) * ratio.ln().powi(2)).exp(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_thirds_of_the_length_halve_the_score() {
        assert!((length_penalty(2.0 / 3.0) - 0.5).abs() < 1e-12);
        assert_eq!((length_penalty(1.2), length_penalty(0.0)), (1.0, 0.0));
    }
}
