//! CIDEr (Vedantam, Zitnick & Parikh 2015) of a corpus, equal to `pycocoevalcap`, which the script of the E2E challenge
//! calls: orders 1 to 4, clipped, with a Gaussian penalty for other lengths (CIDEr-D), on tokens of the Penn Treebank.

use std::collections::{BTreeMap, BTreeSet};

use super::tokens_ptb::tokenize;
use super::{ngrams, references::check_references};
use crate::TrainError;

const ORDERS: usize = 4;
/// Standard deviation of the length penalty, in n-grams.
const SIGMA: f64 = 6.0;

/// CIDEr of `hypotheses`: 0 to 10. How much an n-gram counts depends on all references of the corpus; of a corpus of one
/// line nothing counts.
///
/// # Errors
/// [`TrainError::References`].
pub fn corpus_cider(hypotheses: &[String], references: &[Vec<String>]) -> Result<f64, TrainError> {
    check_references(hypotheses, references)?;
    let tokens = |text: &String| tokenize(text);
    let references: Vec<Vec<Vec<String>>> =
        references.iter().map(|references| references.iter().map(tokens).collect()).collect();
    let mut lines_with: BTreeMap<&[String], usize> = BTreeMap::new();
    for references in &references {
        let known = references.iter().flat_map(|reference| (1..=ORDERS).flat_map(|order| reference.windows(order)));
        for ngram in known.collect::<BTreeSet<_>>() {
            *lines_with.entry(ngram).or_default() += 1;
        }
    }
    let lines = hypotheses.len() as f64;
    let rarity = |ngram: &[String]| (lines / lines_with.get(ngram).copied().unwrap_or(1) as f64).ln();
    let mut sum = 0.0;
    for (hypothesis, references) in hypotheses.iter().zip(&references) {
        let hypothesis = tokenize(hypothesis);
        let scores = references.iter().map(|reference| similarity(&hypothesis, reference, &rarity));
        sum += scores.sum::<f64>() / references.len() as f64;
    }
    Ok(10.0 * sum / lines)
}

/// The mean over the orders of the clipped cosine between the vectors of n-gram counts times rarity.
fn similarity(hypothesis: &[String], reference: &[String], rarity: &impl Fn(&[String]) -> f64) -> f64 {
    // pycocoevalcap counts pairs of words where it says length.
    let pairs = |tokens: &[String]| tokens.len().saturating_sub(1) as f64;
    let difference = pairs(hypothesis) - pairs(reference);
    let penalty = (-difference * difference / (2.0 * SIGMA * SIGMA)).exp();
    let mut sum = 0.0;
    for order in 1..=ORDERS {
        let (left, right) = (ngrams::count(hypothesis, order), ngrams::count(reference, order));
        let weight = |(ngram, count): (&&[String], &usize)| *count as f64 * rarity(ngram);
        let norm = |counts: &BTreeMap<&[String], usize>| counts.iter().map(|at| weight(at).powi(2)).sum::<f64>().sqrt();
        let product: f64 = left
            .iter()
            .filter_map(|(ngram, count)| {
                let (left, right) = (weight((ngram, count)), weight((ngram, right.get(ngram)?)));
                Some(left.min(right) * right)
            })
            .sum();
        let norms = norm(&left) * norm(&right);
        sum += if norms > 0.0 { product / norms } else { 0.0 };
    }
    penalty * sum / ORDERS as f64
}
