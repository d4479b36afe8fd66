//! From the scores of beginnings and ends to the text of an answer, as transformers' `postprocess_qa_predictions`.

use crate::tasks::{Question, TaskOptions};

/// An answer, and how sure the model is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answer {
    /// The part of the text; empty where there is no answer.
    pub(super) text: String,
    /// Its probability among the best.
    pub(super) probability: f64,
}

/// A possible answer.
struct Candidate {
    /// Characters of the text; `None` for no answer.
    characters: Option<(usize, usize)>,
    score: f32,
}

/// The answer to a question, given the scores `[tokens, 2]` (beginning and end) of each of its windows.
pub(super) fn answer(question: &Question, scores: &[&[f32]], options: &TaskOptions) -> Answer {
    let mut candidates = Vec::new();
    let mut no_answer = f32::INFINITY;
    for (window, scores) in question.windows.iter().zip(scores) {
        let start = |token: usize| scores[2 * token];
        let end = |token: usize| scores[2 * token + 1];
        no_answer = no_answer.min(start(0) + end(0));
        let ends = best(window.characters.len(), options.n_best_size, end);
        for first in best(window.characters.len(), options.n_best_size, start) {
            for last in ends.iter().copied() {
                let (Some(begin), Some(finish)) = (window.characters[first], window.characters[last]) else { continue };
                if last < first || last - first + 1 > options.max_answer_length {
                    continue;
                }
                candidates.push(Candidate { characters: Some((begin.0, finish.1)), score: start(first) + end(last) });
            }
        }
    }
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
    candidates.truncate(options.n_best_size);
    if options.version_2_with_negative {
        candidates.push(Candidate { characters: None, score: no_answer });
        candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
    }
    let largest = candidates.first().map_or(0.0, |best| f64::from(best.score));
    let total: f64 = candidates.iter().map(|candidate| (f64::from(candidate.score) - largest).exp()).sum();
    let probability = |candidate: &Candidate| (f64::from(candidate.score) - largest).exp() / total;
    let text =
        |(begin, end): (usize, usize)| question.context.chars().skip(begin).take(end - begin).collect::<String>();
    let found = candidates.iter().find(|candidate| candidate.characters.is_some());
    let nothing = candidates.iter().find(|candidate| candidate.characters.is_none());
    let nothing_is_better =
        |found: &Candidate| f64::from(no_answer) - f64::from(found.score) > options.null_score_diff_threshold;
    match (found, nothing) {
        (Some(found), Some(nothing)) if nothing_is_better(found) => {
            Answer { text: String::new(), probability: probability(nothing) }
        }
        (Some(found), _) => {
            Answer { text: found.characters.map(text).unwrap_or_default(), probability: probability(found) }
        }
        (None, nothing) => Answer { text: String::new(), probability: nothing.map_or(0.0, probability) },
    }
}

/// The tokens with the highest scores, best first.
fn best(tokens: usize, count: usize, score: impl Fn(usize) -> f32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..tokens).collect();
    order.sort_by(|a, b| score(*b).total_cmp(&score(*a)));
    order.truncate(count);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::Window;

    fn question() -> Question {
        let characters = vec![None, None, Some((0, 2)), Some((3, 5)), Some((6, 8)), None];
        let windows = vec![Window { example: 0, characters }];
        Question { id: "q".to_owned(), context: "ab cd ef".to_owned(), answers: Vec::new(), windows }
    }

    /// Scores of beginnings and ends, token by token.
    fn scores(begins: [f32; 6], ends: [f32; 6]) -> Vec<f32> {
        begins.into_iter().zip(ends).flat_map(|(begin, end)| [begin, end]).collect()
    }

    #[test]
    fn the_best_part_of_the_text_that_can_be_is_the_answer() {
        let options = TaskOptions::default();
        let scores = scores([9.0, 9.0, 1.0, 4.0, 2.0, 0.0], [0.0, 0.0, 5.0, 1.0, 3.0, 9.0]);
        assert_eq!(answer(&question(), &[&scores], &options).text, "cd ef");
        let short = TaskOptions { max_answer_length: 1, ..options };
        assert_eq!(answer(&question(), &[&scores], &short).text, "ab");
    }

    #[test]
    fn no_answer_wins_only_where_there_may_be_none() {
        let scores = scores([4.0, 0.0, 1.0, 3.0, 0.0, 0.0], [4.0, 0.0, 0.0, 3.0, 0.0, 0.0]);
        let options = TaskOptions::default();
        assert_eq!(answer(&question(), &[&scores], &options).text, "cd");
        let second = TaskOptions { version_2_with_negative: true, ..options };
        let found = answer(&question(), &[&scores], &second);
        assert!(found.text.is_empty() && found.probability > 0.8, "{found:?}");
        let bold = TaskOptions { null_score_diff_threshold: 2.5, ..second };
        assert_eq!(answer(&question(), &[&scores], &bold).text, "cd");
    }
}
