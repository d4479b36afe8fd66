//! Questions about texts: each becomes windows over its text, with the place of the answer where a window holds it, as
//! transformers' `run_qa` makes them.

use rayon::prelude::*;
use serde_json::Value;

use crate::TrainError;
use crate::data::problems::Problems;
use crate::data::rows::Row;
use crate::tasks::{Target, TaskContext, TaskDataset, TaskExample, TaskRows};

/// Tokens of a window where the options do not say.
const WINDOW: usize = 384;

/// A question, its text, and its windows among the examples.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// Its id in the file, or its number.
    pub id: String,
    /// The text that the answer is part of.
    pub context: String,
    /// Every right answer; none where there is none in the text.
    pub answers: Vec<String>,
    /// Its windows, one an example.
    pub windows: Vec<Window>,
}

/// A window over a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The example it is.
    pub example: usize,
    /// For each token its first character in the text and the one after its last; `None` for tokens that are not of the
    /// text.
    pub characters: Vec<Option<(usize, usize)>>,
}

/// Where an answer begins and ends, in characters.
type Place = (usize, usize);

pub(super) fn dataset(rows: &TaskRows, context: &TaskContext<'_>) -> Result<TaskDataset, TrainError> {
    let made: Vec<_> = rows.rows.par_iter().enumerate().map(|(number, row)| question(number, row, context)).collect();
    let mut problems = Problems::default();
    let mut dataset = TaskDataset::new(context.model);
    for (row, made) in rows.rows.iter().zip(made) {
        match made {
            Ok((mut question, examples)) => {
                for (window, example) in question.windows.iter_mut().zip(examples) {
                    window.example = dataset.examples.len();
                    dataset.examples.push(example);
                }
                dataset.questions.push(question);
            }
            Err(problem) => problems.add(row.line, problem),
        }
    }
    problems.into_result(&rows.path)?;
    Ok(dataset)
}

fn question(number: usize, row: &Row, context: &TaskContext<'_>) -> Result<(Question, Vec<TaskExample>), String> {
    let (asked, text) = (row.text("question")?.trim_start(), row.text("context")?);
    let id = row.fields.get("id").and_then(Value::as_str).map_or_else(|| number.to_string(), str::to_owned);
    let answers = answers(row, text, context)?;
    let window = context.data.max_length.unwrap_or(WINDOW).min(context.positions());
    let stride = context.options.doc_stride;
    let windows = context.tokenizer.encode_windows(asked, text, window, stride).map_err(|error| error.to_string())?;
    let windows = windows.ok_or_else(|| {
        format!(
            "its question is too long for windows of {window} tokens of which {stride} are repeated: raise max_length \
             or lower doc_stride"
        )
    })?;
    let first = answers.first().map(|(_, place)| *place);
    let mut question = Question {
        id,
        context: text.to_owned(),
        answers: answers.into_iter().map(|(answer, _)| answer).collect(),
        windows: Vec::new(),
    };
    let mut examples = Vec::new();
    for pieces in windows {
        let characters: Vec<Option<Place>> = pieces
            .origins
            .iter()
            .map(|origin| origin.filter(|origin| origin.text == 1).map(|origin| origin.characters))
            .collect();
        let target = if context.labelled { Target::Span(span(first, &characters)) } else { Target::Unknown };
        examples.push(TaskExample { ids: pieces.ids, token_type_ids: pieces.token_type_ids, target });
        question.windows.push(Window { example: 0, characters });
    }
    Ok((question, examples))
}

/// The answers with their places.
fn answers(row: &Row, text: &str, context: &TaskContext<'_>) -> Result<Vec<(String, Place)>, String> {
    let Some(answers) = row.fields.get("answers").filter(|value| !value.is_null()) else {
        return if context.labelled { Err("has no `answers`".to_owned()) } else { Ok(Vec::new()) };
    };
    let list = |key: &str| {
        let values = answers.get(key).and_then(Value::as_array);
        values.ok_or_else(|| format!("`answers` has no list `{key}`"))
    };
    let (texts, starts) = (list("text")?, list("answer_start")?);
    if texts.len() != starts.len() {
        return Err(format!("`answers` has {} texts and {} places where they start", texts.len(), starts.len()));
    }
    if texts.is_empty() && !context.options.version_2_with_negative && context.labelled {
        return Err("has no answer: set version_2_with_negative: true if questions may have none".to_owned());
    }
    let characters: Vec<char> = text.chars().collect();
    let place = |(answer, start): (&Value, &Value)| {
        let answer = answer.as_str().ok_or("`answers.text` must hold strings")?;
        let start = start.as_u64().ok_or("`answers.answer_start` must hold whole numbers")? as usize;
        let end = start + answer.chars().count();
        let found: Option<String> = characters.get(start..end).map(|found| found.iter().collect());
        match found {
            Some(found) if found == answer => Ok((answer.to_owned(), (start, end))),
            Some(found) => {
                Err(format!("its answer '{answer}' does not stand at character {start}, but '{found}' does"))
            }
            None => Err(format!(
                "its answer '{answer}' at character {start} lies outside its context of {} characters",
                characters.len()
            )),
        }
    };
    texts.iter().zip(starts).map(place).collect()
}

/// The tokens of a window at which an answer begins and ends; the first token of the window for both where the window
/// does not hold all of it.
fn span(answer: Option<Place>, characters: &[Option<Place>]) -> [Option<usize>; 2] {
    let nowhere = [Some(0), Some(0)];
    let Some((start, end)) = answer else { return nowhere };
    let mut tokens = characters.iter().enumerate().filter_map(|(token, place)| Some((token, (*place)?)));
    let Some(first) = tokens.next() else { return nowhere };
    let last = tokens.next_back().unwrap_or(first);
    let (begin_of_window, end_of_window) = (first.1.0, last.1.1);
    if start < begin_of_window || end > end_of_window {
        return nowhere;
    }
    let text = || (first.0..=last.0).filter_map(|token| Some((token, characters[token]?)));
    let begins = text().take_while(|(_, place)| place.0 <= start).last().map_or(first.0, |(token, _)| token);
    let ends = text().find(|(_, place)| place.1 >= end).map_or(last.0, |(token, _)| token);
    [Some(begins), Some(ends)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_placed_in_the_windows_that_hold_it() {
        let of_text = |ends: &[(usize, usize)]| -> Vec<Option<Place>> {
            [None, None].into_iter().chain(ends.iter().copied().map(Some)).chain([None]).collect()
        };
        let window = of_text(&[(0, 3), (4, 7), (7, 9), (10, 12)]);
        assert_eq!(span(Some((4, 9)), &window), [Some(3), Some(4)]);
        assert_eq!(span(Some((0, 12)), &window), [Some(2), Some(5)]);
        assert_eq!(span(Some((5, 6)), &window), [Some(3), Some(3)]);
        assert_eq!(span(Some((10, 14)), &window), [Some(0), Some(0)]);
        assert_eq!(span(None, &window), [Some(0), Some(0)]);
        assert_eq!(span(Some((0, 1)), &[None, None]), [Some(0), Some(0)]);
    }
}
