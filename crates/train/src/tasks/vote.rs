//! Majority votes of several adapters over one base (prompt ensembling, Lester et al. 2021,
//! <https://arxiv.org/abs/2104.08691>, section 6).
//!
//! A class, a label of several, a word's tag, an answer and a text is what most voters say. Between answers that as many
//! give, the one with the larger sum of their probabilities is taken, where there are probabilities, and then the one that
//! was given first. Numbers and features cannot be voted on; they are averaged, as probabilities are.

use super::Prediction;

/// What most voters say, with its place among the voters: of equally many the one with the larger `weight`, a voter's
/// own, and then the first.
pub(crate) fn majority<T: PartialEq>(votes: &[T], weight: impl Fn(usize) -> f64) -> usize {
    let support = |place: usize| {
        let same = (0..votes.len()).filter(|other| votes[*other] == votes[place]);
        same.fold((0, 0.0), |(count, sum), other| (count + 1, sum + weight(other)))
    };
    let mut best = (0, (0, f64::NEG_INFINITY));
    for place in 0..votes.len() {
        let (count, sum) = support(place);
        if count > best.1.0 || (count == best.1.0 && sum > best.1.1) {
            best = (place, (count, sum));
        }
    }
    best.0
}

/// One prediction of the voters' predictions of the same example. All are of one kind.
///
/// # Panics
/// If there is no voter.
pub(crate) fn elect(votes: Vec<Prediction>) -> Prediction {
    if votes.len() == 1 {
        return votes.into_iter().next().expect("the length was asked for");
    }
    match &votes[0] {
        Prediction::Class(..) => {
            let (classes, probabilities): (Vec<usize>, Vec<&[f64]>) =
                votes.iter().filter_map(Prediction::class).unzip();
            let mean = mean(&probabilities);
            // Not each voter's probability of its own class: what all think of the classes that are tied.
            let winner = classes[majority(&classes, |place| mean[classes[place]])];
            Prediction::Class(winner, mean)
        }
        Prediction::Flags(..) => {
            let (flags, probabilities): (Vec<&[bool]>, Vec<&[f64]>) =
                votes.iter().filter_map(Prediction::flags).unzip();
            let mean = mean(&probabilities);
            let holds = |(label, probability): (usize, &f64)| {
                let yes = flags.iter().filter(|flags| flags[label]).count();
                match (2 * yes).cmp(&flags.len()) {
                    std::cmp::Ordering::Equal => *probability > 0.5,
                    order => order.is_gt(),
                }
            };
            Prediction::Flags(mean.iter().enumerate().map(holds).collect(), mean)
        }
        Prediction::Numbers(_) => {
            let all = votes.iter().filter_map(|vote| match vote {
                Prediction::Numbers(numbers) => Some(numbers.as_slice()),
                _ => None,
            });
            Prediction::Numbers(mean(&all.collect::<Vec<_>>()))
        }
        Prediction::Tags(first) => {
            let all = votes.iter().filter_map(|vote| match vote {
                Prediction::Tags(tags) => Some(tags),
                _ => None,
            });
            let all: Vec<&Vec<usize>> = all.collect();
            let elected = |word: usize| {
                let votes: Vec<usize> = all.iter().map(|tags| tags[word]).collect();
                votes[majority(&votes, |_| 0.0)]
            };
            Prediction::Tags((0..first.len()).map(elected).collect())
        }
        Prediction::Answer(..) => {
            let all = votes.iter().filter_map(|vote| match vote {
                Prediction::Answer(answer, probability) => Some((answer.as_str(), *probability)),
                _ => None,
            });
            let (answers, probabilities): (Vec<&str>, Vec<f64>) = all.unzip();
            let winner = answers[majority(&answers, |place| probabilities[place])];
            let own = answers.iter().zip(&probabilities).filter(|(answer, _)| **answer == winner);
            let (count, sum) = own.fold((0, 0.0), |(count, sum), (_, probability)| (count + 1, sum + probability));
            Prediction::Answer(winner.to_owned(), sum / f64::from(count))
        }
        Prediction::Features(first) => {
            let mut sums = vec![0.0; first.len()];
            for vote in &votes {
                if let Prediction::Features(features) = vote {
                    sums.iter_mut().zip(features).for_each(|(sum, value)| *sum += f64::from(*value));
                }
            }
            Prediction::Features(sums.into_iter().map(|sum| (sum / votes.len() as f64) as f32).collect())
        }
    }
}

impl Prediction {
    fn class(&self) -> Option<(usize, &[f64])> {
        if let Self::Class(class, probabilities) = self { Some((*class, probabilities)) } else { None }
    }

    fn flags(&self) -> Option<(&[bool], &[f64])> {
        if let Self::Flags(flags, probabilities) = self { Some((flags, probabilities)) } else { None }
    }
}

/// The mean of vectors of one length.
fn mean(vectors: &[&[f64]]) -> Vec<f64> {
    let length = vectors.first().map_or(0, |vector| vector.len());
    let value = |place: usize| vectors.iter().map(|vector| vector[place]).sum::<f64>() / vectors.len() as f64;
    (0..length).map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_votes_win_and_ties_go_to_what_is_thought_likelier() {
        let class = |class, probabilities: [f64; 3]| Prediction::Class(class, probabilities.to_vec());
        let votes = vec![class(0, [0.5, 0.3, 0.2]), class(2, [0.1, 0.0, 0.9]), class(0, [0.6, 0.4, 0.0])];
        let Prediction::Class(winner, probabilities) = elect(votes) else { panic!("a class") };
        assert_eq!(winner, 0);
        for (found, expected) in probabilities.iter().zip([0.4, 0.7 / 3.0, 1.1 / 3.0]) {
            assert!((found - expected).abs() < 1e-12);
        }
        // Two against two: the third class has more of the probability.
        let tied = [[0.5, 0.1, 0.4], [0.0, 0.1, 0.9], [0.5, 0.1, 0.4], [0.2, 0.2, 0.6]];
        let votes =
            tied.iter().zip([0, 2, 0, 2]).map(|(probabilities, winner)| class(winner, *probabilities)).collect();
        assert!(matches!(elect(votes), Prediction::Class(2, _)));
        // A tie to the last digit goes to the first voter.
        let votes = vec![class(1, [0.5, 0.5, 0.0]), class(0, [0.5, 0.5, 0.0])];
        assert!(matches!(elect(votes), Prediction::Class(1, _)));
    }

    #[test]
    fn every_kind_of_prediction_has_a_vote() {
        let flags =
            |flags: [bool; 2], probabilities: [f64; 2]| Prediction::Flags(flags.to_vec(), probabilities.to_vec());
        let votes = vec![flags([true, false], [0.875, 0.25]), flags([false, true], [0.375, 0.5])];
        assert_eq!(elect(votes), flags([true, false], [0.625, 0.375]));
        let votes = vec![Prediction::Numbers(vec![1.0, 4.0]), Prediction::Numbers(vec![2.0, 0.0])];
        assert_eq!(elect(votes), Prediction::Numbers(vec![1.5, 2.0]));
        let tags = |tags: [usize; 3]| Prediction::Tags(tags.to_vec());
        assert_eq!(elect(vec![tags([1, 2, 0]), tags([0, 2, 1]), tags([0, 0, 2])]), tags([0, 2, 0]));
        let answer = |text: &str, probability| Prediction::Answer(text.to_owned(), probability);
        assert_eq!(elect(vec![answer("a", 0.9), answer("b", 0.4), answer("b", 0.2)]), answer("b", (0.4 + 0.2) / 2.0));
        assert_eq!(elect(vec![answer("a", 0.3), answer("b", 0.4)]), answer("b", 0.4));
        let votes = vec![Prediction::Features(vec![1.0, 3.0]), Prediction::Features(vec![2.0, 5.0])];
        assert_eq!(elect(votes), Prediction::Features(vec![1.5, 4.0]));
        let alone = Prediction::Class(1, vec![0.1, 0.9]);
        assert_eq!(elect(vec![alone.clone()]), alone);
    }

    #[test]
    fn texts_are_elected_by_number_and_then_by_place() {
        let first = |votes: &[&str]| majority(votes, |_| 0.0);
        assert_eq!(first(&["b", "a", "a"]), 1);
        assert_eq!(first(&["b", "a", "a", "b"]), 0);
        assert_eq!(first(&["x"]), 0);
    }
}
