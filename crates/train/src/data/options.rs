//! The options of a run that say what its data is and how it becomes examples.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::TrainError;

/// Where the data lies, and how records become examples.
///
/// A file's kind is told by its ending: `.jsonl`, `.ndjson`, `.json` (one JSON object a line), `.csv`, `.tsv`, `.txt`. A
/// record holds a prompt and a completion, or a text, or messages of a conversation; the columns (or keys) say which.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataOptions {
    /// The file to train on.
    pub train_file: PathBuf,
    /// The file to evaluate on.
    #[serde(default)]
    pub validation_file: Option<PathBuf>,
    /// Names of the columns of a file whose first line does not name them: a `.txt`, or a `.csv` or `.tsv` without
    /// header.
    #[serde(default)]
    pub columns: Option<Vec<String>>,
    /// What stands between two columns. Default: a comma in `.csv`, a tab in `.tsv`; in `.txt` a line is one column.
    #[serde(default)]
    pub delimiter: Option<String>,
    /// The column that holds the prompt. Default `prompt`.
    #[serde(default)]
    pub prompt_column: Option<String>,
    /// The column that holds the completion. Default `completion`.
    #[serde(default)]
    pub completion_column: Option<String>,
    /// The column that holds a whole text. Default `text`.
    #[serde(default)]
    pub text_column: Option<String>,
    /// The key that holds the messages of a conversation, each with `role` and `content`. Default `messages`.
    #[serde(default)]
    pub messages_column: Option<String>,
    /// Whether white space around prompts, completions and texts is dropped. Default false.
    #[serde(default)]
    pub trim_whitespace: bool,
    /// Put before every prompt. Default nothing.
    #[serde(default)]
    pub prompt_prefix: String,
    /// Put between prompt and completion, as part of the prompt. Default nothing.
    #[serde(default)]
    pub prompt_suffix: String,
    /// Whether the loss counts prompts (and turns other than the assistant's), too. Default false.
    #[serde(default)]
    pub train_on_prompt: bool,
    /// Tokens of an example, at most. Default: the model's context.
    #[serde(default)]
    pub max_length: Option<usize>,
    /// Examples to train on, at most: the first ones of the file. Default: all.
    #[serde(default)]
    pub max_train_samples: Option<usize>,
    /// Examples to evaluate on, at most: the first ones of the file. Default: all.
    #[serde(default)]
    pub max_eval_samples: Option<usize>,
    /// Without a `validation_file`: how much of the training file, from its beginning, is held out to evaluate on, in
    /// percent. Default: nothing.
    #[serde(default)]
    pub validation_split_percentage: Option<u32>,
    /// Whether a longer example is cut to its first `max_length` tokens; otherwise it is an error. Default false.
    #[serde(default)]
    pub truncate: bool,
}

impl DataOptions {
    /// Whether there is something to evaluate on.
    pub fn has_validation(&self) -> bool {
        self.validation_file.is_some() || self.validation_split_percentage.is_some()
    }

    /// How many of a training file's `rows` are held out: at least one, and never all.
    pub fn held_out(&self, rows: usize) -> usize {
        let share = |percent: u32| (rows * percent as usize).div_ceil(100);
        self.validation_split_percentage.map_or(0, |percent| share(percent).min(rows.saturating_sub(1)))
    }

    /// Checks what can be checked without the data; `context` is the most tokens that the model takes.
    ///
    /// # Errors
    /// [`TrainError::InvalidDataOptions`] with all problems.
    pub fn validate(&self, context: usize) -> Result<(), TrainError> {
        let mut problems = Vec::new();
        if let Some(columns) = &self.columns {
            let repeated = columns.iter().enumerate().find(|(index, name)| columns[..*index].contains(name));
            if let Some((_, name)) = repeated {
                problems.push(format!("columns names `{name}` twice"));
            }
            if columns.is_empty() {
                problems.push("columns is empty: name every column of the file, or leave it out".to_owned());
            }
        }
        if self.delimiter.as_deref() == Some("") {
            problems.push("delimiter is empty".to_owned());
        }
        let pair = self.prompt_column.is_some() || self.completion_column.is_some();
        if usize::from(pair) + usize::from(self.text_column.is_some()) + usize::from(self.messages_column.is_some()) > 1
        {
            problems.push(
                "prompt_column/completion_column, text_column and messages_column exclude each other: keep one kind"
                    .to_owned(),
            );
        }
        for (key, value) in [("max_train_samples", self.max_train_samples), ("max_eval_samples", self.max_eval_samples)]
        {
            if value == Some(0) {
                problems.push(format!("{key} is 0, must be at least 1"));
            }
        }
        match self.validation_split_percentage {
            Some(_) if self.validation_file.is_some() => {
                problems.push("validation_split_percentage and validation_file are both given: keep one".to_owned())
            }
            Some(percent) if !(1..100).contains(&percent) => {
                problems.push(format!("validation_split_percentage is {percent}, must be from 1 to 99"));
            }
            _ => {}
        }
        match self.max_length {
            Some(0) => problems.push("max_length is 0, must be at least 1".to_owned()),
            Some(length) if length > context => {
                problems.push(format!("max_length is {length}, must be at most the model's context, {context} tokens"));
            }
            _ => {}
        }
        if problems.is_empty() { Ok(()) } else { Err(TrainError::InvalidDataOptions { problems }) }
    }
}
