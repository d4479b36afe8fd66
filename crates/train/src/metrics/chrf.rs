//! chrF (Popović 2015) and chrF++ (Popović 2017) of a corpus, equal to sacrebleu's: n-grams of 1 to 6 characters without
//! white space, for chrF++ also of 1 and 2 words; recall weighs β² = 4 times as much as precision; case kept.

use super::ngrams;
use super::references::check_references;
use super::tokens_13a::words;
use crate::TrainError;

const CHARACTER_ORDERS: usize = 6;
const WORD_ORDERS: usize = 2;
const BETA_SQUARED: f64 = 4.0;

/// chrF of `hypotheses`, 0 to 100; each is compared with the reference it is most like.
///
/// # Errors
/// [`TrainError::References`].
pub fn corpus_chrf(hypotheses: &[String], references: &[Vec<String>]) -> Result<f64, TrainError> {
    corpus(hypotheses, references, 0)
}

/// chrF++ of `hypotheses`, 0 to 100; each is compared with the reference it is most like.
///
/// # Errors
/// [`TrainError::References`].
pub fn corpus_chrf_plus_plus(hypotheses: &[String], references: &[Vec<String>]) -> Result<f64, TrainError> {
    corpus(hypotheses, references, WORD_ORDERS)
}

/// Counts of one order: n-grams of the hypothesis, of the reference, and of both.
#[derive(Clone, Copy, Default)]
struct Counts {
    hypothesis: usize,
    reference: usize,
    matches: usize,
}

fn corpus(hypotheses: &[String], references: &[Vec<String>], word_orders: usize) -> Result<f64, TrainError> {
    check_references(hypotheses, references)?;
    let mut totals = vec![Counts::default(); CHARACTER_ORDERS + word_orders];
    for (hypothesis, references) in hypotheses.iter().zip(references) {
        let hypothesis = Text::new(hypothesis);
        let mut best: Option<(f64, Vec<Counts>)> = None;
        for reference in references {
            let counts = compare(&hypothesis, &Text::new(reference), word_orders);
            let score = score(&counts);
            if best.as_ref().is_none_or(|(best, _)| score > *best) {
                best = Some((score, counts));
            }
        }
        let (_, counts) = best.unwrap_or_default();
        for (total, counts) in totals.iter_mut().zip(counts) {
            total.hypothesis += counts.hypothesis;
            total.reference += counts.reference;
            total.matches += counts.matches;
        }
    }
    Ok(score(&totals))
}

/// A text as characters without white space, and as words with punctuation apart.
struct Text {
    characters: Vec<char>,
    words: Vec<String>,
}

impl Text {
    fn new(text: &str) -> Self {
        let mut split = Vec::new();
        for word in words(text) {
            let first = word.chars().next().map_or(0, char::len_utf8);
            let last = word.len() - word.chars().next_back().map_or(0, char::len_utf8);
            // A mark at the end comes off, else one at the beginning.
            let at = match () {
                () if last == 0 => 0,
                () if word.ends_with(|mark: char| mark.is_ascii_punctuation()) => last,
                () if word.starts_with(|mark: char| mark.is_ascii_punctuation()) => first,
                () => 0,
            };
            let (begin, end) = word.split_at(at);
            split.extend([begin, end].iter().filter(|part| !part.is_empty()).map(|part| (*part).to_owned()));
        }
        Self { characters: words(text).flat_map(str::chars).collect(), words: split }
    }
}

fn compare(hypothesis: &Text, reference: &Text, word_orders: usize) -> Vec<Counts> {
    let characters = (1..=CHARACTER_ORDERS).map(|order| matches(&hypothesis.characters, &reference.characters, order));
    let words = (1..=word_orders).map(|order| matches(&hypothesis.words, &reference.words, order));
    characters.chain(words).collect()
}

fn matches<T: Ord>(hypothesis: &[T], reference: &[T], order: usize) -> Counts {
    let known = ngrams::count(reference, order);
    let found = ngrams::count(hypothesis, order);
    Counts {
        // A reference too short for this order leaves it out of account.
        hypothesis: if known.is_empty() { 0 } else { found.values().sum() },
        reference: known.values().sum(),
        matches: found.iter().map(|(ngram, count)| known.get(ngram).map_or(0, |most| *count.min(most))).sum(),
    }
}

/// The F score of mean precision and mean recall over the orders that both sides have.
fn score(counts: &[Counts]) -> f64 {
    let (mut precision, mut recall, mut orders) = (0.0, 0.0, 0);
    for counts in counts.iter().filter(|counts| counts.hypothesis > 0 && counts.reference > 0) {
        precision += counts.matches as f64 / counts.hypothesis as f64;
        recall += counts.matches as f64 / counts.reference as f64;
        orders += 1;
    }
    if orders == 0 || precision + recall == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (precision / f64::from(orders), recall / f64::from(orders));
    100.0 * (1.0 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)
}
