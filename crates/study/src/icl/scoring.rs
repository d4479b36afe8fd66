//! The choice of an answer from log-likelihoods.

use super::options::Scoring;

/// What the choice depends on beside a question's own likelihoods.
#[derive(Clone, Debug, Default)]
pub(super) struct Reference {
    /// Tokens of each answer.
    pub(super) lengths: Vec<usize>,
    /// Log-likelihoods of the answers after each question without content.
    pub(super) content_free: Vec<Vec<f64>>,
    /// Log-likelihoods of the answers after the words before the answer alone.
    pub(super) answer_context: Vec<f64>,
}

/// Probabilities of the answers alone, from log-likelihoods.
pub(super) fn normalized(log_likelihoods: &[f64]) -> Vec<f64> {
    let largest = log_likelihoods.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = log_likelihoods.iter().map(|value| (value - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

/// Scores by which the answer is chosen, the largest being the choice.
pub(super) fn scores(scoring: Scoring, log_likelihoods: &[f64], reference: &Reference) -> Vec<f64> {
    match scoring {
        Scoring::Likelihood | Scoring::Generation => log_likelihoods.to_vec(),
        Scoring::PerToken => {
            log_likelihoods.iter().zip(&reference.lengths).map(|(value, length)| value / *length as f64).collect()
        }
        Scoring::AnswerContext => {
            log_likelihoods.iter().zip(&reference.answer_context).map(|(value, alone)| value - alone).collect()
        }
        Scoring::Calibrated => {
            let free: Vec<Vec<f64>> = reference.content_free.iter().map(|values| normalized(values)).collect();
            let mean = |answer: usize| free.iter().map(|values| values[answer]).sum::<f64>() / free.len() as f64;
            // W = diag(p̂_cf)⁻¹, b = 0.
            let own = normalized(log_likelihoods);
            own.iter().enumerate().map(|(answer, value)| value / mean(answer).max(f64::MIN_POSITIVE)).collect()
        }
    }
}

/// The place of the largest score, the first of equals.
pub(super) fn choice(scores: &[f64]) -> usize {
    let mut best = 0;
    for (place, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = place;
        }
    }
    best
}

/// The answer that a text begins with, whatever its case; the longest where several fit.
pub(super) fn written<'a>(text: &str, answers: impl Iterator<Item = &'a String>) -> Option<usize> {
    let text = text.trim().to_lowercase();
    let fits = |(_, words): &(usize, &String)| text.starts_with(&words.trim().to_lowercase());
    answers.enumerate().filter(fits).max_by_key(|(_, words)| words.len()).map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: &[f64], expected: &[f64]) {
        assert!(found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-12), "{found:?}");
    }

    #[test]
    fn calibration_makes_a_question_without_content_uniform() {
        let free = [0.7f64.ln(), 0.2f64.ln(), 0.1f64.ln()];
        let reference = Reference { content_free: vec![free.to_vec()], ..Reference::default() };
        close(&scores(Scoring::Calibrated, &free, &reference), &[1.0, 1.0, 1.0]);
        // A model that prefers the first answer whatever is asked is not believed.
        let asked = [0.6f64.ln(), 0.3f64.ln(), 0.1f64.ln()];
        assert_eq!(choice(&scores(Scoring::Likelihood, &asked, &reference)), 0);
        assert_eq!(choice(&scores(Scoring::Calibrated, &asked, &reference)), 1);
    }

    #[test]
    fn several_questions_without_content_are_averaged_as_probabilities() {
        let reference = Reference {
            content_free: vec![vec![0.9f64.ln(), 0.1f64.ln()], vec![0.5f64.ln(), 0.5f64.ln()]],
            ..Reference::default()
        };
        close(&scores(Scoring::Calibrated, &[0.7f64.ln(), 0.3f64.ln()], &reference), &[1.0, 1.0]);
    }

    #[test]
    fn answers_of_several_tokens_are_judged_by_their_mean() {
        let reference = Reference { lengths: vec![1, 3], ..Reference::default() };
        let asked = [-2.0, -3.0];
        assert_eq!(choice(&scores(Scoring::Likelihood, &asked, &reference)), 0);
        close(&scores(Scoring::PerToken, &asked, &reference), &[-2.0, -1.0]);
    }

    #[test]
    fn what_the_words_before_the_answer_say_alone_is_taken_off() {
        let reference = Reference { answer_context: vec![-1.0, -4.0], ..Reference::default() };
        close(&scores(Scoring::AnswerContext, &[-2.0, -3.0], &reference), &[-1.0, 1.0]);
    }

    #[test]
    fn a_written_answer_is_its_beginning() {
        let answers = [" yes".to_owned(), " yes and no".to_owned(), " no".to_owned()];
        let find = |text| written(text, answers.iter());
        assert_eq!(
            (find("Yes, it is"), find(" yes and no."), find("\nNO"), find("maybe")),
            (Some(0), Some(1), Some(2), None)
        );
    }
}
