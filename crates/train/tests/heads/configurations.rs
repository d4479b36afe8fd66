//! Models of random configurations, made by `fixtures/heads/random_configurations.py` in the folder that
//! `TUNESMITH_CONFIGURATIONS` names: each computes what transformers does and is saved as it was, or is refused by name.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use tunesmith_models::{GenerationDefaults, Inputs, Model, ModelError, NumberFormat, Task, load_model, save_folder};
use tunesmith_tensor::{Forward, Segments, Tape, Workspace};

use crate::{Tensor, tensors};

#[test]
fn options_are_honoured_or_refused() {
    let Some(root) = std::env::var_os("TUNESMITH_CONFIGURATIONS") else { return };
    let (mut equal, mut refused) = (0, BTreeMap::new());
    for folder in fs::read_dir(root).unwrap() {
        let folder = folder.unwrap().path();
        match load_model(&folder) {
            Ok(loaded) => {
                check(&folder, &*loaded.model);
                equal += 1;
            }
            Err(ModelError::Config { problems, .. }) => {
                problems.into_iter().for_each(|problem| *refused.entry(problem).or_insert(0) += 1);
            }
            Err(error) => panic!("{}: {error}", folder.display()),
        }
    }
    assert!(equal > 0);
    println!("{equal} configurations compute what transformers does; refused: {refused:#?}");
}

fn check(folder: &Path, model: &dyn Model) {
    let io = tensors(&folder.join("io.safetensors"));
    let (found, expected) = (outputs(model, &io["input_ids"]), &io["logits"].values);
    let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let differs = |(found, expected): (&f32, &f32)| (found - expected).abs() > 1e-4 * largest;
    assert!(found.len() == expected.len() && !found.iter().zip(expected).any(differs), "{}", folder.display());
    let saved = tempfile::tempdir().unwrap();
    let defaults = GenerationDefaults::default();
    save_folder(saved.path(), model, None, &defaults, &BTreeMap::new(), NumberFormat::F32).unwrap();
    let [before, after] = [folder, saved.path()].map(|folder| tensors(&folder.join("model.safetensors")));
    assert!(before == after, "{}: {:?} became {:?}", folder.display(), before.keys(), after.keys());
    let again = load_model(saved.path()).unwrap().model;
    assert_eq!((again.info(), outputs(&*again, &io["input_ids"])), (model.info(), found), "{}", folder.display());
}

/// The outputs of one sequence.
fn outputs(model: &dyn Model, ids: &Tensor) -> Vec<f32> {
    let ids: Vec<u32> = ids.values.iter().map(|id| *id as u32).collect();
    let mut tape = Tape::evaluating(&Workspace::new());
    let mut forward = Forward::new(&mut tape, Segments::from_lengths([ids.len()]), None);
    let hidden = model.hidden_states(&mut forward, &Inputs::tokens(&ids), None);
    let one = Segments::from_lengths([1]);
    let rows = if model.info().head.task == Task::SeqCls { one } else { forward.segments().clone() };
    model.logits(&mut forward, &hidden, &rows).value().to_vec()
}
