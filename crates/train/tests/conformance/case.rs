//! One case: a tiny architecture, alone or with an adapter, against the reference's numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use tunesmith_methods::{BuiltAdapter, LoraPlus, ModelDescription, TaskType, load_adapter, save_adapter};
use tunesmith_models::{Cache, GenerationDefaults, Inputs, Model, NumberFormat, load_model, save_folder};
use tunesmith_tensor::{Adapter, Forward, Gradients, IGNORED_TARGET, Parameter, Segments, SiteId, Tape, Workspace};
use tunesmith_train::{AdamW, AdamWOptions, Batch, Example, ParameterGroup, mean_loss, merged_tensors};

use crate::Outcome;
use crate::compare::Errors;
use crate::fixture::{Examples, Tensor, tensors};

/// The base alone: logits, loss, and greedy generation with the cache.
pub(crate) fn base(architecture: &Path) -> Outcome {
    let model = load_base(&architecture.join("model"));
    let io = tensors(&architecture.join("io.safetensors"));
    let inputs = Examples::of(&io);
    let mut errors = Errors::default();
    errors.compare("logits", "", &logits(&*model, None, &inputs), &real_rows(&io["logits"], &inputs));
    let (loss, _) = loss_and_gradients(&*model, &Adapter::new(), &inputs);
    errors.compare("loss", "", &[loss], &io["loss"].values);

    let generate = std::fs::read(architecture.join("generate.json")).expect("decoders have generate.json");
    let generate: serde_json::Value = serde_json::from_slice(&generate).expect("generate.json is JSON");
    let ids = |key: &str| -> Vec<u32> {
        serde_json::from_value(generate[key][0].clone()).expect("generate.json holds lists of ids")
    };
    let (prompt, expected) = (ids("input_ids"), ids("output_ids"));
    let found = greedy(&*model, None, &prompt, expected.len() - prompt.len());
    errors.require(found == expected[prompt.len()..], &format!("greedy continuation is {found:?}, not {expected:?}"));
    errors.outcome()
}

/// The base with an adapter: every number of `expect.safetensors`, and what must hold beside it.
pub(crate) fn method(architecture: &Path, folder: &Path) -> Outcome {
    let model = load_base(&architecture.join("model"));
    let before = all_bits(&*model);
    let io = tensors(&architecture.join("io.safetensors"));
    let expect = tensors(&folder.join("expect.safetensors"));
    let inputs = Examples::of(&io);
    let mut errors = Errors::default();

    let BuiltAdapter { mut adapter, config, .. } = load(folder, &*model);
    let found = logits(&*model, Some(&adapter), &inputs);
    errors.compare("logits", "", &found, &real_rows(&expect["logits"], &inputs));
    errors.require(found != logits(&*model, None, &inputs), "the adapter changes nothing");

    let (loss, gradients) = loss_and_gradients(&*model, &adapter, &inputs);
    errors.compare("loss", "", &[loss], &expect["loss"].values);
    compare_parameters(&mut errors, "grad", &adapter, &expect, |parameter| {
        gradients.get(parameter.id()).expect("every trainable tensor has a gradient").to_vec()
    });

    let saved = tempfile::tempdir().expect("a temporary folder");
    with_description(&*model, |model| save_adapter(saved.path(), &config, &adapter, model)).expect("the adapter saves");
    let (ours, theirs) = ("adapter_model.safetensors", folder.join("adapter_model.safetensors"));
    errors.require(tensors(&saved.path().join(ours)) == tensors(&theirs), "written back, the file's tensors differ");
    let again = load(saved.path(), &*model).adapter;
    errors.require(parameter_bits(&again) == parameter_bits(&adapter), "saved and loaded, the values differ");

    let merged_folder = tempfile::tempdir().expect("a temporary folder");
    let merged_model = merge(&*model, &adapter, &merged_folder.path().join("merged"));
    errors.compare("merged", "", &logits(&*merged_model, None, &inputs), &real_rows(&expect["merged_logits"], &inputs));

    let losses = five_steps(&*model, &mut adapter, &inputs, folder.ends_with("lora-plus"));
    errors.compare("steps", "losses", &losses, &expect["losses"].values);
    compare_parameters(&mut errors, "steps", &adapter, &expect, |parameter| parameter.value().to_vec());
    errors.require(all_bits(&*model) == before, "the base changed");
    errors.outcome()
}

/// Logits `[tokens, vocabulary]` of all sequences.
fn logits(model: &dyn Model, adapter: Option<&Adapter>, inputs: &Examples) -> Vec<f32> {
    let segments = Segments::from_lengths(inputs.sequences.iter().map(Vec::len));
    let mut tape = Tape::evaluating(&Workspace::new());
    let mut forward = Forward::new(&mut tape, segments.clone(), adapter);
    let hidden = model.hidden_states(&mut forward, &Inputs::tokens(&inputs.sequences.concat()), None);
    model.logits(&mut forward, &hidden, &segments).value().to_vec()
}

/// The rows of padded `[batch, length, vocabulary]` logits that are not padding.
fn real_rows(logits: &Tensor, inputs: &Examples) -> Vec<f32> {
    let width = logits.shape[2];
    inputs.rows.iter().flat_map(|row| logits.values[row * width..(row + 1) * width].to_vec()).collect()
}

fn batch(inputs: &Examples) -> Batch {
    let examples: Vec<Example> = inputs
        .sequences
        .iter()
        .zip(&inputs.labels)
        .map(|(ids, labels)| {
            let labels = labels.iter().map(|label| u32::try_from(*label).unwrap_or(IGNORED_TARGET)).collect();
            Example { ids: ids.clone(), labels }
        })
        .collect();
    Batch::new(&examples)
}

/// The mean loss and its gradients, as training computes them.
fn loss_and_gradients(model: &dyn Model, adapter: &Adapter, inputs: &Examples) -> (f32, Gradients) {
    let workspace = Workspace::new();
    let mut gradients = Gradients::new(&workspace);
    let loss = mean_loss(&[batch(inputs)], model, adapter, &workspace, None, &mut gradients);
    (loss as f32, gradients)
}

/// Compares a tensor of every parameter with `kind.NAME`, and the sets of names.
fn compare_parameters(
    errors: &mut Errors,
    kind: &'static str,
    adapter: &Adapter,
    expect: &BTreeMap<String, Tensor>,
    values: impl Fn(&Parameter) -> Vec<f32>,
) {
    let prefix = if kind == "grad" { "grad." } else { "trained." };
    let parameters = adapter.parameters();
    let found: BTreeSet<&str> = parameters.iter().map(|parameter| parameter.name()).collect();
    let expected: BTreeSet<&str> = expect.keys().filter_map(|key| key.strip_prefix(prefix)).collect();
    errors.require(found == expected, &format!("trains {found:?}, the reference {expected:?}"));
    for parameter in parameters.iter().filter(|parameter| expected.contains(parameter.name())) {
        let reference = &expect[&format!("{prefix}{}", parameter.name())];
        errors.compare(kind, parameter.name(), &values(parameter), &reference.values);
    }
}

/// Five AdamW steps with the reference's settings; the loss before each.
fn five_steps(model: &dyn Model, adapter: &mut Adapter, inputs: &Examples, lora_plus: bool) -> Vec<f32> {
    let options = AdamWOptions { weight_decay: if lora_plus { 0.0 } else { 0.01 }, ..AdamWOptions::default() };
    let ratio = if lora_plus { 4.0 } else { 1.0 };
    let groups = LoraPlus { loraplus_lr_ratio: ratio, loraplus_weight_decay: 0.0 };
    let mut optimizer = with_description(model, |model| {
        AdamW::new(options, &adapter.parameters(), |parameter| ParameterGroup {
            learning_rate_scale: groups.learning_rate_scale(parameter, model),
            ..ParameterGroup::default()
        })
    });
    let step = |_| {
        let (loss, gradients) = loss_and_gradients(model, adapter, inputs);
        optimizer.step(&mut adapter.parameters_mut(), &gradients, 1e-2).expect("every tensor has a gradient");
        loss
    };
    (0..5).map(step).collect()
}

/// Greedy continuation with the cache, one token at a time after the prompt.
pub(crate) fn greedy(model: &dyn Model, adapter: Option<&Adapter>, prompt: &[u32], tokens: usize) -> Vec<u32> {
    let workspace = Workspace::new();
    let mut cache = Cache::new(1, model.info());
    let mut input = prompt.to_vec();
    let mut new = Vec::new();
    for _ in 0..tokens {
        let mut tape = Tape::evaluating(&workspace);
        let mut forward = Forward::new(&mut tape, Segments::from_lengths([input.len()]), adapter);
        let hidden = model.hidden_states(&mut forward, &Inputs::tokens(&input), Some(&mut cache));
        let last = forward.tape().slice_rows(&hidden, input.len() - 1..input.len());
        let logits = model.logits(&mut forward, &last, &Segments::from_lengths([1]));
        let best = logits.value().data().iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
        let token = best.expect("a vocabulary").0 as u32;
        new.push(token);
        input = vec![token];
    }
    new
}

fn with_description<R>(model: &dyn Model, work: impl FnOnce(&ModelDescription<'_>) -> R) -> R {
    work(&ModelDescription {
        model_type: &model.info().model_type,
        name_or_path: None,
        task_type: TaskType::CausalLm,
        sites: model.sites(),
        base: &|site| model.base(site),
    })
}

fn load_base(folder: &Path) -> Arc<dyn Model> {
    load_model(folder).unwrap_or_else(|error| panic!("{error}")).model
}

fn load(folder: &Path, model: &dyn Model) -> BuiltAdapter {
    with_description(model, |model| load_adapter(folder, model)).unwrap_or_else(|error| panic!("{error}"))
}

/// The merged model, through a Hugging Face folder.
fn merge(model: &dyn Model, adapter: &Adapter, folder: &Path) -> Arc<dyn Model> {
    let replaced = with_description(model, |model| merged_tensors(adapter, model)).expect("weight methods merge");
    save_folder(folder, model, None, &GenerationDefaults::default(), &replaced, NumberFormat::F32)
        .expect("the merged model saves");
    load_base(folder)
}

fn parameter_bits(adapter: &Adapter) -> Vec<(String, Vec<u32>)> {
    let bits = |parameter: &&Parameter| parameter.value().data().iter().map(|value| value.to_bits()).collect();
    adapter.parameters().iter().map(|parameter| (parameter.name().to_owned(), bits(parameter))).collect()
}

/// The bits of every frozen weight.
fn all_bits(model: &dyn Model) -> Vec<Vec<u32>> {
    let bases = (0..model.sites().len()).filter_map(|site| model.base(SiteId(site)));
    let weights = bases.flat_map(|base| std::iter::once(base.weight).chain(base.bias));
    weights.map(|weight| weight.to_matrix().data().iter().map(|value| value.to_bits()).collect()).collect()
}
