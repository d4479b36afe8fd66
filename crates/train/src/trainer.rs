//! The training loop: one adapter over one frozen base.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Map, Value};
use tunesmith_methods::BuiltAdapter;
use tunesmith_models::{Model, TextTokenizer};
use tunesmith_tensor::{Gradients, Parameter, Seed, Workspace};

use crate::batch::{Batch, mean_loss};
use crate::evaluate::{Evaluation, HeldOut};
use crate::{
    BatchPlan, Checkpoints, EvaluationLine, LearningRateSchedule, MemoryEstimate, OPTIMIZER_FILE, Optimizer,
    ParameterGroup, RunLog, TrainError, TrainerState, TrainingArguments, TrainingLine, TrainingSet, clip_grad_norm,
    peak_memory,
};

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
        self.arguments.validate()?;
        let lengths = self.examples.lengths();
        if lengths.is_empty() {
            return Err(TrainError::NoExamples { purpose: "train on" });
        }
        if let Some(validation) = self.validation {
            if validation.is_empty() {
                return Err(TrainError::NoExamples { purpose: "evaluate on" });
            }
            let (key, measured) = (self.arguments.metric_for_best_model.key, validation.keys());
            if !measured.iter().any(|known| known == key) {
                return Err(TrainError::MetricNotMeasured { key, measured });
            }
        }
        let seed = Seed(self.arguments.seed);
        let plan = BatchPlan::new(lengths, self.arguments.batch_limit(), self.arguments.sampling(), seed)?;
        let trained = built.adapter.parameters().iter().map(|parameter| parameter.value().data().len()).sum();
        let estimate = MemoryEstimate::new(self.model, trained, plan.most_tokens());
        let checkpointing = estimate.plan(self.arguments.gradient_checkpointing, self.arguments.memory_budget)?;
        let accumulation = self.arguments.gradient_accumulation_steps;
        let planned = || plan.updates(self.arguments.num_train_epochs, accumulation);
        let max_steps = self.arguments.max_steps.unwrap_or_else(planned);
        let checkpoints = Checkpoints::open(self.output_dir)?;
        if let (Start::New, Some(found)) = (start, checkpoints.any()?) {
            return Err(TrainError::FolderInUse { found });
        }
        let mut state = TrainerState {
            global_step: 0,
            epoch: 0,
            step_in_epoch: 0,
            max_steps,
            num_input_tokens_seen: 0,
            best_metric: None,
            best_global_step: None,
            evaluations_since_best: 0,
            config: self.config.clone(),
        };
        let rule = self.arguments.optimizer()?;
        let mut optimizer = Optimizer::new(rule, self.arguments.weight_decay, &built.adapter.parameters(), self.group);
        if start == Start::Resume {
            let latest = checkpoints.latest()?;
            let saved = TrainerState::load(&latest)?;
            saved.check_config(&latest, &self.config, FREE_KEYS)?;
            *built = (self.read_checkpoint)(&latest)?;
            optimizer.load(&latest.join(OPTIMIZER_FILE))?;
            state = TrainerState { max_steps, config: self.config.clone(), ..saved };
            checkpoints.remove_after(state.global_step)?;
        } else {
            checkpoints.remove_after(0)?;
        }
        built.begin(max_steps)?;
        let log_path = self.output_dir.join(LOG_FILE);
        let log = match start {
            Start::Resume => RunLog::resume(&log_path, state.global_step)?,
            Start::New | Start::Overwrite => RunLog::create(&log_path)?,
        };
        observer.on_start(&state);
        let mut session = Session {
            run: self,
            seed,
            plan,
            schedule: self.arguments.schedule(max_steps),
            checkpoints,
            log,
            workspace: self.workspace.clone().checkpointing(checkpointing),
            gradients: Gradients::new(self.workspace),
            optimizer,
            state,
            since_log: SinceLog::default(),
            report: Totals::default(),
            evaluation: None,
        };
        let ending = session.run(built, observer)?;
        if !matches!(ending, Ending::Stopped(_)) {
            if let (true, Some(best)) = (self.arguments.load_best_model_at_end, session.state.best_global_step) {
                *built = (self.read_checkpoint)(&session.checkpoints.path(best))?;
            }
            (self.write_adapter)(built, self.output_dir)?;
        }
        let Session { state, report, evaluation, .. } = session;
        Ok(Report {
            ending,
            state,
            mean_loss: report.loss / report.steps.max(1) as f64,
            train_seconds: report.seconds,
            train_tokens: report.tokens,
            train_peak_memory: report.peak_memory,
            evaluation,
        })
    }
}

/// Keys of the configuration that a resumed run may change: they alter what is written or kept in memory, not what is
/// computed.
const FREE_KEYS: &[&str] =
    &["output_dir", "logging_steps", "save_steps", "save_total_limit", "gradient_checkpointing", "memory_budget"];

/// A run under way.
struct Session<'a> {
    run: &'a Run<'a>,
    seed: Seed,
    plan: BatchPlan,
    schedule: LearningRateSchedule,
    checkpoints: Checkpoints,
    log: RunLog,
    /// The run's buffers, for passes that train.
    workspace: Workspace,
    gradients: Gradients,
    optimizer: Optimizer,
    state: TrainerState,
    since_log: SinceLog,
    report: Totals,
    evaluation: Option<Evaluation>,
}

/// Sums since the last log line.
#[derive(Default)]
struct SinceLog {
    loss: f64,
    steps: u64,
    tokens: u64,
    seconds: f64,
}

/// Sums over the process, and its memory after the last update.
#[derive(Default)]
struct Totals {
    loss: f64,
    steps: u64,
    tokens: u64,
    seconds: f64,
    peak_memory: Option<u64>,
}

impl Session<'_> {
    fn run(&mut self, built: &mut BuiltAdapter, observer: &mut dyn Observer) -> Result<Ending, TrainError> {
        let accumulation = self.run.arguments.gradient_accumulation_steps;
        if self.gave_up() && self.state.global_step < self.state.max_steps {
            return Ok(Ending::StoppedEarly);
        }
        while self.state.global_step < self.state.max_steps {
            let epoch = self.state.epoch;
            let batches = self.plan.epoch(epoch);
            let windows: Vec<&[Vec<usize>]> = batches.chunks(accumulation).collect();
            let first = self.state.step_in_epoch as usize;
            for (place, window) in windows.iter().enumerate().skip(first) {
                let fraction = (place + 1) as f64 / windows.len() as f64;
                let progress = self.update(built, window, epoch, epoch as f64 + fraction)?;
                self.state.step_in_epoch = place as u64 + 1;
                if place + 1 == windows.len() {
                    (self.state.epoch, self.state.step_in_epoch) = (epoch + 1, 0);
                }
                if let Some(ending) = self.after_update(built, &progress, observer)? {
                    return Ok(ending);
                }
                if self.state.global_step == self.state.max_steps {
                    return Ok(Ending::Finished);
                }
            }
        }
        Ok(Ending::Finished)
    }

    /// One update from a window of batches, its gradient normalised by all labelled tokens of the window.
    fn update(
        &mut self,
        built: &mut BuiltAdapter,
        window: &[Vec<usize>],
        epoch: u64,
        fraction: f64,
    ) -> Result<Progress, TrainError> {
        let start = Instant::now();
        let step = self.state.global_step;
        let examples = self.run.examples;
        let batches: Vec<Batch> = window.iter().map(|indices| examples.batch(indices)).collect();
        let tokens = batches.iter().map(|batch| batch.ids.len() as u64).sum();
        let dropout = Some(self.seed.derive("step", step));
        self.gradients.clear();
        built.before_step(step);
        let (model, workspace) = (self.run.model, &self.workspace);
        let loss = mean_loss(&batches, model, &built.adapter, workspace, dropout, &mut self.gradients)
            + built.regularise(workspace, &mut self.gradients);
        let max_norm = self.run.arguments.max_grad_norm;
        let grad_norm = clip_grad_norm(&built.adapter.parameters(), &mut self.gradients, max_norm);
        if !loss.is_finite() || !grad_norm.is_finite() {
            let last_checkpoint = self.checkpoints.latest().ok();
            let examples = window.concat();
            return Err(TrainError::NotFinite { step: step + 1, epoch, loss, grad_norm, examples, last_checkpoint });
        }
        let learning_rate = self.run.arguments.learning_rate * self.schedule.factor(step);
        self.optimizer.step(&mut built.adapter.parameters_mut(), &self.gradients, learning_rate)?;
        built.after_step(&self.gradients, step);
        self.state.global_step += 1;
        self.state.num_input_tokens_seen += tokens;
        let (max_steps, seconds) = (self.state.max_steps, start.elapsed().as_secs_f64());
        Ok(Progress { step: step + 1, max_steps, epoch: fraction, loss, learning_rate, grad_norm, tokens, seconds })
    }

    /// Logging, evaluation and saving, as they fall due.
    fn after_update(
        &mut self,
        built: &BuiltAdapter,
        progress: &Progress,
        observer: &mut dyn Observer,
    ) -> Result<Option<Ending>, TrainError> {
        let arguments = self.run.arguments;
        let last = progress.step == progress.max_steps;
        let due = |every: u64| progress.step.is_multiple_of(every) || last;
        self.count(progress);
        if due(arguments.logging_steps) {
            self.log_line(progress)?;
        }
        observer.on_step(progress);
        let is_best = match self.run.validation {
            Some(validation) if arguments.eval_steps.map_or(last, due) => {
                self.evaluate(built, validation, progress.step, progress.epoch, observer)?
            }
            _ => false,
        };
        let stop = observer.stop_requested() && !last;
        let give_up = self.gave_up() && !last;
        if stop || give_up || is_best || due(arguments.save_steps) {
            let path = self
                .checkpoints
                .save(&self.state, &self.optimizer, |folder| (self.run.write_checkpoint)(built, folder))?;
            if let Some(limit) = arguments.save_total_limit {
                self.checkpoints.prune(limit, self.state.best_global_step)?;
            }
            observer.on_checkpoint(&path);
            if give_up {
                return Ok(Some(Ending::StoppedEarly));
            }
            if stop {
                return Ok(Some(Ending::Stopped(path)));
            }
        }
        Ok(None)
    }

    /// Whether the metric has not improved for too many evaluations.
    fn gave_up(&self) -> bool {
        let patience = self.run.arguments.early_stopping_patience;
        patience.is_some_and(|patience| self.state.evaluations_since_best >= patience)
    }

    fn count(&mut self, progress: &Progress) {
        self.since_log.loss += progress.loss;
        self.since_log.steps += 1;
        self.since_log.tokens += progress.tokens;
        self.since_log.seconds += progress.seconds;
        self.report.loss += progress.loss;
        self.report.steps += 1;
        self.report.tokens += progress.tokens;
        self.report.seconds += progress.seconds;
        self.report.peak_memory = peak_memory();
    }

    fn log_line(&mut self, progress: &Progress) -> Result<(), TrainError> {
        let since = std::mem::take(&mut self.since_log);
        self.log.append(&TrainingLine {
            step: progress.step,
            epoch: progress.epoch,
            loss: since.loss / since.steps as f64,
            learning_rate: progress.learning_rate,
            grad_norm: progress.grad_norm,
            tokens: self.state.num_input_tokens_seen,
            tokens_per_second: since.tokens as f64 / since.seconds.max(f64::MIN_POSITIVE),
            peak_memory: peak_memory(),
        })
    }

    /// Evaluates, and says whether the result is the best so far.
    fn evaluate(
        &mut self,
        built: &BuiltAdapter,
        validation: &dyn HeldOut,
        step: u64,
        epoch: f64,
        observer: &mut dyn Observer,
    ) -> Result<bool, TrainError> {
        let start = Instant::now();
        let run = self.run;
        let limit = run.arguments.eval_batch_limit();
        let evaluation = validation.evaluate(run.model, run.tokenizer, Some(&built.adapter), run.workspace, limit)?;
        let metric = run.arguments.metric_for_best_model;
        let value = evaluation.get(metric.key).filter(|value| metric.improves(*value, self.state.best_metric));
        let threshold = run.arguments.early_stopping_threshold;
        let enough =
            value.is_some_and(|value| self.state.best_metric.is_none_or(|best| (value - best).abs() > threshold));
        self.state.evaluations_since_best = if enough { 0 } else { self.state.evaluations_since_best + 1 };
        if value.is_some() {
            (self.state.best_metric, self.state.best_global_step) = (value, Some(step));
        }
        self.log.append(&EvaluationLine::new(step, epoch, &evaluation, start.elapsed().as_secs_f64()))?;
        observer.on_evaluation(step, &evaluation);
        self.evaluation = Some(evaluation);
        Ok(value.is_some())
    }
}

#[cfg(test)]
mod tests;
