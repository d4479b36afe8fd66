//! ROUGE (Lin 2004), equal to the package `rouge_score`: F measures of common n-grams (1, 2), of the longest common
//! subsequence (L), and of that between lines as sentences (Lsum), with or without Porter's stemmer. The best of several
//! references counts; a corpus has the mean.

use std::collections::BTreeMap;

use super::ngrams;
use super::porter::stem;
use super::references::mean_of_best;
use crate::TrainError;

/// Mean F measures, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rouge {
    /// Of words.
    pub rouge1: f64,
    /// Of pairs of words.
    pub rouge2: f64,
    /// Of the longest common subsequence.
    pub rouge_l: f64,
    /// Of the union of the longest common subsequences between lines.
    pub rouge_lsum: f64,
}

/// Whether words are compared or their stems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Words {
    /// As they are.
    Whole,
    /// Words of more than three letters by their Porter stems.
    Stemmed,
}

/// ROUGE of `hypotheses`.
///
/// # Errors
/// [`TrainError::References`].
pub fn corpus_rouge(hypotheses: &[String], references: &[Vec<String>], words: Words) -> Result<Rouge, TrainError> {
    let mean = |score: &dyn Fn(&[String], &[String]) -> f64| {
        let score =
            |hypothesis: &str, reference: &str| score(&tokenize(hypothesis, words), &tokenize(reference, words));
        mean_of_best(hypotheses, references, score)
    };
    Ok(Rouge {
        rouge1: mean(&|hypothesis, reference| common_ngrams(hypothesis, reference, 1))?,
        rouge2: mean(&|hypothesis, reference| common_ngrams(hypothesis, reference, 2))?,
        rouge_l: mean(&|hypothesis, reference| {
            let common = subsequence(reference, hypothesis).len();
            f_measure(common, hypothesis.len(), reference.len())
        })?,
        rouge_lsum: mean_of_best(hypotheses, references, |hypothesis, reference| {
            let lines =
                |text: &str| -> Vec<Vec<String>> { text.split('\n').map(|line| tokenize(line, words)).collect() };
            between_lines(&lines(hypothesis), &lines(reference))
        })?,
    })
}

/// Runs of ASCII letters and digits in lower case.
fn tokenize(text: &str, words: Words) -> Vec<String> {
    let lower = text.to_lowercase();
    let tokens = lower.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|token| !token.is_empty());
    let stemmed = |token: &str| if words == Words::Stemmed && token.len() > 3 { stem(token) } else { token.to_owned() };
    tokens.map(stemmed).collect()
}

fn common_ngrams(hypothesis: &[String], reference: &[String], order: usize) -> f64 {
    let (found, known) = (ngrams::count(hypothesis, order), ngrams::count(reference, order));
    let common = found.iter().map(|(ngram, count)| known.get(ngram).map_or(0, |most| *count.min(most))).sum();
    f_measure(common, found.values().sum(), known.values().sum())
}

fn between_lines(hypothesis: &[Vec<String>], reference: &[Vec<String>]) -> f64 {
    fn occurrences(lines: &[Vec<String>]) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for word in lines.iter().flatten() {
            *counts.entry(word.as_str()).or_default() += 1;
        }
        counts
    }
    let (mut in_hypothesis, mut in_reference) = (occurrences(hypothesis), occurrences(reference));
    let mut common = 0;
    for line in reference {
        let mut places: Vec<usize> = hypothesis.iter().flat_map(|other| subsequence(line, other)).collect();
        places.sort_unstable();
        places.dedup();
        for place in places {
            let word = line[place].as_str();
            // No word counts more often than it occurs on either side.
            if let (Some(left @ 1..), Some(right @ 1..)) = (in_hypothesis.get_mut(word), in_reference.get_mut(word)) {
                (*left, *right) = (*left - 1, *right - 1);
                common += 1;
            }
        }
    }
    let words = |lines: &[Vec<String>]| lines.iter().map(Vec::len).sum();
    f_measure(common, words(hypothesis), words(reference))
}

/// The places in `reference` of one of the longest subsequences that `hypothesis` has, too; ties as `rouge_score` breaks
/// them, for Lsum depends on it.
fn subsequence(reference: &[String], hypothesis: &[String]) -> Vec<usize> {
    let width = hypothesis.len() + 1;
    let mut lengths = vec![0u32; (reference.len() + 1) * width];
    for (row, word) in reference.iter().enumerate() {
        for (column, other) in hypothesis.iter().enumerate() {
            lengths[(row + 1) * width + column + 1] = if word == other {
                lengths[row * width + column] + 1
            } else {
                lengths[row * width + column + 1].max(lengths[(row + 1) * width + column])
            };
        }
    }
    let (mut row, mut column) = (reference.len(), hypothesis.len());
    let mut places = Vec::new();
    while row > 0 && column > 0 {
        if reference[row - 1] == hypothesis[column - 1] {
            places.push(row - 1);
            (row, column) = (row - 1, column - 1);
        } else if lengths[row * width + column - 1] > lengths[(row - 1) * width + column] {
            column -= 1;
        } else {
            row -= 1;
        }
    }
    places.reverse();
    places
}

fn f_measure(common: usize, hypothesis: usize, reference: usize) -> f64 {
    let (precision, recall) = (common as f64 / hypothesis.max(1) as f64, common as f64 / reference.max(1) as f64);
    if precision + recall > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 }
}
