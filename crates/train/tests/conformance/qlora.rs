//! A 4-bit base, alone and with LoRA.
//!
//! The reference's own numbers (`io.safetensors`, `expect.safetensors`) come from a model in evaluation mode, where
//! bitsandbytes multiplies with a kernel for inference on processors with AVX-512-BF16: it rounds operands and scales to
//! bf16, and it has no gradient, so that gradients stop at every frozen linear. They are compared with what that rounding
//! allows, gradients not at all. `expect-training.safetensors` holds the same numbers of a model in training mode, in
//! float32 and with gradients; they are compared as any other case. And whatever the folder has, the 4-bit base must
//! give what its weights give in floats.

use std::path::Path;

use tunesmith_models::{LoadedModel, Model, QuantizationOptions, load_model_quantized};
use tunesmith_tensor::{Adapter, Precision};

use crate::Outcome;
use crate::case::{self, five_steps, load, loss_and_gradients};
use crate::compare::{Errors, TOLERANCE};
use crate::fixture::{Examples, Tensor, tensors};
use crate::task::{logits, real_rows};

/// What rounding of activations, weights and scales to bf16 in every linear of a small model comes to.
const IN_BF16: f32 = 3e-2;

/// The base alone.
pub(crate) fn base(architecture: &Path, loaded: &LoadedModel) -> Outcome {
    let model = &*loaded.model;
    let io = tensors(&architecture.join("io.safetensors"));
    let inputs = Examples::of(&io);
    let mut errors = Errors::default();
    let found = logits(model, None, &inputs);
    let (loss, _) = loss_and_gradients(model, &Adapter::new(), &inputs);
    let mut compare = |tolerance, logits: &Tensor, expected: &Tensor| {
        errors.compare_within(tolerance, "logits", "", &found, &real_rows(model, logits, &inputs));
        errors.compare_within(tolerance, "loss", "", &[loss], &expected.values);
    };
    compare(IN_BF16, &io["logits"], &io["loss"]);
    let training = architecture.join("lora/expect-training.safetensors");
    if training.exists() {
        let training = tensors(&training);
        compare(TOLERANCE, &training["base_logits"], &training["base_loss"]);
    }
    errors.outcome()
}

/// The base with an adapter.
pub(crate) fn method(architecture: &Path, loaded: &LoadedModel, folder: &Path) -> Vec<(&'static str, Outcome)> {
    let model = &*loaded.model;
    let io = tensors(&architecture.join("io.safetensors"));
    let inputs = Examples::of(&io);
    let mut outcomes = vec![
        ("", evaluation(model, folder, &inputs)),
        (" (as in floats)", floats(architecture, model, folder, &inputs)),
    ];
    let training = folder.join("expect-training.safetensors");
    if training.exists() {
        outcomes.push((" (training)", case::method_against(architecture, loaded, folder, &training)));
    }
    outcomes
}

fn evaluation(model: &dyn Model, folder: &Path, inputs: &Examples) -> Outcome {
    let expect = tensors(&folder.join("expect.safetensors"));
    let adapter = load(folder, model).adapter;
    let mut errors = Errors::default();
    let expected = real_rows(model, &expect["logits"], inputs);
    errors.compare_within(IN_BF16, "logits", "", &logits(model, Some(&adapter), inputs), &expected);
    let (loss, _) = loss_and_gradients(model, &adapter, inputs);
    errors.compare_within(IN_BF16, "loss", "", &[loss], &expect["loss"].values);
    errors.outcome()
}

/// Against LoRA on the same weights in floats: logits, gradients, and the tensors after five steps.
fn floats(architecture: &Path, model: &dyn Model, folder: &Path, inputs: &Examples) -> Outcome {
    let options = QuantizationOptions { dequantize: Some(true), ..QuantizationOptions::default() };
    let floats = load_model_quantized(&architecture.join("model-4bit"), Precision::Float32, &options);
    let floats = floats.unwrap_or_else(|error| panic!("{error}")).model;
    let mut errors = Errors::default();
    let (mut ours, mut theirs) = (load(folder, model), load(folder, &*floats));
    let expected = logits(&*floats, Some(&theirs.adapter), inputs);
    errors.compare("logits", "", &logits(model, Some(&ours.adapter), inputs), &expected);
    let (_, found) = loss_and_gradients(model, &ours.adapter, inputs);
    let (_, expected) = loss_and_gradients(&*floats, &theirs.adapter, inputs);
    for (ours, theirs) in ours.adapter.parameters().into_iter().zip(theirs.adapter.parameters()) {
        let [found, expected] = [(&found, ours), (&expected, theirs)].map(|(gradients, parameter)| {
            gradients.get(parameter.id()).expect("every trainable tensor has a gradient").to_vec()
        });
        errors.compare("grad", ours.name(), &found, &expected);
    }
    let losses = five_steps(&*floats, &mut theirs.adapter, inputs, false);
    errors.compare("steps", "losses", &five_steps(model, &mut ours.adapter, inputs, false), &losses);
    for (ours, theirs) in ours.adapter.parameters().into_iter().zip(theirs.adapter.parameters()) {
        errors.compare("steps", ours.name(), ours.value().data(), theirs.value().data());
    }
    errors.outcome()
}
