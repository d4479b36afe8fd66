//! Examples: token ids and which of them are to be learned.

use rayon::prelude::*;
use tunesmith_models::ModelError;
use tunesmith_tensor::IGNORED_TARGET;

use super::encode::Encode;
use super::options::DataOptions;
use super::problems::Problems;
use super::records::{Record, Records};
use crate::TrainError;

/// One sequence to train on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// As long as `ids` and not shifted: label `i` is token `i`, or [`IGNORED_TARGET`] where there is no loss. The first
    /// label is never learned, as nothing comes before it.
    pub labels: Vec<u32>,
}

impl Example {
    /// Number of labels that are learned.
    pub fn labelled(&self) -> usize {
        self.labels.iter().skip(1).filter(|label| **label != IGNORED_TARGET).count()
    }

    fn push(&mut self, ids: &[u32], learned: bool) {
        self.ids.extend(ids);
        self.labels.extend(ids.iter().map(|id| if learned { *id } else { IGNORED_TARGET }));
    }
}

/// The examples of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// In the order of the file.
    pub examples: Vec<Example>,
    /// How many of them were cut to `max_length`.
    pub truncated: usize,
}

impl Dataset {
    /// Tokens of every example.
    pub fn lengths(&self) -> Vec<usize> {
        self.examples.iter().map(|example| example.ids.len()).collect()
    }

    /// Tokens of all examples together.
    pub fn tokens(&self) -> usize {
        self.examples.iter().map(|example| example.ids.len()).sum()
    }

    /// Labels of all examples together that are learned.
    pub fn labelled(&self) -> usize {
        self.examples.iter().map(Example::labelled).sum()
    }
}

/// Turns records into examples; `context` is the most tokens that the model takes.
///
/// Prompt and completion are tokenised apart, as they are when text is generated, and an end-of-sequence token follows;
/// one also follows a text. A conversation is what the chat template writes, nothing more.
///
/// # Errors
/// [`TrainError::InvalidDataOptions`]; [`TrainError::Data`] with all records that are too long, have nothing to learn,
/// or that the tokenizer or the chat template refuses.
pub fn tokenize(
    records: &Records,
    options: &DataOptions,
    tokenizer: &dyn Encode,
    context: usize,
) -> Result<Dataset, TrainError> {
    options.validate(context)?;
    let max_length = options.max_length.unwrap_or(context);
    let made: Vec<_> =
        records.records.par_iter().map(|(_, record)| example(record, options.train_on_prompt, tokenizer)).collect();

    let mut problems = Problems::default();
    let mut dataset = Dataset { examples: Vec::with_capacity(made.len()), truncated: 0 };
    for ((line, _), made) in records.records.iter().zip(made) {
        let mut example = match made {
            Ok(example) => example,
            Err(problem) => {
                problems.add(*line, problem.to_string());
                continue;
            }
        };
        let length = example.ids.len();
        if length > max_length {
            if !options.truncate {
                let hint = "shorten it, or set truncate: true to cut it";
                problems.add(*line, format!("has {length} tokens, more than {max_length}: {hint}"));
                continue;
            }
            example.ids.truncate(max_length);
            example.labels.truncate(max_length);
            dataset.truncated += 1;
        }
        if example.labelled() == 0 {
            let when = if length > max_length { &format!(" once it is cut to {max_length} tokens") } else { "" };
            problems.add(*line, format!("has nothing to learn{when}: every label is masked"));
            continue;
        }
        dataset.examples.push(example);
    }
    problems.into_result(&records.path)?;
    Ok(dataset)
}

fn example(record: &Record, train_on_prompt: bool, tokenizer: &dyn Encode) -> Result<Example, ModelError> {
    let mut example = Example { ids: Vec::new(), labels: Vec::new() };
    match record {
        Record::PromptCompletion { prompt, completion } => {
            example.push(&tokenizer.encode(prompt, true)?, train_on_prompt);
            example.push(&tokenizer.encode(completion, false)?, true);
            example.push(tokenizer.eos().as_slice(), true);
        }
        Record::Text(text) => {
            example.push(&tokenizer.encode(text, true)?, true);
            if example.ids.last() != tokenizer.eos().as_ref() {
                example.push(tokenizer.eos().as_slice(), true);
            }
        }
        Record::Messages(messages) => {
            let chat = tokenizer.encode_chat(messages)?;
            for (id, is_assistant) in chat.ids.iter().zip(chat.is_assistant) {
                example.push(&[*id], is_assistant || train_on_prompt);
            }
        }
    }
    Ok(example)
}
