//! Tasks other than continuing texts: their data, what a model should make of it, predictions and their scores.

mod evaluate;
mod labels;
mod options;
mod outputs;
mod questions;
mod rows;
mod sequences;
mod spans;
mod squad_file;
mod vote;
mod words;

pub use evaluate::{Prediction, TaskValidation};
pub use options::TaskOptions;
pub use questions::{Question, Window};
pub use rows::{TaskRows, read_task_rows};
pub(crate) use vote::majority;

use tunesmith_models::{HeadInfo, ModelInfo, ModelKind, Task, TextTokenizer};
use tunesmith_tensor::{IGNORED_TARGET, Segments};

use crate::batch::{Batch, DecoderBatch};
use crate::losses::Targets;
use crate::{DataOptions, TrainError, TrainingSet};

/// What a model should make of one example.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// Nothing is known of it.
    Unknown,
    /// The class of a sequence.
    Class(u32),
    /// Whether each label holds, 0 or 1.
    Flags(Vec<f32>),
    /// A number for each output.
    Numbers(Vec<f32>),
    /// The class of each token; [`IGNORED_TARGET`] where there is none.
    Tags(Vec<u32>),
    /// The first and the last token of an answer.
    Span([Option<usize>; 2]),
    /// The tokens of another text.
    Text(Vec<u32>),
}

/// One example of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskExample {
    /// What the model reads.
    pub ids: Vec<u32>,
    /// The text of a pair that each token belongs to.
    pub token_type_ids: Vec<u32>,
    /// What it should make of it.
    pub target: Target,
}

/// The examples of a file.
#[derive(Clone, Debug)]
pub struct TaskDataset {
    /// In the order of the file; of a question with a long text, one for each window.
    pub examples: Vec<TaskExample>,
    /// How many were cut to `max_length`.
    pub truncated: usize,
    /// `TOKEN_CLS`: the words of each example, as far as they were not cut.
    pub words: Vec<Vec<String>>,
    /// `QUESTION_ANS`: the questions.
    pub questions: Vec<Question>,
    /// What the decoder begins with, and what it reads where a label is not learned.
    decoder: Option<(u32, u32)>,
}

/// What examples are made for.
#[derive(Clone, Copy)]
pub struct TaskContext<'a> {
    /// The data's columns.
    pub data: &'a DataOptions,
    /// The task's own options.
    pub options: &'a TaskOptions,
    /// The model's sizes and head.
    pub model: &'a ModelInfo,
    /// Its tokenizer.
    pub tokenizer: &'a TextTokenizer,
    /// Tokens of the adapter that take positions of the model, too.
    pub virtual_tokens: usize,
    /// Whether targets must be there; predictions go without.
    pub labelled: bool,
}

impl TaskContext<'_> {
    /// The model's head.
    fn head(&self) -> &HeadInfo {
        &self.model.head
    }

    /// The most tokens of an example, and whether longer ones are cut.
    fn limit(&self) -> (usize, bool) {
        let positions = self.positions();
        (self.data.max_length.unwrap_or(positions).min(positions), self.data.truncate)
    }

    /// The most tokens of an example that the model and the adapter have room for.
    fn positions(&self) -> usize {
        self.model.max_positions.saturating_sub(self.virtual_tokens)
    }

    /// What to do about an example of `length` tokens.
    ///
    /// # Errors
    /// That it is too long, and may not be cut.
    fn fits(&self, length: usize) -> Result<(), String> {
        let (limit, cut) = self.limit();
        if length <= limit || cut {
            return Ok(());
        }
        Err(format!("has {length} tokens, more than {limit}: shorten it, or set truncate: true to cut it"))
    }
}

/// Turns the rows of a file into examples for `context.model`'s task.
///
/// # Errors
/// [`TrainError::InvalidDataOptions`]; [`TrainError::Data`] with all records that cannot be used: columns that are
/// missing, labels that nobody knows, tags that are not one a word, answers that are not in their text, texts that are
/// too long.
pub fn task_dataset(rows: &TaskRows, context: &TaskContext<'_>) -> Result<TaskDataset, TrainError> {
    context.data.validate(context.model.max_positions)?;
    context.options.validate()?;
    match context.head().task {
        Task::TokenCls => words::dataset(rows, context),
        Task::QuestionAns => questions::dataset(rows, context),
        _ => sequences::dataset(rows, context),
    }
}

/// The names of the labels for a head: those in the options, or those that occur in the rows, sorted (numbers by size).
///
/// # Errors
/// [`TrainError::InvalidDataOptions`]; [`TrainError::Data`] with records that have no label.
pub fn task_labels(
    rows: &TaskRows,
    data: &DataOptions,
    options: &TaskOptions,
) -> Result<Option<Vec<String>>, TrainError> {
    options.validate()?;
    labels::of_rows(rows, data, options)
}

impl TaskDataset {
    fn new(model: &ModelInfo) -> Self {
        let decoder = match model.kind {
            // A label that is not learned is read as padding, which no example here has.
            ModelKind::EncoderDecoder { decoder_start_token_id, .. } => Some((decoder_start_token_id, 0)),
            _ => None,
        };
        Self { examples: Vec::new(), truncated: 0, words: Vec::new(), questions: Vec::new(), decoder }
    }

    /// The first `count` examples; of questions, their windows.
    pub(crate) fn first(&self, count: usize) -> Self {
        let questions = self.questions[..count.min(self.questions.len())].to_vec();
        let windows = questions.iter().flat_map(|question| &question.windows).map(|window| window.example + 1);
        let examples = if self.questions.is_empty() { count } else { windows.max().unwrap_or(0) };
        let cut = examples.min(self.examples.len());
        Self {
            examples: self.examples[..cut].to_vec(),
            truncated: 0,
            words: self.words[..cut.min(self.words.len())].to_vec(),
            questions,
            decoder: self.decoder,
        }
    }

    /// The text that an example's tokens stand for; the texts of a pair a line each.
    pub(crate) fn text(&self, example: usize, tokenizer: &TextTokenizer) -> String {
        let TaskExample { ids, token_type_ids, .. } = &self.examples[example];
        let second = token_type_ids.iter().position(|of| *of != 0).unwrap_or(ids.len());
        let parts = [&ids[..second], &ids[second..]].map(|part| tokenizer.decode(part, true));
        parts.join("\n").trim_end().to_owned()
    }

    /// A batch of some of the examples.
    pub fn batch_of(&self, indices: &[usize]) -> Batch {
        let examples: Vec<&TaskExample> = indices.iter().map(|index| &self.examples[*index]).collect();
        let mut batch = Batch {
            ids: examples.iter().flat_map(|example| example.ids.iter().copied()).collect(),
            token_type_ids: Vec::new(),
            segments: Segments::from_lengths(examples.iter().map(|example| example.ids.len())),
            decoder: None,
            targets: Targets::Classes(Vec::new()),
        };
        if examples.iter().any(|example| example.token_type_ids.iter().any(|id| *id != 0)) {
            batch.token_type_ids = examples.iter().flat_map(|example| example.token_type_ids.iter().copied()).collect();
        }
        let (mut classes, mut flags, mut numbers, mut spans) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut texts = Vec::new();
        for example in &examples {
            match &example.target {
                Target::Unknown => {}
                Target::Class(class) => classes.push(*class),
                Target::Flags(values) => flags.extend(values),
                Target::Numbers(values) => numbers.extend(values),
                Target::Tags(tags) => classes.extend(tags),
                Target::Span(span) => spans.push(*span),
                Target::Text(labels) => texts.push(&labels[..]),
            }
        }
        batch.targets = if !spans.is_empty() {
            Targets::Spans(spans)
        } else if !flags.is_empty() {
            Targets::Flags(flags)
        } else if !numbers.is_empty() {
            Targets::Numbers(numbers)
        } else {
            Targets::Classes(classes)
        };
        if let (Some((start, padding)), false) = (self.decoder, texts.is_empty()) {
            let pairs = examples.iter().map(|example| &example.ids[..]).zip(texts.iter().copied());
            return Batch::seq2seq(pairs, start, padding);
        }
        if let Some((start, _)) = self.decoder {
            // Classifiers of encoder-decoders read the same text on both sides.
            let shifted = examples.iter().flat_map(|example| {
                let before = example.ids.iter().copied().take(example.ids.len().saturating_sub(1));
                std::iter::once(start).chain(before)
            });
            batch.decoder = Some(DecoderBatch { ids: shifted.collect(), segments: batch.segments.clone() });
        }
        batch
    }
}

impl TrainingSet for TaskDataset {
    fn lengths(&self) -> Vec<usize> {
        let target = |example: &TaskExample| if let Target::Text(labels) = &example.target { labels.len() } else { 0 };
        self.examples.iter().map(|example| example.ids.len() + target(example)).collect()
    }

    fn longest_sequence(&self) -> usize {
        let both = self.examples.iter().map(|example| match &example.target {
            Target::Text(labels) => example.ids.len().max(labels.len()),
            _ => example.ids.len(),
        });
        both.max().unwrap_or(0)
    }

    fn labelled(&self) -> usize {
        let labelled = |example: &TaskExample| match &example.target {
            Target::Unknown => 0,
            Target::Class(_) => 1,
            Target::Flags(values) | Target::Numbers(values) => values.len(),
            Target::Tags(classes) | Target::Text(classes) => {
                classes.iter().filter(|class| **class != IGNORED_TARGET).count()
            }
            Target::Span(span) => span.iter().flatten().count(),
        };
        self.examples.iter().map(labelled).sum()
    }

    fn batch(&self, indices: &[usize]) -> Batch {
        self.batch_of(indices)
    }
}
