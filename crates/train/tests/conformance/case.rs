//! One case: a tiny architecture, alone or with an adapter, against the reference's numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tunesmith_methods::{BuiltAdapter, LoraPlus, load_adapter, save_adapter};
use tunesmith_models::{
    GenerationDefaults, LoadedModel, Model, NumberFormat, QuantizationOptions, load_model, load_model_quantized,
    save_folder,
};
use tunesmith_tensor::{Adapter, FourBitOptions, FourBitType, Gradients, Parameter, Precision, SiteId, Workspace};
use tunesmith_train::{AdamW, Optimizer, ParameterGroup, describe, mean_loss, merged_tensors};

use crate::Outcome;
use crate::compare::{Errors, TOLERANCE, relative_error};
use crate::fixture::{Examples, Tensor, tensors};
use crate::start;
use crate::task::{batch, generated, greedy, logits, real_rows};

/// The ways of loading an architecture's base, each with what it adds to the names of cases: as its files are; where
/// there is a 4-bit copy also that one, and the floats quantised while loading.
pub(crate) fn bases(architecture: &Path) -> Vec<(&'static str, LoadedModel)> {
    let (floats, four_bit) = (architecture.join("model"), architecture.join("model-4bit"));
    if !four_bit.exists() {
        return vec![("", load_model(&floats).unwrap_or_else(|error| panic!("{error}")))];
    }
    let nf4 = FourBitOptions { quant_type: FourBitType::Nf4, double_quant: true };
    let options = QuantizationOptions { load_in_4bit: Some(nf4), ..QuantizationOptions::default() };
    let quantized = load_model_quantized(&floats, Precision::Float32, &options);
    vec![
        ("", load_model(&four_bit).unwrap_or_else(|error| panic!("{error}"))),
        (" (quantised while loading)", quantized.unwrap_or_else(|error| panic!("{error}"))),
    ]
}

/// The base alone: logits, loss, and greedy generation with the cache.
pub(crate) fn base(architecture: &Path, LoadedModel { model, generation, .. }: &LoadedModel) -> Outcome {
    let model = &**model;
    let io = tensors(&architecture.join("io.safetensors"));
    let inputs = Examples::of(&io);
    let mut errors = Errors::default();
    errors.compare("logits", "", &logits(model, None, &inputs), &real_rows(model, &io["logits"], &inputs));
    let (loss, _) = loss_and_gradients(model, &Adapter::new(), &inputs);
    errors.compare("loss", "", &[loss], &io["loss"].values);

    if let Ok(text) = std::fs::read(architecture.join("generate.json")) {
        let json = serde_json::from_slice(&text).expect("generate.json is JSON");
        let (prompt, expected) = generated(model, &json);
        // The reference generates a fixed number of tokens: none of them ends the text.
        let found = greedy(model, None, &prompt, expected.len(), &generation.eos_token_ids);
        errors.require(found == expected, &format!("greedy continuation is {found:?}, not {expected:?}"));
    }
    errors.outcome()
}

/// The base with an adapter: every number of `expect.safetensors`, and what must hold beside it.
pub(crate) fn method(architecture: &Path, loaded: &LoadedModel, folder: &Path) -> Outcome {
    method_against(architecture, loaded, folder, &folder.join("expect.safetensors"))
}

/// The same with the numbers of another file.
pub(crate) fn method_against(
    architecture: &Path,
    LoadedModel { model, .. }: &LoadedModel,
    folder: &Path,
    expect: &Path,
) -> Outcome {
    let before = all_bits(&**model);
    let io = tensors(&architecture.join("io.safetensors"));
    let expect = tensors(expect);
    let inputs = Examples::of(&io);
    let mut errors = Errors::default();

    let (files, weights) = files_of(folder);
    let files = &*files;
    let from_file = load(files, &**model);
    let saved = tempfile::tempdir().expect("a temporary folder");
    save_adapter(saved.path(), &from_file).expect("the adapter saves");
    let mut theirs = tensors(&files.join(weights));
    // With `bias: all` PEFT saves the biases of `modules_to_save` under two more names.
    theirs.retain(|name, _| !name.contains(".original_module.") && !name.contains(".modules_to_save."));
    errors.require(tensors(&saved.path().join(weights)) == theirs, "written back, the file's tensors differ");
    let config = |folder: &Path| -> serde_json::Value {
        let text = std::fs::read(folder.join("adapter_config.json")).expect("a configuration");
        serde_json::from_slice(&text).expect("the configuration is JSON")
    };
    if !from_file.adapter.is_mergeable() {
        errors.require(config(saved.path()) == config(files), "written back, the configuration differs");
    }
    let again = load(saved.path(), &**model).adapter;
    errors.require(parameter_bits(&again) == parameter_bits(&from_file.adapter), "saved and loaded, the values differ");

    let Some(mut built) = describe(&**model, None, None, |model| start::trainable(from_file, model, &expect)) else {
        errors.problem("no seed of the reference gives what its file holds".to_owned());
        return errors.outcome();
    };
    let adapter = &built.adapter;
    let found = logits(&**model, Some(adapter), &inputs);
    errors.compare("logits", "", &found, &real_rows(&**model, &expect["logits"], &inputs));
    errors.require(found != logits(&**model, None, &inputs), "the adapter changes nothing");

    let (loss, gradients) = loss_and_gradients(&**model, adapter, &inputs);
    errors.compare("loss", "", &[loss], &expect["loss"].values);
    compare_parameters(&mut errors, "grad", adapter, &expect, |parameter| {
        gradients.get(parameter.id()).expect("every trainable tensor has a gradient").to_vec()
    });

    if adapter.is_mergeable() {
        let merged_folder = tempfile::tempdir().expect("a temporary folder");
        let merged_model = merge(&**model, adapter, &merged_folder.path().join("merged"));
        // Merged into floats, a 4-bit base gives what it gives with the adapter beside it.
        let merged = expect.get("merged_logits").unwrap_or(&expect["logits"]);
        let merged = real_rows(&**model, merged, &inputs);
        errors.compare("merged", "", &logits(&*merged_model, None, &inputs), &merged);
    } else {
        let refused = describe(&**model, None, None, |model| merged_tensors(adapter, model)).is_err();
        errors.require(refused, "what is not weights alone is merged");
    }

    let losses = five_steps(&**model, &mut built.adapter, &inputs, folder.ends_with("lora-plus"));
    errors.compare("steps", "losses", &losses, &expect["losses"].values);
    compare_parameters(&mut errors, "steps", &built.adapter, &expect, |parameter| parameter.value().to_vec());
    errors.require(all_bits(&**model) == before, "the base changed");
    errors.outcome()
}

/// Where a case's adapter lies, and the name of its weights' file.
fn files_of(folder: &Path) -> (PathBuf, &'static str) {
    let hub = folder.join("adapter");
    if hub.exists() { (hub, "adapter.safetensors") } else { (folder.to_owned(), "adapter_model.safetensors") }
}

/// The adapter of a case's files.
pub(crate) fn load_case(folder: &Path, model: &dyn Model) -> BuiltAdapter {
    load(&files_of(folder).0, model)
}

/// The mean loss and its gradients, as training computes them: the same with and without gradient checkpointing.
pub(crate) fn loss_and_gradients(model: &dyn Model, adapter: &Adapter, inputs: &Examples) -> (f32, Gradients) {
    let run = |checkpointing| {
        let workspace = Workspace::new().checkpointing(checkpointing);
        let mut gradients = Gradients::new(&workspace);
        let loss = mean_loss(&[batch(model, inputs)], model, adapter, &workspace, None, &mut gradients);
        (loss as f32, gradients)
    };
    let ((loss, gradients), (checkpointed_loss, checkpointed)) = (run(false), run(true));
    assert_eq!(loss, checkpointed_loss, "checkpointing changes the loss");
    for parameter in adapter.parameters() {
        let (id, name) = (parameter.id(), parameter.name());
        let (checkpointed, whole) = (checkpointed.get(id), gradients.get(id));
        // A prefix's network runs once for all blocks, or once for each block that is run again: the sums' order differs.
        if let (true, Some(checkpointed), Some(whole)) = (name.starts_with("prompt_encoder."), checkpointed, whole) {
            let error = relative_error(checkpointed.data(), whole.data());
            assert!(error < 1e-5, "checkpointing changes the gradient of {name} by {error}");
        } else {
            assert_eq!(checkpointed, whole, "checkpointing changes the gradient of {name}");
        }
    }
    (loss, gradients)
}

/// The reference's tensors under `prefix`, by the names of the adapter's own. A module that is trained whole has a wrapper in
/// PEFT, and DoRA's magnitudes are a module, which its files leave out.
pub(crate) fn named<'a>(
    adapter: &Adapter,
    expect: &'a BTreeMap<String, Tensor>,
    prefix: &str,
) -> BTreeMap<String, &'a Tensor> {
    let flat = "prompt_embeddings";
    let has_flat = adapter.parameters().iter().any(|parameter| parameter.name() == flat);
    let own = |name: &str| {
        let name = name.replace(".modules_to_save.", ".");
        // A module in PEFT, which saves it without its last part.
        let name = name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector");
        if name == "prompt_encoder.embedding.weight" && has_flat { flat.to_owned() } else { name }
    };
    let tensors = expect.iter().filter_map(|(key, tensor)| Some((key.strip_prefix(prefix)?, tensor)));
    tensors.map(|(name, tensor)| (own(name), tensor)).collect()
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
    let (reference, gradients) = (named(adapter, expect, prefix), named(adapter, expect, "grad."));
    let expected: BTreeSet<&str> = reference.keys().map(String::as_str).collect();
    errors.require(found == expected, &format!("trains {found:?}, the reference {expected:?}"));
    let largest = |values: &[f32]| values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let of_all = gradients.values().map(|tensor| largest(&tensor.values)).fold(0.0, f32::max);
    for parameter in parameters.iter().filter(|parameter| expected.contains(parameter.name())) {
        let (name, values) = (parameter.name(), values(parameter));
        let Some(gradient) = gradients.get(name) else {
            errors.require(false, &format!("{kind} {name}: the reference's loss does not depend on it"));
            continue;
        };
        // What has no effect on the loss, such as the biases of keys, has rounding errors for gradients, and AdamW
        // makes steps of full length of them.
        if largest(&gradient.values) < 1e-6 * of_all {
            let vanishes = kind != "grad" || largest(&values) < 1e-5 * of_all;
            errors.require(vanishes, &format!("{kind} {name}: the reference's gradient vanishes"));
            continue;
        }
        if kind == "grad" {
            errors.compare(kind, name, &values, &reference[name].values);
            continue;
        }
        // AdamW divides by the gradient's size. Gradients agree to `TOLERANCE` of the tensor's largest; a value whose own
        // gradient is of that order gets steps in the direction of rounding errors.
        let gradient = &gradient.values;
        let least = 10.0 * TOLERANCE * largest(gradient);
        let settled = gradient.iter().map(|gradient| *gradient == 0.0 || gradient.abs() >= least);
        let pairs = values.iter().zip(&reference[name].values).zip(settled).filter(|(_, settled)| *settled);
        let (values, reference): (Vec<f32>, Vec<f32>) =
            pairs.map(|((value, reference), _)| (*value, *reference)).unzip();
        // A reparametrised prefix passes through two layers: what five steps make of rounding is multiplied by both. Products
        // summed in float64 come as far from the reference's float32 there as ours do: 3.3e-3 at the most.
        let tolerance = if name.starts_with("prompt_encoder.transform") { 50.0 * TOLERANCE } else { TOLERANCE };
        errors.compare_within(tolerance, kind, name, &values, &reference);
    }
}

/// Five AdamW steps with the reference's settings; the loss before each.
pub(crate) fn five_steps(model: &dyn Model, adapter: &mut Adapter, inputs: &Examples, lora_plus: bool) -> Vec<f32> {
    let weight_decay = if lora_plus { 0.0 } else { 0.01 };
    let groups =
        LoraPlus { loraplus_lr_ratio: 4.0, loraplus_weight_decay: 0.0, loraplus_lr_embedding: LoraPlus::LR_EMBEDDING };
    let mut optimizer = Optimizer::new(AdamW::default(), weight_decay, &adapter.parameters(), |parameter| {
        let learning_rate_scale = if lora_plus { groups.learning_rate_scale(parameter, 1e-2) } else { 1.0 };
        ParameterGroup { learning_rate_scale, ..ParameterGroup::default() }
    });
    let step = |_| {
        let (loss, gradients) = loss_and_gradients(model, adapter, inputs);
        optimizer.step(&mut adapter.parameters_mut(), &gradients, 1.0, 1e-2).expect("every tensor has a gradient");
        loss
    };
    (0..5).map(step).collect()
}

pub(crate) fn load_base(folder: &Path) -> Arc<dyn Model> {
    load_model(folder).unwrap_or_else(|error| panic!("{error}")).model
}

pub(crate) fn load(folder: &Path, model: &dyn Model) -> BuiltAdapter {
    describe(model, None, None, |model| load_adapter(folder, model)).unwrap_or_else(|error| panic!("{error}"))
}

/// The merged model, through a Hugging Face folder.
fn merge(model: &dyn Model, adapter: &Adapter, folder: &Path) -> Arc<dyn Model> {
    let replaced = describe(model, None, None, |model| merged_tensors(adapter, model)).expect("weight methods merge");
    save_folder(folder, model, None, &GenerationDefaults::default(), &replaced, NumberFormat::F32)
        .expect("the merged model saves");
    load_model(folder).unwrap_or_else(|error| panic!("{error}")).model
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
