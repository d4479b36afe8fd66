//! Outputs and losses, and that a model is saved as it was.

use std::collections::BTreeMap;
use std::fs;

use tunesmith_models::{GenerationDefaults, Model, NumberFormat, ProblemType, Task, load_model, save_folder};
use tunesmith_tensor::{Forward, IGNORED_TARGET, Segments, Tape, Workspace};
use tunesmith_train::{Batch, Targets};

use crate::{Tensor, folder, tensors};

/// The real rows of a padded case.
struct Case {
    io: BTreeMap<String, Tensor>,
    lengths: Vec<usize>,
    width: usize,
}

impl Case {
    fn open(name: &str) -> Self {
        let io = tensors(&folder(name).join("io.safetensors"));
        let mask = &io["attention_mask"];
        let width = mask.shape[1];
        let lengths = mask.values.chunks_exact(width).map(|row| row.iter().sum::<f32>() as usize).collect();
        Self { io, lengths, width }
    }

    /// The values of the tokens that are not padding, `each` a token.
    fn real(&self, key: &str, each: usize) -> Vec<f32> {
        let rows = self.io[key].values.chunks_exact(self.width * each).zip(&self.lengths);
        rows.flat_map(|(row, length)| row[..length * each].to_vec()).collect()
    }

    fn ids(&self, key: &str) -> Vec<u32> {
        if self.io.contains_key(key) { self.real(key, 1).into_iter().map(|id| id as u32).collect() } else { Vec::new() }
    }

    fn batch(&self, model: &dyn Model) -> Batch {
        let head = &model.info().head;
        let label = |value: f32| if value < 0.0 { IGNORED_TARGET } else { value as u32 };
        let all = |key: &str| self.io[key].values.clone();
        let targets = match (head.task, head.problem()) {
            (Task::SeqCls, ProblemType::SingleLabelClassification) => {
                Targets::Classes(all("labels").into_iter().map(label).collect())
            }
            (Task::SeqCls, ProblemType::MultiLabelClassification) => Targets::Flags(all("labels")),
            (Task::SeqCls, ProblemType::Regression) => Targets::Numbers(all("labels")),
            (Task::TokenCls, _) => Targets::Classes(self.real("labels", 1).into_iter().map(label).collect()),
            (Task::QuestionAns, _) => {
                let ends: Vec<Option<usize>> = all("labels").into_iter().map(|place| Some(place as usize)).collect();
                Targets::Spans(ends.as_chunks().0.to_vec())
            }
            (task, _) => panic!("no loss for {task:?}"),
        };
        Batch { targets, ..self.without_targets() }
    }

    fn without_targets(&self) -> Batch {
        Batch {
            ids: self.ids("input_ids"),
            token_type_ids: self.ids("token_type_ids"),
            segments: Segments::from_lengths(self.lengths.iter().copied()),
            decoder: None,
            targets: Targets::Classes(Vec::new()),
        }
    }

    /// The outputs of the rows that the head reads.
    fn outputs(&self, model: &dyn Model) -> Vec<f32> {
        let batch = self.without_targets();
        let mut tape = Tape::evaluating(&Workspace::new());
        let mut forward = Forward::new(&mut tape, batch.segments.clone(), None);
        let hidden = model.hidden_states(&mut forward, &batch.inputs(), None);
        let tokens = forward.segments().clone();
        let sequences = Segments::from_lengths(self.lengths.iter().map(|_| 1));
        let rows = if model.info().head.task == Task::SeqCls { sequences } else { tokens };
        model.logits(&mut forward, &hidden, &rows).value().to_vec()
    }

    fn expected(&self, model: &dyn Model) -> Vec<f32> {
        let logits = &self.io["logits"];
        if model.info().head.task == Task::SeqCls {
            logits.values.clone()
        } else {
            self.real("logits", logits.shape[2])
        }
    }
}

#[track_caller]
fn assert_close(name: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{name}");
    let largest = expected.iter().fold(f32::MIN_POSITIVE, |largest, value| largest.max(value.abs()));
    for (place, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= 1e-4 * largest, "{name}: value {place} is {found}, not {expected}");
    }
}

const BARE: [&str; 8] =
    ["bart-bare", "bert-bare", "distilbert-bare", "gemma3-bare", "gpt2-bare", "llama-bare", "t5-bare", "t5-encoder"];
const WITH_LOSS: [&str; 29] = [
    "bart-answers",
    "bart-classes",
    "bart-untied-answers",
    "bert-answers",
    "bert-multi-label",
    "bert-regression",
    "bert-tokens",
    "distilbert-answers",
    "distilbert-classes",
    "distilbert-tokens",
    "gemma3-classes",
    "gpt2-answers",
    "gpt2-classes",
    "gpt2-tokens",
    "llama-answers",
    "llama-classes",
    "llama-tokens",
    "mistral-answers",
    "mistral-classes",
    "qwen2-answers",
    "qwen2-classes",
    "qwen3-answers",
    "qwen3-tokens",
    "roberta-answers",
    "roberta-tokens",
    "t5-answers",
    "t5-classes",
    "t5-tokens",
    "xlm-roberta-classes",
];

#[test]
fn outputs_equal_the_reference() {
    for name in WITH_LOSS.into_iter().chain(BARE) {
        let model = load_model(&folder(name)).unwrap_or_else(|error| panic!("{name}: {error}")).model;
        assert!(model.info().head.new_modules.is_empty(), "{name}");
        let case = Case::open(name);
        assert_close(name, &case.outputs(&*model), &case.expected(&*model));
    }
}

#[test]
fn losses_equal_the_reference() {
    for name in WITH_LOSS {
        let model = load_model(&folder(name)).unwrap().model;
        let case = Case::open(name);
        let batch = case.batch(&*model);
        let loss = batch.loss(&mut Tape::evaluating(&Workspace::new()), &*model, None);
        let mean = loss.total / batch.labelled() as f64;
        assert_close(name, &[mean as f32], &case.io["loss"].values);
    }
}

#[test]
fn every_case_of_the_folder_is_here() {
    let mut found: Vec<String> = fs::read_dir(folder("."))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    let mut known: Vec<&str> = WITH_LOSS.into_iter().chain(BARE).collect();
    found.sort();
    known.sort_unstable();
    assert_eq!(found, known);
}

#[test]
fn models_are_saved_as_they_were() {
    for name in WITH_LOSS.into_iter().chain(BARE) {
        let model = load_model(&folder(name)).unwrap().model;
        let saved = tempfile::tempdir().unwrap();
        let defaults = GenerationDefaults::default();
        save_folder(saved.path(), &*model, None, &defaults, &BTreeMap::new(), NumberFormat::F32).unwrap();
        let [before, after] =
            [folder(name), saved.path().to_path_buf()].map(|at| tensors(&at.join("model.safetensors")));
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>(), "{name}");
        assert!(before == after, "{name}");
        let again = load_model(saved.path()).unwrap().model;
        let case = Case::open(name);
        assert_eq!(case.outputs(&*again), case.outputs(&*model), "{name}");
        assert_eq!(again.info(), model.info(), "{name}");
    }
}
