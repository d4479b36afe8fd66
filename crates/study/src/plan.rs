//! What a study comes to: its data sets, its rows, and the runs of each.

use std::path::PathBuf;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tunesmith_tensor::Seed;
use tunesmith_train::metrics::MetricValue;

use crate::StudyError;
use crate::assign::{assign, look_up};
use crate::file::{METHOD_KEYS, StudyFile, TASK_KEYS};
use crate::vary::{Combination, grid, random};

/// A study, worked out.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its data sets.
    pub tasks: Vec<PlannedTask>,
    /// The rows of its table.
    pub rows: Vec<PlannedRow>,
    /// Seeds of every row.
    pub seeds: Vec<u64>,
    /// Rates that the search may try beyond its list.
    pub search_extensions: usize,
    /// Runs of a row that are made in one pass, at most.
    pub runs_per_pass: usize,
    /// Outputs kept of every run.
    pub samples: usize,
}

/// A data set.
#[derive(Clone, Debug)]
pub struct PlannedTask {
    /// Its name; empty where there is only one.
    pub name: String,
    /// What its rows are compared by.
    pub metric: MetricValue,
    /// Files that the table's numbers are measured on, the one that counts first. Empty: the held-out set.
    pub tests: IndexMap<String, PathBuf>,
    /// Tokens of every run.
    train_tokens: Option<u64>,
    /// Keys of its runs.
    keys: Map<String, Value>,
    /// Keys of in-context learning.
    icl: Map<String, Value>,
}

/// A row of the table.
#[derive(Clone, Debug)]
pub struct PlannedRow {
    /// Its name.
    pub name: String,
    /// The line of a plot that it belongs to.
    pub group: String,
    /// What its runs do.
    pub kind: Kind,
    /// Rates to search.
    pub learning_rates: Vec<f64>,
    train_tokens: Option<u64>,
    ranks: Vec<usize>,
    keys: Map<String, Value>,
    icl: Map<String, Value>,
    varied: Combination,
}

/// What a run does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Trains a method, and evaluates it.
    #[default]
    Train,
    /// Evaluates the base.
    Base,
    /// Evaluates the base with demonstrations in its prompt.
    Icl,
}

/// One run: everything that its result depends on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunSpec {
    /// The name of its files.
    pub id: String,
    /// Its data set.
    pub task: String,
    /// Its row.
    pub row: String,
    /// The line of a plot that the row belongs to.
    pub group: String,
    /// What it does.
    pub kind: Kind,
    /// Its seed.
    pub seed: u64,
    /// Its learning rate, where that is searched.
    pub learning_rate: Option<f64>,
    /// What it is judged by.
    pub metric: MetricValue,
    /// Files that it is tested on.
    pub tests: IndexMap<String, PathBuf>,
    /// Tokens that it trains on, at most.
    pub train_tokens: Option<u64>,
    /// Outputs that are kept.
    pub samples: usize,
    /// Ranks that a trained DyLoRA adapter is tested at, beside its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranks: Vec<usize>,
    /// Keys of the run.
    pub config: Map<String, Value>,
    /// Keys of in-context learning.
    pub icl: Map<String, Value>,
}

/// Keys and values, as a file has them.
type Keys = Map<String, Value>;

impl Plan {
    /// Works a study out; `origin` names it in messages.
    ///
    /// # Errors
    /// [`StudyError::Invalid`] with every problem of rows and keys.
    pub fn new(origin: &str, file: &StudyFile) -> Result<Self, StudyError> {
        let mut problems = Vec::new();
        let tasks = tasks(file, &mut problems);
        let rows = rows(file, &mut problems);
        for (place, row) in rows.iter().enumerate() {
            let twin = rows[..place].iter().find(|other| slug(&other.name) == slug(&row.name));
            if let Some(twin) = twin {
                problems.push(format!("the rows '{}' and '{}' cannot be told apart by name", twin.name, row.name));
            }
        }
        let named = |name: &str| rows.iter().any(|row| row.name == name);
        if let Some(name) = file.reference.as_ref().filter(|name| !named(name)) {
            problems.push(format!("reference: there is no row '{name}'"));
        }
        for (name, seed) in file.similarities.iter().flat_map(|request| [&request.left, &request.right]) {
            if name != RANDOM && !named(name) {
                problems.push(format!("similarities: there is no row '{name}'"));
            } else if name != RANDOM && !file.seeds.contains(seed) {
                problems.push(format!("similarities: seeds has no {seed}"));
            }
        }
        let plan = Self {
            tasks,
            rows,
            seeds: file.seeds.clone(),
            search_extensions: file.search_extensions,
            runs_per_pass: file.runs_per_pass,
            samples: file.samples,
        };
        for task in &plan.tasks {
            for row in &plan.rows {
                problems.extend(plan.settings(task, row, 0, None).err());
            }
        }
        problems.dedup();
        if problems.is_empty() { Ok(plan) } else { Err(StudyError::Invalid { origin: origin.to_owned(), problems }) }
    }

    /// One of its runs.
    ///
    /// # Panics
    /// If the plan's keys do not fit together, which [`Plan::new`] refuses.
    pub fn run(&self, task: &PlannedTask, row: &PlannedRow, seed: u64, learning_rate: Option<f64>) -> RunSpec {
        let (config, icl) = self
            .settings(task, row, seed, learning_rate)
            .unwrap_or_else(|problem| unreachable!("the plan was checked: {problem}"));
        let mut id = [&task.name, &row.name].into_iter().filter(|name| !name.is_empty()).map(|name| slug(name));
        let mut name = id.next().unwrap_or_default();
        name.extend(id.map(|part| format!("--{part}")));
        if let Some(rate) = learning_rate {
            name += &format!("--lr{rate:e}");
        }
        name += &format!("--seed{seed}");
        RunSpec {
            id: name,
            task: task.name.clone(),
            row: row.name.clone(),
            group: row.group.clone(),
            kind: row.kind,
            seed,
            learning_rate,
            metric: task.metric,
            tests: task.tests.clone(),
            train_tokens: row.train_tokens.or(task.train_tokens).filter(|_| row.kind == Kind::Train),
            samples: self.samples,
            ranks: row.ranks.clone(),
            config,
            icl,
        }
    }

    /// The keys of a run, and those of in-context learning.
    fn settings(
        &self,
        task: &PlannedTask,
        row: &PlannedRow,
        seed: u64,
        learning_rate: Option<f64>,
    ) -> Result<(Keys, Keys), String> {
        let mut config = task.keys.clone();
        let mut icl = task.icl.clone();
        icl.extend(row.icl.clone());
        let at = |key: &str| format!("{}: '{key}' reaches into what is not a mapping", row.name);
        for (key, value) in &row.keys {
            assign(&mut config, key, value.clone()).map_err(|_| at(key))?;
        }
        for (key, value) in &row.varied {
            match key.strip_prefix("icl.") {
                Some(key) => assign(&mut icl, key, value.clone()).map_err(|_| at(key))?,
                None => assign(&mut config, key, value.clone()).map_err(|_| at(key))?,
            }
        }
        config.insert("seed".to_owned(), Value::from(seed));
        if let Some(rate) = learning_rate {
            config.insert("learning_rate".to_owned(), Value::from(rate));
        }
        if row.kind != Kind::Train {
            config.remove("peft");
        }
        if row.kind != Kind::Icl {
            icl.clear();
        }
        Ok((config, icl))
    }

    /// The data set of that name.
    pub fn task(&self, name: &str) -> Option<&PlannedTask> {
        self.tasks.iter().find(|task| task.name == name)
    }
}

/// The name of a row of similarities that no run has.
pub(crate) const RANDOM: &str = "random";

/// Keys of runs that are files of data.
const DATA_FILES: [&str; 2] = ["train_file", "validation_file"];

fn tasks(file: &StudyFile, problems: &mut Vec<String>) -> Vec<PlannedTask> {
    let alone = IndexMap::from([(String::new(), Map::new())]);
    let named = if file.tasks.is_empty() { &alone } else { &file.tasks };
    let task = |(name, own): (&String, &Map<String, Value>)| {
        let mut keys = file.run.clone();
        let mut icl = Map::new();
        for (key, value) in own.iter().filter(|(key, _)| !TASK_KEYS.contains(&key.as_str())) {
            if assign(&mut keys, key, value.clone()).is_err() {
                problems.push(format!("tasks.{name}: '{key}' reaches into what is not a mapping"));
            }
        }
        for section in [keys.remove("icl"), own.get("icl").cloned()].into_iter().flatten() {
            match section {
                Value::Object(section) => icl.extend(section),
                _ => problems.push(format!("tasks.{name}.icl is no mapping")),
            }
        }
        for key in DATA_FILES {
            if let Some(Value::String(path)) = keys.get_mut(key) {
                *path = file.data_path(path.as_ref()).to_string_lossy().into_owned();
            }
        }
        let own_test: Option<PathBuf> = own.get("test_file").and_then(|value| Some(value.as_str()?.into()));
        let own_tests: IndexMap<String, PathBuf> =
            own.get("tests").and_then(|value| serde_json::from_value(value.clone()).ok()).unwrap_or_default();
        let one = |path: &PathBuf| IndexMap::from([("test".to_owned(), path.clone())]);
        let tests = match (&own_test, &file.test_file) {
            (Some(path), _) => one(path),
            _ if !own_tests.is_empty() => own_tests,
            (_, Some(path)) => one(path),
            _ => file.tests.clone(),
        };
        PlannedTask {
            name: name.clone(),
            metric: own
                .get("metric")
                .and_then(|value| serde_json::from_value(value.clone()).ok())
                .unwrap_or(file.metric),
            tests: tests.into_iter().map(|(name, path)| (name, file.data_path(&path))).collect(),
            train_tokens: own.get("train_tokens").and_then(Value::as_u64).or(file.train_tokens),
            keys,
            icl,
        }
    };
    named.iter().map(task).collect()
}

fn rows(file: &StudyFile, problems: &mut Vec<String>) -> Vec<PlannedRow> {
    let combinations = match file.draws {
        Some(draws) => random(&file.vary, draws, Seed(file.seeds.first().copied().unwrap_or(0))),
        None => grid(&file.vary),
    };
    let alone = IndexMap::from([(String::new(), Map::new())]);
    let methods = if file.methods.is_empty() { &alone } else { &file.methods };
    let mut rows = Vec::new();
    for (method, own) in methods {
        let kind = match own {
            own if own.get("base").is_some_and(|base| *base == Value::Bool(true)) => Kind::Base,
            own if own.contains_key("icl") => Kind::Icl,
            _ if file.methods.is_empty() && file.run.contains_key("icl") && !file.run.contains_key("peft") => Kind::Icl,
            _ => Kind::Train,
        };
        let keys: Map<String, Value> = own
            .iter()
            .filter(|(key, _)| !METHOD_KEYS.contains(&key.as_str()))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let icl = match own.get("icl") {
            None => Map::new(),
            Some(Value::Object(icl)) => icl.clone(),
            Some(_) => {
                problems.push(format!("methods.{method}.icl is no mapping"));
                Map::new()
            }
        };
        let rates = own.get("learning_rates").and_then(|rates| serde_json::from_value::<Vec<f64>>(rates.clone()).ok());
        let group = own.get("group").and_then(Value::as_str);
        // What is varied does not touch rows that do not train, but for in-context learning's own keys.
        let touches = |key: &str| match kind {
            Kind::Train => !key.starts_with("icl."),
            Kind::Base => false,
            Kind::Icl => key.starts_with("icl."),
        };
        let mut own_combinations: Vec<Combination> = Vec::new();
        for combination in &combinations {
            let kept: Combination = combination.iter().filter(|(key, _)| touches(key)).cloned().collect();
            if !own_combinations.contains(&kept) {
                own_combinations.push(kept);
            }
        }
        for varied in own_combinations {
            let named = |keep: &dyn Fn(&str) -> bool| {
                let parts = varied.iter().filter(|(key, _)| keep(key)).map(|(key, value)| describe(key, value));
                let method = Some(method.clone()).filter(|method| !method.is_empty());
                method.into_iter().chain(parts).collect::<Vec<_>>().join(", ")
            };
            let axis = file.plot_over.first().or_else(|| file.vary.keys().next());
            let off_axis = named(&|key: &str| Some(key) != axis.map(String::as_str));
            let listed = rates.clone().unwrap_or_else(|| file.learning_rates.clone());
            let fixed = varied.iter().any(|(key, _)| key == "learning_rate") || keys.contains_key("learning_rate");
            rows.push(PlannedRow {
                name: named(&|_| true),
                group: group.map_or(off_axis, str::to_owned),
                kind,
                learning_rates: if kind == Kind::Train && (rates.is_some() || !fixed) { listed } else { Vec::new() },
                train_tokens: own.get("train_tokens").and_then(Value::as_u64),
                ranks: own
                    .get("ranks")
                    .and_then(|ranks| serde_json::from_value(ranks.clone()).ok())
                    .unwrap_or_default(),
                keys: keys.clone(),
                icl: icl.clone(),
                varied,
            });
        }
    }
    rows
}

/// A varied key and its value in a few words.
fn describe(key: &str, value: &Value) -> String {
    let key = key.rsplit('.').next().unwrap_or(key);
    format!("{key}={}", plain(value))
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join("+"),
        other => other.to_string(),
    }
}

/// A name as part of a file's name.
pub(crate) fn slug(name: &str) -> String {
    let mut slug = String::new();
    for letter in name.chars().flat_map(char::to_lowercase) {
        if letter.is_alphanumeric() || letter == '.' {
            slug.push(letter);
        } else if !slug.ends_with('-') {
            slug.push('-');
        }
    }
    slug.trim_matches(['-', '.']).to_owned()
}

impl RunSpec {
    /// A number of the run's keys or of in-context learning's, for the axis of a plot.
    pub fn number(&self, key: &str) -> Option<f64> {
        let value = match key.strip_prefix("icl.") {
            Some(key) => look_up(&self.icl, key),
            None => look_up(&self.config, key),
        };
        value?.as_f64()
    }

    /// What differs from another run of the same name, in words; none where nothing does.
    pub(crate) fn difference(&self, other: &Self) -> Option<String> {
        let as_map = |spec: &Self| match serde_json::to_value(spec) {
            Ok(Value::Object(values)) => values,
            other => unreachable!("a run is a mapping, not {other:?}"),
        };
        let (own, other) = (as_map(self), as_map(other));
        let mut differences = Vec::new();
        differing("", &own, &other, &mut differences);
        (!differences.is_empty()).then(|| differences.join(", "))
    }
}

/// Keys that name a run and do not change it.
const NAMES: [&str; 3] = ["id", "row", "group"];

fn differing(above: &str, own: &Map<String, Value>, other: &Map<String, Value>, found: &mut Vec<String>) {
    let missing = other.keys().filter(|key| !own.contains_key(*key));
    for key in own.keys().chain(missing).filter(|key| !(above.is_empty() && NAMES.contains(&key.as_str()))) {
        let path = if above.is_empty() { key.clone() } else { format!("{above}.{key}") };
        match (own.get(key), other.get(key)) {
            (Some(Value::Object(own)), Some(Value::Object(other))) => differing(&path, own, other, found),
            (own, other) if own == other => {}
            (own, other) => {
                let shown = |value: Option<&Value>| value.map_or_else(|| "nothing".to_owned(), plain);
                found.push(format!("{path}: {} now, {} then", shown(own), shown(other)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plan(value: Value) -> Result<Plan, StudyError> {
        let Value::Object(mut values) = value else { panic!() };
        values.insert("output_dir".to_owned(), json!("out"));
        Plan::new("study.yaml", &StudyFile::read("study.yaml", &values).unwrap())
    }

    #[test]
    fn rows_are_methods_times_combinations_and_runs_have_their_keys() {
        let plan = plan(json!({
            "data_dir": "/data", "run": {"model_name_or_path": "m", "train_file": "a.tsv", "learning_rate": 1e-4},
            "tasks": {"one": {"test_file": "one.tsv"}, "two": {"train_file": "/b.tsv", "metric": "accuracy"}},
            "methods": {
                "LoRA": {"peft": {"peft_type": "LORA"}, "learning_rates": [1e-3, 1e-2]},
                "base": {"base": true},
                "examples": {"icl": {"demonstrations": 2}},
            },
            "vary": {"peft.r": [1, 8], "icl.scoring": ["likelihood", "calibrated"]}, "learning_rates": [1e-5],
        }));
        let plan = plan.unwrap();
        let names: Vec<&str> = plan.rows.iter().map(|row| row.name.as_str()).collect();
        let expected =
            ["LoRA, r=1", "LoRA, r=8", "base", "examples, scoring=likelihood", "examples, scoring=calibrated"];
        assert_eq!(names, expected);
        assert_eq!((plan.rows[1].group.as_str(), plan.rows[1].learning_rates.len()), ("LoRA", 2));
        let run = plan.run(&plan.tasks[1], &plan.rows[1], 7, Some(1e-3));
        assert_eq!(run.id, "two--lora-r-8--lr1e-3--seed7");
        assert_eq!(run.config["peft"], json!({"peft_type": "LORA", "r": 8}));
        assert_eq!((&run.config["seed"], &run.config["learning_rate"]), (&json!(7), &json!(1e-3)));
        assert_eq!((run.metric.key, &run.config["train_file"]), ("accuracy", &json!("/b.tsv")));
        assert_eq!((run.number("peft.r"), run.number("icl.demonstrations")), (Some(8.0), None));
        let base = plan.run(&plan.tasks[0], &plan.rows[2], 1, None);
        assert_eq!(
            (base.kind, base.config.contains_key("peft"), base.id.as_str()),
            (Kind::Base, false, "one--base--seed1")
        );
        assert_eq!((&base.tests["test"], &base.config["train_file"]), (&"/data/one.tsv".into(), &json!("/data/a.tsv")));
        let icl = plan.run(&plan.tasks[0], &plan.rows[4], 1, None);
        assert_eq!(Value::Object(icl.icl), json!({"demonstrations": 2, "scoring": "calibrated"}));
    }

    #[test]
    fn what_cannot_be_planned_is_named() {
        let error = plan(json!({
            "run": {"learning_rate": 1e-4}, "methods": {"A b": {"learning_rate.x": 1}, "a-B": {}}, "reference": "c",
            "similarities": [{"left": ["A b", 1], "right": ["d", 1], "modules": []}, {"left": ["A b", 9], "right": ["random", 1], "modules": []}],
        }));
        let text = error.unwrap_err().to_string();
        for part in [
            "the rows 'A b' and 'a-B' cannot be told apart by name",
            "reference: there is no row 'c'",
            "similarities: there is no row 'd'",
            "similarities: seeds has no 9",
            "A b: 'learning_rate.x' reaches into what is not a mapping",
        ] {
            assert!(text.contains(part), "no {part:?} in:\n{text}");
        }
    }

    #[test]
    fn a_run_that_was_made_otherwise_is_told_by_what_differs() {
        let make = |rank: u64| {
            let plan = plan(json!({"run": {"peft": {"r": rank}}, "methods": {"x": {}}})).unwrap();
            plan.run(&plan.tasks[0], &plan.rows[0], 1, None)
        };
        assert_eq!(make(4).difference(&make(4)), None);
        assert_eq!(make(4).difference(&make(8)), Some("config.peft.r: 4 now, 8 then".to_owned()));
    }
}
