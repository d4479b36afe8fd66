//! `tunesmith predict`: what a model with a head says of the texts of a file, a JSON object a line.

use std::fs;
use std::io::{self, Write};

use anyhow::Context;
use serde_json::{Value, json};
use tunesmith_train::{BatchLimit, Prediction, TaskContext, TaskValidation, read_task_rows, task_dataset};

use crate::args::PredictArgs;
use crate::base::{Base, virtual_tokens, voters};
use crate::config::Written;
use crate::failure::Misuse;
use crate::task_file::{self, TaskFile};

pub(crate) fn run(args: &PredictArgs) -> anyhow::Result<()> {
    if args.batch_size == 0 {
        return Err(Misuse("--batch-size must be at least 1".into()).into());
    }
    let file = TaskFile::of_all(&args.model.adapter)?;
    let written = Written::command_line(&args.overrides)?.over(file.map(|file| file.options()).unwrap_or_default());
    let (data, options) = written.build_data_options()?;
    let task = options.task()?;
    if task.is_of_texts() {
        return Err(Misuse(format!(
            "predictions need a head for a task, but this is {}: `tunesmith generate` writes texts",
            task.name()
        ))
        .into());
    }
    let rows = read_task_rows(&args.data, &data)?;
    let head = task_file::head(&options, options.label_names.clone())?;
    let (base, adapters) = Base::with_head(&args.model, head, args.arithmetic.precision())?;
    let (model, tokenizer) = (base.model().info(), &base.pretrained.tokenizer);
    let virtual_tokens = virtual_tokens(&adapters);
    let context = TaskContext { data: &data, options: &options, model, tokenizer, virtual_tokens, labelled: false };
    let dataset = task_dataset(&rows, &context)?;
    let set = TaskValidation::new(dataset, options, Vec::new(), &model.head);
    let limit = BatchLimit::Sequences(args.batch_size);
    let predictions = set.predict(&base.subject(&voters(&adapters), &base.workspace()), limit)?;
    let lines = predictions.iter().enumerate().map(|(number, prediction)| describe(&set, number, prediction));
    let mut text = String::new();
    for line in lines {
        text.push_str(&line.to_string());
        text.push('\n');
    }
    match &args.output {
        Some(path) => fs::write(path, text).with_context(|| format!("cannot write {}", path.display())),
        None => io::stdout().write_all(text.as_bytes()).context("cannot write to standard output"),
    }
}

/// A prediction as JSON.
fn describe(set: &TaskValidation, number: usize, prediction: &Prediction) -> Value {
    let name = |place: usize| set.labels.get(place).cloned().unwrap_or_else(|| place.to_string());
    let named = |values: &[f64]| -> Value {
        let named = values.iter().enumerate().map(|(place, value)| (name(place), json!(value)));
        Value::Object(named.collect())
    };
    match prediction {
        Prediction::Class(class, probabilities) => {
            json!({"label": name(*class), "probabilities": named(probabilities)})
        }
        Prediction::Flags(flags, probabilities) => {
            let labels: Vec<String> = (0..flags.len()).filter(|place| flags[*place]).map(name).collect();
            json!({"labels": labels, "probabilities": named(probabilities)})
        }
        Prediction::Numbers(numbers) => match numbers[..] {
            [number] => json!({"score": number}),
            _ => json!({"scores": named(numbers)}),
        },
        Prediction::Tags(tags) => {
            let tags: Vec<String> = tags.iter().map(|tag| name(*tag)).collect();
            json!({"tokens": set.dataset.words[number], "tags": tags})
        }
        Prediction::Answer(answer, probability) => {
            json!({"id": set.dataset.questions[number].id, "answer": answer, "probability": probability})
        }
        Prediction::Features(features) => json!({"features": features}),
    }
}
