//! Records: what the rows of a file mean.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tunesmith_models::Message;

use super::options::DataOptions;
use super::problems::Problems;
use super::rows::{Row, kind_of_value, read_rows};
use crate::TrainError;

/// One record of a data file.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// What is given, and what is to be learned.
    PromptCompletion {
        /// With `prompt_prefix` and `prompt_suffix` around it.
        prompt: String,
        /// What follows.
        completion: String,
    },
    /// A text, all of which is to be learned.
    Text(String),
    /// A conversation, of which the assistant's turns are to be learned.
    Messages(Vec<Message>),
}

/// The records of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Records {
    /// The file.
    pub path: PathBuf,
    /// Every record with the line at which it begins, from 1. All are of one kind.
    pub records: Vec<(usize, Record)>,
}

impl Records {
    /// Takes the first `count` records out.
    #[must_use]
    pub fn take_first(&mut self, count: usize) -> Self {
        let rest = self.records.split_off(count.min(self.records.len()));
        Self { path: self.path.clone(), records: std::mem::replace(&mut self.records, rest) }
    }
}

/// Reads the records of `path`.
///
/// # Errors
/// [`TrainError::Data`] with all records that cannot be used; [`TrainError::EmptyData`],
/// [`TrainError::UnknownDataFile`], [`TrainError::InvalidDataOptions`], [`TrainError::Io`].
pub fn read_records(path: &Path, options: &DataOptions) -> Result<Records, TrainError> {
    let mut problems = Problems::default();
    let rows = read_rows(path, options, &mut problems)?;
    let columns = Columns::new(options);
    let mut first: Option<Kind> = None;
    let mut records = Vec::with_capacity(rows.len());
    // Where a line names the columns for all rows, or the options do, what is wrong with them is wrong once.
    let named_once = !matches!(path.extension(), Some(ending) if ending.to_string_lossy().contains("json"));
    for Row { line, fields } in rows {
        let kind = match columns.kind(&fields) {
            Ok(kind) => kind,
            Err(problem) => {
                problems.add(line, problem);
                if named_once { break } else { continue }
            }
        };
        let expected = *first.get_or_insert(kind);
        if kind != expected {
            problems.add(line, format!("holds {}, but the file began with {}", kind.name(), expected.name()));
            continue;
        }
        match columns.record(kind, &fields, options) {
            Ok(record) => records.push((line, record)),
            Err(problem) => problems.add(line, problem),
        }
    }
    problems.into_result(path)?;
    if records.is_empty() {
        return Err(TrainError::EmptyData { path: path.to_path_buf() });
    }
    Ok(Records { path: path.to_path_buf(), records })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    PromptCompletion,
    Text,
    Messages,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::PromptCompletion => "a prompt and a completion",
            Self::Text => "a text",
            Self::Messages => "messages",
        }
    }
}

/// Which columns hold what.
struct Columns<'a> {
    prompt: &'a str,
    completion: &'a str,
    text: &'a str,
    messages: &'a str,
    /// The kind of record that the options chose by naming its columns.
    chosen: Option<Kind>,
}

impl<'a> Columns<'a> {
    fn new(options: &'a DataOptions) -> Self {
        let DataOptions { prompt_column, completion_column, text_column, messages_column, .. } = options;
        let chosen = match options {
            _ if prompt_column.is_some() || completion_column.is_some() => Some(Kind::PromptCompletion),
            _ if text_column.is_some() => Some(Kind::Text),
            _ if messages_column.is_some() => Some(Kind::Messages),
            _ => None,
        };
        Self {
            prompt: prompt_column.as_deref().unwrap_or("prompt"),
            completion: completion_column.as_deref().unwrap_or("completion"),
            text: text_column.as_deref().unwrap_or("text"),
            messages: messages_column.as_deref().unwrap_or("messages"),
            chosen,
        }
    }

    /// The kind of record in a row, by the columns that it has.
    fn kind(&self, fields: &Map<String, Value>) -> Result<Kind, String> {
        let has = |name: &str| fields.get(name).is_some_and(|value| !value.is_null());
        let found = || {
            let names: Vec<String> = fields.keys().filter(|name| has(name)).map(|name| format!("`{name}`")).collect();
            if names.is_empty() { "it has nothing".to_owned() } else { format!("it has {}", names.join(", ")) }
        };
        let columns_of = |kind| match kind {
            Kind::PromptCompletion => vec![self.prompt, self.completion],
            Kind::Text => vec![self.text],
            Kind::Messages => vec![self.messages],
        };
        let kind = match self.chosen {
            Some(kind) => kind,
            None => {
                let kinds = [Kind::PromptCompletion, Kind::Text, Kind::Messages];
                let present: Vec<Kind> =
                    kinds.into_iter().filter(|kind| columns_of(*kind).iter().any(|name| has(name))).collect();
                match present[..] {
                    [kind] => kind,
                    [] => {
                        return Err(format!(
                            "has neither `prompt` and `completion`, nor `text`, nor `messages` ({}): name your columns \
                             with prompt_column and completion_column, or text_column, or messages_column",
                            found()
                        ));
                    }
                    _ => {
                        let names: Vec<&str> = present.iter().map(|kind| kind.name()).collect();
                        return Err(format!(
                            "holds {}: choose with prompt_column and completion_column, or text_column, or \
                             messages_column",
                            names.join(" and also ")
                        ));
                    }
                }
            }
        };
        let missing: Vec<String> =
            columns_of(kind).iter().filter(|name| !has(name)).map(|name| format!("`{name}`")).collect();
        if missing.is_empty() { Ok(kind) } else { Err(format!("has no {} ({})", missing.join(" and no "), found())) }
    }

    fn record(&self, kind: Kind, fields: &Map<String, Value>, options: &DataOptions) -> Result<Record, String> {
        let text = |name: &str| match &fields[name] {
            Value::String(text) if options.trim_whitespace => Ok(text.trim().to_owned()),
            Value::String(text) => Ok(text.clone()),
            other => Err(format!("`{name}` is {}, must be a string", kind_of_value(other))),
        };
        match kind {
            Kind::PromptCompletion => {
                let prompt = format!("{}{}{}", options.prompt_prefix, text(self.prompt)?, options.prompt_suffix);
                Ok(Record::PromptCompletion { prompt, completion: text(self.completion)? })
            }
            Kind::Text => Ok(Record::Text(text(self.text)?)),
            Kind::Messages => Ok(Record::Messages(messages(self.messages, &fields[self.messages])?)),
        }
    }
}

fn messages(name: &str, value: &Value) -> Result<Vec<Message>, String> {
    let list = match value {
        Value::Array(list) if list.is_empty() => return Err(format!("`{name}` is empty")),
        Value::Array(list) => list,
        other => return Err(format!("`{name}` is {}, must be a list of messages", kind_of_value(other))),
    };
    let message = |(index, value): (usize, &Value)| {
        let field = |field: &str| match value.get(field) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(format!("`{name}[{index}].{field}` is {}, must be a string", kind_of_value(other))),
            None => Err(format!("`{name}[{index}]` has no `{field}`")),
        };
        let message = Message::new(field("role")?, field("content")?);
        let mut other = value.as_object().cloned().unwrap_or_default();
        other.retain(|key, _| key != "role" && key != "content");
        Ok(Message { other, ..message })
    };
    list.iter().enumerate().map(message).collect()
}
