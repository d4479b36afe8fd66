//! What can go wrong while preparing, running or resuming a training run.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use tunesmith_methods::MethodError;
use tunesmith_models::ModelError;
use tunesmith_models::atomic::FileError;

use crate::checkpoint::Difference;
use crate::data::DataProblem;

/// Problems shown in one message; the others are only counted.
pub(crate) const SHOWN_PROBLEMS: usize = 10;

/// An error of this crate. Every variant says what to do where that is not plain from what happened.
#[derive(Debug, Error)]
pub enum TrainError {
    /// A file or folder could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: "read", "write", "rename", …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },

    /// A file that this program writes holds something else.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// Training arguments that cannot be used, all of them.
    #[error("the training arguments cannot be used:{}", listed(problems, problems.len()))]
    InvalidArguments {
        /// One sentence a problem, beginning with the argument's name.
        problems: Vec<String>,
    },

    /// Data options that cannot be used, all of them.
    #[error("the data options cannot be used:{}", listed(problems, problems.len()))]
    InvalidDataOptions {
        /// One sentence a problem, beginning with the option's name.
        problems: Vec<String>,
    },

    /// A data file whose kind cannot be told from its name.
    #[error(
        "{} is not a known kind of data file: give it the ending .jsonl (or .ndjson), .csv, .tsv or .txt", path.display()
    )]
    UnknownDataFile {
        /// The file.
        path: PathBuf,
    },

    /// Records of a data file that cannot be used.
    #[error("{}", data_message(path, problems, *total))]
    Data {
        /// The file.
        path: PathBuf,
        /// The first problems, in file order.
        problems: Vec<DataProblem>,
        /// How many problems there are in all.
        total: usize,
    },

    /// A data file without a single record.
    #[error("{} holds no examples", path.display())]
    EmptyData {
        /// The file.
        path: PathBuf,
    },

    /// Data whose records all have one label, so that there is nothing to tell apart.
    #[error(
        "{}: every record has the label '{name}', so that there is nothing to learn; if the others only do not occur, name \
         them all in label_names",
        path.display()
    )]
    OneLabel {
        /// The file.
        path: PathBuf,
        /// The label.
        name: String,
    },

    /// An empty list of examples.
    #[error("there is no example to {purpose}")]
    NoExamples {
        /// What they were for.
        purpose: &'static str,
    },

    /// A new run in the folder of an earlier one.
    #[error("{} is of an earlier run: resume that run, start in another folder, or ask to overwrite it", found.display())]
    FolderInUse {
        /// A checkpoint of the earlier run.
        found: PathBuf,
    },

    /// Examples that do not fit into a batch of `budget` tokens.
    #[error(
        "{count} examples are longer than max_tokens_per_batch = {budget} (the longest has {longest} tokens): \
         raise max_tokens_per_batch to at least {longest}, or set max_length with truncate: true"
    )]
    ExceedsBudget {
        /// How many examples are too long.
        count: usize,
        /// Tokens of the longest.
        longest: usize,
        /// The budget.
        budget: usize,
    },

    /// Trainable tensors that the loss does not depend on.
    #[error("no gradient reached {} trainable tensors:{}", names.len(), listed(names, names.len()))]
    MissingGradients {
        /// Their names.
        names: Vec<String>,
    },

    /// A saved optimiser state that does not belong to the tensors being trained.
    #[error("{} does not fit the tensors being trained:{}", path.display(), listed(problems, problems.len()))]
    OptimizerMismatch {
        /// The state file.
        path: PathBuf,
        /// One sentence a tensor.
        problems: Vec<String>,
    },

    /// A saved state of another optimiser than the run's.
    #[error(
        "{} holds the state of {saved}, and this run's optimiser is {now}: set optim: {saved}, or start a new run",
        path.display()
    )]
    OtherOptimizer {
        /// The state file.
        path: PathBuf,
        /// The optimiser that wrote it.
        saved: String,
        /// The run's optimiser.
        now: &'static str,
    },

    /// A run to be resumed whose configuration has changed.
    #[error(
        "{} was made with another configuration, so the run cannot be resumed from it:{}\n\
         restore these values, or start a new run in another folder",
        checkpoint.display(),
        listed(differences, differences.len())
    )]
    ConfigurationChanged {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// The keys that differ, with both values.
        differences: Vec<Difference>,
    },

    /// A run to be resumed that has no complete checkpoint.
    #[error("{} holds no complete checkpoint to resume from", folder.display())]
    NoCheckpoint {
        /// The run's folder.
        folder: PathBuf,
    },

    /// A model could not be read, written or asked.
    #[error(transparent)]
    Model(#[from] ModelError),

    /// An adapter could not be read or written.
    #[error(transparent)]
    Method(#[from] MethodError),

    /// A loss or gradient that is not a number; no update was made with it.
    #[error(
        "update {step} (epoch {epoch}) has loss {loss} and gradient norm {grad_norm}: training stopped before using it.\n\
         Examples of the update, counted from 0: {examples:?}\n{}\n\
         Lower learning_rate, add warm-up, or look at these examples.",
        last_good(last_checkpoint)
    )]
    NotFinite {
        /// The update, counted from 1.
        step: u64,
        /// Its epoch, counted from 0.
        epoch: u64,
        /// Its loss.
        loss: f64,
        /// The norm of its gradients.
        grad_norm: f64,
        /// The examples it was computed from.
        examples: Vec<usize>,
        /// The last checkpoint, which is good.
        last_checkpoint: Option<PathBuf>,
    },

    /// A metric that does not exist.
    #[error("there is no metric '{name}'; {}", suggestion(*nearest, known))]
    UnknownMetric {
        /// What was asked for.
        name: String,
        /// The name most like it, if one is.
        nearest: Option<&'static str>,
        /// All names.
        known: Vec<&'static str>,
    },

    /// Data that a metric is not for.
    #[error("{metric} cannot be computed: {reason}")]
    MetricInput {
        /// The metric.
        metric: &'static str,
        /// Why, and what to use.
        reason: String,
    },

    /// The metric for the best model is not among those that an evaluation measures.
    #[error("metric_for_best_model is {key}, which an evaluation does not measure: it measures {}", measured.join(", "))]
    MetricNotMeasured {
        /// The metric's key.
        key: &'static str,
        /// Keys of what is measured.
        measured: Vec<String>,
    },

    /// Hypotheses and references that do not belong together.
    #[error("a metric of texts needs at least one reference for every hypothesis: {reason}")]
    References {
        /// What does not match.
        reason: String,
    },
}

impl TrainError {
    /// Wraps the system's reason with what was tried on which file.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}

impl From<FileError> for TrainError {
    fn from(FileError { action, path, source }: FileError) -> Self {
        Self::Io { action, path, source }
    }
}

fn suggestion(nearest: Option<&str>, known: &[&str]) -> String {
    match nearest {
        Some(near) => format!("did you mean '{near}'?"),
        None => format!("known are {}", known.join(", ")),
    }
}

fn last_good(checkpoint: &Option<PathBuf>) -> String {
    match checkpoint {
        Some(path) => format!("The last good checkpoint is {}.", path.display()),
        None => "No checkpoint had been written yet.".to_owned(),
    }
}

/// Each item on a line of its own, the first [`SHOWN_PROBLEMS`] of `total`.
fn listed<T: std::fmt::Display>(items: &[T], total: usize) -> String {
    let mut text = String::new();
    for item in items.iter().take(SHOWN_PROBLEMS) {
        let _ = write!(text, "\n  {item}");
    }
    if total > items.len().min(SHOWN_PROBLEMS) {
        let _ = write!(text, "\n  … and {} more", total - items.len().min(SHOWN_PROBLEMS));
    }
    text
}

fn data_message(path: &Path, problems: &[DataProblem], total: usize) -> String {
    let lines: Vec<String> =
        problems.iter().map(|problem| format!("{}:{}: {}", path.display(), problem.line, problem.message)).collect();
    let examples = if total == 1 { "1 record" } else { &format!("{total} records") };
    format!("{} has {examples} that cannot be used:{}", path.display(), listed(&lines, total))
}
