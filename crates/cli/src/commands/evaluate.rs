//! `tunesmith evaluate`: loss, perplexity and other metrics of a model on a file.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use serde_json::{Value, json};
use tunesmith_tensor::Workspace;
use tunesmith_train::metrics::Metric;
use tunesmith_train::{
    BatchLimit, DataOptions, Evaluation, GenerationTask, evaluate_loss, generation_cases, read_records, tokenize,
};

use crate::args::{EvaluateArgs, ModelArgs};
use crate::base::{Base, tuners};
use crate::config::{Written, text_metrics};
use crate::failure::Misuse;
use crate::terminal;
use crate::training::{greedy, rounded, warn_of_truncation};

pub(crate) fn run(args: &EvaluateArgs) -> anyhow::Result<()> {
    if args.batch_size == 0 || args.limit == Some(0) {
        return Err(Misuse("--batch-size and --limit must be at least 1".into()).into());
    }
    let What { model, file, data, metrics } = what(args)?;
    let mut records = read_records(&file, &data)?;
    if let Some(limit) = args.limit {
        records.records.truncate(limit);
    }
    let (base, adapter) = Base::from_args(&model)?;
    let tokenizer = &base.pretrained.tokenizer;
    let dataset = tokenize(&records, &data, tokenizer, base.model().info().max_positions)?;
    warn_of_truncation(&file, &dataset);
    let workspace = Workspace::new();
    let limit = BatchLimit::Sequences(args.batch_size);
    let mut evaluation = evaluate_loss(base.model(), tuners(&adapter), &workspace, &dataset.examples, limit)?;
    let mut generations = Vec::new();
    if !metrics.is_empty() {
        let cases = generation_cases(&records, tokenizer)?;
        let task = GenerationTask { cases, options: greedy(&base, args.max_new_tokens), metrics };
        let count = task.cases.len();
        let say = |done: usize| terminal::note(format_args!("continued {done} of {count} prompts"));
        let (measured, texts) = task.score(base.model(), tokenizer, tuners(&adapter), &workspace, say)?;
        evaluation.metrics.extend(measured);
        let texts = task.cases.iter().zip(texts);
        generations.extend(
            texts.map(|(case, text)| json!({"prompt": case.prompt, "references": case.references, "text": text})),
        );
    }
    if let Some(path) = &args.json {
        let mut result = json!({
            "model": base.name,
            "adapter": model.adapter,
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

/// What to evaluate.
struct What {
    model: ModelArgs,
    file: PathBuf,
    data: DataOptions,
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
        let data = Written::command_line(&args.overrides)?.build_data_options()?;
        let file = args.data.clone().context("clap asks for --data or --config")?;
        return Ok(What { model, file, data, metrics: of_texts(metrics) });
    };
    let config = Written::read(path, &args.overrides)?.build()?;
    let file = args.data.clone().or_else(|| config.data.validation_file.clone());
    let file = file.ok_or_else(|| Misuse(format!("{} has no validation_file: give --data", path.display())))?;
    metrics.extend(text_metrics(&config.run, &config.arguments));
    model.model.get_or_insert(config.run.model_name_or_path);
    model.tokenizer = model.tokenizer.or(config.run.tokenizer_name_or_path);
    model.chat_template = model.chat_template.or(config.run.chat_template);
    Ok(What { model, file, data: config.data, metrics: of_texts(metrics) })
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
