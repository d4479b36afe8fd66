//! What was written in a configuration, before it is known whether it makes sense: the values, where each stands, and
//! what is wrong with them as values of their keys.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use indexmap::IndexMap;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use serde_saphyr::Spanned;
use tunesmith_methods::MethodConfig;
use tunesmith_study::assign;
use tunesmith_train::nearest;

use super::PEFT;
use crate::failure::Misuse;

/// What was written, before it is known whether it makes sense.
#[derive(Debug)]
pub(crate) struct Written {
    /// The file, or what else to call the source in messages.
    pub(super) source: String,
    pub(super) values: Map<String, Value>,
    /// Line of each key in the file, dotted where nested. Keys given on the command line have none.
    pub(super) lines: HashMap<String, u64>,
}

impl Written {
    /// Reads a configuration file and puts `overrides` (`key=value`, dotted for nested keys, values in YAML) over it.
    pub(crate) fn read(file: &Path, overrides: &[String]) -> anyhow::Result<Self> {
        let text = fs::read_to_string(file)
            .map_err(|error| Misuse(format!("cannot read the configuration {}: {error}", file.display())))?;
        Self::parse(&file.display().to_string(), &text, overrides)
    }

    /// Overrides alone.
    pub(crate) fn command_line(overrides: &[String]) -> anyhow::Result<Self> {
        Self::parse("the command line", "{}", overrides)
    }

    /// Reads the text of a file; `source` names it in messages.
    pub(crate) fn parse(source: &str, text: &str, overrides: &[String]) -> anyhow::Result<Self> {
        let value: Value =
            serde_saphyr::from_str(text).map_err(|error| Misuse(format!("{source} is not valid YAML: {error}")))?;
        let values = match value {
            Value::Object(values) => values,
            Value::Null => Map::new(),
            _ => return Err(Misuse(format!("{source} must hold `key: value` lines")).into()),
        };
        let mut written = Self { source: source.to_owned(), values, lines: lines_of_keys(text) };
        for text in overrides {
            written.set(text)?;
        }
        Ok(written)
    }

    fn set(&mut self, text: &str) -> anyhow::Result<()> {
        let (key, value) = text
            .split_once('=')
            .filter(|(key, _)| !key.trim().is_empty())
            .ok_or_else(|| Misuse(format!("'{text}' is not KEY=VALUE, such as learning_rate=1e-4 or peft.r=16")))?;
        let (key, value) = (key.trim(), value.trim());
        // What is no YAML, such as a delimiter `||`, is text.
        let value = serde_saphyr::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
        self.lines.remove(key);
        assign(&mut self.values, key, value)
            .map_err(|first| Misuse(format!("'{text}' reaches into '{first}', which is not a mapping")).into())
    }

    /// Values that were not written as text; `source` names where they come from.
    pub(crate) fn of_values(source: &str, values: Map<String, Value>) -> Self {
        Self { source: source.to_owned(), values, lines: HashMap::new() }
    }

    /// What was written, for a configuration of another kind than a run's, and what to call it in messages.
    pub(crate) fn into_values(self) -> (String, Map<String, Value>) {
        (self.source, self.values)
    }

    /// The same with `defaults` for keys that were not written.
    pub(crate) fn over(mut self, defaults: Map<String, Value>) -> Self {
        for (key, value) in defaults {
            self.values.entry(key).or_insert(value);
        }
        self
    }

    /// The keys that `T` has, read over its defaults, each on its own so that every wrong value is found.
    pub(super) fn section<T: Default + Serialize + DeserializeOwned>(&self, problems: &mut Problems) -> T {
        let defaults = as_map(&T::default());
        let mut all = defaults.clone();
        for key in defaults.keys() {
            let Some(value) = self.values.get(key).filter(|value| !value.is_null()) else { continue };
            let mut alone = defaults.clone();
            alone.insert(key.clone(), value.clone());
            match serde_json::from_value::<T>(Value::Object(alone)) {
                Ok(_) => drop(all.insert(key.clone(), value.clone())),
                Err(reason) => self.add(problems, key, format!("{key}: {}", in_plain_words(&reason.to_string()))),
            }
        }
        serde_json::from_value(Value::Object(all)).unwrap_or_default()
    }

    pub(super) fn check_keys(&self, sections: &[Vec<String>], problems: &mut Problems) {
        let known: Vec<&str> = sections.iter().flatten().map(String::as_str).collect();
        let has_peft = known.contains(&PEFT);
        let peft_keys = if has_peft { MethodConfig::keys() } else { Vec::new() };
        for key in self.values.keys().filter(|key| !known.contains(&key.as_str())) {
            let hint = match nearest(key, known.iter().copied()) {
                _ if peft_keys.contains(key) => format!("it belongs under {PEFT}:, as {PEFT}.{key}"),
                Some(near) => format!("did you mean '{near}'?"),
                None => "see `tunesmith train --help` for an example".to_owned(),
            };
            self.add(problems, key, format!("unknown key '{key}'; {hint}"));
        }
    }

    pub(super) fn add(&self, problems: &mut Problems, key: &str, text: String) {
        problems.0.push((self.lines.get(key).copied(), text));
    }
}

/// What is wrong, with the line where that is known.
#[derive(Default)]
pub(super) struct Problems(pub(super) Vec<(Option<u64>, String)>);

impl Problems {
    pub(super) fn into_result(mut self, source: &str) -> anyhow::Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        self.0.sort_by_key(|(line, _)| line.unwrap_or(u64::MAX));
        let mut message = match self.0.len() {
            1 => format!("{source} cannot be used:"),
            count => format!("{source} cannot be used, for {count} reasons:"),
        };
        for (line, text) in &self.0 {
            let place = line.map_or_else(String::new, |line| format!("line {line}: "));
            let _ = write!(message, "\n  {place}{text}");
        }
        Err(Misuse(message).into())
    }
}

/// The line of every key at the top level, and under `peft:`.
fn lines_of_keys(text: &str) -> HashMap<String, u64> {
    #[derive(Deserialize)]
    struct Nested {
        peft: IndexMap<String, Spanned<IgnoredAny>>,
    }
    let mut lines = HashMap::new();
    if let Ok(keys) = serde_saphyr::from_str::<IndexMap<String, Spanned<IgnoredAny>>>(text) {
        lines.extend(keys.into_iter().map(|(key, value)| (key, value.referenced.line())));
    }
    if let Ok(nested) = serde_saphyr::from_str::<Nested>(text) {
        let keys = nested.peft.into_iter();
        lines.extend(keys.map(|(key, value)| (format!("{PEFT}.{key}"), value.referenced.line())));
    }
    lines
}

pub(super) fn keys<T: Default + Serialize>() -> Vec<String> {
    as_map(&T::default()).into_iter().map(|(key, _)| key).collect()
}

pub(super) fn as_map<T: Serialize>(value: &T) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(values)) => values,
        other => unreachable!("options are mappings with strings for keys, not {other:?}"),
    }
}

/// What serde says of a wrong value, for people who don't know Rust: what was expected, and what was found.
pub(super) fn in_plain_words(reason: &str) -> String {
    let unquoted = |text: &str| text.replace('`', "");
    let Some((found, expected)) = reason.split_once(", expected ") else { return reason.to_owned() };
    let expected = match expected {
        "f64" | "f32" => "a number".to_owned(),
        "u64" | "usize" | "u32" => "a whole number from 0".to_owned(),
        "i64" => "a whole number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "path string" => "a path".to_owned(),
        "a string" => "text".to_owned(),
        "a sequence" => "a list".to_owned(),
        other => unquoted(other),
    };
    const KINDS: [(&str, &str); 7] = [
        ("string ", "the text "),
        ("integer ", "the number "),
        ("floating point ", "the number "),
        ("boolean ", ""),
        ("map", "a mapping"),
        ("sequence", "a list"),
        ("null", "nothing"),
    ];
    let found =
        ["invalid type: ", "invalid value: ", "unknown variant "].iter().find_map(|start| found.strip_prefix(start));
    let Some(found) = found else { return reason.to_owned() };
    let plain = KINDS.iter().find_map(|(kind, plain)| Some(format!("{plain}{}", found.strip_prefix(kind)?)));
    format!("expected {expected}, found {}", unquoted(&plain.unwrap_or_else(|| found.to_owned())))
}
