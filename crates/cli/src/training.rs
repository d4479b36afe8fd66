//! A training run, from its configuration to the adapter: what `train` and `quickstart` share.

use std::fs;
use std::path::Path;

use anyhow::Context;
use tunesmith_methods::{
    BuiltAdapter, LoraPlus, MethodError, PEFT_VERSION, build, load_checkpoint, save_adapter, save_checkpoint,
};
use tunesmith_models::{GenerationOptions, LoadOptions, Sampling};
use tunesmith_tensor::{Parameter, Seed, Workspace};
use tunesmith_train::metrics::Metric;
use tunesmith_train::{
    Dataset, Evaluation, GenerationTask, Observer, ParameterGroup, Progress as Update, Records, Report, Run,
    TrainError, TrainerState, Validation, generation_cases, peak_memory, read_records, tokenize,
};

use crate::base::Base;
use crate::config::{RunConfig, text_metrics};
use crate::failure::Misuse;
use crate::interrupt::Interrupt;
use crate::progress::{Progress, Reading};
use crate::terminal;

/// The resolved configuration within a run's folder.
const CONFIG_FILE: &str = "config.yaml";

/// A run whose model and data are loaded.
pub(crate) struct Training {
    pub(crate) config: RunConfig,
    pub(crate) base: Base,
    pub(crate) train: Dataset,
    pub(crate) validation: Option<Validation>,
    pub(crate) workspace: Workspace,
}

impl Training {
    /// Loads model and data.
    ///
    /// # Errors
    /// Everything that can be wrong with the model's files and the data.
    pub(crate) fn prepare(config: RunConfig) -> anyhow::Result<Self> {
        let data = &config.data;
        let files = [("train_file", Some(&data.train_file)), ("validation_file", data.validation_file.as_ref())];
        let missing = |(key, file): (&str, Option<&std::path::PathBuf>)| {
            let file = file.filter(|file| !file.is_file())?;
            Some(format!("{key}: there is no file {}", file.display()))
        };
        let missing: Vec<String> = files.into_iter().filter_map(missing).collect();
        if !missing.is_empty() {
            return Err(Misuse(missing.join("\n")).into());
        }
        let options = LoadOptions {
            tokenizer: config.run.tokenizer_name_or_path.clone(),
            chat_template: config.run.chat_template.clone(),
            ..LoadOptions::default()
        };
        let base = Base::load(&config.run.model_name_or_path, &options)?;
        let (_, train) = read_dataset(&data.train_file, &config, &base)?;
        let validation = data.validation_file.as_ref().map(|file| {
            let (records, dataset) = read_dataset(file, &config, &base)?;
            let metrics = text_metrics(&config.run, &config.arguments);
            let generation = (!metrics.is_empty()).then(|| generation_task(&records, metrics, &config, &base));
            anyhow::Ok(Validation { examples: dataset.examples, generation: generation.transpose()? })
        });
        let validation = validation.transpose()?;
        Ok(Self { config, base, train, validation, workspace: Workspace::new() })
    }

    /// Makes the adapter, as it is before its first update.
    pub(crate) fn build_adapter(&self) -> anyhow::Result<BuiltAdapter> {
        let seed = Seed(self.config.arguments.seed);
        let built = self.base.describe(|description| build(&self.config.peft, description, seed))?;
        built.warnings.iter().for_each(terminal::warn);
        Ok(built)
    }

    /// Trains the adapter, from the beginning or from the last checkpoint in the output folder.
    pub(crate) fn run(&self, built: &mut BuiltAdapter, resume: bool, interrupt: &Interrupt) -> anyhow::Result<Report> {
        let Self { config, base, .. } = self;
        let (method, seed) = (built.config.clone(), Seed(config.arguments.seed));
        let mut watcher = Watcher::new(config, interrupt);
        let ended = base.describe(|description| {
            let plus = LoraPlus {
                loraplus_lr_ratio: config.run.loraplus_lr_ratio.unwrap_or(1.0),
                loraplus_weight_decay: config.arguments.weight_decay,
            };
            let group = |parameter: &Parameter| ParameterGroup {
                learning_rate_scale: plus.learning_rate_scale(parameter),
                weight_decay: plus.weight_decay(parameter) > 0.0,
            };
            Run {
                model: base.model(),
                tokenizer: &base.pretrained.tokenizer,
                workspace: &self.workspace,
                arguments: &config.arguments,
                examples: &self.train.examples,
                validation: self.validation.as_ref(),
                output_dir: &config.run.output_dir,
                config: config.resolved(),
                group: &group,
                write_adapter: &|built, folder| {
                    save_adapter(folder, built).map_err(|error| as_train_error(folder, error))
                },
                write_checkpoint: &|built, folder| {
                    save_checkpoint(folder, built).map_err(|error| as_train_error(folder, error))
                },
                read_checkpoint: &|folder| {
                    let loaded = load_checkpoint(folder, &method, description, seed);
                    loaded.map_err(|error| as_train_error(folder, error))
                },
            }
            .train(built, resume, &mut watcher)
        });
        watcher.progress.finish();
        Ok(ended?)
    }
}

/// The records of a data file, and the examples made of them.
fn read_dataset(file: &Path, config: &RunConfig, base: &Base) -> anyhow::Result<(Records, Dataset)> {
    let records = read_records(file, &config.data)?;
    let context = base.model().info().max_positions;
    let dataset = tokenize(&records, &config.data, &base.pretrained.tokenizer, context)?;
    warn_of_truncation(file, &dataset);
    Ok((records, dataset))
}

/// Says how many examples were cut, if any.
pub(crate) fn warn_of_truncation(file: &Path, dataset: &Dataset) {
    let (cut, all) = (dataset.truncated, dataset.examples.len());
    if cut > 0 {
        terminal::warn(format_args!("{}: {cut} of {all} examples were too long and are cut", file.display()));
    }
}

fn generation_task(
    records: &Records,
    metrics: Vec<&'static Metric>,
    config: &RunConfig,
    base: &Base,
) -> anyhow::Result<GenerationTask> {
    let cases = generation_cases(records, &base.pretrained.tokenizer)?;
    let options = greedy(base, config.run.generation_max_new_tokens);
    Ok(GenerationTask { cases, options, metrics })
}

/// Greedy continuations, as metrics of texts are computed on.
pub(crate) fn greedy(base: &Base, max_new_tokens: usize) -> GenerationOptions {
    GenerationOptions::greedy(max_new_tokens, &base.pretrained.generation)
}

/// The trainer's errors know of files, not of methods.
fn as_train_error(folder: &Path, error: MethodError) -> TrainError {
    match error {
        MethodError::Io { action, path, source } => TrainError::Io { action, path, source },
        other => TrainError::Damaged { path: folder.to_path_buf(), reason: other.to_string() },
    }
}

/// Shows a run's progress, and stops it on Ctrl-C.
struct Watcher<'a> {
    config: &'a RunConfig,
    interrupt: &'a Interrupt,
    progress: Progress,
    tokens: u64,
    seconds: f64,
}

impl<'a> Watcher<'a> {
    fn new(config: &'a RunConfig, interrupt: &'a Interrupt) -> Self {
        Self { config, interrupt, progress: Progress::new(0, 0), tokens: 0, seconds: 0.0 }
    }
}

impl Observer for Watcher<'_> {
    fn on_start(&mut self, state: &TrainerState) {
        self.progress = Progress::new(state.max_steps, state.global_step);
        if let Err(error) = write_config(self.config) {
            self.progress.note(&format!("warning: {error:#}"));
        }
    }

    fn on_step(&mut self, update: &Update) {
        self.tokens += update.tokens;
        self.seconds += update.seconds;
        self.progress.step(Reading {
            step: update.step,
            loss: update.loss,
            tokens_per_second: self.tokens as f64 / self.seconds.max(f64::MIN_POSITIVE),
            peak_memory: peak_memory(),
        });
    }

    fn on_evaluation(&mut self, step: u64, evaluation: &Evaluation) {
        self.progress.note(&format!("step {step}: validation {}", describe(evaluation)));
    }

    fn on_checkpoint(&mut self, path: &Path) {
        self.progress.note(&format!("saved {}", path.display()));
    }

    fn stop_requested(&self) -> bool {
        self.interrupt.requested()
    }
}

/// An evaluation in a few words.
pub(crate) fn describe(evaluation: &Evaluation) -> String {
    let values = evaluation.metrics.iter().map(|(key, value)| format!("{key} {}", rounded(*value)));
    values.collect::<Vec<_>>().join(", ")
}

/// A metric's value as people read it: one on a scale of 1 with four decimals, one on a scale of 100 with two.
pub(crate) fn rounded(value: f64) -> String {
    if value.abs() < 10.0 { format!("{value:.4}") } else { format!("{value:.2}") }
}

/// Writes what the run was made with beside its results.
fn write_config(config: &RunConfig) -> anyhow::Result<()> {
    let path = config.run.output_dir.join(CONFIG_FILE);
    let text = format!(
        "# Every value of this run, defaults included; `tunesmith train {CONFIG_FILE}` repeats it.\n\
         # Made by tunesmith {} for {} {}; adapter files as of PEFT {PEFT_VERSION}.\n{}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH,
        config.to_yaml()?
    );
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}
