//! How the runs of a study are carried out: in this process, over a base that they share, one after the other or several in
//! one pass.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use indexmap::IndexMap;
use jiff::{Timestamp, Unit};
use serde_json::{Map, Value, json};
use tunesmith_methods::{BuiltAdapter, MethodError, at_rank};
use tunesmith_models::{HeadOptions, Task};
use tunesmith_study::{
    Cost, Curve, Environment, IclOptions, InContext, Kind, Measured, RunFailure, RunSpec, Workbench,
};
use tunesmith_tensor::{Adapter, Seed};
use tunesmith_train::metrics::{METRICS, Metric};
use tunesmith_train::{
    BatchPlan, Ending, HeldOut, LOG_FILE, Report, Start, TrainError, TrainerState, peak_memory, read_task_rows,
    reset_peak_memory,
};

use crate::base::SharedBase;
use crate::config::{RunConfig, Written};
use crate::failure::{Interrupted, Misuse, told};
use crate::interrupt::Interrupt;
use crate::pass::train_in_one_pass;
use crate::terminal;
use crate::training::{Training, load_options};
use crate::watcher::Detail;

/// Carries out the runs of one study.
pub(crate) struct Bench {
    /// Where runs keep what they need to go on.
    folder: PathBuf,
    /// Rows whose adapters are kept.
    kept: Vec<String>,
    base: SharedBase,
    interrupt: Interrupt,
}

/// The file of an adapter's tensors.
const ADAPTER_FILES: &str = "safetensors";

impl Bench {
    /// For the study in that folder; adapters of the rows in `kept` stay there.
    pub(crate) fn new(study: &Path, kept: Vec<String>) -> anyhow::Result<Self> {
        let interrupt = Interrupt::listen("finishing the step and saving")?;
        Ok(Self { folder: study.join("work"), kept, base: SharedBase::default(), interrupt })
    }

    /// Where a run's adapter is.
    pub(crate) fn adapter(study: &Path, id: &str) -> PathBuf {
        study.join("work").join(id)
    }

    /// The base that a run works with, as it was loaded.
    pub(crate) fn training(&mut self, spec: &RunSpec) -> anyhow::Result<Training> {
        let mut training = Training::prepare_over(self.config(spec)?, &mut self.base)?;
        if let Some(tokens) = spec.train_tokens {
            training.config.arguments.max_steps = Some(updates_within(&training, tokens)?);
        }
        Ok(training)
    }

    fn config(&self, spec: &RunSpec) -> anyhow::Result<RunConfig> {
        let mut values = spec.config.clone();
        values.insert("output_dir".to_owned(), json!(self.folder.join(&spec.id)));
        if spec.kind != Kind::Train {
            // A configuration names a method; here none is built.
            values.insert("peft".to_owned(), json!({"peft_type": "BITFIT"}));
        }
        Written::of_values("the run's configuration", values).build()
    }

    /// Makes everything that a run needs, without running it.
    fn rehearse(&mut self, spec: &RunSpec) -> anyhow::Result<Vec<String>> {
        let missing = spec.tests.iter().filter(|(_, path)| !path.is_file());
        let mut problems: Vec<String> =
            missing.map(|(name, path)| format!("{name}: there is no file {}", path.display())).collect();
        if spec.kind == Kind::Icl {
            let options = match IclOptions::read(&spec.icl) {
                Ok(options) => options,
                Err(found) => return Ok([problems, found].concat()),
            };
            let found = self.in_context(spec, options, |asked, _| Ok(asked.problems()))?;
            problems.extend(found);
            return Ok(problems);
        }
        let training = self.training(spec)?;
        let set = training.validation.as_deref();
        if set.is_none() && spec.tests.is_empty() {
            problems.push("there is nothing to be measured on: give validation_file or test_file".to_owned());
        }
        if let Some(set) = set.filter(|set| !set.keys().iter().any(|key| key == spec.metric.key)) {
            let keys = set.keys().join(", ");
            problems.push(format!("metric: evaluations measure {keys}, not {}; see metrics:", spec.metric.key));
        }
        if set.is_none() && spec.learning_rate.is_some() {
            let hint = "give validation_file or validation_split_percentage";
            problems.push(format!("learning rates are chosen on a held-out set, and there is none: {hint}"));
        }
        if spec.kind == Kind::Train {
            let built = training.build_adapter()?;
            for rank in &spec.ranks {
                let plain = training.base.describe(|description| at_rank(&built, *rank, description));
                problems.extend(plain.err().map(|error| format!("ranks: {error}")));
            }
        }
        Ok(problems)
    }

    /// Calls `work` with a model that is asked in context, and its configuration.
    fn in_context<T>(
        &mut self,
        spec: &RunSpec,
        options: IclOptions,
        work: impl FnOnce(&InContext<'_>, &RunConfig) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let config = self.config(spec)?;
        let data = &config.data;
        let rows = read_task_rows(&data.train_file, data)?;
        let most = data.max_train_samples.unwrap_or(usize::MAX);
        let train = rows.fields().skip(data.held_out(rows.len())).take(most).cloned().collect();
        let head = HeadOptions::for_task(Task::CausalLm);
        let base = self.base.load(&config.run.model_name_or_path, load_options(&config, head))?;
        let workspace = base.workspace();
        let (model, tokenizer, generation) = (base.model(), &base.pretrained.tokenizer, &base.pretrained.generation);
        work(&InContext { model, tokenizer, generation, workspace: &workspace, options, train }, &config)
    }

    /// The runs of a pass, if they can share one: all train over the same base, and none attends in shifted groups.
    fn pass(&mut self, specs: &[RunSpec]) -> anyhow::Result<Option<Vec<Training>>> {
        let mut pass: Vec<Training> = Vec::new();
        for spec in specs {
            let training = self.training(spec)?;
            let shares = pass.first().is_none_or(|first| Arc::ptr_eq(&first.base, &training.base));
            if spec.kind != Kind::Train || !shares || training.build_adapter()?.adapter.shifted_groups().is_some() {
                return Ok(None);
            }
            pass.push(training);
        }
        Ok(Some(pass))
    }

    /// Trains the runs of a pass together, and measures what each came to.
    ///
    /// # Errors
    /// What keeps all of them from being trained.
    fn train(&self, specs: &[RunSpec], pass: &[Training]) -> anyhow::Result<Vec<anyhow::Result<Measured>>> {
        let build = || pass.iter().map(Training::build_adapter).collect::<anyhow::Result<Vec<_>>>();
        let details = |place| if place == 0 { Detail::Steps } else { Detail::Nothing };
        let trainings: Vec<&Training> = pass.iter().collect();
        let mut built = build()?;
        reset_peak_memory();
        let reports = match train_in_one_pass(&trainings, &mut built, Start::Resume, &self.interrupt, details) {
            Err(error) if must_begin_anew(&error) => {
                built = build()?;
                train_in_one_pass(&trainings, &mut built, Start::Overwrite, &self.interrupt, details)
            }
            ended => ended,
        }?;
        if reports.iter().flatten().any(|report| matches!(report.ending, Ending::Stopped(_))) {
            let text = "stopped; what is finished is kept. The same command goes on".to_owned();
            return Err(Interrupted(text).into());
        }
        let parts = specs.iter().zip(pass).zip(built).zip(reports);
        let measured = parts.map(|(((spec, training), mut built), report)| {
            let measured = self.measure(spec, training, &mut built, &report?)?;
            let (runs, beside) = (pass.len() as f64, pass.len() as u64 - 1);
            let train_seconds = measured.train_seconds / runs;
            Ok(Measured { trained_beside: beside, train_seconds, ..measured })
        });
        Ok(measured.collect())
    }

    /// Measures what a run came to, and removes what it needed to go on.
    fn measure(
        &self,
        spec: &RunSpec,
        training: &Training,
        built: &mut BuiltAdapter,
        report: &Report,
    ) -> anyhow::Result<Measured> {
        let folder = self.folder.join(&spec.id);
        let trainable_parameters = built.adapter.trainable_values() as u64;
        training.choose_rank(built)?;
        let log = Curve::read(&folder.join(LOG_FILE))?;
        let at = kept_step(training, &report.state);
        let mut measured = self.evaluate(spec, training, Some(&built.adapter))?;
        for rank in &spec.ranks {
            let plain = training.base.describe(|description| at_rank(built, *rank, description))?;
            let found = self.evaluate(spec, training, Some(&plain.adapter))?;
            measured.tests.extend(found.tests.into_values().next().map(|metrics| (format!("rank {rank}"), metrics)));
        }
        measured.trainable_parameters = trainable_parameters;
        measured.file_size = size_of(&folder);
        measured.steps = report.state.global_step;
        measured.train_tokens = report.state.num_input_tokens_seen;
        measured.train_seconds = log.seconds;
        measured.peak_memory = log.peak_memory.or_else(peak_memory);
        measured.validation = log.evaluation_at(at).unwrap_or_default();
        measured.curve = log.curve.thinned();
        if self.kept.contains(&spec.row) {
            remove_checkpoints(&folder)?;
        } else {
            fs::remove_dir_all(&folder)?;
        }
        Ok(measured)
    }

    /// Everything that is measured of a model that is not changed any more.
    fn evaluate(&self, spec: &RunSpec, training: &Training, adapter: Option<&Adapter>) -> anyhow::Result<Measured> {
        let mut measured = Measured { base_parameters: training.base.values() as u64, ..Measured::default() };
        let adapters = [adapter];
        let subject = training.base.subject(&adapters, &training.workspace);
        let limit = training.config.arguments.eval_batch_limit();
        let mut measure = |name: &str, set: &dyn HeldOut| -> anyhow::Result<()> {
            let start = Instant::now();
            let evaluation = set.evaluate(&subject, limit)?;
            let seconds = start.elapsed().as_secs_f64();
            if measured.tests.is_empty() {
                let lengths = set.lengths();
                let count = lengths.len().max(1) as f64;
                let own = adapter.map_or(0, Adapter::virtual_tokens) as f64;
                let tokens = lengths.iter().sum::<usize>() as f64 / count + own;
                measured.prediction = Cost { examples: lengths.len() as u64, tokens, seconds: seconds / count };
                measured.samples = set.samples(&subject, spec.samples)?;
            }
            measured.tests.insert(name.to_owned(), evaluation.metrics);
            Ok(())
        };
        for (name, path) in &spec.tests {
            measure(name, training.held_out(path)?.as_ref())?;
        }
        if let (Some(set), true) = (&training.validation, spec.tests.is_empty()) {
            measure(HELD_OUT, set.as_ref())?;
        }
        Ok(measured)
    }

    fn run_alone(&mut self, spec: &RunSpec) -> anyhow::Result<Measured> {
        if spec.kind == Kind::Icl {
            return self.ask(spec);
        }
        let training = self.training(spec)?;
        if spec.kind == Kind::Base {
            let measured = self.evaluate(spec, &training, None)?;
            return Ok(Measured { peak_memory: peak_memory(), ..measured });
        }
        let measured = self.train(std::slice::from_ref(spec), &[training])?.into_iter().next();
        measured.unwrap_or_else(|| unreachable!("a pass of one run has one result"))
    }

    fn ask(&mut self, spec: &RunSpec) -> anyhow::Result<Measured> {
        let options = IclOptions::read(&spec.icl).map_err(|problems| Misuse(problems.join("\n")))?;
        self.in_context(spec, options, |asked, config| {
            let key = spec.metric.key;
            let counts = |metric: &&Metric| {
                metric.values.iter().any(|value| value.key == key)
                    || config.arguments.metrics.contains(metric)
                    || metric.name == "accuracy"
            };
            let metrics: Vec<&'static Metric> = METRICS.iter().filter(counts).collect();
            let mut measured = Measured::default();
            let tensors = asked.model.tensors();
            let values = tensors.iter().map(|(_, _, shape)| shape.iter().product::<usize>());
            measured.base_parameters = values.sum::<usize>() as u64;
            let tests: IndexMap<String, PathBuf> = match (&spec.tests, &config.data.validation_file) {
                (tests, Some(file)) if tests.is_empty() => IndexMap::from([(HELD_OUT.to_owned(), file.clone())]),
                (tests, _) => tests.clone(),
            };
            for (name, path) in tests {
                let rows = read_task_rows(&path, &config.data)?;
                let most = config.data.max_eval_samples.unwrap_or(usize::MAX);
                let rows: Vec<Map<String, Value>> = rows.fields().take(most).cloned().collect();
                let found = asked.ask(&rows, spec.seed, &metrics, spec.samples)?;
                if measured.tests.is_empty() {
                    measured.prediction = found.cost;
                    measured.orders = found.orders;
                    measured.samples = found.samples;
                }
                measured.tests.insert(name, found.metrics);
            }
            Ok(measured)
        })
    }
}

/// What a held-out set is called where it is also tested on.
const HELD_OUT: &str = "validation";

impl Workbench for Bench {
    fn problems(&mut self, spec: &RunSpec) -> Vec<String> {
        self.rehearse(spec).unwrap_or_else(|error| vec![told(&error)])
    }

    fn run(&mut self, specs: &[RunSpec]) -> Vec<Result<Measured, RunFailure>> {
        if specs.len() > 1
            && let Ok(Some(pass)) = self.pass(specs)
        {
            match self.train(specs, &pass) {
                Ok(measured) => return measured.into_iter().map(|found| found.map_err(failure)).collect(),
                Err(error) if error.is::<Interrupted>() => return vec![Err(failure(error))],
                // What cannot be done together, such as within the memory that is allowed, may be possible one by one.
                Err(_) => {}
            }
        }
        let mut ended = Vec::new();
        for spec in specs {
            let result = self.run_alone(spec).map_err(failure);
            let goes_on = !matches!(result, Err(RunFailure::Ended(_)));
            ended.push(result);
            if !goes_on {
                break;
            }
        }
        ended
    }

    fn environment(&self) -> Environment {
        Environment {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: env!("TUNESMITH_COMMIT").to_owned(),
            processor: processor(),
            threads: rayon::current_num_threads(),
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }

    fn now(&self) -> String {
        let now = Timestamp::now();
        now.round(Unit::Second).unwrap_or(now).to_string()
    }

    fn note(&self, text: &str) {
        terminal::note(text);
    }
}

/// Whether a study goes on after such an error: the same run would fail again.
fn failure(error: anyhow::Error) -> RunFailure {
    let would_fail_again = error.chain().any(|cause| {
        let train = cause.downcast_ref::<TrainError>();
        let train =
            train.is_some_and(|error| matches!(error, TrainError::NotFinite { .. } | TrainError::ExceedsBudget { .. }));
        let method = cause.downcast_ref::<MethodError>();
        train || method.is_some_and(|error| !matches!(error, MethodError::Io { .. }))
    });
    if would_fail_again { RunFailure::Failed(told(&error)) } else { RunFailure::Ended(error.into()) }
}

/// Whether there is nothing to go on from.
fn must_begin_anew(error: &TrainError) -> bool {
    matches!(
        error,
        TrainError::NoCheckpoint { .. } | TrainError::ConfigurationChanged { .. } | TrainError::Damaged { .. }
    )
}

/// The update after which the result was kept.
fn kept_step(training: &Training, state: &TrainerState) -> Option<u64> {
    state.best_global_step.filter(|_| training.config.arguments.load_best_model_at_end)
}

/// As many updates as train on no more than so many tokens; one at least.
fn updates_within(training: &Training, tokens: u64) -> anyhow::Result<u64> {
    let arguments = &training.config.arguments;
    let lengths = training.train.lengths();
    let (limit, sampling) = (arguments.batch_limit(), arguments.sampling());
    let plan = BatchPlan::new(lengths.clone(), limit, sampling, Seed(arguments.seed))?;
    let (mut updates, mut used) = (0, 0);
    for epoch in 0.. {
        for window in plan.epoch(epoch).chunks(arguments.gradient_accumulation_steps) {
            used += window.iter().flatten().map(|example| lengths[*example] as u64).sum::<u64>();
            if used > tokens {
                return Ok(updates.max(1));
            }
            updates += 1;
        }
    }
    unreachable!("every epoch uses tokens")
}

/// Bytes of the tensors in an adapter's folder.
fn size_of(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = files.filter(|file| file.path().extension().is_some_and(|ending| ending == ADAPTER_FILES));
    sizes.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
}

fn remove_checkpoints(folder: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("checkpoint-") {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// The processor's name.
fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let fields: HashMap<&str, &str> =
        text.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key.trim(), value.trim())).collect();
    fields.get("model name").map_or_else(|| std::env::consts::ARCH.to_owned(), |name| (*name).to_owned())
}
