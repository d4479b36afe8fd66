//! The training loop: adapters over one frozen base.

mod session;
mod together;

pub use together::{Trainee, train_together};

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tunesmith_methods::BuiltAdapter;
use tunesmith_models::{Model, TextTokenizer};
use tunesmith_tensor::{Parameter, Workspace};

use crate::evaluate::{Evaluation, HeldOut};
use crate::{ParameterGroup, TrainError, TrainerState, TrainingArguments, TrainingSet};

/// The run's log within its folder.
pub const LOG_FILE: &str = "log.jsonl";

/// What a run needs beside the adapter.
pub struct Run<'a> {
    /// The frozen base.
    pub model: &'a dyn Model,
    /// Its tokenizer, for evaluations that generate.
    pub tokenizer: &'a TextTokenizer,
    /// Buffers, shared with whatever else runs the model.
    pub workspace: &'a Workspace,
    /// How to train.
    pub arguments: &'a TrainingArguments,
    /// The training set.
    pub examples: &'a dyn TrainingSet,
    /// The held-out set.
    pub validation: Option<&'a dyn HeldOut>,
    /// Where checkpoints and the log go.
    pub output_dir: &'a Path,
    /// The resolved configuration, kept in checkpoints: only a run with the same one may go on from them.
    pub config: Map<String, Value>,
    /// The learning-rate factor and weight decay of each trainable tensor.
    pub group: &'a dyn Fn(&Parameter) -> ParameterGroup,
    /// Writes the adapter's files into a folder.
    pub write_adapter: &'a dyn Fn(&BuiltAdapter, &Path) -> Result<(), TrainError>,
    /// Writes the adapter's files, and what else training it needs, into a checkpoint.
    pub write_checkpoint: &'a dyn Fn(&BuiltAdapter, &Path) -> Result<(), TrainError>,
    /// Reads the adapter that a checkpoint holds, to go on training it.
    pub read_checkpoint: &'a dyn Fn(&Path) -> Result<BuiltAdapter, TrainError>,
}

/// Follows a run, and may stop it.
pub trait Observer {
    /// The run begins, or goes on after `state.global_step` updates.
    fn on_start(&mut self, state: &TrainerState);
    /// An update was made.
    fn on_step(&mut self, progress: &Progress);
    /// An evaluation was made.
    fn on_evaluation(&mut self, step: u64, evaluation: &Evaluation);
    /// A checkpoint was written.
    fn on_checkpoint(&mut self, path: &Path);
    /// Whether to save and stop after the current update.
    fn stop_requested(&self) -> bool;
}

/// What an update came to.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Updates made, this one included.
    pub step: u64,
    /// Updates of the whole run.
    pub max_steps: u64,
    /// Epochs, as a fraction.
    pub epoch: f64,
    /// Mean cross-entropy of the update's labelled tokens, in nats.
    pub loss: f64,
    /// The rate it used.
    pub learning_rate: f64,
    /// Global norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Tokens of the update, prompts included.
    pub tokens: u64,
    /// Seconds it took.
    pub seconds: f64,
}

/// Where a run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the beginning, in a folder without checkpoints.
    New,
    /// At the beginning; checkpoints of an earlier run are removed.
    Overwrite,
    /// At the latest checkpoint.
    Resume,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    /// All updates were made.
    Finished,
    /// The metric had not improved for as many evaluations as `early_stopping_patience` says.
    StoppedEarly,
    /// Stopped on request; the checkpoint to go on from.
    Stopped(PathBuf),
}

/// A finished or stopped run.
#[derive(Clone, Debug)]
pub struct Report {
    /// How it ended.
    pub ending: Ending,
    /// Where it stands.
    pub state: TrainerState,
    /// Mean loss of the updates made in this process, each weighted equally.
    pub mean_loss: f64,
    /// Seconds of training in this process, evaluations and saving left out.
    pub train_seconds: f64,
    /// Tokens trained on in this process.
    pub train_tokens: u64,
    /// The process's largest resident size after its last update, in bytes, where the system tells; evaluations later
    /// than that may have needed more.
    pub train_peak_memory: Option<u64>,
    /// The last evaluation.
    pub evaluation: Option<Evaluation>,
}

impl Run<'_> {
    /// Trains `built` and leaves the final (or best, with `load_best_model_at_end`) values in it and its files in the
    /// output folder. Where there is a held-out set, it is evaluated after the last update at the latest.
    ///
    /// # Errors
    /// Any [`TrainError`]; checkpoints written before remain. [`TrainError::FolderInUse`], before anything is changed, if
    /// a new run finds checkpoints of an earlier one.
    pub fn train(
        &self,
        built: &mut BuiltAdapter,
        start: Start,
        observer: &mut dyn Observer,
    ) -> Result<Report, TrainError> {
        let trained = train_together(&mut [Trainee { run: self, built, observer }], start)?;
        trained.into_iter().next().expect("one run has one report")
    }
}

#[cfg(test)]
mod tests;
