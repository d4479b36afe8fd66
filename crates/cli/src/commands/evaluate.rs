//! `tunesmith evaluate`: loss, perplexity and other metrics of a model on a file.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Value, json};
use tunesmith_models::Task;
use tunesmith_tensor::{Adapter, Precision};
use tunesmith_train::metrics::Metric;
use tunesmith_train::{
    BatchLimit, DataOptions, Evaluation, GenerationTask, HeldOut, TaskOptions, evaluate_loss, generation_cases,
    read_records, read_task_rows, tokenize,
};

use crate::args::{EvaluateArgs, ModelArgs};
use crate::base::{Base, virtual_tokens, voters};
use crate::commands::ranks::Ranks;
use crate::config::{Written, text_metrics};
use crate::failure::Misuse;
use crate::task_file::{self, TaskFile};
use crate::terminal;
use crate::training::{greedy, rounded, task_validation, warn_of_truncation};

pub(crate) fn run(args: &EvaluateArgs) -> anyhow::Result<()> {
    if args.batch_size == 0 || args.limit == Some(0) {
        return Err(Misuse("--batch-size and --limit must be at least 1".into()).into());
    }
    let What { model, precision, file, data, task, named, metrics } = what(args)?;
    if !matches!(task.task()?, Task::CausalLm) {
        return evaluate_task(args, (&model, precision), &file, &data, &task, named);
    }
    let mut records = read_records(&file, &data)?;
    if let Some(limit) = args.limit {
        records.records.truncate(limit);
    }
    let head = TaskFile::of_all(&model.adapter)?.map(|file| file.head()).transpose()?.unwrap_or_default();
    let (base, adapters) = Base::with_head(&model, head, precision)?;
    base.require(&[Task::CausalLm])?;
    let tokenizer = &base.pretrained.tokenizer;
    let positions = base.model().info().max_positions.saturating_sub(virtual_tokens(&adapters));
    let room = DataOptions { max_length: data.max_length.map(|length| length.min(positions)), ..data.clone() };
    let dataset = tokenize(&records, &room, tokenizer, positions)?;
    warn_of_truncation(&file, &dataset);
    let workspace = base.workspace();
    let limit = BatchLimit::Sequences(args.batch_size);
    if let Some(ranks) = Ranks::of(args)? {
        let evaluate =
            |adapter: &Adapter| evaluate_loss(&base.subject(&[Some(adapter)], &workspace), &dataset.examples, limit);
        return ranks.run(&base, &adapters, evaluate);
    }
    let voters = voters(&adapters);
    let subject = base.subject(&voters, &workspace);
    let mut evaluation = evaluate_loss(&subject, &dataset.examples, limit)?;
    let mut generations = Vec::new();
    if !metrics.is_empty() {
        let cases = generation_cases(&records, tokenizer)?;
        let task = GenerationTask { cases, options: greedy(&base, args.max_new_tokens), metrics };
        let count = task.cases.len();
        let say = |done: usize| terminal::note(format_args!("continued {done} of {count} prompts"));
        let (measured, texts) = task.score(&subject, say)?;
        evaluation.metrics.extend(measured);
        let texts = task.cases.iter().zip(texts);
        generations.extend(
            texts.map(|(case, text)| json!({"prompt": case.prompt, "references": case.references, "text": text})),
        );
    }
    if let Some(path) = &args.json {
        let mut result = json!({
            "model": base.name,
            "adapter": named_adapters(&model.adapter),
            "data": file,
            "examples": dataset.examples.len(),
            "truncated": dataset.truncated,
            "tokens": evaluation.tokens,
        });
        for (key, value) in &evaluation.metrics {
            result[key] = json!(value);
        }
        if !generations.is_empty() {
            result["max_new_tokens"] = json!(args.max_new_tokens);
            result["generations"] = Value::Array(generations);
        }
        fs::write(path, format!("{result:#}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    }
    print(&evaluation, dataset.examples.len()).context("cannot write to standard output")
}

/// Loss and metrics of a task other than continuing texts.
fn evaluate_task(
    args: &EvaluateArgs,
    (model, precision): (&ModelArgs, Precision),
    file: &Path,
    data: &DataOptions,
    options: &TaskOptions,
    named: Vec<&'static Metric>,
) -> anyhow::Result<()> {
    let mut rows = read_task_rows(file, data)?;
    if let Some(limit) = args.limit {
        rows.truncate(limit);
    }
    let head = task_file::head(options, options.label_names.clone())?;
    let (base, adapters) = Base::with_head(model, head, precision)?;
    let metrics = of_texts(named.clone());
    let mut set = task_validation(&rows, data, options, named, &base, virtual_tokens(&adapters))?;
    let tokenizer = &base.pretrained.tokenizer;
    if options.task()? == Task::Seq2SeqLm && !metrics.is_empty() {
        let mut records = read_records(file, data)?;
        records.records.truncate(rows.len());
        let cases = generation_cases(&records, tokenizer)?;
        set.generation = Some(GenerationTask { cases, options: greedy(&base, args.max_new_tokens), metrics });
    }
    let (workspace, limit) = (base.workspace(), BatchLimit::Sequences(args.batch_size));
    if let Some(ranks) = Ranks::of(args)? {
        let evaluate = |adapter: &Adapter| set.evaluate(&base.subject(&[Some(adapter)], &workspace), limit);
        return ranks.run(&base, &adapters, evaluate);
    }
    let evaluation = set.evaluate(&base.subject(&voters(&adapters), &workspace), limit)?;
    if let Some(path) = &args.json {
        let mut result = json!({"model": base.name, "adapter": named_adapters(&model.adapter), "data": file, "examples": rows.len()});
        for (key, value) in &evaluation.metrics {
            result[key] = json!(value);
        }
        fs::write(path, format!("{result:#}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    }
    print(&evaluation, rows.len()).context("cannot write to standard output")
}

/// The adapter's folder, or the folders of several.
fn named_adapters(folders: &[PathBuf]) -> Value {
    match folders {
        [] => Value::Null,
        [folder] => json!(folder),
        folders => json!(folders),
    }
}

/// What to evaluate.
struct What {
    model: ModelArgs,
    precision: Precision,
    file: PathBuf,
    data: DataOptions,
    task: TaskOptions,
    /// All metrics that were named.
    named: Vec<&'static Metric>,
    /// Metrics of generated texts.
    metrics: Vec<&'static Metric>,
}

/// What to evaluate, by the command line or by a run's configuration; metrics by both.
fn what(args: &EvaluateArgs) -> anyhow::Result<What> {
    let mut model = args.model.clone();
    let mut metrics: Vec<&'static Metric> = Vec::new();
    let bleu = args.bleu.then_some("bleu");
    for name in args.metric.iter().map(String::as_str).chain(bleu) {
        metrics.push(Metric::by_name(name).map_err(|error| Misuse(format!("--metric: {error}")))?);
    }
    let Some(path) = &args.config else {
        let own = TaskFile::of_all(&model.adapter)?;
        let written = Written::command_line(&args.overrides)?.over(own.map(|own| own.options()).unwrap_or_default());
        let (data, task) = written.build_data_options()?;
        let file = args.data.clone().context("clap asks for --data or --config")?;
        let precision = args.arithmetic.precision();
        return Ok(What { model, precision, file, data, task, named: metrics.clone(), metrics: of_texts(metrics) });
    };
    let config = Written::read(path, &args.overrides)?.build()?;
    let file = args.data.clone().or_else(|| config.data.validation_file.clone());
    let file = file.ok_or_else(|| Misuse(format!("{} has no validation_file: give --data", path.display())))?;
    let mut named = metrics.clone();
    named.extend(config.arguments.metrics.iter().copied());
    metrics.extend(text_metrics(&config.run, &config.arguments));
    let own = TaskFile::of_all(&model.adapter)?;
    let label_names = own.and_then(|own| own.labels()).or(config.task.label_names.clone());
    let task = TaskOptions { label_names, ..config.task };
    model.quantization = model.quantization.or(config.quantization);
    model.model.get_or_insert(config.run.model_name_or_path);
    model.tokenizer = model.tokenizer.or(config.run.tokenizer_name_or_path);
    model.chat_template = model.chat_template.or(config.run.chat_template);
    let precision = match args.arithmetic.precision {
        Some(_) => args.arithmetic.precision(),
        None => config.run.precision.into(),
    };
    Ok(What { model, precision, file, data: config.data, task, named, metrics: of_texts(metrics) })
}

/// Those of `metrics` that are computed of generated texts, each once: loss and perplexity are measured in any case.
fn of_texts(metrics: Vec<&'static Metric>) -> Vec<&'static Metric> {
    let mut kept: Vec<&'static Metric> = Vec::new();
    for metric in metrics {
        if metric.needs_texts() && !kept.contains(&metric) {
            kept.push(metric);
        }
    }
    kept
}

fn print(evaluation: &Evaluation, examples: usize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "examples    {examples}")?;
    writeln!(out, "tokens      {}", evaluation.tokens)?;
    for (key, value) in &evaluation.metrics {
        writeln!(out, "{key:<10}  {}", rounded(*value))?;
    }
    Ok(())
}
