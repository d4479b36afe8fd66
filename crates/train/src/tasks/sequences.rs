//! Examples whose target is of the whole sequence: classes, flags, numbers, or another text.

use rayon::prelude::*;
use serde_json::Value;
use tunesmith_models::{ProblemType, Task};

use crate::TrainError;
use crate::data::problems::Problems;
use crate::data::rows::Row;
use crate::tasks::{Target, TaskContext, TaskDataset, TaskExample, TaskRows, labels};

pub(super) fn dataset(rows: &TaskRows, context: &TaskContext<'_>) -> Result<TaskDataset, TrainError> {
    let made: Vec<_> = rows.rows.par_iter().map(|row| example(row, context)).collect();
    let mut problems = Problems::default();
    let mut dataset = TaskDataset::new(context.model);
    for (row, made) in rows.rows.iter().zip(made) {
        match made {
            Ok((example, is_cut)) => {
                dataset.truncated += usize::from(is_cut);
                dataset.examples.push(example);
            }
            Err(problem) => problems.add(row.line, problem),
        }
    }
    problems.into_result(&rows.path)?;
    Ok(dataset)
}

/// An example, and whether it was cut.
fn example(row: &Row, context: &TaskContext<'_>) -> Result<(TaskExample, bool), String> {
    let TaskContext { data, options, tokenizer, .. } = context;
    let task = context.head().task;
    let trimmed = |text: &str| if data.trim_whitespace { text.trim().to_owned() } else { text.to_owned() };
    let (first, second) = if task == Task::Seq2SeqLm {
        let prompt = row.text(data.prompt_column.as_deref().unwrap_or("prompt"))?;
        (format!("{}{}{}", data.prompt_prefix, trimmed(prompt), data.prompt_suffix), None)
    } else {
        let first = trimmed(row.text(data.text_column.as_deref().unwrap_or("text"))?);
        let second = options.text_pair_column.as_ref().map(|column| row.text(column)).transpose()?;
        (first, second.map(trimmed))
    };
    let (limit, cut) = context.limit();
    let pieces = tokenizer.encode_pair(&first, second.as_deref(), cut.then_some(limit));
    let pieces = pieces.map_err(|error| error.to_string())?;
    context.fits(pieces.uncut)?;
    if pieces.ids.is_empty() {
        return Err("is empty".to_owned());
    }
    let target = if context.labelled { target(row, context, task, &trimmed)? } else { Target::Unknown };
    let example = TaskExample { ids: pieces.ids, token_type_ids: pieces.token_type_ids, target };
    Ok((example, pieces.uncut > limit))
}

fn target(
    row: &Row,
    context: &TaskContext<'_>,
    task: Task,
    trimmed: &dyn Fn(&str) -> String,
) -> Result<Target, String> {
    let head = context.head();
    match task {
        Task::FeatureExtraction | Task::CausalLm => return Ok(Target::Unknown),
        Task::Seq2SeqLm => {
            let completion = row.text(context.data.completion_column.as_deref().unwrap_or("completion"))?;
            let (limit, cut) = context.limit();
            let pieces = context.tokenizer.encode_pair(&trimmed(completion), None, cut.then_some(limit));
            let pieces = pieces.map_err(|error| error.to_string())?;
            context.fits(pieces.uncut)?;
            return Ok(Target::Text(pieces.ids));
        }
        _ => {}
    }
    if head.problem() == ProblemType::Regression {
        let column = &context.options.label_column;
        return numbers(column, row.value(column)?, head.labels.len()).map(Target::Numbers);
    }
    let names = labels::names_of(row, task, head.problem(), context.options)?;
    let places: Vec<usize> = names.iter().map(|name| labels::place_of(name, &head.labels)).collect::<Result<_, _>>()?;
    Ok(match head.problem() {
        ProblemType::MultiLabelClassification => {
            let mut flags = vec![0.0; head.labels.len()];
            places.into_iter().for_each(|place| flags[place] = 1.0);
            Target::Flags(flags)
        }
        _ => Target::Class(places[0] as u32),
    })
}

/// The numbers in a column, one for each output: alone, or in a list.
fn numbers(column: &str, value: &Value, outputs: usize) -> Result<Vec<f32>, String> {
    let alone = std::slice::from_ref(value);
    let values = value.as_array().map_or(alone, Vec::as_slice);
    if values.len() != outputs {
        return Err(format!("`{column}` has {} numbers, the model has {outputs} outputs", values.len()));
    }
    let number = |value: &Value| {
        let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok());
        let number = number.map(|number| number as f32).filter(|number| number.is_finite());
        number.ok_or_else(|| format!("`{column}` is {value}, must be a number"))
    };
    values.iter().map(number).collect()
}
