//! Quality on real data beside HF PEFT: the same methods, tasks of GLUE, settings and seeds, ours and theirs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::glue_results::{GlueResults, GlueRun};
use crate::peers::{build, machine, python, report, result, today, versions};
use crate::repository;

const FOLDER: &str = "bench/glue";

#[derive(Debug, Args)]
pub(crate) struct BenchGlue {
    /// A Hugging Face folder of a BERT-type encoder, which both read
    model: PathBuf,
    /// A folder with sst2, mrpc, rte and stsb, each with train.tsv and dev.tsv
    data: PathBuf,
    /// Only these methods, as bench/glue/methods.yaml names them
    #[arg(long, value_delimiter = ',')]
    methods: Vec<String>,
    /// Only these tasks, as bench/glue/tasks.yaml names them
    #[arg(long, value_delimiter = ',')]
    tasks: Vec<String>,
    #[arg(long, value_delimiter = ',', default_value = "0,1,2")]
    seeds: Vec<u64>,
    /// Only one of the two
    #[arg(long, value_enum)]
    side: Option<Side>,
    /// Arithmetic of matrix products, of both
    #[arg(long, default_value = "bf16")]
    precision: String,
    /// A virtual environment with torch, transformers and peft [default: one in the user's cache folder, made on demand]
    #[arg(long, value_name = "FOLDER")]
    venv: Option<PathBuf>,
    /// Values in place of those of bench/glue, such as max_steps=2; nothing is written then
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

/// Who runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Side {
    Ours,
    Peer,
}

/// A method of bench/glue/methods.yaml.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Method {
    pub(crate) name: String,
    /// The tasks that it is measured on.
    pub(crate) tasks: Vec<String>,
    /// Keys of a run that it sets.
    set: Map<String, Value>,
    /// Keys that it sets on one task alone, by the task's name.
    #[serde(default)]
    on: BTreeMap<String, Map<String, Value>>,
}

/// A task of bench/glue/tasks.yaml.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Task {
    name: String,
    folder: String,
    /// The score that counts.
    score: String,
    /// Rows of the training file that are used, from its beginning; none means all.
    train_rows: Option<usize>,
    /// Keys of a run that it sets.
    set: Map<String, Value>,
}

/// Everything that bench/glue says.
struct Plan {
    run: Map<String, Value>,
    tasks: Vec<Task>,
    methods: Vec<Method>,
}

/// The methods, in the table's order.
pub(crate) fn methods(repository: &Path) -> anyhow::Result<Vec<Method>> {
    read_yaml(repository, "methods.yaml")
}

pub(crate) fn run(arguments: &BenchGlue) -> anyhow::Result<()> {
    let plan = Plan::read(&repository())?;
    plan.check_names(arguments)?;
    let sides = arguments.side.map_or(vec![Side::Ours, Side::Peer], |side| vec![side]);
    let program = if sides.contains(&Side::Ours) { Some(build()?) } else { None };
    let python = python(arguments.venv.as_deref())?;
    let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
    let overrides: Map<String, Value> =
        arguments.overrides.iter().map(|text| key_value(text)).collect::<Result<_, _>>()?;
    let mut results = GlueResults::of_day(&repository(), today(), machine(), versions(&python)?)?;
    if !overrides.is_empty() {
        results.runs.clear();
    }
    // Whole seeds one after the other, so that what there is of an unfinished measurement can be compared.
    for seed in &arguments.seeds {
        for (method, task) in plan.cells(arguments) {
            for side in &sides {
                let name = format!("{}, {}, seed {seed}, {side:?}", method.name, task.name);
                if results.has(&method.name, &task.name, *seed, *side) {
                    report(&format!("{name}: known"));
                    continue;
                }
                let mut settings = plan.settings(method, task, *seed, arguments, scratch.path())?;
                settings.extend(overrides.clone());
                let measured = match (side, &program) {
                    (Side::Ours, Some(program)) => ours(program, &settings, scratch.path())?,
                    _ => peer(&python, &settings, scratch.path())?,
                };
                let run = GlueRun::new(&method.name, &task.name, *seed, *side, &task.score, &measured)?;
                report(&format!("{name}: {} {:.4}, {:.0} s", task.score, run.score, run.train_seconds));
                results.runs.push(run);
                if overrides.is_empty() {
                    results.save(&repository())?;
                }
            }
        }
    }
    report(&results.table(&plan.methods));
    Ok(())
}

impl Plan {
    fn read(repository: &Path) -> anyhow::Result<Self> {
        let run = read_yaml(repository, "run.yaml")?;
        Ok(Self { run, tasks: read_yaml(repository, "tasks.yaml")?, methods: methods(repository)? })
    }

    fn check_names(&self, arguments: &BenchGlue) -> anyhow::Result<()> {
        let methods: Vec<&str> = self.methods.iter().map(|method| method.name.as_str()).collect();
        let tasks: Vec<&str> = self.tasks.iter().map(|task| task.name.as_str()).collect();
        for (what, wanted, known) in [("method", &arguments.methods, methods), ("task", &arguments.tasks, tasks)] {
            if let Some(unknown) = wanted.iter().find(|name| !known.contains(&name.as_str())) {
                bail!("{FOLDER} has no {what} '{unknown}'; it has {}", known.join(", "));
            }
        }
        Ok(())
    }

    /// The methods and tasks that are wanted.
    fn cells<'a>(&'a self, arguments: &'a BenchGlue) -> impl Iterator<Item = (&'a Method, &'a Task)> {
        let wanted = |list: &[String], name: &String| list.is_empty() || list.contains(name);
        let methods = self.methods.iter().filter(move |method| wanted(&arguments.methods, &method.name));
        methods.flat_map(move |method| {
            let tasks = self.tasks.iter().filter(move |task| method.tasks.contains(&task.name));
            tasks.filter(move |task| wanted(&arguments.tasks, &task.name)).map(move |task| (method, task))
        })
    }

    /// A run's keys; its data lies in `scratch`.
    fn settings(
        &self,
        method: &Method,
        task: &Task,
        seed: u64,
        arguments: &BenchGlue,
        scratch: &Path,
    ) -> anyhow::Result<Map<String, Value>> {
        let data = arguments.data.join(&task.folder);
        let train = scratch.join("train.tsv");
        copy_rows(&data.join("train.tsv"), &train, task.train_rows)?;
        let mut settings = self.run.clone();
        settings.extend(task.set.clone());
        settings.extend(method.set.clone());
        settings.extend(method.on.get(&task.name).cloned().unwrap_or_default());
        settings.extend([
            ("model_name_or_path".to_owned(), json!(arguments.model)),
            ("train_file".to_owned(), json!(train)),
            ("validation_file".to_owned(), json!(data.join("dev.tsv"))),
            ("output_dir".to_owned(), json!(scratch.join("run"))),
            ("precision".to_owned(), json!(arguments.precision)),
            ("seed".to_owned(), json!(seed)),
        ]);
        Ok(settings)
    }
}

fn read_yaml<T: DeserializeOwned>(repository: &Path, name: &str) -> anyhow::Result<T> {
    let path = repository.join(FOLDER).join(name);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_saphyr::from_str(&text).with_context(|| format!("{} cannot be used", path.display()))
}

fn key_value(text: &str) -> anyhow::Result<(String, Value)> {
    let (key, value) = text.split_once('=').with_context(|| format!("'{text}' is not KEY=VALUE"))?;
    Ok((key.to_owned(), serde_saphyr::from_str(value).with_context(|| format!("'{value}' is no YAML"))?))
}

/// Copies the heading and the first `rows` rows.
fn copy_rows(from: &Path, to: &Path, rows: Option<usize>) -> anyhow::Result<()> {
    let text = fs::read_to_string(from).with_context(|| format!("cannot read {}", from.display()))?;
    let kept = text.split_inclusive('\n').take(rows.map_or(usize::MAX, |rows| rows + 1));
    fs::write(to, kept.collect::<String>()).with_context(|| format!("cannot write {}", to.display()))
}

fn ours(program: &Path, settings: &Map<String, Value>, scratch: &Path) -> anyhow::Result<Value> {
    // JSON is YAML.
    let path = write_settings(settings, scratch)?;
    let output = Command::new(program).arg("train").arg(&path).output().context("cannot run the program")?;
    ensure!(output.status.success(), "the run failed:\n{}", String::from_utf8_lossy(&output.stderr));
    let folder = scratch.join("run");
    let text = fs::read_to_string(folder.join("all_results.json")).context("the run left no results")?;
    fs::remove_dir_all(&folder).context("cannot remove the run's folder")?;
    serde_json::from_str(&text).context("the run's results are damaged")
}

fn peer(python: &Path, settings: &Map<String, Value>, scratch: &Path) -> anyhow::Result<Value> {
    let path = write_settings(settings, scratch)?;
    result(Command::new(python).arg(repository().join("xtask/peers/bench_peft_glue.py")).arg(&path))
}

fn write_settings(settings: &Map<String, Value>, scratch: &Path) -> anyhow::Result<PathBuf> {
    let path = scratch.join("run.json");
    fs::write(&path, serde_json::to_string_pretty(settings)?).context("cannot write the run's settings")?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_has_known_tasks_and_a_learning_rate() {
        let plan = Plan::read(&repository()).unwrap();
        let tasks: Vec<&String> = plan.tasks.iter().map(|task| &task.name).collect();
        for method in &plan.methods {
            assert!(!method.tasks.is_empty() && method.tasks.iter().all(|task| tasks.contains(&task)), "{method:?}");
            assert!(method.set.contains_key("learning_rate") && method.set.contains_key("peft"), "{method:?}");
            assert!(method.on.keys().all(|task| method.tasks.contains(task)), "{method:?}");
        }
        assert_eq!(plan.methods.iter().map(|method| method.tasks.len()).sum::<usize>(), 17);
    }

    #[test]
    fn the_heading_does_not_count_as_a_row() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::write(&from, "heading\n1\n2\n3\n").unwrap();
        for (rows, expected) in
            [(Some(2), "heading\n1\n2\n"), (None, "heading\n1\n2\n3\n"), (Some(9), "heading\n1\n2\n3\n")]
        {
            copy_rows(&from, &to, rows).unwrap();
            assert_eq!(fs::read_to_string(&to).unwrap(), expected);
        }
    }
}
