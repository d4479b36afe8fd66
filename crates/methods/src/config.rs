//! Configuration of methods, with PEFT's keys: the one list of methods, reading and writing.
//!
//! A configuration comes from two places. In a run's own file a key that nobody knows is an error, with the nearest key
//! that exists. In an `adapter_config.json` unknown keys are tolerated, as PEFT tolerates them, and reported. In both,
//! what PEFT offers and this version does not is refused unless it makes no difference.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::ConfigProblem;
use crate::lora_config::LoraConfig;
use crate::nearest::nearest;
use crate::{MethodError, lora_config};

/// The release of PEFT whose files are written: `peft_version` in new configurations.
pub const PEFT_VERSION: &str = "0.21.2";

/// A method and its configuration.
#[derive(Clone, Debug, PartialEq)]
pub enum MethodConfig {
    /// Low-rank adaptation and what belongs to its family.
    Lora(LoraConfig),
}

/// The list of methods. A new one is a row here, a variant of [`MethodConfig`], and a file.
const METHODS: &[Method] = &[Method {
    peft_type: "LORA",
    read: |values, purpose, problems| {
        let config = read_fields(values, &lora_config::UNINTERPRETED, purpose, problems)?;
        problems.extend(LoraConfig::problems(&config, purpose));
        Some(MethodConfig::Lora(config))
    },
    keys: || keys_of(&LoraConfig::default()),
}];

struct Method {
    peft_type: &'static str,
    read: Read,
    keys: fn() -> Vec<String>,
}

/// Reads known keys into a configuration, and adds what is wrong with them to the problems.
type Read = fn(&Map<String, Value>, Purpose, &mut Vec<ConfigProblem>) -> Option<MethodConfig>;

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
            peft_version: PEFT_VERSION.to_owned(),
        }
    }
}

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

impl MethodConfig {
    /// Reads the `peft:` mapping of a run's configuration.
    ///
    /// # Errors
    /// [`MethodError::Config`] with everything that is wrong: unknown keys with the nearest known one, values of the wrong
    /// type, contradictions, and what this version does not do.
    pub fn from_run_file(value: &Value) -> Result<Self, MethodError> {
        let (config, unknown, mut problems) = Self::read(value, Purpose::Training);
        problems.extend(unknown);
        config.filter(|_| problems.is_empty()).ok_or_else(|| MethodError::Config { place: "peft".into(), problems })
    }

    /// Reads PEFT's `adapter_config.json`; `place` names the file in errors. Returns the configuration and warnings.
    ///
    /// # Errors
    /// [`MethodError::Config`] with everything that is wrong. Unknown keys are warnings only.
    pub fn from_adapter_config(value: &Value, place: &str) -> Result<(Self, Vec<String>), MethodError> {
        let (config, unknown, problems) = Self::read(value, Purpose::Loading);
        let keys: Vec<String> = unknown.into_iter().filter_map(|problem| problem.into_unknown_key()).collect();
        let warning = format!(
            "{place} has keys that this version does not know, which are ignored: {}. It was probably written by a \
             newer PEFT",
            keys.join(", ")
        );
        let warnings = if keys.is_empty() { Vec::new() } else { vec![warning] };
        match config.filter(|_| problems.is_empty()) {
            Some(config) => Ok((config, warnings)),
            None => Err(MethodError::Config { place: place.to_owned(), problems }),
        }
    }

    /// The text of `adapter_config.json`, as PEFT writes it: all keys, sorted, indented by 2, `inference_mode` true.
    pub fn to_adapter_config(&self) -> String {
        let mut values = match self {
            Self::Lora(config) => as_map(config),
        };
        values.insert("peft_type".into(), self.peft_type().into());
        values.insert("inference_mode".into(), true.into());
        format!("{:#}", sorted(Value::Object(values)))
    }

    /// Finds everything that is wrong with the fields, apart from any model.
    pub(crate) fn check(&self, purpose: Purpose) -> Result<(), MethodError> {
        let problems = match self {
            Self::Lora(config) => config.problems(purpose),
        };
        let place = "the configuration".to_owned();
        if problems.is_empty() { Ok(()) } else { Err(MethodError::Config { place, problems }) }
    }

    /// PEFT's name of the method.
    pub fn peft_type(&self) -> &'static str {
        match self {
            Self::Lora(_) => "LORA",
        }
    }

    /// What every method's configuration has.
    pub fn common(&self) -> &CommonConfig {
        match self {
            Self::Lora(config) => &config.common,
        }
    }

    /// What every method's configuration has.
    pub fn common_mut(&mut self) -> &mut CommonConfig {
        match self {
            Self::Lora(config) => &mut config.common,
        }
    }

    /// The configuration if it can be read, unknown keys, and other problems.
    fn read(value: &Value, purpose: Purpose) -> (Option<Self>, Vec<ConfigProblem>, Vec<ConfigProblem>) {
        let Value::Object(values) = value else {
            return (None, Vec::new(), vec![ConfigProblem::NotAMapping { found: kind_of(value) }]);
        };
        let mut values: Map<String, Value> = values.clone();
        values.retain(|_, value| !value.is_null());
        let methods = METHODS.iter().map(|method| method.peft_type).collect();
        let method = match values.remove("peft_type") {
            None => Err(ConfigProblem::NoMethod { methods }),
            Some(name) => {
                let name = name.as_str().map_or_else(|| name.to_string(), str::to_owned);
                let method = METHODS.iter().find(|method| method.peft_type.eq_ignore_ascii_case(&name));
                method.ok_or(ConfigProblem::UnknownMethod { peft_type: name, methods })
            }
        };
        let method = match method {
            Ok(method) => method,
            Err(problem) => return (None, Vec::new(), vec![problem]),
        };
        values.remove("inference_mode");
        let known = (method.keys)();
        let unknown: Vec<ConfigProblem> = value
            .as_object()
            .into_iter()
            .flat_map(Map::keys)
            .filter(|key| !known.contains(*key) && !["peft_type", "inference_mode"].contains(&key.as_str()))
            .map(|key| {
                let nearest = nearest(key, known.iter().map(String::as_str), 1).first().map(|near| (*near).to_owned());
                ConfigProblem::UnknownKey { key: key.clone(), nearest }
            })
            .collect();
        values.retain(|key, _| known.contains(key));
        let mut problems = Vec::new();
        let config = (method.read)(&values, purpose, &mut problems);
        (config, unknown, problems)
    }
}

impl ConfigProblem {
    fn into_unknown_key(self) -> Option<String> {
        if let Self::UnknownKey { key, .. } = self { Some(key) } else { None }
    }
}

/// Reads a method's fields from `values`, whose keys are all known, over their defaults.
fn read_fields<C: Default + Serialize + DeserializeOwned>(
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
fn keys_of<C: Serialize>(config: &C) -> Vec<String> {
    as_map(config).into_iter().map(|(key, _)| key).collect()
}

fn as_map<C: Serialize>(config: &C) -> Map<String, Value> {
    match serde_json::to_value(config) {
        Ok(Value::Object(values)) => values,
        other => unreachable!("a configuration is a mapping with strings for keys, not {other:?}"),
    }
}

fn kind_of(value: &Value) -> &'static str {
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
fn sorted(value: Value) -> Value {
    match value {
        Value::Array(values) => Value::Array(values.into_iter().map(sorted).collect()),
        Value::Object(values) => {
            let values: BTreeMap<String, Value> = values.into_iter().collect();
            Value::Object(values.into_iter().map(|(key, value)| (key, sorted(value))).collect())
        }
        value => value,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn problems(value: Value) -> String {
        MethodConfig::from_run_file(&value).unwrap_err().to_string()
    }

    #[test]
    fn the_smallest_configuration_names_the_method() {
        let config = MethodConfig::from_run_file(&json!({"peft_type": "LORA"})).unwrap();
        assert_eq!(config, MethodConfig::Lora(LoraConfig::default()));
        assert_eq!(MethodConfig::from_run_file(&json!({"peft_type": "lora"})).unwrap(), config);
    }

    #[test]
    fn a_missing_or_unknown_method_lists_the_methods() {
        assert!(problems(json!({"r": 8})).contains("peft_type is missing; it names the method: LORA"));
        assert!(
            problems(json!({"peft_type": "LOHA"})).contains("'LOHA', which this version does not have; it has LORA")
        );
        assert!(problems(json!(["LORA"])).contains("not a list"));
    }

    #[test]
    fn all_problems_are_named_at_once() {
        let text = problems(json!({
            "peft_type": "LORA", "lora_alhpa": 16, "r": "eight", "bias": "some", "use_dora": true, "task_type": "LM",
            "lora_dropout": 1.5,
        }));
        for part in [
            "unknown key 'lora_alhpa'; did you mean 'lora_alpha'?",
            "r: invalid type: string \"eight\"",
            "bias: unknown variant `some`, expected one of `none`, `all`, `lora_only`",
            "use_dora: true is not supported",
            "task_type: unknown variant `LM`",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn an_adapter_file_may_have_keys_that_nobody_knows() {
        let file = json!({"peft_type": "LORA", "r": 4, "from_the_future": 1, "rank_pattern": null});
        let (config, warnings) = MethodConfig::from_adapter_config(&file, "x").unwrap();
        let MethodConfig::Lora(config) = config;
        assert_eq!(config.r, 4);
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("from_the_future"), "{warnings:?}");
    }

    #[test]
    fn nested_mappings_are_written_sorted() {
        let config = json!({"peft_type": "LORA", "rank_pattern": {"v_proj": 1, "k_proj": 2}});
        let text = MethodConfig::from_run_file(&config).unwrap().to_adapter_config();
        assert!(text.contains("\"rank_pattern\": {\n    \"k_proj\": 2,\n    \"v_proj\": 1\n  }"), "{text}");
        assert!(text.contains("\"inference_mode\": true"));
    }
}
