//! `tunesmith evaluate`: loss, perplexity and BLEU of a model on a file.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use serde_json::{Value, json};
use tunesmith_tensor::Workspace;
use tunesmith_train::{
    BatchLimit, DataOptions, Evaluation, GenerationTask, evaluate_loss, generation_cases, read_records, tokenize,
};

use crate::args::{EvaluateArgs, ModelArgs};
use crate::base::{Base, tuners};
use crate::config::Written;
use crate::failure::Misuse;
use crate::terminal;
use crate::training::{greedy, warn_of_truncation};

pub(crate) fn run(args: &EvaluateArgs) -> anyhow::Result<()> {
    if args.batch_size == 0 || args.limit == Some(0) {
        return Err(Misuse("--batch-size and --limit must be at least 1".into()).into());
    }
    let (model, file, data) = what(args)?;
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
    if args.bleu {
        let cases = generation_cases(&records, tokenizer)?;
        let task = GenerationTask { cases, options: greedy(&base, args.max_new_tokens) };
        let count = task.cases.len();
        let say = |done: usize| terminal::note(format_args!("continued {done} of {count} prompts"));
        let (bleu, texts) = task.bleu(base.model(), tokenizer, tuners(&adapter), &workspace, say)?;
        evaluation.bleu = Some(bleu);
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
            "loss": evaluation.loss,
            "perplexity": evaluation.perplexity,
        });
        if let Some(bleu) = evaluation.bleu {
            result["bleu"] = json!(bleu);
            result["max_new_tokens"] = json!(args.max_new_tokens);
            result["generations"] = Value::Array(generations);
        }
        fs::write(path, format!("{result:#}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    }
    print(&evaluation, dataset.examples.len()).context("cannot write to standard output")
}

/// The model, the file and the data options, of the command line or of a run's configuration.
fn what(args: &EvaluateArgs) -> anyhow::Result<(ModelArgs, PathBuf, DataOptions)> {
    let mut model = args.model.clone();
    let Some(path) = &args.config else {
        let data = Written::command_line(&args.overrides)?.build_data_options()?;
        let file = args.data.clone().context("clap asks for --data or --config")?;
        return Ok((model, file, data));
    };
    let config = Written::read(path, &args.overrides)?.build()?;
    let file = args.data.clone().or_else(|| config.data.validation_file.clone());
    let file = file.ok_or_else(|| Misuse(format!("{} has no validation_file: give --data", path.display())))?;
    model.model.get_or_insert(config.run.model_name_or_path);
    model.tokenizer = model.tokenizer.or(config.run.tokenizer_name_or_path);
    model.chat_template = model.chat_template.or(config.run.chat_template);
    Ok((model, file, config.data))
}

fn print(evaluation: &Evaluation, examples: usize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "examples    {examples}")?;
    writeln!(out, "tokens      {}", evaluation.tokens)?;
    writeln!(out, "loss        {:.4}", evaluation.loss)?;
    writeln!(out, "perplexity  {:.3}", evaluation.perplexity)?;
    evaluation.bleu.map_or(Ok(()), |bleu| writeln!(out, "BLEU        {bleu:.2}"))
}
