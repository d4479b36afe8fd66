//! Configuration of methods, with PEFT's keys: reading and writing.
//!
//! A configuration comes from two places. In a run's own file a key that nobody knows is an error, with the nearest key
//! that exists. In an `adapter_config.json` unknown keys are tolerated, as PEFT tolerates them, and reported. In both,
//! what PEFT offers and this version does not is refused unless it makes no difference.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::MethodError;
use crate::common::{CommonConfig, Purpose, RopeScaling, kind_of, sorted};
use crate::error::ConfigProblem;
use crate::method::{AnyMethod, METHODS, Method};
use crate::nearest::nearest;

/// A method and its configuration, or several methods that act together, each at sites of its own.
#[derive(Clone)]
pub struct MethodConfig {
    /// At least one.
    methods: Vec<Arc<dyn AnyMethod>>,
}

impl MethodConfig {
    pub(crate) fn new(method: impl Method) -> Self {
        Self { methods: vec![Arc::new(method)] }
    }

    /// Reads what stands under `peft:` in a run's configuration: a mapping, or a list of mappings.
    ///
    /// # Errors
    /// [`MethodError::Config`] with everything that is wrong: unknown keys with the nearest known one, values of the wrong
    /// type, contradictions, and what this version does not do.
    pub fn from_run_file(value: &Value) -> Result<Self, MethodError> {
        let fail = |problems| MethodError::Config { place: "peft".into(), problems };
        let Value::Array(values) = value else {
            let (method, unknown, mut problems) = read(value, Purpose::Training);
            problems.extend(unknown);
            let method = method.filter(|_| problems.is_empty()).ok_or_else(|| fail(problems))?;
            return Ok(Self { methods: vec![method] });
        };
        let (mut methods, mut all) = (Vec::new(), Vec::new());
        for (place, value) in values.iter().enumerate() {
            let (method, unknown, problems) = read(value, Purpose::Training);
            let within = |problem| ConfigProblem::Within { place: place + 1, problem: Box::new(problem) };
            all.extend(problems.into_iter().chain(unknown).map(within));
            methods.extend(method);
        }
        if values.is_empty() {
            all.push(ConfigProblem::NotAMapping { found: "an empty list" });
        }
        if all.is_empty() { Ok(Self { methods }) } else { Err(fail(all)) }
    }

    /// Reads PEFT's `adapter_config.json`; `place` names the file in errors. Returns the configuration and warnings.
    ///
    /// # Errors
    /// [`MethodError::Config`] with everything that is wrong. Unknown keys are warnings only.
    pub fn from_adapter_config(value: &Value, place: &str) -> Result<(Self, Vec<String>), MethodError> {
        let (method, unknown, problems) = read(value, Purpose::Loading);
        let keys: Vec<String> = unknown.into_iter().filter_map(|problem| problem.into_unknown_key()).collect();
        let warning = format!(
            "{place} has keys that this version does not know, which are ignored: {}. It was probably written by a \
             newer PEFT",
            keys.join(", ")
        );
        let warnings = if keys.is_empty() { Vec::new() } else { vec![warning] };
        match method.filter(|_| problems.is_empty()) {
            Some(method) => Ok((Self { methods: vec![method] }, warnings)),
            None => Err(MethodError::Config { place: place.to_owned(), problems }),
        }
    }

    /// The keys of all methods.
    pub fn keys() -> Vec<String> {
        let keys: BTreeSet<String> = METHODS.iter().flat_map(|method| (method.keys)()).collect();
        keys.into_iter().collect()
    }

    /// The methods, one by one.
    pub fn each(&self) -> impl ExactSizeIterator<Item = Self> + '_ {
        self.methods.iter().map(|method| Self { methods: vec![Arc::clone(method)] })
    }

    /// Several methods as one.
    pub(crate) fn join(all: impl IntoIterator<Item = Self>) -> Self {
        Self { methods: all.into_iter().flat_map(|config| config.methods).collect() }
    }

    /// The configuration as the method `M`, if that is the only one.
    pub fn get<M: 'static>(&self) -> Option<&M> {
        match self.methods.as_slice() {
            [method] => method.as_any().downcast_ref(),
            _ => None,
        }
    }

    /// The text of `adapter_config.json`, as PEFT writes it: all keys, sorted, indented by 2, `inference_mode` true.
    /// Several methods are a list.
    pub fn to_adapter_config(&self) -> String {
        format!("{:#}", self.to_value(&Map::new()))
    }

    /// The same as JSON, with `changes` over it.
    pub(crate) fn to_value(&self, changes: &Map<String, Value>) -> Value {
        let mut all: Vec<Value> = self
            .methods
            .iter()
            .map(|method| {
                let mut values = method.to_map();
                values.insert("peft_type".into(), method.peft_type().into());
                values.insert("inference_mode".into(), true.into());
                values.extend(changes.clone());
                sorted(Value::Object(values))
            })
            .collect();
        if all.len() == 1 { all.remove(0) } else { Value::Array(all) }
    }

    /// PEFT's name of the method; of several, with `+` between them.
    pub fn peft_type(&self) -> String {
        let names: Vec<&str> = self.methods.iter().map(|method| method.peft_type()).collect();
        names.join("+")
    }

    /// What every method's configuration has; of several methods that of the first.
    pub fn common(&self) -> &CommonConfig {
        self.methods[0].common()
    }

    /// How the base's positions are interpolated: what the first method says that says something.
    pub fn rope_scaling(&self) -> Option<RopeScaling> {
        self.methods.iter().find_map(|method| method.common().rope_scaling)
    }

    /// The same with what every method's configuration has changed by `change`, in all methods.
    #[must_use]
    pub fn with_common(&self, change: impl Fn(&mut CommonConfig)) -> Self {
        Self { methods: self.methods.iter().map(|method| method.with_common(&change)).collect() }
    }

    /// The same with `modules` trained in full beside the method, unless it names such modules itself. Of several methods
    /// the first that can takes them; none does if one names its own.
    #[must_use]
    pub fn with_modules_to_save(&self, modules: &[String]) -> Self {
        const KEY: &str = "modules_to_save";
        if self.methods.iter().any(|method| method.to_map().get(KEY).is_some_and(|saved| !saved.is_null())) {
            return self.clone();
        }
        let mut methods = self.methods.clone();
        for method in &mut methods {
            let mut values = method.to_map();
            if values.insert(KEY.to_owned(), modules.to_vec().into()).is_none() {
                continue;
            }
            values.insert("peft_type".to_owned(), method.peft_type().into());
            // What was read once is read again.
            if let (Some(changed), ..) = read(&Value::Object(values), Purpose::Training) {
                *method = changed;
                break;
            }
        }
        Self { methods }
    }

    /// The method, where there is one.
    pub(crate) fn method(&self) -> &dyn AnyMethod {
        self.methods[0].as_ref()
    }
}

impl PartialEq for MethodConfig {
    fn eq(&self, other: &Self) -> bool {
        self.to_value(&Map::new()) == other.to_value(&Map::new())
    }
}

impl fmt::Debug for MethodConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.methods).finish()
    }
}

/// The method if it can be read, unknown keys, and other problems.
fn read(value: &Value, purpose: Purpose) -> (Option<Arc<dyn AnyMethod>>, Vec<ConfigProblem>, Vec<ConfigProblem>) {
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

impl ConfigProblem {
    fn into_unknown_key(self) -> Option<String> {
        if let Self::UnknownKey { key, .. } = self { Some(key) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::LoraConfig;

    fn problems(value: Value) -> String {
        MethodConfig::from_run_file(&value).unwrap_err().to_string()
    }

    #[test]
    fn the_smallest_configuration_names_the_method() {
        let config = MethodConfig::from_run_file(&json!({"peft_type": "LORA"})).unwrap();
        assert_eq!(config, MethodConfig::new(LoraConfig::default()));
        assert_eq!(MethodConfig::from_run_file(&json!({"peft_type": "lora"})).unwrap(), config);
    }

    #[test]
    fn a_missing_or_unknown_method_lists_the_methods() {
        assert!(problems(json!({"r": 8})).contains("peft_type is missing; it names the method: "));
        assert!(problems(json!({"peft_type": "LOHA"})).contains("'LOHA', which this version does not have; it has "));
        assert!(problems(json!("LORA")).contains("not a string"));
    }

    #[test]
    fn all_problems_are_named_at_once() {
        let text = problems(json!({
            "peft_type": "LORA", "lora_alhpa": 16, "r": "eight", "bias": "some", "use_qalora": true, "task_type": "LM",
            "lora_dropout": 1.5,
        }));
        for part in [
            "unknown key 'lora_alhpa'; did you mean 'lora_alpha'?",
            "r: invalid type: string \"eight\"",
            "bias: unknown variant `some`, expected one of `none`, `all`, `lora_only`",
            "use_qalora: true is not supported",
            "task_type: unknown variant `LM`",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn an_adapter_file_may_have_keys_that_nobody_knows() {
        let file = json!({"peft_type": "LORA", "r": 4, "from_the_future": 1, "rank_pattern": null});
        let (config, warnings) = MethodConfig::from_adapter_config(&file, "x").unwrap();
        assert_eq!(config.get::<LoraConfig>().unwrap().r, 4);
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("from_the_future"), "{warnings:?}");
    }

    #[test]
    fn a_head_is_saved_with_the_first_method_unless_one_names_its_own() {
        let saved = |config: Value| {
            let config = MethodConfig::from_run_file(&config).unwrap().with_modules_to_save(&["score".to_owned()]);
            let values = config.to_value(&Map::new());
            let values = if let Value::Array(values) = values { values } else { vec![values] };
            values.into_iter().map(|values| values["modules_to_save"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(saved(json!({"peft_type": "LORA", "init_lora_weights": "pissa"})), [json!(["score"])]);
        let two = json!([{"peft_type": "TRAINABLE_TOKENS", "token_indices": [1]}, {"peft_type": "IA3"}]);
        assert_eq!(saved(two), [Value::Null, json!(["score"])]);
        let own = json!([{"peft_type": "LORA"}, {"peft_type": "IA3", "modules_to_save": ["norm"]}]);
        assert_eq!(saved(own), [Value::Null, json!(["norm"])]);
    }

    #[test]
    fn nested_mappings_are_written_sorted() {
        let config = json!({"peft_type": "LORA", "rank_pattern": {"v_proj": 1, "k_proj": 2}});
        let text = MethodConfig::from_run_file(&config).unwrap().to_adapter_config();
        assert!(text.contains("\"rank_pattern\": {\n    \"k_proj\": 2,\n    \"v_proj\": 1\n  }"), "{text}");
        assert!(text.contains("\"inference_mode\": true"));
    }
}
