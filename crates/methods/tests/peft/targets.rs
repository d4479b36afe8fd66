//! What PEFT makes of many configurations on tiny models: `data/targets.json`, written by `data/make_targets.py`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tunesmith_methods::{LoraConfig, MethodConfig, MethodError, build};
use tunesmith_tensor::{Seed, SiteId, SiteKind};

use crate::model::Model;

fn table() -> Value {
    serde_json::from_str(include_str!("../data/targets.json")).unwrap()
}

/// The case's configuration, built for its model, and what came of it in PEFT's terms.
struct Made {
    /// Rank, alpha and scale by module.
    modules: BTreeMap<String, (usize, f64, f64)>,
    /// Shapes of trainable tensors by name, vectors as matrices of one row.
    tensors: BTreeMap<String, (usize, usize)>,
    target_modules: Value,
}

fn make(case: &Value, model: &Model) -> Result<Made, MethodError> {
    let mut config = case["config"].clone();
    config["peft_type"] = "LORA".into();
    let config = MethodConfig::from_run_file(&config)?;
    model.describe(|description| {
        let built = build(&config, description, Seed(0))?;
        let config = built.config.get::<LoraConfig>().unwrap();
        let parameters = built.adapter.parameters();
        let tensors = parameters.iter().map(|tensor| (tensor.name().to_owned(), tensor.value().shape())).collect();
        let tuned = built.adapter.weight_sites().filter(|site| {
            let tuner = built.adapter.weight(*site).unwrap();
            tuner.parameters().iter().any(|tensor| tensor.name().ends_with("lora_A.weight"))
        });
        let modules = tuned.map(|SiteId(index)| module(config, &model.sites[index].path)).collect();
        let file: Value = serde_json::from_str(&built.config.to_adapter_config()).unwrap();
        Ok(Made { modules, tensors, target_modules: file["target_modules"].clone() })
    })
}

fn module(config: &LoraConfig, path: &str) -> (String, (usize, f64, f64)) {
    let numbers = (config.rank(path).unwrap(), config.alpha(path).unwrap(), config.scaling(path).unwrap());
    (path.to_owned(), numbers)
}

/// A list as a set, a string as it is.
fn unordered(value: &Value) -> Result<BTreeSet<String>, &Value> {
    let names = value.as_array().ok_or(value)?;
    Ok(names.iter().map(|name| name.as_str().unwrap().to_owned()).collect())
}

#[test]
fn adapted_modules_and_their_tensors_are_those_of_peft() {
    let table = table();
    let mut adapted = 0;
    for case in table["cases"].as_array().unwrap() {
        let name = format!("{} {}", case["model"], case["config"]);
        let model = Model::from_sites(&table["models"][case["model"].as_str().unwrap()]);
        let made = match (make(case, &model), &case["error"]) {
            (Ok(made), Value::Null) => made,
            (Err(_), Value::String(_)) => continue,
            (Ok(_), error) => panic!("{name}: PEFT refuses this with {error}"),
            (Err(error), _) => panic!("{name}: {error}"),
        };
        let modules: BTreeMap<String, (usize, f64, f64)> = serde_json::from_value(case["modules"].clone()).unwrap();
        assert_eq!(made.modules, modules, "{name}");
        assert_eq!(unordered(&made.target_modules), unordered(&case["target_modules"]), "{name}");

        let shapes: BTreeMap<String, Vec<usize>> = serde_json::from_value(case["tensors"].clone()).unwrap();
        let copies = [".original_module.bias", ".modules_to_save.bias"];
        let expected: BTreeMap<String, (usize, usize)> = shapes
            .into_iter()
            .filter(|(name, _)| !copies.iter().any(|copy| name.ends_with(copy)))
            .map(|(name, shape)| (name, if let [rows, cols] = shape[..] { (rows, cols) } else { (1, shape[0]) }))
            .collect();
        assert_eq!(made.tensors, expected, "{name}");
        adapted += 1;
    }
    assert!(adapted > 45, "only {adapted} cases adapt a model");
}

fn refusal(model: &str, config: &str) -> String {
    let table = table();
    let case = serde_json::json!({"config": serde_json::from_str::<Value>(config).unwrap()});
    let Err(error) = make(&case, &Model::from_sites(&table["models"][model])) else { panic!("{config} is accepted") };
    error.to_string()
}

#[test]
fn a_mistyped_target_is_an_error_with_near_names() {
    let text = refusal("llama", r#"{"target_modules": ["q_porj", "v_proj", "mpl.up_proj"]}"#);
    assert!(text.contains("'q_porj' (near names: q_proj, "), "{text}");
    assert!(text.contains("'mpl.up_proj' (near names: mlp.up_proj"), "{text}");
    assert!(!text.contains("'v_proj'"), "{text}");
    let text = refusal("llama", r#"{"modules_to_save": ["lm_haed"]}"#);
    assert!(text.contains("modules_to_save has entries") && text.contains("near names: lm_head"), "{text}");
}

#[test]
fn a_pattern_that_matches_nothing_shows_what_it_must_match() {
    let text = refusal("llama", r#"{"target_modules": "q_proj"}"#);
    assert!(text.contains("whole names such as 'model.layers.0.self_attn.q_proj'"), "{text}");
    assert!(text.contains("down_proj, gate_proj, k_proj"), "{text}");
}

#[test]
fn targets_that_cannot_be_tuned_are_named_with_what_they_are() {
    let text = refusal("llama", r#"{"target_modules": ["embed_tokens", "input_layernorm", "mlp", "q_proj"]}"#);
    for part in [
        "tunes linear layers and embeddings only",
        "model.layers.1.input_layernorm (a norm)",
        "model.layers.0.mlp (holds other modules: name those)",
        "modules_to_save",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn layers_that_hold_no_target_are_named() {
    let text = refusal("qwen2", r#"{"target_modules": ["q_proj"], "layers_to_transform": [1, 5, 9]}"#);
    assert!(text.contains("layers_to_transform names 5, 9, but target_modules match only in the layers 0, 1, 2"));
}

#[test]
fn excluding_every_target_is_an_error() {
    let text = refusal("llama", r#"{"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]}"#);
    assert!(text.contains("what they would match is in exclude_modules or modules_to_save"), "{text}");
}

#[test]
fn biases_that_are_not_there_cannot_be_trained() {
    let text = refusal("llama", r#"{"bias": "all"}"#);
    assert!(text.contains("this llama model has no bias. Leave bias at none"), "{text}");
    let text = refusal("qwen2", r#"{"bias": "lora_only", "target_modules": ["o_proj"]}"#);
    assert!(text.contains("Use bias: all, or target modules that have one, such as model.layers.0"), "{text}");
}

#[test]
fn modules_that_are_targeted_or_lists_cannot_be_saved() {
    let text = refusal("llama", r#"{"modules_to_save": ["proj"]}"#);
    assert!(text.contains("model.layers.0.self_attn.q_proj"), "{text}");
    let text = refusal("llama", r#"{"target_modules": ["lm_head"], "modules_to_save": ["layers"]}"#);
    assert!(text.contains("modules_to_save names lists of modules") && text.contains("model.layers"), "{text}");
}

#[test]
fn a_model_type_without_defaults_needs_targets() {
    let table = table();
    let mut model = Model::from_sites(&table["models"]["llama"]);
    model.model_type = "novel".to_owned();
    let Err(error) = make(&serde_json::json!({"config": {}}), &model) else { panic!("there are no defaults") };
    let text = error.to_string();
    assert!(text.contains("no default target_modules for model_type 'novel'") && text.contains("q_proj"), "{text}");
}

#[test]
fn overlapping_patterns_keep_their_meaning_when_saved() {
    let table = table();
    let model = Model::from_sites(&table["models"]["llama"]);
    // Sorted, "(q|k)_proj" comes before "^model…", and so would win for layer 0 too.
    let config = serde_json::json!({"config": {
        "target_modules": ["q_proj", "k_proj"],
        "rank_pattern": {"^model.layers.0.self_attn.k_proj": 2, "(q|k)_proj": 3},
        "alpha_pattern": {"v_proj": 1},
    }});
    let mut peft_type = config["config"].clone();
    peft_type["peft_type"] = "LORA".into();
    let asked = MethodConfig::from_run_file(&peft_type).unwrap();
    model.describe(|description| {
        let built = build(&asked, description, Seed(0)).unwrap();
        assert!(built.warnings.iter().any(|warning| warning.contains("overlap")), "{:?}", built.warnings);
        assert!(built.warnings.iter().any(|warning| warning.contains("'v_proj' in alpha_pattern")));
        let saved: Value = serde_json::from_str(&built.config.to_adapter_config()).unwrap();
        let (read, _) = MethodConfig::from_adapter_config(&saved, "file").unwrap();
        let [asked, read] = [&asked, &read].map(|config| config.get::<LoraConfig>().unwrap());
        for site in model.sites.iter().filter(|site| site.kind == SiteKind::Linear && site.path.contains("self_attn")) {
            if site.path.contains("q_proj") || site.path.contains("k_proj") {
                assert_eq!(asked.rank(&site.path).unwrap(), read.rank(&site.path).unwrap(), "{}", site.path);
                assert_eq!(asked.scaling(&site.path).unwrap(), read.scaling(&site.path).unwrap(), "{}", site.path);
            }
        }
    });
}
