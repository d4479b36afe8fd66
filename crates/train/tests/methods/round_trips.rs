//! What must hold of every method on every architecture: it begins at the base where it says so, only its own tensors
//! change, the loss falls, what is saved comes back, a resumed run is the run that was never stopped, and merging gives the
//! same model or is refused.

use std::collections::BTreeSet;
use std::sync::Arc;

use tunesmith_methods::{BuiltAdapter, load_adapter, load_checkpoint, save_adapter, save_checkpoint};
use tunesmith_models::{GenerationDefaults, Model, NumberFormat, load_model, save_folder};
use tunesmith_tensor::{Adapter, Parameter, Seed, SiteId, Tape, Workspace};
use tunesmith_train::merged_tensors;

use crate::scene::{Case, Scene, cases, scenes};

/// Methods that an architecture rules out, with a part of the refusal.
const IMPOSSIBLE: &[(&str, &[&str], &str)] =
    &[("BITFIT", &["llama", "mistral", "qwen3", "gemma3", "t5", "flan-t5"], "LN_TUNING")];

/// The loss outside training, to the bit.
fn evaluated(scene: &Scene, model: &dyn Model, adapter: Option<&Adapter>) -> f32 {
    let workspace = Workspace::new();
    let mut tape = Tape::evaluating(&workspace);
    scene.batch.loss(&mut tape, model, adapter).sum.value().data()[0]
}

fn bits(adapter: &Adapter) -> Vec<(String, Vec<u32>)> {
    let bits = |parameter: &&Parameter| parameter.value().data().iter().map(|value| value.to_bits()).collect();
    adapter.parameters().iter().map(|parameter| (parameter.name().to_owned(), bits(parameter))).collect()
}

/// The bits of every frozen weight.
fn frozen(model: &dyn Model) -> Vec<Vec<u32>> {
    let bases = (0..model.sites().len()).filter_map(|site| model.base(SiteId(site)));
    let weights = bases.flat_map(|base| std::iter::once(base.weight).chain(base.bias));
    weights.map(|weight| weight.to_matrix().data().iter().map(|value| value.to_bits()).collect()).collect()
}

fn close(found: f32, expected: f32) -> bool {
    (found - expected).abs() <= 1e-4 * expected.abs()
}

#[test]
fn every_method_on_every_architecture() {
    let mut refused = BTreeSet::new();
    let mut problems: Vec<String> = Vec::new();
    for scene in scenes() {
        let before = frozen(&*scene.model);
        for case in cases() {
            match scene.build(&case.config) {
                Ok(built) => {
                    let found = check(&scene, &case, built);
                    problems.extend(found.into_iter().map(|text| format!("{} {}: {text}", scene.name, case.config)));
                }
                Err(refusal) => {
                    let method = case.config["peft_type"].as_str().unwrap_or("several").to_owned();
                    refused.insert((method, architecture(&scene), refusal.to_string()));
                }
            }
        }
        assert!(frozen(&*scene.model) == before, "{}: the base changed", scene.name);
    }
    for (method, architecture, refusal) in &refused {
        let known = IMPOSSIBLE.iter().any(|(impossible, architectures, part)| {
            impossible == method && architectures.contains(&architecture.as_str()) && refusal.contains(part)
        });
        if !known {
            problems.push(format!("{method} is refused on {architecture}: {refusal}"));
        }
    }
    for (method, architectures, _) in IMPOSSIBLE {
        for architecture in *architectures {
            if !refused.iter().any(|(refused, on, _)| refused == method && on == architecture) {
                problems.push(format!("{method} is not refused on {architecture}"));
            }
        }
    }
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

fn architecture(scene: &Scene) -> String {
    scene.name.trim_end_matches("/model").to_owned()
}

/// Everything that does not hold of a method on a model.
fn check(scene: &Scene, case: &Case, mut built: BuiltAdapter) -> Vec<String> {
    let mut problems = Vec::new();
    let mut require = |holds: bool, problem: String| {
        if !holds {
            problems.push(problem);
        }
    };
    let base = evaluated(scene, &*scene.model, None);
    let start = evaluated(scene, &*scene.model, Some(&built.adapter));
    if case.starts_at_base {
        require(start.to_bits() == base.to_bits(), format!("begins at {start}, the base is at {base}"));
    }

    const STEPS: u64 = 10;
    built.begin(100).unwrap();
    let mut optimizer = Scene::optimizer(&built);
    let first = scene.train(&mut built, &mut optimizer, 0..STEPS / 2, case.learning_rate);
    let checkpoint = tempfile::tempdir().unwrap();
    let state = checkpoint.path().join("optimizer.safetensors");
    save_checkpoint(checkpoint.path(), &built).unwrap();
    optimizer.save(&state).unwrap();
    let second = scene.train(&mut built, &mut optimizer, STEPS / 2..STEPS, case.learning_rate);
    let end = second.last().copied().unwrap_or(f64::NAN);
    require(end < first[0], format!("the loss goes from {} to {end}", first[0]));

    let seed = Seed(5);
    let resumed = scene.describe(|model| load_checkpoint(checkpoint.path(), &built.config, model, seed));
    match resumed {
        Err(error) => require(false, format!("the checkpoint is not read: {error}")),
        Ok(mut resumed) => {
            let mut optimizer = Scene::optimizer(&resumed);
            optimizer.load(&state).unwrap();
            resumed.begin(100).unwrap();
            scene.train(&mut resumed, &mut optimizer, STEPS / 2..STEPS, case.learning_rate);
            require(bits(&resumed.adapter) == bits(&built.adapter), "a resumed run ends elsewhere".to_owned());
        }
    }

    let tuned = evaluated(scene, &*scene.model, Some(&built.adapter));
    require(tuned.to_bits() != start.to_bits(), "training changes nothing".to_owned());
    let folder = tempfile::tempdir().unwrap();
    save_adapter(folder.path(), &built).unwrap();
    match scene.describe(|model| load_adapter(folder.path(), model)) {
        Err(error) => require(false, format!("what is saved is not read: {error}")),
        Ok(loaded) => {
            let found = evaluated(scene, &*scene.model, Some(&loaded.adapter));
            // What PiSSA saves is plain LoRA, of the same weights but for rounding.
            let same = if case.config["init_lora_weights"] == "pissa" {
                close(found, tuned)
            } else {
                found.to_bits() == tuned.to_bits()
            };
            require(same, format!("saved and loaded, the loss is {found} and not {tuned}"));
        }
    }

    let merged = scene.describe(|model| merged_tensors(&built.adapter, model));
    match merged {
        Err(refusal) => {
            let refusal = refusal.to_string();
            require(!built.adapter.is_mergeable(), format!("merging is refused: {refusal}"));
            require(refusal.contains("Use it beside its base model"), refusal);
        }
        Ok(tensors) => {
            require(built.adapter.is_mergeable(), "what is not weights alone is merged".to_owned());
            let folder = folder.path().join("merged");
            let saved =
                save_folder(&folder, &*scene.model, None, &GenerationDefaults::default(), &tensors, NumberFormat::F32);
            saved.unwrap_or_else(|error| panic!("{} {}: {error}", scene.name, case.config));
            let merged: Arc<dyn Model> = load_model(&folder).unwrap_or_else(|error| panic!("{error}")).model;
            let found = evaluated(scene, &*merged, None);
            require(close(found, tuned), format!("merged, the loss is {found} and not {tuned}"));
        }
    }
    problems
}
