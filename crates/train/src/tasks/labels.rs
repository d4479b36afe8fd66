//! The names of labels.

use std::collections::BTreeSet;

use serde_json::Value;
use tunesmith_models::{ProblemType, Task};

use crate::data::problems::Problems;
use crate::data::rows::{Row, kind_of_value};
use crate::tasks::{TaskOptions, TaskRows};
use crate::{DataOptions, TrainError};

/// The labels of all rows; `None` where the task has none.
pub(super) fn of_rows(
    rows: &TaskRows,
    _data: &DataOptions,
    options: &TaskOptions,
) -> Result<Option<Vec<String>>, TrainError> {
    let task = options.task()?;
    let problem = options.problem()?;
    if !task.has_labels() {
        return Ok(None);
    }
    if task == Task::SeqCls && problem == ProblemType::Regression {
        return Ok(Some(options.label_names.clone().unwrap_or_else(|| vec!["LABEL_0".to_owned()])));
    }
    if let Some(names) = &options.label_names {
        return Ok(Some(names.clone()));
    }
    let mut problems = Problems::default();
    let mut found = BTreeSet::new();
    for row in &rows.rows {
        match names_of(row, task, problem, options) {
            Ok(names) => found.extend(names),
            Err(problem) => problems.add(row.line, problem),
        }
    }
    problems.into_result(&rows.path)?;
    let mut names: Vec<String> = found.into_iter().collect();
    // 10 comes after 9.
    if names.iter().all(|name| name.parse::<u32>().is_ok()) {
        names.sort_by_key(|name| name.parse::<u32>().unwrap_or(u32::MAX));
    }
    if let ([name], false) = (&names[..], problem == ProblemType::MultiLabelClassification) {
        return Err(TrainError::OneLabel { path: rows.path.clone(), name: name.clone() });
    }
    Ok(Some(names))
}

/// The names of the labels in a row.
pub(super) fn names_of(
    row: &Row,
    task: Task,
    problem: ProblemType,
    options: &TaskOptions,
) -> Result<Vec<String>, String> {
    if task == Task::TokenCls {
        return row.list(&options.tags_column)?.iter().map(|tag| name_of(&options.tags_column, tag)).collect();
    }
    let column = &options.label_column;
    let value = row.value(column)?;
    match (problem, value) {
        (ProblemType::MultiLabelClassification, Value::Array(labels)) => {
            labels.iter().map(|label| name_of(column, label)).collect()
        }
        (ProblemType::MultiLabelClassification, Value::String(labels)) => {
            let names = labels.split(',').map(str::trim).filter(|name| !name.is_empty());
            Ok(names.map(str::to_owned).collect())
        }
        _ => Ok(vec![name_of(column, value)?]),
    }
}

fn name_of(column: &str, value: &Value) -> Result<String, String> {
    match value {
        Value::String(name) => Ok(name.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(flag) => Ok(flag.to_string()),
        other => Err(format!("`{column}` is {}, must be a label: a name or a whole number", kind_of_value(other))),
    }
}

/// The place of a label among the head's.
///
/// # Errors
/// That nobody knows it, with those that are known. A whole number below their count is one even if it is not a name.
pub(super) fn place_of(name: &str, labels: &[String]) -> Result<usize, String> {
    if let Some(place) = labels.iter().position(|label| label == name) {
        return Ok(place);
    }
    if let Some(place) = name.parse::<usize>().ok().filter(|place| *place < labels.len()) {
        return Ok(place);
    }
    let known: Vec<&str> = labels.iter().take(12).map(String::as_str).collect();
    let more = if labels.len() > known.len() { ", …" } else { "" };
    Err(format!("the label '{name}' is not one of the model's: {}{more}", known.join(", ")))
}
