//! A training run, from its configuration to the adapter: what `train` and `quickstart` share.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use tunesmith_methods::{
    BuiltAdapter, DyLoraConfig, LoraPlus, MethodConfig, MethodError, build, load_checkpoint, save_adapter,
    save_checkpoint, with_rank,
};
use tunesmith_models::{GenerationOptions, HeadOptions, LoadOptions, Model, Task};
use tunesmith_tensor::{Parameter, Role, Seed, Workspace};
use tunesmith_train::metrics::Metric;
use tunesmith_train::{
    DataOptions, Dataset, Evaluation, GenerationTask, HeldOut, ParameterGroup, Records, Report, Run, Start,
    TaskContext, TaskDataset, TaskOptions, TaskRows, TaskValidation, TrainError, TrainingSet, Validation,
    generation_cases, read_records, read_task_rows, task_dataset, task_labels, tokenize,
};

use crate::base::{Base, SharedBase};
use crate::config::{RunConfig, text_metrics};
use crate::failure::Misuse;
use crate::interrupt::Interrupt;
use crate::rank_choice::{ChosenRank, measure_ranks};
use crate::task_file::{self, TaskFile};
use crate::terminal;
use crate::watcher::{Detail, Watcher};

/// A run whose model and data are loaded.
pub(crate) struct Training {
    pub(crate) config: RunConfig,
    pub(crate) base: Arc<Base>,
    pub(crate) train: Box<dyn TrainingSet>,
    pub(crate) validation: Option<Box<dyn HeldOut>>,
    /// What stands beside the adapter of a task other than continuing texts.
    task_file: Option<TaskFile>,
    pub(crate) workspace: Workspace,
}

impl Training {
    /// Loads model and data.
    ///
    /// # Errors
    /// Everything that can be wrong with the model's files and the data.
    pub(crate) fn prepare(config: RunConfig) -> anyhow::Result<Self> {
        Self::prepare_over(config, &mut SharedBase::default())
    }

    /// The same over a base that may be in memory already.
    pub(crate) fn prepare_over(config: RunConfig, shared: &mut SharedBase) -> anyhow::Result<Self> {
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
        if config.task.task()? != Task::CausalLm {
            return Self::prepare_task(config, shared);
        }
        let head = HeadOptions::for_task(Task::CausalLm);
        let base = shared.load(&config.run.model_name_or_path, load_options(&config, head))?;
        let (train, held_out) = read_both(data)?;
        let train = Box::new(make_dataset(&train, &config, &base)?.examples);
        let validation = held_out.map(|records| text_validation(records, &config, &base)).transpose()?;
        let workspace = base.workspace();
        Ok(Self { config, base, train, validation, task_file: None, workspace })
    }

    /// The same for a task other than continuing texts: labels come before the model, whose head they make.
    fn prepare_task(config: RunConfig, shared: &mut SharedBase) -> anyhow::Result<Self> {
        let (data, options) = (&config.data, &config.task);
        let task = options.task()?;
        if task == Task::FeatureExtraction {
            return Err(Misuse(
                "FEATURE_EXTRACTION has nothing to be trained on: `tunesmith predict` gives the hidden states".into(),
            )
            .into());
        }
        let mut rows = read_task_rows(&data.train_file, data)?;
        let labels = task_labels(&rows, data, options)?;
        let held_out = match &data.validation_file {
            Some(file) => Some(read_task_rows(file, data)?),
            None => Some(rows.take_first(data.held_out(rows.len()))).filter(|rows| !rows.is_empty()),
        };
        rows.truncate(data.max_train_samples.unwrap_or(usize::MAX));
        let task_file = Some(TaskFile::new(options, labels.as_deref(), data));
        let mut head = task_file::head(options, labels)?;
        head.seed = config.arguments.seed;
        let base = shared.load(&config.run.model_name_or_path, load_options(&config, head))?;
        let train = make_task_dataset(&rows, data, options, &base, 0)?;
        let of_texts = task == Task::Seq2SeqLm && !text_metrics(&config.run, &config.arguments).is_empty();
        let records = if of_texts { read_both(data)?.1 } else { None };
        let validation = held_out.map(|rows| labelled_validation(rows, records, &config, &base)).transpose()?;
        let workspace = base.workspace();
        Ok(Self { config, base, train: Box::new(train), validation, task_file, workspace })
    }

    /// Another held-out set than the run's own: the first `max_eval_samples` of `file`.
    pub(crate) fn held_out(&self, file: &Path) -> anyhow::Result<Box<dyn HeldOut>> {
        let (data, base) = (&self.config.data, &self.base);
        let task = self.config.task.task()?;
        if task == Task::CausalLm {
            return text_validation(read_records(file, data)?, &self.config, base);
        }
        let of_texts = task == Task::Seq2SeqLm && !text_metrics(&self.config.run, &self.config.arguments).is_empty();
        let records = of_texts.then(|| read_records(file, data)).transpose()?;
        labelled_validation(read_task_rows(file, data)?, records, &self.config, base)
    }

    /// Makes or loads the adapter, as it is before its first update.
    pub(crate) fn build_adapter(&self) -> anyhow::Result<BuiltAdapter> {
        let built = match &self.config.run.adapter_name_or_path {
            Some(folder) => self.base.load_adapter(folder)?,
            None => {
                let seed = Seed(self.config.arguments.seed);
                let method = with_head(&self.config.peft, self.base.model());
                let built = self.base.describe(|description| build(&method, description, seed))?;
                built.warnings.iter().for_each(terminal::warn);
                built
            }
        };
        self.check_lengths(&built)?;
        Ok(built)
    }

    /// Virtual tokens take positions, too.
    fn check_lengths(&self, built: &BuiltAdapter) -> anyhow::Result<()> {
        let info = self.base.model().info();
        let (longest, own) = (self.train.longest_sequence(), built.adapter.virtual_tokens());
        if own == 0 || longest + own <= info.max_positions {
            return Ok(());
        }
        let context = info.max_positions;
        Err(Misuse(format!(
            "the longest example has {longest} tokens and the method adds {own}, but the model takes {context}: set \
             max_length: {} and truncate: true, or fewer virtual tokens",
            context.saturating_sub(own)
        ))
        .into())
    }

    /// With `rank: auto`, measures every rank of the trained adapter on the held-out set, and keeps it at the smallest that
    /// is good enough, in memory and in the run's folder.
    pub(crate) fn choose_rank(&self, built: &mut BuiltAdapter) -> anyhow::Result<Option<ChosenRank>> {
        let Some(config) = built.config.get::<DyLoraConfig>().filter(|config| config.chooses_rank()).cloned() else {
            return Ok(None);
        };
        let (base, arguments) = (&self.base, &self.config.arguments);
        let set = self.validation.as_deref().context("the configuration was checked for a held-out set")?;
        let limit = arguments.eval_batch_limit();
        let measured = measure_ranks(base, built, config.ranks(), |adapter| {
            set.evaluate(&base.subject(&[Some(adapter)], &self.workspace), limit)
        })?;
        let chosen = ChosenRank::of(&measured, arguments.metric_for_best_model, config.rank_tolerance)?;
        *built = base.describe(|description| with_rank(built, chosen.rank, description))?;
        save_adapter(&self.config.run.output_dir, built)?;
        Ok(Some(chosen))
    }

    /// Trains the adapter, and shows the progress.
    pub(crate) fn run(&self, built: &mut BuiltAdapter, start: Start, interrupt: &Interrupt) -> anyhow::Result<Report> {
        let mut watcher = Watcher::new(&self.config, interrupt, Detail::Everything);
        let pieces = self.pieces(built.config.clone());
        let ended = pieces.run(self, &self.workspace).train(built, start, &mut watcher);
        watcher.finish();
        Ok(ended?)
    }

    /// What a run of this method needs beside the adapter.
    pub(crate) fn pieces(&self, method: MethodConfig) -> Pieces<'_> {
        let Self { config, base, .. } = self;
        let rate = config.arguments.learning_rate;
        let plus = LoraPlus {
            loraplus_lr_ratio: config.run.loraplus_lr_ratio.unwrap_or(1.0),
            loraplus_weight_decay: config.arguments.weight_decay,
            // Without LoRA+ embeddings learn like everything else.
            loraplus_lr_embedding: match config.run.loraplus_lr_ratio {
                Some(_) => config.run.loraplus_lr_embedding,
                None => rate,
            },
        };
        let seed = Seed(config.arguments.seed);
        Pieces {
            group: Box::new(move |parameter| ParameterGroup {
                learning_rate_scale: plus.learning_rate_scale(parameter, rate),
                weight_decay: plus.weight_decay(parameter) > 0.0,
            }),
            write_adapter: Box::new(|built, folder| {
                save_adapter(folder, built).map_err(|error| as_train_error(folder, error))?;
                let written = self.task_file.as_ref().map_or(Ok(()), |file| file.write(folder));
                written.map_err(|source| TrainError::Io { action: "write", path: folder.to_path_buf(), source })
            }),
            write_checkpoint: Box::new(|built, folder| {
                save_checkpoint(folder, built).map_err(|error| as_train_error(folder, error))
            }),
            read_checkpoint: Box::new(move |folder| {
                let loaded = base.describe(|description| load_checkpoint(folder, &method, description, seed));
                loaded.map_err(|error| as_train_error(folder, error))
            }),
        }
    }
}

/// What a run needs beside the adapter.
pub(crate) struct Pieces<'a> {
    group: Box<dyn Fn(&Parameter) -> ParameterGroup + 'a>,
    write_adapter: Box<WriteFolder<'a>>,
    write_checkpoint: Box<WriteFolder<'a>>,
    read_checkpoint: Box<ReadFolder<'a>>,
}

type WriteFolder<'a> = dyn Fn(&BuiltAdapter, &Path) -> Result<(), TrainError> + 'a;
type ReadFolder<'a> = dyn Fn(&Path) -> Result<BuiltAdapter, TrainError> + 'a;

impl Pieces<'_> {
    /// The run.
    pub(crate) fn run<'b>(&'b self, training: &'b Training, workspace: &'b Workspace) -> Run<'b> {
        let Training { config, base, train, validation, .. } = training;
        Run {
            model: base.model(),
            tokenizer: &base.pretrained.tokenizer,
            workspace,
            arguments: &config.arguments,
            examples: train.as_ref(),
            validation: validation.as_deref(),
            output_dir: &config.run.output_dir,
            config: config.resolved(),
            group: &self.group,
            write_adapter: &self.write_adapter,
            write_checkpoint: &self.write_checkpoint,
            read_checkpoint: &self.read_checkpoint,
        }
    }
}

/// How the run's model is loaded.
pub(crate) fn load_options(config: &RunConfig, head: HeadOptions) -> LoadOptions {
    LoadOptions {
        tokenizer: config.run.tokenizer_name_or_path.clone(),
        chat_template: config.run.chat_template.clone(),
        head,
        precision: config.run.precision.into(),
        quantization: config.quantization.options(),
        rope_factor: config.peft.rope_scaling().map(|scaling| scaling.factor),
    }
}

/// The method with the model's head among the modules that are trained in full and kept with the adapter, as PEFT has it
/// for classifiers, unless the configuration names such modules itself.
fn with_head(method: &MethodConfig, model: &dyn Model) -> MethodConfig {
    let mut modules: Vec<String> = Vec::new();
    let heads = model.sites().iter().filter(|site| site.role == Role::Head).map(|site| site.path.split('.').next());
    let new = model.info().head.new_modules.iter().map(|path| Some(path.as_str()));
    for module in heads.chain(new).flatten() {
        if !modules.iter().any(|known| module == known || module.starts_with(&format!("{known}."))) {
            modules.push(module.to_owned());
        }
    }
    if modules.is_empty() { method.clone() } else { method.with_modules_to_save(&modules) }
}

/// The examples of a task's file.
pub(crate) fn make_task_dataset(
    rows: &TaskRows,
    data: &DataOptions,
    options: &TaskOptions,
    base: &Base,
    virtual_tokens: usize,
) -> anyhow::Result<TaskDataset> {
    let (model, tokenizer) = (base.model().info(), &base.pretrained.tokenizer);
    let context = TaskContext { data, options, model, tokenizer, virtual_tokens, labelled: true };
    let dataset = task_dataset(rows, &context)?;
    warn_of_cuts(&rows.path, dataset.truncated, rows.len());
    Ok(dataset)
}

/// A held-out set of a task.
pub(crate) fn task_validation(
    rows: &TaskRows,
    data: &DataOptions,
    options: &TaskOptions,
    metrics: Vec<&'static Metric>,
    base: &Base,
    virtual_tokens: usize,
) -> anyhow::Result<TaskValidation> {
    let dataset = make_task_dataset(rows, data, options, base, virtual_tokens)?;
    Ok(TaskValidation::new(dataset, options.clone(), metrics, &base.model().info().head))
}

/// The records to train on, and those that are held out.
fn read_both(data: &DataOptions) -> anyhow::Result<(Records, Option<Records>)> {
    let mut train = read_records(&data.train_file, data)?;
    let held_out = match &data.validation_file {
        Some(file) => Some(read_records(file, data)?),
        None => Some(train.take_first(data.held_out(train.records.len()))).filter(|held| !held.records.is_empty()),
    };
    train.records.truncate(data.max_train_samples.unwrap_or(usize::MAX));
    Ok((train, held_out))
}

/// The examples made of records.
fn make_dataset(records: &Records, config: &RunConfig, base: &Base) -> anyhow::Result<Dataset> {
    let context = base.model().info().max_positions;
    let dataset = tokenize(records, &config.data, &base.pretrained.tokenizer, context)?;
    warn_of_truncation(&records.path, &dataset);
    Ok(dataset)
}

/// A held-out set of texts.
fn text_validation(mut records: Records, config: &RunConfig, base: &Base) -> anyhow::Result<Box<dyn HeldOut>> {
    records.records.truncate(config.data.max_eval_samples.unwrap_or(usize::MAX));
    let dataset = make_dataset(&records, config, base)?;
    let metrics = text_metrics(&config.run, &config.arguments);
    let generation = (!metrics.is_empty()).then(|| generation_task(&records, metrics, config, base)).transpose()?;
    Ok(Box::new(Validation { examples: dataset.examples, generation }))
}

/// A held-out set of a task other than continuing texts; `records` are there where texts are generated.
fn labelled_validation(
    mut rows: TaskRows,
    records: Option<Records>,
    config: &RunConfig,
    base: &Base,
) -> anyhow::Result<Box<dyn HeldOut>> {
    let most = config.data.max_eval_samples.unwrap_or(usize::MAX);
    rows.truncate(most);
    let metrics = config.arguments.metrics.clone();
    let mut validation = task_validation(&rows, &config.data, &config.task, metrics, base, 0)?;
    if let Some(mut records) = records {
        records.records.truncate(most);
        let metrics = text_metrics(&config.run, &config.arguments);
        validation.generation = Some(generation_task(&records, metrics, config, base)?);
    }
    Ok(Box::new(validation))
}

/// Says how many examples were cut, if any.
pub(crate) fn warn_of_truncation(file: &Path, dataset: &Dataset) {
    warn_of_cuts(file, dataset.truncated, dataset.examples.len());
}

fn warn_of_cuts(file: &Path, cut: usize, all: usize) {
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

/// An evaluation in a few words.
pub(crate) fn describe(evaluation: &Evaluation) -> String {
    let values = evaluation.metrics.iter().map(|(key, value)| format!("{key} {}", rounded(*value)));
    values.collect::<Vec<_>>().join(", ")
}

/// A metric's value as people read it: one on a scale of 1 with four decimals, one on a scale of 100 with two.
pub(crate) fn rounded(value: f64) -> String {
    if value.abs() < 10.0 { format!("{value:.4}") } else { format!("{value:.2}") }
}
