//! `task.json` beside an adapter: what it is for, and the names of its labels, which PEFT's files do not hold.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tunesmith_models::{HeadOptions, Task};
use tunesmith_train::{DataOptions, TaskOptions};

use crate::failure::Misuse;

const FILE: &str = "task.json";
/// The data's options that predictions need too.
const DATA_KEYS: [&str; 7] =
    ["text_column", "prompt_column", "trim_whitespace", "prompt_prefix", "prompt_suffix", "max_length", "truncate"];

/// What an adapter is for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TaskFile {
    /// The run's options, label names resolved.
    task: TaskOptions,
    /// Of the run's data options those that predictions need.
    data: Map<String, Value>,
}

impl TaskFile {
    /// For a run with these options and labels.
    pub(crate) fn new(task: &TaskOptions, labels: Option<&[String]>, data: &DataOptions) -> Self {
        let mut all = match json!(data) {
            Value::Object(all) => all,
            _ => Map::new(),
        };
        all.retain(|key, value| DATA_KEYS.contains(&key.as_str()) && !value.is_null());
        let label_names = labels.map(<[String]>::to_vec).or_else(|| task.label_names.clone());
        Self { task: TaskOptions { label_names, ..task.clone() }, data: all }
    }

    /// That of an adapter's folder, if it has one.
    pub(crate) fn read(folder: &Path) -> anyhow::Result<Option<Self>> {
        let path = folder.join(FILE);
        if !path.is_file() {
            return Ok(None);
        }
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let file = serde_json::from_slice(&text)
            .map_err(|error| Misuse(format!("{} cannot be used: {error}", path.display())))?;
        Ok(Some(file))
    }

    /// That of adapters which are asked together; each must be for the same task and labels.
    pub(crate) fn of_all(folders: &[PathBuf]) -> anyhow::Result<Option<Self>> {
        let mut files = folders.iter().map(|folder| anyhow::Ok((folder, Self::read(folder)?)));
        let Some((first, file)) = files.next().transpose()? else { return Ok(None) };
        let asked = |file: &Option<Self>| {
            let task = file.as_ref().map(|file| &file.task);
            task.map(|task| (task.task_type.clone(), task.problem_type.clone(), task.label_names.clone()))
        };
        for other in files {
            let (folder, other) = other?;
            if asked(&other) != asked(&file) {
                return Err(Misuse(format!(
                    "{} and {} cannot vote: they were trained for different tasks or labels (task.json in their folders)",
                    first.display(),
                    folder.display()
                ))
                .into());
            }
        }
        Ok(file)
    }

    /// Writes it into an adapter's folder.
    pub(crate) fn write(&self, folder: &Path) -> std::io::Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(std::io::Error::other)?;
        fs::write(folder.join(FILE), text + "\n")
    }

    /// The head of the model that the adapter is for.
    pub(crate) fn head(&self) -> anyhow::Result<HeadOptions> {
        let head = head(&self.task, self.task.label_names.clone())?;
        // The adapter brings its own.
        Ok(HeadOptions { ignore_mismatched_sizes: true, ..head })
    }

    /// Names of the labels.
    pub(crate) fn labels(self) -> Option<Vec<String>> {
        self.task.label_names
    }

    /// Its options as keys of a configuration.
    pub(crate) fn options(&self) -> Map<String, Value> {
        let mut all = match json!(self.task) {
            Value::Object(all) => all,
            _ => Map::new(),
        };
        all.extend(self.data.clone());
        all.retain(|_, value| !value.is_null());
        all
    }
}

/// The head that a task's options ask for, with these labels.
pub(crate) fn head(options: &TaskOptions, labels: Option<Vec<String>>) -> anyhow::Result<HeadOptions> {
    let task = options.task()?;
    // Unsaid, one label alone would be taken for a number.
    let problem_type = if task == Task::SeqCls { Some(options.problem()?) } else { None };
    Ok(HeadOptions {
        task: Some(task),
        labels: labels.filter(|_| task.has_labels()),
        problem_type,
        ignore_mismatched_sizes: options.ignore_mismatched_sizes,
        ..HeadOptions::default()
    })
}
