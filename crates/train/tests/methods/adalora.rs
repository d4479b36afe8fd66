//! A run of AdaLoRA against PEFT's: regularisation, budget, masks and files (`tests/data/reference_adalora.py`).

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use safetensors::SafeTensors;
use serde_json::{Value, json};
use tunesmith_methods::{BuiltAdapter, load_adapter, save_adapter};
use tunesmith_tensor::{Forward, Gradients, IGNORED_TARGET, Segments, Tape, Workspace};
use tunesmith_train::{Batch, Example, mean_loss};

use crate::scene::Scene;

fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/adalora").join(name)
}

fn json_of(path: PathBuf) -> Value {
    serde_json::from_slice(&fs::read(&path).unwrap()).unwrap()
}

fn tensors(path: PathBuf) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let read = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        let values = view.data().as_chunks().0.iter().copied().map(f32::from_le_bytes).collect();
        (name, (view.shape().to_vec(), values))
    };
    file.tensors().into_iter().map(read).collect()
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect()
}

/// Values that agree to 1e-4 of the largest.
#[track_caller]
fn close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-4 * largest, "{what}: {found} {expected}");
    }
}

fn logits(scene: &Scene, built: &BuiltAdapter, ids: &[u32]) -> Vec<f32> {
    let workspace = Workspace::new();
    let mut tape = Tape::evaluating(&workspace);
    let segments = Segments::from_lengths([ids.len()]);
    let mut forward = Forward::new(&mut tape, segments.clone(), Some(&built.adapter));
    let hidden = scene.model.hidden_states(&mut forward, &tunesmith_models::Inputs::tokens(ids), None);
    scene.model.logits(&mut forward, &hidden, &segments).value().data().to_vec()
}

#[test]
fn a_run_is_the_run_of_peft() {
    let run = json_of(data("run.json"));
    let ids: Vec<Vec<u32>> = serde_json::from_value(run["ids"].clone()).unwrap();
    let unlabelled = run["unlabelled"].as_u64().unwrap() as usize;
    let example = |ids: &Vec<u32>| {
        let label = |(place, id): (usize, &u32)| if place < unlabelled { IGNORED_TARGET } else { *id };
        Example { ids: ids.clone(), labels: ids.iter().enumerate().map(label).collect() }
    };
    let batch = Batch::new(&ids.iter().map(example).collect::<Vec<_>>());
    let scene = Scene::new("llama/model");
    let mut config = run["config"].clone();
    config["peft_type"] = json!("ADALORA");
    config["target_modules"] = run["target_modules"].clone();
    let mut built = scene.build(&config).unwrap();
    let start = tensors(data("start.safetensors"));
    for parameter in built.adapter.parameters_mut() {
        let values = &start[parameter.name()].1;
        parameter.value_mut().data_mut().copy_from_slice(values);
    }

    let steps = run["steps"].as_array().unwrap();
    built.begin(steps.len() as u64).unwrap();
    let learning_rate = run["learning_rate"].as_f64().unwrap() as f32;
    let workspace = Workspace::new();
    for (step, expected) in steps.iter().enumerate() {
        built.before_step(step as u64);
        let mut gradients = Gradients::new(&workspace);
        let batches = std::slice::from_ref(&batch);
        let loss = mean_loss(batches, &*scene.model, &built.adapter, &workspace, None, &mut gradients);
        let regularisation = built.regularise(&workspace, &mut gradients);
        for (what, found) in [("cross_entropy", loss), ("regularisation", regularisation)] {
            close(&format!("{what} of step {step}"), &[found as f32], &[expected[what].as_f64().unwrap() as f32]);
        }
        for parameter in built.adapter.parameters_mut() {
            let gradient = gradients.get(parameter.id()).unwrap().data().to_vec();
            let mut value = parameter.value_mut();
            value.data_mut().iter_mut().zip(gradient).for_each(|(value, gradient)| *value -= learning_rate * gradient);
        }
        built.after_step(&gradients, 1.0, step as u64);
        for (name, expected) in expected["E"].as_object().unwrap() {
            let parameters = built.adapter.parameters();
            let found = parameters.iter().find(|parameter| parameter.name() == name).unwrap().value();
            let expected = numbers(expected);
            close(&format!("{name} after step {step}"), found.data(), &expected);
            let zeros = |values: &[f32]| values.iter().map(|value| *value == 0.0).collect::<Vec<_>>();
            assert_eq!(zeros(found.data()), zeros(&expected), "{name} after step {step}");
        }
    }
    let end = tensors(data("end.safetensors"));
    for parameter in built.adapter.parameters() {
        close(parameter.name(), parameter.value().data(), &end[parameter.name()].1);
    }

    let folder = tempfile::tempdir().unwrap();
    save_adapter(folder.path(), &built).unwrap();
    let expected = tensors(data("saved/adapter_model.safetensors"));
    let found = tensors(folder.path().join("adapter_model.safetensors"));
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, (shape, values)) in &expected {
        assert_eq!(found[name].0, *shape, "{name}");
        close(name, &found[name].1, values);
    }
    let config = json_of(folder.path().join("adapter_config.json"));
    let expected = json_of(data("saved/adapter_config.json"));
    for key in ["rank_pattern", "total_step", "init_r", "target_r", "tinit", "tfinal", "deltaT"] {
        assert_eq!(config[key], expected[key], "{key}");
    }
    let expected = numbers(&run["logits"]);
    for folder in [folder.path().to_owned(), data("saved")] {
        let loaded = scene.describe(|model| load_adapter(&folder, model)).unwrap();
        close("logits", &logits(&scene, &loaded, &ids[0]), &expected);
    }
}
