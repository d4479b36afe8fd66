//! One run under way: what it trains on next, what an update does, and what follows it.

use std::time::Instant;

use tunesmith_methods::BuiltAdapter;
use tunesmith_tensor::{Gradients, Seed};

use super::{Ending, LOG_FILE, Observer, Progress, Report, Run, Start};
use crate::evaluate::{Evaluation, HeldOut};
use crate::{
    BatchPlan, Checkpoints, EvaluationLine, LearningRateSchedule, OPTIMIZER_FILE, Optimizer, RunLog, Subject,
    TrainError, TrainerState, TrainingLine, clip_factor, peak_memory,
};

/// Keys of the configuration that a resumed run may change: they alter what is written or kept in memory, not what is
/// computed.
const FREE_KEYS: &[&str] =
    &["output_dir", "logging_steps", "save_steps", "save_total_limit", "gradient_checkpointing", "memory_budget"];

/// A run under way.
pub(super) struct Session<'a> {
    pub(super) run: &'a Run<'a>,
    plan: BatchPlan,
    schedule: LearningRateSchedule,
    checkpoints: Checkpoints,
    log: RunLog,
    optimizer: Optimizer,
    state: TrainerState,
    /// The batches of the epoch that the state is in, once they are needed.
    epoch: Option<(u64, Vec<Vec<usize>>)>,
    since_log: SinceLog,
    report: Totals,
    evaluation: Option<Evaluation>,
}

/// What an update is made from.
pub(super) struct Window {
    /// Examples of each batch.
    pub(super) batches: Vec<Vec<usize>>,
    /// What masks are drawn from.
    pub(super) dropout: Seed,
    /// Number of updates made before.
    pub(super) step: u64,
    epoch: u64,
    /// Epochs after the update, as a fraction.
    progress: f64,
    /// Whether it is the epoch's last.
    is_last: bool,
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

impl Run<'_> {
    /// Checks everything that can be checked before anything is changed, and plans the batches.
    pub(super) fn plan(&self) -> Result<BatchPlan, TrainError> {
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
        BatchPlan::new(lengths, self.arguments.batch_limit(), self.arguments.sampling(), Seed(self.arguments.seed))
    }
}

impl<'a> Session<'a> {
    /// Begins a run whose batches are planned, or goes on with it.
    pub(super) fn begin(
        run: &'a Run<'a>,
        plan: BatchPlan,
        built: &mut BuiltAdapter,
        start: Start,
        observer: &mut dyn Observer,
    ) -> Result<Self, TrainError> {
        let arguments = run.arguments;
        let planned = || plan.updates(arguments.num_train_epochs, arguments.gradient_accumulation_steps);
        let max_steps = arguments.max_steps.unwrap_or_else(planned);
        let checkpoints = Checkpoints::open(run.output_dir)?;
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
            config: run.config.clone(),
        };
        let rule = arguments.optimizer()?;
        let mut optimizer = Optimizer::new(rule, arguments.weight_decay, &built.adapter.parameters(), run.group);
        if start == Start::Resume {
            let latest = checkpoints.latest()?;
            let saved = TrainerState::load(&latest)?;
            saved.check_config(&latest, &run.config, FREE_KEYS)?;
            *built = (run.read_checkpoint)(&latest)?;
            optimizer.load(&latest.join(OPTIMIZER_FILE))?;
            state = TrainerState { max_steps, config: run.config.clone(), ..saved };
            checkpoints.remove_after(state.global_step)?;
        } else {
            checkpoints.remove_after(0)?;
        }
        built.begin(max_steps)?;
        let log_path = run.output_dir.join(LOG_FILE);
        let log = match start {
            Start::Resume => RunLog::resume(&log_path, state.global_step)?,
            Start::New | Start::Overwrite => RunLog::create(&log_path)?,
        };
        observer.on_start(&state);
        Ok(Self {
            run,
            plan,
            schedule: arguments.schedule(max_steps),
            checkpoints,
            log,
            optimizer,
            state,
            epoch: None,
            since_log: SinceLog::default(),
            report: Totals::default(),
            evaluation: None,
        })
    }

    /// What the next update is made from, or how the run ended.
    pub(super) fn next_window(&mut self) -> Result<Window, Ending> {
        if self.state.global_step >= self.state.max_steps {
            return Err(Ending::Finished);
        }
        if self.gave_up() {
            return Err(Ending::StoppedEarly);
        }
        let TrainerState { global_step: step, epoch, step_in_epoch, .. } = self.state;
        if self.epoch.as_ref().is_none_or(|(number, _)| *number != epoch) {
            self.epoch = Some((epoch, self.plan.epoch(epoch)));
        }
        let batches = self.epoch.as_ref().map_or(&[][..], |(_, batches)| batches);
        let mut windows = batches.chunks(self.run.arguments.gradient_accumulation_steps);
        let (place, count) = (step_in_epoch as usize, windows.len());
        let batches = windows.nth(place).unwrap_or_default().to_vec();
        let progress = epoch as f64 + (place + 1) as f64 / count as f64;
        let dropout = Seed(self.run.arguments.seed).derive("step", step);
        Ok(Window { batches, dropout, step, epoch, progress, is_last: place + 1 == count })
    }

    /// One update from the gradients of a window, whose global norm is `grad_norm`, and which are of the mean over all its
    /// labelled values: `loss`. How long it took is for the caller to say.
    pub(super) fn update(
        &mut self,
        built: &mut BuiltAdapter,
        window: &Window,
        (loss, grad_norm): (f64, f64),
        tokens: u64,
        gradients: &Gradients,
    ) -> Result<Progress, TrainError> {
        let arguments = self.run.arguments;
        let Window { step, epoch, progress, .. } = *window;
        if !loss.is_finite() || !grad_norm.is_finite() {
            let last_checkpoint = self.checkpoints.latest().ok();
            let examples = window.batches.concat();
            return Err(TrainError::NotFinite { step: step + 1, epoch, loss, grad_norm, examples, last_checkpoint });
        }
        let clip = clip_factor(grad_norm, arguments.max_grad_norm);
        let learning_rate = arguments.learning_rate * self.schedule.factor(step);
        let (optimizer, adapter) = (&mut self.optimizer, &mut built.adapter);
        self.run.workspace.run(|| optimizer.step(&mut adapter.parameters_mut(), gradients, clip, learning_rate))?;
        built.after_step(gradients, clip, step);
        self.state.global_step += 1;
        self.state.num_input_tokens_seen += tokens;
        self.state.step_in_epoch += 1;
        if window.is_last {
            (self.state.epoch, self.state.step_in_epoch) = (epoch + 1, 0);
        }
        let (step, max_steps) = (self.state.global_step, self.state.max_steps);
        Ok(Progress { step, max_steps, epoch: progress, loss, learning_rate, grad_norm, tokens, seconds: 0.0 })
    }

    /// Logging, evaluation and saving, as they fall due after an update.
    pub(super) fn after_update(
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

    /// Leaves the result in `built` and in the run's folder.
    pub(super) fn end(self, built: &mut BuiltAdapter, ending: Ending) -> Result<Report, TrainError> {
        if !matches!(ending, Ending::Stopped(_)) {
            if let (true, Some(best)) = (self.run.arguments.load_best_model_at_end, self.state.best_global_step) {
                *built = (self.run.read_checkpoint)(&self.checkpoints.path(best))?;
            }
            (self.run.write_adapter)(built, self.run.output_dir)?;
        }
        let Self { state, report, evaluation, .. } = self;
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
        let Run { model, tokenizer, workspace, .. } = *run;
        let subject = Subject { model, tokenizer, adapters: &[Some(&built.adapter)], workspace };
        let evaluation = validation.evaluate(&subject, limit)?;
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
