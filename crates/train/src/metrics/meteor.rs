//! METEOR (Lavie & Agarwal 2007, α 0.9, β 3, γ 0.5), equal to NLTK's `meteor_score` on tokens of 13a, without its third
//! stage: words match exactly or by their Porter stems; WordNet's synonyms are not asked. The best of several references
//! counts; a corpus has the mean.

use std::collections::HashMap;

use super::porter::stem;
use super::references::mean_of_best;
use super::tokens_13a::tokenize;
use crate::TrainError;

/// Weight of recall in the mean of precision and recall.
const ALPHA: f64 = 0.9;
/// How steeply the penalty rises with the number of chunks.
const BETA: i32 = 3;
/// The largest penalty.
const GAMMA: f64 = 0.5;

/// The mean METEOR of `hypotheses`, 0 to 1.
///
/// # Errors
/// [`TrainError::References`].
pub fn mean_meteor(hypotheses: &[String], references: &[Vec<String>]) -> Result<f64, TrainError> {
    mean_of_best(hypotheses, references, meteor)
}

fn meteor(hypothesis: &str, reference: &str) -> f64 {
    let words = |text: &str| -> Vec<String> { tokenize(text).iter().map(|token| token.to_lowercase()).collect() };
    let (hypothesis, reference) = (words(hypothesis), words(reference));
    let matches = align(&hypothesis, &reference);
    if matches.is_empty() {
        return 0.0;
    }
    let count = matches.len() as f64;
    let (precision, recall) = (count / hypothesis.len() as f64, count / reference.len() as f64);
    let mean = precision * recall / (ALPHA * precision + (1.0 - ALPHA) * recall);
    // A chunk is a run of neighbours on both sides.
    let breaks = matches.windows(2).filter(|pair| pair[1] != (pair[0].0 + 1, pair[0].1 + 1)).count();
    let penalty = GAMMA * ((breaks + 1) as f64 / count).powi(BETA);
    (1.0 - penalty) * mean
}

/// Pairs of places in hypothesis and reference, by place in the hypothesis: first words that are equal, then those of
/// equal stems among the rest. As in NLTK the last words find their partners first, the last ones.
fn align(hypothesis: &[String], reference: &[String]) -> Vec<(usize, usize)> {
    let mut matches = Vec::new();
    let mut left: Vec<(usize, String)> = hypothesis.iter().cloned().enumerate().collect();
    let mut right: Vec<(usize, String)> = reference.iter().cloned().enumerate().collect();
    for stage in [str::to_owned as fn(&str) -> String, stem] {
        left.iter_mut().chain(&mut right).for_each(|(_, word)| *word = stage(word));
        let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
        for (place, word) in &right {
            places.entry(word).or_default().push(*place);
        }
        let mut found = Vec::new();
        for (place, word) in left.iter().rev() {
            if let Some(partner) = places.get_mut(word.as_str()).and_then(Vec::pop) {
                found.push((*place, partner));
            }
        }
        left.retain(|(place, _)| found.iter().all(|(taken, _)| taken != place));
        right.retain(|(place, _)| found.iter().all(|(_, taken)| taken != place));
        matches.extend(found);
    }
    matches.sort_unstable();
    matches
}
