//! The options of a run that say what it is for and where its data has labels.

use serde::{Deserialize, Serialize};
use tunesmith_models::{ProblemType, Task};

use crate::TrainError;

/// What a run is for, and the columns (or keys) of its data beside those of
/// [`DataOptions`](crate::DataOptions).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TaskOptions {
    /// PEFT's word for the task: `CAUSAL_LM`, `SEQ_CLS`, `TOKEN_CLS`, `QUESTION_ANS`, `SEQ_2_SEQ_LM` or
    /// `FEATURE_EXTRACTION`. Default `CAUSAL_LM`.
    pub task_type: String,
    /// `SEQ_CLS`: the column with the second text of a pair. Default none: one text, in `text_column`.
    pub text_pair_column: Option<String>,
    /// `SEQ_CLS`: the column with the label. Default `label`.
    pub label_column: String,
    /// Names of the labels in their order. Default: those that occur in the training data, sorted.
    pub label_names: Option<Vec<String>>,
    /// `SEQ_CLS`: transformers' `problem_type`: `single_label_classification` (default), `multi_label_classification` (a
    /// list of labels, or their names with commas between) or `regression` (a number).
    pub problem_type: Option<String>,
    /// Whether a head in the model's files that is of another size is left out for a new one. Default false: it is an
    /// error.
    pub ignore_mismatched_sizes: bool,
    /// `TOKEN_CLS`: the key with the list of words. Default `tokens`.
    pub tokens_column: String,
    /// `TOKEN_CLS`: the key with the tag of each word. Default `tags`.
    pub tags_column: String,
    /// `QUESTION_ANS`: tokens of a window over a long text that the next window repeats. Default 128.
    pub doc_stride: usize,
    /// `QUESTION_ANS`: tokens of an answer, at most. Default 30.
    pub max_answer_length: usize,
    /// `QUESTION_ANS`: beginnings and ends that are looked at. Default 20.
    pub n_best_size: usize,
    /// `QUESTION_ANS`: whether some questions have no answer in their text (SQuAD 2). Default false.
    pub version_2_with_negative: bool,
    /// `QUESTION_ANS`: how much better no answer must be than the best one to be given. Default 0.
    pub null_score_diff_threshold: f64,
}

impl Default for TaskOptions {
    fn default() -> Self {
        Self {
            task_type: Task::CausalLm.name().to_owned(),
            text_pair_column: None,
            label_column: "label".to_owned(),
            label_names: None,
            problem_type: None,
            ignore_mismatched_sizes: false,
            tokens_column: "tokens".to_owned(),
            tags_column: "tags".to_owned(),
            doc_stride: 128,
            max_answer_length: 30,
            n_best_size: 20,
            version_2_with_negative: false,
            null_score_diff_threshold: 0.0,
        }
    }
}

impl TaskOptions {
    /// The task.
    ///
    /// # Errors
    /// [`TrainError::InvalidDataOptions`] with the known tasks.
    pub fn task(&self) -> Result<Task, TrainError> {
        let named = |task: &Task| task.name().eq_ignore_ascii_case(&self.task_type);
        Task::ALL.into_iter().find(named).ok_or_else(|| {
            let known: Vec<&str> = Task::ALL.iter().map(|task| task.name()).collect();
            let problem = format!("task_type '{}' is not known; known are {}", self.task_type, known.join(", "));
            TrainError::InvalidDataOptions { problems: vec![problem] }
        })
    }

    /// What the outputs of a sequence classifier mean.
    ///
    /// # Errors
    /// [`TrainError::InvalidDataOptions`] with the known kinds of problems.
    pub fn problem(&self) -> Result<ProblemType, TrainError> {
        let name = self.problem_type.as_deref().unwrap_or("single_label_classification");
        ProblemType::of_name(name).ok_or_else(|| {
            let known = "single_label_classification, multi_label_classification and regression";
            let problem = format!("problem_type '{name}' is not known; known are {known}");
            TrainError::InvalidDataOptions { problems: vec![problem] }
        })
    }

    /// Checks what can be checked without the data.
    ///
    /// # Errors
    /// [`TrainError::InvalidDataOptions`] with all problems.
    pub fn validate(&self) -> Result<(), TrainError> {
        let mut problems = Vec::new();
        for checked in [self.task().map(|_| ()), self.problem().map(|_| ())] {
            if let Err(TrainError::InvalidDataOptions { problems: found }) = checked {
                problems.extend(found);
            }
        }
        for (key, value) in [("max_answer_length", self.max_answer_length), ("n_best_size", self.n_best_size)] {
            if value == 0 {
                problems.push(format!("{key} is 0, must be at least 1"));
            }
        }
        if let Some(names) = &self.label_names {
            if let Some((_, name)) = names.iter().enumerate().find(|(place, name)| names[..*place].contains(name)) {
                problems.push(format!("label_names names '{name}' twice"));
            }
            if names.is_empty() {
                problems.push("label_names is empty: name every label, or leave it out".to_owned());
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(TrainError::InvalidDataOptions { problems }) }
    }
}
