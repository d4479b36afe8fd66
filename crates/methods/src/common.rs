//! What configurations of methods have in common: PEFT's keys that every method has, and the types of their values.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::ConfigProblem;

/// The release of PEFT whose files are written: `peft_version` in new configurations.
pub const PEFT_VERSION: &str = "0.21.2";

/// What a configuration is for. Training asks for more: nothing may be ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A new adapter is to be trained.
    Training,
    /// An adapter that exists is to be used as it is.
    Loading,
}

/// What every method's configuration has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CommonConfig {
    /// What the model is for.
    pub task_type: Option<TaskType>,
    /// The model that the adapter was made for: a hub name or a folder.
    pub base_model_name_or_path: Option<String>,
    /// Revision of that model.
    pub revision: Option<String>,
    /// Python classes of the base model, where `task_type` does not tell them. Kept, not used.
    pub auto_mapping: Option<Value>,
    /// How the base's rotary positions are interpolated for longer contexts than it was trained on, while the adapter is
    /// trained and wherever it is used. Not in PEFT, which warns of the key and leaves the base as it is.
    pub rope_scaling: Option<RopeScaling>,
    /// Version of the library that wrote the file.
    pub peft_version: String,
}

impl Default for CommonConfig {
    fn default() -> Self {
        Self {
            task_type: None,
            base_model_name_or_path: None,
            revision: None,
            auto_mapping: None,
            rope_scaling: None,
            peft_version: PEFT_VERSION.to_owned(),
        }
    }
}

/// Position interpolation (Chen et al. 2023, <https://arxiv.org/abs/2306.15595>) under the names that `config.json` has
/// for it: positions are divided by `factor`, so that `factor` times as many lie where the base has learned to look.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeScaling {
    /// The way of scaling.
    #[serde(alias = "type")]
    pub rope_type: RopeType,
    /// What positions are divided by; more than 1.
    pub factor: f64,
}

/// The way of scaling rotary positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RopeType {
    /// All are divided by one factor.
    Linear,
}

/// A key of [`CommonConfig`] that PEFT has not; files leave it out where it is not set.
pub(crate) const ROPE_SCALING: &str = "rope_scaling";

/// What a model is for, in PEFT's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TaskType {
    /// Sequence classification or regression.
    SeqCls,
    /// Encoder-decoder language modelling.
    #[serde(rename = "SEQ_2_SEQ_LM")]
    Seq2SeqLm,
    /// Decoder-only language modelling.
    CausalLm,
    /// A class for each token.
    TokenCls,
    /// Extractive question answering.
    QuestionAns,
    /// Hidden states, without a head.
    FeatureExtraction,
}

/// Which trained biases an adapter has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// None.
    #[default]
    None,
    /// Every bias of the model.
    All,
    /// Those of the targeted modules.
    LoraOnly,
}

impl Bias {
    /// The configuration's word for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::All => "all",
            Self::LoraOnly => "lora_only",
        }
    }
}

/// Modules by name, or by one regular expression over their full names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a list of module names, or one string")]
pub enum Modules {
    /// A module is meant if its name is an entry, or ends with a dot and an entry.
    Names(Vec<String>),
    /// A module is meant if the whole of its name matches. `all-linear` is short for all linear modules but the output
    /// embedding.
    Pattern(String),
}

impl Modules {
    /// Whether there is nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Names(names) => names.is_empty(),
            Self::Pattern(pattern) => pattern.is_empty(),
        }
    }
}

/// One value or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected one value or a list of them")]
pub enum OneOrMany<T> {
    /// One value.
    One(T),
    /// Several.
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    /// The values.
    pub(crate) fn as_slice(&self) -> &[T] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::Many(values) => values,
        }
    }
}

/// A key of PEFT's that this version reads, writes back and otherwise does not interpret.
pub(crate) struct Uninterpreted {
    pub(crate) key: &'static str,
    /// As JSON. Written where nothing else was read.
    pub(crate) default: &'static str,
    pub(crate) matters: Matters,
    /// Why another value cannot be ignored.
    pub(crate) reason: &'static str,
}

/// When a value other than the default makes a difference.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Matters {
    Always,
    ToTraining,
    Never,
}

impl Uninterpreted {
    pub(crate) fn default(&self) -> Value {
        serde_json::from_str(self.default).expect("the tables hold valid JSON")
    }

    fn problem(&self, value: &Value, purpose: Purpose) -> Option<ConfigProblem> {
        let matters = match self.matters {
            Matters::Always => true,
            Matters::ToTraining => purpose == Purpose::Training,
            Matters::Never => false,
        };
        let is_empty = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(values) => values.is_empty(),
            Value::Object(values) => values.is_empty(),
            _ => false,
        };
        let differs = !is_empty && *value != self.default();
        (matters && differs).then(|| ConfigProblem::Unsupported {
            key: self.key.to_owned(),
            value: value.to_string(),
            reason: self.reason,
        })
    }
}

/// Reads a method's fields from `values`, whose keys are all known, over their defaults.
pub(crate) fn read_fields<C: Default + Serialize + DeserializeOwned>(
    values: &Map<String, Value>,
    uninterpreted: &[Uninterpreted],
    purpose: Purpose,
    problems: &mut Vec<ConfigProblem>,
) -> Option<C> {
    let defaults = as_map(&C::default());
    let over_defaults = |values: &Map<String, Value>| {
        let mut all = defaults.clone();
        all.extend(values.clone());
        serde_json::from_value::<C>(Value::Object(all))
    };
    problems.extend(
        uninterpreted.iter().filter_map(|row| values.get(row.key).and_then(|value| row.problem(value, purpose))),
    );
    // One key at a time, so that each wrong value is found and named.
    for (key, value) in values {
        let alone = Map::from_iter([(key.clone(), value.clone())]);
        if let Err(reason) = over_defaults(&alone) {
            problems.push(ConfigProblem::Value { key: key.clone(), reason: reason.to_string() });
        }
    }
    over_defaults(values).ok()
}

/// The keys of a configuration.
pub(crate) fn keys_of<C: Serialize>(config: &C) -> Vec<String> {
    as_map(config).into_iter().map(|(key, _)| key).collect()
}

pub(crate) fn as_map<C: Serialize>(config: &C) -> Map<String, Value> {
    match serde_json::to_value(config) {
        Ok(Value::Object(values)) => values,
        other => unreachable!("a configuration is a mapping with strings for keys, not {other:?}"),
    }
}

pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

/// The value with the keys of all mappings in it sorted.
pub(crate) fn sorted(value: Value) -> Value {
    match value {
        Value::Array(values) => Value::Array(values.into_iter().map(sorted).collect()),
        Value::Object(values) => {
            let values: BTreeMap<String, Value> = values.into_iter().collect();
            Value::Object(values.into_iter().map(|(key, value)| (key, sorted(value))).collect())
        }
        value => value,
    }
}
