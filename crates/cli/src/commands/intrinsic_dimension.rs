//! `tunesmith intrinsic-dimension`: the smallest `d` at which training in a random subspace does nearly as well as training
//! everything, with its curve as a table and a plot.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde_json::{Map, Value, json};
use tunesmith_methods::MethodConfig;
use tunesmith_train::{
    Candidate, Checkpoints, DimensionSearch, Ending, IntrinsicDimension, NextTrial, Start, TrainError, Trial,
};

use crate::config::{RunConfig, Written};
use crate::dimension_plot::write_svg;
use crate::failure::{Interrupted, Misuse};
use crate::interrupt::Interrupt;
use crate::terminal::note;
use crate::training::{Training, rounded};

/// What is searched, in the search's folder: a search that goes on must be the same.
const SEARCH_FILE: &str = "search.json";
/// The runs made, one a line.
const TRIALS_FILE: &str = "trials.jsonl";
const RESULT: &str = "intrinsic-dimension";

#[derive(Debug, Args)]
pub(crate) struct IntrinsicDimensionArgs {
    /// The run's configuration, a YAML file as for `train`; its method is INTRINSIC or SAID
    #[arg(value_name = "CONFIG.yaml")]
    config: PathBuf,
    /// Values in place of the file's, such as max_steps=500 or peft.projection=sparse
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Go on with the search in output_dir
    #[arg(long)]
    resume: bool,
    /// What fraction of full fine-tuning is to be reached: 0.9 for d90
    #[arg(long, value_name = "FRACTION", default_value_t = 0.9)]
    fraction: f64,
    /// The first d
    #[arg(long, value_name = "D", default_value_t = 10)]
    first: usize,
    /// The largest d that is tried
    #[arg(long, value_name = "D", default_value_t = 10_000)]
    last: usize,
    /// By how much d grows until it is enough
    #[arg(long, value_name = "FACTOR", default_value_t = 3.0)]
    factor: f64,
    /// The gap between a d that is enough and one that is not is halved until they are within this ratio
    #[arg(long, value_name = "RATIO", default_value_t = 1.25)]
    resolution: f64,
    /// Learning rates to try at each d
    #[arg(
        long,
        alias = "learning_rates",
        value_name = "RATES",
        value_delimiter = ',',
        default_value = "1e-3,1e-2,1e-1"
    )]
    learning_rates: Vec<f64>,
    /// Learning rates to try for full fine-tuning [default: the configuration's]
    #[arg(long, alias = "baseline_learning_rates", value_name = "RATES", value_delimiter = ',')]
    baseline_learning_rates: Vec<f64>,
}

impl IntrinsicDimensionArgs {
    fn search(&self, config: &RunConfig) -> Result<DimensionSearch, TrainError> {
        let mut baseline_learning_rates = self.baseline_learning_rates.clone();
        if baseline_learning_rates.is_empty() {
            baseline_learning_rates.push(config.arguments.learning_rate);
        }
        let search = DimensionSearch {
            fraction: self.fraction,
            first: self.first,
            last: self.last,
            factor: self.factor,
            resolution: self.resolution,
            learning_rates: self.learning_rates.clone(),
            baseline_learning_rates,
        };
        search.validate().map(|()| search)
    }
}

pub(crate) fn run(args: &IntrinsicDimensionArgs) -> anyhow::Result<()> {
    let config = Written::read(&args.config, &args.overrides)?.build()?;
    let search = args.search(&config)?;
    check(&config)?;
    let folder = config.run.output_dir.clone();
    let log = TrialLog::open(&folder, &json!({"search": search, "run": config.resolved()}), args.resume)?;
    let mut trials = log.read()?;
    let method = config.peft.clone();
    let mut training = Training::prepare(config)?;
    let interrupt = Interrupt::listen("finishing the step and saving")?;
    let found = loop {
        let candidate = match search.next(&trials) {
            NextTrial::Finished(found) => break found,
            NextTrial::Train(candidate) => candidate,
        };
        let metric = try_one(&mut training, &method, candidate, &folder, &interrupt)?;
        let trial = Trial { candidate, metric };
        note(format_args!("{}: {}", described(&candidate), metric.map_or_else(|| "diverged".to_owned(), rounded)));
        log.append(&trial)?;
        trials.push(trial);
    };
    let metric = training.config.arguments.metric_for_best_model.key;
    let table = table(&found, metric);
    write(&folder.join(format!("{RESULT}.md")), &table)?;
    write(&folder.join(format!("{RESULT}.json")), &format!("{:#}\n", json!({"search": search, "result": found})))?;
    let picture = folder.join(format!("{RESULT}.svg"));
    write_svg(&found, metric, &picture)?;
    writeln!(io::stdout(), "{table}\n{}\nplot  {}", summary(&found, &search, metric), picture.display())
        .context("cannot write to standard output")
}

/// What the search needs of a run.
fn check(config: &RunConfig) -> anyhow::Result<()> {
    let mut problems = Vec::new();
    let name = config.peft.peft_type();
    if !["INTRINSIC", "SAID"].contains(&name.as_str()) {
        problems.push(format!("peft_type is {name}, must be INTRINSIC or SAID, which train in a subspace"));
    }
    if config.data.validation_file.is_none() {
        problems.push("validation_file is missing: the search compares results on it".to_owned());
    }
    let metric = config.arguments.metric_for_best_model;
    if !metric.higher_is_better {
        problems.push(format!(
            "metric_for_best_model is {}, of which less is better, and 90 % of it means nothing: take one of which more \
             is better, such as accuracy or bleu",
            metric.key
        ));
    }
    if problems.is_empty() { Ok(()) } else { Err(Misuse(problems.join("\n")).into()) }
}

/// Makes a run and returns the best value of its metric; none if it diverged. Its checkpoints are removed, the log, the
/// configuration and, of a subspace, the adapter are kept.
fn try_one(
    training: &mut Training,
    method: &MethodConfig,
    candidate: Candidate,
    folder: &Path,
    interrupt: &Interrupt,
) -> anyhow::Result<Option<f64>> {
    let output = folder.join(folder_name(&candidate));
    training.config.run.output_dir.clone_from(&output);
    training.config.arguments.learning_rate = candidate.learning_rate;
    training.config.peft = method_of(method, candidate)?;
    let mut built = training.build_adapter()?;
    let begun = output.is_dir() && Checkpoints::open(&output)?.latest().is_ok();
    let start = if begun { Start::Resume } else { Start::Overwrite };
    let report = match training.run(&mut built, start, interrupt) {
        Ok(report) => Some(report),
        Err(error) if matches!(error.downcast_ref(), Some(TrainError::NotFinite { .. })) => None,
        Err(error) => return Err(error),
    };
    if let Some(Ending::Stopped(checkpoint)) = report.as_ref().map(|report| &report.ending) {
        let checkpoint = checkpoint.display();
        return Err(
            Interrupted(format!("stopped; saved in {checkpoint}. To go on, run the command with --resume")).into()
        );
    }
    for (_, checkpoint) in Checkpoints::open(&output)?.complete()? {
        fs::remove_dir_all(&checkpoint).with_context(|| format!("cannot remove {}", checkpoint.display()))?;
    }
    if candidate.dimension.is_none() {
        // As large as the model, and of no further use.
        let _ = fs::remove_file(output.join("adapter_model.safetensors"));
    }
    Ok(report.and_then(|report| report.state.best_metric))
}

/// The run's method with `d`, or full fine-tuning.
fn method_of(method: &MethodConfig, candidate: Candidate) -> anyhow::Result<MethodConfig> {
    let Value::Object(mut values) = serde_json::from_str(&method.to_adapter_config())? else {
        return Ok(method.clone());
    };
    values.remove("inference_mode");
    let values = match candidate.dimension {
        Some(dimension) => {
            values.insert("intrinsic_dimension".to_owned(), dimension.into());
            values
        }
        None => {
            let kept = ["task_type", "modules_to_save"].into_iter().filter_map(|key| values.remove_entry(key));
            let mut full: Map<String, Value> = kept.collect();
            full.insert("peft_type".to_owned(), "FULL".into());
            full
        }
    };
    Ok(MethodConfig::from_run_file(&Value::Object(values))?)
}

fn folder_name(candidate: &Candidate) -> String {
    let what = candidate.dimension.map_or_else(|| "full".to_owned(), |dimension| format!("d-{dimension}"));
    format!("{what}-lr-{:e}", candidate.learning_rate)
}

fn described(candidate: &Candidate) -> String {
    let what =
        candidate.dimension.map_or_else(|| "full fine-tuning".to_owned(), |dimension| format!("d = {dimension}"));
    format!("{what}, learning rate {:e}", candidate.learning_rate)
}

/// The curve as a table in Markdown.
fn table(found: &IntrinsicDimension, metric: &str) -> String {
    let value = |value: Option<f64>| value.map_or_else(|| "diverged".to_owned(), rounded);
    let mut table = format!("| d | best learning rate | {metric} | best up to d |\n|---|---|---|---|\n");
    for point in &found.curve {
        let _ = writeln!(
            table,
            "| {} | {:e} | {} | {} |",
            point.dimension,
            point.learning_rate,
            value(point.metric),
            value(point.envelope)
        );
    }
    let Trial { candidate, metric } = found.baseline;
    let _ = writeln!(table, "| everything | {:e} | {} | |", candidate.learning_rate, value(metric));
    table
}

fn summary(found: &IntrinsicDimension, search: &DimensionSearch, metric: &str) -> String {
    let percent = 100.0 * search.fraction;
    let goal = format!("{percent} % of full fine-tuning's {metric} is {}", rounded(found.threshold));
    match &found.found {
        Some(Trial { candidate, .. }) => format!(
            "d{percent} = {}, with learning rate {:e}: {goal}",
            candidate.dimension.unwrap_or(0),
            candidate.learning_rate
        ),
        None => format!("no d up to {} is enough: {goal}. Try a larger --last, or other --learning-rates", search.last),
    }
}

/// The runs of a search, in its folder.
struct TrialLog {
    path: PathBuf,
}

impl TrialLog {
    /// Begins a search, or goes on with the same one.
    fn open(folder: &Path, what: &Value, resume: bool) -> anyhow::Result<Self> {
        let (key, path) = (folder.join(SEARCH_FILE), folder.join(TRIALS_FILE));
        let known: Option<Value> = match fs::read(&key) {
            Ok(text) => Some(serde_json::from_slice(&text).with_context(|| format!("{} is damaged", key.display()))?),
            Err(_) => None,
        };
        let shown = folder.display();
        match (known, resume) {
            (None, true) => return Err(Misuse(format!("there is no search in {shown} to go on with")).into()),
            (Some(_), false) => {
                let message =
                    format!("{shown} holds a search: --resume goes on with it, output_dir=FOLDER begins another");
                return Err(Misuse(message).into());
            }
            (Some(known), true) if known != *what => {
                let message = format!(
                    "the search in {shown} was begun with {}: go on with the same, or choose another output_dir",
                    differences(&known, what).join(", ")
                );
                return Err(Misuse(message).into());
            }
            (Some(_), true) => {}
            (None, false) => {
                fs::create_dir_all(folder).with_context(|| format!("cannot make {shown}"))?;
                write(&key, &format!("{what:#}\n"))?;
            }
        }
        Ok(Self { path })
    }

    /// The runs made so far; a last line that a crash cut short is no run.
    fn read(&self) -> anyhow::Result<Vec<Trial>> {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        if whole.len() < text.len() {
            write(&self.path, whole)?;
        }
        let trial = |line| serde_json::from_str(line).with_context(|| format!("{} is damaged", self.path.display()));
        whole.lines().map(trial).collect()
    }

    fn append(&self, trial: &Trial) -> anyhow::Result<()> {
        let cannot = || format!("cannot write {}", self.path.display());
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path).with_context(cannot)?;
        file.write_all(format!("{}\n", serde_json::to_string(trial)?).as_bytes()).with_context(cannot)
    }
}

/// Keys whose values differ, with the values of `before`.
fn differences(before: &Value, after: &Value) -> Vec<String> {
    let sections = ["search", "run"];
    let differing = sections.into_iter().flat_map(|section| {
        let (before, after) = (before[section].as_object(), after[section].as_object());
        let entries = before.into_iter().flatten();
        entries.filter(move |(key, value)| after.and_then(|after| after.get(*key)) != Some(value))
    });
    differing.map(|(key, value)| format!("{key}: {value}")).collect()
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_baseline_trains_everything_and_keeps_the_head_and_the_task() {
        let said = json!({"peft_type": "SAID", "task_type": "SEQ_CLS", "modules_to_save": ["classifier"], "projection": "sparse"});
        let said = MethodConfig::from_run_file(&said).unwrap();
        let with = |dimension| {
            let method = method_of(&said, Candidate { dimension, learning_rate: 0.1 }).unwrap();
            serde_json::from_str::<Value>(&method.to_adapter_config()).unwrap()
        };
        let subspace = with(Some(123));
        assert_eq!((&subspace["intrinsic_dimension"], &subspace["projection"]), (&json!(123), &json!("sparse")));
        let full = with(None);
        assert_eq!((&full["peft_type"], &full["modules_to_save"]), (&json!("FULL"), &json!(["classifier"])));
        assert_eq!(full["task_type"], "SEQ_CLS");
    }

    #[test]
    fn a_search_goes_on_only_as_the_same_and_a_cut_line_is_no_run() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) =
            (json!({"search": {"last": 5}, "run": {"seed": 1}}), json!({"search": {"last": 6}, "run": {"seed": 1}}));
        let refused = |what, resume| TrialLog::open(folder.path(), what, resume).err().unwrap().to_string();
        assert!(refused(&one, true).contains("no search"));
        let log = TrialLog::open(folder.path(), &one, false).unwrap();
        let trial = Trial { candidate: Candidate { dimension: None, learning_rate: 0.1 }, metric: Some(0.5) };
        log.append(&trial).unwrap();
        assert!(refused(&one, false).contains("--resume"));
        assert!(refused(&two, true).ends_with("begun with last: 5: go on with the same, or choose another output_dir"));
        let mut file = OpenOptions::new().append(true).open(&log.path).unwrap();
        file.write_all(b"{\"dimension\":10,\"lea").unwrap();
        let log = TrialLog::open(folder.path(), &one, true).unwrap();
        assert_eq!(log.read().unwrap(), [trial]);
        log.append(&trial).unwrap();
        assert_eq!(log.read().unwrap(), [trial, trial]);
    }
}
