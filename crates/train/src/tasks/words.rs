//! Examples of words with a tag each: the first piece of a word has its tag, the others and special tokens have none.

use tunesmith_models::Task;
use tunesmith_tensor::IGNORED_TARGET;

use crate::TrainError;
use crate::data::problems::Problems;
use crate::data::rows::{Row, kind_of_value};
use crate::tasks::{Target, TaskContext, TaskDataset, TaskExample, TaskRows, labels};

pub(super) fn dataset(rows: &TaskRows, context: &TaskContext<'_>) -> Result<TaskDataset, TrainError> {
    let mut problems = Problems::default();
    let mut dataset = TaskDataset::new(context.model);
    for row in &rows.rows {
        match example(row, context) {
            Ok((example, words, is_cut)) => {
                dataset.truncated += usize::from(is_cut);
                dataset.examples.push(example);
                dataset.words.push(words);
            }
            Err(problem) => problems.add(row.line, problem),
        }
    }
    problems.into_result(&rows.path)?;
    Ok(dataset)
}

/// An example, its words as far as they were not cut, and whether some were.
fn example(row: &Row, context: &TaskContext<'_>) -> Result<(TaskExample, Vec<String>, bool), String> {
    let options = context.options;
    let column = &options.tokens_column;
    let word = |value: &serde_json::Value| {
        let word = value.as_str().map(str::to_owned);
        word.ok_or_else(|| format!("`{column}` holds {}, must hold strings", kind_of_value(value)))
    };
    let mut words: Vec<String> = row.list(column)?.iter().map(word).collect::<Result<_, _>>()?;
    if words.is_empty() {
        return Err(format!("`{column}` is empty"));
    }
    let head = context.head();
    let tags: Option<Vec<u32>> = if context.labelled {
        let names = labels::names_of(row, Task::TokenCls, head.problem(), options)?;
        if names.len() != words.len() {
            let (found, expected) = (names.len(), words.len());
            return Err(format!("has {found} tags in `{}` for {expected} words", options.tags_column));
        }
        let places = names.iter().map(|name| labels::place_of(name, &head.labels).map(|place| place as u32));
        Some(places.collect::<Result<_, _>>()?)
    } else {
        None
    };
    let (limit, cut) = context.limit();
    let pieces = context.tokenizer.encode_words(&words, cut.then_some(limit)).map_err(|error| error.to_string())?;
    context.fits(pieces.uncut)?;
    let mut before = None;
    let mut classes = Vec::with_capacity(pieces.ids.len());
    let mut last = None;
    for origin in &pieces.origins {
        let word = origin.and_then(|origin| origin.word);
        let begins = word.filter(|word| before != Some(*word));
        // Words without a first piece, such as those of white space alone, have no label anywhere.
        classes.push(begins.map_or(IGNORED_TARGET, |word| tags.as_ref().map_or(0, |tags| tags[word])));
        before = word.or(before);
        last = last.max(word);
    }
    let kept: Vec<usize> = {
        let mut kept: Vec<usize> =
            pieces.origins.iter().filter_map(|origin| origin.and_then(|origin| origin.word)).collect();
        kept.dedup();
        kept
    };
    words = kept.into_iter().map(|word| words[word].clone()).collect();
    let example = TaskExample { ids: pieces.ids, token_type_ids: pieces.token_type_ids, target: Target::Tags(classes) };
    Ok((example, words, pieces.uncut > limit))
}
