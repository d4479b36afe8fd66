//! The files of AdapterHub's `adapters`: `adapter_config.json` with a mapping `config` in it, and `adapter.safetensors`,
//! whose keys are module paths with the adapter's name.

use serde_json::{Map, Value, json};
use tunesmith_tensor::{Role, Site};

use crate::bottleneck_config::BottleneckConfig;
use crate::common::as_map;

/// The file of the tensors.
pub(crate) const WEIGHTS_FILE: &str = "adapter.safetensors";
/// The same as a Python pickle.
pub(crate) const PICKLE_FILE: &str = "pytorch_adapter.bin";
/// The version that files are written for.
const VERSION: &str = "adapters.1.3.0";
/// Keys of ours within `config`'s mapping that AdapterHub has not; they stand beside `config` in its files.
const OURS: [&str; 3] = ["train_layer_norms", "modules_to_save", "bottleneck_size"];

/// The module that holds an adapter at a hidden site.
pub(crate) fn module(site: &Site, model_type: &str, name: &str) -> String {
    // The path up to the block: its last number.
    let parts: Vec<&str> = site.path.split('.').collect();
    let is_number = |part: &&str| part.bytes().all(|byte| byte.is_ascii_digit());
    let block = parts.iter().rposition(is_number).map_or(site.path.clone(), |last| parts[..=last].join("."));
    let after_attention = site.role == Role::AfterAttention;
    let place = match model_type {
        "t5" | "mt5" => "",
        "bert" | "roberta" | "xlm-roberta" | "electra" if after_attention => ".attention.output",
        "bert" | "roberta" | "xlm-roberta" | "electra" => ".output",
        _ if after_attention => ".attention_adapters",
        _ => ".output_adapters",
    };
    format!("{block}{place}.adapters.{name}")
}

/// Whether an `adapter_config.json` is AdapterHub's.
pub(crate) fn is_file(value: &Value) -> bool {
    value.get("peft_type").is_none() && value.get("config").is_some_and(Value::is_object)
}

/// AdapterHub's configuration as one of ours.
pub(crate) fn from_file(value: &Value) -> Value {
    let outer = value.as_object().cloned().unwrap_or_default();
    let mut values = outer.get("config").and_then(Value::as_object).cloned().unwrap_or_default();
    let is = |key: &str| values.get(key) == Some(&Value::Bool(true));
    let method = match (is("is_parallel"), is("mh_adapter")) {
        (true, _) => "PARALLEL",
        (false, true) => "HOULSBY",
        (false, false) => "PFEIFFER",
    };
    values.insert("peft_type".into(), method.into());
    values.insert("train_layer_norms".into(), false.into());
    values.extend(OURS.iter().filter_map(|key| Some(((*key).to_owned(), outer.get(*key)?.clone()))));
    values.extend(outer.get("name").map(|name| ("name".to_owned(), name.clone())));
    values.extend(outer.get("model_name").map(|name| ("base_model_name_or_path".to_owned(), name.clone())));
    // Before files had a version, `gelu` meant its approximation.
    if !outer.contains_key("version") && values.get("non_linearity") == Some(&json!("gelu")) {
        values.insert("non_linearity".into(), "gelu_new".into());
    }
    let mut kept = outer;
    kept.retain(|key, _| !["config", "name"].contains(&key.as_str()) && !OURS.contains(&key.as_str()));
    values.insert("hub_file".into(), Value::Object(kept));
    Value::Object(values)
}

/// A configuration as AdapterHub writes it.
pub(crate) fn to_file(config: &BottleneckConfig) -> Map<String, Value> {
    let mut values = as_map(config);
    let mut outer = config.hub_file.clone().unwrap_or_default();
    let common = as_map(&config.common);
    values.retain(|key, _| !common.contains_key(key) && key != "hub_file");
    values.remove("name");
    for key in OURS {
        let value = values.remove(key).filter(|value| !value.is_null() && *value != Value::Bool(false));
        outer.extend(value.map(|value| (key.to_owned(), value)));
    }
    outer.insert("name".into(), config.name.clone().into());
    outer.entry("version").or_insert(VERSION.into());
    outer.entry("model_name").or_insert_with(|| json!(config.common.base_model_name_or_path));
    outer.insert("config".into(), Value::Object(values));
    outer
}
