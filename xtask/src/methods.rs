//! The table of methods: each trains on the E2E sample with the same small budget, and writes for the same held-out inputs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use clap::Args;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::method_results::{MethodCase, MethodResults};
use crate::peers::{build, machine, report, today};
use crate::repository;

/// The run that all methods share.
const RUN: &str = "bench/methods-e2e.yaml";
/// What each method sets over it.
const METHODS: &str = "bench/methods.yaml";

#[derive(Debug, Args)]
pub(crate) struct BenchMethods {
    /// The base model: a pulled name, a Hugging Face folder, or a .gguf file
    #[arg(long, default_value = "smollm2-135m-instruct")]
    model: String,
    /// Only these methods, as bench/methods.yaml names them; their rows replace those of today's results
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Values in place of those of bench/methods-e2e.yaml, such as max_steps=2; nothing is written then
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

/// A method of the table, and the keys of a run that it sets.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Method {
    name: String,
    set: Map<String, Value>,
}

pub(crate) fn run(arguments: &BenchMethods) -> anyhow::Result<()> {
    let all = methods(&repository())?;
    if let Some(unknown) = arguments.only.iter().find(|name| all.iter().all(|method| method.name != **name)) {
        let names: Vec<&str> = all.iter().map(|method| method.name.as_str()).collect();
        anyhow::bail!("{METHODS} has no method '{unknown}'; it has {}", names.join(", "));
    }
    let wanted = |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|only| only == name);
    let program = build()?;
    let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
    let mut cases = Vec::new();
    if arguments.only.is_empty() {
        report("the base model");
        cases.push(base(&program, arguments, &scratch.path().join("base.json"))?);
    }
    for method in all.iter().filter(|method| wanted(&method.name)) {
        report(&method.name);
        let output = scratch.path().join("run");
        cases.push(train(&program, arguments, method, &output)?);
        fs::remove_dir_all(&output).context("cannot remove the run's folder")?;
    }
    // Where the file lies on this machine says nothing to others.
    let base_model = Path::new(&arguments.model).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut results = MethodResults { date: today(), machine: machine(), base_model, cases };
    if arguments.overrides.is_empty() {
        let order: Vec<&str> = all.iter().map(|method| method.name.as_str()).collect();
        results.take_others(&repository(), &order)?;
        let path = results.save(&repository())?;
        report(&format!("written to {}", path.display()));
    }
    report(&results.table());
    Ok(())
}

fn methods(repository: &Path) -> anyhow::Result<Vec<Method>> {
    let text = fs::read_to_string(repository.join(METHODS)).with_context(|| format!("cannot read {METHODS}"))?;
    serde_saphyr::from_str(&text).with_context(|| format!("{METHODS} is not a list of methods"))
}

/// What the base model does untrained.
fn base(program: &Path, arguments: &BenchMethods, result: &Path) -> anyhow::Result<MethodCase> {
    let mut command = Command::new(program);
    command.current_dir(repository()).args(["evaluate", "--config", RUN, "--model", &arguments.model]).args([
        "--bleu",
        "--max-new-tokens",
        "64",
    ]);
    command.arg("--json").arg(result).arg("output_dir=unused").args(&arguments.overrides);
    finish(&mut command)?;
    let measured = read(result)?;
    Ok(MethodCase {
        method: "none".to_owned(),
        trainable_parameters: 0,
        adapter_bytes: 0,
        eval_loss: number(&measured, "loss")?,
        eval_bleu: number(&measured, "bleu")?,
        train_seconds: 0.0,
        peak_memory: 0,
    })
}

/// Trains a method in a process of its own, so that its memory can be told.
fn train(program: &Path, arguments: &BenchMethods, method: &Method, output: &Path) -> anyhow::Result<MethodCase> {
    let mut command = Command::new(program);
    command.current_dir(repository()).args(["train", RUN]);
    command.arg(format!("model_name_or_path={}", Value::from(arguments.model.as_str())));
    command.arg(format!("output_dir={}", Value::from(output.to_string_lossy())));
    // JSON is YAML.
    command.args(method.set.iter().map(|(key, value)| format!("{key}={value}"))).args(&arguments.overrides);
    finish(&mut command)?;
    let results = read(&output.join("all_results.json"))?;
    let count = |key: &str| results[key].as_u64().with_context(|| format!("the results have no {key}"));
    Ok(MethodCase {
        method: method.name.clone(),
        trainable_parameters: count("trainable_parameters")?,
        adapter_bytes: adapter_bytes(output)?,
        eval_loss: number(&results, "eval_loss")?,
        eval_bleu: number(&results, "eval_bleu")?,
        train_seconds: number(&results, "train_runtime")?,
        peak_memory: count("train_peak_memory")?,
    })
}

fn finish(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Value> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
}

fn number(values: &Value, key: &str) -> anyhow::Result<f64> {
    values[key].as_f64().with_context(|| format!("the results have no {key}"))
}

/// The size of an adapter's tensors on disk, those of all its parts, without the checkpoints.
fn adapter_bytes(folder: &Path) -> anyhow::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path: PathBuf = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && !name.starts_with("checkpoint-") {
            sum += adapter_bytes(&path)?;
        } else if name.ends_with(".safetensors") {
            sum += fs::metadata(&path)?.len();
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_list_of_methods_can_be_read_and_names_each_once() {
        let all = methods(&repository()).unwrap();
        let names: HashSet<&str> = all.iter().map(|method| method.name.as_str()).collect();
        assert!(names.len() == all.len() && all.len() >= 18);
        assert!(all.iter().all(|method| method.set.contains_key("peft") && method.set.contains_key("learning_rate")));
    }

    #[test]
    fn the_size_of_an_adapter_is_that_of_all_its_parts_without_checkpoints() {
        let folder = tempfile::tempdir().unwrap();
        for (part, size) in [("a", 3), ("checkpoint-5", 100)] {
            fs::create_dir(folder.path().join(part)).unwrap();
            fs::write(folder.path().join(part).join("adapter_model.safetensors"), vec![0; size]).unwrap();
        }
        fs::write(folder.path().join("adapter_model.safetensors"), [0; 4]).unwrap();
        fs::write(folder.path().join("log.jsonl"), [0; 50]).unwrap();
        assert_eq!(adapter_bytes(folder.path()).unwrap(), 7);
    }
}
