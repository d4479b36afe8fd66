//! `tunesmith train`: trains an adapter as a YAML file says.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use indicatif::HumanCount;
use serde_json::{Map, Value, json};
use tunesmith_methods::BuiltAdapter;
use tunesmith_train::{Ending, LOG_FILE, Report, Start};

use crate::args::TrainArgs;
use crate::commands::together;
use crate::config::Written;
use crate::failure::{Interrupted, Misuse};
use crate::interrupt::Interrupt;
use crate::plot::LossCurve;
use crate::rank_choice::ChosenRank;
use crate::terminal;
use crate::training::{Training, describe, rounded};

/// What a finished run came to, under the name that `transformers` has for it.
const RESULTS_FILE: &str = "all_results.json";

pub(crate) fn run(args: &TrainArgs) -> anyhow::Result<()> {
    let start = match (args.resume, args.overwrite) {
        (true, _) => Start::Resume,
        (_, true) => Start::Overwrite,
        _ => Start::New,
    };
    if !(args.each.is_empty() && args.with.is_empty()) {
        return together::run(args, start);
    }
    let config = Written::read(&args.config, &args.overrides)?.build()?;
    let output = config.run.output_dir.clone();
    if start == Start::New {
        check_unused(&output)?;
    }
    let training = Training::prepare(config)?;
    let mut built = training.build_adapter()?;
    let trainable = built.adapter.trainable_values();
    terminal::note(describe_run(&training, trainable));
    let interrupt = Interrupt::listen("finishing the step and saving")?;
    let report = training.run(&mut built, start, &interrupt)?;
    let curve = draw_curve(&output)?;
    if let Ending::Stopped(checkpoint) = &report.ending {
        return Err(Interrupted(format!(
            "stopped after step {} of {}, which is saved in {}. To go on:\n  {}",
            report.state.global_step,
            report.state.max_steps,
            checkpoint.display(),
            resume_command(args)
        ))
        .into());
    }
    let chosen = conclude(&training, &mut built, &report)?;
    let is_of_texts = training.config.task.task()?.is_of_texts();
    summarise(&report, &curve, chosen.as_ref(), &output, is_of_texts).context("cannot write to standard output")
}

/// Draws the losses of the run in a folder.
pub(super) fn draw_curve(output: &Path) -> anyhow::Result<LossCurve> {
    let curve = LossCurve::read(&output.join(LOG_FILE))?;
    curve.write_svg(&output.join("loss.svg"), &format!("Loss of {}", output.display()))?;
    Ok(curve)
}

/// Chooses a rank, where one is to be chosen, and writes what a run came to beside its adapter.
pub(super) fn conclude(
    training: &Training,
    built: &mut BuiltAdapter,
    report: &Report,
) -> anyhow::Result<Option<ChosenRank>> {
    let trainable = built.adapter.trainable_values();
    let chosen = training.choose_rank(built)?;
    let path = training.config.run.output_dir.join(RESULTS_FILE);
    let mut results = results(report, trainable);
    results.extend(chosen.iter().flat_map(rank_results));
    let text = format!("{:#}\n", Value::Object(results));
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(chosen)
}

/// An earlier run's results are not written over by accident.
pub(super) fn check_unused(output: &Path) -> anyhow::Result<()> {
    let entries = fs::read_dir(output).into_iter().flatten().flatten();
    let names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let Some(found) = names.iter().find(|name| name.starts_with("checkpoint-") || *name == "adapter_config.json")
    else {
        return Ok(());
    };
    Err(Misuse(format!(
        "output_dir {} holds {found} of an earlier run: --resume goes on with that run, --overwrite begins anew, and \
         output_dir=FOLDER puts this one elsewhere",
        output.display()
    ))
    .into())
}

fn describe_run(training: &Training, trainable: usize) -> String {
    let all = training.base.values();
    let data = &training.train;
    let validation = training.validation.as_ref().map(|set| format!(", {} for validation", set.len()));
    format!(
        "{}: {} parameters, {} trainable ({:.2} %)\n{} examples with {} tokens, {} of them to be learned{}",
        training.base.name,
        HumanCount(all as u64),
        HumanCount(trainable as u64),
        100.0 * trainable as f64 / all as f64,
        data.lengths().len(),
        data.lengths().iter().sum::<usize>(),
        data.labelled(),
        validation.unwrap_or_default()
    )
}

/// The results of a run; what is about training covers the process, not what it was resumed from.
fn results(report: &Report, trainable: usize) -> Map<String, Value> {
    let speed = report.train_tokens as f64 / report.train_seconds.max(f64::MIN_POSITIVE);
    let mut results = Map::from_iter([
        ("global_step".to_owned(), json!(report.state.global_step)),
        ("train_loss".to_owned(), json!(report.mean_loss)),
        ("train_runtime".to_owned(), json!(report.train_seconds)),
        ("train_tokens".to_owned(), json!(report.train_tokens)),
        ("train_tokens_per_second".to_owned(), json!(speed)),
        ("train_peak_memory".to_owned(), json!(report.train_peak_memory)),
        ("trainable_parameters".to_owned(), json!(trainable)),
    ]);
    let measured = report.evaluation.iter().flat_map(|evaluation| &evaluation.metrics);
    results.extend(measured.map(|(key, value)| (format!("eval_{key}"), json!(value))));
    results
}

/// What a choice among ranks rests on.
fn rank_results(chosen: &ChosenRank) -> [(String, Value); 4] {
    let values: Map<String, Value> =
        chosen.values.iter().map(|(rank, value)| (rank.to_string(), json!(value))).collect();
    [
        ("rank".to_owned(), json!(chosen.rank)),
        ("rank_tolerance".to_owned(), json!(chosen.tolerance)),
        ("rank_metric".to_owned(), json!(chosen.metric)),
        ("ranks".to_owned(), Value::Object(values)),
    ]
}

fn summarise(
    report: &Report,
    curve: &LossCurve,
    chosen: Option<&ChosenRank>,
    output: &Path,
    is_of_texts: bool,
) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if report.train_tokens == 0 {
        writeln!(out, "the run was finished already, after {} steps", report.state.global_step)?;
    } else {
        let speed = report.train_tokens as f64 / report.train_seconds.max(f64::MIN_POSITIVE);
        writeln!(
            out,
            "{} steps, {} tokens in {:.0} s of training ({speed:.0} tokens/s)",
            report.state.global_step, report.train_tokens, report.train_seconds
        )?;
    }
    if report.ending == Ending::StoppedEarly {
        let (step, planned, since) =
            (report.state.global_step, report.state.max_steps, report.state.evaluations_since_best);
        writeln!(out, "stopped early, after step {step} of {planned}: {since} evaluations brought nothing better")?;
    }
    writeln!(out, "loss        {}", curve.sparkline(48))?;
    if let Some(evaluation) = &report.evaluation {
        writeln!(out, "validation  {}", describe(evaluation))?;
    }
    if let Some(ChosenRank { rank, tolerance, metric, values }) = chosen {
        let values: Vec<String> = values.iter().map(|(rank, value)| format!("{rank}: {}", rounded(*value))).collect();
        writeln!(out, "ranks       {metric} at {}", values.join(", "))?;
        writeln!(out, "rank        {rank}, the smallest within {} % of the best", 100.0 * tolerance)?;
    }
    writeln!(out, "adapter     {}", output.display())?;
    let adapter = quoted(&output.to_string_lossy());
    if is_of_texts {
        writeln!(out, "try it      tunesmith generate -a {adapter} 'PROMPT'")
    } else {
        writeln!(out, "try it      tunesmith predict -a {adapter} --data FILE")
    }
}

pub(super) fn resume_command(args: &TrainArgs) -> String {
    let mut words = vec!["tunesmith train".to_owned(), quoted(&args.config.to_string_lossy())];
    words.extend(args.overrides.iter().map(|text| quoted(text)));
    words.extend(args.with.iter().flat_map(|path| ["--with".to_owned(), quoted(&path.to_string_lossy())]));
    words.extend(args.each.iter().flat_map(|text| ["--each".to_owned(), quoted(text)]));
    words.push("--resume".to_owned());
    words.join(" ")
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./=:,@%+".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_to_go_on_can_be_pasted() {
        let args = TrainArgs {
            config: "my run.yaml".into(),
            overrides: vec!["peft.r=16".into(), "delimiter=||".into(), "prompt_prefix=it's".into()],
            each: vec!["seed=[1, 2]".into()],
            with: vec!["other.yaml".into()],
            resume: false,
            overwrite: false,
        };
        let expected = r"tunesmith train 'my run.yaml' peft.r=16 'delimiter=||' 'prompt_prefix=it'\''s' --with other.yaml --each 'seed=[1, 2]' --resume";
        assert_eq!(resume_command(&args), expected);
    }

    #[test]
    fn a_folder_with_results_is_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        assert!(check_unused(folder.path()).is_ok() && check_unused(&folder.path().join("new")).is_ok());
        fs::create_dir(folder.path().join("checkpoint-5")).unwrap();
        let message = check_unused(folder.path()).unwrap_err().to_string();
        assert!(message.contains("holds checkpoint-5 of an earlier run: --resume"), "{message}");
    }
}
