//! A study's configuration: what is run, over what, and how it is judged. One kind of file serves `compare` (which needs
//! `methods`), `sweep` (`vary`), `icl` and `study`.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tunesmith_train::metrics::MetricValue;
use tunesmith_train::nearest;

use crate::StudyError;
use crate::vary::{self, Values};

/// A study.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StudyFile {
    /// The heading of its report.
    pub title: String,
    /// What it asks, in a sentence or two.
    pub question: String,
    /// Where results and report go.
    pub output_dir: PathBuf,
    /// Where relative paths of data files begin. Default: the current folder.
    pub data_dir: PathBuf,
    /// Keys of all runs, as `tunesmith train` has them.
    pub run: Map<String, Value>,
    /// Data sets by name, each with keys of its runs, and [`TASK_KEYS`]. Default: one, of `run`'s keys alone.
    pub tasks: IndexMap<String, Map<String, Value>>,
    /// Rows of the table by name, each with keys of its runs (dotted where nested), and [`METHOD_KEYS`].
    pub methods: IndexMap<String, Map<String, Value>>,
    /// Keys of runs and what they run over: each row once for every combination.
    pub vary: IndexMap<String, Values>,
    /// Random combinations of `vary`, in place of all. Default none: all.
    pub draws: Option<usize>,
    /// Seeds of every row's runs. Default 1.
    pub seeds: Vec<u64>,
    /// Learning rates that are tried for every row, with the first seed; the others run with the one that is best on the
    /// held-out set. Default none: the run's own `learning_rate`.
    pub learning_rates: Vec<f64>,
    /// How many rates beyond the ends of `learning_rates` are tried while the best one is the last one. Default 0.
    pub search_extensions: usize,
    /// Runs of a row that are trained in one pass over the base, at most: rates of the search, then seeds. Seconds are then
    /// shares of the pass's, and memory is the pass's. Default 1.
    pub runs_per_pass: usize,
    /// What rows are compared by, as evaluations name it. Default `loss`.
    pub metric: MetricValue,
    /// Tokens that every run trains on: as many updates as stay within. Default none: what the runs' keys say.
    pub train_tokens: Option<u64>,
    /// A file that the table's numbers are measured on. Default: the held-out set.
    pub test_file: Option<PathBuf>,
    /// Several such files by name; the first one is what rows are judged by.
    pub tests: IndexMap<String, PathBuf>,
    /// Examples of which every run's outputs are kept. Default 4.
    pub samples: usize,
    /// The row that the others are compared with. Default: the first one that is trained.
    pub reference: Option<String>,
    /// Keys of runs whose numbers are axes of plots. Default: those of `vary`.
    pub plot_over: Vec<String>,
    /// Published tables that the report quotes.
    pub published: Vec<String>,
    /// Subspaces that are compared once the runs are done.
    pub similarities: Vec<SimilarityRequest>,
}

/// Which subspaces of LoRA's `A` are compared: `φ` (Hu et al. 2021, §7.2).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimilarityRequest {
    /// The row and the seed of the one side. A row named `random` is drawn from a normal distribution.
    pub left: (String, u64),
    /// Those of the other.
    pub right: (String, u64),
    /// Modules, by the ends of their paths.
    pub modules: Vec<String>,
    /// Directions shown of either side, at most. Default 8.
    #[serde(default = "eight")]
    pub directions: usize,
}

fn eight() -> usize {
    8
}

impl Default for StudyFile {
    fn default() -> Self {
        Self {
            title: String::new(),
            question: String::new(),
            output_dir: PathBuf::new(),
            data_dir: PathBuf::new(),
            run: Map::new(),
            tasks: IndexMap::new(),
            methods: IndexMap::new(),
            vary: IndexMap::new(),
            draws: None,
            seeds: vec![1],
            learning_rates: Vec::new(),
            search_extensions: 0,
            runs_per_pass: 1,
            metric: MetricValue::default(),
            train_tokens: None,
            test_file: None,
            tests: IndexMap::new(),
            samples: 4,
            reference: None,
            plot_over: Vec::new(),
            published: Vec::new(),
            similarities: Vec::new(),
        }
    }
}

/// Keys of a data set that are not keys of a run.
pub const TASK_KEYS: [&str; 5] = ["metric", "test_file", "tests", "train_tokens", "icl"];
/// Keys of a row that are not keys of a run: the line of a plot that it belongs to, whether it is the base without
/// training, in-context learning in place of training, learning rates and budget of its own, and ranks that a trained
/// DyLoRA adapter is tested at beside its own.
pub const METHOD_KEYS: [&str; 6] = ["group", "base", "icl", "learning_rates", "train_tokens", "ranks"];

impl StudyFile {
    /// Reads what was written; `origin` names it in messages.
    ///
    /// # Errors
    /// [`StudyError::Invalid`] with every problem of the study's own keys.
    pub fn read(origin: &str, values: &Map<String, Value>) -> Result<Self, StudyError> {
        let mut problems = Vec::new();
        let known = keys::<Self>();
        for key in values.keys().filter(|key| !known.contains(key)) {
            problems.push(match nearest(key, known.iter().map(String::as_str)) {
                Some(near) => format!("unknown key '{key}'; did you mean '{near}'?"),
                None => format!("unknown key '{key}'; keys of runs stand under run:"),
            });
        }
        let file: Self = section(values, &mut problems);
        file.check(&mut problems);
        if problems.is_empty() { Ok(file) } else { Err(StudyError::Invalid { origin: origin.to_owned(), problems }) }
    }

    fn check(&self, problems: &mut Vec<String>) {
        let mut add = |holds: bool, problem: String| {
            if !holds {
                problems.push(problem);
            }
        };
        add(!self.output_dir.as_os_str().is_empty(), "output_dir is missing: where the results go".to_owned());
        add(!self.seeds.is_empty(), "seeds is empty: give at least one".to_owned());
        let repeated = self.seeds.iter().enumerate().find(|(place, seed)| self.seeds[..*place].contains(seed));
        add(repeated.is_none(), format!("seeds names {} twice", repeated.map_or(0, |(_, seed)| *seed)));
        add(
            !(self.methods.is_empty() && self.vary.is_empty()),
            "there is nothing to run: name methods, or keys to vary".to_owned(),
        );
        let rate = |rate: &f64| rate.is_finite() && *rate > 0.0;
        add(self.learning_rates.iter().all(rate), "learning_rates must be numbers above 0".to_owned());
        add(self.runs_per_pass > 0, "runs_per_pass is 0, must be at least 1".to_owned());
        add(self.train_tokens != Some(0), "train_tokens is 0, must be at least 1".to_owned());
        add(
            self.test_file.is_none() || self.tests.is_empty(),
            "test_file and tests are both given: keep one".to_owned(),
        );
        for (name, task) in &self.tasks {
            add(is_name(name), format!("tasks: '{name}' is no name: use letters, digits and signs other than '/'"));
            let tested = task.contains_key("test_file") && task.contains_key("tests");
            add(!tested, format!("tasks.{name}: test_file and tests are both given: keep one"));
            if let Some(metric) = task.get("metric") {
                let problem = serde_json::from_value::<MetricValue>(metric.clone()).err();
                add(problem.is_none(), format!("tasks.{name}.metric: {}", shown(problem)));
            }
        }
        for (name, method) in &self.methods {
            add(is_name(name), format!("methods: '{name}' is no name: use letters, digits and signs other than '/'"));
            let rates = method.get("learning_rates").map(|rates| serde_json::from_value::<Vec<f64>>(rates.clone()));
            let fits = rates.is_none_or(|rates| rates.is_ok_and(|rates| rates.iter().all(rate)));
            add(fits, format!("methods.{name}.learning_rates must be a list of numbers above 0"));
            let ranks = method.get("ranks").map(|ranks| serde_json::from_value::<Vec<usize>>(ranks.clone()));
            let fits = ranks.is_none_or(|ranks| ranks.is_ok_and(|ranks| !ranks.contains(&0)));
            add(fits, format!("methods.{name}.ranks must be a list of whole numbers from 1"));
            let is_base = method.get("base").is_some_and(|base| *base == Value::Bool(true));
            let kinds = usize::from(is_base) + ["icl", "peft"].iter().filter(|key| method.contains_key(**key)).count();
            add(kinds < 2, format!("methods.{name}: base, icl and peft exclude each other"));
        }
        problems.extend(vary::problems(&self.vary, self.draws));
        for name in &self.published {
            if crate::published::find(name).is_none() {
                let known = crate::published::names();
                let near = nearest(name, known.iter().copied()).map(|near| format!("; did you mean '{near}'?"));
                problems.push(format!("published: there is no table '{name}'{}", near.unwrap_or_default()));
            }
        }
    }

    /// A file below the data's folder, unless its path is absolute.
    pub(crate) fn data_path(&self, path: &Path) -> PathBuf {
        self.data_dir.join(path)
    }

    /// The same study cut down until it only shows that everything works: few examples, few updates, two seeds.
    #[must_use]
    pub fn smoke(mut self) -> Self {
        self.output_dir = PathBuf::from(format!("{}-smoke", self.output_dir.display()));
        self.seeds.truncate(2);
        self.learning_rates.truncate(2);
        self.search_extensions = 0;
        self.train_tokens = None;
        let short = [("max_train_samples", 48), ("max_eval_samples", 12), ("max_steps", 4), ("save_steps", 1000)];
        let spared = ["num_train_epochs", "eval_steps", "train_tokens", "warmup_steps"];
        let sections = self.tasks.values_mut().chain(self.methods.values_mut());
        for section in sections.chain(std::iter::once(&mut self.run)) {
            section.retain(|key, _| !spared.contains(&key.as_str()) && short.iter().all(|(short, _)| short != key));
            if let Some(Value::Array(rates)) = section.get_mut("learning_rates") {
                rates.truncate(2);
            }
        }
        self.run.extend(short.map(|(key, value)| (key.to_owned(), Value::from(value))));
        self.run.insert("generation_max_new_tokens".to_owned(), Value::from(8));
        self.vary.retain(|key, _| short.iter().all(|(short, _)| short != key) && !spared.contains(&key.as_str()));
        self
    }
}

/// Whether a name can be shown, and be part of a file's name.
fn is_name(name: &str) -> bool {
    !name.trim().is_empty() && !name.contains(['/', '\n'])
}

fn shown(problem: Option<serde_json::Error>) -> String {
    problem.map(|problem| problem.to_string()).unwrap_or_default()
}

fn keys<T: Default + Serialize>() -> Vec<String> {
    as_map(&T::default()).into_iter().map(|(key, _)| key).collect()
}

fn as_map<T: Serialize>(value: &T) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(values)) => values,
        other => unreachable!("a study's keys are a mapping, not {other:?}"),
    }
}

/// The keys of `T`, each read on its own so that every wrong value is found.
fn section<T: Default + Serialize + DeserializeOwned>(values: &Map<String, Value>, problems: &mut Vec<String>) -> T {
    let defaults = as_map(&T::default());
    let mut all = defaults.clone();
    for key in defaults.keys() {
        let Some(value) = values.get(key).filter(|value| !value.is_null()) else { continue };
        let mut alone = defaults.clone();
        alone.insert(key.clone(), value.clone());
        match serde_json::from_value::<T>(Value::Object(alone)) {
            Ok(_) => drop(all.insert(key.clone(), value.clone())),
            Err(reason) => problems.push(format!("{key}: {reason}")),
        }
    }
    serde_json::from_value(Value::Object(all)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<StudyFile, StudyError> {
        let Value::Object(values) = value else { panic!() };
        StudyFile::read("study.yaml", &values)
    }

    #[test]
    fn all_problems_are_listed_at_once() {
        let error = read(json!({
            "titel": "x", "seeds": [1, 1], "learning_rates": [0.0], "metric": "acuracy", "draws": 0, "samples": "many",
            "methods": {"a": {"peft": {}, "base": true}, "b": {"learning_rates": ["fast"]}},
            "tasks": {"t": {"metric": "nothing"}}, "published": ["lora-4"],
        }));
        let text = error.unwrap_err().to_string();
        for part in [
            "unknown key 'titel'; did you mean 'title'?",
            "output_dir is missing",
            "seeds names 1 twice",
            "learning_rates must be numbers above 0",
            "metric: there is no metric 'acuracy'; did you mean 'accuracy'?",
            "samples: invalid type",
            "methods.a: base, icl and peft exclude each other",
            "methods.b.learning_rates must be a list of numbers above 0",
            "tasks.t.metric: there is no metric 'nothing'",
            "draws is 0, must be at least 1",
            "published: there is no table 'lora-4'",
        ] {
            assert!(text.contains(part), "no {part:?} in:\n{text}");
        }
    }

    #[test]
    fn what_was_read_is_written_and_read_again() {
        let file = read(json!({
            "output_dir": "out", "methods": {"LoRA": {"peft": {"peft_type": "LORA"}}}, "vary": {"peft.r": [1, 2]},
            "metric": "accuracy", "similarities": [{"left": ["LoRA", 1], "right": ["random", 2], "modules": ["q_proj"]}],
        }));
        let file = file.unwrap();
        assert_eq!(file.similarities[0].directions, 8);
        assert_eq!(read(serde_json::to_value(&file).unwrap()).unwrap(), file);
    }

    #[test]
    fn smoke_is_short_whatever_the_study_says() {
        let file = read(json!({
            "output_dir": "out", "seeds": [1, 2, 3], "learning_rates": [1, 2, 3], "train_tokens": 1_000_000,
            "run": {"num_train_epochs": 3}, "methods": {"LoRA": {"learning_rates": [1, 2, 3]}},
            "tasks": {"t": {"max_train_samples": 5000, "train_tokens": 7}},
        }));
        let smoke = file.unwrap().smoke();
        assert_eq!((smoke.output_dir, smoke.seeds.len(), smoke.train_tokens), ("out-smoke".into(), 2, None));
        assert_eq!(smoke.run["max_steps"], 4);
        assert!(!smoke.run.contains_key("num_train_epochs") && smoke.tasks["t"].is_empty());
    }
}
