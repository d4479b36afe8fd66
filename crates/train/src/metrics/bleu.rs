//! Corpus BLEU (Papineni et al. 2002), equal to sacrebleu's default (Post 2018): 13a tokens, orders 1 to 4, exponential
//! smoothing, case kept.

use super::ngrams;
use super::references::check_references;
use super::tokens_13a::tokenize;
use crate::TrainError;

/// Orders of n-grams: 1 to 4.
const ORDERS: usize = 4;

/// The BLEU of a corpus and what it is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bleu {
    /// From 0 to 100.
    pub score: f64,
    /// The smoothed precision of every order, from 0 to 100.
    pub precisions: [f64; ORDERS],
    /// The penalty for hypotheses shorter than their references, from 0 to 1.
    pub brevity_penalty: f64,
    /// Tokens of all hypotheses.
    pub hypothesis_length: usize,
    /// Tokens of all references, for each hypothesis of the one closest in length.
    pub reference_length: usize,
}

/// The BLEU of `hypotheses`, the i-th against `references[i]`, of which there may be any number from one.
///
/// # Errors
/// [`TrainError::References`] if a hypothesis has no reference, or there are no hypotheses.
pub fn corpus_bleu<H: AsRef<str>, R: AsRef<str>>(hypotheses: &[H], references: &[Vec<R>]) -> Result<Bleu, TrainError> {
    check_references(hypotheses, references)?;
    let mut correct = [0; ORDERS];
    let mut total = [0; ORDERS];
    let (mut hypothesis_length, mut reference_length) = (0, 0);
    for (hypothesis, references) in hypotheses.iter().zip(references) {
        let hypothesis = tokenize(hypothesis.as_ref());
        let references: Vec<Vec<String>> = references.iter().map(|reference| tokenize(reference.as_ref())).collect();
        hypothesis_length += hypothesis.len();
        let lengths = references.iter().map(Vec::len);
        let closest = lengths.min_by_key(|length| (length.abs_diff(hypothesis.len()), *length));
        reference_length += closest.unwrap_or_default();
        for order in 1..=ORDERS {
            let allowed = ngrams::allowed(&references, order);
            let matches = |(ngram, count): (&[String], usize)| allowed.get(ngram).map_or(0, |most| count.min(*most));
            correct[order - 1] += ngrams::count(&hypothesis, order).into_iter().map(matches).sum::<usize>();
            total[order - 1] += (hypothesis.len() + 1).saturating_sub(order);
        }
    }

    let brevity_penalty = match hypothesis_length {
        0 => 0.0,
        length if length < reference_length => (1.0 - reference_length as f64 / length as f64).exp(),
        _ => 1.0,
    };
    let precisions = smoothed(correct, total);
    // Without a single n-gram of some order the geometric mean is zero.
    let mean = precisions.iter().map(|precision| precision.ln()).sum::<f64>() / ORDERS as f64;
    Ok(Bleu { score: brevity_penalty * mean.exp(), precisions, brevity_penalty, hypothesis_length, reference_length })
}

/// Precisions in per cent; the first order without a match counts as half a match, the next as a quarter, and so on
/// (Chen & Cherry 2014, method 3). Without any match, or of an order without n-grams, the precision is zero.
fn smoothed(correct: [usize; ORDERS], total: [usize; ORDERS]) -> [f64; ORDERS] {
    let mut precisions = [0.0; ORDERS];
    if correct.iter().all(|matches| *matches == 0) {
        return precisions;
    }
    let mut smoothing = 1.0;
    for ((precision, correct), total) in precisions.iter_mut().zip(correct).zip(total) {
        match (correct, total) {
            (_, 0) => break,
            (0, _) => {
                smoothing *= 2.0;
                *precision = 100.0 / (smoothing * total as f64);
            }
            _ => *precision = 100.0 * correct as f64 / total as f64,
        }
    }
    precisions
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Table {
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        name: String,
        lines: Vec<Line>,
        score: f64,
        precisions: [f64; ORDERS],
        brevity_penalty: f64,
        hypothesis_length: usize,
        reference_length: usize,
    }

    #[derive(Deserialize)]
    struct Line {
        hypothesis: String,
        references: Vec<String>,
    }

    #[test]
    fn every_score_equals_that_of_sacrebleu() {
        let table: Table = serde_json::from_str(include_str!("../../tests/data/bleu.json")).unwrap();
        assert_eq!(table.cases.len(), 24);
        for case in table.cases {
            let (hypotheses, references): (Vec<_>, Vec<_>) =
                case.lines.into_iter().map(|line| (line.hypothesis, line.references)).unzip();
            let bleu = corpus_bleu(&hypotheses, &references).unwrap();
            let close = |value: f64, expected: f64| (value - expected).abs() < 1e-9;
            assert!(close(bleu.score, case.score), "{}: {bleu:?}, expected {}", case.name, case.score);
            for (precision, expected) in bleu.precisions.iter().zip(case.precisions) {
                assert!(close(*precision, expected), "{}: {bleu:?}, expected {:?}", case.name, case.precisions);
            }
            assert!(close(bleu.brevity_penalty, case.brevity_penalty), "{}: {bleu:?}", case.name);
            let lengths = (bleu.hypothesis_length, bleu.reference_length);
            assert_eq!(lengths, (case.hypothesis_length, case.reference_length), "{}", case.name);
        }
    }
}
