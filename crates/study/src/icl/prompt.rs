//! Prompts: demonstrations drawn from the training data, and the question.

use serde_json::{Map, Value};
use tunesmith_tensor::Seed;

use super::options::{ANSWER, DemonstrationLabels, IclOptions};

/// A row of data.
pub(super) type Row = Map<String, Value>;

/// A demonstration.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Demonstration {
    /// The question, up to its answer.
    pub(super) question: String,
    /// The answer as it stands in the text.
    pub(super) answer: String,
}

/// The question of a row, up to its answer.
pub(super) fn question(options: &IclOptions, row: &Row) -> String {
    fill(options, |column| row.get(column).map(plain).unwrap_or_default())
}

/// A question with `content` in place of every column.
pub(super) fn without_content(options: &IclOptions, content: &str) -> String {
    fill(options, |_| content.to_owned())
}

/// What stands between the last column and the answer, without line breaks before it.
pub(super) fn answer_context(options: &IclOptions) -> String {
    let before = options.template.strip_suffix(ANSWER).unwrap_or(&options.template);
    before.rsplit('}').next().unwrap_or(before).trim_start().to_owned()
}

fn fill(options: &IclOptions, value: impl Fn(&str) -> String) -> String {
    let mut text = String::new();
    let mut rest = options.template.strip_suffix(ANSWER).unwrap_or(&options.template);
    while let Some((before, after)) = rest.split_once('{') {
        text.push_str(before);
        match after.split_once('}') {
            Some((column, after)) => {
                text.push_str(&value(column));
                rest = after;
            }
            None => {
                text.push('{');
                rest = after;
            }
        }
    }
    text + rest
}

pub(super) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), |text| text.trim().to_owned())
}

/// The place of a row's label among the answers.
pub(super) fn label(options: &IclOptions, row: &Row) -> Option<usize> {
    let found = plain(row.get(&options.answer_column)?);
    options.answers.as_ref()?.get_index_of(&found)
}

/// Draws demonstrations: a function of the seed.
pub(super) fn draw(options: &IclOptions, rows: &[Row], seed: Seed) -> Vec<Demonstration> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    seed.stream("demonstrations", 0).shuffle(&mut order);
    let chosen = match &options.answers {
        Some(answers) if options.balanced => balanced(options, rows, &order, answers.len()),
        _ => order.into_iter().take(options.demonstrations).collect(),
    };
    let mut labels = seed.stream("demonstration labels", 0);
    let demonstration = |row: usize| {
        let row = &rows[row];
        let answer = match (&options.answers, label(options, row)) {
            (Some(answers), Some(gold)) => {
                let shown = match options.demonstration_labels {
                    DemonstrationLabels::Gold => gold,
                    DemonstrationLabels::Random => labels.below(answers.len() as u64) as usize,
                    DemonstrationLabels::Permuted => (gold + 1) % answers.len(),
                };
                answers[shown].clone()
            }
            _ => row.get(&options.answer_column).map(plain).unwrap_or_default(),
        };
        Demonstration { question: question(options, row), answer }
    };
    chosen.into_iter().map(demonstration).collect()
}

/// Rows in the drawn order, of each label as many as of the others, give or take one.
fn balanced(options: &IclOptions, rows: &[Row], order: &[usize], labels: usize) -> Vec<usize> {
    let most = options.demonstrations.div_ceil(labels);
    let mut counts = vec![0; labels];
    let mut chosen = Vec::new();
    for row in order {
        let Some(label) = label(options, &rows[*row]) else { continue };
        // The last ones share what does not divide evenly.
        let is_full = chosen.len() == options.demonstrations;
        if !is_full && counts[label] < most {
            counts[label] += 1;
            chosen.push(*row);
        }
    }
    chosen
}

/// The text before a question: instruction and demonstrations in order number `order`; order 0 is as they were drawn.
pub(super) fn preamble(options: &IclOptions, demonstrations: &[Demonstration], seed: Seed, order: usize) -> String {
    let mut places: Vec<usize> = (0..demonstrations.len()).collect();
    if order > 0 {
        seed.stream("order of demonstrations", order as u64).shuffle(&mut places);
    }
    let shown = places.into_iter().map(|place| {
        let Demonstration { question, answer } = &demonstrations[place];
        format!("{question}{answer}")
    });
    let instruction = Some(options.instruction.clone()).filter(|text| !text.is_empty());
    instruction.into_iter().chain(shown).map(|part| part + &options.separator).collect()
}

#[cfg(test)]
mod tests {
    use indexmap::IndexMap;
    use serde_json::json;

    use super::*;

    fn options() -> IclOptions {
        IclOptions {
            template: "Review: {text}\nMood:{answer}".to_owned(),
            answers: Some(IndexMap::from([("0".into(), " bad".into()), ("1".into(), " good".into())])),
            separator: "\n--\n".to_owned(),
            ..IclOptions::default()
        }
    }

    fn rows() -> Vec<Row> {
        let row =
            |number: usize| json!({"text": format!("text {number}"), "label": usize::from(number.is_multiple_of(5))});
        (0..40).map(|number| row(number).as_object().unwrap().clone()).collect()
    }

    #[test]
    fn a_prompt_is_instruction_demonstrations_and_question() {
        let options = IclOptions { demonstrations: 2, instruction: "Judge.".to_owned(), ..options() };
        let shown = [("Review: a\nMood:", " bad"), ("Review: b\nMood:", " good")];
        let shown = shown.map(|(question, answer)| Demonstration { question: question.into(), answer: answer.into() });
        let text = preamble(&options, &shown, Seed(1), 0) + &question(&options, &rows()[3]);
        assert_eq!(text, "Judge.\n--\nReview: a\nMood: bad\n--\nReview: b\nMood: good\n--\nReview: text 3\nMood:");
        assert_eq!(without_content(&options, "N/A"), "Review: N/A\nMood:");
        assert_eq!(answer_context(&options), "Mood:");
    }

    #[test]
    fn demonstrations_are_balanced_and_a_function_of_the_seed() {
        let options = IclOptions { demonstrations: 6, ..options() };
        let drawn = draw(&options, &rows(), Seed(4));
        assert_eq!(drawn.iter().filter(|shown| shown.answer == " good").count(), 3);
        assert_eq!(drawn, draw(&options, &rows(), Seed(4)));
        assert_ne!(drawn, draw(&options, &rows(), Seed(5)));
        assert!(draw(&IclOptions { demonstrations: 0, ..options }, &rows(), Seed(4)).is_empty());
    }

    #[test]
    fn controls_change_labels_and_nothing_else() {
        let with = |labels| {
            draw(
                &IclOptions { demonstration_labels: labels, demonstrations: 20, balanced: false, ..options() },
                &rows(),
                Seed(2),
            )
        };
        let (gold, random, permuted) =
            (with(DemonstrationLabels::Gold), with(DemonstrationLabels::Random), with(DemonstrationLabels::Permuted));
        for other in [&random, &permuted] {
            assert!(gold.iter().zip(other).all(|(gold, other)| gold.question == other.question));
        }
        assert!(gold.iter().zip(&permuted).all(|(gold, other)| gold.answer != other.answer));
        let same = gold.iter().zip(&random).filter(|(gold, other)| gold.answer == other.answer).count();
        assert!((4..=16).contains(&same), "{same}");
    }

    #[test]
    fn orders_hold_the_same_demonstrations() {
        let options = IclOptions { demonstrations: 6, ..options() };
        let drawn = draw(&options, &rows(), Seed(4));
        let text = |order| preamble(&options, &drawn, Seed(4), order);
        assert_ne!(text(0), text(1));
        assert_ne!(text(1), text(2));
        let sorted = |text: String| {
            let mut parts: Vec<String> = text.split("\n--\n").map(str::to_owned).collect();
            parts.sort();
            parts
        };
        assert_eq!(sorted(text(0)), sorted(text(2)));
    }
}
