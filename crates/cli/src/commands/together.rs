//! `tunesmith train` with several runs: adapters over one base, an update of each in one pass.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use serde_json::Value;
use tunesmith_methods::BuiltAdapter;
use tunesmith_train::{Ending, Report, Start};

use super::train::{check_unused, conclude, draw_curve, resume_command};
use crate::args::TrainArgs;
use crate::base::SharedBase;
use crate::config::{RunConfig, Written};
use crate::failure::{Interrupted, Misuse};
use crate::interrupt::Interrupt;
use crate::pass::train_in_one_pass;
use crate::terminal::note;
use crate::training::{Training, describe};
use crate::watcher::Detail;

/// A run and what it is called.
struct Named {
    name: String,
    training: Training,
}

pub(super) fn run(args: &TrainArgs, start: Start) -> anyhow::Result<()> {
    let configs = configurations(args)?;
    if start == Start::New {
        configs.iter().try_for_each(|(_, config)| check_unused(&config.run.output_dir))?;
    }
    let runs = prepare(configs)?;
    let mut built: Vec<BuiltAdapter> =
        runs.iter().map(|run| run.training.build_adapter()).collect::<anyhow::Result<_>>()?;
    let trainable: usize = built.iter().map(|built| built.adapter.trainable_values()).sum();
    note(format_args!("{} adapters over {}, {trainable} values to train", runs.len(), runs[0].training.base.name));
    let interrupt = Interrupt::listen("finishing the step and saving")?;
    let trainings: Vec<&Training> = runs.iter().map(|run| &run.training).collect();
    let detail = |place: usize| if place == 0 { Detail::First } else { Detail::Other }(runs[place].name.clone());
    let reports = train_in_one_pass(&trainings, &mut built, start, &interrupt, detail)?;
    let seconds = reports.iter().flatten().map(|report| report.train_seconds).fold(0.0, f64::max);
    let mut out = io::stdout().lock();
    let (mut failed, mut stopped, mut tokens) = (0, 0, 0);
    for ((run, built), report) in runs.iter().zip(&mut built).zip(reports) {
        let (name, output) = (&run.name, run.training.config.run.output_dir.display());
        let line = match report {
            Err(error) => {
                failed += 1;
                format!("{name:<32} failed: {error}")
            }
            Ok(report) => {
                tokens += report.train_tokens;
                let curve = draw_curve(&run.training.config.run.output_dir)?;
                if matches!(report.ending, Ending::Stopped(_)) {
                    stopped += 1;
                    format!("{name:<32} stopped after step {}", report.state.global_step)
                } else {
                    conclude(&run.training, built, &report)?;
                    format!("{name:<32} {}, {}: {output}", curve.sparkline(16), came_to(&report))
                }
            }
        };
        writeln!(out, "{line}").context("cannot write to standard output")?;
    }
    let speed = tokens as f64 / seconds.max(f64::MIN_POSITIVE);
    writeln!(out, "{tokens} tokens in {seconds:.0} s of training ({speed:.0} tokens/s together)")
        .context("cannot write to standard output")?;
    if stopped > 0 {
        return Err(Interrupted(format!("stopped; all are saved. To go on:\n  {}", resume_command(args))).into());
    }
    if failed > 0 {
        bail!("{failed} of {} runs failed; the others are finished", runs.len());
    }
    Ok(())
}

fn came_to(report: &Report) -> String {
    match &report.evaluation {
        Some(evaluation) => format!("validation {}", describe(evaluation)),
        None => format!("mean loss {:.3}", report.mean_loss),
    }
}

/// Every run that was asked for, with its name: each file, and each combination of the values of `--each`.
fn configurations(args: &TrainArgs) -> anyhow::Result<Vec<(String, RunConfig)>> {
    let choices = args.each.iter().map(|text| choice(text)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut combinations: Vec<Vec<String>> = vec![Vec::new()];
    for values in choices {
        let extended = combinations.iter().flat_map(|known| {
            values.iter().map(move |value| known.iter().chain([value]).cloned().collect::<Vec<String>>())
        });
        combinations = extended.collect();
    }
    let mut configs: Vec<(String, RunConfig)> = Vec::new();
    for file in std::iter::once(&args.config).chain(&args.with) {
        for combination in &combinations {
            let overrides = [&args.overrides[..], combination].concat();
            let mut config = Written::read(file, &overrides)?.build()?;
            let folder: String =
                combination.join(",").chars().map(|sign| if is_plain(sign) { sign } else { '-' }).collect();
            if !folder.is_empty() {
                config.run.output_dir.push(&folder);
            }
            let output: PathBuf = config.run.output_dir.clone();
            if let Some((other, _)) = configs.iter().find(|(_, known)| known.run.output_dir == output) {
                let text = format!("two runs, one of them {other}, have the output_dir {}", output.display());
                return Err(Misuse(text).into());
            }
            let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let name = match (args.with.is_empty(), folder.is_empty()) {
                (true, false) => folder,
                (false, false) => format!("{stem},{folder}"),
                _ => stem,
            };
            configs.push((name, config));
        }
    }
    Ok(configs)
}

/// `KEY=[VALUES]` as an override for each value.
fn choice(text: &str) -> anyhow::Result<Vec<String>> {
    let values = text.split_once('=').and_then(|(key, values)| Some((key, serde_saphyr::from_str(values).ok()?)));
    match values {
        Some((key, Value::Array(values))) if !values.is_empty() => {
            Ok(values.iter().map(|value| format!("{key}={value}")).collect())
        }
        _ => Err(Misuse(format!("--each {text} is not KEY=[VALUES], such as learning_rate=[1e-4, 1e-3]")).into()),
    }
}

/// Whether a sign may be part of a folder's name.
fn is_plain(sign: char) -> bool {
    sign.is_alphanumeric() || "=,._-".contains(sign)
}

/// Loads data and the base, which all must share.
fn prepare(configs: Vec<(String, RunConfig)>) -> anyhow::Result<Vec<Named>> {
    let mut shared = SharedBase::default();
    let mut runs: Vec<Named> = Vec::new();
    for (name, config) in configs {
        let training = Training::prepare_over(config, &mut shared)?;
        if let Some(first) = runs.first().filter(|first| !Arc::ptr_eq(&first.training.base, &training.base)) {
            return Err(Misuse(format!(
                "{name} needs another base than {}, because the two differ in {}: runs share one base, with its head, to be trained together",
                first.name,
                difference(&first.training.config, &training.config)
            ))
            .into());
        }
        runs.push(Named { name, training });
    }
    Ok(runs)
}

/// Keys that change the base, and differ.
fn difference(first: &RunConfig, second: &RunConfig) -> String {
    const OF_RUNS: [&str; 6] =
        ["model_name_or_path", "tokenizer_name_or_path", "chat_template", "precision", "task_type", "seed"];
    let quantization = first.quantization_keys();
    let (first, second) = (first.resolved(), second.resolved());
    let keys = OF_RUNS.into_iter().chain(quantization.iter().map(String::as_str));
    let differing = keys.filter(|key| first.get(*key) != second.get(*key)).collect::<Vec<_>>();
    match differing[..] {
        [] => "labels, or in what the method changes of it".to_owned(),
        ["seed"] => "seed, which the values of a new head come from".to_owned(),
        _ => differing.join(", "),
    }
}
